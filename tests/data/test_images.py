"""One image: prepared at one size in one way, no level lost in silence, whatever its format."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from photos import Pixels, load, no_decoding, pixels_of, refusal, save_image
from PIL import Image

from robustglimpse.data import images, load_data
from robustglimpse.data.decode import decoder
from robustglimpse.data.folders import folder_images
from robustglimpse.data.images import Tally

# Size


def test_an_image_of_the_models_size_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = save_image(tmp_path / "a" / "0.png", 64, 64)
    data = load(tmp_path, size_px=64)
    assert np.array_equal(pixels_of(data), pixels)
    assert (data.preparation, data.notes) == ("as stored", ())
    no_decoding(monkeypatch)
    assert np.array_equal(pixels_of(load(tmp_path, size_px=64)), pixels)


@pytest.mark.parametrize("width, height", [(64, 65), (65, 64), (64, 96), (200, 100), (20, 30), (73, 73)])
def test_any_other_image_is_resized_and_cropped(tmp_path: Path, width: int, height: int) -> None:
    from torchvision import transforms

    pixels = save_image(tmp_path / "a" / "0.png", width, height)
    data = load(tmp_path, size_px=64)
    asked = transforms.Compose([transforms.Resize(73), transforms.CenterCrop(64)])  # 64 * 256 / 224 = 73.1
    assert np.array_equal(pixels_of(data), np.asarray(asked(Image.fromarray(pixels))))
    assert data.preparation == "resize 73 crop 64"
    assert data.notes[0] == (
        f"{data.name}: images are resized to 73 px (shorter side) and cropped to 64 px; --size 0 takes them "
        "as they are stored"
    )
    is_enlarged = min(width, height) < 73
    assert data.notes[1:] == (f"{data.name}: 1 of 1 images is smaller than 73 px and enlarged",) * is_enlarged


def test_a_mixed_set_says_how_many_are_as_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i, side in enumerate([64] * 3 + [80] * 5 + [32] * 2):
        save_image(tmp_path / "a" / f"{i}.png", side, side)
    first = load(tmp_path, size_px=64)
    no_decoding(monkeypatch)
    for data in first, load(tmp_path, size_px=64):  # from the cache as well
        assert data.preparation == "resize 73 crop 64 (3 of 10 as stored)"
        assert [note.partition(": ")[2][:37] for note in data.notes] == [
            "7 of 10 images are resized to 73 px (", "2 of 10 images are smaller than 73 px",
        ]  # fmt: skip


def test_size_0_takes_images_as_they_are_stored(tmp_path: Path) -> None:
    made = [save_image(tmp_path / "a" / f"{i}.png", 50, 30, seed=i) for i in range(2)]
    data = load(tmp_path, size_px=0)
    assert (data.images.shape, data.preparation, data.notes) == ((2, 3, 30, 50), "as stored", ())
    assert np.array_equal(pixels_of(data, 1), made[1])
    save_image(tmp_path / "a" / "2.png", 50, 31)
    message = refusal(lambda: load(tmp_path, size_px=0))
    assert "a/2.png is 50 x 31 px, the others 50 x 30; to resize them alike use" in message
    assert "size must be at least 0 px, got -1" in refusal(lambda: load(tmp_path, size_px=-1))


def test_what_training_crops_from_is_a_square_that_says_so(tmp_path: Path) -> None:
    save_image(tmp_path / "train" / "n1" / "0.png", 300, 256)
    save_image(tmp_path / "train" / "n1" / "1.png", 256, 256)
    data = load_data("imagenet100", split="train", data_dir=tmp_path)
    assert data.preparation == "resize 256 crop 256 (1 of 2 as stored)"
    save_image(tmp_path / "train" / "n1" / "0.png", 256, 256)
    assert load_data("imagenet100", split="train", data_dir=tmp_path, size_px=0).images.shape[2:] == (
        256,
        256,
    )


def test_a_decoder_prepares_as_a_data_set_does_and_counts(tmp_path: Path) -> None:
    for i, side in enumerate([64, 80, 20]):
        save_image(tmp_path / "a" / f"{i}.png", side, side, seed=i)
    source, files = folder_images(tmp_path)
    tally = Tally()
    decode_one = decoder(source, 64, tally)
    data = load(tmp_path, size_px=64)
    assert all(np.array_equal(decode_one(file), data.images[i]) for i, file in enumerate(files))
    assert (tally.images, tally.counts["stored"], tally.counts["enlarged"]) == (3, 1, 1)


# Depth


def save_grey(path: Path, levels: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).save(path)


@pytest.mark.parametrize("ending", ["png", "tif", "TIFF", "pgm"])
def test_16_bits_are_scaled_to_8_and_never_cut(tmp_path: Path, ending: str) -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    save_grey(tmp_path / "a" / f"0.{ending}", levels)
    data = load(tmp_path, size_px=0)
    assert np.array_equal(data.images[0], np.broadcast_to(np.round(levels / 257), (3, 256, 256)))
    (note,) = data.notes
    assert "16 bits a pixel in 1 of 1 images; scaled to 8 bits by 1/257" in note


def png16(pixels: NDArray[np.uint16], colour_type: int) -> bytes:
    """Return a PNG of 16 bits a channel, which Pillow cannot write. pixels: [H,W,channels]."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


