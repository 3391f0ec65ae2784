"""Which files there are: links, pipes, odd names and hostile archives end in a line, never in a traceback."""

from __future__ import annotations

import io
import os
import socket
import stat
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from photos import load, no_decoding, refusal, save_image, two_classes

from robustglimpse.data import load_data, sources
from robustglimpse.data.sources import ArchiveSource, FolderSource, printable, sha256_of

# Links


@pytest.mark.parametrize("target", [".", "..", "a", "b/..", "s1"])
def test_a_link_that_leads_back_adds_no_image(tmp_path: Path, target: str) -> None:
    root = two_classes(tmp_path / "photos")
    (root / "s1").symlink_to(target)
    data = load(root)
    assert (len(data.labels), data.classes) == (4, ("a", "b"))
    if target != "s1":  # a link to itself leads nowhere
        assert any("links to folders that are read already, or hold them: 1" in note for note in data.notes)


def test_a_loop_inside_a_class_folder_is_walked_once(tmp_path: Path) -> None:
    root = two_classes(tmp_path / "photos")
    (root / "a" / "again").symlink_to("..")
    (root / "a" / "self").symlink_to(".")
    assert len(load(root).labels) == 4


def test_a_folder_keeps_its_own_name_where_a_link_leads_to_it(tmp_path: Path) -> None:
    root = two_classes(tmp_path / "photos")
    (root / "0-first").symlink_to("b")
    assert load(root).classes == ("a", "b")


def test_a_class_folder_may_be_a_link_and_so_may_images(tmp_path: Path) -> None:
    root = two_classes(tmp_path / "kept")
    (tmp_path / "photos" / "b").mkdir(parents=True)
    (tmp_path / "photos" / "a").symlink_to(root / "a")
    (tmp_path / "photos" / "b" / "0.png").symlink_to(root / "b" / "0.png")
    data = load(tmp_path / "photos")
    assert (data.classes, len(data.labels), data.notes) == (("a", "b"), 3, ())


def test_a_dangling_link_is_told_where_it_looks_like_an_image(tmp_path: Path) -> None:
    root = two_classes(tmp_path)
    (root / "b" / "README").symlink_to("nowhere")
    assert load(root).notes == ()
    (root / "b" / "gone.JPG").symlink_to("nowhere")
    (root / "b" / "loop.png").symlink_to("loop.png")
    (note,) = load(root).notes
    assert "links that lead nowhere: 2 (the first is b/gone.JPG)" in note


# What is no file


