"""The gate in a test suite: one assertion. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from robustglimpse.arguments import path, several, text
from robustglimpse.policy import Policy, load_policy
from robustglimpse.regress import Judgement, Selection, compare
from robustglimpse.report.verdicts import to_markdown


def assert_no_regression(
    baseline: str | Path,
    run: str | Path,
    *,
    policy: str | Path | Policy | Mapping[str, Any] | None = None,
    models: str | Iterable[str] = (),
    attacks: str | Iterable[str] = (),
    corruptions: str | Iterable[str] = (),
) -> Judgement:
    """Return the gate's judgement of a run where it passes; raise AssertionError with its table otherwise.

    policy: a TOML file, or its keys in a dictionary: {"margin": 0.02, "allow_inconclusive": True}.
    models, attacks, corruptions: globs of what to compare, one or several; none for everything.
    A run that selects nothing, lacks cells or is inconclusive does not pass.  Raises UserError for what
    cannot be read.
    """
    __tracebackhide__ = True
    if isinstance(policy, Mapping):
        chosen = load_policy(None, policy)
    else:
        file = None if policy is None or isinstance(policy, Policy) else path(policy, "policy")
        chosen = policy if isinstance(policy, Policy) else load_policy(file)
    globs = {"models": models, "attacks": attacks, "corruptions": corruptions}
    selection = Selection(
        *(several(value, what, partial(text, what=what, example="'pgd*'")) for what, value in globs.items())
    )
    judgement = compare(path(baseline, "baseline"), path(run, "run"), chosen, chosen=selection)
    if judgement.exit_code:
        raise AssertionError(to_markdown(judgement))
    return judgement
