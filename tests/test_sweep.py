"""A sweep: the same pictures for every model, done cells stay done, a crash is a hole."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from colours import colour_classifier, offer, save_colours
from torch import Tensor

from robustglimpse import evaluate, runner
from robustglimpse.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from robustglimpse.corruptions.weather import PROCEDURAL
from robustglimpse.data import Dataset, load_data
from robustglimpse.models import load_model
from robustglimpse.records import RESULT_COLUMNS, Cell, Threat, UserError
from robustglimpse.report.table2 import alexnet
from robustglimpse.rng import KeyedDraws
from robustglimpse.store import Store, read_results
from robustglimpse.sweep import Sweep, correctness, misfit, read_baseline, sheet, sweep_corruptions

MODELS = {"mgnet-r18": 3, "ffnet-r18": 1}  # exits
NAMES, CHOSEN = ("frost", "gaussian_noise"), (2, 5)
LIMIT, BATCH = 8, 3
SMALL = Sweep(
    tuple(MODELS), corruptions=NAMES, severities=CHOSEN, frost_dir=PROCEDURAL, limit=LIMIT, batch_size=BATCH,
    seed=5, device="cpu",
)  # fmt: skip
CELLS = [(name, severity) for name in NAMES for severity in CHOSEN]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep run from its beginning to its end."""
    out = tmp_path_factory.mktemp("straight")
    sweep_corruptions(SMALL, out, command="test")
    return out


@pytest.fixture(scope="module")
def images() -> Dataset:
    """What it looked at."""
    return load_data("glimpse-digits", limit=LIMIT)


def refusal(call: Callable[[], object]) -> str:
    """Return the message of the UserError that the call raises, which must be one line."""
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def timeless(path: Path) -> pd.DataFrame:
    """Return a run's results.csv without its place and the wall times, which alone may differ."""
    return read_results(path).drop(columns=["run", "seconds"])


def same_run(left: Path, right: Path) -> None:
    pd.testing.assert_frame_equal(timeless(left), timeless(right))
    names = sorted(path.name for path in (left / "outcomes").iterdir())
    assert names == sorted(path.name for path in (right / "outcomes").iterdir())
    for name in names:
        assert (left / "outcomes" / name).read_bytes() == (right / "outcomes" / name).read_bytes()


def pictures(images: Dataset, asked: Sweep, name: str, severity: int) -> Tensor:
    """Return all images of a set under a corruption, u8 [N,3,H,W], as a sweep must show them."""
    pixels = torch.from_numpy(np.array(images.images))
    draws = KeyedDraws(asked.seed, torch.arange(len(pixels)))
    return corrupt(
        pixels, name, severity, draws=draws, preset=asked.preset, store=asked.store, frost_dir=asked.frost_dir
    )


def corrupted(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["kind"] == "corruption"]


def test_a_sweep_leaves_a_row_per_cell_and_exit(straight: Path, images: Dataset) -> None:
    frame = read_results(straight)
    assert tuple(frame.columns) == ("run", *RESULT_COLUMNS)
    assert set(frame["status"]) == {"ok"}
    clean, found = frame[frame["kind"] == "clean"], corrupted(frame)
    assert len(clean) + len(found) == len(frame)
    every_exit = {(model, k + 1) for model, exits in MODELS.items() for k in range(exits)}
    assert sorted(zip(clean["model"], clean["exit"], strict=True)) == sorted(every_exit)
    keys = ["model", "exit", "corruption", "severity"]
    assert sorted(found[keys].itertuples(index=False, name=None)) == sorted(
        (*of, *cell) for of in every_exit for cell in CELLS
    )
    assert set(frame["total"]) == set(frame["n"]) == {LIMIT}
    assert set(frame["n_total"]) == {1000}
    assert set(frame["classes"]) == {len(set(images.labels.tolist()))}
    assert (frame["accuracy"] == frame["correct"] / LIMIT).all()
    assert (frame["ci_low"] <= frame["accuracy"]).all()
    assert (frame["accuracy"] <= frame["ci_high"]).all()
    assert (frame["seconds"] > 0).all()
    # A glimpse more costs more; a clean row and a corrupted one of an exit cost the same.
    assert frame.groupby(["model", "exit"])["gmacs"].nunique().eq(1).all()
    assert clean[clean["model"] == "mgnet-r18"].sort_values("exit")["gmacs"].is_monotonic_increasing


