"""Corrupted copies of folders: the layout of ImageNet-C, the pixels of corrupt(), nothing written twice."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from colours import colour_classifier, offer, save_colours
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin
from torch import Tensor

from robustglimpse import corruptions, export
from robustglimpse.corruptions import SEVERITIES, corrupt, names
from robustglimpse.corruptions.weather import FROST_FILES
from robustglimpse.data import load_data
from robustglimpse.export import RECORD, Export, corrupt_folder
from robustglimpse.files import write_file
from robustglimpse.records import UserError
from robustglimpse.rng import KeyedDraws
from robustglimpse.sweep import Sweep, sweep_corruptions

CLASSES = ("ant", "bee", "cow")
EXACT = Export(("gaussian_noise", "snow"), severities=(1, 4), size_px=None, store="exact", seed=3)


def refusal(call: Callable[[], object]) -> str:
    """Return the message of the UserError that the call raises, which must be one line."""
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder of three classes of two images, more than one size and more than one depth of folders."""
    root = tmp_path / "photos"
    save_colours(root, CLASSES, size_px=20)
    save_colours(root / "cow", ("by night",), count=1, size_px=24)
    Image.new("RGB", (21, 26), (9, 99, 199)).save(root / "ant" / "2.jpg")
    (root / "ant" / "notes.txt").write_text("no image")
    return root


FILES = ["ant/0.png", "ant/1.png", "ant/2.jpg", "bee/0.png", "bee/1.png", "cow/0.png", "cow/1.png"]
FILES += ["cow/by night/0.png"]
# An image's draws are those of its place in a sweep over the folder: the first of every class, then the
# second of each.
PLACES = list(enumerate(sorted(FILES, key=lambda f: ([g for g in FILES if g[:4] == f[:4]].index(f), f))))


def written(target: Path) -> set[str]:
    """Return the paths of the images below a folder."""
    files = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    return files - {RECORD}


def pixels_of(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path).convert("RGB"))


def picture(pixels: NDArray[np.uint8], index: int, name: str, severity: int, asked: Export) -> Tensor:
    """Return an image u8 [H,W,3] corrupted by itself."""
    shown = corrupt(
        torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None], name, severity, preset=asked.preset,
        store=asked.store, frost_dir=asked.frost_dir, draws=KeyedDraws(asked.seed, torch.tensor([index])),
    )  # fmt: skip
    return shown[0].permute(1, 2, 0)


def test_every_image_is_written_under_its_corruption_severity_and_class(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    assert corrupt_folder(source, target, EXACT) == 4 * len(FILES)
    expected = {
        f"{name}/{severity}/{Path(file).with_suffix('.png').as_posix()}"
        for name in EXACT.corruptions
        for severity in (1, 4)
        for file in FILES
    }
    assert written(target) == expected


def test_all_of_the_paper_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corruptions, "corrupt", lambda images, *_, **__: images)
    save_colours(tmp_path / "photos", ("ant",), count=1, size_px=40)
    corrupt_folder(tmp_path / "photos", tmp_path / "out", Export(size_px=32))
    assert written(tmp_path / "out") == {
        f"{name}/{severity}/ant/0.JPEG" for name in names() for severity in SEVERITIES
    }


@pytest.mark.parametrize("preset", [None, 224])
def test_png_holds_exactly_what_corrupt_makes(source: Path, tmp_path: Path, preset: int | None) -> None:
    asked = replace(EXACT, preset=preset)
    corrupt_folder(source, tmp_path / "out", asked)
    for index, file in PLACES:
        before = pixels_of(source / file)
        for name in asked.corruptions:
            for severity in asked.severities:
                path = tmp_path / "out" / name / str(severity) / Path(file).with_suffix(".png")
                with Image.open(path) as found:
                    assert (found.format, found.mode) == ("PNG", "RGB")
                expected = picture(before, index, name, severity, asked)
                assert np.array_equal(pixels_of(path), expected.numpy())


def test_frost_takes_the_textures_that_are_given(tmp_path: Path) -> None:
    save_colours(tmp_path / "photos", ("ant",), count=1)
    for file in FROST_FILES:
        Image.new("RGB", (200, 200), "white").save(tmp_path / file)
    asked = replace(EXACT, corruptions=("frost",), severities=(1,), frost_dir=tmp_path)
    corrupt_folder(tmp_path / "photos", tmp_path / "out", asked)
    before = pixels_of(tmp_path / "photos" / "ant" / "0.png").astype(int)
    # At 32 px and severity 1 the whole image and a fifth of the texture add up.
    expected = np.minimum(before + 51, 255)
    assert np.array_equal(pixels_of(tmp_path / "out" / "frost/1/ant/0.png"), expected)


