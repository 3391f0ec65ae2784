"""What a file is that should hold weights and does not: said in words, with what to do."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

from robustglimpse.records import UserError

ENDINGS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar", ".th", ".pkl")  # that weights have
GIVE = "give what torch.save(model.state_dict(), FILE) or safetensors wrote"
UNPACK = "unpack it and give the file of weights inside"
MAGICS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file it stands for; fetch that: git lfs pull",
    b"/annex/objects": "a git-annex pointer, not the file it stands for; fetch that: git annex get",
    b"\x89HDF": f"an HDF5 file, as Keras writes (.h5); {GIVE}",
    b"\x93NUMPY": f"a numpy array (.npy); {GIVE}",
    b"GGUF": f"a GGUF file; {GIVE}",
    b"\x1f\x8b": f"a gzip archive; {UNPACK}",
    b"BZh": f"a bzip2 archive; {UNPACK}",
    b"\xfd7zXZ": f"an xz archive; {UNPACK}",
    b"7z\xbc\xaf": f"a 7z archive; {UNPACK}",
    b"(\xb5/\xfd": f"a zstd archive; {UNPACK}",
    b"Rar!": f"a RAR archive; {UNPACK}",
    b"%PDF": f"a PDF; {GIVE}",
    b"\x89PNG": f"a picture; {GIVE}",
    b"\xff\xd8\xff": f"a picture; {GIVE}",
}


def check_is_file(path: Path) -> None:
    """Raise UserError unless the path is an ordinary file."""
    try:
        if path.is_file():
            return
        if path.is_dir():
            inside = sorted(each.name for each in path.iterdir() if each.suffix.lower() in ENDINGS)[:3]
            which = f": {', '.join(map(shown, inside))}" if inside else ", a .safetensors or .pth"
            raise UserError(f"{path}: is a folder; give the file of weights in it{which}")
        what = "is no ordinary file" if path.exists() else "no such file of weights"
    except OSError as error:
        what = f"cannot be looked at ({error.strerror})"
    raise UserError(f"{path}: {what}; give a .safetensors, or a .pth of a state dict")


def kind_of_file(path: Path) -> str:
    """Return what a file without readable weights is, and what to do; "" where that is not seen."""
    try:
        with path.open("rb") as stream:
            head = stream.read(512)
    except OSError:
        return ""
    if not head:
        return "not a readable checkpoint (it is empty); copy or fetch it again"
    for magic, kind in MAGICS.items():
        if head.startswith(magic):
            return kind
    if head.startswith(b"PK\x03\x04"):
        return _kind_of_zip(path)
    if head[257:262] == b"ustar":
        first = shown(head[:100].rstrip(b"\0").decode("utf-8", "replace"))
        return f"a tar archive that begins with {first!r}; {UNPACK}"
    if path.suffix.lower() == ".onnx" or (head[0] == 8 and (b"onnx" in head or b"pytorch" in head)):
        return f"an ONNX graph; {GIVE}"
    return _kind_of_text(head)


def _kind_of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error):
        return "not a readable checkpoint (cut short: its archive has no end); copy or fetch it again"
    last = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in last:
        return (
            "a TorchScript archive, which is code and weights in one; name a function that loads it: "
            "package.module:factory, with torch.jit.load inside"
        )
    if last & {"serialized_exported_program.json", "archive_format", "model.json"}:
        return "a program of torch.export; name a function that loads it: package.module:factory"
    if any(name.endswith(".npy") for name in names):
        return f"an archive of numpy arrays (.npz); {GIVE}"
    if {"config.json", "model.weights.h5"} <= last:
        return f"a Keras model; {GIVE}"
    weights = [shown(name) for name in names if name.lower().endswith(ENDINGS)][:3]
    if weights and "data.pkl" not in last:
        return f"a zip archive that holds {', '.join(weights)}; {UNPACK}"
    return "" if "data.pkl" in last else f"a zip archive of {len(names)} files, not torch's; {GIVE}"


def _kind_of_text(head: bytes) -> str:
    try:
        text = head[:400].decode("utf-8", "ignore").strip()
    except UnicodeDecodeError:
        return ""
    if text.startswith("<"):
        return "an HTML or XML page, not weights: a log-in page or a failed download; fetch the file again"
    if len(text) < 8 or sum(c.isprintable() or c.isspace() for c in text) < len(text) or b"\0" in head:
        return ""
    return f"a text that begins with {shown(text)[:40]!r}, not weights; fetch the file again"


def shown(text: str) -> str:
    """Return somebody else's text on one line, printable and not too long."""
    line = "".join(c if c.isprintable() else " " for c in text.strip())
    return line if len(line) <= 120 else f"{line[:120]}..."