@pytest.mark.parametrize("colour_type, channels", [(2, 3), (6, 4), (4, 2)])
def test_colour_of_16_bits_says_that_8_are_read(tmp_path: Path, colour_type: int, channels: int) -> None:
    pixels = np.full((32, 32, channels), 0xABCD, np.uint16)
    pixels[..., 3 if channels == 4 else -1] = 0xFFFF if channels != 3 else 0xABCD
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.png").write_bytes(png16(pixels, colour_type))
    data = load(tmp_path)
    assert (data.images == 0xAB).all()
    (note,) = data.notes
    assert "16 bits a channel in 1 of 1 images; Pillow reads the upper 8 of them" in note


def test_a_tiff_whose_zero_is_white_is_turned_over(tmp_path: Path) -> None:
    for i, dtype in enumerate((np.uint8, np.uint16)):
        content = io.BytesIO()
        Image.fromarray(np.full((32, 32), 10 * (1, 257)[i], dtype)).save(content, "TIFF")
        tiff = bytearray(content.getvalue())
        tag = tiff.index(struct.pack("<HHI", 262, 3, 1))  # how black and white are stored: 1 for black as 0
        tiff[tag + 8 : tag + 10] = struct.pack("<H", 0)
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / f"{i}.tif").write_bytes(tiff)
    assert np.unique(load(tmp_path).images).tolist() == [245]


@pytest.mark.parametrize("dtype, words", [(np.float32, "floats"), (np.int32, "integers of 32 bits")])
def test_pixels_of_no_known_white_are_refused(tmp_path: Path, dtype: type, words: str) -> None:
    save_grey(tmp_path / "a" / "0.tiff", np.full((32, 32), 100, dtype))
    message = refusal(lambda: load(tmp_path))
    assert f"a/0.tiff holds {words}" in message
    assert "save it with 8 or 16 bits" in message


# What else a file may hold


def note_of(root: Path) -> str:
    """Return the one note on the images of a folder."""
    (note,) = load(root).notes
    return note


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparency_is_dropped_and_told(tmp_path: Path, mode: str) -> None:
    (tmp_path / "a").mkdir()
    base = Image.new("RGBA", (32, 32), (200, 200, 200, 0)).convert(mode)
    options = {"P": {"transparency": 0}, "RGB": {"transparency": (200, 200, 200)}}.get(mode, {})
    base.save(tmp_path / "a" / "0.png", **options)
    assert "transparent parts in 1 of 1 images; the alpha channel is dropped" in note_of(tmp_path)
    with Image.open(tmp_path / "a" / "0.png") as image:
        assert np.array_equal(pixels_of(load(tmp_path)), np.asarray(image.convert("RGB")))


def test_an_alpha_channel_that_hides_nothing_is_not_told(tmp_path: Path) -> None:
    for mode in "RGBA", "LA", "L", "P", "1", "CMYK":
        (tmp_path / mode).mkdir()
        Image.new(mode, (32, 32), 255 if mode == "LA" else None).save(tmp_path / mode / "0.tif")
    Image.new("RGBA", (32, 32), (1, 2, 3, 255)).save(tmp_path / "RGBA" / "0.tif")
    Image.new("LA", (32, 32), (1, 255)).save(tmp_path / "LA" / "0.tif")
    assert load(tmp_path).notes == ()


