"""Models from outside that a call string names.

"torchvision:NAME", "timm:NAME", "robustbench:NAME" and "package.module:factory", with options behind.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from robustglimpse.data.cifar import CIFAR10_CLASSES, CIFAR100_CLASSES
from robustglimpse.extras import need
from robustglimpse.models import SOURCES
from robustglimpse.models.fitting import fill_
from robustglimpse.models.foreign import undisturbed
from robustglimpse.models.guard import fenced
from robustglimpse.models.naming import imagenet_wnids
from robustglimpse.models.options import OURS, SHARED, UNHASHED, Said, is_file, read_options
from robustglimpse.models.own_code import own_code
from robustglimpse.models.preflight import reason
from robustglimpse.models.wrapped import NO_MEAN, NO_STD, Origin, wrap, wrap_from
from robustglimpse.records import Channels, Classifier, UserError
from robustglimpse.registry import Call, parse_call, resolve

__all__ = ["Found", "call_like", "importable_robustbench", "load_source", "wrap"]
NO_NOTES: tuple[str, ...] = ()


# Call strings


@dataclass(frozen=True)
class Found:
    """A module, and what its library tells about it: the answers where a call string has none.

    classes: None for as many as it has logits.  dataset: the name of one of our data sets, or "".
    channels_last: whether it runs in that layout.
    modules: the Python modules that made it.  is_ours: whether nobody else holds it, and could change it.
    """

    module: Any
    classes: tuple[str, ...] | None
    size_px: int | tuple[int, int]
    mean: Channels = NO_MEAN
    std: Channels = NO_STD
    backbone: str = ""
    dataset: str = ""
    notes: tuple[str, ...] = ()
    channels_last: bool = False
    modules: tuple[str, ...] = ()
    is_ours: bool = True


def load_source(text: str, *, device: str = "cpu") -> Classifier:
    """Return the model that a call string names, as `wrap` does; meta["notes"] are lines for the user.

    Raises UserError where its library, its weights or its module are missing, or do not fit, and where its
    code has changed since this Python imported it.
    """
    call = parse_call(text)
    source = call.name.partition(":")[0]
    theirs = frozenset[str]() if source in SOURCES else _own_options(call)
    said = read_options(call, theirs)
    options = {k: v for k, v in call.arguments if k not in OURS or (k in theirs and k not in SHARED)}
    found = resolve(SOURCES.get(source, SOURCES["package.module"]))(call, said, dict(options))
    unhashed = UNHASHED if source in SOURCES else {"weights", "key"} - _parameters(_target(call)).keys()
    hashed = {key: value for key, value in options.items() if key not in unhashed}
    # They may change what a model does, and leave no trace in its weights.
    origin = Origin(found.modules, str(sorted(hashed.items())) if hashed else "", found.is_ours)
    if isinstance(found.module, Classifier):
        return _as_made(found.module, said, origin, found.notes)
    classifier, changed = wrap_from(
        origin, found.module, name=said.name, classes=said.classes or found.classes,
        size_px=said.size_px or found.size_px, mean=said.mean or found.mean, std=said.std or found.std,
        output=said.output, device=device,
        channels_last=found.channels_last if said.channels_last is None else said.channels_last,
    )  # fmt: skip
    _check_unchanged(changed, said.name)
    meta = {
        **classifier.meta,
        "backbone": found.backbone or classifier.meta["backbone"],
        "family": source if source in SOURCES else "",
        "dataset": found.dataset if said.data is None else said.data,
        "notes": (*(f"{said.name}: {note}" for note in found.notes), *classifier.meta["notes"]),
        "is_random": classifier.meta["is_random"] or said.random,
    }
    return replace(classifier, meta=meta)


def _as_made(classifier: Classifier, said: Said, origin: Origin, notes: Iterable[str]) -> Classifier:
    """Return a factory's own Classifier, named as the call says, its hash with that of the code."""
    code, changed = own_code(origin.modules)
    _check_unchanged(changed, said.name)
    idle = [f"{key}=" for key in ("channels_last", "classes", "mean", "output", "size_px", "std")
            if getattr(said, key) is not None]  # fmt: skip
    if idle:
        notes = (*notes, f"it is a Classifier already; {' and '.join(idle)} say nothing more of it")

    def mixed(own: str) -> str:
        return hashlib.sha256(f"{own} {code} {origin.options}".encode()).hexdigest() if code else own

    renew = classifier.renew
    told = (*classifier.meta.get("notes", ()), *(f"{said.name}: {note}" for note in notes))
    meta = {**classifier.meta, "notes": told} if told else {**classifier.meta}
    meta |= {"dataset": said.data} if said.data is not None else {}
    meta |= {"is_random": True} if said.random else {}
    return replace(
        classifier, name=said.name, meta=meta, sha256=mixed(classifier.sha256),
        renew=None if renew is None else lambda: mixed(renew()),
    )  # fmt: skip