def test_pipes_and_devices_are_not_opened(tmp_path: Path) -> None:
    root = two_classes(tmp_path / "photos")
    os.mkfifo(root / "a" / "pipe.png")
    (root / "a" / "zero.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        here = Path.cwd()
        os.chdir(root / "b")  # a socket's path is short
        try:
            listening.bind("s.png")
        finally:
            os.chdir(here)
        data = load(root)
    assert len(data.labels) == 4
    assert any("pipes, devices and the like: 3 (the first is a/pipe.png)" in note for note in data.notes)


@pytest.mark.parametrize("name", ["tiny-imagenet", "cifar10", "imagefolder"])
@pytest.mark.parametrize("kind", ["pipe", "device", "file", "too long", "nul", "loop"])
def test_data_that_are_neither_folder_nor_archive_are_refused(tmp_path: Path, name: str, kind: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"text")
    (tmp_path / "loop").symlink_to("loop")
    path = {"device": "/dev/zero", "too long": "x" * 5000, "nul": "a\0b"}.get(kind, str(tmp_path / kind))
    assert printable(path)[:100] in refusal(lambda: load_data(name, data_dir=path))


def test_a_pipe_that_takes_a_files_place_is_not_waited_for(tmp_path: Path) -> None:
    source = FolderSource(two_classes(tmp_path))
    source.names()
    (tmp_path / "a" / "0.png").unlink()
    os.mkfifo(tmp_path / "a" / "0.png")
    assert "a/0.png: changed while it was read" in refusal(lambda: source.read("a/0.png"))


def test_only_listed_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    source = FolderSource(two_classes(tmp_path / "photos"))
    assert "no such file" in refusal(lambda: source.read("../secret.png"))
    assert "no such file" in refusal(lambda: source.read(str(tmp_path / "secret.png")))


def test_a_file_of_terabytes_is_refused_unread(tmp_path: Path) -> None:
    root = two_classes(tmp_path)
    with (root / "a" / "2.png").open("wb") as file:
        file.truncate(8_000_000_000)  # of holes
    assert "a/2.png has 8.0 GB, and at most 1.1 are read" in refusal(lambda: load(root))


@pytest.mark.parametrize("call", ["scandir", "stat"])
def test_a_folder_that_cannot_be_opened_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    root = two_classes(tmp_path)  # root may open all, so the refusal is made up
    real = getattr(os, call)

    def closed(path: Any, *arguments: Any, **options: Any) -> Any:
        if str(path) == str(root / "b"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, call, closed)
    assert f"{root / 'b'}: cannot be read (Permission denied)" in refusal(lambda: load(root))


# Names


@pytest.mark.parametrize(
    "name, printed",
    [(b"caf\xe9", r"caf\xe9"), (b"two\nlines", r"two\nlines"), (b"\x1b[31mred", r"\x1b[31mred"),
     ("naïve 猫\u3000".encode(), "naïve 猫\u3000"), (b"plain", "plain")],
)  # fmt: skip
def test_a_class_has_a_printable_name(tmp_path: Path, name: bytes, printed: str) -> None:
    folder = tmp_path / os.fsdecode(name)
    save_image(folder / os.fsdecode(b"\xff\n.png"), 32, 32)
    data = load(tmp_path)
    assert data.classes == (printed,)
    assert data.fingerprint
    assert data.identity
    (folder / "broken.png").write_text("no image")
    assert f"{printed}/broken.png is not an image" in refusal(lambda: load(tmp_path))


def test_a_folder_itself_may_have_such_a_name(tmp_path: Path) -> None:
    root = two_classes(tmp_path / os.fsdecode(b"caf\xe9\n"))
    data = load(root)
    assert data.name == r"imagefolder:caf\xe9\n"
    assert r"caf\xe9\n/val: no such folder" in refusal(lambda: load(root, split="val"))


def test_two_names_that_would_be_printed_alike_are_refused(tmp_path: Path) -> None:
    for name in b"caf\xe9", rb"caf\xe9":
        save_image(tmp_path / os.fsdecode(name) / "0.png")
    assert r"two folders would be called caf\xe9" in refusal(lambda: load(tmp_path))


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    two_classes(tmp_path / "photos")
    named, given = (
        load_data("imagefolder:~/photos", size_px=32),
        load_data("imagefolder", data_dir="~/photos"),
    )
    assert (named.name, named.classes) == ("imagefolder:photos", given.classes)
    assert "whose home folder" in refusal(lambda: load_data("imagefolder:~no-such-user-here/x"))


# Archives


def test_what_operating_systems_leave_is_in_no_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in "a/0.png", "__MACOSX/a/._0.png", "a/.DS_Store", "a/Thumbs.db", "a/":
            archive.writestr(name, b"content")
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("a/0.png", b"newer")
    source = ArchiveSource(tmp_path / "a.zip")
    assert source.names() == ["a/0.png"]
    assert source.read("a/0.png") == b"newer"
    source.close()


def test_links_in_archives_are_told(tmp_path: Path) -> None:
    link = tarfile.TarInfo("a/0.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(link)
    entry = zipfile.ZipInfo("a/0.png")
    entry.create_system, entry.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(entry, "/etc/passwd")
    for path in tmp_path / "a.tar", tmp_path / "a.zip":
        source = ArchiveSource(path)
        assert (source.names(), len(source.notes)) == ([], 1)
        assert "links and the like: 1 (the first is a/0.png)" in source.notes[0]
        assert "no such file" in refusal(lambda source=source: source.read("a/0.png"))  # type: ignore[misc]
        source.close()


def zip_that_claims(path: Path, *, packed: int, claimed: int) -> Path:
    """Write a zip of one deflated file of zeros, and change the size that its directory says it has."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a/0.png", "w") as file:
        for _ in range(packed >> 20):
            file.write(bytes(1 << 20))
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = claimed.to_bytes(4, "little")
    path.write_bytes(content)
    return path


def test_an_entry_that_claims_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    source = ArchiveSource(zip_that_claims(tmp_path / "a.zip", packed=1 << 20, claimed=4_000_000_000))
    assert "a/0.png has 4.0 GB, and at most 1.1 are read" in refusal(lambda: source.read("a/0.png"))
    source.close()


def test_an_entry_is_not_unpacked_beyond_what_it_claims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked = []
    real = zipfile.ZipExtFile.read

    def counted(stream: zipfile.ZipExtFile, n: int | None = -1) -> bytes:
        unpacked.append(n)
        return real(stream, n)

    monkeypatch.setattr(zipfile.ZipExtFile, "read", counted)
    source = ArchiveSource(zip_that_claims(tmp_path / "a.zip", packed=1 << 24, claimed=10))
    assert "a/0.png cannot be read (Bad CRC-32" in refusal(lambda: source.read("a/0.png"))
    assert unpacked == [sources.CHUNK_BYTES]
    source.close()


def test_an_archives_hash_is_remembered_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBUSTGLIMPSE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "a.tar"
    path.write_bytes(b"one")
    first = sha256_of(path)
    assert not (tmp_path / "cache").exists()  # so young a file may change within a tick of its clock
    monkeypatch.setattr(sources, "SETTLED_S", -1.0)
    assert sha256_of(path) == first
    (kept,) = (tmp_path / "cache" / "hashes").iterdir()
    kept.write_text("f" * 64)
    assert sha256_of(path) == "f" * 64
    kept.write_text("damaged")
    assert sha256_of(path) == first
    before = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert sha256_of(path) != first


# The stamp


@pytest.mark.parametrize("how", ["in place", "another file"])
def test_a_file_of_the_same_size_and_second_is_another_one(tmp_path: Path, how: str) -> None:
    root = two_classes(tmp_path / "photos")
    bitmap = root / "a" / "0.bmp"
    save_image(bitmap, 32, 32)
    before, status = load(root), bitmap.stat()
    content = bytearray(bitmap.read_bytes())
    content[-1] ^= 1
    if how == "in place":
        bitmap.write_bytes(content)
    else:
        (tmp_path / "new").write_bytes(content)
        (tmp_path / "new").rename(bitmap)
    os.utime(bitmap, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert load(root).fingerprint != before.fingerprint


def test_a_file_that_is_read_by_nobody_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = two_classes(tmp_path)
    before = load(root)
    (root / "README.md").write_text("photographs")
    no_decoding(monkeypatch)
    assert load(root).fingerprint == before.fingerprint


def test_a_tar_is_read_as_its_folder_is(tmp_path: Path) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        tar.add(two_classes(tmp_path / "photos"), "photos")
    (tmp_path / "photos.tgz").write_bytes(content.getvalue())
    source, folder = ArchiveSource(tmp_path / "photos.tgz"), FolderSource(tmp_path)
    assert source.names() == [name for name in folder.names() if name.endswith(".png")]
    assert source.read("photos/a/0.png") == folder.read("photos/a/0.png")
    source.close()
