"""Models from outside: any nn.Module as a Classifier, and those that a call string names.

"torchvision:NAME", "timm:NAME", "robustbench:NAME" and "package.module:factory", with options behind.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from functools import reduce
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from robustglimpse.data.folders import CIFAR10_CLASSES
from robustglimpse.extras import need
from robustglimpse.models import SOURCES
from robustglimpse.models.options import OURS, UNHASHED, Said, imagenet_wnids, is_file, numbers, read_options
from robustglimpse.models.preflight import check_model, finite_logits, reason
from robustglimpse.models.surrogates import surrogates
from robustglimpse.models.zoo import load_weights_, read_weights
from robustglimpse.records import Channels, Classifier, UserError
from robustglimpse.registry import Call, parse_call, resolve

NO_MEAN: Channels = (0.0, 0.0, 0.0)
NO_STD: Channels = (1.0, 1.0, 1.0)
NO_NOTES: tuple[str, ...] = ()


def wrap(
    module: nn.Module,
    *,
    name: str,
    classes: int | Sequence[str] | None = None,
    size_px: int,
    mean: Channels = NO_MEAN,
    std: Channels = NO_STD,
    output: int | str | None = None,
    channels_last: bool = False,
    device: str = "cpu",
) -> Classifier:
    """Return a module (images f32 [B,3,H,W] -> logits [B,K]) as a Classifier of [0,1] images.

    The module itself is moved to the device, put in eval mode and frozen, not copied.
    classes: their names in the order of the logits, or how many there are; None for one per logit.
    mean, std: what to normalise with before the module; leave them where it does so itself.
    output: which part of what it returns holds the logits, where that is a tuple or a dict.
    channels_last: run in that memory layout, in which convolutions are faster; not all modules can.
    It has one exit, so all surrogates share one gradient.  Its hash is that of its parameters and buffers,
    of mean, std and output, and of the files with the code of its modules, those of installed packages aside.
    Raises UserError where images of noise do not give finite logits that are their own (see check_model).
    """
    layout = torch.channels_last if channels_last else torch.preserve_format
    module = module.to(device).to(memory_format=layout).eval().requires_grad_(False)
    shift, scale = (torch.tensor(channels, device=device)[:, None, None] for channels in (mean, std))
    noise = torch.rand(2, 3, size_px, size_px, generator=torch.Generator().manual_seed(0)).to(device)

    def logits(x: Tensor) -> Tensor:
        normalised = (x - shift) / scale
        if channels_last:
            normalised = normalised.contiguous(memory_format=torch.channels_last)
        return _pick(module(normalised), output, name).float()  # f16 under autocast

    if classes is None:
        classes = finite_logits(logits, noise, name).shape[1]
    labels = numbers(classes) if isinstance(classes, int) else tuple(classes)

    def exits(x: Tensor, path: Any = None) -> Tensor:
        return logits(x)[None]

    classifier = Classifier(
        name=name,
        logits=logits,
        exits=exits,
        surrogates=surrogates(exits, 1),
        trace=lambda x: x.new_tensor([1.0, 0.0, 0.0]).expand(len(x), 1, 3),
        classes=labels,
        size_px=size_px,
        sha256=_hash(module, f"{mean} {std} {output}"),
        normalisation=(mean, std),
        meta={"backbone": type(module).__name__, "family": "", "dataset": "", "exits": 1, "device": device},
    )
    return check_model(classifier, noise)


def _pick(returned: Any, output: int | str | None, name: str) -> Tensor:
    """Return the logits in what a module returned. Raises UserError naming the choices there are."""
    if output is None and isinstance(returned, Tensor):
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


def _hash(module: nn.Module, settings: str) -> str:
    digest = hashlib.sha256(f"{type(module).__name__} {settings}\n".encode())
    for path in sorted(_own_files(module)):
        digest.update(path.read_bytes())
    for key, value in sorted(module.state_dict().items()):
        digest.update(f"{key} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _own_files(module: nn.Module) -> set[Path]:
    """Return the files that define a module and its parts, those of installed packages aside."""
    files = set()
    for kind in {type(part) for part in module.modules()}:
        try:
            path = Path(inspect.getfile(kind)).resolve()
        except (OSError, TypeError):  # made in a notebook or a shell
            continue
        is_installed = {"site-packages", "dist-packages"} & set(path.parts)
        if not is_installed and kind.__module__.partition(".")[0] != "robustglimpse" and path.is_file():
            files.add(path)
    return files


# Call strings


@dataclass(frozen=True)
class Found:
    """A module, and what its library tells about it: the answers where a call string has none.

    classes: None for as many as it has logits.  dataset: the name of one of our data sets, or "".
    channels_last: whether it runs in that layout.
    """

    module: nn.Module
    classes: tuple[str, ...] | None
    size_px: int
    mean: Channels = NO_MEAN
    std: Channels = NO_STD
    backbone: str = ""
    dataset: str = ""
    notes: tuple[str, ...] = ()
    channels_last: bool = False


def load_source(text: str, *, device: str = "cpu") -> Classifier:
    """Return the model that a call string names, as `wrap` does; meta["notes"] are lines for the user.

    Raises UserError where its library, its weights or its module are missing, or do not fit.
    """
    call = parse_call(text)
    source = call.name.partition(":")[0]
    said = read_options(call)
    options = {key: value for key, value in call.arguments if key not in OURS}
    found = resolve(SOURCES.get(source, SOURCES["package.module"]))(call, said, dict(options))
    if isinstance(found, Classifier):
        return replace(found, name=said.name)
    mean, std = said.mean or found.mean, said.std or found.std
    classifier = wrap(
        found.module, name=said.name, classes=said.classes or found.classes,
        size_px=said.size_px or found.size_px, mean=mean, std=std, output=said.output,
        channels_last=found.channels_last if said.channels_last is None else said.channels_last,
        device=device,
    )  # fmt: skip
    settings = {key: value for key, value in options.items() if key not in UNHASHED}
    sha256 = classifier.sha256
    if settings:  # they may change what a model does, and leave no trace in its weights
        sha256 = hashlib.sha256(f"{sha256} {sorted(settings.items())}".encode()).hexdigest()
    meta = {
        **classifier.meta,
        "backbone": found.backbone or classifier.meta["backbone"],
        "family": source if source in SOURCES else "",
        "dataset": found.dataset if said.data is None else said.data,
        "notes": tuple(f"{said.name}: {note}" for note in found.notes),
        "is_random": classifier.meta["is_random"] or said.random,
    }
    return replace(classifier, sha256=sha256, meta=meta)


@contextmanager
def _foreign(name: str, advice: str = "") -> Iterator[None]:
    """Run somebody else's code: seeded, no unpickling, its chatter to stderr, its exceptions on one line.

    advice: what to do where it fails; where there is none, the line that failed is named.
    """
    key = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(key)
    os.environ[key] = "1"
    try:
        with warnings.catch_warnings(), redirect_stdout(sys.stderr), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            torch.default_generator.manual_seed(0)  # random weights are the same ones each time
            yield
    except UserError:
        raise
    except Exception as error:
        if "unexpected keyword argument" in str(error):
            advice = "it has no such option"
        raise UserError(f"{name}: {reason(error)}; {advice or _place(error)}") from error
    finally:
        if before is None:
            del os.environ[key]
        else:
            os.environ[key] = before


def _place(error: Exception) -> str:
    """Return where it failed: in the last file on the way that no library installed."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [
        f for f in frames if "site-packages" not in f.filename and f.filename not in (__file__, "<string>")
    ]
    last = (theirs or frames)[-1]
    return f"it failed in {Path(last.filename).name}, line {last.lineno}"


