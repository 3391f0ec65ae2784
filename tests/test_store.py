"""Results from disk: any number of runs, right types, older and newer files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from robustglimpse.records import RESULT_COLUMNS, SCHEMA, UserError
from robustglimpse.store import read_results


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
