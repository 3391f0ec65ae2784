"""Checkpoints: manifest to verified file to strict load. The only reader and writer of weights."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustglimpse.files import write_file
from robustglimpse.models import ModelRow, find_file, how_to_get, model_row
from robustglimpse.models.backbones import Backbone, default_gradient_scale, fold_batch_norm_
from robustglimpse.models.mgnet import Architecture, Glance, GradientPath, MGNet
from robustglimpse.models.packed import PackedBackbone
from robustglimpse.models.surrogates import surrogates
from robustglimpse.records import Channels, Classifier, UserError
from robustglimpse.registry import parse_fraction

FORMAT = "robustglimpse-1"
PREFIX = "model."
STATE_KEYS = ("state_dict", "model_state_dict", "model", "net")  # where a checkpoint may keep its weights
IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Card:
    """What travels inside a checkpoint beside its weights."""

    architecture: Architecture
    classes: tuple[str, ...]
    size_px: int
    mean: Channels = IMAGENET_MEAN
    std: Channels = IMAGENET_STD
    dataset: str = ""
    recipe: str = ""
    accuracy: tuple[float, ...] = ()  # clean accuracy of each exit, where it was measured


def save_checkpoint(path: Path, state: Mapping[str, Tensor], card: Card, *, half: bool = True) -> str:
    """Write weights and card as safetensors, whole or not at all; return the file's SHA-256.

    half: floating-point weights as fp16 (batch-norm statistics too), which halves the file.
    """
    from safetensors.torch import save

    dtype = torch.float16 if half else torch.float32
    tensors = {
        name: (t.detach().to(dtype) if t.is_floating_point() else t.detach()).contiguous()
        for name, t in state.items()
    }
    metadata = {"format": FORMAT, "card": json.dumps(asdict(card), sort_keys=True)}
    content = _with_sorted_header(save(tensors, metadata=metadata))
    write_file(path, content)
    return hashlib.sha256(content).hexdigest()


def _with_sorted_header(content: bytes) -> bytes:
    """Return a safetensors file with the keys of its header sorted: as written, their order is random."""
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the format wants the tensors aligned
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def load_row(row: ModelRow, *, device: str = "cpu") -> Classifier:
    """Return the classifier of a manifest row, its file found, hashed and loaded strictly."""
    network, card, sha256 = _row_network(row)
    return classifier(network, card, name=row.name, sha256=sha256, device=device)


def _row_network(row: ModelRow) -> tuple[MGNet, Card, str]:
    """Return the network of a manifest row, its card and its file's SHA-256.

    A file that the manifest has no hash of, trained or imported here, must be of the row's architecture.
    """
    path = _find_file(row)
    network, card, sha256 = _read_network(path, expected=row.sha256 or None)
    made = card.architecture
    for key, found, expected in (
        ("backbone", made.backbone, row.backbone),
        ("glimpses", made.glimpses, row.glimpses),
        ("downsample", Fraction(made.downsample), Fraction(row.downsample)),
        ("classes", made.classes, row.classes),
    ):
        if found != expected:
            raise UserError(
                f"{path}: {row.name} has {key} {expected}, and the network in this file {found}; "
                "put the file elsewhere and give its path"
            )
    return network, card, sha256


def _find_file(row: ModelRow) -> Path:
    """Return where the row's file is: bundled, or in the cache."""
    path = find_file(row)
    if path is None:
        raise UserError(f"{row.name}: its weights are not on this machine; {how_to_get(row)}")
    return path


