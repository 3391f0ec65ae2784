"""The cache of decoded images: a file is whole and believed, or made again with a line."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from photos import load, refusal, save_image, two_classes

from robustglimpse import files
from robustglimpse.data import decode
from robustglimpse.data.decode import END, Sample, listing_of


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of decoded images, in a cache that no other test sees."""
    monkeypatch.setenv("ROBUSTGLIMPSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "decoded"


def only_file(kept: Path) -> Path:
    (path,) = kept.iterdir()
    return path


def told(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


def own_checksums(content: bytes, **changes: object) -> bytes:
    """Return a cached file whose description is changed and summed anew, as by a writer with a fault."""
    length, _ = END.unpack(content[-END.size :])
    described = json.loads(content[-END.size - length : -END.size])
    text = json.dumps(described | changes).encode()
    return content[: -END.size - length] + text + END.pack(len(text), zlib.crc32(text))


DAMAGES = {
    "empty": lambda c: b"",
    "a byte": lambda c: b"\x93",
    "half": lambda c: c[: len(c) // 2],
    "without its end": lambda c: c[: -END.size],
    "longer": lambda c: c + b"\0",
    "zeros": lambda c: bytes(len(c)),
    "another type": lambda c: c.replace(b"|u1", b"|i1", 1),
    "another shape": lambda c: c.replace(b"(4, 3, 32, 32)", b"(4, 3, 16, 64)", 1),
    "a pixel": lambda c: c[:500] + bytes([c[500] ^ 1]) + c[501:],
    "a numpy file": lambda c: c[:128] + bytes(4 * 3 * 32 * 32),
    "fewer said": lambda c: own_checksums(c, shape=[3, 3, 32, 32]),
    "a shape of terabytes": lambda c: own_checksums(c, shape=[1 << 40, 3, 32, 32]),
    "a shape of text": lambda c: own_checksums(c, shape="abc"),
    "no shape": lambda c: own_checksums(c, shape=None),
    "counts of text": lambda c: own_checksums(c, counts=7),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("held_bytes", [1 << 26, 0], ids=["read", "mapped"])
def test_a_damaged_file_is_made_again_and_told(
    tmp_path: Path,
    kept: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
    held_bytes: int,
) -> None:
    monkeypatch.setattr(decode, "HELD_BYTES", held_bytes)
    root = two_classes(tmp_path / "photos")
    before = load(root)
    assert before.fingerprint  # before its file is changed under it
    assert isinstance(before.images, np.memmap) is not bool(held_bytes)
    content = only_file(kept).read_bytes()
    only_file(kept).write_bytes(DAMAGES[damage](content))
    again = load(root)
    assert (again.fingerprint, again.preparation) == (before.fingerprint, before.preparation)
    assert "these decoded images cannot be used (" in told(capsys)
    assert only_file(kept).read_bytes() == content
    load(root)
    assert not told(capsys)


@pytest.mark.parametrize("what", ["pipe", "folder", "dangling link", "link to a device"])
def test_what_is_no_file_is_not_read(
    tmp_path: Path, kept: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    root = two_classes(tmp_path / "photos")
    before, path = load(root), only_file(kept)
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        (path / "in it").mkdir(parents=True)
    else:
        path.symlink_to("/dev/zero" if "device" in what else tmp_path / "nowhere")
    assert load(root).fingerprint == before.fingerprint
    assert only_file(kept).is_file() is (what != "folder")
    assert not (tmp_path / "nowhere").exists()
    assert ("cannot" in told(capsys)) is (what != "dangling link")


def test_no_bytes_in_the_cache_are_a_traceback_or_another_pixel(tmp_path: Path, kept: Path) -> None:
    root, rng = two_classes(tmp_path / "photos"), np.random.default_rng(0)
    first = load(root)
    whole = np.frombuffer(only_file(kept).read_bytes(), np.uint8)
    for _ in range(60):
        damaged = whole.copy()
        ends = np.r_[0:128, len(whole) - 150 : len(whole)]  # the header, and what stands behind the pixels
        damaged[rng.choice(ends, 2)] = rng.integers(0, 256, 2)
        only_file(kept).write_bytes(damaged[: rng.choice([len(whole), rng.integers(len(whole))])].tobytes())
        assert load(root).fingerprint == first.fingerprint


def test_whatever_decides_the_pixels_is_in_the_key(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = two_classes(tmp_path / "photos")
    load(root)
    for changed in ({"size_px": 16}, {"size_px": 0}, {"limit": 3}):
        before = len(list(kept.iterdir()))
        load(root, **changed)  # type: ignore[arg-type]
        assert len(list(kept.iterdir())) == before + 1
    monkeypatch.setattr("PIL.__version__", "0.1")
    load(root)
    assert len(list(kept.iterdir())) == before + 2


def test_a_split_never_leaves_the_cache(tmp_path: Path, kept: Path) -> None:
    two_classes(tmp_path / "photos" / "sub" / "val")
    load(tmp_path / "photos", split="sub/val")
    assert only_file(kept).name.startswith("imagefolder-sub_val-")


# A cache that cannot be written


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("call", ["mkdir", "fsync"])
def test_a_full_or_read_only_cache_is_told_and_done_without(
    tmp_path: Path,
    kept: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    call: str,
) -> None:
    root = two_classes(tmp_path / "photos", size_px=40)
    right = load(root)

    def full(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    only_file(kept).unlink()
    monkeypatch.setattr(*((Path, "mkdir") if call == "mkdir" else (os, "fsync")), full)
    data = load(root)
    assert (data.fingerprint, data.preparation, data.notes) == (
        right.fingerprint,
        right.preparation,
        right.notes,
    )
    line = told(capsys)
    assert f"{kept}: cannot keep decoded images there ({os.strerror(number)}); they stay in memory" in line
    assert "ROBUSTGLIMPSE_CACHE" in line
    assert not list(kept.iterdir())


def test_a_disk_that_fills_up_on_the_way_leaves_nothing(tmp_path: Path, kept: Path) -> None:
    two_classes(tmp_path / "photos")
    script = (
        "import resource; from robustglimpse.data import load_data\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))\n"  # of 4 x 3072 bytes and a header
        f"print(load_data('imagefolder:{tmp_path / 'photos'}', size_px=32).fingerprint)"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert done.stdout.strip() == load(tmp_path / "photos").fingerprint
    assert "cannot keep decoded images there (File too large)" in done.stderr
    assert [path.suffix for path in kept.iterdir()] == [".npy"]  # ours alone


def test_images_that_fit_nowhere_are_refused(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "_free_memory", lambda: 1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: Full())
    message = refusal(lambda: load(two_classes(tmp_path / "photos")))
    assert "(No space left on device), nor in memory (0.0 GB)" in message
    assert "--limit" in message
    assert not list(kept.iterdir())


class Full:
    """What shutil says of a full disk."""

    free = 0


def test_a_damaged_file_of_a_read_only_cache_is_not_believed(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = two_classes(tmp_path / "photos")
    before = load(root)
    only_file(kept).write_bytes(b"")

    def closed(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", closed)
    assert load(root).fingerprint == before.fingerprint


# Unfinished files


def dead_process() -> int:
    """Return the number of a process that has ended."""
    return int(subprocess.run(["sh", "-c", "echo $$"], check=True, capture_output=True).stdout)


def test_unfinished_files_of_dead_runs_are_removed_and_no_others(tmp_path: Path, kept: Path) -> None:
    kept.mkdir(parents=True)
    dead, alive = dead_process(), os.getpid()
    ours, another = f".robustglimpse-{files.HOST}", ".robustglimpse-0123abcd"
    end = f"1-{'0' * 16}.part"
    gone = [f"a.{dead}.partial", f"{ours}-{dead}-{end}", f"{another}-{alive}-{end}"]
    stay = [f"e.{alive}.partial", f"{ours}-{alive}-{end}", f"{another}-{dead}-{end}", "h.npy", "i.partial"]
    for name in gone + stay:
        (kept / name).touch()
    os.utime(kept / gone[2], (time.time() - 2 * 24 * 3600,) * 2)  # of another machine: a day decides
    load(two_classes(tmp_path / "photos"))
    there = {path.name for path in kept.iterdir()}
    assert there & set(gone + stay) == set(stay)


def test_a_killed_run_leaves_nothing_for_long(tmp_path: Path, kept: Path) -> None:
    root = two_classes(tmp_path / "photos")
    script = (
        "import os, signal; from robustglimpse.data import load_data, images\n"
        "real = images.open_image\n"
        "def stop(content, where):\n"
        "    if 'b/1' in where: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(content, where)\n"
        "images.open_image = stop\n"
        f"load_data('imagefolder:{root}', size_px=32)"
    )
    killed = subprocess.run([sys.executable, "-c", script], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [path.suffix for path in kept.iterdir()] == [".part"]
    load(root)
    assert [path.suffix for path in kept.iterdir()] == [".npy"]


def test_a_link_that_someone_planted_is_not_followed(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.mkdir(parents=True)
    (tmp_path / "mine").write_text("mine")
    (kept / "known.part").symlink_to(tmp_path / "mine")
    monkeypatch.setattr(files, "_new_partial", lambda folder: folder / "known.part")
    assert "File exists" in refusal(lambda: load(two_classes(tmp_path / "photos")))
    assert (tmp_path / "mine").read_text() == "mine"


# Which photographs these are


def test_a_listing_is_of_photographs_by_name_in_any_copy(tmp_path: Path) -> None:
    root = two_classes(tmp_path / "one" / "photos")
    first = load(root)
    for path in root.rglob("*.png"):  # other pixels, as a corruption leaves them
        save_image(tmp_path / "two" / "photos" / path.parent.name / f"{path.stem}.JPEG", 50, 50)
    second = load(tmp_path / "two" / "photos", size_px=24)
    assert (first.name, first.listing) == (second.name, second.listing)
    assert first.identity != second.identity
    assert load(root, limit=2).listing != first.listing


def test_an_identity_is_of_files_and_classes_whatever_the_size(tmp_path: Path, kept: Path) -> None:
    root = two_classes(tmp_path / "one" / "photos")
    first = load(root)
    assert load(root, size_px=20).identity == load(root, size_px=0).identity == first.identity
    assert load(root).identity == first.identity  # from the cache as well
    shutil.copytree(root, tmp_path / "two" / "copied")
    (tmp_path / "two" / "copied" / "a" / "0.png").rename(tmp_path / "two" / "copied" / "a" / "00.png")
    assert load(tmp_path / "two" / "copied").identity == first.identity
    (tmp_path / "two" / "copied" / "b").rename(tmp_path / "two" / "copied" / "c")
    assert load(tmp_path / "two" / "copied").identity != first.identity
    assert load(root, limit=2).identity != first.identity


def test_disjoint_folders_of_one_name_are_not_the_same(tmp_path: Path) -> None:
    for i, part in enumerate(("one", "two")):
        save_image(tmp_path / part / "photos" / "a" / "0.png", 32, 32, seed=i)
    one, two = (load(tmp_path / part / "photos") for part in ("one", "two"))
    assert (one.name, one.listing) == (two.name, two.listing)
    assert one.identity != two.identity


@pytest.mark.parametrize(
    "path, wnid, photograph",
    [
        ("n01/x.png", "n01", "n01/x"),
        ("n01/sub/x.y.png", "n01", "n01/sub/x.y"),
        ("tiny-imagenet-200/train/n01/images/n01_0.JPEG", "n01", "n01/n01_0"),
        ("tiny-imagenet-200/val/images/val_0.JPEG", "n01", "n01/val_0"),
        ("val/n01/images/val_0.png", "n01", "n01/val_0"),
        ("val/n01/val_0.JPEG", "n01", "n01/val_0"),
    ],
)
def test_a_photograph_is_its_class_and_its_place_below_it(path: str, wnid: str, photograph: str) -> None:
    assert Sample(path, wnid).photograph == photograph


def test_a_listing_keeps_the_order() -> None:
    samples = [Sample("a/0.png", "a"), Sample("b/0.png", "b")]
    assert listing_of(samples) == listing_of(list(samples))
    assert listing_of(samples) != listing_of(samples[::-1])
    assert listing_of([Sample("a/b\0c.png", "a")]) != listing_of([Sample("a/b.png", "a")])
