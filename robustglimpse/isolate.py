"""From one protocol to the next, one change at a time, on the same images: what each change is worth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustglimpse.attacks import ATTACKS, canonical, options_of
from robustglimpse.pairs import each_model
from robustglimpse.records import PROTOCOLS, Classifier, UserError
from robustglimpse.registry import fraction_text, parse_call, parse_fraction
from robustglimpse.report.tables import markdown
from robustglimpse.request import check_asked
from robustglimpse.runner import Bench, bench, choose_device
from robustglimpse.stats import holm, mcnemar, table_difference
from robustglimpse.store import Store, is_correct
from robustglimpse.surroundings import own_surroundings

ALPHA = 0.05
COLUMNS = (
    "model", "change", "isolates", "before", "after", "n", "accuracy_before", "accuracy_after", "lost",
    "gained", "difference", "ci_low", "ci_high", "p_value", "p_holm",
)  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """One way to attack: a protocol, its tries and ball, and which verdict is read.

    is_small: the ball and the steps are as small as those of the protocol `paper` are in pixels.
    """

    name: str
    protocol: str
    judge: str
    tries: int = 1
    is_small: bool = False


@dataclass(frozen=True)
class Change:
    """What is changed between an arm and the next, and nothing else."""

    name: str
    isolates: str


TRIES = len(PROTOCOLS["adaptive"].surrogates)
ARMS = (
    Arm("paper", "paper", "last"),
    Arm("plain, as small a ball", "plain", "last", is_small=True),
    Arm("plain", "plain", "last"),
    Arm("plain, any iterate", "plain", "worst"),
    Arm("standard", "standard", "worst"),
    Arm(f"standard, {TRIES} tries", "standard", "worst", tries=TRIES),
    Arm("adaptive", "adaptive", "worst"),
)
CHANGES = (
    Change("shape and clip", "one radius for all channels instead of one each, clipped to [0,1]; same size"),
    Change("ball", "the radius and the steps, made as large in pixels as they read"),
    Change("verdict", "any iterate may fool, not the last alone"),
    Change("start", "at random in the ball instead of at the image"),
    Change("tries", f"{TRIES} random starts instead of one, the gradient as trained"),
    Change("gradients", f"{TRIES} tries through three gradients instead of {TRIES} as trained"),
)


@own_surroundings()
def isolate(asked: Bench, out: Path, *, command: str = "") -> pd.DataFrame:
    """Run the protocols from `paper` to `adaptive` one change apart; return what each change is worth.

    A row per model and change: accuracies after the last step, on the same images; difference = after -
    before with its exact 95 % interval (stats.table_difference), McNemar's p-value, and p_holm over the
    model's rows.  isolates: what is changed, in words; all else is equal; tries too, unless they are it.
    Of a model with one exit all gradients are one, and that row compares other random starts.
    asked: one attack that yields a curve over steps and can start at random; its protocols and restarts are
    not used.  Raises UserError for another attack, several, or a sweep, and where a cell crashes.
    """
    check_asked(asked, Bench, "isolate(Bench(models='mgnet-r18'), 'runs/mine')")
    _check(asked)
    store, found = Store(out), []
    asked = replace(
        asked, steps=(max(asked.steps),), protocols=tuple(PROTOCOLS), restarts=1, all_exits=False
    )  # bench adds `standard` with as many tries as `adaptive` makes
    for name, classifier in each_model(asked.models, choose_device(asked.device)):
        one = replace(asked, models=(replace(classifier, name=name),))
        runs = {arm.is_small: _settings(one, arm, classifier) for arm in ARMS}
        results = {
            is_small: _whole(bench(each, out, command=command), out) for is_small, each in runs.items()
        }
        stands = [_stands(results[arm.is_small], arm, store) for arm in ARMS]
        rows = [_row(name, k, stands[k], stands[k + 1]) for k in range(len(CHANGES))]
        adjusted = holm([row["p_value"] for row in rows])
        found += [{**row, "p_holm": p} for row, p in zip(rows, adjusted, strict=True)]
    return pd.DataFrame(found, columns=list(COLUMNS))


def _check(asked: Bench) -> None:
    if len(asked.attacks) != 1 or asked.curve:
        swept = f" and a sweep over {asked.curve}" if asked.curve else ""
        raise UserError(
            f"expected one attack and no sweep, got {len(asked.attacks)} attacks{swept}; run them apart"
        )
    call = canonical(parse_call(asked.attacks[0]))
    row = ATTACKS.get(call.name)
    if row is None or not row.iterative or "random_start" not in options_of(row):
        usable = ", ".join(
            name for name, each in ATTACKS.items() if each.iterative and "random_start" in options_of(each)
        )
        raise UserError(
            f"expected an attack of our own whose every step is judged and whose start may be random "
            f"({usable}), got {asked.attacks[0]!r}"
        )


def _settings(asked: Bench, arm: Arm, classifier: Classifier) -> Bench:
    """Return what runs an arm: all protocols, or `plain` in a ball as small as `paper`'s is in pixels."""
    if not arm.is_small:
        return asked
    share = float(np.mean(classifier.normalisation[1]))  # of a pixel, in the units of `paper`
    eps, step = (parse_fraction(text, what="eps") * share for text in (asked.eps, asked.step_size))
    return replace(asked, protocols=(arm.protocol,), eps=fraction_text(eps), step_size=fraction_text(step))