def test_rows_say_what_the_images_went_through(straight: Path) -> None:
    frame = read_results(straight)
    clean, found = frame[frame["kind"] == "clean"], corrupted(frame)
    assert set(found["preset"]) == {64}
    assert set(found["store"]) == {"exact"}
    assert set(found["seed"]) == {5}
    assert set(found[found["corruption"] == "frost"]["texture"]) == {"procedural"}
    assert set(found[found["corruption"] != "frost"]["texture"]) == {""}
    for column in ("corruption", "store", "texture", "attack", "protocol"):
        assert set(clean[column]) == {""}
    assert set(clean["preset"]) == set(clean["severity"]) == set(clean["seed"]) == {0}


def test_a_row_leads_to_its_cell(straight: Path) -> None:
    frame = read_results(straight)
    assert set(frame["cell"]) == {path.stem for path in (straight / "cells").iterdir()}
    assert frame["cell"].nunique() == len(MODELS) * (1 + len(CELLS))
    for key, rows in frame.groupby("cell"):
        record = json.loads((straight / "cells" / f"{key}.json").read_text())
        cell = Cell(**{**record["cell"], "threat": Threat("linf", 0.0)})
        assert cell.key == key == record["key"]
        assert cell.model == rows["model"].iloc[0]
        name, severity = rows[["corruption", "severity"]].iloc[0]
        assert cell.perturb == "clean" if severity == 0 else cell.perturb.startswith(f"{name}(preset=64")
        assert len(rows) == MODELS[cell.model] == len(record["rows"])
    run = json.loads((straight / "run.json").read_text())
    assert sorted(run[0]["cells"]) == sorted(set(frame["cell"]))


def test_outcomes_are_those_of_the_images_that_corrupt_makes(straight: Path, images: Dataset) -> None:
    frame, store = read_results(straight), Store(straight)
    labels = torch.from_numpy(np.array(images.labels))
    before = torch.from_numpy(np.array(images.images))
    for model, exits in MODELS.items():
        classifier = load_model(model)
        rows = frame[frame["model"] == model]
        clean_pred = classifier.exits(before / 255).argmax(2)
        for (name, severity), of_cell in corrupted(rows).groupby(["corruption", "severity"]):
            shown = pictures(images, SMALL, str(name), int(str(severity)))
            pred = classifier.exits(shown / 255).argmax(2)
            delta = ((shown.float() - before.float()) / 255).flatten(1)
            found = store.outcomes(of_cell["cell"].iloc[0]).sort_values(["exit", "index"])
            assert found["exit"].tolist() == sorted(list(range(1, exits + 1)) * LIMIT)
            columns = {
                "index": torch.arange(LIMIT).repeat(exits),
                "label": labels.repeat(exits),
                "pred": pred.flatten(),
                "clean_pred": clean_pred.flatten(),
                "first_success_step": torch.where(
                    clean_pred != labels, 0, torch.where(pred == labels, -1, 1)
                ).flatten(),
            }
            for column, expected in columns.items():
                assert found[column].tolist() == expected.tolist(), (model, name, severity, column)
            assert found["linf"].tolist() == pytest.approx(delta.abs().amax(1).repeat(exits).tolist())
            assert found["l2"].tolist() == pytest.approx(delta.norm(dim=1).repeat(exits).tolist())
            right = (pred == labels).sum(1).tolist()
            assert of_cell.sort_values("exit")["correct"].tolist() == right
    all_pred = torch.cat([load_model(m).exits(before / 255).argmax(2) for m in sorted(MODELS)])
    clean = frame[frame["kind"] == "clean"].sort_values(["model", "exit"])
    assert clean["correct"].tolist() == (all_pred == labels).sum(1).tolist()