def _check_unchanged(changed: Sequence[str], name: str) -> None:
    if changed:
        raise UserError(
            f"{name}: {changed[0]} has changed since this Python imported it, and what runs is the code from "
            "before; restart Python, or read it again with importlib.reload"
        )


@contextmanager
def _foreign(name: str, advice: str = "") -> Iterator[None]:
    """Run somebody else's code: fenced, seeded, its exceptions on one line.

    advice: what to do where it fails; where there is none, the line that failed is named.
    """
    try:
        with fenced(), undisturbed():  # random weights are the same ones each time
            yield
    except UserError:
        raise
    except SystemExit as error:
        raise UserError(
            f"{name}: it ends Python ({_place(error)}); guard what runs as a script, its command line above "
            "all: if __name__ == '__main__':"
        ) from None
    except Exception as error:
        if "unexpected keyword argument" in str(error):
            advice = "it has no such option"
        raise UserError(f"{name}: {reason(error)}; {advice or _place(error)}") from error


def _place(error: BaseException) -> str:
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
    key = _key(options, weights, said)
    if weights is None or is_file(weights):
        asked = said.classes.size if said.classes else None
        count = options.pop("num_classes", asked or len(imagenet_wnids()))
        with _foreign(said.name):
            module = library.get_model(name, weights=None, num_classes=count, **options)
        preset, classes = table.DEFAULT.transforms(), _of_imagenet(count)
        notes = _load_(module, weights, said, key, count)
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
        module, classes, _sides(preset.crop_size), tuple(preset.mean), tuple(preset.std), name, notes=notes,
        channels_last=True,
    )  # fmt: skip


def call_like(name: str) -> str:
    """Return the call of torchvision's or timm's model that a bare name may have meant, "" for none.

    name: as it was typed, options behind it or not.
    """
    from torchvision import models as library

    bare, bracket, rest = name.partition("(")
    known = {each.casefold(): f"torchvision:{each}" for each in library.list_models(module=library)}
    if find_spec("timm") is not None:
        with _foreign(name):
            names = need("timm", "timm").list_models()
        known = {**{each.casefold(): f"timm:{each}" for each in names}, **known}
    near = difflib.get_close_matches(bare.casefold(), known, n=1, cutoff=0.8)
    return f"{known[near[0]]}{bracket}{rest}" if near else ""


def _of_imagenet(count: int) -> tuple[str, ...] | None:
    """Return ImageNet's classes where a model has as many."""
    return imagenet_wnids() if count == len(imagenet_wnids()) else None


def _sides(sizes: Sequence[int]) -> int | tuple[int, int]:
    """Return the side of a library's images, or height and width where these differ."""
    height, width = sizes[0], sizes[-1]
    return height if height == width else (height, width)


def _key(options: dict[str, Any], weights: Any, said: Said) -> str | None:
    """Return which of a file's weights a call asks for, taken out of its options."""
    key = options.pop("key", None)
    if key is not None and not (isinstance(key, str) and key and is_file(weights)):
        raise UserError(
            f"{said.name}: key= names weights inside a file, as text; for example weights='FILE.pth', "
            f"key='state_dict_ema', got key={key!r} and weights={weights!r}"
        )
    return key


