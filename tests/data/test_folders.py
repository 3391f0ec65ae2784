"""Images from files: the right pixels in a fixed order, and one clear line for whatever is broken."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from photos import no_decoding, packed, refusal, save_image, tiny_folder
from PIL import Image

from robustglimpse.data import load_data
from robustglimpse.data.augment import pipeline

# Tiny ImageNet


@pytest.fixture(scope="module")
def tiny_zip(shared: Path) -> Path:
    """The subset of 20 classes in the official layout."""
    path = shared / "data" / "tiny-imagenet-20.zip"
    if not path.is_file():
        pytest.skip(f"no {path}")
    return path


def test_tiny_imagenets_val_split_is_whole_and_class_mixed(tiny_zip: Path) -> None:
    data = load_data("tiny-imagenet", data_dir=tiny_zip)
    assert (data.split, data.total, data.images.shape) == ("val", 1000, (1000, 3, 64, 64))
    assert len(data.classes) == 20
    assert data.classes == tuple(sorted(data.classes))
    assert np.bincount(data.labels).tolist() == [50] * 20
    assert data.labels[:20].tolist() == list(range(20))


def test_a_tiny_imagenet_image_is_the_one_that_its_annotation_names(tiny_zip: Path) -> None:
    with zipfile.ZipFile(tiny_zip) as archive:
        lines = archive.read("tiny-imagenet-200/val/val_annotations.txt").decode().splitlines()
        data = load_data("tiny-imagenet", data_dir=tiny_zip, limit=20)
        for image, label in zip(data.images, data.labels, strict=True):
            first = next(line.split("\t")[0] for line in lines if data.classes[label] in line)
            with archive.open(f"tiny-imagenet-200/val/images/{first}") as stream:
                expected = np.asarray(Image.open(stream).convert("RGB"))
            assert np.array_equal(image.transpose(1, 2, 0), expected)


def test_a_second_call_reads_the_cache(tiny_zip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_data("tiny-imagenet", data_dir=tiny_zip, limit=40)
    no_decoding(monkeypatch)
    assert load_data("tiny-imagenet", data_dir=tiny_zip, limit=40).fingerprint == first.fingerprint
    with pytest.raises(NameError):
        load_data("tiny-imagenet", data_dir=tiny_zip, limit=41)


def test_the_train_split_holds_500_images_per_class(tiny_zip: Path) -> None:
    data = load_data("tiny-imagenet", split="train", data_dir=tiny_zip, limit=60)
    assert data.total == 10_000
    assert data.labels.tolist() == list(range(20)) * 3


def test_the_first_20_classes_are_those_of_wnids_txt(tmp_path: Path) -> None:
    wnids = [f"n{k:02}" for k in range(22)][::-1]
    for k, wnid in enumerate(wnids):
        save_image(tmp_path / "train" / wnid / "images" / f"{wnid}_0.JPEG", 64, 64, seed=k)
        save_image(tmp_path / "val" / "images" / f"val_{k}.JPEG", 64, 64, seed=100 + k)
    rows = "".join(f"val_{k}.JPEG\t{wnid}\t0\t0\t1\t1\n" for k, wnid in enumerate(wnids))
    (tmp_path / "val" / "val_annotations.txt").write_text(rows)
    message = refusal(lambda: load_data("tiny-imagenet-20", data_dir=tmp_path))
    assert "expected a wnids.txt of 20 classes or more, got 0" in message
    (tmp_path / "wnids.txt").write_text("\n".join(wnids) + "\n")
    for split in ("train", "val"):
        data = load_data("tiny-imagenet-20", split=split, data_dir=tmp_path)
        assert (data.name, data.total, data.classes) == ("tiny-imagenet-20", 20, tuple(sorted(wnids[:20])))
        whole = load_data("tiny-imagenet", split=split, data_dir=tmp_path)
        assert (whole.name, whole.total) == ("tiny-imagenet", 22)
        assert np.array_equal(data.images, whole.images[2:])


def test_the_unpacked_folder_gives_the_pixels_of_the_zip(tiny_zip: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tiny_zip) as archive:
        lines = archive.read("tiny-imagenet-200/val/val_annotations.txt").decode().splitlines()
        wnids = sorted({line.split("\t")[1] for line in lines})
        kept = [next(line for line in lines if wnid in line) for wnid in wnids]
        names = [f"tiny-imagenet-200/val/images/{line.partition(chr(9))[0]}" for line in kept]
        names += [f"tiny-imagenet-200/train/{wnid}/images/{wnid}_0.JPEG" for wnid in wnids]
        archive.extractall(tmp_path, names)
    (tmp_path / "tiny-imagenet-200/val/val_annotations.txt").write_text("\n".join(kept) + "\n")
    zipped = load_data("tiny-imagenet", data_dir=tiny_zip, limit=20)
    for folder in tmp_path, tmp_path / "tiny-imagenet-200":
        assert load_data("tiny-imagenet", data_dir=folder).fingerprint == zipped.fingerprint


def test_whatever_tiny_imagenet_lacks_is_named(tmp_path: Path) -> None:
    root = tiny_folder(tmp_path / "tiny")
    assert load_data("tiny-imagenet", data_dir=root).labels.tolist() == [0, 1]
    assert "train and val, not 'test'" in refusal(
        lambda: load_data("tiny-imagenet", split="test", data_dir=root)
    )
    (root / "val/images/val_1.JPEG").unlink()
    assert "val_1.JPEG" in refusal(lambda: load_data("tiny-imagenet", data_dir=root))
    shutil.rmtree(root / "train/n02")
    assert "val_0.JPEG is of class n02" in refusal(lambda: load_data("tiny-imagenet", data_dir=root))
    (root / "val/val_annotations.txt").unlink()
    assert "the split val is missing" in refusal(lambda: load_data("tiny-imagenet", data_dir=root))
    shutil.rmtree(root / "train")
    assert "expected the Tiny ImageNet layout" in refusal(lambda: load_data("tiny-imagenet", data_dir=root))


def test_files_that_were_not_given_are_asked_for(tmp_path: Path) -> None:
    assert "--data-dir PATH" in refusal(lambda: load_data("tiny-imagenet"))
    assert "no such file or folder" in refusal(lambda: load_data("cifar10", data_dir=tmp_path / "no"))
    assert "imagefolder:PATH" in refusal(lambda: load_data("imagefolder"))


# Archives


def test_a_zip_inside_the_data_dir_is_found(tmp_path: Path) -> None:
    root = tiny_folder(tmp_path / "made" / "tiny-imagenet-200")
    (tmp_path / "kept").mkdir()
    packed(root, tmp_path / "kept" / "tiny-imagenet-200.zip")
    found = load_data("tiny-imagenet", data_dir=tmp_path / "kept")
    assert found.fingerprint == load_data("tiny-imagenet", data_dir=root).fingerprint


@pytest.mark.parametrize("kept", [0, 10, 2000])
def test_a_truncated_zip_is_refused(tmp_path: Path, kept: int) -> None:
    path = packed(tiny_folder(tmp_path / "tiny"), tmp_path / "tiny.zip")
    path.write_bytes(path.read_bytes()[:kept])
    assert f"{path}: not a readable zip or tar" in refusal(lambda: load_data("tiny-imagenet", data_dir=path))


@pytest.mark.parametrize("offset", [0, 5, 300])
def test_a_damaged_member_of_a_zip_is_named(tmp_path: Path, offset: int) -> None:
    path = packed(tiny_folder(tmp_path / "tiny"), tmp_path / "tiny.zip")
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo("tiny/val/images/val_0.JPEG")
    content = bytearray(path.read_bytes())
    start = entry.header_offset + 30 + len(entry.filename) + offset  # 30 bytes of local header
    content[start : start + 4] = bytes(b ^ 0xFF for b in content[start : start + 4])
    path.write_bytes(content)
    message = refusal(lambda: load_data("tiny-imagenet", data_dir=path))
    assert f"{path}: tiny/val/images/val_0.JPEG" in message


# Image folders


@pytest.mark.parametrize("size_px", [32, 224])
def test_an_image_folder_is_prepared_as_torchvision_does(tmp_path: Path, size_px: int) -> None:
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    for i, (width, height) in enumerate([(300, 200), (97, 260), (256, 256), (30, 50)]):
        save_image(tmp_path / f"class{i}" / f"{i}.png", width, height, seed=i)
    resize_px = {224: 256, 32: 37}[size_px]  # 8/7 of it
    prepare = transforms.Compose([transforms.Resize(resize_px), transforms.CenterCrop(size_px)])
    theirs = ImageFolder(str(tmp_path), prepare)
    ours = load_data(f"imagefolder:{tmp_path}", size_px=size_px)
    assert ours.classes == tuple(theirs.classes)
    for image, label, (expected, target) in zip(ours.images, ours.labels, theirs, strict=True):
        assert label == target
        assert np.array_equal(image.transpose(1, 2, 0), np.asarray(expected))


def test_an_image_folder_takes_classes_in_turn(tmp_path: Path) -> None:
    made = {}
    for wnid, count in ("b", 2), ("a", 3), ("c", 1):
        for i in range(count):
            made[wnid, i] = save_image(tmp_path / wnid / f"{i}.png", 37, 37, seed=ord(wnid) + 10 * i)
    data = load_data("imagefolder", data_dir=tmp_path, size_px=32)
    assert data.labels.tolist() == [0, 1, 2, 0, 1, 0]
    order = [("a", 0), ("b", 0), ("c", 0), ("a", 1), ("b", 1), ("a", 2)]
    for image, key in zip(data.images, order, strict=True):  # 37 px is 8/7 of 32: only cropped
        assert np.array_equal(image.transpose(1, 2, 0), made[key][2:34, 2:34])
    first = load_data("imagefolder", data_dir=tmp_path, size_px=32, limit=4)
    assert np.array_equal(first.images, data.images[:4])
    assert (len(first.labels), first.total) == (4, 6)


def test_imagenet100_keeps_the_square_that_training_crops_from(tmp_path: Path) -> None:
    from torchvision import transforms

    wide = save_image(tmp_path / "train" / "n1" / "0.png", 300, 256)
    tall = save_image(tmp_path / "val" / "n1" / "0.png", 256, 270, seed=1)
    train = load_data("imagenet100", split="train", data_dir=tmp_path)
    assert np.array_equal(train.images[0].transpose(1, 2, 0), wide[:, 22:278])  # 256 x 256, nothing resized
    val = load_data("imagenet100", data_dir=tmp_path)
    assert (val.name, val.split, val.classes) == ("imagenet100", "val", ("n1",))
    assert np.array_equal(val.images[0].transpose(1, 2, 0), tall[23:247, 16:240])
    assert load_data("imagenet100", split="train", data_dir=tmp_path, size_px=56).images.shape[2:] == (64, 64)
    # The crop of training is then the size that the network is judged at.
    crop = pipeline(["crop(area=0.08, size_px=224)"])(torch.from_numpy(np.array(train.images)))
    assert crop.shape == (1, 3, 224, 224)
    centre = transforms.CenterCrop(224)(Image.fromarray(wide))
    assert not np.array_equal(crop[0].permute(1, 2, 0).numpy(), np.asarray(centre))


def test_of_the_whole_imagenet_the_first_hundred_classes_are_imagenet100(tmp_path: Path) -> None:
    for k in range(1000):
        folder = tmp_path / "val" / f"n{7 * k:08d}"
        folder.mkdir(parents=True)
        if k % 99 == 0:
            save_image(folder / "0.png", 10, 10, seed=k)
        else:
            (folder / "0.png").write_bytes((tmp_path / "val" / "n00000000" / "0.png").read_bytes())
    data = load_data("imagenet100", data_dir=tmp_path, size_px=8)
    assert data.classes == tuple(f"n{7 * k:08d}" for k in range(100))
    assert len(data.labels) == 100
    assert any("the first 100 of its 1000 classes are taken as ImageNet100" in note for note in data.notes)
    shutil.rmtree(tmp_path / "val" / "n00000000")
    assert "or the 1000 of ImageNet, got 999" in refusal(lambda: load_data("imagenet100", data_dir=tmp_path))


def test_whatever_imagenet100_lacks_is_named(tmp_path: Path) -> None:
    assert "splits train and val, not 'test'" in refusal(lambda: load_data("imagenet100", split="test"))
    assert "give --data-dir PATH, with train/WNID" in refusal(lambda: load_data("imagenet100"))
    assert f"{tmp_path / 'val'}: no such folder" in refusal(
        lambda: load_data("imagenet100", data_dir=tmp_path)
    )


def test_a_changed_file_is_decoded_again(tmp_path: Path) -> None:
    save_image(tmp_path / "a" / "0.png", seed=0)
    before = load_data(f"imagefolder:{tmp_path}", size_px=32)
    save_image(tmp_path / "a" / "0.png", 41, seed=1)
    assert load_data(f"imagefolder:{tmp_path}", size_px=32).fingerprint != before.fingerprint


def test_grey_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    for i, mode in enumerate(["L", "RGBA", "P", "1", "CMYK"]):
        (tmp_path / mode).mkdir()
        ending = "jpg" if mode == "CMYK" else "png"
        Image.new(mode, (40, 40), 0 if mode == "1" else None).save(tmp_path / mode / f"{i}.{ending}")
    assert load_data(f"imagefolder:{tmp_path}", size_px=32).images.shape == (5, 3, 32, 32)


def test_a_split_is_a_folder_below(tmp_path: Path) -> None:
    save_image(tmp_path / "val" / "a" / "0.png")
    assert load_data(f"imagefolder:{tmp_path}", split="val", size_px=32).classes == ("a",)
    message = refusal(lambda: load_data(f"imagefolder:{tmp_path}", split="test"))
    assert f"{tmp_path / 'test'}: no such folder" in message


def test_a_text_file_named_jpg_is_refused_by_name(tmp_path: Path) -> None:
    save_image(tmp_path / "a" / "0.png")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.jpg").write_text("buy milk\n")
    message = refusal(lambda: load_data(f"imagefolder:{tmp_path}", size_px=32))
    assert "b/notes.jpg is not an image" in message
    assert str(tmp_path) in message


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "bmp", "ppm"])
@pytest.mark.parametrize("share", [0.02, 0.5])
def test_an_image_cut_short_is_refused_by_name(tmp_path: Path, ending: str, share: float) -> None:
    path = tmp_path / "a" / f"broken.{ending}"
    save_image(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    message = refusal(lambda: load_data(f"imagefolder:{tmp_path}", size_px=32))
    assert f"a/broken.{ending} is not an image" in message


def test_a_failed_decoding_leaves_nothing_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBUSTGLIMPSE_CACHE", str(tmp_path / "cache"))
    save_image(tmp_path / "images" / "a" / "0.png")
    (tmp_path / "images" / "a" / "1.png").write_text("no image")
    refusal(lambda: load_data(f"imagefolder:{tmp_path / 'images'}", size_px=32))
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("none here")
    save_image(tmp_path / "in-no-class.png")
    assert f"{tmp_path}: expected one folder" in refusal(lambda: load_data(f"imagefolder:{tmp_path}"))


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_image(tmp_path / "images" / "a" / "0.png")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "decoded").touch()
    monkeypatch.setenv("ROBUSTGLIMPSE_CACHE", str(tmp_path / "cache"))
    message = refusal(lambda: load_data(f"imagefolder:{tmp_path / 'images'}", size_px=32))
    assert "cannot keep decoded images" in message
    assert "ROBUSTGLIMPSE_CACHE" in message
