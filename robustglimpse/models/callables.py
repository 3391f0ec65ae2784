"""Any callable as images f32 [B,3,H,W] in [0,1] -> logits f32 [B,K]: its form is found out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustglimpse.models.preflight import (
    SOFTMAX,
    are_distributions,
    finite_logits,
    is_inside_unit,
    reason,
)
from robustglimpse.models.resized import resize
from robustglimpse.records import Channels, UserError

PROBABILITIES = "probabilities"
# ITU-R 601, as Pillow's convert("L") weighs the channels.
LUMA = (19595 / 65536, 38470 / 65536, 7471 / 65536)
# Contrast and brightness of the images by which outputs are told apart: what is not constant, as some models
# divide an image by its own deviation.
SHADES = ((0.2, 0.0), (0.2, 0.8), (0.2, 0.4), (0.6, 0.0), (0.6, 0.4), (1.0, 0.0))
SIGMOID = (
    "its outputs lie in [0,1] and do not add up to 1, as a sigmoid for each class gives; they are taken as "
    "logits: remove the sigmoid, or say output='probabilities' to take their log"
)


@dataclass(frozen=True)
class Form:
    """How images are given to a callable, and logits taken from what it returns.

    mean, std: of the normalisation before it.  size: height and width that images are resized to, None as
    they are.  is_grey: it takes one channel.  dtype: of the images.  at_once: how many it takes in a pass,
    no more and no fewer; None for any.  output: the part of what it returns; or "probabilities", whose log
    is taken.  is_binary: it has one output.  is_log: outputs are probabilities.
    passes_gradient: False where its gradient cannot be asked for.  classes: how many logits it gives.
    """

    mean: Channels
    std: Channels
    size: tuple[int, int] | None = None
    is_grey: bool = False
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    at_once: int | None = None
    output: int | str | None = None
    is_binary: bool = False
    is_log: bool = False
    passes_gradient: bool = True
    classes: int = 0


def as_logits(run: Callable[..., Any], form: Form, device: str, name: str) -> Callable[[Tensor], Tensor]:
    """Return the function of images that asks `run` in this form.  name: whose messages these are."""
    shift, scale = (torch.tensor(c, device=device)[:, None, None] for c in (form.mean, form.std))
    luma = torch.tensor(LUMA, device=device)[:, None, None]

    def asked(x: Tensor) -> Tensor:
        found = _picked(run(x), form.output, name)
        return found.to(x.device) if found.device != x.device else found

    def logits(x: Tensor) -> Tensor:
        if form.size is not None:
            x = resize(x, form.size)
        x = (x - shift) / scale
        if form.is_grey:
            x = (x * luma).sum(1, keepdim=True)
        x = x.to(form.dtype)
        if form.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        if form.at_once is None:
            found = _rows(asked(x), len(x))
        else:
            parts = _of_size(x, form.at_once)
            found = torch.cat([_rows(asked(part), form.at_once) for part in parts])[: len(x)]
        return _as_two(found, form)

    if form.passes_gradient:
        return logits
    return torch.no_grad()(lambda x: logits(x.detach()))


def _of_size(x: Tensor, count: int) -> Iterator[Tensor]:
    """Yield the images so many at a time; the last ones with the last image again and again."""
    for part in torch.split(x, count):
        missing = count - len(part)
        yield torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) if missing else part


def _picked(returned: Any, output: int | str | None, name: str) -> Tensor:
    """Return the logits in what a module returned. Raises UserError naming the choices there are."""
    if isinstance(returned, np.ndarray):
        returned = torch.from_numpy(returned)
    if isinstance(returned, Tensor) and output in (None, PROBABILITIES):
        return returned
    parts: Mapping[int | str, Any] = {}
    if isinstance(returned, Mapping):
        parts = returned
    elif isinstance(returned, tuple | list):
        parts = dict(enumerate(returned))
    found = parts.get(output) if output is not None else None
    if isinstance(found, Tensor):
        return found
    choices = ", ".join(f"{key!r} {_shape(part)}" for key, part in parts.items())
    asked = f"output={output!r} is not among" if output is not None else "name the logits with output=:"
    raise UserError(
        f"{name}: expected a tensor of logits, got a {type(returned).__name__}; "
        f"{asked} {choices or 'nothing: it has no parts'}"
    )


def _shape(part: Any) -> str:
    return str(list(part.shape)) if isinstance(part, Tensor) else type(part).__name__


def _rows(found: Tensor, count: int) -> Tensor:
    """Return [B,K] of what means that: [B], [B,K,1,1]; of one image [K] or a single number too."""
    if not found.is_floating_point():
        return found
    if count == 1 and found.ndim <= 1:
        return found.reshape(1, -1)
    if found.ndim == 1 and len(found) == count:
        return found[:, None]
    if found.ndim > 2 and len(found) == count and found.shape[2:].numel() == 1:
        return found.flatten(1)
    return found


def _as_two(found: Tensor, form: Form) -> Tensor:
    """Return f32 [B,K], K from 2 up: of one output z, [0, z]; of probabilities, their log."""
    if not found.is_floating_point():
        return found
    floor = max(torch.finfo(found.dtype).tiny, 1e-30)  # so that its gradient, 1 over it, is finite
    found = found.float()  # f16 under autocast
    if form.is_binary:
        other = 1 - found if form.is_log else torch.zeros_like(found)
        found = torch.cat([other, found], 1)
    return (found.clamp_min(0) + floor).log() if form.is_log else found


# Finding the form out


def dtype_of(module: Any) -> torch.dtype:
    """Return the type of a module's first floating-point weight, f32 where it has none."""
    if not isinstance(module, nn.Module):
        return torch.float32
    tensors = (*module.parameters(), *module.buffers())
    return next((t.dtype for t in tensors if t.dtype.is_floating_point), torch.float32)


