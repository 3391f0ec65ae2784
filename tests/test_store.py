"""Results from disk: any number of runs, right types, older and newer files."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from robustglimpse import evaluate, wrap
from robustglimpse.data import from_tensors
from robustglimpse.files import HOST
from robustglimpse.records import RESULT_COLUMNS, SCHEMA, UserError
from robustglimpse.regress import update
from robustglimpse.report import page
from robustglimpse.report.board import make_board
from robustglimpse.runner import Bench, bench
from robustglimpse.store import (
    Store,
    read_failed,
    read_failures,
    read_outcomes,
    read_results,
    read_run,
)


def write(folder: Path, **columns: object) -> Path:
    """Write a results.csv with one row and return its folder."""
    row: dict[str, object] = dict.fromkeys(RESULT_COLUMNS, "")
    row |= {"schema": SCHEMA, "model": "m", "dataset": "d", "steps": 4, "accuracy": 0.5, "status": "ok"}
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame([{**row, **columns}]).to_csv(folder / "results.csv", index=False)
    return folder


def test_runs_are_read_by_file_folder_and_glob_alike(tmp_path: Path) -> None:
    a, b = write(tmp_path / "runs" / "a"), write(tmp_path / "runs" / "b", model="n")
    frame = read_results(a, b / "results.csv")
    assert frame["run"].tolist() == [str(a), str(b)]
    assert frame["model"].tolist() == ["m", "n"]
    pd.testing.assert_frame_equal(frame, read_results(tmp_path / "runs" / "*"))
    pd.testing.assert_frame_equal(frame, read_results(str(tmp_path / "runs" / "*" / "results.csv")))


def test_a_glob_passes_over_folders_without_results(tmp_path: Path) -> None:
    write(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    assert len(read_results(tmp_path / "*")) == 1


def test_columns_have_their_types(tmp_path: Path) -> None:
    frame = read_results(write(tmp_path, eps_text="4/255", error="", gmacs=0.3, severity=2))
    assert frame.columns.tolist() == ["run", *RESULT_COLUMNS]
    row = frame.iloc[0]
    assert (row["steps"], row["severity"], row["eps_text"], row["error"]) == (4, 2, "4/255", "")
    assert frame["steps"].dtype == "Int64"
    assert frame["accuracy"].dtype == np.float64
    assert frame["correct"].isna().all(), "a whole number that is not there is no number"


def test_a_file_of_before_a_column_came_is_read(tmp_path: Path) -> None:
    file = write(tmp_path) / "results.csv"
    pd.read_csv(file).drop(columns=["cell", "preset"]).to_csv(file, index=False)
    frame = read_results(file)
    assert frame["cell"].tolist() == [""]
    assert frame["preset"].isna().all()


def test_a_newer_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"newer version .* pip install --upgrade"):
        read_results(write(tmp_path, schema=SCHEMA + 1))


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "schema\nfour\n"])
def test_what_is_no_results_file_is_refused_in_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text(content)
    with pytest.raises(UserError, match=r"not a results\.csv") as error:
        read_results(tmp_path)
    assert "\n" not in str(error.value)


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "a")
    for missing in (tmp_path / "none", tmp_path / "none*"):
        with pytest.raises(UserError, match="no such results"):
            read_results(tmp_path / "a", missing)


def broken(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("content", [b"{half", b"{}", b"[]"])
def test_a_cell_that_is_none_is_one_line(tmp_path: Path, content: bytes) -> None:
    asked = Bench(("ffnet-r18",), attacks=("fgsm",), limit=2, device="cpu")
    bench(asked, tmp_path)
    path = broken(next(iter(sorted((tmp_path / "cells").glob("*.json")))), content)
    for read in (lambda: bench(asked, tmp_path), lambda: read_run(tmp_path)):
        with pytest.raises(UserError, match=f"{path.name}: not .*delete it and run the same command again"):
            read()
    path.unlink()
    assert (bench(asked, tmp_path)["status"] == "ok").all()


def test_outcomes_that_are_gone_or_broken_are_made_again(tmp_path: Path) -> None:
    asked = Bench(("ffnet-r18",), attacks=("fgsm",), limit=2, device="cpu")
    results = bench(asked, tmp_path)
    files = sorted((tmp_path / "outcomes").glob("*.csv.gz"))
    whole = files[0].read_bytes()
    files[0].unlink()
    pd.testing.assert_frame_equal(
        bench(asked, tmp_path).drop(columns="seconds"), results.drop(columns="seconds")
    )
    assert files[0].read_bytes() == whole
    broken(files[0], whole[:-20])
    key = files[0].name.removesuffix(".csv.gz")
    for read in (Store(tmp_path).outcomes, read_run(tmp_path).outcomes):
        with pytest.raises(
            UserError, match=r"not a table of outcomes .*; delete it and run the same command again"
        ):
            read(key)


def test_a_results_csv_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text("mine\n")
    with pytest.raises(UserError, match=r"holds a results.csv that no run here wrote; choose another --out"):
        Store(tmp_path)
    assert (tmp_path / "results.csv").read_text() == "mine\n"


# A crash stays a hole until it is made good


def crash(*_: object, **__: object) -> None:
    raise RuntimeError("out of memory")


def small(name: str = "net") -> Bench:
    """Ask for a small network of that name on four images of noise."""
    torch.manual_seed(0)
    model = wrap(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), name=name, size_px=8)
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8), np.uint8)
    return Bench(
        (model,), data=from_tensors(images, [0, 1, 2, 0], name="noise"), attacks=("fgsm",), device="cpu"
    )


SMALL = small()


@pytest.fixture
def crashed(tmp_path: Path) -> Path:
    """A run whose attack went well and then crashed, when the same cell had to be run again."""
    bench(SMALL, tmp_path)
    attacked = next(path for path in (tmp_path / "cells").iterdir() if '"fgsm' in path.read_text())
    (tmp_path / "outcomes" / f"{attacked.stem}.csv.gz").write_bytes(b"")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "attack", crash)
        results = bench(SMALL, tmp_path)
    assert results["status"].tolist() == ["ok", "failed"]
    assert attacked.is_file(), "the record of before is still there"
    return tmp_path


def holes(frame: pd.DataFrame) -> list[str]:
    """Return the errors of the crashed rows, which have no number."""
    failed = frame[frame["status"] == "failed"]
    assert failed["accuracy"].isna().all() and failed["correct"].isna().all()
    assert (frame["status"] == "ok").sum() == len(frame) - len(failed)
    return [str(error) for error in failed["error"]]


def test_another_command_into_the_same_folder_keeps_a_hole(crashed: Path) -> None:
    results = bench(replace(SMALL, attacks=("pgd",), steps=(1,)), crashed)
    assert (results["status"] == "ok").all(), "these were asked for"
    for frame in (read_results(crashed), read_run(crashed).results, Store(crashed).results()):
        assert holes(frame) == ["RuntimeError: out of memory"]
        attacks = frame.loc[frame["status"] == "ok", "attack"]
        assert "fgsm" not in set(attacks), "what a crash left of before is no number"


def test_a_hole_is_told_where_results_csv_is_older_or_gone(crashed: Path) -> None:
    file = crashed / "results.csv"
    key = next(path.stem for path in (crashed / "failures").iterdir())
    for content in (None, file.read_text().replace(",failed,", ",ok,")):
        file.unlink()
        if content is not None:  # as before the crash: the cell's row has its number
            row = read_run(crashed).results
            row = row.assign(status="ok", accuracy=0.5, correct=1, total=2)
            row.to_csv(file, index=False)
        assert holes(read_run(crashed).results) == ["RuntimeError: out of memory"]
        assert [row["error"] for row in read_failures(crashed)] == ["RuntimeError: out of memory"]
        assert key not in {json.dumps(one.cell) for one in read_outcomes(crashed)}
        assert len(read_outcomes(crashed)) == 1
        Store(crashed).write_results()


def test_the_gate_does_not_accept_a_hole(crashed: Path, tmp_path: Path) -> None:
    for another in (False, True):
        if another:
            bench(replace(SMALL, attacks=("pgd",), steps=(1,)), crashed)
        with pytest.raises(UserError, match=r"1 of its cells crashed \(RuntimeError: out of memory\)"):
            update(tmp_path / "base", crashed, reason="x")
    assert not (tmp_path / "base").exists()


def test_a_hole_goes_when_the_cell_is_made_good(crashed: Path) -> None:
    assert (bench(SMALL, crashed)["status"] == "ok").all()
    assert holes(read_results(crashed)) == holes(read_run(crashed).results) == []
    assert read_failures(crashed) == []
    assert list((crashed / "failures").iterdir()) == []
    assert update(crashed.parent / "base", crashed, reason="x")


def test_a_crash_of_an_older_version_that_results_csv_alone_tells_of_stays_a_hole(crashed: Path) -> None:
    shutil.rmtree(crashed / "failures")
    for path in (crashed / "cells").iterdir():
        if '"fgsm' in path.read_text():
            path.unlink()
    bench(replace(SMALL, attacks=("pgd",), steps=(1,)), crashed)
    assert holes(read_results(crashed)) == ["RuntimeError: out of memory"]
    assert [row["error"] for row in read_failures(crashed)] == ["RuntimeError: out of memory"]
    bench(SMALL, crashed)
    assert holes(read_results(crashed)) == []


def test_a_record_of_a_crash_holds_its_traceback(crashed: Path) -> None:
    (record,) = read_failed(crashed).values()
    assert "in crash" in record["traceback"] and "RuntimeError: out of memory" in record["traceback"]
    assert "accuracy" not in record["row"]


def test_a_half_written_file_of_a_dead_process_is_swept(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], check=True, capture_output=True
    )
    (tmp_path / "cells").mkdir()
    for folder in (tmp_path, tmp_path / "cells"):
        (folder / f".robustglimpse-{HOST}-{int(done.stdout)}-1-{'0' * 16}.part").write_text("half")
    (tmp_path / ".mine.part").write_text("kept")
    Store(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".mine.part", "cells"]


# Numbers and texts


def test_names_that_spell_nothing_stay_names(tmp_path: Path) -> None:
    frame = read_results(write(tmp_path, model="NA", split="null", dataset="nan", severity=""))
    assert frame[["model", "split", "dataset"]].iloc[0].tolist() == ["NA", "null", "nan"]
    assert frame["severity"].isna().all()


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"accuracy": "abc"}, "not a results.csv"),
        ({"accuracy": ""}, "no accuracy between 0 and 1"),
        ({"accuracy": 1.5}, "no accuracy between 0 and 1"),
        ({"accuracy": "nan"}, "no accuracy between 0 and 1"),
        ({"correct": 1, "total": 4, "accuracy": 0.5}, "not that of its correct and total"),
        ({"correct": 1.5}, "not a results.csv"),
        ({"gmacs": "inf"}, "a number is infinite"),
        ({"status": "fine"}, "neither ok nor failed"),
        ({"steps": "9" * 400}, "not a results.csv"),
        ({"corruption": "fgo"}, "no corruption 'fgo'"),
    ],
)
def test_a_row_that_cannot_be_is_refused(tmp_path: Path, columns: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)) as error:
        read_results(write(tmp_path, **columns))
    assert str(tmp_path / "results.csv") in str(error.value) and "\n" not in str(error.value)


# What contradicts itself is refused or marked


@pytest.fixture(scope="module")
def curve(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep over eps beside curves over steps under two verdicts, as a run leaves them."""
    root = tmp_path_factory.mktemp("curve")
    both = replace(SMALL, attacks=("pgd",), steps=(1, 2), protocols=("paper", "adaptive"))
    bench(both, root)
    bench(replace(both, curve="eps", eps="1/255,2/255,8/255", steps=(2,), protocols=("standard",)), root)
    return root


