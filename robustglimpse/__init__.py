"""robustglimpse: adversarial and corruption robustness of image classifiers, in numbers that hold."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from robustglimpse.corruptions import corrupt
    from robustglimpse.data import from_loader, from_tensors, load_data
    from robustglimpse.exits import ExitStudy, study_exits
    from robustglimpse.frames import outcomes
    from robustglimpse.models import load_model
    from robustglimpse.models.exits import exit_early
    from robustglimpse.models.wrapped import wrap
    from robustglimpse.records import Classifier, Threat, UserError
    from robustglimpse.rng import KeyedDraws, LegacyDraws
    from robustglimpse.runner import Bench, bench
    from robustglimpse.store import read_results
    from robustglimpse.sweep import Sweep, sweep_corruptions
    from robustglimpse.testing import assert_no_regression

_WHERE = {
    "Bench": "robustglimpse.runner",
    "Classifier": "robustglimpse.records",
    "ExitStudy": "robustglimpse.exits",
    "KeyedDraws": "robustglimpse.rng",
    "LegacyDraws": "robustglimpse.rng",
    "Sweep": "robustglimpse.sweep",
    "Threat": "robustglimpse.records",
    "UserError": "robustglimpse.records",
    "assert_no_regression": "robustglimpse.testing",
    "bench": "robustglimpse.runner",
    "corrupt": "robustglimpse.corruptions",
    "exit_early": "robustglimpse.models.exits",
    "from_loader": "robustglimpse.data",
    "from_tensors": "robustglimpse.data",
    "load_data": "robustglimpse.data",
    "load_model": "robustglimpse.models",
    "outcomes": "robustglimpse.frames",
    "read_results": "robustglimpse.store",
    "study_exits": "robustglimpse.exits",
    "sweep_corruptions": "robustglimpse.sweep",
    "wrap": "robustglimpse.models.wrapped",
}
__all__ = [
    "Bench", "Classifier", "ExitStudy", "KeyedDraws", "LegacyDraws", "Sweep", "Threat", "UserError",
    "assert_no_regression", "bench", "corrupt", "exit_early", "from_loader", "from_tensors", "load_data",
    "load_model", "outcomes", "read_results", "study_exits", "sweep_corruptions", "wrap",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used, so that importing the package loads no torch."""
    from importlib import import_module

    if name == "frames":
        return import_module("robustglimpse.frames")
    if name not in _WHERE:
        # With a name and an object, Python tells the nearest name of dir().
        raise AttributeError(
            f"module 'robustglimpse' has no attribute {name!r}", name=name, obj=sys.modules[__name__]
        )
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    """Return the public names, loaded or not, for dir() and for those who complete names with Tab."""
    return sorted({*__all__, "frames", *(name for name in globals() if name.startswith("__"))})
