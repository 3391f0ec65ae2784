"""One image: decoded to 8-bit RGB, and brought to the size that a model wants. What was lost is counted."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from robustglimpse.data.sources import Source, printable
from robustglimpse.records import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

RESIZE_RATIO = 256 / 224
FORMATS = ("BMP", "DIB", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # others start programs, as EPS does
ORIENTATION = 0x0112  # the tag of EXIF
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # a tag of TIFF, and the value that says so
# What may be said of some images of a set, and what was done about it.
FINDINGS = {
    "grey16": "16 bits a pixel in {}; scaled to 8 bits by 1/257",
    "colour16": "16 bits a channel in {}; Pillow reads the upper 8 of them",
    "transparent": "transparent parts in {}; the alpha channel is dropped, as torchvision does",
    "frames": "several frames in {}; the first one is read",
    "turned": "an EXIF orientation in {}; it is not applied, as in torchvision",
}


@dataclass(frozen=True)
class Preparation:
    """What is done to an image after it is decoded: nothing, or a resize and a crop.

    side_px: what the shorter side is resized to, None for images as they are stored.
    size_px: the square that is cut out of the middle then.
    """

    side_px: int | None = None
    size_px: int | None = None

    @property
    def tag(self) -> str:
        """Its name in tables: "resize 73 crop 64"."""
        return f"resize {self.side_px} crop {self.size_px}" if self.side_px else "as stored"


def prepare(size_px: int | None) -> Preparation:
    """Return how images are brought to a size, clean ones and corrupted ones alike.

    The shorter side is resized to 8/7 of it, then the centre is cut out.  An image that has the size already
    is left alone; None leaves all of them alone.
    """
    return Preparation(round(size_px * RESIZE_RATIO), size_px) if size_px else Preparation()


@dataclass
class Tally:
    """How many images of a set were prepared in which way, and what was found in them.

    content: SHA-256 of the files, in order, each with the hash so far.  warning: the first that Pillow gave.
    """

    images: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    content: str = ""
    warning: str = ""

    def add(self, content: bytes, kinds: Sequence[str], warning: str = "") -> None:
        """Count the image that a file holds, of these kinds."""
        self.images += 1
        self.counts.update(kinds)
        self.content = hashlib.sha256(self.content.encode() + content).hexdigest()
        self.warning = self.warning or warning

    def preparation(self, asked: Preparation) -> str:
        """Return what was done to the set: "resize 73 crop 64 (3 of 10 as stored)"."""
        stored = self.counts["stored"]
        if stored == self.images:
            return "as stored"
        return f"{asked.tag} ({stored} of {self.images} as stored)" if stored else asked.tag

    def notes(self, name: str, asked: Preparation) -> list[str]:
        """Return lines for the user of what was done to the images of the data set of that name."""
        lines = []
        resized = self.images - self.counts["stored"]
        if resized:
            which = "images are" if resized == self.images else self._some(resized)
            lines.append(
                f"{which} resized to {asked.side_px} px (shorter side) and cropped to {asked.size_px} px; "
                "--size 0 takes them as they are stored"
            )
        if enlarged := self.counts["enlarged"]:
            lines.append(f"{self._some(enlarged)} smaller than {asked.side_px} px and enlarged")
        for kind, text in FINDINGS.items():
            if count := self.counts[kind]:
                lines.append(text.format(f"{count} of {self.images} images"))
        if self.warning:
            lines.append(f"Pillow warns of {self.counts['warned']} of {self.images} images: {self.warning}")
        return [f"{name}: {line}" for line in lines]

    def _some(self, count: int) -> str:
        return f"{count} of {self.images} images {'is' if count == 1 else 'are'}"


def read_image(source: Source, path: str, asked: Preparation, tally: Tally) -> NDArray[np.uint8]:
    """Return an image u8 [3,H,W], prepared; the tally counts it.

    Raises UserError for what is no image, is too large, or has pixels that 8 bits cannot stand for.
    """
    where = f"{printable(source.path)}: {printable(path)}"
    content = source.read(path)
    image, kinds, warning = open_image(content, where)
    prepared = _prepared(image, asked, where)
    if prepared is image:
        kinds.append("stored")
    elif min(image.size) < (asked.side_px or 0):
        kinds.append("enlarged")
    tally.add(content, kinds, f"{printable(path)}: {warning}" if warning else "")
    return np.asarray(prepared).transpose(2, 0, 1)


def _prepared(image: Image, asked: Preparation, where: str) -> Image:
    """Return an image at the size asked for, itself where it has that."""
    if asked.side_px is None or image.size == (asked.size_px, asked.size_px):
        return image
    from PIL import Image as PillowImage
    from torchvision.transforms import functional as tv

    width, height = image.size
    scale = asked.side_px / min(width, height)
    limit = PillowImage.MAX_IMAGE_PIXELS
    if limit and scale > 1 and width * height * scale**2 > limit:
        raise UserError(
            f"{where} is {width} x {height} px, and enlarging it to {asked.side_px} px (shorter side) would "
            f"make more than {limit} pixels; choose a smaller --size, or remove it"
        )
    cropped: Image = tv.center_crop(tv.resize(image, [asked.side_px]), [asked.size_px, asked.size_px])
    return cropped


def resize_whole(pixels: NDArray[np.uint8], size_px: int, where: str) -> NDArray[np.uint8]:
    """Return a square image u8 [3,H,H] as u8 [3,size_px,size_px], resized whole, as a folder's would be."""
    from PIL import Image as PillowImage

    image = PillowImage.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    return np.asarray(_prepared(image, Preparation(size_px, size_px), where)).transpose(2, 0, 1)