@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
def test_of_several_frames_the_first_is_read(tmp_path: Path, ending: str) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ((0, 0, 0), (255, 255, 255))]
    (tmp_path / "a").mkdir()
    frames[0].save(tmp_path / "a" / f"0.{ending}", save_all=True, append_images=frames[1:])
    assert "several frames in 1 of 1 images; the first one is read" in note_of(tmp_path)
    assert load(tmp_path).images.max() < 5


def test_an_orientation_is_not_applied_and_told(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[images.ORIENTATION] = 6
    (tmp_path / "a").mkdir()
    Image.new("RGB", (32, 40)).save(tmp_path / "a" / "0.jpg", exif=turned)
    assert "an EXIF orientation in 1 of 1 images; it is not applied" in load(tmp_path, size_px=0).notes[0]
    assert load(tmp_path, size_px=0).images.shape == (1, 3, 40, 32)


def test_damaged_exif_does_not_hide_the_pixels(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.new("RGB", (32, 32), (90, 90, 90)).save(
        tmp_path / "a" / "0.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"
    )
    Image.new("RGB", (32, 32), (90, 90, 90)).save(tmp_path / "a" / "1.jpg", exif=b"Exif\0\0no tiff")
    assert np.unique(load(tmp_path).images).tolist() == [90]


def test_what_pillow_warns_of_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import warnings

    def warned(content: io.BytesIO, **options: Any) -> Image.Image:
        warnings.warn("Truncated File Read", stacklevel=1)
        return real(content, **options)

    real = Image.open
    save_image(tmp_path / "a" / "0.png", 32, 32)
    monkeypatch.setattr(Image, "open", warned)
    assert "Pillow warns of 1 of 1 images: a/0.png: Truncated File Read" in note_of(tmp_path)


# What is refused


def test_a_decompression_bomb_is_refused_with_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    save_image(tmp_path / "a" / "0.png", 32, 40)  # 1 280 pixels: Pillow warns, and reads it
    assert load(tmp_path, size_px=0).images.shape == (1, 3, 40, 32)
    save_image(tmp_path / "a" / "0.png", 50, 50)
    message = refusal(lambda: load(tmp_path, size_px=0))
    assert "a/0.png is too large: Image size (2500 pixels) exceeds limit of 2000 pixels" in message


def test_a_thread_of_three_million_pixels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.new("L", (3, 3_000_000)).save(tmp_path / "a" / "0.png", compress_level=1)
    message = refusal(lambda: load(tmp_path, size_px=64))
    assert "a/0.png is 3 x 3000000 px, and enlarging it to 73 px (shorter side)" in message


def test_a_size_beyond_all_memory_is_refused(tmp_path: Path) -> None:
    save_image(tmp_path / "a" / "0.png")
    assert "choose a smaller --size" in refusal(lambda: load(tmp_path, size_px=1_000_000))


@pytest.mark.parametrize(
    "content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"<html>", b"", b"\0" * 99]
)
def test_other_formats_are_not_tried(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.jpg").write_bytes(content)
    assert "a/0.jpg is not an image that can be decoded (no BMP" in refusal(lambda: load(tmp_path))


@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "bmp", "webp", "ppm", "pgm"])
def test_no_damage_to_an_image_is_a_traceback(tmp_path: Path, ending: str) -> None:
    rng = np.random.default_rng(0)
    content = io.BytesIO()
    picture: Pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
    form = {"jpg": "JPEG", "tif": "TIFF", "pgm": "PPM"}.get(ending, ending.upper())
    Image.fromarray(picture).save(content, form)
    whole = np.frombuffer(content.getvalue(), np.uint8)
    for _ in range(60):
        damaged = whole.copy()
        places = rng.integers(0, min(len(damaged), 200), 4)
        damaged[places] = rng.integers(0, 256, 4)
        try:
            images.open_image(damaged.tobytes(), "here")
        except images.UserError as error:
            assert "\n" not in str(error)
            assert str(error).startswith("here ")
