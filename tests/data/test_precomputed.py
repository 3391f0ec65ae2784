"""Sets that others saved corrupted: classes by name, pixels as they are, one line for what is broken."""

from __future__ import annotations

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

from robustglimpse.data import folders, load_data
from robustglimpse.data.precomputed import ARCHIVES, find_cell, load_cell
from robustglimpse.records import RESULT_COLUMNS, Classifier, UserError
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


@pytest.mark.parametrize("width, height", [(32, 32), (40, 36), (33, 32), (32, 61)])
def test_larger_images_are_cropped_at_their_centre_and_never_resized(
    tmp_path: Path, width: int, height: int
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    (tmp_path / "fog" / "1" / "n01").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "fog" / "1" / "n01" / "a.JPEG", "PNG")
    data = load_data("imagenet-c", split="fog/1", data_dir=tmp_path, size_px=32)
    top, left = (height - 32) // 2, (width - 32) // 2
    assert np.array_equal(data.images[0].transpose(1, 2, 0), pixels[top : top + 32, left : left + 32])


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


def test_smaller_images_are_refused(tmp_path: Path) -> None:
    save_cell(tmp_path, "fog/1", ("n01",), size_px=31)
    message = refusal(lambda: load_data("imagenet-c", split="fog/1", data_dir=tmp_path, size_px=32))
    assert "31 x 31 px, the model needs 32" in message


def test_a_second_call_reads_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_cell(tmp_path, "fog/1", (*STRANGE, *KNOWN))
    options: dict[str, Any] = {"corruption": "fog", "severity": 1, "data_dir": tmp_path, "size_px": 32}
    first, _ = load_cell("imagenet-c", **options, known=KNOWN)
    monkeypatch.delattr(folders, "_open_image")
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
    assert data.classes == folders.CIFAR10_CLASSES
    assert data.labels.tolist() == list(range(10)) * 2
    assert (data.total, data.images.shape) == (N, (N, 3, 32, 32))
    fifth = images[(severity - 1) * N : severity * N]
    order = [np.flatnonzero(truth == k)[turn] for turn in (0, 1) for k in range(10)]
    for image, i in zip(data.images, order, strict=True):
        assert np.array_equal(image.transpose(1, 2, 0), fifth[i])
    some = load_data("cifar10-c", split=f"fog/{severity}", data_dir=tmp_path, limit=7)
    assert np.array_equal(some.images, data.images[:7])
    assert (len(some.labels), some.total) == (7, N)


def test_labels_of_every_severity_may_differ(tmp_path: Path) -> None:
    images, _ = cifar_set(tmp_path)
    truth = np.random.default_rng(2).permutation(np.repeat(np.arange(10), N // 2))
    np.save(tmp_path / "labels.npy", truth)
    data = load_data("cifar10-c", split="fog/3", data_dir=tmp_path)
    # An image's place among all is where its label must come from.
    for image, label in zip(data.images, data.labels, strict=True):
        (at,) = np.flatnonzero((images == image.transpose(1, 2, 0)).all((1, 2, 3)))
        assert 2 * N <= at < 3 * N
        assert truth[at] == label


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
        pytest.param(
            np.zeros((N, 2), np.int64),
        ),
    ],
    ids=["fewer", "not-five-times", "eleventh", "negative", "words", "objects", "column"],
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
    classes = tuple(reversed(folders.CIFAR10_CLASSES))
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
            right = sum(name == folders.CIFAR10_CLASSES[k] for name, k in zip(named, truth, strict=True))
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