def open_image(content: bytes, where: str) -> tuple[Image, list[str], str]:
    """Return an image as 8-bit RGB, which FINDINGS apply to it, and what Pillow warns of, "" for nothing.

    where: what to call it in an error.  Raises UserError for what cannot be read without a loss of range.
    """
    from PIL import Image as PillowImage
    from PIL import UnidentifiedImageError

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            image = PillowImage.open(io.BytesIO(content), formats=FORMATS)
            raw = " ".join(str(tile[3]) for tile in image.tile)  # forgotten once it is decoded
            image.load()
            rgb, kinds = _as_rgb(image, raw, where)
        except UserError:
            raise
        except PillowImage.DecompressionBombError as error:
            reason = str(error).partition(",")[0]
            raise UserError(f"{where} is too large: {reason}; make it smaller or remove it") from None
        except UnidentifiedImageError:
            raise UserError(
                f"{where} is not an image that can be decoded (no {', '.join(FORMATS)}); mend or remove it"
            ) from None
        except Exception as error:  # a hostile file can break a decoder in any way
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise UserError(
                f"{where} is not an image that can be decoded ({reason}); mend or remove it"
            ) from None
    told = [str(each.message).partition("\n")[0] for each in caught if _matters(each)]
    return rgb, kinds + ["warned"] * bool(told), told[0] if told else ""


def _matters(warning: warnings.WarningMessage) -> bool:
    """Return whether a user should know of it: Pillow's own, but for one that FINDINGS have."""
    return issubclass(warning.category, UserWarning) and not str(warning.message).startswith("Palette images")


def _as_rgb(image: Image, raw: str, where: str) -> tuple[Image, list[str]]:
    """Return a decoded image as 8-bit RGB and which FINDINGS apply to it.

    raw: Pillow's name for how the file holds its pixels, such as "RGB;16B".
    """
    kinds = ["frames"] if getattr(image, "is_animated", False) else []
    if _orientation(image) not in (0, 1):
        kinds.append("turned")
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        held = "floats" if image.mode == "F" else "integers of 32 bits or with signs"
        raise UserError(f"{where} holds {held}, of which none is white; save it with 8 or 16 bits a channel")
    if image.mode.startswith("I"):
        return _from_deep(image, 4095 if ";12" in raw else 65535), [*kinds, "grey16"]
    if ";16" in raw:
        kinds.append("colour16")
    if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
        kinds.append("transparent")
    return image.convert("RGB"), kinds


def _orientation(image: Image) -> int:
    """Return how a camera was held, 1 for upright and where the file does not say."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # what surrounds the pixels may be damaged in any way; the pixels are read
        return 1


def _from_deep(image: Image, white: int) -> Image:
    """Return a grey image of 12 or 16 bits as RGB; Pillow itself would cut everything above 255."""
    from PIL import Image as PillowImage

    levels = np.asarray(image).astype(np.uint32)
    if image.format == "TIFF" and getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO:
        levels = white - levels
    rounded = (levels * 510 + white) // (2 * white)  # the nearest of 256 levels
    return PillowImage.fromarray(rounded.astype(np.uint8)).convert("RGB")
