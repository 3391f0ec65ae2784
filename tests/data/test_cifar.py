"""CIFAR-10 and CIFAR-100: the same pixels from every form of their batches, and no obeying of a pickle."""

from __future__ import annotations

import io
import pickle
import random
import shutil
import struct
import subprocess
import sys
import tarfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from photos import Pixels, refusal

from robustglimpse.data import cifar, load_data
from robustglimpse.data.cifar import CIFAR10_CLASSES, CIFAR100_CLASSES

# CIFAR-10

BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def cifar_content(seed: int) -> tuple[Pixels, list[int]]:
    """Return 20 made-up records: pixels [20,3072] and labels, two of each class, shuffled."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (20, 3072), np.uint8), rng.permutation(np.arange(20) % 10).tolist()


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Pickles text as Python 2 did, which is how the official batches were made."""

    def save_text(self, text: str | bytes) -> None:
        content = text.encode() if isinstance(text, str) else text
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(text)

    dispatch = {**pickle._Pickler.dispatch, bytes: save_text, str: save_text}  # type: ignore[attr-defined]  # noqa: RUF012


def python2_pickle(content: Any) -> bytes:
    """Return content as Python 2 with numpy 1 would have pickled it."""
    stream = io.BytesIO()
    Python2Pickler(stream, 2).dump(content)
    old = stream.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    return old.replace(b"\x89\x88\x87", b"K\x00K\x01\x87")  # dtype("u1", 0, 1), now with False and True


def write_binary(folder: Path) -> Path:
    """Write the made-up set as CIFAR-10's binary batches."""
    folder.mkdir()
    for seed, name in enumerate(BATCHES):
        pixels, labels = cifar_content(seed)
        records = np.concatenate([np.array(labels, np.uint8)[:, None], pixels], 1)
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    (folder / "batches.meta.txt").write_text("airplane\n")
    return folder


def write_pickles(folder: Path) -> Path:
    """Write the made-up set as CIFAR-10's python batches."""
    folder.mkdir()
    for seed, name in enumerate(BATCHES):
        pixels, labels = cifar_content(seed)
        batch = {b"batch_label": name.encode(), b"labels": labels, b"data": pixels}
        (folder / name).write_bytes(python2_pickle(batch))
    (folder / "batches.meta").write_bytes(python2_pickle({b"label_names": []}))
    return folder


def write_tar(folder: Path) -> Path:
    """Pack a folder as the official archives are and return the archive."""
    out = folder.with_suffix(".tar.gz")
    with tarfile.open(out, "w:gz") as archive:
        archive.add(folder, "cifar-10-batches")
    return out


@pytest.mark.parametrize("split, count", [("test", 20), ("train", 100)])
def test_cifar10_is_the_same_from_binary_and_pickled_batches(tmp_path: Path, split: str, count: int) -> None:
    binary, pickles = write_binary(tmp_path / "binary"), write_pickles(tmp_path / "python")
    prints = set()
    for source in binary, pickles, write_tar(binary), write_tar(pickles):
        data = load_data("cifar10", split=split, data_dir=source)
        assert data.images.shape == (count, 3, 32, 32)
        prints.add(data.fingerprint)
    assert len(prints) == 1


def test_cifar10_is_class_mixed_with_its_pixels_in_place(tmp_path: Path) -> None:
    data = load_data("cifar10", data_dir=write_binary(tmp_path / "binary"), limit=15)
    assert data.labels.tolist() == [*range(10), *range(5)]
    assert (data.classes[0], data.classes[9], data.total) == ("airplane", "truck", 20)
    pixels, labels = cifar_content(BATCHES.index("test_batch"))
    expected = pixels[labels.index(3)].reshape(3, 32, 32)  # red plane first, row by row
    assert np.array_equal(data.images[3], expected)


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def test_a_malicious_batch_is_refused_without_running(tmp_path: Path) -> None:
    root, marker = write_pickles(tmp_path / "python"), tmp_path / "marker"
    batch = pickle.dumps({b"data": Bomb(marker), b"labels": []})
    (root / "test_batch").write_bytes(batch)
    message = refusal(lambda: load_data("cifar10", data_dir=root))
    assert "test_batch: not a CIFAR-10 batch" in message
    assert not marker.exists()
    pickle.loads(batch)
    assert marker.exists()  # the bomb was live