def _whole(results: pd.DataFrame, out: Path) -> pd.DataFrame:
    """Return the attacked rows of a run. Raises UserError where a cell crashed: nothing is known then."""
    failed = results[results["status"] == "failed"]
    if len(failed):
        row = failed.iloc[0]
        raise UserError(
            f"{row['model']}: a cell crashed ({row['error']}), so that nothing can be taken apart; its "
            f"traceback: {out / 'failures'}"
        )
    return results[results["kind"] == "attack"]


def _stands(rows: pd.DataFrame, arm: Arm, store: Store) -> NDArray[np.bool_]:
    """Return which images stand after an arm's last step, by their place in the set."""
    is_arm = (rows["protocol"] == arm.protocol) & (rows["judge"] == arm.judge)
    (row,) = rows[is_arm & (rows["restarts"] == arm.tries)].to_dict("records")
    outcomes, most = store.outcomes(str(row["cell"])).sort_values("index"), int(row["steps"])
    return is_correct(outcomes, arm.judge, most, most=most)


def _row(model: str, k: int, before: NDArray[np.bool_], after: NDArray[np.bool_]) -> dict[str, Any]:
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    change = table_difference(lost, gained, len(before), alpha=ALPHA / 2)
    return {
        "model": model, "change": CHANGES[k].name, "isolates": CHANGES[k].isolates, "before": ARMS[k].name,
        "after": ARMS[k + 1].name, "n": len(before), "accuracy_before": float(before.mean()),
        "accuracy_after": float(after.mean()), "lost": lost, "gained": gained, "difference": change.value,
        "ci_low": change.low, "ci_high": change.high, "p_value": mcnemar(lost, gained),
    }  # fmt: skip


def to_markdown(frame: pd.DataFrame) -> str:
    """Return the table of isolate, in percent and points."""
    header = ["model", "change", "before", "after", "points [95 %]", "lost / gained", "p (Holm)", "isolates"]
    rows = [
        [
            row["model"], row["change"], f"{row['before']} {100 * row['accuracy_before']:.1f}",
            f"{row['after']} {100 * row['accuracy_after']:.1f}",
            f"{100 * row['difference']:+.1f} [{100 * row['ci_low']:.1f}, {100 * row['ci_high']:.1f}]",
            f"{row['lost']} / {row['gained']} of {row['n']}", f"{row['p_holm']:.2g}", row["isolates"],
        ]
        for row in frame.to_dict("records")
    ]  # fmt: skip
    return markdown(header, rows)
