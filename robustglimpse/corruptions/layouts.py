"""The forms in which images come: tensors, arrays or Pillow's images, one or many, channels first or last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from robustglimpse.arguments import shown
from robustglimpse.records import UserError

if TYPE_CHECKING:
    from torch import Tensor

    Back = Callable[[Tensor], Any]


def as_batch(images: Any) -> tuple[Tensor, Back]:
    """Return images u8 [B,3,H,W], and the function that gives such a batch the form that they came in.

    images: a tensor or an array u8 [B,3,H,W] or [B,H,W,3], one image an array [3,H,W] or [H,W,3]; or an RGB
        image of Pillow, or several of one size.  Raises UserError for others, and for an array whose channels
        may be first or last.
    """
    import numpy as np
    import torch
    from PIL.Image import Image

    if isinstance(images, Image):
        return _of_pictures([images], lambda pictures: pictures[0])
    if isinstance(images, list | tuple) and images and all(isinstance(each, Image) for each in images):
        return _of_pictures(images, list)
    if not isinstance(images, np.ndarray | torch.Tensor):
        are_many = isinstance(images, list | tuple)
        mend = "stack them into one tensor or array" if are_many else "give a tensor, or an image of Pillow"
        raise UserError(f"images must be u8 [B,3,H,W], got {shown(images)}; {mend}")
    place = _channels_at(images)
    is_one, is_array = images.ndim == 3, isinstance(images, np.ndarray)
    pixels = torch.from_numpy(np.array(images)) if isinstance(images, np.ndarray) else images
    pixels = pixels[None] if is_one else pixels

    def back(result: Tensor) -> Any:
        result = result.permute(0, 2, 3, 1) if place == -1 else result
        result = result[0] if is_one else result
        return result.numpy() if is_array else result

    return pixels.permute(0, 3, 1, 2) if place == -1 else pixels, back


def _channels_at(images: Any) -> int:
    """Return which dimension of a tensor or array holds the channels, -3 or -1; raise UserError for none."""
    dtype, shape = str(images.dtype).removeprefix("torch."), list(images.shape)
    got = f"images must be u8 [B,3,H,W], got {dtype} {shape}"
    if dtype != "uint8":
        mend = "(images * 255).round() of floats in [0,1], " if "float" in dtype else ""
        raise UserError(f"{got}; give {mend}levels from 0 to 255 as uint8")
    is_tensor = hasattr(images, "detach")
    if is_tensor and len(shape) == 3:
        raise UserError(f"{got}; images[None] is a batch of one")
    places = [place for place in (-3, -1) if len(shape) in (3, 4) and shape[place] == 3]
    if not places or 0 in shape[-3:]:
        raise UserError(f"{got}; repeat the channel of a grey image three times")
    if len(places) > 1 and not is_tensor:
        raise UserError(f"{got}, whose channels may be first or last; give a tensor u8 [B,3,H,W]")
    return places[0]


def _of_pictures(pictures: Sequence[Any], back: Callable[[list[Any]], Any]) -> tuple[Tensor, Back]:
    """Return the same of Pillow's images."""
    import numpy as np
    import torch
    from PIL.Image import fromarray

    modes, sizes = (sorted({getattr(each, name) for each in pictures}) for name in ("mode", "size"))
    if modes != ["RGB"]:
        raise UserError(f"images must be RGB, got {', '.join(modes)}; image.convert('RGB') makes them so")
    if len(sizes) > 1:
        raise UserError(f"images must have one size, got {sizes}; corrupt those of each size by themselves")
    pixels = torch.from_numpy(np.stack([np.asarray(each) for each in pictures])).permute(0, 3, 1, 2)

    def restored(result: Tensor) -> Any:
        return back([fromarray(each) for each in result.permute(0, 2, 3, 1).cpu().numpy()])

    return pixels, restored
