"""The same attack of several libraries on the same images from the same start: where they differ, and why."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustglimpse.attacks import ATTACKS, adapted_defaults, canonical, check_call, defaults_of, options_of
from robustglimpse.records import UserError
from robustglimpse.registry import Call, parse_call
from robustglimpse.request import check_asked
from robustglimpse.runner import Bench, bench, with_defaults
from robustglimpse.stats import mcnemar
from robustglimpse.store import Store, is_correct
from robustglimpse.surroundings import own_surroundings

PROTOCOL = "plain"
COLUMNS = (
    "model", "attack", "n", "accuracy", "other_verdicts", "other_predictions", "stands_here_alone",
    "stands_there_alone", "p_value", "first_index", "excess", "seconds", "first_other_default", "status",
    "error",
)  # fmt: skip


@dataclass(frozen=True)
class _Side:
    """What an attack left of a model: verdicts bool [N] and predictions i64 [N], by index.

    images: which ones they are, as the store tells it.  index: i64 [N], their places in the data set.
    excess: the farthest that an image was outside the ball, before it was drawn back.
    """

    images: str
    index: NDArray[np.int64]
    stands: NDArray[np.bool_]
    pred: NDArray[np.int64]
    excess: float


@own_surroundings()
def compare(asked: Bench, out: Path, *, command: str = "") -> pd.DataFrame:
    """Run the attacks on the same images and return a row per model and attack, set beside the first attack.

    Every attack that can begins at the image itself, with the steps and step size asked for; each is judged
    by the image that it ends with.  Columns: COLUMNS; `other_verdicts` counts the samples that stand under
    one of the two attacks alone, `other_predictions` those whose class is another one after them;
    stands_here_alone are those that only this attack leaves standing; p_value is McNemar's, exact.
    first_other_default is the first argument whose default is not that of the first attack: what the
    difference would be had both been left alone.  Raises UserError for fewer than two attacks.
    """
    check_asked(asked, Bench, "compare(Bench(models='mgnet-r18', attacks=['pgd', 'fgsm']), 'runs/mine')")
    if len(asked.attacks) < 2:
        raise UserError(
            "a comparison needs two attacks or more; for example --attack pgd --attack foolbox:LinfPGD"
        )
    asked = replace(asked, protocols=(PROTOCOL,), all_exits=False, curve="")
    given = [parse_call(text) for text in asked.attacks]
    calls = [_at_the_image(with_defaults(call, asked), asked.norm) for call in given]
    usual = [_usual(call) for call in given]
    store, first, rows = Store(out), dict[str, _Side](), []
    for k, call in enumerate(calls):
        results = bench(replace(asked, attacks=(str(call),)), out, command=command)
        for model, of_model in results[results["kind"] == "attack"].groupby("model", sort=False):
            row = of_model.iloc[_last(of_model)]
            told = {
                "model": model, "attack": str(given[k]), "status": row["status"], "error": row["error"],
                "first_other_default": _first_difference(usual[0], usual[k]) if k else "",
            }  # fmt: skip
            if row["status"] == "ok":
                side = _side(row, store)
                told |= _beside(first.setdefault(str(model), side), side)
                told |= {"accuracy": row["accuracy"], "seconds": row["seconds"]}
            rows.append(told)
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame.sort_values("model", kind="stable", ignore_index=True)


def _at_the_image(call: Call, norm: str) -> Call:
    """Return the call beginning at the image itself, where the attack has that choice and leaves it open."""
    row = check_call(call, norm)
    if row.is_adapted:
        return adapted_defaults(call, random_start=False)
    options = dict(call.arguments)
    if "random_start" in options_of(row):
        options.setdefault("random_start", False)
    return Call(call.name, tuple(sorted(options.items())))


def _usual(call: Call) -> dict[str, Any]:
    """Return what a call runs with by default: its library's, or for our own what bench fills in."""
    filled = with_defaults(call, Bench(())) if canonical(call).name in ATTACKS else call
    held = defaults_of(filled)
    steps = held.get("steps")
    return held | ({"steps": max(steps)} if isinstance(steps, list) else {})


def _first_difference(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Return the first argument of both whose default differs, such as "steps: 10, not 16"; "" for none."""
    for name in sorted(ours.keys() & theirs.keys(), key=[*_FIRST, *sorted(ours)].index):
        if _text(theirs[name]) != _text(ours[name]):
            return f"{name}: {_text(theirs[name])}, not {_text(ours[name])}"
    return ""


_FIRST = ("steps", "step_size", "random_start", "loss")  # the arguments that matter most, in this order


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _last(rows: pd.DataFrame) -> int:
    """Return the place of the row that counts the iterate after all steps, else of the only one."""
    order = rows["judge"].eq("last").astype(int) * 10**9 + rows["steps"].fillna(0).astype(int)
    return int(order.to_numpy().argmax())


def _side(row: pd.Series, store: Store) -> _Side:
    outcomes = store.outcomes(str(row["cell"])).sort_values("index")
    most = int(row["steps"])
    stands = is_correct(outcomes, str(row["judge"]), most, most=most)
    column = f"pred_at_{most}" if row["judge"] == "last" else "pred"
    images, index = store.images(str(row["cell"])), outcomes["index"].to_numpy()
    return _Side(images, index, stands, outcomes[column].to_numpy(), float(outcomes["excess"].max()))


def _beside(first: _Side, side: _Side) -> dict[str, Any]:
    if side.images != first.images or not np.array_equal(side.index, first.index):
        raise ValueError("two attacks on different images cannot be paired")
    here, there = side.stands & ~first.stands, first.stands & ~side.stands
    differs = here | there | (side.pred != first.pred)
    return {
        "n": len(side.stands),
        "other_verdicts": int((here | there).sum()),
        "other_predictions": int((side.pred != first.pred).sum()),
        "stands_here_alone": int(here.sum()),
        "stands_there_alone": int(there.sum()),
        "p_value": mcnemar(int(here.sum()), int(there.sum())),
        "first_index": int(differs.argmax()) if differs.any() else -1,
        "excess": side.excess,
    }
