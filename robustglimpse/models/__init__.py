"""Models by name. Reads the manifest, and loads torch only when a model is asked for."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from robustglimpse import arguments
from robustglimpse.cache import cache_dir
from robustglimpse.records import Classifier, UserError
from robustglimpse.registry import unknown

MANIFEST = Path(__file__).parent / "manifest.toml"
WEIGHTS = Path(__file__).parent / "weights"
DEFAULT_DATASET = "glimpse-digits"
# Of files of weights, and of some that hold none: reading says what those are.
WEIGHT_ENDINGS = (
    ".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar", ".th", ".pkl", ".pickle", ".zip", ".gz", ".tgz",
    ".onnx", ".npz", ".npy", ".h5", ".hdf5", ".keras", ".pt2", ".pb", ".msgpack", ".gguf", ".tflite",
)  # fmt: skip


@dataclass(frozen=True)
class ModelRow:
    """One model of the manifest; a file's own card repeats what is needed to build the network.

    params, gmacs: weights, and 10^9 multiply-accumulates of an image at each exit, as cost counts them.
    source: where its weights come from: "bundled" with this package; "trainable", by its recipe;
        "importable", which is also trainable, from a checkpoint that the authors' code wrote.
    sha256, bytes, accuracy: of the bundled file; empty for the others.  accuracy: clean test accuracy
        after each exit, measured on the file as it is.
    """

    name: str
    backbone: str
    glimpses: int
    downsample: str
    dataset: str
    classes: int
    size_px: int
    params: int
    gmacs: tuple[float, ...]
    source: Literal["bundled", "trainable", "importable"]
    recipe: str
    file: str
    sha256: str = ""
    bytes: int = 0
    accuracy: tuple[float, ...] = ()


@dataclass(frozen=True)
class SourceRow:
    """One line of the table of places that models come from, beside our own checkpoints."""

    target: str
    example: str
    needs: str
    summary: str


SOURCES: dict[str, SourceRow] = {
    "torchvision": SourceRow(
        "robustglimpse.models.sources:torchvision_model",
        "torchvision:resnet50(weights='IMAGENET1K_V2')", "nothing",
        "its classifiers; weights=None for random ones, weights='FILE.pth' for your own (key='ema')",
    ),
    "timm": SourceRow(
        "robustglimpse.models.sources:timm_model",
        "timm:vit_tiny_patch16_224", "the extra timm",
        "its models, with the same choices of weights",
    ),
    "robustbench": SourceRow(
        "robustglimpse.models.sources:robustbench_model",
        "robustbench:Carmon2019Unlabeled(model_dir='models')", "the extra robustbench",
        "its zoo, from model_dir where the file is there; dataset='cifar10', threat_model='Linf' or others",
    ),
    "package.module": SourceRow(
        "robustglimpse.models.sources:factory_model",
        "package.module:factory(width=2, size_px=32)", "a module, installed or in this folder",
        "what your own function or nn.Module class makes; its options are passed on",
    ),
}  # fmt: skip


@cache
def models() -> Mapping[str, ModelRow]:
    """Return the manifest's rows by full name, such as "mgnet-r18@glimpse-digits"."""
    table = tomllib.loads(MANIFEST.read_text())
    return {
        name: ModelRow(
            **{**row, "name": name, "gmacs": tuple(row["gmacs"]), "accuracy": tuple(row.get("accuracy", ()))}
        )
        for name, row in table.items()
    }


def bundled() -> Mapping[str, ModelRow]:
    """Return the rows of models() whose weights are part of this project."""
    return {name: row for name, row in models().items() if row.source == "bundled"}


def cached_file(row: ModelRow) -> Path:
    """Return where a row's weights are looked for when they are not bundled."""
    return cache_dir() / "weights" / row.file


def find_file(row: ModelRow) -> Path | None:
    """Return where a row's weights are on this machine, or None."""
    return next((path for path in (WEIGHTS / row.file, cached_file(row)) if path.is_file()), None)


def whereabouts(row: ModelRow) -> str:
    """Return where a row's weights come from, and whether they are here, where that is not to be expected."""
    is_here = find_file(row) is not None
    if row.source == "bundled":
        return "bundled" if is_here else "bundled, not here"
    return f"{row.source}, at hand" if is_here else row.source