def test_an_untouched_folder_is_not_accused(curve: Path) -> None:
    board = make_board([read_run(curve)])
    assert list(board.notes) == []
    assert set(board.rows["flags"]) == {""}
    assert len(board.rows[board.rows["eps"] == 2 / 255]) == 1


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("accuracy", 0.125),
        ("correct", 77),
        ("ci_low", 0.0625),
        ("seconds", 1e6),
        ("n", 77),
        ("model", "other"),
    ],
)
def test_a_results_csv_that_tells_something_else_than_the_records_is_marked(
    curve: Path, tmp_path: Path, column: str, value: object
) -> None:
    here = Path(shutil.copytree(curve, tmp_path / "here"))
    frame = pd.read_csv(here / "results.csv", keep_default_na=False, dtype=str)
    frame.loc[2, column] = str(value)
    frame.to_csv(here / "results.csv", index=False)
    (note,) = make_board([read_run(here)]).notes
    assert "1 rows of results.csv differ from the cells' records, which are shown" in note


@pytest.mark.parametrize("change", ["twice", "gone", "at another eps"])
def test_a_row_of_a_sweep_that_is_not_as_the_record_has_it_is_marked(
    curve: Path, tmp_path: Path, change: str
) -> None:
    here = Path(shutil.copytree(curve, tmp_path / "here"))
    frame = pd.read_csv(here / "results.csv", keep_default_na=False, dtype=str)
    row = frame.index[frame["eps_text"] == "2/255"][0]
    if change == "twice":
        frame = pd.concat([frame, frame.loc[[row]]])
    elif change == "gone":
        frame = frame.drop(index=row)
    else:
        frame.loc[row, "eps"] = "0.5"
    frame.to_csv(here / "results.csv", index=False)
    (note,) = make_board([read_run(here)]).notes
    assert "1 rows of results.csv differ from the cells' records, which are shown" in note