def test_pictures_do_not_depend_on_what_shares_their_batch(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corrupt_folder(source, tmp_path / "one", EXACT)
    monkeypatch.setattr(export, "BATCH", 3)
    corrupt_folder(source, tmp_path / "two", EXACT)
    assert written(tmp_path / "one") == written(tmp_path / "two")
    for file in written(tmp_path / "one"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_jpeg_is_that_of_the_published_sets(source: Path, tmp_path: Path) -> None:
    asked = replace(EXACT, store="jpeg85")
    corrupt_folder(source, tmp_path / "out", asked)
    reference = io.BytesIO()
    Image.new("RGB", (16, 16)).save(reference, "JPEG", quality=85)
    tables = Image.open(reference).quantization  # type: ignore[attr-defined]
    for index, file in PLACES:
        path = tmp_path / "out" / "snow" / "4" / Path(file).with_suffix(".JPEG")
        with Image.open(path) as found:
            assert found.format == "JPEG"
            assert found.quantization == tables  # type: ignore[attr-defined]
            assert JpegImagePlugin.get_sampling(found) == 2, "4:2:0"
        expected = picture(pixels_of(source / file), index, "snow", 4, asked)
        assert np.array_equal(pixels_of(path), expected.numpy())
        exact = picture(pixels_of(source / file), index, "snow", 4, EXACT)
        assert not np.array_equal(pixels_of(path), exact.numpy())


def test_images_are_resized_and_cropped_before(source: Path, tmp_path: Path) -> None:
    asked = replace(EXACT, corruptions=("contrast",), severities=(2,), size_px=16)
    corrupt_folder(source, tmp_path / "out", asked)
    shown = load_data(f"imagefolder:{source}", size_px=16)
    ours = {pixels_of(path).tobytes() for path in (tmp_path / "out").rglob("*.png")}
    expected = {
        picture(image.transpose(1, 2, 0), 0, "contrast", 2, asked).numpy().tobytes() for image in shown.images
    }
    assert ours == expected
    assert len(ours) == len(FILES)


def test_another_run_writes_only_what_is_missing(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    corrupt_folder(source, target, EXACT)
    gone, touched = target / "snow/4/bee/1.png", target / "snow/4/bee/0.png"
    content = gone.read_bytes()
    gone.unlink()
    touched.write_bytes(b"mine")
    before = {path: (target / path).stat().st_mtime_ns for path in written(target)}
    assert corrupt_folder(source, target, EXACT) == 1
    assert gone.read_bytes() == content
    assert touched.read_bytes() == b"mine"
    assert all((target / path).stat().st_mtime_ns == stamp for path, stamp in before.items())
    assert corrupt_folder(source, target, EXACT) == 0
    assert corrupt_folder(source, target, replace(EXACT, severities=(1, 2, 4))) == 2 * len(FILES)


def test_a_finished_run_decodes_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corrupt_folder(source, tmp_path / "out", EXACT)
    monkeypatch.delattr("robustglimpse.data.images.open_image")
    assert corrupt_folder(source, tmp_path / "out", EXACT) == 0


def test_no_image_takes_the_place_of_another(tmp_path: Path) -> None:
    (tmp_path / "photos" / "ant").mkdir(parents=True)
    for ending, level in (("png", 20), ("jpg", 200)):
        Image.new("RGB", (16, 16), (level,) * 3).save(tmp_path / "photos" / "ant" / f"a.{ending}")
    asked = Export(("brightness",), severities=(1,), size_px=None)
    with pytest.raises(UserError, match="two images are called ant/a"):
        corrupt_folder(tmp_path / "photos", tmp_path / "out", asked)
    assert not (tmp_path / "out").exists()


def test_a_target_inside_the_source_does_not_feed_on_itself(source: Path) -> None:
    asked = replace(EXACT, corruptions=("contrast",), severities=(1,))
    try:
        assert corrupt_folder(source, source / "out", asked) == len(FILES)
        assert corrupt_folder(source, source / "out", asked) == 0
    except UserError:
        assert not (source / "out").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"corruptions": ("fog", "frosst")}, "did you mean 'frost'?"),
        ({"severities": (1, 6)}, "severity must be 1, 2, 3, 4 or 5, got 6"),
        ({"preset": 100}, "preset must be 32, 64 or 224"),
        ({"store": "png"}, "store must be exact or jpeg85"),
        pytest.param(
            {"size_px": -5}, "size",
        ),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_asked_is_refused_before_anything_is_written(
    source: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    asked = replace(EXACT, **change)
    assert message in refusal(lambda: corrupt_folder(source, tmp_path / "out", asked))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"buy milk", b"\x89PNG\r\n\x1a\n cut short"])