def _unknown(name: str, known: Iterable[str], *, kind: str, where: str) -> UserError:
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return UserError(f"unknown {kind} {name!r}; {hint}({where})")


# The sources


def torchvision_model(call: Call, said: Said, options: dict[str, Any]) -> Found:
    """Return one of torchvision's classifiers, with its own weights, a file's, or random ones (None)."""
    from torchvision import models as library

    name = call.name.partition(":")[2]
    known = library.list_models(module=library)
    if name not in known:
        raise _unknown(name, known, kind="torchvision model", where="all: torchvision.models.list_models()")
    table = library.get_model_weights(name)
    weights = options.pop("weights", "DEFAULT")
    if weights is None or is_file(weights):
        count = options.pop("num_classes", len(said.classes or imagenet_wnids()))
        with _foreign(said.name):
            module = library.get_model(name, weights=None, num_classes=count, **options)
        preset, classes = table.DEFAULT.transforms(), _of_imagenet(count)
        notes = _load_(module, weights, said)
    else:
        entry = table.__members__.get(str(weights).rpartition(".")[2])
        if entry is None:
            raise _unknown(
                str(weights), table.__members__, kind=f"weights of {name}",
                where=f"known: {', '.join(table.__members__)}, None, or a file .safetensors or .pth",
            )  # fmt: skip
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        with _foreign(said.name, f"put {entry.url} into {folder}, or give its file: weights='FILE.pth'"):
            module = library.get_model(name, weights=entry, **options)
        preset, notes = entry.transforms(), NO_NOTES
        classes = _of_imagenet(len(entry.meta["categories"])) or tuple(entry.meta["categories"])
    return Found(
        module, classes, preset.crop_size[0], tuple(preset.mean), tuple(preset.std), name, notes=notes,
        channels_last=True,
    )  # fmt: skip


