"""Public archives: over https alone, as published or not at all, hashed once, where the cache says."""

from __future__ import annotations

import hashlib
import os
import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from photos import packed, refusal, tiny_folder

from robustglimpse.cache import cache_dir
from robustglimpse.data import DATASETS, archives, load_data, sources

ARCHIVES = list({row.archive.file: row.archive for row in DATASETS.values() if row.archive}.values())
SIZE = 1_000  # of what the server says it sends and does not


@dataclass
class Published:
    """A small Tiny ImageNet on a server of this machine.

    url: the server's, without a path.  asked: the paths that were asked for.  content: the archive's.
    """

    url: str
    content: bytes
    asked: list[str] = field(default_factory=list)

    def row(self, monkeypatch: pytest.MonkeyPatch, **changed: object) -> archives.Archive:
        """Make tiny-imagenet's archive the published one, with some fields changed; return it."""
        archive = archives.Archive(f"{self.url}/tiny.zip", len(self.content), sha256(self.content))
        archive = replace(archive, **changed)  # type: ignore[arg-type]
        monkeypatch.setitem(DATASETS, "tiny-imagenet", replace(DATASETS["tiny-imagenet"], archive=archive))
        return archive


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, and its key."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl command, which makes the test server's certificate")
    folder = tmp_path_factory.mktemp("tls")
    shown, key = folder / "shown.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-keyout", str(key), "-out", str(shown)]
    for extension in "subjectAltName=IP:127.0.0.1", "keyUsage=critical,keyCertSign,digitalSignature":
        command += ["-addext", extension]
    made = subprocess.run(command, check=False, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"openssl makes no certificate: {made.stderr}")
    return shown, key