def test_numbers_that_are_not_those_of_the_outcomes_are_refused(curve: Path, tmp_path: Path) -> None:
    here = Path(shutil.copytree(curve, tmp_path / "here"))
    for path in sorted((here / "cells").iterdir()):
        whole = path.read_text()
        record = json.loads(whole)
        row = record["rows"][0]
        row["correct"] = (row["correct"] + 1) % 5
        row["accuracy"] = row["correct"] / 4
        path.write_text(json.dumps(record))
        with pytest.raises(UserError, match="one of them was changed"):
            make_board([read_run(here)])
        path.write_text(whole)
    make_board([read_run(here)])


def test_a_model_that_is_called_as_a_bundled_one_and_has_other_weights_is_marked(tmp_path: Path) -> None:
    own = bench(small("ffnet-r18"), tmp_path)["weights_sha256"].iloc[0]
    board = make_board([read_run(tmp_path)])
    assert any(f"ffnet-r18: its weights {own[:8]} are not those of the bundled" in n for n in board.notes)
    assert set(board.rows["flags"]) == {"not the bundled weights of that name"}
    text = page.to_markdown(board)
    assert "not those of the bundled model of that name" in text


def test_weights_of_which_run_json_does_not_tell_are_marked(curve: Path, tmp_path: Path) -> None:
    here = Path(shutil.copytree(curve, tmp_path / "here"))
    own = next(iter(read_run(curve).results["weights_sha256"]))
    (here / "run.json").write_text((here / "run.json").read_text().replace(own, "0" * 64))
    assert any("of which run.json does not tell" in note for note in read_run(here).notes)


@pytest.mark.parametrize(
    "entry",
    [{}, {"command": "x"}, {"cells": [], "weights": {}}],
)
def test_a_command_that_tells_little_is_shown(curve: Path, tmp_path: Path, entry: dict[str, object]) -> None:
    here = Path(shutil.copytree(curve, tmp_path / "here"))
    (here / "run.json").write_text(json.dumps([entry]))
    board = make_board([read_run(here)])
    for make in page.FORMATS.values():
        make(board)