def how_to_get(row: ModelRow) -> str:
    """Return what to do for the weights of a row that has none on this machine, for the end of a sentence."""
    place = cached_file(row)
    if row.source == "bundled":
        return (
            f"copy {row.file} from a checkout to {place}, or make your own: robustglimpse train {row.recipe}"
        )
    train = (
        f"make them (robustglimpse train {row.recipe} --data-dir PATH) and copy model.safetensors to {place}"
    )
    if row.source == "trainable":
        return train
    return (
        f"{train}, or import a checkpoint of the authors' code: robustglimpse import-checkpoint FILE.ckpt "
        f"--backbone {row.backbone} --glimpses {row.glimpses} --downsample {row.downsample} "
        f"--size {row.size_px} --data {row.dataset} --out {place}"
    )


def model_row(name: str) -> ModelRow:
    """Return the manifest's row; "@glimpse-digits" may be left out. Raises UserError for others."""
    rows = models()
    full = name if "@" in name else f"{name}@{DEFAULT_DATASET}"
    if full in rows:
        return rows[full]
    short = [n.removesuffix(f"@{DEFAULT_DATASET}") for n in rows]
    raise unknown(name, short, kind="model", listing="models")


def is_from_outside(name: str) -> bool:
    """Return whether a model's name is a call of SOURCES, such as "timm:resnet18"."""
    return ":" in name.partition("(")[0] and not name.endswith(".safetensors")


def load_model(name: str | Path, *, device: str = "cpu") -> Classifier:
    """Return a frozen classifier in eval mode: a manifest name, a .safetensors file, or a call of SOURCES.

    It takes f32 images in [0,1] of any memory layout and normalises inside.  It is the same under
    inference_mode or another default device, and torch's random state stays as it was.
    Raises UserError for an unknown name, a missing file, a wrong hash or weights that do not fit.
    """
    if isinstance(name, Classifier):
        raise arguments.loaded_already(name, "load_model")
    name, device = arguments.model_name(name, "the model"), arguments.device_here(device)
    with _usual_torch():
        if is_from_outside(name):
            from robustglimpse.models.sources import load_source

            return load_source(name, device=device)
        from robustglimpse.models import zoo

        if name.endswith(".safetensors"):
            return zoo.load_file(Path(name), name=Path(name).stem, device=device)
        if is_unknown(name):
            raise unknown_model(name)
        return zoo.load_row(model_row(name), device=device)


@contextmanager
def _usual_torch() -> Iterator[None]:
    """Make tensors as torch does where nothing is set, on the CPU, with gradients; keep its random state."""
    import torch

    from robustglimpse.models.guard import random_state_kept

    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(random_state_kept())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


def is_unknown(name: str) -> bool:
    """Return whether the manifest has no model of that name."""
    return name not in models() and f"{name}@{DEFAULT_DATASET}" not in models()


def unknown_model(name: str) -> UserError:
    """Return the error for a name that is none of ours, with the call that was meant. Loads torch."""
    if name.lower().endswith(WEIGHT_ENDINGS) or (name and ("/" in name or Path(name).is_file())):
        return _without_architecture(name)
    if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+(\(.*\))?", name):
        module, _, factory = name.partition("(")[0].rpartition(".")
        return UserError(f"unknown model {name!r}; what makes a model is called {module}:{factory}")
    from robustglimpse.models.sources import call_like

    near = call_like(name)
    own = [each.removesuffix(f"@{DEFAULT_DATASET}") for each in models()]
    if near and _likeness(name, near.partition(":")[2]) > max(_likeness(name, each) for each in own):
        return UserError(f"unknown model {name!r}; did you mean {near}? (ours: robustglimpse list models)")
    return unknown(name, own, kind="model", listing="models")


def _without_architecture(name: str) -> UserError:
    """Return the error for a file of weights whose network nobody named."""
    from robustglimpse.models.kinds import check_is_file, kind_of_file

    call = f"torchvision:resnet18(weights={name!r})"
    try:
        check_is_file(Path(name))
    except UserError as error:
        return UserError(f'{error}, in a call that names its network: --model "{call}"')
    kind = kind_of_file(Path(name))
    if kind:
        return UserError(f"{name}: {kind}")
    ours = ", or of MGNet's authors: robustglimpse import-checkpoint" if name.endswith(".ckpt") else ""
    return UserError(f'{name} holds weights without an architecture: name it: --model "{call}"{ours}')


def _likeness(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a.casefold(), b.casefold()).ratio()