def _of_imagenet(count: int) -> tuple[str, ...] | None:
    """Return ImageNet's classes where a model has as many."""
    return imagenet_wnids() if count == len(imagenet_wnids()) else None


def _load_(module: nn.Module, weights: str | None, said: Said) -> tuple[str, ...]:
    """Put a file's weights into a module, strictly, where there is a file; return notes for the user."""
    if weights is None:
        return ("its weights are random (weights=None)",)
    hint = f"is it of {said.name}, and how many are its classes (classes=N)?"
    load_weights_(module, read_weights(Path(weights)), Path(weights), hint=hint)
    if said.mean is None or said.std is None:
        return ("images are normalised as for its library's own weights; say mean= and std= for others",)
    return ()


def timm_model(call: Call, said: Said, options: dict[str, Any]) -> Found:
    """Return one of timm's models, with its own weights, a file's, or random ones (None)."""
    name = call.name.partition(":")[2]
    with _foreign(said.name):
        library = need("timm", "timm")
    if ":" not in name and not library.is_model(name):  # "hf-hub:USER/NAME" is looked up there
        raise _unknown(name, library.list_models(), kind="timm model", where="all: timm.list_models()")
    weights = options.pop("weights", "DEFAULT")
    wanted = options.pop("pretrained", True) and weights is not None
    if wanted and not is_file(weights):
        tagged = name if weights == "DEFAULT" else f"{name.partition('.')[0]}.{weights}"
        with _foreign(said.name, "fetch its weights elsewhere and give the file: weights='FILE.safetensors'"):
            module, notes = library.create_model(tagged, pretrained=True, **options), NO_NOTES
    else:
        if said.classes:
            options.setdefault("num_classes", len(said.classes))
        with _foreign(said.name):
            module = library.create_model(name, pretrained=False, **options)
        notes = _load_(module, weights if is_file(weights) else None, said)
    config = library.data.resolve_data_config({}, model=module)
    mean, std, size_px = tuple(config["mean"]), tuple(config["std"]), config["input_size"][-1]
    classes = _of_imagenet(module.num_classes)
    return Found(module, classes, size_px, mean, std, name, notes=notes, channels_last=True)


def robustbench_model(call: Call, said: Said, options: dict[str, Any]) -> Found:
    """Return a model of RobustBench's zoo, from model_dir where its file is there; it normalises inside."""
    name = call.name.partition(":")[2]
    with importable_robustbench(), _foreign(said.name, "see robustglimpse doctor"):
        library = need("robustbench.utils", "robustbench")
        models, datasets, threats = library.all_models, library.BenchmarkDataset, library.ThreatModel
    dataset, threat_model = options.get("dataset", "cifar10"), options.get("threat_model", "Linf")
    try:
        known = models[datasets(dataset)][threats(threat_model)]
    except (ValueError, KeyError):
        raise UserError(
            f"{said.name}: RobustBench has no models of dataset={dataset!r}, threat_model={threat_model!r}; "
            "try 'cifar10', 'cifar100', 'imagenet' and 'Linf', 'L2', 'corruptions'"
        ) from None
    if name not in known:
        kind = f"RobustBench model of {dataset}, {threat_model}"
        raise _unknown(name, known, kind=kind, where="all: robustbench.github.io")
    file = Path(options.get("model_dir", "models")) / dataset / threat_model / f"{name}.pt"
    advice = f"fetch its file elsewhere and put it at {file} (model_dir= is the first folder)"
    _check_options(library.load_model, {"model_name": name, **options}, said.name)
    with _foreign(said.name, advice):
        module = library.load_model(name, **options)
    classes = {"cifar10": CIFAR10_CLASSES, "imagenet": imagenet_wnids()}.get(dataset)
    size_px = 224 if dataset == "imagenet" else 32
    return Found(module, classes, size_px, backbone=name, dataset=dataset if dataset == "cifar10" else "")


