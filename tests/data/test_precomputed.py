"""Sets that others saved corrupted: classes by name, pixels as they are, one line for what is broken."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from colours import colour_classifier, offer, save_colours
from numpy.typing import NDArray
from PIL import Image

from robustglimpse.corruptions import names
from robustglimpse.data import load_data
from robustglimpse.data.cifar import CIFAR10_CLASSES, CIFAR100_CLASSES
from robustglimpse.data.precomputed import ARCHIVES, find_cell, load_cell
from robustglimpse.records import RESULT_COLUMNS, Classifier, UserError
from robustglimpse.report.table2 import table2
from robustglimpse.store import Store, read_results
from robustglimpse.sweep import Sweep, correctness, sweep_corruptions

Pixels = NDArray[np.uint8]
KNOWN = ("n03", "n01", "n02")  # a model's classes, in its own order
STRANGE = ("n00", "n005", "n015", "n025", "n035", "n04")  # what stands around them in a folder


def refusal(call: Callable[[], object]) -> str:
    """Return the message of the UserError that the call raises, which must be one line."""
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def save_cell(root: Path, cell: str, classes: tuple[str, ...], count: int = 2, size_px: int = 32) -> Path:
    """Write a cell of images that are exact behind their .JPEG names; return its folder."""
    seed = sum(map(ord, cell))
    save_colours(root / cell, classes, count=count, size_px=size_px, name="{}.JPEG", seed=seed)
    return root / cell


def pixels_of(path: Path) -> Pixels:
    return np.asarray(Image.open(path).convert("RGB"))


def whose(folder: Path, image: NDArray[np.uint8]) -> str:
    """Return the class folder that holds the image [3,H,W]."""
    found = [p for p in folder.glob("*/*") if np.array_equal(pixels_of(p), image.transpose(1, 2, 0))]
    assert len(found) == 1
    return found[0].parent.name


# The layout


@pytest.mark.parametrize("archive", ARCHIVES)
def test_cells_are_found_flat_and_in_the_published_archives(tmp_path: Path, archive: str) -> None:
    folder = save_cell(tmp_path / archive, "fog/3", KNOWN)
    assert find_cell("imagenet-c", tmp_path, "fog", 3) == folder
    data = load_data("imagenet-c", split="fog/3", data_dir=tmp_path, size_px=32)
    save_cell(tmp_path / "flat", "fog/3", KNOWN)
    flat = load_data("imagenet-c", split="fog/3", data_dir=tmp_path / "flat", size_px=32)
    assert data.fingerprint == flat.fingerprint
    assert (data.name, data.split, data.total) == ("imagenet-c", "fog/3", 6)


def test_a_cell_of_another_severity_or_corruption_is_other_images(tmp_path: Path) -> None:
    cells = ("fog/1", "fog/2", "snow/1")
    for cell in cells:
        save_cell(tmp_path, cell, KNOWN)
    prints = {
        load_data("imagenet-c", split=cell, data_dir=tmp_path, size_px=32).fingerprint for cell in cells
    }
    assert len(prints) == 3


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    save_cell(tmp_path, "fog/3", KNOWN)
    (tmp_path / "blur" / "snow").mkdir(parents=True)
    (tmp_path / "blur" / "snow" / "3").write_text("a file where a folder should be")
    for cell in ("fog/4", "snow/3"):
        message = refusal(lambda cell=cell: load_data("imagenet-c", split=cell, data_dir=tmp_path))  # type: ignore[misc]
        assert f"{tmp_path}: {cell} is missing" in message
    assert "--data-dir" in refusal(lambda: load_data("imagenet-c", split="fog/3"))
    assert f"{tmp_path / 'no'}: no such folder" in refusal(
        lambda: load_data("imagenet-c", split="fog/3", data_dir=tmp_path / "no")
    )


def test_one_cell_must_be_named(tmp_path: Path) -> None:
    for split in (None, "", "fog", "fog/", "fog/three", "val"):
        message = refusal(lambda split=split: load_data("imagenet-c", split=split, data_dir=tmp_path))  # type: ignore[misc]
        assert "--split fog/3" in message
        assert "robustglimpse corruptions" in message


def test_a_cell_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "fog" / "3" / "n01").mkdir(parents=True)
    message = refusal(lambda: load_data("imagenet-c", split="fog/3", data_dir=tmp_path))
    assert str(tmp_path / "fog" / "3") in message
    assert "found no image" in message


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    (save_cell(tmp_path, "fog/3", KNOWN) / "n02" / "1.JPEG").write_text("no image")
    message = refusal(lambda: load_data("imagenet-c", split="fog/3", data_dir=tmp_path, size_px=32))
    assert "n02/1.JPEG is not an image" in message


# Classes


def test_classes_are_told_by_name(tmp_path: Path) -> None:
    folder = save_cell(tmp_path, "fog/3", KNOWN, count=3)
    data, left_out = load_cell("imagenet-c", corruption="fog", severity=3, data_dir=tmp_path, known=KNOWN)
    assert left_out == ()
    assert data.labels.tolist() == [0, 1, 2] * 3
    assert [whose(folder, image) for image in data.images] == [data.classes[k] for k in data.labels]


def test_a_folder_of_more_classes_gives_the_same_labels(tmp_path: Path) -> None:
    # Zenodo's frost holds 1000 classes, the other cells of Tiny-ImageNet-C 200.
    folder = save_cell(tmp_path, "frost/3", (*STRANGE, *KNOWN), count=3)
    data, left_out = load_cell(
        "tiny-imagenet-c", corruption="frost", severity=3, data_dir=tmp_path, known=KNOWN, size_px=32
    )
    assert left_out == tuple(sorted(STRANGE))
    assert data.classes == tuple(sorted(KNOWN))
    assert data.total == len(data.images) == 9
    assert [whose(folder, image) for image in data.images] == [data.classes[k] for k in data.labels]
    assert data.labels.tolist() == [0, 1, 2] * 3


def test_a_limit_counts_only_what_is_kept(tmp_path: Path) -> None:
    save_cell(tmp_path, "frost/3", (*STRANGE, *KNOWN), count=3)
    options: dict[str, Any] = {"corruption": "frost", "severity": 3, "data_dir": tmp_path, "known": KNOWN}
    whole, _ = load_cell("imagenet-c", **options)
    some, _ = load_cell("imagenet-c", **options, limit=4)
    assert some.labels.tolist() == [0, 1, 2, 0]
    assert np.array_equal(some.images, whole.images[:4])
    assert some.total == 9


def test_a_folder_of_unknown_classes_is_refused(tmp_path: Path) -> None:
    save_cell(tmp_path, "fog/3", STRANGE)
    message = refusal(
        lambda: load_cell("imagenet-c", corruption="fog", severity=3, data_dir=tmp_path, known=KNOWN)
    )
    assert "knows none of its 6 classes (the first is 'n00')" in message
    assert "by wnid" in message


# Pixels


@pytest.mark.parametrize("width, height", [(32, 32), (40, 36), (33, 32), (31, 61), (224, 224)])
def test_images_are_prepared_as_clean_ones_are(tmp_path: Path, width: int, height: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    (tmp_path / "fog" / "1" / "n01").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "fog" / "1" / "n01" / "a.JPEG", "PNG")
    data = load_data("imagenet-c", split="fog/1", data_dir=tmp_path, size_px=32)
    clean = load_data(f"imagefolder:{tmp_path / 'fog' / '1'}", size_px=32)
    assert np.array_equal(data.images, clean.images)
    assert data.preparation == clean.preparation
    if (width, height) == (32, 32):
        assert np.array_equal(data.images[0].transpose(1, 2, 0), pixels)
        assert (data.preparation, data.notes) == ("as stored", ())
    else:
        assert data.preparation == "resize 37 crop 32"
        assert "resized to 37 px (shorter side) and cropped to 32 px" in data.notes[0]
        assert any("enlarged" in note for note in data.notes) == (min(width, height) < 37)


def test_size_0_takes_images_as_they_are_stored(tmp_path: Path) -> None:
    save_cell(tmp_path, "fog/1", ("n01",), size_px=40)
    data = load_data("imagenet-c", split="fog/1", data_dir=tmp_path, size_px=0)
    assert (data.images.shape[2:], data.preparation) == ((40, 40), "as stored")


def test_jpeg_files_are_decoded_as_pillow_does(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    path = tmp_path / "fog" / "1" / "n01" / "a.JPEG"
    path.parent.mkdir(parents=True)
    Image.fromarray(pixels).save(path, "JPEG", quality=85)
    data = load_data("imagenet-c", split="fog/1", data_dir=tmp_path, size_px=32)
    assert np.array_equal(data.images[0].transpose(1, 2, 0), pixels_of(path))


@pytest.mark.parametrize("name, size_px", [("imagenet-c", 224), ("tiny-imagenet-c", 64)])
def test_a_set_has_the_size_it_was_published_in(tmp_path: Path, name: str, size_px: int) -> None:
    save_cell(tmp_path, "fog/1", ("n01",), count=1, size_px=size_px + 2)
    assert load_data(name, split="fog/1", data_dir=tmp_path).images.shape == (1, 3, size_px, size_px)


def test_a_second_call_reads_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_cell(tmp_path, "fog/1", (*STRANGE, *KNOWN))
    options: dict[str, Any] = {"corruption": "fog", "severity": 1, "data_dir": tmp_path, "size_px": 32}
    first, _ = load_cell("imagenet-c", **options, known=KNOWN)
    monkeypatch.delattr("robustglimpse.data.images.open_image")
    assert load_cell("imagenet-c", **options, known=KNOWN)[0].fingerprint == first.fingerprint
    with pytest.raises(NameError):  # other classes are other images
        load_cell("imagenet-c", **options, known=STRANGE)


# CIFAR-10-C

N = 20


def cifar_set(root: Path, *, labels: int = N) -> tuple[Pixels, NDArray[np.int64]]:
    """Write fog.npy and labels.npy; return the images [5N,32,32,3] and labels [N]."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (5 * N, 32, 32, 3), np.uint8)
    truth = rng.permutation(np.arange(N) % 10)
    root.mkdir(parents=True, exist_ok=True)
    np.save(root / "fog.npy", images)
    np.save(root / "labels.npy", np.tile(truth, labels // N).astype(np.uint8))
    return images, truth


@pytest.mark.parametrize("labels", [N, 5 * N])
@pytest.mark.parametrize("severity", [1, 4, 5])
def test_severities_lie_one_after_the_other(tmp_path: Path, severity: int, labels: int) -> None:
    images, truth = cifar_set(tmp_path, labels=labels)
    data = load_data("cifar10-c", split=f"fog/{severity}", data_dir=tmp_path)
    assert data.classes == CIFAR10_CLASSES
    assert data.labels.tolist() == list(range(10)) * 2
    assert (data.total, data.images.shape) == (N, (N, 3, 32, 32))
    fifth = images[(severity - 1) * N : severity * N]
    order = [np.flatnonzero(truth == k)[turn] for turn in (0, 1) for k in range(10)]
    for image, i in zip(data.images, order, strict=True):
        assert np.array_equal(image.transpose(1, 2, 0), fifth[i])
    some = load_data("cifar10-c", split=f"fog/{severity}", data_dir=tmp_path, limit=7)
    assert np.array_equal(some.images, data.images[:7])
    assert (len(some.labels), some.total) == (7, N)


def test_labels_that_differ_between_severities_are_refused(tmp_path: Path) -> None:
    cifar_set(tmp_path)
    np.save(tmp_path / "labels.npy", np.random.default_rng(2).permutation(np.repeat(np.arange(10), N // 2)))
    message = refusal(lambda: load_data("cifar10-c", split="fog/3", data_dir=tmp_path))
    assert "its labels.npy differs between the five severities" in message
    assert f"are these {5 * N} images of a single severity?" in message


@pytest.mark.parametrize(
    "severities, per_severity, labels, said",
    [
        (1, N, N, "differs between the five severities"),
        (1, N, 5 * N, "100 labels for 20 images"),
        (3, N, N, "20 labels for 60 images (3 severities?), which are read as five severities of 12"),
        (3, N, 5 * N, "100 labels for 60 images"),
        (5, N // 2, N, "20 labels for 50 images"),
        (5, N // 2, 5 * N, "100 labels for 50 images, which are read as five severities of 10"),
        (4, N, N, "(4 severities?)"),
        (10, N, N, "(10 severities?)"),
    ],
    ids=str,
)
def test_images_and_labels_that_do_not_belong_together_are_refused(
    tmp_path: Path, severities: int, per_severity: int, labels: int, said: str
) -> None:
    """Of a single severity, or others than five, or cut in each severity."""
    images, _ = cifar_set(tmp_path, labels=labels)
    cut = images.reshape(5, N, 32, 32, 3)[:, :per_severity]
    np.save(tmp_path / "fog.npy", np.concatenate([cut, cut])[:severities].reshape(-1, 32, 32, 3))
    assert said in refusal(lambda: load_data("cifar10-c", split="fog/1", data_dir=tmp_path))


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((5 * N, 32, 32, 3), np.float32),
        np.zeros((5 * N, 3, 32, 32), np.uint8),
        np.zeros((5 * N + 1, 32, 32, 3), np.uint8),
        np.zeros((5 * N, 32, 32), np.uint8),
    ],
    ids=["float", "channels-first", "no-fifths", "grey"],
)
def test_an_array_of_another_kind_is_refused(tmp_path: Path, images: NDArray[Any]) -> None:
    cifar_set(tmp_path)
    np.save(tmp_path / "fog.npy", images)
    message = refusal(lambda: load_data("cifar10-c", split="fog/1", data_dir=tmp_path))
    assert f"{tmp_path / 'fog.npy'}: expected u8 [5N,32,32,3], got {images.dtype}" in message
    assert str(list(images.shape)) in message


@pytest.mark.parametrize(
    "labels",
    [
        np.zeros(N - 1, np.int64),
        np.zeros(5 * N - 1, np.int64),
        np.full(N, 10),
        np.full(N, -1),
        np.array(["cat"] * N),
        np.array([None] * N),
        np.zeros((N, 2), np.int64),
        np.eye(10, dtype=np.uint8)[np.arange(N) % 10],
        np.full(N, np.nan),
        np.arange(N) % 10 / 1.0,
        np.full(N, 2**63, np.uint64),
        np.full(N, -(2**63)),
        np.zeros(N, bool),
        np.zeros((), np.int64),
        np.zeros(0, np.int64),
        np.zeros(N, [("label", "u1")]),
    ],
    ids=[
        "fewer",
        "not-five-times",
        "eleventh",
        "negative",
        "words",
        "objects",
        "column",
        "one-hot",
        "nan",
        "floats",
        "huge",
        "most-negative",
        "booleans",
        "one",
        "none",
        "records",
    ],
)
def test_labels_of_another_kind_are_refused(tmp_path: Path, labels: NDArray[Any]) -> None:
    cifar_set(tmp_path)
    np.save(tmp_path / "labels.npy", labels, allow_pickle=True)
    message = refusal(lambda: load_data("cifar10-c", split="fog/5", data_dir=tmp_path))
    assert f"{tmp_path / 'fog.npy'}" in message
    assert "labels.npy" in message


@pytest.mark.parametrize("kept", [0, 3, 100, 50_000])
def test_an_array_cut_short_is_refused(tmp_path: Path, kept: int) -> None:
    cifar_set(tmp_path)
    content = (tmp_path / "fog.npy").read_bytes()
    (tmp_path / "fog.npy").write_bytes(content[:kept])
    message = refusal(lambda: load_data("cifar10-c", split="fog/1", data_dir=tmp_path))
    assert f"{tmp_path / 'fog.npy'}: cannot be read" in message


def npy(header: str, content: bytes = b"") -> bytes:
    """Return a .npy file of that header, which need not fit its content."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + content


@pytest.mark.parametrize("file", ["fog.npy", "labels.npy"])
@pytest.mark.parametrize(
    "content, said",
    [
        (npy("{'descr': '|u1', 'fortran_order': False, 'shape': (10**12,)}"), "cannot be read"),
        (npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 32, 32, 3)}", b"a"),
         "its header promises 3072000000000000 bytes of uint8 [1000000000000, 32, 32, 3], and 1 follow"),
        (npy("{'descr': '<i8', 'fortran_order': False, 'shape': (9223372036854775807, 9223372036854775807)}"),
         "and 0 follow"),
        (npy("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, -4)}", b"abcd"), "promises 4 bytes"),
        (npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"cos\nsystem\n."), "not unpickled"),
        (npy("{'descr': [('a', '|O'), ('b', '|u1')], 'fortran_order': False, 'shape': (1,)}", b"123456789"),
         "not unpickled"),
        (npy("{'descr': '|u1', 'fortran_order': False, 'shape': (2,)}", b"123"), "promises 2 bytes"),
        (npy("{'descr': '|u1', 'fortran_order': False, 'shape': (0, 32, 32, 3)}"), "it is empty, [0, "),
        (npy("{" * 500), "cannot be read"),
        (npy("no header"), "cannot be read"),
        (npy("{'descr': 7, 'fortran_order': 'maybe', 'shape': 'none'}"), "cannot be read"),
        (b"\x93NUMPY\x07\x00", "version (7, 0) of the format"),
        (b"PK\x03\x04 and more", "an .npz of several arrays"),
        (pickle.dumps([1, 2]), "cannot be read"),
        (b"<!DOCTYPE html>", "cannot be read"),
    ],
    ids=[
        "expression", "terabytes", "overflow", "negative", "objects", "objects in records", "longer", "empty",
        "deep", "text", "other types", "version", "npz", "pickle", "page",
    ],
)  # fmt: skip
def test_a_file_that_is_no_array_is_refused_in_a_line(
    tmp_path: Path, file: str, content: bytes, said: str
) -> None:
    cifar_set(tmp_path)
    (tmp_path / file).write_bytes(content)
    message = refusal(lambda: load_data("cifar10-c", split="fog/1", data_dir=tmp_path))
    assert f"{tmp_path / 'fog.npy'}" in message
    assert said in message
    assert ("labels.npy" in message) == (file == "labels.npy")


def test_an_npz_under_the_name_of_an_array_is_refused(tmp_path: Path) -> None:
    images, _ = cifar_set(tmp_path)
    np.savez(tmp_path / "fog.npz", images=images)
    (tmp_path / "fog.npz").rename(tmp_path / "fog.npy")
    assert "an .npz of several arrays" in refusal(
        lambda: load_data("cifar10-c", split="fog/1", data_dir=tmp_path)
    )


def test_damaged_headers_are_refused_in_a_line(tmp_path: Path) -> None:
    """Whatever byte of a header is changed: the same array, or one line."""
    cifar_set(tmp_path)
    whole = (tmp_path / "labels.npy").read_bytes()
    rng = random.Random(0)
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(rng.choice((1, 2, 5))):
            content[rng.randrange(80)] = rng.choice((rng.randrange(256), ord(rng.choice("(){}[],'\\9-Oi"))))
        (tmp_path / "labels.npy").write_bytes(content)
        try:
            load_data("cifar10-c", split="fog/1", data_dir=tmp_path)
        except UserError as error:
            assert "\n" not in str(error)


def test_arrays_in_fortran_order_and_of_the_other_byte_order_are_read(tmp_path: Path) -> None:
    images, truth = cifar_set(tmp_path)
    expected = load_data("cifar10-c", split="fog/2", data_dir=tmp_path).fingerprint
    np.save(tmp_path / "fog.npy", np.asfortranarray(images))
    np.save(tmp_path / "labels.npy", truth.astype(">u2"))
    assert load_data("cifar10-c", split="fog/2", data_dir=tmp_path).fingerprint == expected


def test_labels_are_no_pipe(tmp_path: Path) -> None:
    cifar_set(tmp_path)
    (tmp_path / "labels.npy").unlink()
    os.mkfifo(tmp_path / "labels.npy")
    assert "labels.npy is missing" in refusal(
        lambda: load_data("cifar10-c", split="fog/1", data_dir=tmp_path)
    )


def test_cifar100_c_has_its_fine_classes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images, truth = rng.integers(0, 256, (500, 32, 32, 3), np.uint8), rng.permutation(100)
    np.save(tmp_path / "fog.npy", images)
    np.save(tmp_path / "labels.npy", np.tile(truth, 5))
    data = load_data("cifar100-c", split="fog/4", data_dir=tmp_path)
    assert (data.name, data.classes, data.labels.tolist()) == ("cifar100-c", CIFAR100_CLASSES, [*range(100)])
    expected = images[300 + int(np.flatnonzero(truth == 42)[0])]
    assert np.array_equal(data.images[42].transpose(1, 2, 0), expected)
    assert "from 0 to 9 for each of 100 images, got 0 to 99" in refusal(
        lambda: load_data("cifar10-c", split="fog/4", data_dir=tmp_path)
    )


def test_ten_labels_of_a_hundred_are_told(tmp_path: Path) -> None:
    cifar_set(tmp_path)
    data = load_data("cifar100-c", split="fog/4", data_dir=tmp_path)
    assert "no label is above 9; is this CIFAR-10-C (cifar10-c)?" in data.notes[0]


def test_an_array_or_its_labels_that_are_missing_are_named(tmp_path: Path) -> None:
    cifar_set(tmp_path)
    message = refusal(lambda: load_data("cifar10-c", split="snow/1", data_dir=tmp_path))
    assert f"{tmp_path}: snow.npy is missing" in message
    (tmp_path / "labels.npy").unlink()
    assert "labels.npy" in refusal(lambda: load_data("cifar10-c", split="fog/1", data_dir=tmp_path))


@pytest.mark.parametrize("severity", [0, 6])
def test_a_severity_that_there_is_not_is_refused(tmp_path: Path, severity: int) -> None:
    cifar_set(tmp_path)
    assert "severity" in refusal(lambda: load_data("cifar10-c", split=f"fog/{severity}", data_dir=tmp_path))


# Sweeps over them


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """A sweep over a set whose frost holds three times as many classes as the rest and the model."""
    for severity in (1, 3):
        save_cell(tmp_path / "set", f"weather/fog/{severity}", KNOWN, count=8)
        save_cell(tmp_path / "set", f"weather/frost/{severity}", (*STRANGE, *KNOWN), count=8)
    offer(monkeypatch, colour_classifier(KNOWN), colour_classifier(("n02", "n01", "n03"), name="other"))
    return Sweep(
        ("colours", "other"), corruptions=("frost", "fog"), severities=(1, 3), batch_size=5,
        data="imagenet-c", data_dir=tmp_path / "set", device="cpu",
    )  # fmt: skip


def directly_right(classifier: Classifier, folder: Path, exit_number: int) -> int:
    """Return how many images of a cell's known classes the exit names, each looked at by itself."""
    right = 0
    for path in (p for wnid in classifier.classes for p in (folder / wnid).iterdir()):
        x = torch.from_numpy(pixels_of(path).transpose(2, 0, 1).copy())[None].float() / 255
        right += classifier.classes[int(classifier.exits(x)[exit_number - 1].argmax())] == path.parent.name
    return right


def test_a_sweep_scores_what_a_direct_computation_scores(
    asked: Sweep, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    frame = sweep_corruptions(asked, tmp_path / "run", command="test")
    assert tuple(frame.columns) == RESULT_COLUMNS
    assert set(frame["status"]) == {"ok"}
    assert len(frame) == 2 * 2 * 2 * 2
    assert set(frame["kind"]) == {"corruption"}, "there is no clean cell"
    models = {"colours": colour_classifier(KNOWN), "other": colour_classifier(("n02", "n01", "n03"))}
    for row in frame.to_dict("records"):
        folder = tmp_path / "set" / "weather" / row["corruption"] / str(row["severity"])
        assert row["correct"] == directly_right(models[row["model"]], folder, row["exit"])
        assert (row["total"], row["n_total"], row["classes"]) == (24, 24, 3)
        assert (row["preset"], row["store"], row["texture"]) == (0, "as saved", "")
        assert (row["dataset"], row["split"]) == ("imagenet-c", f"{row['corruption']}/{row['severity']}")
    # By rank instead of by name the frost would be guesswork; some are wrong, so that it can be seen.
    last = frame[frame["exit"] == 2]
    assert last["accuracy"].between(0.5, 0.99).all()
    assert len(correctness(frame, Store(tmp_path / "run")).columns) == 24
    err = capfd.readouterr().err
    assert "imagenet-c frost/1: 6 of its classes are not colours's (n00, ...)" in err
    assert err.count("their images are left out") == 4
    assert "fog" not in err


def test_outcomes_of_saved_cells_know_no_clean_image(asked: Sweep, tmp_path: Path) -> None:
    frame = sweep_corruptions(asked, tmp_path / "run", command="test")
    for key in set(frame["cell"]):
        found = Store(tmp_path / "run").outcomes(key)
        assert set(found["clean_pred"]) == {-1}
        assert found["linf"].isna().all()
        assert found["l2"].isna().all()
        is_right = found["pred"] == found["label"]
        assert (found["first_success_step"] == np.where(is_right, -1, 1)).all()


def test_a_saved_cell_that_is_done_stays_done_until_its_files_change(asked: Sweep, tmp_path: Path) -> None:
    out = tmp_path / "run"
    sweep_corruptions(asked, out, command="test")
    before = {path.name: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}
    sweep_corruptions(asked, out, command="test")
    assert before == {path.name: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}
    save_colours(tmp_path / "set/weather/fog/1", KNOWN, count=8, name="{}.JPEG", seed=99)
    sweep_corruptions(asked, out, command="test")
    changed = {p.stem for p in (out / "cells").iterdir() if p.stat().st_mtime_ns != before[p.name]}
    frame = read_results(out)
    assert changed == set(frame[(frame["corruption"] == "fog") & (frame["severity"] == 1)]["cell"])


def test_a_missing_cell_is_refused_before_anything_is_run(asked: Sweep, tmp_path: Path) -> None:
    wider = replace(asked, severities=(1, 2, 3))
    message = refusal(lambda: sweep_corruptions(wider, tmp_path / "run"))
    assert "frost/2 is missing" in message
    assert "--severity" in message
    assert not (tmp_path / "run").exists()


def test_a_cifar_sweep_reads_its_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, truth = cifar_set(tmp_path / "set")
    classes = tuple(reversed(CIFAR10_CLASSES))
    classifier = colour_classifier(classes)
    offer(monkeypatch, classifier)
    asked = Sweep(
        ("colours",), corruptions=("fog",), severities=(2, 5), data="cifar10-c", data_dir=tmp_path / "set"
    )
    frame = sweep_corruptions(asked, tmp_path / "run").set_index(["severity", "exit"])
    for severity in (2, 5):
        fifth = images[(severity - 1) * N : severity * N].transpose(0, 3, 1, 2)
        pred = classifier.exits(torch.from_numpy(fifth.copy()) / 255).argmax(2)
        for exit_number in (1, 2):
            named = [classes[k] for k in pred[exit_number - 1]]
            right = sum(name == CIFAR10_CLASSES[k] for name, k in zip(named, truth, strict=True))
            assert frame.loc[(severity, exit_number), "correct"] == right


@pytest.mark.parametrize("change", [{"batch_size": 0}, {"limit": 0}, {"limit": -1}], ids=str)
def test_counts_below_one_are_refused_for_saved_sets_too(
    asked: Sweep, tmp_path: Path, change: dict[str, Any]
) -> None:
    assert "must be at least 1" in refusal(
        lambda: sweep_corruptions(replace(asked, **change), tmp_path / "run")
    )
    assert not (tmp_path / "run").exists()


def test_a_model_that_only_numbers_its_classes_takes_as_many_in_order(
    asked: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbered = replace(colour_classifier(sorted(KNOWN)), classes=("0", "1", "2"))
    named = colour_classifier(sorted(KNOWN), name="named")
    offer(monkeypatch, numbered, named)
    fog = replace(asked, models=("colours", "named"), corruptions=("fog",))
    frame = sweep_corruptions(fog, tmp_path / "run")
    found = {m: rows["correct"].tolist() for m, rows in frame.groupby("model")}
    assert found["colours"] == found["named"]


# Cells of one mean


def saved_sweep(root: Path, *corruptions: str, severities: tuple[int, ...] = (1, 2)) -> Sweep:
    return Sweep(
        ("colours",), corruptions=corruptions, severities=severities, data="imagenet-c", data_dir=root,
        device="cpu",
    )  # fmt: skip


@pytest.mark.parametrize("lacking", ["fog/1", "fog/2", "snow/2"])
def test_a_cell_with_fewer_images_than_the_others_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    for cell in ("fog/1", "fog/2", "snow/1", "snow/2"):
        save_cell(tmp_path / "set", cell, KNOWN, count=4)
    (tmp_path / "set" / lacking / "n02" / "2.JPEG").unlink()
    offer(monkeypatch, colour_classifier(KNOWN))
    message = refusal(
        lambda: sweep_corruptions(saved_sweep(tmp_path / "set", "fog", "snow"), tmp_path / "run")
    )
    assert f"imagenet-c: {lacking} has 11 images where " in message
    assert "has 12, for example n02/2 is missing" in message
    assert "leave it out with --corruption and --severity" in message
    assert not (tmp_path / "run").exists()


def test_cells_of_as_many_other_images_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cell in ("fog/1", "fog/2"):
        save_cell(tmp_path / "set", cell, KNOWN)
    (tmp_path / "set/fog/2/n01/1.JPEG").rename(tmp_path / "set/fog/2/n01/7.JPEG")
    offer(monkeypatch, colour_classifier(KNOWN))
    message = refusal(lambda: sweep_corruptions(saved_sweep(tmp_path / "set", "fog"), tmp_path / "run"))
    assert "fog/1 has 6 images where fog/2 has 6, for example n01/7 is missing" in message


def test_an_image_in_another_class_is_another_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cell in ("fog/1", "fog/2"):
        save_cell(tmp_path / "set", cell, KNOWN)
    (tmp_path / "set/fog/2/n01/1.JPEG").rename(tmp_path / "set/fog/2/n02/9.JPEG")
    (tmp_path / "set/fog/1/n01/1.JPEG").rename(tmp_path / "set/fog/1/n01/9.JPEG")
    offer(monkeypatch, colour_classifier(KNOWN))
    message = refusal(lambda: sweep_corruptions(saved_sweep(tmp_path / "set", "fog"), tmp_path / "run"))
    assert "for example n02/9 is missing" in message


def test_other_endings_are_the_same_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cell in ("fog/1", "fog/2"):
        save_cell(tmp_path / "set", cell, KNOWN)
    for path in (tmp_path / "set" / "fog" / "2").glob("*/*.JPEG"):
        path.rename(path.with_suffix(".png"))
    offer(monkeypatch, colour_classifier(KNOWN))
    frame = sweep_corruptions(saved_sweep(tmp_path / "set", "fog"), tmp_path / "run")
    assert set(frame["total"]) == {6}


def test_only_images_of_known_classes_must_be_alike(
    asked: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frost of more classes goes with a fog of the model's, but not for a model that knows the others."""
    sweep_corruptions(replace(asked, models=("colours",)), tmp_path / "run")
    offer(monkeypatch, colour_classifier(KNOWN), colour_classifier((*KNOWN, *STRANGE), name="wide"))
    message = refusal(
        lambda: sweep_corruptions(replace(asked, models=("colours", "wide")), tmp_path / "other")
    )
    assert "has 24 images where frost/1 has 72" in message


def test_cells_of_several_sizes_are_told_of_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    save_cell(tmp_path / "set", "fog/1", KNOWN, size_px=32)
    save_cell(tmp_path / "set", "fog/2", KNOWN, size_px=40)
    offer(monkeypatch, colour_classifier(KNOWN))
    asked = saved_sweep(tmp_path / "set", "fog")
    frame = sweep_corruptions(asked, tmp_path / "run")
    assert frame.groupby("severity")["preparation"].first().tolist() == ["as stored", "resize 37 crop 32"]
    assert (
        "imagenet-c: images of fog/2 are prepared otherwise than those of fog/1 (resize 37 crop 32; as "
        "stored), and one mean holds both"
    ) in capfd.readouterr().err
    message = refusal(lambda: sweep_corruptions(replace(asked, size_px=0), tmp_path / "other"))
    assert "images of fog/2 are 40 x 40 px, those of fog/1 32 x 32 px" in message


# Corruptions of a set's own


def test_a_set_takes_its_own_corruption_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cell in ("near_focus/1", "near_focus/2", "fog_3d/1", "fog_3d/2"):
        save_cell(tmp_path / "set", cell, KNOWN)
    offer(monkeypatch, colour_classifier(KNOWN))
    frame = sweep_corruptions(saved_sweep(tmp_path / "set", "near_focus"), tmp_path / "run")
    assert set(frame["corruption"]) == {"near_focus"}
    table = table2(frame, correctness(frame, Store(tmp_path / "run")))
    assert table.corruptions == ["near_focus"]
    last = frame[frame["exit"] == 2]
    assert table.values["average"].iloc[1] == pytest.approx(last["accuracy"].mean())


def test_without_names_all_that_is_there_is_taken_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("snow", "fog", "flash"):
        save_cell(tmp_path / "set" / "weather", f"{name}/1", KNOWN)
    offer(monkeypatch, colour_classifier(KNOWN))
    frame = sweep_corruptions(saved_sweep(tmp_path / "set", severities=(1,)), tmp_path / "run")
    assert set(frame["corruption"]) == {"snow", "fog", "flash"}
    assert (
        "imagenet-c: it holds 2 of the 15 corruptions of the paper, so all that is there is taken: snow, "
        "fog, flash"
    ) in capfd.readouterr().err


def test_the_paper_s_15_are_taken_where_they_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in (*names(extras=True), "flash"):
        save_cell(tmp_path / "set", f"{name}/1", ("n01",), count=1)
    offer(monkeypatch, colour_classifier(KNOWN))
    asked = saved_sweep(tmp_path / "set", severities=(1,))
    assert set(sweep_corruptions(asked, tmp_path / "run")["corruption"]) == set(names())
    assert "flash are left out, name them with --corruption" in capfd.readouterr().err
    frame = sweep_corruptions(replace(asked, extras=True), tmp_path / "run")
    assert set(frame["corruption"]) == set(names(extras=True))


@pytest.mark.parametrize("name", ["nearfocus", "Near_Focus", "../set/near_focus", "near_focus/1", "", ".."])
def test_an_unknown_name_is_refused_with_those_that_are_there(tmp_path: Path, name: str) -> None:
    for cell in ("near_focus/1", "flash/1"):
        save_cell(tmp_path / "set", cell, KNOWN)
    message = refusal(lambda: find_cell("imagenet-c", tmp_path / "set", name, 1))
    assert f"{name}/1 is missing" in message
    assert "it holds flash, near_focus" in message
    assert ("did you mean 'near_focus'?" in message) == (len(name) > 2)


def test_arrays_may_have_names_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar_set(tmp_path / "set")
    (tmp_path / "set" / "fog.npy").rename(tmp_path / "set" / "checkerboard_cutout.npy")
    offer(monkeypatch, colour_classifier(CIFAR10_CLASSES))
    asked = Sweep(("colours",), severities=(2,), data="cifar10-c", data_dir=tmp_path / "set", device="cpu")
    frame = sweep_corruptions(asked, tmp_path / "run")
    assert set(frame["corruption"]) == {"checkerboard_cutout"}


def test_a_set_a_folder_below_and_a_cell_that_is_there_twice_are_named(tmp_path: Path) -> None:
    save_cell(tmp_path / "ImageNet-C", "fog/1", KNOWN)
    message = refusal(lambda: find_cell("imagenet-c", tmp_path, "fog", 1))
    assert f"did you mean --data-dir {tmp_path / 'ImageNet-C'}?" in message
    save_cell(tmp_path / "ImageNet-C" / "weather", "fog/1", KNOWN)
    assert "are both there" in refusal(lambda: find_cell("imagenet-c", tmp_path / "ImageNet-C", "fog", 1))
    (tmp_path / "a.tar").touch()
    assert "not a folder (unpack an archive)" in refusal(
        lambda: find_cell("imagenet-c", tmp_path / "a.tar", "fog", 1)
    )


def test_a_link_beside_the_published_folders_is_the_same_cell(tmp_path: Path) -> None:
    save_cell(tmp_path / "weather", "fog/1", KNOWN)
    (tmp_path / "fog").symlink_to(tmp_path / "weather" / "fog")
    assert find_cell("imagenet-c", tmp_path, "fog", 1) == tmp_path / "fog" / "1"


def test_a_column_of_the_table_is_no_corruption(tmp_path: Path) -> None:
    save_cell(tmp_path, "clean/1", KNOWN)
    message = refusal(lambda: find_cell("imagenet-c", tmp_path, "clean", 1))
    assert "no corruption can be called 'clean' in a table; rename it" in message


def test_flags_without_effect_on_a_saved_set_are_told(
    asked: Sweep, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    changed = replace(asked, seed=3, preset=64, split="val")
    sweep_corruptions(changed, tmp_path / "run")
    err = capfd.readouterr().err
    for flag in ("--seed", "--preset", "--split"):
        assert f"imagenet-c is saved corrupted; {flag} has no effect on it" in err
    assert "--store" not in err