@pytest.mark.parametrize(
    "content",
    [
        b"", b"no pickle", b".", b"(", b"0.", pickle.dumps([1, 2]), pickle.dumps({b"data": 1}),
        python2_pickle({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}),
        python2_pickle({b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]}),
        b"cnumpy.no_such\ndtype\n.",
    ],
    ids=[
        "empty", "text", "stop", "mark", "pop", "list", "number", "fewer-labels", "eleventh-class",
        "no-such-module",
    ],
)  # fmt: skip
def test_a_pickle_that_is_no_batch_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    root = write_pickles(tmp_path / "python")
    (root / "test_batch").write_bytes(content)
    assert "test_batch: not a CIFAR-10 batch" in refusal(lambda: load_data("cifar10", data_dir=root))


@pytest.mark.parametrize("content", [b"", b"\0" * 3072, b"\x0a" + b"\0" * 3072])
def test_a_binary_batch_of_another_shape_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    root = write_binary(tmp_path / "binary")
    (root / "test_batch.bin").write_bytes(content)
    assert "test_batch.bin: " in refusal(lambda: load_data("cifar10", data_dir=root))


@pytest.mark.parametrize("kept", [40, 10_000])
def test_a_truncated_tar_is_refused(tmp_path: Path, kept: int) -> None:
    path = write_tar(write_binary(tmp_path / "binary"))
    path.write_bytes(path.read_bytes()[:kept])
    assert f"{path}: not a readable zip or tar" in refusal(lambda: load_data("cifar10", data_dir=path))


def test_a_missing_batch_is_named(tmp_path: Path) -> None:
    root = write_binary(tmp_path / "binary")
    (root / "data_batch_4.bin").unlink()
    message = refusal(lambda: load_data("cifar10", split="train", data_dir=root))
    assert "the split train is missing (no file data_batch_4" in message
    assert "train and test, not 'val'" in refusal(lambda: load_data("cifar10", split="val", data_dir=root))


# Batches that were saved anew


def saved(folder: Path, batch: Any, protocol: int = 4) -> Path:
    """Write a batch as the test split of CIFAR-10; return the folder."""
    folder.mkdir(exist_ok=True)
    (folder / "test_batch").write_bytes(pickle.dumps(batch, protocol))
    return folder


