"""Public archives of images: where they are, what they must hash to, and how one gets here when asked for."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path

from robustglimpse.cache import cache_dir
from robustglimpse.data.sources import mode_of, printable
from robustglimpse.notes import tell
from robustglimpse.progress import Progress, progress
from robustglimpse.records import UserError

TIMEOUT_S = 30
CHUNK_BYTES = 1 << 18


@dataclass(frozen=True)
class Archive:
    """A file that others publish, and the MD5 of its content."""

    url: str
    md5: str

    @property
    def file(self) -> str:
        """The name that it has there and here."""
        return self.url.rpartition("/")[2]


TINY_IMAGENET = Archive(
    "http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de"
)
CIFAR10 = Archive(
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"
)


def files_of(name: str, archive: Archive, data_dir: Path | None, *, download: bool) -> Path:
    """Return the archive or folder that a data set is read from.

    data_dir: a folder, one that holds the archive, or an archive; None for what was fetched before.
    download: fetch the archive, into data_dir or the cache, unless it is there already.
    Raises UserError where there is nothing, or where the published archive cannot be had.
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
    unpacked = kept / archive.file.partition(".")[0]
    if has_archive and mode_of(unpacked):
        tell(f"{name}: read from {printable(inside)}; {printable(unpacked)} beside it is not looked at")
    return inside if has_archive else kept


def _fetched(archive: Archive, path: Path) -> Path:
    """Return the path once the archive is there, whole and as published; another file there is left alone."""
    from http.client import HTTPException

    import pooch

    if path.is_file():
        found = pooch.file_hash(str(path), alg="md5")
        if found != archive.md5:
            raise UserError(
                f"{path}: not the published archive (expected md5 {archive.md5}, got {found}); "
                "move it away, or leave out --download to read it as it is"
            )
        return path
    try:
        with progress(1, f"fetching {archive.file}") as report:
            pooch.retrieve(
                archive.url, f"md5:{archive.md5}", path.name, path.parent,
                downloader=lambda url, out, _: _download(url, Path(out), report),
            )  # fmt: skip
    except (OSError, HTTPException, ValueError) as error:  # of the disk, the network, or another hash
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{archive.url}: cannot be fetched ({reason}); try again, or fetch it yourself for --data-dir"
        ) from None
    return path


def _download(url: str, out: Path, report: Progress) -> None:
    """Write what is at the url; report the share of it that is here. pooch's own bar would need tqdm."""
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    request = Request(url, headers={"User-Agent": "robustglimpse"})
    try:
        with urlopen(request, timeout=TIMEOUT_S) as response, out.open("wb") as file:
            total = int(response.headers["Content-Length"] or 0)
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                if total:
                    report(file.tell() / total)
    except HTTPError as error:
        error.close()  # it holds the connection
        raise
