"""Any module or function of images as a Classifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustglimpse.models.callables import Form, as_logits, dtype_of, find_form, is_dynamic
from robustglimpse.models.contents import changing, contents, hash_model
from robustglimpse.models.foreign import undisturbed
from robustglimpse.models.naming import Naming, numbers, read_naming
from robustglimpse.models.options import read_channels, read_size
from robustglimpse.models.preflight import check_model, reason
from robustglimpse.models.surrogates import surrogates
from robustglimpse.notes import tell
from robustglimpse.records import Channels, Classifier, UserError

NO_MEAN: Channels = (0.0, 0.0, 0.0)
NO_STD: Channels = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Origin:
    """Where a module comes from, for its hash.

    modules: the names of Python modules that made it.  options: what they were told, as text.
    is_ours: nobody else holds it, so that nobody can change it.
    """

    modules: tuple[str, ...] = ()
    options: str = ""
    is_ours: bool = False


def wrap(
    module: Callable[..., Any] | torch.export.ExportedProgram,
    *,
    name: str,
    classes: Any = None,
    size_px: int | tuple[int, int],
    mean: Sequence[float] | float = NO_MEAN,
    std: Sequence[float] | float = NO_STD,
    output: int | str | None = None,
    channels_last: bool = False,
    device: str | torch.device = "cpu",
) -> Classifier:
    """Return a module, or a function, images f32 [B,3,H,W] -> logits [B,K], as a Classifier of [0,1] images.

    A module itself is moved to the device, put in eval mode and frozen, not copied; scripted, compiled,
    exported, quantised ones and such of other floating-point types are taken too.  A function stays as it is.
    What it takes and returns is found out, and told in meta["notes"]: grey images for one that takes a single
    channel, [0, z] for a single output z, a fixed number of images at once.
    classes: their names in the order of the logits, a file of them (.txt, one a line), "imagenet",
        "imagenet100", "cifar10" or "cifar100"; how many there are; "sorted" or "natural" where logits have no
        names, and data's folders are numbered so; None for one per logit.
    size_px: the side of its images, or height and width: images of another size are then resized inside.
    mean, std: what to normalise with before the module; leave them where it does so itself.
    output: which part of what it returns holds the logits, where that is a tuple or a dict; "probabilities"
        where it returns those, to take their log.
    channels_last: run in that memory layout, in which convolutions are faster; not all modules can.
    It has one exit, so all surrogates share one gradient.  Its hash is that of its weights and settings, of
    mean, std and output, and of the user's files with its code and with what they import; `renew` hashes it
    again.  Random numbers, grad mode and torch's switches stay as they were.
    Raises UserError where images of noise do not give finite logits that are their own (see check_model).
    """
    classifier, changed = wrap_from(
        Origin(), module, name=name, classes=classes, size_px=size_px, mean=mean, std=std, output=output,
        channels_last=channels_last, device=device,
    )  # fmt: skip
    if not changed:
        return classifier
    notes = (*classifier.meta.get("notes", ()), f"{name}: {_has_changed(changed)}")
    return replace(classifier, meta={**classifier.meta, "notes": notes})


def _has_changed(files: Sequence[str]) -> str:
    return (
        f"{files[0]} has changed since it was imported; what runs, and is hashed, is the code from before: "
        "restart Python for the new one"
    )


def wrap_from(
    origin: Origin,
    module: Any,
    *,
    name: str,
    classes: Any,
    size_px: Any,
    mean: Any,
    std: Any,
    output: int | str | None,
    channels_last: bool,
    device: str | torch.device,
) -> tuple[Classifier, list[str]]:
    """Return what `wrap` returns, and which files of its code have changed since they were imported."""
    if not isinstance(name, str) or not name:
        raise UserError(f"name must be a text that tables can show, got {name!r}; for example name='mine'")
    _check_is_callable(module, name)
    naming, device = read_naming(classes, name), str(device)
    side, size = read_size(size_px, name)
    form = Form(
        read_channels(mean, "mean", name), read_channels(std, "std", name), size=size, output=output,
        channels_last=channels_last,
    )  # fmt: skip
    settings = f"{form.mean} {form.std} {output} {size} {origin.options}"
    with undisturbed():
        run, count = _callable(module)
        place_(run, name, device, channels_last=channels_last)
        shape = (3, *(size or (side, side)))
        noise = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)).to(device)
        before = contents(run, with_weights=False)
        form, notes = find_form(run, replace(form, dtype=dtype_of(run)), noise, device, name, count=count)
        place_(run, name, device, channels_last=channels_last)  # lazy modules have their weights now
        classifier = check_model(_unhashed(run, form, name, naming, side, device, notes), noise)
        passing = changing(before, contents(run, with_weights=False))
        sha256, changed = hash_model(run, settings=settings, modules=origin.modules, without=passing)

    def renew() -> str:
        with undisturbed():
            place_(run, name, device, channels_last=channels_last)
            now, changed = hash_model(run, settings=settings, modules=origin.modules, without=passing)
        if changed:
            tell(f"{name}: {_has_changed(changed)}")
        return now

    return replace(classifier, sha256=sha256, renew=None if origin.is_ours else renew), changed


def _unhashed(
    run: Any, form: Form, name: str, naming: Naming, side: int, device: str, notes: Sequence[str]
) -> Classifier:
    """Return the Classifier, not checked yet and without a hash."""
    logits = as_logits(run, form, device, name)

    def exits(x: Tensor, path: Any = None) -> Tensor:
        return logits(x)[None]

    if form.size is not None:
        notes = (f"it takes images of {form.size[0]} x {form.size[1]} px; others are resized inside", *notes)
    meta: dict[str, Any] = {"backbone": _kind(run), "family": "", "dataset": "", "device": device}
    meta |= {"module": run} if isinstance(run, nn.Module) else {}
    meta |= {"order": naming.order} if naming.order else {}
    meta |= {"input_px": form.size} if form.size else {}
    meta |= {"at_once": form.at_once} if form.at_once else {}
    return Classifier(
        name=name,
        logits=logits,
        exits=exits,
        surrogates=surrogates(exits, 1),
        trace=lambda x: x.new_tensor([1.0, 0.0, 0.0]).expand(1, len(x), 3),
        classes=naming.names or numbers(naming.count or form.classes),
        size_px=side,
        sha256="",
        normalisation=(form.mean, form.std),
        meta={**meta, "notes": tuple(f"{name}: {note}" for note in notes)},
        is_named=naming.names is not None,
    )


def _check_is_callable(module: Any, name: str) -> None:
    """Raise UserError, with what to do, for what is no function of images."""
    cure = ""
    if isinstance(module, str | Path):
        cure = f"load_model({str(module)!r}) reads a name, a call or a file"
    elif isinstance(module, Classifier):
        cure = "it is a Classifier already: use it as it is"
    elif isinstance(module, type):
        cure = f"make one: {module.__name__}()"
    elif isinstance(module, Mapping):
        cure = "those are weights: put them into their network (load_state_dict) and give that"
    elif not (callable(module) or isinstance(module, torch.export.ExportedProgram)):
        cure = "give a module, or a function of images that returns logits"
    if cure:
        raise UserError(f"{name}: expected an nn.Module or a function, got a {type(module).__name__}; {cure}")


def _callable(module: Any) -> tuple[Callable[..., Any], int | None]:
    """Return what to call, and how many images it must be asked at once, None for any number."""
    run = module.module() if isinstance(module, torch.export.ExportedProgram) else module
    if is_dynamic(run):
        return run, 1
    if not isinstance(run, torch.fx.GraphModule):
        return run, None
    inputs = [node.meta.get("val") for node in run.graph.nodes if node.op == "placeholder"]
    count = inputs[0].shape[0] if inputs and isinstance(inputs[0], Tensor) and inputs[0].ndim == 4 else None
    return run, count if isinstance(count, int) else None  # a symbol stands for any number


def place_(run: Any, name: str, device: str, *, channels_last: bool = False) -> None:
    """Move a module to the device, put it in eval mode and freeze it; leave other callables as they are."""
    if not isinstance(run, nn.Module):
        return
    try:
        run.to(device)
        if channels_last:
            run.to(memory_format=torch.channels_last)
    except Exception as error:
        raise UserError(f"{name}: it cannot be moved to {device}: {reason(error)}") from error
    with suppress(NotImplementedError):  # an exported one stays as it was exported
        run.eval()
    for part in run.modules():  # no gradient passes what was made under inference_mode
        for key, weight in part._parameters.items():
            if weight is not None and not nn.parameter.is_lazy(weight) and weight.is_inference():
                part._parameters[key] = nn.Parameter(weight.clone(), requires_grad=False)
        for key, buffer in part._buffers.items():
            if buffer is not None and not nn.parameter.is_lazy(buffer) and buffer.is_inference():
                part._buffers[key] = buffer.clone()
    for weight in run.parameters():  # of scripted modules one by one; lazy ones have none yet
        if not nn.parameter.is_lazy(weight):
            weight.requires_grad_(False)


def _kind(run: Any) -> str:
    """Return what a network is called in the tables: the name of its class, or of the function."""
    inside = getattr(run, "_orig_mod", run)  # of torch.compile
    name = getattr(inside, "original_name", None) or getattr(inside, "__name__", None)
    return name if isinstance(name, str) and name.isidentifier() else type(inside).__name__