def is_dynamic(module: Any) -> bool:
    """Return whether a module has layers that are quantised by the range of what a batch gives them."""
    if isinstance(module, torch.jit.ScriptModule):  # scripted or traced, frozen or not: its operators tell
        return bool(re.search(r"quantized::\w*dynamic", str(getattr(module, "inlined_graph", ""))))
    parts = module.modules() if isinstance(module, nn.Module) else ()
    return any(".quantized.dynamic" in type(part).__module__ for part in parts)


def find_form(
    run: Callable[..., Any], form: Form, noise: Tensor, device: str, name: str, *, count: int | None
) -> tuple[Form, tuple[str, ...]]:
    """Return the form in which `run` answers, begun from what is known of it, and notes on what was found.

    noise: f32 [2,3,H,W] in [0,1].  count: the batch that it must be asked in, None for any.  Grey images, and
    as many at once as it takes, are tried where colour and any number fail.
    Raises UserError, of the first way tried, where none gives finite logits [B,K].
    """
    form = _answering(run, form, noise, device, name, count)
    form, notes = _with_outputs(run, form, noise, device, name)
    if form.is_grey:
        notes = ("it takes one channel: images are made grey, as Pillow's convert('L') weighs them", *notes)
    if form.at_once is not None:
        number = "one image" if form.at_once == 1 else f"{form.at_once} images"
        why = (
            "its layers are quantised by the range of a batch"
            if is_dynamic(run)
            else "it takes no other number"
        )
        notes = (f"it is asked {number} at a time: {why}", *notes)
    if form.dtype is not torch.float32:
        kind = str(form.dtype).removeprefix("torch.")
        notes = (f"its weights are {kind}: images are cast to that, logits back to float32", *notes)
    lost = _lost_gradient(as_logits(run, form, device, name), noise)
    if lost:
        form = replace(form, passes_gradient=False)
        notes = (
            *notes,
            f"no gradient reaches its images ({lost}); gradient attacks count zero gradients: measure it "
            "with --attack square",
        )
    return form, notes


def _answering(
    run: Callable[..., Any], form: Form, noise: Tensor, device: str, name: str, count: int | None
) -> Form:
    """Return the first form that gives finite rows, in colour or grey, all at once or a few at a time."""
    failed: UserError | None = None
    numbers = (None, 1) if count is None else (count,)
    for at_once in numbers:
        for is_grey in (False, True):
            tried = replace(form, at_once=at_once, is_grey=is_grey)
            try:
                finite_logits(as_logits(run, tried, device, name), noise, name)
            except UserError as error:
                failed = failed or error
            else:
                return tried
    assert failed is not None
    raise failed


def _with_outputs(
    run: Callable[..., Any], form: Form, noise: Tensor, device: str, name: str
) -> tuple[Form, tuple[str, ...]]:
    """Return the form with what its outputs are, scores or probabilities, one or several; and notes."""
    logits = as_logits(run, form, device, name)
    shades = torch.cat([noise[:1] * contrast + low for contrast, low in SHADES])
    with torch.no_grad():
        try:
            found = torch.cat([logits(part) for part in (noise, *torch.split(shades, len(noise)))])
        except Exception:  # noise has been answered; what is judged on is asked later
            found = logits(noise)
    found = found[found.isfinite().all(1)]
    is_binary, is_unit = found.shape[1] == 1, is_inside_unit(found)
    form = replace(form, classes=2 if is_binary else found.shape[1])
    if form.output == PROBABILITIES:
        if not is_unit:
            raise UserError(
                f"{name}: output='probabilities' says that outputs lie in [0,1], and they go from "
                f"{float(found.min()):.3g} to {float(found.max()):.3g}; leave it out"
            )
        return replace(form, is_binary=is_binary, is_log=True), ()
    if is_binary and is_unit:
        return replace(form, is_binary=True, is_log=True), (
            "its one output lies in [0,1] and is taken as the probability p of class 1: the logits are the "
            "logs of 1 - p and p",
        )
    if is_binary:
        return replace(form, is_binary=True), (
            "its one output z is taken as the logits [0, z]: class 1 where z is above 0",
        )
    if are_distributions(found):
        return form, (SOFTMAX,)
    return form, (SIGMOID,) if is_unit else ()


def _lost_gradient(logits: Callable[[Tensor], Tensor], x: Tensor) -> str:
    """Return why the logits of images have no gradient with respect to them, "" where they have one."""
    x = x.detach().clone().requires_grad_()
    try:
        found = logits(x)
        if not found.requires_grad:
            return "its output is cut off from them"
        (gradient,) = torch.autograd.grad(found.sum(), x, allow_unused=True)
    except Exception as error:
        return reason(error)
    return "" if gradient is not None else "its output is cut off from them"
