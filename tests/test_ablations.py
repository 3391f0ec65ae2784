"""benchmarks/ablations.py: variations trained and attacked once each, a kill survived, tables by hand."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

from robustglimpse import train as training
from robustglimpse.data import Dataset
from robustglimpse.records import UserError

FILE = Path(__file__).parents[1] / "benchmarks" / "ablations.py"
PLAN = """
recipe = "mgnet-cnn-cluttered-digits"
seeds = [1, 2]
[changes]
epochs = 1
batch_size = 32
dataset = "glimpse-digits"
downsample = "2"
[bench]
steps = [1]
limit = 4
[tables.alpha]
"with" = { alpha = 0.6 }
"without" = { alpha = 0 }
[tables.again]
"as before" = { alpha = 0.6 }
"""


@pytest.fixture(scope="module")
def ablations() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("ablations", FILE)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules["ablations"] = made  # where its dataclasses look for their types
    spec.loader.exec_module(made)
    return made


@pytest.fixture
def plan(tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of ablations on 64 digits of 32 px."""
    small = replace(digits, images=digits.images[:, :, ::2, ::2].copy())
    monkeypatch.setattr(training, "load_data", lambda *_, **__: small)
    (tmp_path / "plan.toml").write_text(PLAN)
    return tmp_path / "plan.toml"


def run(ablations: ModuleType, plan: Path, where: Path, *more: str) -> pd.DataFrame:
    ablations.main(["--file", str(plan), "--work", str(where / "work"), "--out", str(where), *more])
    return pd.read_csv(where / "ablations.csv")


class Killed(BaseException):
    """Stands for a signal."""


def test_variations_are_trained_and_attacked_once_whatever_kills_the_run(
    ablations: ModuleType, plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[float, int]] = []

    def train(recipe: Any, out: Path, **options: Any) -> Path:
        if len(trained) == 2:
            trained.append((-1, -1))
            raise Killed
        trained.append((recipe.alpha, recipe.seed))
        return training.train(recipe, out, **options)

    monkeypatch.setattr(ablations, "train", train)
    with pytest.raises(Killed):
        run(ablations, plan, tmp_path)
    first = pd.read_csv(tmp_path / "ablations.csv")
    assert set(first["seed"]) == {1}, "what is done is on disk"
    frame = run(ablations, plan, tmp_path)
    # The second table's variation is one of the first's, and what was done is not done again.
    assert trained == [(0.6, 1), (0.0, 1), (-1, -1), (0.6, 2), (0.0, 2)]
    assert not list((tmp_path / "work").rglob("last.pt"))

    assert list(frame.columns) == ablations.COLUMNS
    runs = frame.drop_duplicates(["table", "variation", "seed"])
    assert list(zip(runs["table"], runs["variation"], runs["seed"], strict=True)) == [
        (table, variation, seed)
        for seed in (1, 2)
        for table, variation in (("alpha", "with"), ("alpha", "without"), ("again", "as before"))
    ]
    of_one = frame[(frame["table"] == "alpha") & (frame["variation"] == "with") & (frame["seed"] == 1)]
    assert of_one[["condition", "exit"]].to_numpy().tolist() == [
        [condition, number]
        for condition in ("clean", "pgd linf 4/255, 1 steps, standard, worst")
        for number in (1, 2, 3)
    ]
    assert (frame["total"] == 4).all()
    assert (frame["accuracy"] == frame["correct"] / frame["total"]).all()
    assert "## alpha" in (tmp_path / "ablations.md").read_text()


def test_the_table_has_means_and_the_lowest_and_highest(ablations: ModuleType) -> None:
    shares = {("a", 1): 0.5, ("a", 2): 0.7, ("b", 1): 0.25}
    frame = pd.DataFrame(
        [
            {"table": "t", "variation": v, "seed": s, "condition": "clean", "exit": 1, "accuracy": share}
            for (v, s), share in shares.items()
        ]
    )
    lines = ablations.to_markdown(frame).splitlines()
    assert "clean: accuracy in %, mean over up to 2 seeds (lowest to highest)" in lines
    for line in (
        "| a | 2 | 60.0 (50.0 to 70.0) |",
        "| b | 1 | 25.0 |",
        "| a | 1 | 50.0 |",
        "| a | 2 | 70.0 |",
    ):
        assert line in lines


def test_the_bundled_plan_changes_one_thing_at_a_time(ablations: ModuleType) -> None:
    plan = ablations.read_plan(FILE.with_suffix(".toml"))
    assert set(plan.tables) == {"gradient-scale", "alpha", "glimpse-classifier", "initialisation"}
    assert len(plan.seeds) >= 3
    base = ablations.load_recipe("mgnet-r18-glimpse-digits")
    for variations in plan.tables.values():
        for recipe in variations.values():
            kept = replace(recipe, epochs=base.epochs, precision=base.precision)
            changed = {f for f in ("gradient_scale", "alpha", "glimpse_loss", "initialisation")
                       if getattr(kept, f) != getattr(base, f)}  # fmt: skip
            assert replace(kept, **{f: getattr(base, f) for f in changed}) == base
            assert len(changed) <= 1
    assert {r.gradient_scale for r in plan.tables["gradient-scale"].values()} >= {1.0, 0.02}
    assert {r.alpha for r in plan.tables["alpha"].values()} >= {0.0, 0.6}


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("[changes]", "[change]", "unknown key 'change'"),
        ("seeds = [1, 2]", "", "missing key 'seeds'"),
        ("seeds = [1, 2]", "seeds = [1.5]", "seeds must be whole numbers"),
        ("limit = 4", "limits = 4", "unknown key of bench 'limits'"),
        ("{ alpha = 0 }", "{ alhpa = 0 }", "unknown key of a recipe 'alhpa'"),
        ("{ alpha = 0 }", "{ seed = 3 }", "unknown key of a recipe 'seed'"),
        ("{ alpha = 0 }", "{ alpha = true }", "alpha must be like 0.6, got True"),
        ("{ alpha = 0 }", "{ glimpses = 2.0 }", "glimpses must be like 3, got 2.0"),
        ("{ alpha = 0 }", "{ alpha = ", "cannot be read"),
    ],
)
def test_a_plan_that_cannot_be_run_is_refused(
    ablations: ModuleType, tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(PLAN.replace(old, new, 1))
    with pytest.raises(UserError) as refused:
        ablations.read_plan(path)
    assert message in str(refused.value)