def _load_(
    module: nn.Module, weights: str | None, said: Said, key: str | None, count: int
) -> tuple[str, ...]:
    """Put a file's weights into a module, strictly, where there is a file; return notes for the user."""
    if weights is None:
        return ("its weights are random (weights=None)",)
    number = "num_classes" if said.classes and not said.classes.size else "classes"
    hint = f"is it of {said.name}, and how many are its classes ({number}=N)?"
    notes = fill_(module, Path(weights), key=key, hint=hint)
    if said.classes is None and count == len(imagenet_wnids()):
        notes += ("its 1000 logits are taken for ImageNet's classes; say classes= for others",)
    if getattr(module, "transform_input", None) is False:  # torchvision turns it on for its own weights
        notes += ("torchvision's own weights need transform_input=True; say so if the file is of those",)
    if said.mean is None or said.std is None:
        notes += ("images are normalised as for its library's own weights; say mean= and std= for others",)
    return notes


def timm_model(call: Call, said: Said, options: dict[str, Any]) -> Found:
    """Return one of timm's models, with its own weights, a file's, or random ones (None)."""
    name = call.name.partition(":")[2]
    with _foreign(said.name):
        library = need("timm", "timm")
    if ":" not in name and not library.is_model(name):  # "hf-hub:USER/NAME" is looked up there
        raise _unknown(name, library.list_models(), kind="timm model", where="all: timm.list_models()")
    weights = options.pop("weights", "DEFAULT")
    key = _key(options, weights, said)
    wanted = options.pop("pretrained", True) and weights is not None
    if wanted and not is_file(weights):
        tagged = name if weights == "DEFAULT" else f"{name.partition('.')[0]}.{weights}"
        with _foreign(said.name, "fetch its weights elsewhere and give the file: weights='FILE.safetensors'"):
            module, notes = library.create_model(tagged, pretrained=True, **options), NO_NOTES
    else:
        if said.classes and said.classes.size:
            options.setdefault("num_classes", said.classes.size)
        with _foreign(said.name):
            module = library.create_model(name, pretrained=False, **options)
        notes = _load_(module, weights if is_file(weights) else None, said, key, module.num_classes)
    config = library.data.resolve_data_config({}, model=module)
    mean, std, size_px = tuple(config["mean"]), tuple(config["std"]), _sides(config["input_size"][-2:])
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
    classes = {
        "cifar10": CIFAR10_CLASSES, "cifar100": CIFAR100_CLASSES, "imagenet": imagenet_wnids(),
    }.get(dataset)  # fmt: skip
    size_px = 224 if dataset == "imagenet" else 32
    return Found(module, classes, size_px, backbone=name, dataset=dataset if dataset != "imagenet" else "")


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


def factory_model(call: Call, said: Said, options: dict[str, Any]) -> Found:
    """Return what "package.module:factory" makes, or a module or function that lies there.

    The current folder is looked in as well.  weights= is ours where the factory has no such parameter;
    classes= and size_px= are the factory's too where it has.
    """
    target = _target(call)
    takes = _parameters(target)
    weights = options.pop("weights", None) if "weights" not in takes else None
    key = _key(options, weights, said) if "key" not in takes else None
    if is_made := _is_made(target):
        if options:
            raise UserError(f"{said.name}: it is made already, and takes no {next(iter(options))!r}")
        made = target
    else:
        shared = {k: call.get(k) for k in SHARED if k in takes and call.get(k) is not None}
        _check_options(target, {**options, **shared}, said.name)
        with _foreign(said.name):
            made = target(**options, **shared)
    if not (callable(made) or isinstance(made, torch.export.ExportedProgram)):
        raise UserError(
            f"{said.name}: expected an nn.Module, got a {type(made).__name__}; name what makes one"
        )
    size_px = said.size_px or _default_size(takes)
    if size_px is None and not isinstance(made, Classifier):
        raise UserError(f"{said.name}: say the side of the images that it takes: size_px=32")
    notes = _notes_on_options(call, takes)
    if weights is not None:
        if not isinstance(made, nn.Module):
            raise UserError(f"{said.name}: weights= go into an nn.Module, got a {type(made).__name__}")
        hint = f"is it of {said.name}, with these options?"
        notes += fill_(made, Path(str(weights)), key=key, hint=hint)
    modules = (call.name.partition(":")[0], getattr(target, "__module__", None) or "")
    return Found(made, None, size_px or 0, notes=notes, modules=modules, is_ours=not is_made)


