"""robustglimpse: adversarial and corruption robustness of image classifiers, in numbers that hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from robustglimpse.corruptions import corrupt
    from robustglimpse.data import load_data
    from robustglimpse.models import load_model
    from robustglimpse.records import Classifier, Threat, UserError
    from robustglimpse.rng import KeyedDraws, LegacyDraws
    from robustglimpse.runner import Bench, bench
    from robustglimpse.store import read_results
    from robustglimpse.sweep import Sweep, sweep_corruptions

_WHERE = {
    "Bench": "robustglimpse.runner",
    "Classifier": "robustglimpse.records",
    "KeyedDraws": "robustglimpse.rng",
    "LegacyDraws": "robustglimpse.rng",
    "Sweep": "robustglimpse.sweep",
    "Threat": "robustglimpse.records",
    "UserError": "robustglimpse.records",
    "bench": "robustglimpse.runner",
    "corrupt": "robustglimpse.corruptions",
    "load_data": "robustglimpse.data",
    "load_model": "robustglimpse.models",
    "read_results": "robustglimpse.store",
    "sweep_corruptions": "robustglimpse.sweep",
}
__all__ = [
    "Bench", "Classifier", "KeyedDraws", "LegacyDraws", "Sweep", "Threat", "UserError", "bench",
    "corrupt", "load_data", "load_model", "read_results", "sweep_corruptions",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used, so that importing the package loads no torch."""
    if name not in _WHERE:
        raise AttributeError(f"module 'robustglimpse' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_WHERE[name]), name)