def test_something_was_lost_so_that_the_columns_above_tell_cells_apart(straight: Path) -> None:
    frame, store = read_results(straight), Store(straight)
    assert corrupted(frame)["accuracy"].min() < frame[frame["kind"] == "clean"]["accuracy"].max()
    steps = {s for key in corrupted(frame)["cell"] for s in store.outcomes(key)["first_success_step"]}
    assert {-1, 1} <= steps


def test_batch_size_changes_nothing_but_float_noise(straight: Path, tmp_path: Path) -> None:
    sweep_corruptions(replace(SMALL, batch_size=LIMIT), tmp_path, command="test")
    left, right = timeless(straight), timeless(tmp_path)
    assert set(left.pop("cell")).isdisjoint(right.pop("cell"))
    assert (set(left.pop("batch_size")), set(right.pop("batch_size"))) == ({BATCH}, {LIMIT})
    pd.testing.assert_frame_equal(left, right)
    cells = [
        frame.drop_duplicates(["model", "corruption", "severity"])["cell"]
        for frame in (timeless(straight), timeless(tmp_path))
    ]
    for one, other in zip(*cells, strict=True):
        ours, theirs = Store(straight).outcomes(one), Store(tmp_path).outcomes(other)
        # MGNet carries rounding on: a region 1e-6 to the side is 6e-4 in the margin on some processors.
        assert ours.pop("margin").tolist() == pytest.approx(theirs.pop("margin").tolist(), abs=5e-3)
        pd.testing.assert_frame_equal(ours, theirs)


# With colours for classes, where a model costs nothing

PAINTS = ("ant", "bee", "cow")
EACH = 3  # images of a class
PAINT_BATCHES = 3 * 5 * 2  # three batches of five cells of two models


@pytest.fixture
def paints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """A sweep of two colour classifiers, of two exits and one, over an image folder of their classes."""
    save_colours(tmp_path / "paints", PAINTS, count=EACH, size_px=37)
    one_exit = colour_classifier(PAINTS, name="glance", glances=1)
    offer(monkeypatch, colour_classifier(PAINTS), one_exit)
    return Sweep(
        ("colours", "glance"), corruptions=("shot_noise", "contrast"), severities=(2, 4), batch_size=4,
        seed=1, data=f"imagefolder:{tmp_path / 'paints'}", device="cpu",
    )  # fmt: skip


@pytest.fixture
def painted(paints: Sweep, tmp_path: Path) -> Path:
    """That sweep, run from its beginning to its end."""
    sweep_corruptions(paints, tmp_path / "painted", command="test")
    return tmp_path / "painted"


