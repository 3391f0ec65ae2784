"""Public archives of images: where they are, what they must hash to, and how one gets here when asked for."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from robustglimpse.cache import cache_dir
from robustglimpse.data.sources import mode_of, printable, remember_sha256, sha256_of
from robustglimpse.files import check_writable
from robustglimpse.notes import tell
from robustglimpse.progress import Progress, progress
from robustglimpse.records import UserError

if TYPE_CHECKING:
    from http.client import HTTPMessage
    from urllib.request import OpenerDirector, Request

TIMEOUT_S = 30
CHUNK_BYTES = 1 << 18


@dataclass(frozen=True)
class Archive:
    """A file that others publish: its https address, its length and the SHA-256 of its content."""

    url: str
    size_bytes: int
    sha256: str

    @property
    def file(self) -> str:
        """The name that it has there and here."""
        return self.url.rpartition("/")[2]


# We know of no SHA-256 from the authors: these are what other projects pin for the same archives.
TINY_IMAGENET = Archive(
    "https://cs231n.stanford.edu/tiny-imagenet-200.zip",
    248_100_043,
    # berenslab/t-simcne: tsimcne/dataset/tiny_imagenet.py; Tuee22/jitML: src/JitML/SL/Dataset.hs;
    # word-ky/PPRTP: research_log/H17A/launch.md, with the length.
    "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821",
)
CIFAR10 = Archive(
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    170_052_171,
    # tensorflow/datasets: tensorflow_datasets/url_checksums/cifar10.txt, with the length;
    # gomlx/gomlx: examples/cifar/cifar.go.
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)


def files_of(name: str, archive: Archive, data_dir: Path | None, *, download: bool) -> Path:
    """Return the archive or folder that a data set is read from.

    data_dir: a folder, one that holds the archive, or an archive; None for what was fetched before.
    download: fetch the archive, into data_dir or the cache, unless it is there already.
    Raises UserError where there is nothing, where the published archive cannot be had, and where the archive
    in the cache, or one that download finds in place, is another.
    """
    kept = data_dir or cache_dir() / "downloads"
    inside = kept / archive.file
    if download and not stat.S_ISREG(mode_of(kept)):
        return _fetched(archive, inside)
    has_archive = stat.S_ISREG(mode_of(inside))
    if data_dir is None and not has_archive:
        raise UserError(f"{name} needs its files: give --data-dir PATH (archive or folder), or --download")
    if not mode_of(kept):
        raise UserError(
            f"{printable(kept)}: no such file or folder; give {name}'s archive or folder as --data-dir"
        )
    if data_dir is None:
        _check_published(archive, inside, "remove it and give --download")
    unpacked = kept / archive.file.partition(".")[0]
    if has_archive and mode_of(unpacked):
        tell(f"{name}: read from {printable(inside)}; {printable(unpacked)} beside it is not looked at")
    return inside if has_archive else kept


def _check_published(archive: Archive, path: Path, mend: str) -> None:
    """Raise UserError unless a file has the published content. It is hashed only where it has changed."""
    try:
        found = sha256_of(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {mend}") from None
    if found != archive.sha256:
        raise UserError(
            f"{path}: not the published archive (expected sha256 {archive.sha256}, got {found}); {mend}"
        )


def _fetched(archive: Archive, path: Path) -> Path:
    """Return the path once the archive is there, whole and as published; another file there is left alone."""
    from http.client import HTTPException

    import pooch

    if path.is_file():
        _check_published(archive, path, "move it away, or leave out --download to read it as it is")
        return path
    try:
        check_writable(path.parent)
    except OSError as error:
        raise UserError(
            f"{path.parent}: cannot keep {archive.file} there ({error.strerror}); "
            "choose another folder with --data-dir, or set ROBUSTGLIMPSE_CACHE"
        ) from None
    try:
        with progress(1, f"fetching {archive.file}") as report:
            pooch.retrieve(
                archive.url, f"sha256:{archive.sha256}", path.name, path.parent,
                downloader=lambda url, out, _: _download(url, Path(out), archive.size_bytes, report),
            )  # fmt: skip
    except (OSError, HTTPException, ValueError) as error:  # of the disk, the network, or another hash
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{archive.url}: cannot be fetched ({reason}); try again, or fetch it yourself for --data-dir"
        ) from None
    remember_sha256(path, archive.sha256)
    return path


def _download(url: str, out: Path, size_bytes: int, report: Progress) -> None:
    """Write the size_bytes that are at the url, and report the share that is here.

    Raises ValueError for another length and for a url that is not https.  pooch's own bar would need tqdm.
    """
    from urllib.error import HTTPError
    from urllib.request import Request

    _check_https(url)
    request = Request(url, headers={"User-Agent": "robustglimpse"})
    try:
        with _opener().open(request, timeout=TIMEOUT_S) as response, out.open("wb") as file:
            total = int(response.headers["Content-Length"] or size_bytes)
            if total != size_bytes:
                raise ValueError(f"expected {size_bytes:,} bytes, the server has {total:,}")
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                report(min(file.tell() / size_bytes, 1))
                if file.tell() > size_bytes:  # a server that did not say how much it sends may never end
                    raise ValueError(f"expected {size_bytes:,} bytes, the server sends more")
            if file.tell() < size_bytes:
                raise ValueError(f"it broke off after {file.tell():,} of {size_bytes:,} bytes")
    except HTTPError as error:
        error.close()  # it holds the connection
        raise


def _opener() -> OpenerDirector:
    """Return what opens a url, and refuses to be led from https to anything else."""
    from urllib.request import HTTPRedirectHandler, build_opener

    class OnlyToHttps(HTTPRedirectHandler):
        def redirect_request(
            self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
        ) -> Request | None:
            try:
                _check_https(newurl)
            except ValueError:
                fp.close()
                raise
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    return build_opener(OnlyToHttps)


def _check_https(url: str) -> None:
    """Raise ValueError for a url that is not https: over http anybody on the way can answer."""
    if not url.lower().startswith("https://"):
        raise ValueError(f"expected an https address, got {printable(url)}")