@contextmanager
def importable_robustbench() -> Iterator[None]:
    """Let RobustBench import what it asks for by names that today's indexes do not have.

    `autoattack` is `pyautoattack` there, and stays under that name; `pkg_resources` has left setuptools,
    and the one function of it that RobustBench calls stands in while it is imported.
    """
    if find_spec("robustbench") is None:
        need("robustbench", "robustbench")
    if "autoattack" not in sys.modules and find_spec("autoattack") is None:
        sys.modules["autoattack"] = need("pyautoattack", "robustbench")
        sys.modules["autoattack.state"] = need("pyautoattack.state", "robustbench")
    if "pkg_resources" in sys.modules or find_spec("pkg_resources") is not None:
        yield
        return
    stand_in = ModuleType("pkg_resources")
    setattr(stand_in, "resource_filename", _beside)  # noqa: B010 - a module has no such attribute to assign
    sys.modules["pkg_resources"] = stand_in
    try:
        yield
    finally:
        del sys.modules["pkg_resources"]


def _beside(module: str, path: str) -> str:
    """Return the path of a file beside a module's own."""
    return str(Path(str(sys.modules[module].__file__)).parent / path)


def factory_model(call: Call, said: Said, options: dict[str, Any]) -> Found | Classifier:
    """Return what "package.module:factory" makes, or a module that lies there.

    The current folder is looked in as well.  weights= is ours where the factory has no such parameter;
    classes= and size_px= are the factory's too where it has.
    """
    where, _, inside = call.name.partition(":")
    target: Any
    try:
        target = reduce(getattr, inside.split("."), _imported(where, said.name))
    except AttributeError:
        raise UserError(
            f"{said.name}: the module {where} has no {inside!r}; name what makes the model"
        ) from None
    is_made = isinstance(target, nn.Module) or not callable(target)
    takes = {} if is_made else _parameters(target)
    weights = options.pop("weights", None) if "weights" not in takes else None
    if is_made:
        if options:
            raise UserError(f"{said.name}: it is made already, and takes no {next(iter(options))!r}")
        made = target
    else:
        shared = {k: call.get(k) for k in ("classes", "size_px") if k in takes and call.get(k) is not None}
        _check_options(target, {**options, **shared}, said.name)
        with _foreign(said.name):
            made = target(**options, **shared)
    if isinstance(made, Classifier):
        return made
    if not isinstance(made, nn.Module):
        raise UserError(
            f"{said.name}: expected an nn.Module, got a {type(made).__name__}; name what makes one"
        )
    if said.size_px is None:
        raise UserError(f"{said.name}: say the side of the images that it takes: size_px=32")
    if weights is not None:
        hint = f"is it of {said.name}, with these options?"
        load_weights_(made, read_weights(Path(str(weights))), Path(str(weights)), hint=hint)
    return Found(made, None, said.size_px)


def _imported(name: str, shown: str) -> ModuleType:
    """Return a module by name, looked for in the current folder too."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    with _foreign(shown):
        try:
            return import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # found, but it imports something that is not there
            near = difflib.get_close_matches(name, SOURCES, n=1)
            hint = f"did you mean {near[0]}:? " if near else ""
            raise UserError(
                f"{shown}: no module {name!r} is installed or in {here}; {hint}"
                f"(expected one of {', '.join(f'{source}:NAME' for source in SOURCES)})"
            ) from None


def _parameters(target: Callable[..., Any]) -> Mapping[str, Any]:
    try:
        return inspect.signature(target).parameters
    except ValueError:  # not every builtin has a signature
        return {}


def _check_options(target: Callable[..., Any], options: Mapping[str, Any], name: str) -> None:
    """Raise UserError unless target can be called with these keyword arguments."""
    takes = _parameters(target)
    try:
        inspect.Signature(list(takes.values())).bind(**options)
    except TypeError as error:
        raise UserError(f"{name}: {error}; it takes {', '.join(takes) or 'nothing'}") from None
