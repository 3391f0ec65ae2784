"""Files: whole or not at all, nobody's link followed, what dead processes left swept, no pipe waited for."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from robustglimpse import files
from robustglimpse.files import PARTIAL, append_text, check_writable, read_file, sweep, write_file
from robustglimpse.records import UserError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_with_its_folders_and_leaves_nothing_beside(tmp_path: Path) -> None:
    for lasting in (False, True):
        write_file(tmp_path / "a" / "b.txt", b"one", lasting=lasting)
        assert (tmp_path / "a" / "b.txt").read_bytes() == b"one"
        assert names(tmp_path / "a") == ["b.txt"]


def test_a_link_in_its_place_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    write_file(tmp_path / "link", b"new")
    assert (tmp_path / "mine").read_text() == "kept"
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "link").read_bytes() == b"new"


def test_a_planted_link_of_the_temporary_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = tmp_path / ".robustglimpse-x.part"
    planted.symlink_to(tmp_path / "victim")
    monkeypatch.setattr(files, "_new_partial", lambda folder: planted)
    with pytest.raises(UserError, match="File exists"):
        write_file(tmp_path / "file", b"x")
    assert not (tmp_path / "victim").exists()


def test_two_threads_that_write_one_file_never_leave_half_of_each(tmp_path: Path) -> None:
    contents = [bytes([k]) * 100_000 for k in (65, 66)]

    def write(content: bytes) -> None:
        for _ in range(20):
            write_file(tmp_path / "file", content)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file").read_bytes() in contents
    assert names(tmp_path) == ["file"]


def test_its_permissions_are_those_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "file", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_a_name_as_long_as_may_be_can_be_written(tmp_path: Path) -> None:
    write_file(tmp_path / ("n" * 255), b"x")
    assert names(tmp_path) == ["n" * 255]


@pytest.mark.parametrize("name", ["n" * 256, "a\0b", "folder"])
def test_what_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        write_file(tmp_path / name, b"x")
    assert names(tmp_path) == ["folder"]


def killed_while_writing(folder: Path) -> str:
    """Kill a process that has begun to write a file; return the name of what it leaves."""
    script = (
        "import os, signal, sys; from pathlib import Path; from robustglimpse import files\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.write_file(Path(sys.argv[1]) / 'file', b'half')\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(folder)], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = names(folder)
    assert PARTIAL.fullmatch(left)
    return left


def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    left = killed_while_writing(tmp_path)
    ours = left.replace(left.split("-")[2], str(os.getpid()))  # of a process that lives
    others = [ours, ".robustglimpse-mine.part", ".file.1234", "results.csv"]
    for name in others:
        (tmp_path / name).write_text("x")
    write_file(tmp_path / "file", b"whole")
    assert names(tmp_path) == sorted([*others, "file"])


def test_a_sweep_does_not_follow_links_or_mind_folders(tmp_path: Path) -> None:
    left = killed_while_writing(tmp_path)
    (tmp_path / left).unlink()
    (tmp_path / "victim").write_text("kept")
    (tmp_path / left).symlink_to(tmp_path / "victim")
    sweep(tmp_path)
    assert names(tmp_path) == ["victim"]
    (tmp_path / left).mkdir()
    sweep(tmp_path)
    sweep(tmp_path / "nowhere")
    assert names(tmp_path) == sorted([left, "victim"])


def test_a_place_is_tried_without_a_trace(tmp_path: Path) -> None:
    check_writable(tmp_path / "new")
    assert names(tmp_path / "new") == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="file"):
        check_writable(tmp_path / "file")


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "endless").symlink_to("/dev/zero")
    for path in (tmp_path, *(tmp_path / name for name in ("pipe", "loop", "endless", "nowhere", "a\0b"))):
        with pytest.raises(UserError, match=r"expected a file|cannot be read") as error:
            read_file(path)
        assert "\n" not in str(error.value)


def test_a_file_that_is_larger_than_it_may_be_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="expected at most"):
        read_file(tmp_path / "sparse")
    (tmp_path / "five").write_bytes(b"12345")
    assert read_file(tmp_path / "five", most=5) == b"12345"
    with pytest.raises(UserError, match="at most 4 bytes, got 5"):
        read_file(tmp_path / "five", most=4)


def test_text_is_added_to_a_file(tmp_path: Path) -> None:
    for text in ("a\n", "b\n"):
        append_text(tmp_path / "summary", text)
    assert (tmp_path / "summary").read_text() == "a\nb\n"
    with pytest.raises(UserError, match="cannot be written"):
        append_text(tmp_path, "x")