def start_backbone_(network: MGNet, name: str) -> None:
    """Give the network the backbone of a checkpoint: a manifest name, or a path to a .safetensors file."""
    path = Path(name) if name.endswith(".safetensors") else _find_file(model_row(name))
    if not path.is_file():
        raise UserError(
            f"{path}: no such checkpoint to start from; train it first (robustglimpse list recipes)"
        )
    state, card, _ = read_checkpoint(path)
    if card.architecture.backbone != network.architecture.backbone:
        raise UserError(
            f"{path}: its backbone is {card.architecture.backbone}, not {network.architecture.backbone}"
        )
    prefix = "backbone."
    network.backbone.load_state_dict(
        {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    )


def load_file(path: Path, *, name: str, device: str = "cpu") -> Classifier:
    """Return the classifier in one of our safetensors files.

    Raises UserError where the weights do not fit.
    """
    network, card, sha256 = _read_network(path)
    return classifier(network, card, name=name, sha256=sha256, device=device)


def load_network(name: str) -> tuple[MGNet, Card]:
    """Return the network of a manifest row, or of one of our .safetensors files, as it was trained."""
    if name.endswith(".safetensors"):
        return _read_network(Path(name))[:2]
    return _row_network(model_row(name))[:2]


def _read_network(path: Path, *, expected: str | None = None) -> tuple[MGNet, Card, str]:
    """Return the network in one of our safetensors files, its card and the file's SHA-256."""
    if not path.is_file():
        raise UserError(
            f"{path}: no such checkpoint; give a .safetensors file or a name (robustglimpse list models)"
        )
    state, card, sha256 = read_checkpoint(path, expected=expected)
    network = MGNet(card.architecture)
    load_strictly(network, state, path)
    return network, card, sha256


def load_strictly(network: MGNet, state: Mapping[str, Tensor], path: Path) -> None:
    """Put the weights into one of our networks; see load_weights_."""
    architecture = network.architecture
    hint = f"has it {architecture.classes} classes, and is the backbone really {architecture.backbone}?"
    load_weights_(network, state, path, hint=hint)


def load_weights_(module: nn.Module, state: Mapping[str, Tensor], path: Path, *, hint: str) -> None:
    """Put the weights into the module; name the first that is missing, left over or of another shape.

    hint: what to look at where they do not fit.
    """
    expected = module.state_dict()
    for what, names in (
        ("lacks", [n for n in expected if n not in state]),
        ("has an unexpected", [n for n in state if n not in expected]),
    ):
        if names:
            raise UserError(f"{path}: {what} {names[0]!r} ({len(names)} in all); {hint}")
    for name, tensor in expected.items():
        if tensor.shape != state[name].shape:
            raise UserError(
                f"{path}: {name!r} is {list(state[name].shape)}, expected {list(tensor.shape)}; {hint}"
            )
    module.load_state_dict(state, strict=True)


def classifier(network: MGNet, card: Card, *, name: str, sha256: str, device: str = "cpu") -> Classifier:
    """Return a copy of the network as a Classifier: frozen as by `frozen`, normalising inside."""
    network = frozen(network, device)
    mean = torch.tensor(card.mean, device=device)[:, None, None]
    std = torch.tensor(card.std, device=device)[:, None, None]

    def prepared(x: Tensor) -> Tensor:
        return ((x - mean) / std).contiguous(memory_format=torch.channels_last)

    def run(x: Tensor, gradient: GradientPath = "as-trained") -> tuple[Tensor, Tensor]:
        logits, regions, _ = network(prepared(x), gradient=gradient)
        return logits, regions

    architecture = card.architecture
    return Classifier(
        name=name,
        logits=lambda x: run(x)[0][-1],
        exits=lambda x: run(x)[0],
        surrogates=surrogates(lambda x, path: run(x, path)[0], architecture.glimpses),
        trace=lambda x: run(x)[1],
        classes=card.classes,
        size_px=card.size_px,
        sha256=sha256,
        normalisation=(card.mean, card.std),
        meta={
            "architecture": architecture,
            "backbone": architecture.backbone,
            "family": architecture.family,
            "dataset": card.dataset,
            "exits": architecture.glimpses,
            "device": device,
        },
        glances=lambda x: _answers(network.glances(prepared(x))),
    )


def _answers(glances: Generator[Glance, Tensor | None, None]) -> Generator[Tensor, Tensor | None, None]:
    """Yield the logits of each glance; what is sent goes on to it."""
    keep: Tensor | None = None
    while True:
        try:
            glance = glances.send(keep)
        except StopIteration:
            return
        keep = yield glance.logits


def frozen(network: MGNet, device: str = "cpu") -> MGNet:
    """Return a copy in eval mode, its weights fixed, channels-last, its backbone packed (models.packed)."""
    network = copy.deepcopy(network).eval().requires_grad_(False)
    if isinstance(network.backbone, Backbone):
        fold_batch_norm_(network.backbone)
        network.backbone = PackedBackbone(network.backbone)
    return network.to(device).to(memory_format=torch.channels_last)


def import_checkpoint(
    path: Path,
    out: Path,
    *,
    backbone: str,
    glimpses: int,
    downsample: str,
    size_px: int,
    gradient_scale: float | None = None,
    mean: Channels = IMAGENET_MEAN,
    std: Channels = IMAGENET_STD,
    dataset: str = "",
) -> str:
    """Write one of the authors' Lightning checkpoints as safetensors to out; return its SHA-256.

    The number of classes is read from the file; its weights stay f32.  The glimpse classifier is left
    out: it only serves training.  A file that needs code to be unpickled is refused, never run.
    Raises UserError where the file or the weights do not fit what was asked.
    """
    gradient_scale = default_gradient_scale(backbone) if gradient_scale is None else gradient_scale
    if glimpses < 1 or parse_fraction(downsample, what="downsample") < 1:
        raise UserError(f"glimpses and downsample must be at least 1, got {glimpses} and {downsample}")
    if min(std) <= 0:
        raise UserError(f"std must be above 0, got {std}")
    weights = _read_lightning(path)
    state = {
        name.removeprefix(PREFIX): tensor
        for name, tensor in weights.items()
        if name.startswith(PREFIX) and not name.startswith(f"{PREFIX}glimpse_fc.")
    }
    if "global_fc.fc.weight" not in state:
        raise UserError(
            f"{path}: expected MGNet weights named {PREFIX}backbone.*, {PREFIX}global_fc.fc.* and so on, "
            f"got {', '.join(sorted(weights)[:3]) or 'none'}"
        )
    classes = len(state["global_fc.fc.weight"])
    architecture = Architecture(backbone, glimpses, downsample, classes, gradient_scale)
    load_strictly(MGNet(architecture), state, path)
    names = tuple(str(k) for k in range(classes))
    return save_checkpoint(out, state, Card(architecture, names, size_px, mean, std, dataset), half=False)


def _read_lightning(path: Path) -> dict[str, Tensor]:
    """Return a checkpoint's state_dict, read without running any code in it."""
    content = _read_torch_file(path)
    state = content.get("state_dict") if isinstance(content, dict) else None
    if state is None or not _is_state(state):
        raise UserError(f"{path}: expected a Lightning checkpoint with a 'state_dict' of tensors")
    return dict(state)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a .safetensors file, or in one of torch's own, without running code in it.

    It may lie one level down ("state_dict", "model", ...); the prefixes that wrappers leave are taken off.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file of weights; give a .safetensors, or a .pth of a state dict")
    if path.suffix == ".safetensors":
        state = _read_safetensors(path)[0]
    else:
        content = _read_torch_file(path)
        inside = [content[key] for key in STATE_KEYS if key in content] if isinstance(content, dict) else []
        state = next((s for s in [*inside, content] if _is_state(s)), {})
    if not state:
        raise UserError(
            f"{path}: expected a state dict of tensors; save one: torch.save(model.state_dict(), FILE)"
        )
    for prefix in ("_orig_mod.", "module."):  # of torch.compile and of DataParallel
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return dict(state)


def _is_state(content: Any) -> bool:
    return isinstance(content, dict) and all(isinstance(tensor, Tensor) for tensor in content.values())


def _read_torch_file(path: Path) -> Any:
    """Return what torch.save wrote, read without running any code in it."""
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old pickle protocols
            return torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        raise UserError(
            f"{path}: refused, reading it would run code inside it ({named[1] if named else 'a pickle'}); "
            "save its state_dict alone: torch.save({'state_dict': model.state_dict()}, FILE)"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path}: not a readable checkpoint ({reason})") from None


def read_checkpoint(path: Path, *, expected: str | None = None) -> tuple[dict[str, Tensor], Card, str]:
    """Return the weights as f32, the card and the SHA-256 of one of our safetensors files.

    expected: the SHA-256 that the file must have; it is checked before anything in the file is used.
    """
    try:
        found = hash_file(path)
    except OSError as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from None
    if expected is not None and found != expected:
        raise UserError(
            f"{path}: expected sha256 {expected}, got {found}; the file was changed, fetch or train it again"
        )
    state, metadata = _read_safetensors(path)
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{path}: no robustglimpse card inside; import the authors' .ckpt with `robustglimpse "
            f"import-checkpoint`, or name its architecture: \"torchvision:resnet18(weights='{path}')\""
        )
    weights = {name: t.float() if t.is_floating_point() else t for name, t in state.items()}
    return weights, _card(metadata.get("card", ""), path), found


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of any safetensors file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as stream:
            state = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - not a dict
            return state, stream.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from None


def _card(text: str, path: Path) -> Card:
    """Return the card that a checkpoint's metadata spells."""
    try:
        card = json.loads(text)
        tuples = {key: tuple(card[key]) for key in ("classes", "mean", "std", "accuracy")}
        return Card(**{**card, **tuples, "architecture": Architecture(**card["architecture"])})
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: its card cannot be read ({error}); train or import it again with this version"
        ) from None


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def save_training_state(path: Path, state: dict[str, Any]) -> None:
    """Write what a training run needs to go on; torch's own format, plain tensors and numbers."""
    content = io.BytesIO()
    torch.save(state, content)
    write_file(path, content.getvalue())


def read_training_state(path: Path) -> dict[str, Any]:
    """Return what save_training_state wrote."""
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    return state
