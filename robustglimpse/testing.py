"""The gate in a test suite: one assertion. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robustglimpse.policy import Policy, load_policy
from robustglimpse.regress import Judgement, Selection, compare
from robustglimpse.report.verdicts import to_markdown


def assert_no_regression(
    baseline: str | Path,
    run: str | Path,
    *,
    policy: str | Path | Policy | Mapping[str, Any] | None = None,
    models: tuple[str, ...] = (),
    attacks: tuple[str, ...] = (),
    corruptions: tuple[str, ...] = (),
) -> Judgement:
    """Return the gate's judgement of a run where it passes; raise AssertionError with its table otherwise.

    policy: a TOML file, or its keys in a dictionary: {"margin": 0.02, "allow_inconclusive": True}.
    models, attacks, corruptions: globs of what to compare; none for everything.
    A run that selects nothing, lacks cells or is inconclusive does not pass.  Raises UserError for what
    cannot be read.
    """
    __tracebackhide__ = True
    if isinstance(policy, Mapping):
        chosen = load_policy(None, policy)
    else:
        chosen = policy if isinstance(policy, Policy) else load_policy(Path(policy) if policy else None)
    selection = Selection(models, attacks, corruptions)
    judgement = compare(Path(baseline), Path(run), chosen, chosen=selection)
    if judgement.exit_code:
        raise AssertionError(to_markdown(judgement))
    return judgement