@pytest.fixture
def published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, certificate: tuple[Path, Path]
) -> Iterator[Published]:
    """Publish a small Tiny ImageNet over https; its certificate is trusted."""
    zipped = packed(tiny_folder(tmp_path / "made" / "tiny-imagenet-200"), tmp_path / "made" / "tiny.zip")
    told = Published("", zipped.read_bytes())

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            told.asked.append(self.path)
            if self.path == "/to-http.zip":
                self.send_response(302)
                self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/tiny.zip")  # type: ignore[attr-defined]
                self.end_headers()
            elif self.path == "/to-https.zip":
                self.send_response(302)
                self.send_header("Location", "/tiny.zip")
                self.end_headers()
            elif self.path in ("/cut.zip", "/endless.zip"):
                self.send_response(200)
                if self.path == "/cut.zip":
                    self.send_header("Content-Length", str(SIZE))
                self.end_headers()
                self.wfile.write(b"PK" if self.path == "/cut.zip" else b"P" * (SIZE + 1))
            else:
                super().do_GET()

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            pass  # a client that does not trust the certificate hangs up

    monkeypatch.setenv("ROBUSTGLIMPSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    secured = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    secured.load_cert_chain(*certificate)
    with Server(("127.0.0.1", 0), partial(Quiet, directory=zipped.parent)) as server:
        server.socket = secured.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        told.url = f"https://127.0.0.1:{server.server_port}"
        told.row(monkeypatch)
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        yield told
        server.shutdown()
        serving.join()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that sources.sha256_of reads and hashes from here on."""
    names: list[str] = []
    real = hashlib.file_digest

    def counted(stream: object, digest: str) -> object:
        names.append(Path(stream.name).name)  # type: ignore[attr-defined]
        return real(stream, digest)  # type: ignore[arg-type]

    monkeypatch.setattr(hashlib, "file_digest", counted)
    return names


# The table


@pytest.mark.parametrize("archive", ARCHIVES, ids=[archive.file for archive in ARCHIVES])
def test_every_archive_has_an_https_address_a_length_and_a_sha256(archive: archives.Archive) -> None:
    assert archive.url.startswith("https://")
    assert archive.size_bytes > 1 << 20
    assert len(bytes.fromhex(archive.sha256)) == 32


# What is fetched


@pytest.mark.parametrize("kept", ["kept", None])
def test_what_was_downloaded_is_there_for_the_next_command(
    tmp_path: Path, published: Published, kept: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / kept if kept else None
    first = load_data("tiny-imagenet", data_dir=folder, download=True)
    assert first.fingerprint == load_data("tiny-imagenet", data_dir=tmp_path / "made").fingerprint
    assert load_data("tiny-imagenet", data_dir=folder).fingerprint == first.fingerprint
    load_data("tiny-imagenet", data_dir=folder, download=True)
    assert published.asked == ["/tiny.zip"]
    assert [p.name for p in (folder or tmp_path / "cache" / "downloads").iterdir()] == ["tiny.zip"]
    assert not capsys.readouterr().out


def test_a_download_tells_how_far_it_is(
    published: Published, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robustglimpse.progress.LOG_EVERY_S", 0.0)
    load_data("tiny-imagenet", download=True)
    assert "fetching tiny.zip: 100%" in capsys.readouterr().err


def test_an_archive_that_is_at_hand_is_not_downloaded(tmp_path: Path, published: Published) -> None:
    load_data("tiny-imagenet", data_dir=tmp_path / "made" / "tiny.zip", download=True)
    assert not published.asked


def test_a_download_does_not_touch_a_file_of_another_content(tmp_path: Path, published: Published) -> None:
    mine = tmp_path / "tiny.zip"
    mine.write_bytes(b"mine")
    message = refusal(lambda: load_data("tiny-imagenet", data_dir=tmp_path, download=True))
    assert f"{mine}: not the published archive" in message
    assert sha256(b"mine") in message
    assert (mine.read_bytes(), published.asked) == (b"mine", [])


def test_a_download_of_another_content_is_refused_and_not_kept(
    tmp_path: Path, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = published.row(monkeypatch, sha256=sha256(b"other"))
    message = refusal(lambda: load_data("tiny-imagenet", data_dir=tmp_path / "kept", download=True))
    assert other.url in message
    assert sha256(b"other") in message
    assert sha256(published.content) in message
    assert not list((tmp_path / "kept").iterdir())


@pytest.mark.parametrize(
    "path, size_bytes, reason",
    [
        ("no.zip", SIZE, "404"),
        ("cut.zip", SIZE, "it broke off after 2 of 1,000 bytes"),
        ("cut.zip", SIZE + 1, "expected 1,001 bytes, the server has 1,000"),
        ("endless.zip", SIZE, "expected 1,000 bytes, the server sends more"),
        ("to-http.zip", SIZE, "expected an https address, got http://127.0.0.1"),
    ],
)
def test_a_download_that_fails_is_one_line_and_leaves_nothing(
    tmp_path: Path,
    published: Published,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    size_bytes: int,
    reason: str,
) -> None:
    url = f"{published.url}/{path}"
    published.row(monkeypatch, url=url, size_bytes=size_bytes)
    message = refusal(lambda: load_data("tiny-imagenet", download=True))
    assert f"{url}: cannot be fetched (" in message
    assert reason in message
    assert not list((tmp_path / "cache" / "downloads").iterdir())
    assert published.asked == [f"/{path}"]


def test_a_server_that_does_not_answer_is_one_line(
    published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    published.row(monkeypatch, url="https://127.0.0.1:9/tiny.zip")
    assert "tiny.zip: cannot be fetched (<urlopen error [Errno" in refusal(
        lambda: load_data("tiny-imagenet", download=True)
    )


def test_an_interrupted_download_leaves_nothing_and_the_next_one_is_whole(
    tmp_path: Path, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        assert list((tmp_path / "cache" / "downloads").iterdir())  # it had begun
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("robustglimpse.progress._Log.__call__", interrupted)
        load_data("tiny-imagenet", download=True)
    assert not list((tmp_path / "cache" / "downloads").iterdir())
    load_data("tiny-imagenet", download=True)
    assert (tmp_path / "cache" / "downloads" / "tiny.zip").read_bytes() == published.content


def test_what_a_killed_download_leaves_is_not_taken_for_the_archive(
    tmp_path: Path, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = (
        "import os, robustglimpse.data.archives as archives\n"
        "from pathlib import Path\n"
        "archives._download = lambda url, out, *_: (out.write_bytes(b'PK'), os._exit(9))\n"
        "archive = archives.Archive('https://x/tiny.zip', 9, 'f' * 64)\n"
        "archives.files_of('tiny-imagenet', archive, None, download=True)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 9
    (left,) = (tmp_path / "cache" / "downloads").iterdir()
    assert (left.name != "tiny.zip", left.read_bytes()) == (True, b"PK")
    assert "or --download" in refusal(lambda: load_data("tiny-imagenet"))


# https


def test_a_redirect_from_https_to_https_is_followed(
    published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    published.row(monkeypatch, url=f"{published.url}/to-https.zip")
    assert len(load_data("tiny-imagenet", download=True).labels) == 2
    assert published.asked == ["/to-https.zip", "/tiny.zip"]


@pytest.mark.parametrize("scheme", ["http", "ftp", "file"])
def test_an_address_that_is_not_https_is_not_asked(
    published: Published, monkeypatch: pytest.MonkeyPatch, scheme: str, tmp_path: Path
) -> None:
    place = {"file": f"{tmp_path}/made"}.get(scheme, published.url.partition("://")[2])
    published.row(monkeypatch, url=f"{scheme}://{place}/tiny.zip")
    message = refusal(lambda: load_data("tiny-imagenet", download=True))
    assert f"(expected an https address, got {scheme}://" in message
    assert not published.asked


def test_a_server_whose_certificate_nobody_vouches_for_is_refused(
    published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    assert "CERTIFICATE_VERIFY_FAILED" in refusal(lambda: load_data("tiny-imagenet", download=True))
    assert not published.asked


# Hashed once


def test_a_download_is_not_hashed_again(
    published: Published, hashed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_data("tiny-imagenet", download=True)
    for download in (True, False):
        load_data("tiny-imagenet", download=download)
    assert not hashed  # pooch hashed what it fetched, and that was noted
    (tmp_path / "cache" / "downloads" / "tiny.zip").touch()
    monkeypatch.setattr(sources, "SETTLED_S", -1.0)
    for download in (True, False):
        load_data("tiny-imagenet", download=download)
    assert hashed == ["tiny.zip"]


def test_an_archive_is_hashed_once_where_the_note_cannot_be_written(
    tmp_path: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "hashes").touch()  # a file where the notes' folder would be
    monkeypatch.setenv("ROBUSTGLIMPSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "SETTLED_S", -1.0)
    path = tmp_path / "a.zip"
    path.write_bytes(b"one")
    assert [sources.sha256_of(path) for _ in range(2)] == [sha256(b"one")] * 2
    assert hashed == ["a.zip"]
    before = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert sources.sha256_of(path) == sha256(b"two")


def test_an_archive_in_the_cache_that_was_changed_is_refused(tmp_path: Path, published: Published) -> None:
    load_data("tiny-imagenet", download=True)
    kept = tmp_path / "cache" / "downloads" / "tiny.zip"
    kept.write_bytes(published.content + b"more")
    message = refusal(lambda: load_data("tiny-imagenet"))
    assert f"{kept}: not the published archive (expected sha256 {sha256(published.content)}" in message
    assert message.endswith("remove it and give --download")
    kept.unlink()
    assert len(load_data("tiny-imagenet", download=True).labels) == 2


# The cache


def test_the_caches_folder_may_begin_with_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ROBUSTGLIMPSE_CACHE", "~/mine")
    assert cache_dir() == tmp_path / "mine"


@pytest.mark.parametrize(
    "place, reason",
    [
        ("{0}/file", "found a file"),
        ("{0}/file/below", "Not a directory"),
        ("~nobody-has-that-name/cache", "home directory"),
        ("{0}/" + "long" * 100, "File name too long"),
    ],
)
def test_a_cache_that_can_be_no_folder_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, reason: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ROBUSTGLIMPSE_CACHE", place.format(tmp_path))
    message = refusal(cache_dir)
    assert message.startswith(f"ROBUSTGLIMPSE_CACHE={place.format(tmp_path)!r}: expected a folder")
    assert reason in message
    assert message.endswith("set it to a folder, or unset it")


def test_a_folder_that_takes_no_download_is_named_before_anything_is_fetched(
    tmp_path: Path, published: Published
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "downloads").symlink_to(tmp_path / "file" / "below")
    (tmp_path / "file").touch()
    message = refusal(lambda: load_data("tiny-imagenet", download=True))
    assert f"{tmp_path / 'cache' / 'downloads'}: cannot keep tiny.zip there (" in message
    assert "--data-dir, or set ROBUSTGLIMPSE_CACHE" in message
    assert not published.asked


@pytest.mark.parametrize("name", [name for name, row in DATASETS.items() if row.archive is None])
def test_a_set_that_has_nothing_to_download_says_so(name: str) -> None:
    assert f"tiny-imagenet-20, cifar10), and {name} has none" in refusal(
        lambda: load_data(name, download=True)
    )