@pytest.fixture
def judged(painted: Path, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many batches each model is shown from here on."""
    whole, seen = evaluate.judge_clean, Counter[str]()

    def counts(classifier: Any, batch: Any, **options: Any) -> Any:
        seen[classifier.name] += 1
        return whole(classifier, batch, **options)

    monkeypatch.setattr(evaluate, "judge_clean", counts)
    return seen


def test_a_picture_is_made_once_for_all_models(
    paints: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Counter[tuple[str, int]]()

    def counts(images: Tensor, name: str, severity: int, **options: Any) -> Tensor:
        made[name, severity] += len(images)
        return corrupt(images, name, severity, **options)

    monkeypatch.setattr(runner, "corrupt", counts)
    sweep_corruptions(paints, tmp_path / "run")
    assert made == {(name, s): EACH * len(PAINTS) for name in paints.corruptions for s in (2, 4)}


def test_a_finished_sweep_does_nothing_again(
    paints: Sweep, painted: Path, judged: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "corrupt", lambda *_, **__: pytest.fail("nothing was missing"))
    before = (painted / "results.csv").read_bytes()
    results = sweep_corruptions(paints, painted, command="test")
    assert not judged
    assert (painted / "results.csv").read_bytes() == before
    assert len(results) == 5 * (2 + 1)


def test_only_a_missing_cell_is_done_again(
    paints: Sweep, painted: Path, judged: Counter[str], tmp_path: Path
) -> None:
    torn = Path(shutil.copytree(painted, tmp_path / "torn"))
    frame = corrupted(read_results(torn))
    key = frame[(frame["model"] == "glance") & (frame["corruption"] == "contrast")]["cell"].iloc[0]
    (torn / "cells" / f"{key}.json").unlink()
    (torn / "outcomes" / f"{key}.csv.gz").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in (torn / "cells").iterdir()}
    sweep_corruptions(paints, torn, command="test")
    assert judged == {"glance": 3}
    after = {path.name: path.stat().st_mtime_ns for path in (torn / "cells").iterdir()}
    assert after.keys() - before.keys() == {f"{key}.json"}
    assert before.items() <= after.items()
    same_run(painted, torn)


@pytest.mark.parametrize("calls", [0, 1, 8, PAINT_BATCHES // 2, PAINT_BATCHES - 1])
def test_an_interrupted_sweep_goes_on_to_the_same_rows(
    paints: Sweep, painted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    whole, left = evaluate.judge_clean, [calls]

    def stops(*arguments: Any, **options: Any) -> Any:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return whole(*arguments, **options)

    monkeypatch.setattr(evaluate, "judge_clean", stops)
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        sweep_corruptions(paints, out, command="test")
    assert not (out / "results.csv").exists()
    left[0] = PAINT_BATCHES - calls  # batches that were done are not shown again
    sweep_corruptions(paints, out, command="test")
    assert left[0] == 0
    same_run(painted, out)
    assert not list((out / "parts").iterdir())


def test_a_crash_is_a_hole_for_both_models_and_the_rest_goes_on(
    paints: Sweep,
    painted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def crashes(images: Tensor, name: str, severity: int, **options: Any) -> Tensor:
        if name == "contrast":
            raise RuntimeError("out of paint\nand more")
        return corrupt(images, name, severity, **options)

    monkeypatch.setattr(runner, "corrupt", crashes)
    out = tmp_path / "run"
    results = sweep_corruptions(paints, out, command="test")
    hole = results[results["status"] == "failed"]
    assert sorted(hole[["model", "corruption", "severity"]].itertuples(index=False, name=None)) == [
        (model, "contrast", severity) for model in ("colours", "glance") for severity in (2, 4)
    ]
    for column in ("accuracy", "correct", "total", "ci_low", "ci_high"):
        assert hole[column].isna().all()
    assert set(hole["error"]) == {"RuntimeError: out of paint"}
    assert "out of paint" in capfd.readouterr().err
    on_file = timeless(out)
    assert on_file["status"].tolist() == results["status"].tolist()
    whole = timeless(painted)
    survived, expected = on_file[on_file["status"] == "ok"], whole[whole["corruption"] != "contrast"]
    pd.testing.assert_frame_equal(
        survived.reset_index(drop=True), expected.reset_index(drop=True), check_dtype=False
    )
    # The next run fills the hole.
    monkeypatch.setattr(runner, "corrupt", corrupt)
    assert (sweep_corruptions(paints, out, command="test")["status"] == "ok").all()
    same_run(painted, out)


def test_outcomes_do_not_depend_on_a_crash_that_was_made_good(
    paints: Sweep, painted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, doomed = evaluate.judge_clean, [True]

    def crashes_once(*arguments: Any, **options: Any) -> Any:
        if doomed:
            doomed.clear()
            raise RuntimeError("out of memory")
        return whole(*arguments, **options)

    monkeypatch.setattr(evaluate, "judge_clean", crashes_once)
    assert "failed" in set(sweep_corruptions(paints, tmp_path / "mended", command="test")["status"])
    assert set(sweep_corruptions(paints, tmp_path / "mended", command="test")["status"]) == {"ok"}
    same_run(painted, tmp_path / "mended")


@pytest.mark.parametrize("store", ["exact", "jpeg85"])
@pytest.mark.parametrize("preset, constants", [(None, 32), (32, 32), (224, 224)])
def test_preset_and_store_reach_the_images_and_the_rows(
    paints: Sweep, tmp_path: Path, store: str, preset: int | None, constants: int
) -> None:
    asked = replace(paints, models=("colours",), severities=(4,), preset=preset, store=store)
    frame = corrupted(sweep_corruptions(asked, tmp_path / "run"))
    assert set(frame["preset"]) == {constants}
    assert set(frame["store"]) == {store}
    data = load_data(str(asked.data), size_px=32)
    for name, key in frame[["corruption", "cell"]].drop_duplicates().itertuples(index=False):
        shown = pictures(data, replace(asked, preset=constants), name, 4)
        distance = (shown.float() - torch.from_numpy(np.array(data.images)).float()).flatten(1).abs().amax(1)
        found = Store(tmp_path / "run").outcomes(key)
        assert (found["linf"] * 255).tolist() == pytest.approx(distance.repeat(2).tolist())


def test_another_seed_store_or_preset_is_another_cell(paints: Sweep, tmp_path: Path) -> None:
    paints = replace(paints, models=("colours",), severities=(4,))
    changes: list[dict[str, Any]] = [
        {},
        {"seed": 2},
        {"store": "jpeg85"},
        {"preset": 64},
        {"severities": (5,)},
    ]
    keys = [
        set(corrupted(sweep_corruptions(replace(paints, **change), tmp_path / "run"))["cell"])
        for change in changes
    ]
    assert len(set.union(*keys)) == sum(map(len, keys)) == 2 * len(changes)
    # All of them share the clean cell, and results.csv holds them all; each run returns its own rows.
    frame = read_results(tmp_path / "run")
    assert frame["cell"].nunique() == 2 * len(changes) + 1
    assert len(sweep_corruptions(paints, tmp_path / "run")) == 2 * (2 + 1)


def test_other_frost_textures_are_another_cell(paints: Sweep, tmp_path: Path) -> None:
    from PIL import Image

    from robustglimpse.corruptions.weather import FROST_FILES

    distances = []
    for name, level in (("black", 0), ("white", 255)):
        folder = tmp_path / name
        folder.mkdir()
        for file in FROST_FILES:
            Image.new("RGB", (400, 400), (level,) * 3).save(folder / file)
        asked = replace(paints, corruptions=("frost",), frost_dir=folder)
        frame = corrupted(sweep_corruptions(asked, tmp_path / "run"))
        assert all(texture.startswith("dir:") for texture in frame["texture"])
        distances.append(Store(tmp_path / "run").outcomes(frame["cell"].iloc[0])["linf"].tolist())
    assert distances[0] != distances[1]


# What is refused


@pytest.mark.parametrize(
    "change, message",
    [
        ({"corruptions": ("fog", "gausian_noise")}, "did you mean 'gaussian_noise'?"),
        ({"severities": (3, 6)}, "severity must be 1, 2, 3, 4 or 5, got 6"),
        ({"severities": (0,)}, "severity must be 1, 2, 3, 4 or 5, got 0"),
        ({"preset": 100}, "preset must be 32, 64 or 224, got 100"),
        ({"store": "png"}, "store must be exact or jpeg85, got 'png'"),
        ({"batch_size": 0}, "batch size must be at least 1, got 0"),
        ({"limit": 0}, "limit must be at least 1, got 0"),
        ({"device": "warp"}, "device 'warp' cannot be used here"),
        ({"models": ("ffnet-r18", "mgnet-r81")}, "did you mean 'mgnet-r18'?"),
        ({"data": "imagenet-c"}, "imagenet-c needs its files"),
        ({"data": "imagenet-c", "download": True}, "imagenet-c has none"),
        pytest.param(
            {"corruptions": ("frost",), "frost_dir": Path("nowhere")}, "nowhere",
        ),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_cannot_be_asked_is_refused_before_anything_is_written(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    asked = replace(SMALL, **{"corruptions": ("contrast",), "limit": 2, **change})
    assert message in refusal(lambda: sweep_corruptions(asked, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# Paired scores


def outcomes(root: Path, key: str, right: dict[int, list[int]], *, images: str = "same") -> None:
    """Write a cell's outcomes: per exit 1 where an image was right, backwards as no run writes them."""
    rows = [
        {"index": i, "label": 7, "exit": k, "pred": 7 if is_right else 1}
        for k, images in right.items()
        for i, is_right in enumerate(images)
    ]
    for folder in ("outcomes", "cells"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    origin = {"weights_sha256": "w", "data_sha256": "numbered otherwise", "images_sha256": images}
    record = {"schema": 1, "cell": {}, "provenance": origin, "rows": []}
    (root / "cells" / f"{key}.json").write_text(json.dumps(record))
    pd.DataFrame(rows[::-1]).to_csv(root / "outcomes" / f"{key}.csv.gz", index=False)


def cells(
    *rows: tuple[str, str, int, int, str], status: str = "ok", kind: str = "corruption"
) -> pd.DataFrame:
    """Return results of cells: (model, corruption, severity, exit, key)."""
    frame = pd.DataFrame(rows, columns=["model", "corruption", "severity", "exit", "cell"])
    frame = frame.assign(status=status, kind=kind)
    return frame.assign(data_sha256="same", preset=64)


def test_correctness_averages_an_images_severities(tmp_path: Path) -> None:
    outcomes(tmp_path, "a1", {1: [1, 0, 0], 2: [1, 1, 0]})
    outcomes(tmp_path, "a3", {1: [1, 1, 0], 2: [1, 0, 0]})
    outcomes(tmp_path, "b1", {1: [0, 0, 1]})
    outcomes(tmp_path, "b3", {1: [0, 0, 1]})
    outcomes(tmp_path, "s1", {1: [1, 1, 1], 2: [0, 0, 1]})
    results = pd.concat(
        [
            cells(*(("a", "fog", s, k, f"a{s}") for s in (1, 3) for k in (1, 2))),
            cells(("b", "fog", 1, 1, "b1"), ("b", "fog", 3, 1, "b3")),
            cells(("a", "snow", 1, 1, "s1"), ("a", "snow", 1, 2, "s1")),
            cells(("b", "snow", 1, 1, "none")).assign(status="failed"),
            cells(("a", "", 0, 1, "none")).assign(kind="clean"),
        ]
    )
    found = correctness(results, Store(tmp_path))
    assert found.index.names == ["model", "exit", "corruption"]
    expected = {
        ("a", 1, "fog"): [1, 0.5, 0],
        ("a", 2, "fog"): [1, 0.5, 0],
        ("b", 1, "fog"): [0, 0, 1],
        ("a", 1, "snow"): [1, 1, 1],
        ("a", 2, "snow"): [0, 0, 1],
    }
    assert {key: row.tolist() for key, row in found.iterrows()} == expected


def test_cells_of_unlike_images_are_not_paired(tmp_path: Path) -> None:
    outcomes(tmp_path, "a", {1: [1, 0, 0]})
    outcomes(tmp_path, "b", {1: [1, 0]})
    results = cells(("m", "fog", 1, 1, "a"), ("m", "frost", 1, 1, "b"))
    assert len(correctness(results, Store(tmp_path))) == 0
    assert len(correctness(results[:1], Store(tmp_path))) == 1
    assert len(correctness(results[:0], Store(tmp_path))) == 0


def test_models_on_other_images_of_one_name_are_not_paired(tmp_path: Path) -> None:
    outcomes(tmp_path, "a", {1: [1, 0, 0]})
    outcomes(tmp_path, "b", {1: [1, 0, 0]}, images="others")
    outcomes(tmp_path, "c", {1: [0, 0, 1]})
    apart = cells(("m", "fog", 1, 1, "a"), ("n", "fog", 1, 1, "b"))
    assert len(correctness(apart, Store(tmp_path))) == 0
    together = cells(("m", "fog", 1, 1, "a"), ("n", "fog", 1, 1, "c"))
    assert len(correctness(together, Store(tmp_path))) == 2


def test_models_of_different_data_are_not_paired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed, folder in enumerate(("one", "two")):
        save_colours(tmp_path / folder, PAINTS, seed=seed)
    models = [
        colour_classifier(PAINTS, name=f, dataset=f"imagefolder:{tmp_path / f}") for f in ("one", "two")
    ]
    offer(monkeypatch, *models)
    asked = Sweep(("one", "two"), corruptions=("contrast",), severities=(3,))
    frame = sweep_corruptions(asked, tmp_path / "run")
    assert set(frame["dataset"]) == {"imagefolder:one", "imagefolder:two"}
    assert len(correctness(frame, Store(tmp_path / "run"))) == 0


def test_a_classifier_itself_is_judged_on_a_set_that_is_saved_corrupted(tmp_path: Path) -> None:
    save_colours(tmp_path / "set/fog/3", PAINTS, name="{}.JPEG")
    models = tuple(colour_classifier(PAINTS, name=name) for name in ("one", "two"))
    asked = Sweep(models, corruptions=("fog",), severities=(3,), data="imagenet-c", data_dir=tmp_path / "set")
    frame = sweep_corruptions(asked, tmp_path / "run")
    assert set(frame["model"]) == {"one", "two"}
    assert (frame["status"] == "ok").all()
    with pytest.raises(UserError, match="two models are called 'one'"):
        sweep_corruptions(replace(asked, models=(models[0], models[0])), tmp_path / "run")


def test_correctness_agrees_with_the_table_it_is_for(straight: Path) -> None:
    frame = read_results(straight)
    found = correctness(frame, Store(straight)).mean(axis=1)
    expected = corrupted(frame).groupby(["model", "exit", "corruption"])["accuracy"].mean()
    assert len(found) == 2 * sum(MODELS.values())
    assert found.to_dict() == pytest.approx(expected.to_dict())


# Baselines


def on_imagenet(**other: Any) -> pd.DataFrame:
    """Return results of a model on all of ImageNet-C."""
    rows = [
        {"corruption": name, "severity": s, "model": "m", "exit": 1, "accuracy": 0.5}
        for name, row in CORRUPTIONS.items()
        for s in SEVERITIES
        if not row.extra
    ]
    defaults = {
        "dataset": "imagenet-c",
        "classes": 1000,
        "size_px": 224,
        "status": "ok",
        "kind": "corruption",
    }
    return pd.DataFrame(rows).assign(**{**defaults, **other})


def test_alexnet_fits_imagenet_alone(straight: Path) -> None:
    fitting = on_imagenet()
    assert misfit(alexnet(), fitting) == ""
    for change in ({"dataset": "imagefolder:val"}, {"classes": 100}, {"size_px": 64}):
        assert "1000-class ImageNet-C at 224 px" in misfit(alexnet(), on_imagenet(**change))
    assert "not of glimpse-digits" in misfit(alexnet(), read_results(straight))
    assert "not (1, 2, 3, 4)" in misfit(alexnet(), fitting[fitting["severity"] < 5])
    assert read_baseline("alexnet") == alexnet()
    assert read_baseline(None) is None


def test_extras_need_no_baseline() -> None:
    extra = on_imagenet().query("corruption == 'fog'").assign(corruption="spatter")
    assert misfit(alexnet(), pd.concat([on_imagenet(), extra])) == ""


def test_a_models_results_are_a_baseline(straight: Path, tmp_path: Path) -> None:
    whole = read_results(straight)
    for path in (straight, straight / "results.csv"):
        message = refusal(lambda path=path: read_baseline(str(path)))  # type: ignore[misc]
        assert "one model, got ffnet-r18, mgnet-r18" in message
        assert str(path) in message
    single = whole[whole["model"] == "mgnet-r18"]
    single.to_csv(tmp_path / "results.csv", index=False)
    baseline = read_baseline(str(tmp_path))
    assert baseline is not None
    last = single[single["exit"] == 3]
    assert (baseline.name, baseline.severities) == ("mgnet-r18", CHOSEN)
    assert baseline.clean_error == pytest.approx(1 - last[last["kind"] == "clean"]["accuracy"].iloc[0])
    for name in NAMES:
        accuracy = last[last["corruption"] == name]["accuracy"]
        assert len(accuracy) == 2
        assert baseline.errors[name] == pytest.approx(1 - accuracy.mean())
    assert set(baseline.errors) == set(NAMES)
    assert misfit(baseline, whole) == ""
    assert "mgnet-r18 has the severities (2, 5), not (2,)" in misfit(baseline, whole[whole["severity"] != 5])
    other = whole.assign(corruption=whole["corruption"].replace("frost", "fog"))
    assert "lacks fog" in misfit(baseline, other)


def test_a_baseline_with_a_hole_does_not_fit() -> None:
    from robustglimpse.report.table2 import baseline_from

    rows = on_imagenet().query("corruption in ('fog', 'snow')")
    broken = rows.copy()
    broken.loc[(rows["corruption"] == "fog") & (rows["severity"] == 5), "status"] = "failed"
    assert "fog" in misfit(baseline_from(broken, where="here"), rows)


def test_a_baseline_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.csv"):
        assert f"{path}" in refusal(lambda path=path: read_baseline(str(path)))  # type: ignore[misc]
    empty = pd.DataFrame(columns=list(RESULT_COLUMNS))
    empty.to_csv(tmp_path / "results.csv", index=False)
    assert "got none" in refusal(lambda: read_baseline(str(tmp_path)))


# The sheet


@pytest.mark.parametrize("index", [0, 5])
def test_a_sheet_shows_what_a_sweep_shows(images: Dataset, index: int) -> None:
    shown, clean = sheet(replace(SMALL, models=()), index)
    assert np.array_equal(clean, images.images[index].transpose(1, 2, 0))
    assert list(shown) == [("gaussian_noise", 2), ("gaussian_noise", 5), ("frost", 2), ("frost", 5)]
    for (name, severity), picture in shown.items():
        expected = pictures(images, SMALL, name, severity)[index].permute(1, 2, 0)
        assert np.array_equal(picture, expected.numpy())


def test_a_sheet_shows_the_fifteen_unless_told_otherwise() -> None:
    asked = Sweep((), severities=(1,))
    assert [name for name, _ in sheet(asked, 0)[0]] == [n for n, row in CORRUPTIONS.items() if not row.extra]
    assert [name for name, _ in sheet(replace(asked, extras=True), 0)[0]] == list(CORRUPTIONS)


def test_a_sheet_of_no_image_is_refused(paints: Sweep) -> None:
    asked = replace(paints, models=(), corruptions=("contrast",), size_px=32)
    assert len(sheet(asked, 8)[0]) == 2
    assert "images 0 to 8, not 9" in refusal(lambda: sheet(asked, 9))
    refusal(lambda: sheet(asked, -1))


def test_a_sheet_of_an_unknown_corruption_is_refused() -> None:
    asked = Sweep((), corruptions=("fog", "frosst"), severities=(1,))
    assert "did you mean 'frost'?" in refusal(lambda: sheet(asked, 0))
