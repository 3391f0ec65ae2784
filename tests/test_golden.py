"""The bundled answers: this machine gives them, and a change of levels is told from one of rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from robustglimpse.corruptions import CORRUPTIONS, SEVERITIES
from robustglimpse.golden import GOLDEN, make_golden, verify_corruptions
from robustglimpse.records import UserError


def altered(path: Path, *changes: tuple[str, int, int]) -> Path:
    """Write the bundled answers with (name, by how many levels, of how many values) changed."""
    with np.load(GOLDEN) as stored:
        arrays = {name: stored[name].copy() for name in stored.files}
    for name, by, count in changes:
        values = arrays[name].reshape(-1)[:count]
        values[:] = np.where(values < 128, values + by, values - by)
    np.savez(path, **arrays)
    return path


def test_the_bundled_answers_cover_every_cell_at_two_sizes() -> None:
    with np.load(GOLDEN) as stored:
        assert set(stored.files) == {
            f"{size}/{name}/{severity}"
            for size in (32, 64)
            for name in CORRUPTIONS
            for severity in SEVERITIES
        }
        assert all(stored[name].dtype == np.uint8 for name in stored.files)


def test_this_machine_gives_the_bundled_answers() -> None:
    checks = list(verify_corruptions())
    assert [check.corruption for check in checks] == list(CORRUPTIONS)
    assert [check for check in checks if not check.is_equal] == []


def test_five_levels_of_one_corruption_are_seen(tmp_path: Path) -> None:
    path = altered(tmp_path / "a.npz", ("64/fog/3", 5, 10**9))
    checks = {check.corruption: check for check in verify_corruptions(path)}
    assert [name for name, check in checks.items() if not check.is_equal] == ["fog"]
    assert checks["fog"].worst_levels == 5
    assert checks["fog"].worst_share == 1


def test_answers_that_lack_a_corruption_are_refused_and_made(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with np.load(GOLDEN) as stored:
        np.savez(path, **{name: stored[name] for name in stored.files if "/fog/" not in name})
    with pytest.raises(UserError, match=r"got none of fog; .*make_golden\(\) adds them"):
        list(verify_corruptions(path))
    before = altered(tmp_path / "b.npz", ("64/snow/2", 9, 1), ("64/fog/3", 9, 1))
    with np.load(before) as stored:
        np.savez(path, **{name: stored[name] for name in stored.files if name != "32/fog/1"})
    make_golden(path)
    assert [check.corruption for check in verify_corruptions(path) if not check.is_equal] == ["snow", "fog"]
    make_golden(path, anew=("snow",))
    assert [check.corruption for check in verify_corruptions(path) if not check.is_equal] == ["fog"]


def test_rounding_is_let_through_where_there_is_any(tmp_path: Path) -> None:
    path = altered(
        tmp_path / "a.npz",
        ("32/gaussian_noise/1", 1, 1),  # a value may turn
        ("32/snow/2", 2, 1),  # by one level, not by two
        ("64/motion_blur/5", 1, 10**9),  # not everywhere
        ("64/glass_blur/5", 2, 1),  # blurred twice, this may turn by two
        ("32/brightness/5", 1, 1),  # and this not at all
    )
    differing = [check.corruption for check in verify_corruptions(path) if not check.is_equal]
    assert differing == ["motion_blur", "snow", "brightness"]
