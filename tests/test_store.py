"""Results from disk: any number of runs, right types, older and newer files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from robustglimpse.records import RESULT_COLUMNS, SCHEMA, UserError
from robustglimpse.runner import Bench, bench
from robustglimpse.store import Store, read_results, read_run


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