def _target(call: Call) -> Any:
    """Return what a call of a module's names: a factory, or what is made already."""
    where, _, inside = call.name.partition(":")
    try:
        return reduce(getattr, inside.split("."), _imported(where, call.name))
    except AttributeError:
        raise UserError(
            f"{call.name}: the module {where} has no {inside!r}; name what makes the model"
        ) from None


def _is_made(target: Any) -> bool:
    kinds = (nn.Module, Classifier, torch.export.ExportedProgram)
    return isinstance(target, kinds) or not callable(target)


def _own_options(call: Call) -> frozenset[str]:
    """Return those of our options that a factory takes itself."""
    return frozenset(_parameters(_target(call)).keys() & set(OURS))


def _default_size(takes: Mapping[str, inspect.Parameter]) -> int | None:
    """Return the size that a factory's images have where nobody says it."""
    default = takes["size_px"].default if "size_px" in takes else None
    return default if isinstance(default, int) and not isinstance(default, bool) else None


def _notes_on_options(call: Call, takes: Mapping[str, inspect.Parameter]) -> tuple[str, ...]:
    """Return lines on options that are ours and a factory's as well, or might be."""
    given = [key for key, _ in call.arguments if key in OURS]
    theirs = [f"{key}=" for key in given if key in takes and key not in SHARED]
    both = [f"{key}=" for key in given if key in takes and key in SHARED]
    rest = [f"{key}=" for key in given if key not in takes]
    inside, notes = call.name.partition(":")[2], list(_hidden(call))
    if theirs:
        notes.append(f"{' and '.join(theirs)} goes to {inside}, which takes it, and says nothing to us")
    if both:
        notes.append(f"{inside} takes {' and '.join(both)} too, and is told")
    if rest and any(each.kind is inspect.Parameter.VAR_KEYWORD for each in takes.values()):
        notes.append(f"{inside} takes options of any name; {' and '.join(rest)} is ours, and it is not told")
    return tuple(notes)


def _hidden(call: Call) -> Iterator[str]:
    """Yield a line where Python finds another module of that name before the one in the current folder."""
    top = call.name.partition(":")[0].partition(".")[0]
    file, mine = getattr(sys.modules[top], "__file__", None), Path.cwd() / f"{top}.py"
    if file and mine.is_file() and Path(file).resolve() != mine.resolve():
        yield f"{top} is {file}, which Python finds before the one in this folder"


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


def _parameters(target: Any) -> Mapping[str, inspect.Parameter]:
    """Return what a factory takes by name; nothing of what is made already."""
    if _is_made(target):
        return {}
    try:
        return inspect.signature(target).parameters
    except (ValueError, TypeError):  # not every builtin has a signature
        return {}


def _check_options(target: Callable[..., Any], options: Mapping[str, Any], name: str) -> None:
    """Raise UserError unless target can be called with these keyword arguments."""
    takes = _parameters(target)
    try:
        inspect.Signature(list(takes.values())).bind(**options)
    except TypeError as error:
        hint = ""
        if "missing a required" in str(error):
            hint = "; a function of images itself is returned by a factory: def make(): return predict"
        raise UserError(f"{name}: {error}; it takes {', '.join(takes) or 'nothing'}{hint}") from None
