"""Layouts as people have them: read, told, or refused with the cure; nothing vanishes without a word."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from photos import load, pixels_of, refusal, save_image, two_classes
from PIL import Image

from robustglimpse.data import Dataset, load_data

WNIDS = ("n01", "n02")


def tiny(root: Path, *, val: str = "listed", counts: tuple[int, int] = (3, 12)) -> Path:
    """Write a Tiny ImageNet of two classes with as many train and val images each.

    val: "listed" as it is published, "val/WNID/" or "val/WNID/images/" as people sort it.
    """
    rows = []
    for i in range(counts[0]):
        for k, wnid in enumerate(WNIDS):
            save_image(root / f"train/{wnid}/images/{wnid}_{i}.png", 64, 64, seed=10 * i + k)
    for i in range(2 * counts[1]):
        wnid = WNIDS[(i // 3) % 2]
        folder = "val/images" if val == "listed" else val.replace("WNID", wnid)
        save_image(root / folder / f"val_{i}.png", 64, 64, seed=1000 + i)
        rows.append(f"val_{i}.png\t{wnid}\t0\t0\t62\t62\n")
    if val == "listed":
        (root / "val/val_annotations.txt").write_text("".join(rows))
    (root / "wnids.txt").write_text("\n".join(reversed(WNIDS)) + "\n")
    return root


def read_tiny(root: Path, split: str = "val") -> Dataset:
    return load_data("tiny-imagenet", data_dir=root, split=split)


# Tiny ImageNet


@pytest.mark.parametrize("val", ["val/WNID/", "val/WNID/images/"])
@pytest.mark.parametrize("alone", [False, True])
def test_a_val_sorted_into_class_folders_is_the_same_set(tmp_path: Path, val: str, alone: bool) -> None:
    published = read_tiny(tiny(tmp_path / "published"))
    root = tiny(tmp_path / "sorted", val=val)
    if alone:
        shutil.rmtree(root / "train")
    data = read_tiny(root)
    assert (data.classes, data.total, data.split) == (WNIDS, 24, "val")
    assert data.fingerprint == published.fingerprint  # the order too: val_2 before val_10
    assert (data.identity, data.listing) == (published.identity, published.listing)
    assert data.notes == published.notes == ()


def test_a_val_alone_has_its_own_classes_where_no_list_says_more(tmp_path: Path) -> None:
    root = tiny(tmp_path, val="val/WNID/")
    shutil.rmtree(root / "train")
    (root / "wnids.txt").write_text("n00\nn02\nn01\n")
    assert read_tiny(root).classes == ("n00", "n01", "n02")
    (root / "wnids.txt").write_text("n01\n")
    assert "is of class n02, which wnids.txt does not list" in refusal(lambda: read_tiny(root))
    (root / "wnids.txt").unlink()
    assert read_tiny(root).classes == WNIDS
    assert "the split train is missing" in refusal(lambda: read_tiny(root, "train"))


@pytest.mark.parametrize("val", ["listed", "val/WNID/"])
def test_a_folder_above_does_not_matter(tmp_path: Path, val: str) -> None:
    root = tiny(tmp_path / "top" / "tiny-imagenet-200", val=val)
    here = read_tiny(root)
    assert read_tiny(tmp_path).fingerprint == read_tiny(tmp_path / "top").fingerprint == here.fingerprint
    assert load_data("tiny-imagenet", data_dir=str(root)).fingerprint == here.fingerprint
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        for path in sorted(root.rglob("*.*")):
            archive.write(path, path.relative_to(tmp_path))
            archive.writestr(f"__MACOSX/{path.relative_to(tmp_path).parent}/._{path.name}", b"junk")
    assert read_tiny(tmp_path / "t.zip").fingerprint == here.fingerprint


def test_two_sets_side_by_side_are_refused_by_name(tmp_path: Path) -> None:
    tiny(tmp_path / "one"), tiny(tmp_path / "two", val="val/WNID/")
    message = refusal(lambda: read_tiny(tmp_path))
    assert "2 folders hold a train or val of their own (one/ and two/)" in message
    with zipfile.ZipFile(tmp_path / "both.zip", "w") as archive:
        for path in sorted(tmp_path.rglob("*.png")):
            archive.write(path, path.relative_to(tmp_path))
    assert "(one/ and two/)" in refusal(lambda: read_tiny(tmp_path / "both.zip"))


@pytest.mark.parametrize("inside", ["val", "train"])
def test_the_folder_above_is_asked_for(tmp_path: Path, inside: str) -> None:
    root = tiny(tmp_path / "tiny")
    assert f"give the folder above, {root}" in refusal(lambda: read_tiny(root / inside))


@pytest.mark.parametrize(
    "rows, words",
    [
        ("../../secret.png\tn01\n", "is listed in val_annotations.txt and missing"),
        ("/etc/passwd\tn01\n", "is listed in val_annotations.txt and missing"),
        ("val_0.png\n", "has no class in line 1"),
        ("val_0.png\tn01\nval_0.png\tn02\n", "names 'val_0.png' twice"),
        ("val_0.png\tn09\n", "is of class n09, which has no train folder"),
        ("\n", "the split val is missing"),
        (b"val_0.png\t\xff\n", "is no text"),
    ],
)
def test_a_listing_that_is_wrong_is_refused(tmp_path: Path, rows: str | bytes, words: str) -> None:
    root = tiny(tmp_path / "tiny")
    save_image(tmp_path / "secret.png", 64, 64)
    listing = root / "val/val_annotations.txt"
    listing.write_bytes(rows.encode() if isinstance(rows, str) else rows)
    assert words in refusal(lambda: read_tiny(root))


def test_what_the_listing_leaves_out_is_told(tmp_path: Path) -> None:
    root = tiny(tmp_path)
    save_image(root / "val/images/extra.png", 64, 64)
    save_image(root / "val/n01/copy.png", 64, 64)
    notes = read_tiny(root).notes
    assert "images of val/images that it does not name are left out: 1" in notes[0]
    assert "images in class folders of val are left out: 1" in notes[1]
    shutil.rmtree(root / "val/images")  # moved into class folders, the listing left behind
    assert (read_tiny(root).total, read_tiny(root).notes) == (1, ())


def test_the_published_numbers_are_of_these_images(shared: Path) -> None:
    path = shared / "data" / "tiny-imagenet-20.zip"
    if not path.is_file():
        pytest.skip(f"no {path}")
    results = pd.read_csv(Path(__file__).parents[2] / "results" / "tiny-imagenet-20" / "pgd" / "results.csv")
    assert set(results["data_sha256"]) == {load_data("tiny-imagenet-20", data_dir=path).fingerprint}


def test_images_of_other_endings_are_told_there_too(tmp_path: Path) -> None:
    root = tiny(tmp_path)
    (root / "train/n01/images/n01_9.gif").write_bytes(b"GIF89a")
    (root / "train/n01/n01_boxes.txt").write_text("n01_0.png\t0\t0\t62\t62\n")  # as it is published
    assert read_tiny(root).notes == (f"{root}: passed over: 1 .gif (no images by their endings)",)


def test_an_archive_beside_its_folder_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tiny(tmp_path / "tiny-imagenet-200")
    with zipfile.ZipFile(tmp_path / "tiny-imagenet-200.zip", "w") as archive:
        for path in sorted(root.rglob("*.*")):
            archive.write(path, path.relative_to(tmp_path))
    read_tiny(tmp_path)
    assert f"read from {tmp_path / 'tiny-imagenet-200.zip'}; {root} beside it" in capsys.readouterr().err


# Image folders


@pytest.mark.parametrize("ending", ["tif", "TIFF", "pgm", "JPG", "jpeg", "Png", "ppm", "bmp", "webp"])
def test_every_ending_of_torchvisions_is_read(tmp_path: Path, ending: str) -> None:
    from torchvision.datasets import ImageFolder

    grey = np.full((32, 32), 99, np.uint8)
    two_classes(tmp_path)
    Image.fromarray(grey).save(tmp_path / "a" / f"2.{ending}")
    data, theirs = load(tmp_path), ImageFolder(str(tmp_path))
    assert len(data.labels) == len(theirs) == 5
    assert np.array_equal(pixels_of(data, 4), np.asarray(theirs[2][0]))


def test_files_of_other_endings_are_counted(tmp_path: Path) -> None:
    root = two_classes(tmp_path)
    for name in "1.txt", "2.TXT", "3.txt", "4.gif", "sub/Makefile":
        (root / "a" / name).parent.mkdir(exist_ok=True)
        (root / "a" / name).write_bytes(b"")
    (root / "labels.csv").write_bytes(b"")  # beside the class folders: none of theirs
    assert load(root).notes == (
        f"{root}: passed over: 3 .txt, 1 .gif, 1 without ending (no images by their endings)",
    )
    for path in root.rglob("*.png"):
        path.unlink()
    message = refusal(lambda: load(root))
    assert (
        "expected one folder of images for each class in it, found no image that is read, but 3 .txt"
        in message
    )


def test_loose_images_and_empty_folders_are_told(tmp_path: Path) -> None:
    root = two_classes(tmp_path)
    save_image(root / "x.png"), save_image(root / "y.jpg")
    (root / "c").mkdir()
    (root / "d").mkdir()
    (root / "d" / "1.gif").write_bytes(b"GIF89a")
    data = load(root)
    assert data.classes == ("a", "b")
    assert data.notes == (
        f"{root}: passed over: 1 .gif (no images by their endings)",
        f"{root}: 2 images lie in the folder itself, in no class folder, and are left out",
        f"{root}: 2 folders hold no image and are no class: c, d",
    )


def test_what_systems_and_editors_leave_is_no_class_and_no_image(tmp_path: Path) -> None:
    root = two_classes(tmp_path)
    for folder in ".ipynb_checkpoints", "__MACOSX", ".git", "@eaDir", "a/.ipynb_checkpoints", "b/@eaDir":
        save_image(root / folder / "0.png", 32, 32)
    for name in "._0.png", "Thumbs.db", "desktop.ini", ".DS_Store":
        (root / "a" / name).write_bytes(b"junk")
    data = load(root)
    assert (data.classes, len(data.labels), data.notes) == (("a", "b"), 4, ())
    save_image(root / "a" / ".hidden.png", 32, 32)
    assert "images with hidden names: 1 (the first is a/.hidden.png)" in load(root).notes[0]


@pytest.mark.parametrize(
    "folders, named",
    [
        (("train/a", "train/b", "val/a", "val/b"), "val"),
        (("train/a", "test/b"), "test"),
        (("Train/a", "Valid/a"), "Valid"),
        (("train/a", "validation/a", "test"), "validation"),
        (("val/a", "val/b"), "val"),
        (("train/a", "val/a", "figures"), "val"),
        (("training/x/y", "testing/x/y"), "testing"),
    ],
)
def test_a_root_of_splits_is_refused(tmp_path: Path, folders: tuple[str, ...], named: str) -> None:
    for folder in folders:
        save_image(tmp_path / folder / "0.png")
    message = refusal(lambda: load(tmp_path))
    assert "which are splits, not classes" in message
    assert message.endswith(f"--data imagefolder:{tmp_path / named}")


@pytest.mark.parametrize("folders", [("train", "bus"), ("train", "test"), ("val",), ("train/x", "bus/x")])
def test_a_class_may_have_the_name_of_a_split(tmp_path: Path, folders: tuple[str, ...]) -> None:
    for folder in folders:
        save_image(tmp_path / folder / "0.png", 32, 32)
    assert load(tmp_path).classes == tuple(sorted(folder.partition("/")[0] for folder in folders))


def test_one_class_is_enough_and_folders_in_it_are_told(tmp_path: Path) -> None:
    save_image(tmp_path / "only" / "0.png", 32, 32)
    assert (load(tmp_path).classes, load(tmp_path).notes) == (("only",), ())
    two_classes(tmp_path / "above" / "photos")
    (note,) = load(tmp_path / "above").notes
    assert "its one class is photos; the folders in that are no classes" in note


def test_images_deeper_down_are_of_the_class_folder(tmp_path: Path) -> None:
    root = two_classes(tmp_path)
    save_image(root / "a" / "more" / "deep" / "9.png", 32, 32)
    assert load(root).labels.tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize("name", ["imagefolder", "imagenet100"])
def test_imagenets_val_without_class_folders_is_refused(tmp_path: Path, name: str) -> None:
    for i in range(2):
        save_image(tmp_path / "val" / f"ILSVRC2012_val_0000000{i}.JPEG")
    message = refusal(lambda: load_data(name, data_dir=tmp_path, split="val"))
    assert "found 2 images in no class folder; sort them into class folders with valprep.sh" in message


def test_the_folder_above_an_unsorted_val_is_refused_too(tmp_path: Path) -> None:
    save_image(tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG")
    assert "valprep.sh" in refusal(lambda: load(tmp_path))


@pytest.mark.parametrize("split", ["../x", "..", "a/../../x", "/etc", "x/.."])
def test_a_split_lies_below_its_folder(tmp_path: Path, split: str) -> None:
    two_classes(tmp_path / "x"), two_classes(tmp_path / "photos" / "x")
    message = refusal(lambda: load(tmp_path / "photos", split=split))
    assert f"--split names a folder below {tmp_path / 'photos'}, got {split!r}" in message


def test_an_archive_of_images_is_to_be_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("a/0.png", b"")
    assert "photos.zip: not a folder (unpack an archive)" in refusal(lambda: load(tmp_path / "photos.zip"))


def test_names_that_differ_in_case_or_form_are_two_classes(tmp_path: Path) -> None:
    for name in "Cat", "cat", "caf\u00e9", "cafe\u0301":
        save_image(tmp_path / name / "0.png", 32, 32)
    if len(os.listdir(tmp_path)) == 4:  # noqa: PTH208 - of a file system that tells them apart
        assert load(tmp_path).classes == ("Cat", "cafe\u0301", "caf\u00e9", "cat")