FORMS: dict[str, Callable[[Pixels, list[int]], Mapping[Any, Any]]] = {
    "bytes": lambda x, y: {b"data": x, b"labels": y},
    "text": lambda x, y: {"data": x, "labels": y},
    "labels-array": lambda x, y: {"data": x, "labels": np.array(y)},
    "labels-u1": lambda x, y: {"data": x, "labels": np.array(y, np.uint8)},
    "labels-scalars": lambda x, y: {"data": x, "labels": list(np.array(y))},
    "planes": lambda x, y: {"data": x.reshape(-1, 3, 32, 32), "labels": y},
    "fortran": lambda x, y: {"data": np.asfortranarray(x), "labels": y},
    "filenames": lambda x, y: {"data": x, "labels": y, "filenames": [b"a.png", "b.png"] * 10},
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("form", FORMS)
def test_a_batch_saved_anew_is_read(tmp_path: Path, form: str, protocol: int) -> None:
    pixels, labels = cifar_content(3)
    data = load_data("cifar10", data_dir=saved(tmp_path / "set", FORMS[form](pixels, labels), protocol))
    order = sorted(range(20), key=lambda i: (labels[:i].count(labels[i]), labels[i]))
    assert data.labels.tolist() == [labels[i] for i in order]
    assert np.array_equal(data.images, pixels[order].reshape(-1, 3, 32, 32))


def test_a_read_only_array_is_read_from_protocol_5(tmp_path: Path) -> None:
    pixels, labels = cifar_content(3)
    pixels.setflags(write=False)
    assert (
        load_data("cifar10", data_dir=saved(tmp_path / "set", {"data": pixels, "labels": labels}, 5)).total
        == 20
    )


def test_an_official_batch_is_read_within_its_limits(tmp_path: Path) -> None:
    """10 000 images with as many names take a second and no more than a third of the parts allowed."""
    rng = np.random.default_rng(0)
    batch = {
        b"data": rng.integers(0, 256, (2000, 3072), np.uint8), b"labels": [i % 10 for i in range(2000)],
        b"filenames": [f"picture_s_{i:06}.png".encode() for i in range(2000)],
    }  # fmt: skip
    content = python2_pickle(batch)
    counted = cifar._Counted(content)
    cifar.read_pickle(counted, builders=cifar._BUILDERS, persistent=cifar._persistent)
    used = cifar.MOST_READS - counted.left
    assert used * 5 < cifar.MOST_READS / 3
    (tmp_path / "test_batch").write_bytes(content)
    assert load_data("cifar10", data_dir=tmp_path).total == 2000


@pytest.mark.parametrize(
    "batch, said",
    [
        ({"data": np.zeros((2, 3072), np.float32), "labels": [1, 2]}, "an array of 'f4', expected u1 or i8"),
        ({"data": np.zeros((2, 3072), np.int64), "labels": [1, 2]}, "data is int64 [2, 3072]"),
        ({"data": np.zeros((2, 32, 32, 3), np.uint8), "labels": [1, 2]}, "data is uint8 [2, 32, 32, 3]"),
        ({"data": np.zeros(6144, np.uint8), "labels": [1, 2]}, "data is uint8 [6144]"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": np.zeros(2, ">i8")}, "expected u1 or i8"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": np.zeros(2, np.int32)}, "an array of 'i4'"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": np.zeros((2, 10), np.int64)}, "labels [2, 10]"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1, 2.5]}, "labels that are no whole numbers"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1, True]}, "labels that are no whole numbers"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1, 10**30]}, "not a CIFAR-10 batch"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1, -1]}, "a label from 0 to 9"),
        ({"data": np.zeros((0, 3072), np.uint8), "labels": []}, "a label from 0 to 9"),
        ({"data": np.array([None, "x"]), "labels": [1, 2]}, "an array of 'O8'"),
        ({"data": np.zeros(2, [("a", "u1"), ("b", "u1")]), "labels": [1, 2]}, "an array of 'V2'"),
        ({"data": np.zeros(2, np.dtype("u1", metadata={"a": 1})), "labels": [1, 2]}, "an array of 'u1'"),
        ({"data": [[0] * 3072] * 2, "labels": [1, 2]}, "list where an array is expected"),
        ({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [1, 2]}, "no labels in it"),
        ({"data": print, "labels": [1, 2]}, "it calls builtins.print"),
        (np.zeros((2, 3072), np.uint8), "numpy.ndarray where a dict is expected"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_no_batch_holds_is_refused_by_name(tmp_path: Path, batch: Any, said: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, that it drops a dtype's metadata
        folder = saved(tmp_path / "set", batch)
    message = refusal(lambda: load_data("cifar10", data_dir=folder))
    assert message.startswith(f"{tmp_path / 'set'}: test_batch: not a CIFAR-10 batch")
    assert said in message


# Pickles that were made to harm


class Made:
    """Pickles as a call of a function on arguments, with a state that is given to the result."""

    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def forged(dtype: Any, shape: Any = (1,), content: Any = b"A" * 8) -> dict[str, Any]:
    """Return a batch whose array has that dtype, shape and content."""
    from numpy._core.multiarray import _reconstruct

    array = Made(_reconstruct, (np.ndarray, (0,), b"b"), (1, shape, dtype, False, content))
    return {"data": array, "labels": [1]}


def dtype_of(code: str, state: Any) -> Made:
    return Made(np.dtype, (code, False, True), state)


OBJECTS = ("a",), {"a": (np.dtype("O"), 0)}  # a dtype's fields
U1 = (3, "|", None, None, None, -1, -1, 0)
HOSTILE: dict[str, Any] = {
    "objects without the flag that says so": forged(dtype_of("O8", U1)),
    "objects in a field": forged(dtype_of("V8", (3, "|", None, *OBJECTS, 8, 1, 0))),
    "u1 with fields of objects": forged(dtype_of("u1", (3, "|", None, *OBJECTS, 8, 1, 0))),
    "u1 with all flags": forged(dtype_of("u1", (3, "|", None, None, None, -1, -1, 63))),
    "u1 of eight bytes": forged(dtype_of("u1", (3, "|", None, None, None, 8, 8, 0))),
    "u1 of another version": forged(dtype_of("u1", (99, "|", None, None, None, -1, -1, 0))),
    "u1 without a state": forged(Made(np.dtype, ("u1", False, True))),
    "a sub-array": forged(dtype_of("V8", (3, "|", (np.dtype("O"), (1,)), None, None, 8, 1, 0))),
    "a dtype that is a number": forged(7),
    "a shape of terabytes": forged(dtype_of("u1", U1), (10**9, 3072)),
    "a shape that overflows": forged(dtype_of("i8", (3, "<", None, None, None, -1, -1, 0)), (2**62, 4), b""),
    "a negative shape": forged(dtype_of("u1", U1), (-8,)),
    "a shape of text": forged(dtype_of("u1", U1), ("8",)),
    "content that is a number": forged(dtype_of("u1", U1), (8,), 8),
    "content that is a list": forged(dtype_of("u1", U1), (1,), [1]),
    "an array of another class": {
        "data": Made(
            np._core.multiarray._reconstruct, (np.matrix, (0,), b"b"), (1, (1,), np.dtype("u1"), False, b"A")
        ),
        "labels": [1],
    },
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_forged_array_is_refused(tmp_path: Path, what: str) -> None:
    message = refusal(lambda: load_data("cifar10", data_dir=saved(tmp_path / "set", HOSTILE[what], 2)))
    assert message.startswith(f"{tmp_path / 'set'}: test_batch: not a CIFAR-10 batch")


# Loads every file it is given, and says how many were read and how many refused in one line.
LOADS = """
import sys
from pathlib import Path
from robustglimpse.data import load_data
from robustglimpse.records import UserError

read = refused = 0
for folder in Path(sys.argv[1]).iterdir():
    try:
        load_data("cifar10", data_dir=folder)
        read += 1
    except UserError as error:
        assert "\\n" not in str(error), str(error)
        refused += 1
print(read, refused)
"""


def test_no_damaged_batch_ends_the_process(tmp_path: Path) -> None:
    """A crash would be the process's: each file is read in another one."""
    pixels, labels = cifar_content(0)
    batch = {b"data": pixels[:2], b"labels": labels[:2]}
    whole = [python2_pickle(batch), *(pickle.dumps(batch, protocol) for protocol in range(6))]
    rng = random.Random(0)
    for i in range(300):
        content = bytearray(whole[i % len(whole)])
        for _ in range(rng.choice((1, 1, 2, 8))):
            # Where the pixels are, a change is no damage.
            at = rng.choice((rng.randrange(250), len(content) - 1 - rng.randrange(250)))
            content[at] = rng.choice((rng.randrange(256), ord(rng.choice("cRbiotK.]}(u\x81\x85\x93\x94"))))
        if i % 10 == 0:
            del content[rng.randrange(len(content)) :]
        (tmp_path / "damaged" / str(i)).mkdir(parents=True)
        (tmp_path / "damaged" / str(i) / "test_batch").write_bytes(content)
    for i, made in enumerate(HOSTILE.values()):
        saved(tmp_path / "damaged" / f"hostile {i}", made, 2)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LOADS, tmp_path / "damaged"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    read, refused = map(int, done.stdout.split())
    assert read + refused == 300 + len(HOSTILE)
    assert refused >= 100 + len(HOSTILE)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02" + b"]" * 300_000 + b".",
        b"\x80\x02]q\x00" + b"h\x00\x86" * 100_000 + b".",
        b"\x80\x04\x8b" + struct.pack("<i", 2_000_000) + b"\x7f" * 2_000_000 + b".",
        b"I" + b"9" * 1_000_000 + b"\n.",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",
        b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.",
        b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"}.",
        b"\x80\x02}q\x00(U\x04datah\x00u.",
        b"\x80\x02" + b"(" * 1000 + b"t" * 1000 + b".",
    ],
    ids=[
        "lists", "pairs of themselves", "a long number", "a number of digits", "bytes that are not there",
        "a buffer that is not there", "an empty frame", "a dict in itself", "tuples in tuples",
    ],
)  # fmt: skip
def test_bombs_are_refused_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(cifar._Counted, "left", cifar.MOST_READS // 10)
    (tmp_path / "test_batch").write_bytes(content)
    start = time.process_time()
    assert "test_batch: not a CIFAR-10 batch" in refusal(lambda: load_data("cifar10", data_dir=tmp_path))
    assert time.process_time() - start < 5


def test_a_batch_larger_than_any_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar, "MOST_BYTES", 3072)
    message = refusal(lambda: load_data("cifar10", data_dir=write_binary(tmp_path / "set")))
    assert "at most 0 are read" in message


# CIFAR-100


def fine_content(split: str) -> tuple[Pixels, list[int]]:
    """Return 200 made-up records: pixels [200,3072] and fine labels, two of each class, shuffled."""
    rng = np.random.default_rng(len(split))
    return rng.integers(0, 256, (200, 3072), np.uint8), rng.permutation(np.arange(200) % 100).tolist()


def write_hundred(folder: Path, *, binary: bool) -> Path:
    """Write the made-up set as CIFAR-100's binary or python batches."""
    folder.mkdir()
    names = list(CIFAR100_CLASSES)
    for split in ("train", "test"):
        pixels, fine = fine_content(split)
        coarse = [k % 20 for k in fine]
        if binary:
            records = np.concatenate([np.array([coarse, fine], np.uint8).T, pixels], 1)
            (folder / f"{split}.bin").write_bytes(records.tobytes())
            (folder / "fine_label_names.txt").write_text("\n".join(names) + "\n")
        else:
            batch = {
                b"fine_labels": fine,
                b"coarse_labels": coarse,
                b"data": pixels,
                b"filenames": [b"x"] * 200,
            }
            (folder / split).write_bytes(python2_pickle(batch))
            (folder / "meta").write_bytes(python2_pickle({b"fine_label_names": [n.encode() for n in names]}))
    return folder


def test_cifar100s_classes_are_the_fine_ones_in_alphabetical_order() -> None:
    assert len(set(CIFAR100_CLASSES)) == 100
    assert list(CIFAR100_CLASSES) == sorted(CIFAR100_CLASSES)
    assert (CIFAR100_CLASSES[0], CIFAR100_CLASSES[51], CIFAR100_CLASSES[99]) == ("apple", "mushroom", "worm")


@pytest.mark.parametrize("split", ["test", "train"])
def test_cifar100_is_the_same_from_all_its_forms(tmp_path: Path, split: str) -> None:
    binary = write_hundred(tmp_path / "binary", binary=True)
    pickles = write_hundred(tmp_path / "python", binary=False)
    prints = set()
    for source in binary, pickles, write_tar(binary), write_tar(pickles):
        data = load_data("cifar100", split=split, data_dir=source)
        prints.add(data.fingerprint)
        assert (data.name, data.split, data.classes, data.total) == ("cifar100", split, CIFAR100_CLASSES, 200)
    assert len(prints) == 1
    assert data.labels.tolist() == [*range(100)] * 2
    pixels, fine = fine_content(split)
    assert np.array_equal(data.images[7], pixels[fine.index(7)].reshape(3, 32, 32))


def test_a_folder_above_or_with_the_published_archive_is_read(tmp_path: Path) -> None:
    """As torchvision's root: the archive, and beside it the folder that it unpacks to."""
    folder = write_hundred(tmp_path / "cifar-100-python", binary=False)
    expected = load_data("cifar100", data_dir=folder).fingerprint
    assert load_data("cifar100", data_dir=tmp_path).fingerprint == expected
    (tmp_path / "packed").mkdir()
    write_tar(folder).rename(tmp_path / "packed" / "cifar-100-python.tar.gz")
    assert load_data("cifar100", data_dir=tmp_path / "packed").fingerprint == expected


@pytest.mark.parametrize("binary", [False, True])
def test_classes_in_another_order_are_refused(tmp_path: Path, binary: bool) -> None:
    folder = write_hundred(tmp_path / "set", binary=binary)
    names = [*reversed(CIFAR100_CLASSES)]
    if binary:
        (folder / "fine_label_names.txt").write_text("\n".join(names))
    else:
        (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}))
    message = refusal(lambda: load_data("cifar100", data_dir=folder))
    assert "names a class 'worm' where CIFAR-100 has 'apple'" in message


@pytest.mark.parametrize(
    "content", [b"", b"no pickle", pickle.dumps({"fine_label_names": 7}), pickle.dumps([])]
)
def test_a_damaged_meta_file_is_refused(tmp_path: Path, content: bytes) -> None:
    folder = write_hundred(tmp_path / "set", binary=False)
    (folder / "meta").write_bytes(content)
    assert "meta: not a CIFAR-100 batch" in refusal(lambda: load_data("cifar100", data_dir=folder))


def test_cifar10_in_another_order_is_refused(tmp_path: Path) -> None:
    folder = write_pickles(tmp_path / "set")
    (folder / "batches.meta").write_bytes(
        pickle.dumps({"label_names": sorted(CIFAR10_CLASSES, reverse=True)})
    )
    assert "names a class 'truck' where CIFAR-10 has 'airplane'" in refusal(
        lambda: load_data("cifar10", data_dir=folder)
    )


def test_two_forms_of_a_set_are_refused_and_two_sets_are_not(tmp_path: Path) -> None:
    write_pickles(tmp_path / "cifar-10-batches-py")
    write_hundred(tmp_path / "cifar-100-python", binary=False)
    assert load_data("cifar10", data_dir=tmp_path).total == 20
    assert load_data("cifar100", data_dir=tmp_path).total == 200
    write_hundred(tmp_path / "cifar-100-binary", binary=True)
    message = refusal(lambda: load_data("cifar100", data_dir=tmp_path))
    assert "both cifar-100-binary/test.bin and cifar-100-python/test are there" in message
    assert "give a folder that holds one form of the set" in message
    assert load_data("cifar10", data_dir=tmp_path).total == 20


def test_the_other_set_is_named(tmp_path: Path) -> None:
    ten = write_pickles(tmp_path / "ten")
    hundred = write_hundred(tmp_path / "hundred", binary=True)
    message = refusal(lambda: load_data("cifar100", data_dir=ten))
    assert "the split test is missing (no file test or .bin); it holds CIFAR-10: --data cifar10" in message
    assert "it holds CIFAR-100: --data cifar100" in refusal(lambda: load_data("cifar10", data_dir=hundred))
    assert "give --data-dir" in refusal(lambda: load_data("cifar100"))
    write_tar(hundred).rename(tmp_path / "cifar-100-binary.tar.gz")
    (tmp_path / "cifar-100-python.tar.gz").touch()
    shutil.rmtree(hundred)
    message = refusal(lambda: load_data("cifar100", data_dir=tmp_path))
    assert (
        "give one of its archives as --data-dir: cifar-100-binary.tar.gz, cifar-100-python.tar.gz" in message
    )


def test_batches_of_the_other_set_under_this_ones_names_are_refused(tmp_path: Path) -> None:
    ten, hundred = write_binary(tmp_path / "ten"), write_hundred(tmp_path / "hundred", binary=True)
    content = (ten / "test_batch.bin").read_bytes()
    (ten / "test_batch.bin").write_bytes((hundred / "test.bin").read_bytes())
    (hundred / "test.bin").write_bytes(content)
    assert "records of 3073 bytes" in refusal(lambda: load_data("cifar10", data_dir=ten))
    assert "records of 3074 bytes" in refusal(lambda: load_data("cifar100", data_dir=hundred))