def test_a_broken_image_is_named(source: Path, tmp_path: Path, content: bytes) -> None:
    (source / "bee" / "1.png").write_bytes(content)
    message = refusal(lambda: corrupt_folder(source, tmp_path / "out", EXACT))
    assert str(source) in message
    assert "bee/1.png is not an image" in message


def test_a_target_that_cannot_be_written_is_named(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    message = refusal(lambda: corrupt_folder(source, tmp_path / "file" / "out", EXACT))
    assert f"{tmp_path / 'file' / 'out'}" in message
    assert "cannot be written" in message


def test_a_folder_without_class_folders_is_refused(tmp_path: Path) -> None:
    for folder in ("none", "flat"):
        message = refusal(lambda folder=folder: corrupt_folder(tmp_path / folder, tmp_path / "out", EXACT))  # type: ignore[misc]
        assert f"{tmp_path / folder}" in message
        assert "one folder of images for each class" in message
        (tmp_path / "flat").mkdir(exist_ok=True)
        Image.new("RGB", (16, 16)).save(tmp_path / "flat" / "in no class.png")
    assert not (tmp_path / "out").exists()


# A target is of one kind


def contents(target: Path) -> dict[str, bytes]:
    return {path: (target / path).read_bytes() for path in {*written(target), RECORD}}


@pytest.mark.parametrize(
    "change, said",
    [
        ({"seed": 4}, "was made with --seed 3, not --seed 4; choose another folder (it holds"),
        ({"preset": 64}, "was made with no --preset, not --preset 64"),
        ({"store": "jpeg85"}, "was made with --store exact, not --store jpeg85"),
        ({"size_px": 16}, "was made with --size 0, not --size 16"),
        ({"seed": 4, "store": "jpeg85"}, "--seed 3 and --store exact, not --seed 4 and --store jpeg85"),
        ({"seed": 4, "corruptions": ("fog",), "severities": (2,)}, "was made with --seed 3, not --seed 4"),
    ],
    ids=str,
)
def test_a_target_made_with_other_settings_is_refused(
    source: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    target = tmp_path / "out"
    corrupt_folder(source, target, EXACT)
    before = contents(target)
    assert said in refusal(lambda: corrupt_folder(source, target, replace(EXACT, **change)))
    assert contents(target) == before


def another_pixel(source: Path) -> None:
    path = source / "bee" / "1.png"
    pixels = pixels_of(path).copy()
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize(
    "change",
    [
        another_pixel,
        lambda source: (source / "bee" / "1.png").unlink(),
        lambda source: save_colours(source, ("dog",), count=1, size_px=20),
        lambda source: (source / "bee" / "1.png").rename(source / "bee" / "9.png"),
        lambda source: (source / "bee").rename(source / "wasp"),
    ],
    ids=["another pixel", "one less", "one more", "another name", "another class"],
)
def test_a_target_made_from_other_images_is_refused(
    source: Path, tmp_path: Path, change: Callable[[Path], object]
) -> None:
    target = tmp_path / "out"
    corrupt_folder(source, target, EXACT)
    before = contents(target)
    change(source)
    message = refusal(lambda: corrupt_folder(source, target, EXACT))
    assert f"was made with images of {source}, not those that are in {source} now" in message
    assert contents(target) == before


def test_an_image_of_the_same_size_in_bytes_is_another_one(tmp_path: Path) -> None:
    for name, level in (("one", 10), ("two", 200)):
        (tmp_path / name / "ant").mkdir(parents=True)
        Image.new("RGB", (16, 16), (level,) * 3).save(tmp_path / name / "ant" / "0.bmp")
    sizes = {path.stat().st_size for path in tmp_path.glob("*/ant/0.bmp")}
    assert len(sizes) == 1
    corrupt_folder(tmp_path / "one", tmp_path / "out", EXACT)
    assert (
        f"was made with images of {tmp_path / 'one'}, not those that are in {tmp_path / 'two'} now"
        in refusal(lambda: corrupt_folder(tmp_path / "two", tmp_path / "out", EXACT))
    )


def test_a_source_that_was_moved_is_the_same(source: Path, tmp_path: Path) -> None:
    corrupt_folder(source, tmp_path / "out", EXACT)
    source.rename(tmp_path / "moved")
    assert corrupt_folder(tmp_path / "moved", tmp_path / "out", EXACT) == 0


def test_other_corruptions_and_severities_are_added(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    corrupt_folder(source, target, EXACT)
    before = contents(target)
    more = replace(EXACT, corruptions=("fog", "snow"), severities=(2, 4))
    assert corrupt_folder(source, target, more) == 3 * len(FILES)
    after = contents(target)
    assert {path: after[path] for path in before} == before


def test_frost_of_other_textures_is_refused_and_what_has_no_frost_goes_on(
    source: Path, tmp_path: Path
) -> None:
    for level, folder in ((255, "white"), (0, "black")):
        (tmp_path / folder).mkdir()
        for file in FROST_FILES:
            Image.new("RGB", (200, 200), (level,) * 3).save(tmp_path / folder / file)
    target = tmp_path / "out"
    corrupt_folder(source, target, EXACT)
    white = replace(EXACT, corruptions=("frost",), severities=(1,), frost_dir=tmp_path / "white")
    assert corrupt_folder(source, target, white) == len(FILES)
    message = refusal(
        lambda: corrupt_folder(source, target, replace(white, frost_dir=tmp_path / "black", severities=(2,)))
    )
    assert "was made with the frost textures dir:" in message
    assert corrupt_folder(source, target, replace(EXACT, severities=(2,))) == 2 * len(FILES)
    assert corrupt_folder(source, target, white) == 0


@pytest.mark.parametrize("key", ["robustglimpse", "pillow"])
def test_another_version_of_what_makes_the_pixels_is_refused(source: Path, tmp_path: Path, key: str) -> None:
    target = tmp_path / "out"
    corrupt_folder(source, target, EXACT)
    record = json.loads((target / RECORD).read_text())
    (target / RECORD).write_text(json.dumps({**record, key: "0.0.1"}))
    assert "0.0.1, not" in refusal(lambda: corrupt_folder(source, target, EXACT))


def test_a_target_with_images_and_no_record_is_refused(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    (target / "weather").mkdir(parents=True)
    (target / "notes.txt").write_text("mine")
    (target / "weather" / ".DS_Store").write_text("left by a system")
    assert corrupt_folder(source, target, replace(EXACT, severities=(1,))) > 0
    (target / RECORD).unlink()
    before = written(target)
    message = refusal(lambda: corrupt_folder(source, target, EXACT))
    assert f"was made by an older version, or by others (no {RECORD}); choose another folder" in message
    assert "(it holds gaussian_noise/1/ant/0.png)" in message
    assert written(target) == before


def test_a_run_that_wrote_no_image_decides_nothing(source: Path, tmp_path: Path) -> None:
    whole = (source / "ant" / "0.png").read_bytes()
    (source / "ant" / "0.png").write_bytes(b"cut short")
    refusal(lambda: corrupt_folder(source, tmp_path / "out", EXACT))
    (source / "ant" / "0.png").write_bytes(whole)
    assert corrupt_folder(source, tmp_path / "out", replace(EXACT, seed=1)) == 4 * len(FILES)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b"{}", b'{"seed": 3}'])
def test_a_damaged_record_is_refused(source: Path, tmp_path: Path, content: bytes) -> None:
    target = tmp_path / "out"
    corrupt_folder(source, target, EXACT)
    (target / RECORD).write_bytes(content)
    assert str(target) in refusal(lambda: corrupt_folder(source, target, EXACT))
    assert (target / RECORD).read_bytes() == content


def test_a_run_that_was_ended_goes_on(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corrupt_folder(source, tmp_path / "whole", EXACT)
    ended = [*range(5)]

    def write(path: Path, content: bytes, **options: Any) -> None:
        if path.name != RECORD and not ended:
            raise KeyboardInterrupt
        if path.name != RECORD:
            ended.pop()
        write_file(path, content, **options)

    monkeypatch.setattr(export, "write_file", write)
    with pytest.raises(KeyboardInterrupt):
        corrupt_folder(source, tmp_path / "out", EXACT)
    monkeypatch.undo()
    assert "--seed 3, not --seed 5" in refusal(
        lambda: corrupt_folder(source, tmp_path / "out", replace(EXACT, seed=5))
    )
    assert corrupt_folder(source, tmp_path / "out", EXACT) == 4 * len(FILES) - 5
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_what_is_done_to_the_images_is_told(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of the eight, one has 24 px and one 21 x 26, the others 20."""
    asked = replace(EXACT, corruptions=("contrast",), severities=(1,))
    told = {}
    for size_px in (0, 18, 20, 32):
        corrupt_folder(source, tmp_path / str(size_px), replace(asked, size_px=size_px))
        told[size_px] = [line for line in capfd.readouterr().err.splitlines() if "passed over" not in line]
    resized = "(shorter side) and cropped to {0} px; --size 0 takes them as they are stored"
    assert told[0] == []
    assert told[18] == [
        f"{source}: images are resized to 21 px {resized.format(18)}",
        f"{source}: 6 of 8 images are smaller than 21 px and enlarged",
    ]
    assert told[20] == [
        f"{source}: 2 of 8 images are resized to 23 px {resized.format(20)}",
        f"{source}: 1 of 8 images is smaller than 23 px and enlarged",
    ]
    assert told[32] == [
        f"{source}: images are resized to 37 px {resized.format(32)}",
        f"{source}: 8 of 8 images are smaller than 37 px and enlarged",
    ]


def test_what_is_found_in_the_images_is_told_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos" / "ant").mkdir(parents=True)
    Image.fromarray(np.full((16, 16), 257 * 9, np.uint16)).save(tmp_path / "photos" / "ant" / "0.png")
    corrupt_folder(
        tmp_path / "photos", tmp_path / "out", replace(EXACT, corruptions=("contrast",), size_px=16)
    )
    lines = capfd.readouterr().err.splitlines()
    assert lines == [f"{tmp_path / 'photos'}: 16 bits a pixel in 1 of 1 images; scaled to 8 bits by 1/257"]


def test_the_home_folder_is_meant_by_its_sign(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    asked = replace(EXACT, corruptions=("contrast",), severities=(1,))
    assert corrupt_folder(Path("~/photos"), Path("~/out"), asked) == len(FILES)
    assert len(written(tmp_path / "out")) == len(FILES)


# What is written is read back as it was


@pytest.mark.parametrize("archive", ["", "weather"])
@pytest.mark.parametrize(
    "chosen, count",
    # Draws go by an image's place: in a folder by name, in a sweep class by class. With one each they agree.
    [(("brightness", "contrast", "pixelate"), 5), (("brightness", "fog", "shot_noise"), 1)],
    ids=["without draws", "with draws"],
)
def test_a_sweep_over_the_copy_scores_what_one_over_the_folder_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: tuple[str, ...], count: int, archive: str
) -> None:
    classes = tuple(f"n{k:02}" for k in range(6))
    save_colours(tmp_path / "photos", classes, count=count, size_px=32)
    offer(monkeypatch, colour_classifier(classes))
    asked = Export(chosen, severities=(2, 5), size_px=None, store="exact", seed=4)
    corrupt_folder(tmp_path / "photos", tmp_path / "copy" / archive, asked)
    own = Sweep(
        ("colours",), corruptions=chosen, severities=(2, 5), seed=4, device="cpu",
        data=f"imagefolder:{tmp_path / 'photos'}",
    )  # fmt: skip
    ours = sweep_corruptions(own, tmp_path / "ours")
    saved = replace(own, data="imagenet-c", data_dir=tmp_path / "copy")
    theirs = sweep_corruptions(saved, tmp_path / "theirs")
    keys = ["corruption", "severity", "exit"]
    left, right = (
        f[f["kind"] == "corruption"].set_index(keys)["correct"].sort_index() for f in (ours, theirs)
    )
    assert left.to_dict() == right.to_dict()
    assert len(left) == 2 * 2 * len(chosen)
    assert left.nunique() > 1
