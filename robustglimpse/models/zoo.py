"""Our checkpoints: manifest to verified file to strict load, and the import of those of MGNet's authors."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustglimpse.files import write_file
from robustglimpse.models import DEFAULT_DATASET, ModelRow, find_file, how_to_get, model_row
from robustglimpse.models.backbones import Backbone, default_gradient_scale, family, fold_batch_norm_
from robustglimpse.models.checkpoints import Contents, read_contents, read_safetensors
from robustglimpse.models.fitting import find_places, find_weights, load_weights_, read_state, shapes
from robustglimpse.models.kinds import shown
from robustglimpse.models.mgnet import Architecture, Glance, GradientPath, MGNet
from robustglimpse.models.naming import WELL_KNOWN, read_naming
from robustglimpse.models.packed import PackedBackbone
from robustglimpse.models.surrogates import surrogates
from robustglimpse.notes import tell
from robustglimpse.records import Channels, Classifier, UserError
from robustglimpse.registry import parse_fraction

FORMAT = "robustglimpse-1"
HEAD = "global_fc.fc.weight"  # [K, features]: by it one of the authors' files is known
TRAINING_HEAD = "glimpse_fc."  # the glimpse classifier, which serves training only
# What no network has: each more is another pass over the images, or memory of that side.
MOST_GLIMPSES, MOST_PX, MOST_CLASSES = 100, 8192, 1_000_000
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
    network = bare_network(card.architecture)
    load_strictly(network, state, path)
    return network, card, sha256


def bare_network(architecture: Architecture) -> MGNet:
    """Return a network on the meta device, where nothing is drawn for the weights that are still to come."""
    with torch.device("meta"):
        return MGNet(architecture).float()


def load_strictly(network: MGNet, state: Mapping[str, Tensor], path: Path) -> None:
    """Put the weights into one of our networks; see load_weights_."""
    load_weights_(network, state, path, hint=_hint(network.architecture))


def _hint(architecture: Architecture) -> str:
    return f"has it {architecture.classes} classes, and is the backbone really {architecture.backbone}?"


def classifier(network: MGNet, card: Card, *, name: str, sha256: str, device: str = "cpu") -> Classifier:
    """Return a copy of the network as a Classifier: frozen as by `frozen`, normalising inside."""
    network = frozen(network, device)
    mean, std = (
        torch.tensor(channels, device=device, dtype=torch.float32)[:, None, None]
        for channels in (card.mean, card.std)
    )

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
        is_named=_are_names(card),
    )


def _are_names(card: Card) -> bool:
    """Return whether a card's classes are names: an import without any numbers them."""
    numbers = tuple(str(k) for k in range(len(card.classes)))
    return card.classes != numbers or bool(card.recipe) or card.dataset == DEFAULT_DATASET


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
    classes: Sequence[str] | None = None,
) -> str:
    """Write one of the authors' Lightning checkpoints as safetensors to out; return its SHA-256.

    The number of classes is read from the file; its weights stay f32.  The glimpse classifier is left
    out: it only serves training.  No code in the file is run: what is no tensor is passed over.
    classes: their names in the order of the logits; None numbers them.
    Raises UserError where the file, the weights or the names do not fit what was asked.
    """
    gradient_scale = default_gradient_scale(backbone) if gradient_scale is None else gradient_scale
    if glimpses < 1 or parse_fraction(downsample, what="downsample") < 1:
        raise UserError(f"glimpses and downsample must be at least 1, got {glimpses} and {downsample}")
    if min(std) <= 0:
        raise UserError(f"std must be above 0, got {std}")
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint")
    contents = read_contents(path)
    count = _count_classes(contents, path)
    if classes is not None and len(classes) != count:
        raise UserError(
            f"{path}: the network in it has {count} classes, {len(classes)} names were given; give as many"
        )
    architecture = Architecture(backbone, glimpses, downsample, count, gradient_scale)
    names = tuple(str(k) for k in range(count)) if classes is None else tuple(classes)
    card = Card(architecture, names, size_px, mean, std, dataset)
    wrong = _wrong_in_card(card)
    if wrong:
        raise UserError(f"{path}: {wrong}")
    expected, hint = shapes(bare_network(architecture), path), _hint(architecture)
    fit, notes = find_weights(
        contents, expected, path, key=None, hint=hint, optional=(TRAINING_HEAD,), may_lie_beside=True
    )
    state = read_state(fit, path)
    load_strictly(bare_network(architecture), state, path)
    for note in notes:
        tell(note)
    return save_checkpoint(out, state, card, half=False)


def read_class_names(text: str) -> tuple[str, ...]:
    """Return the names that `--classes` says: of a well-known set, or of a file with a name a line.

    Raises UserError where the file cannot be read, or a line is empty or stands twice.
    """
    if text in WELL_KNOWN:
        return read_naming(text, "--classes").names or ()
    path = Path(text).expanduser()
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise UserError(
            f"--classes must be {', '.join(WELL_KNOWN)} or a file with a name a line, got {text!r} ({reason})"
        ) from None
    names = [line.strip() for line in lines]
    if not names or "" in names:
        where = f"line {names.index('') + 1} is empty" if names else "it is empty"
        raise UserError(f"{path}: expected a class name a line, and {where}")
    return read_naming(names, str(path)).names or ()


def _count_classes(contents: Contents, path: Path) -> int:
    """Return the number of classes of the MGNet in a file. Raises UserError where there is none."""
    places = find_places(contents)
    if not places and not (isinstance(contents.content, dict) and contents.content.get("state_dict") == {}):
        raise UserError(f"{path}: expected a Lightning checkpoint with a 'state_dict' of tensors")
    for place in places:
        for name, tensor in place.tensors.items():
            if name.endswith(HEAD) and len(tensor.shape) == 2:
                return int(tensor.shape[0])
    names = sorted(name for place in places for name in place.tensors)
    raise UserError(
        f"{path}: expected MGNet weights named model.backbone.*, model.global_fc.* and so on, "
        f"got {', '.join(names[:3]) or 'none'}"
    )


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
    state, metadata = read_safetensors(path)
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{path}: no robustglimpse card inside; import the authors' .ckpt with `robustglimpse "
            f"import-checkpoint`, or name its architecture: \"torchvision:resnet18(weights='{path}')\""
        )
    weights = {name: t.float() if t.is_floating_point() else t for name, t in state.items()}
    return weights, _card(metadata.get("card", ""), path), found


def _card(text: str, path: Path) -> Card:
    """Return the card that a checkpoint's metadata spells. Raises UserError where a value cannot be."""
    try:
        found = json.loads(text)
        lists = {key: found[key] for key in ("classes", "mean", "std", "accuracy")}
        if not all(isinstance(value, list) for value in lists.values()):
            raise TypeError("classes, mean, std and accuracy must be lists")
        tuples = {key: tuple(value) for key, value in lists.items()}
        card = Card(**{**found, **tuples, "architecture": Architecture(**found["architecture"])})
        wrong = _wrong_in_card(card)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        wrong = shown(f"cannot be read: {error or type(error).__name__}")
    if wrong:
        raise UserError(f"{path}: its card is wrong ({wrong}); train or import it again with this version")
    return card


def _wrong_in_card(card: Card) -> str:
    """Return what a card says that no network can be, "" where all can."""
    made = card.architecture
    checks: tuple[tuple[str, Any, Callable[[Any], bool], str], ...] = (
        ("backbone", made.backbone, _is_text, "a name"),
        ("glimpses", made.glimpses, _whole(MOST_GLIMPSES), f"from 1 to {MOST_GLIMPSES}"),
        ("downsample", made.downsample, _is_fraction, "like '2' or '7/3'"),
        ("classes", made.classes, _whole(MOST_CLASSES), f"from 1 to {MOST_CLASSES}"),
        ("gradient_scale", made.gradient_scale, _is_number, "a number"),
        ("size_px", card.size_px, _whole(MOST_PX), f"from 1 to {MOST_PX}"),
        ("classes", card.classes, lambda v: all(map(_is_text, v)), "names"),
        ("mean", card.mean, lambda v: len(v) == 3 and all(map(_is_number, v)), "three numbers"),
        ("std", card.std, lambda v: len(v) == 3 and all(_is_number(n) and n > 0 for n in v), "three above 0"),
        ("dataset", card.dataset, _is_text, "a name"),
        ("recipe", card.recipe, _is_text, "a name"),
        ("accuracy", card.accuracy, lambda v: all(_is_number(n) and 0 <= n <= 1 for n in v), "fractions"),
    )
    for what, value, is_right, expected in checks:
        if not is_right(value):
            return f"{what} must be {expected}, got {shown(repr(value))}"
    try:
        family(made.backbone)
    except UserError as error:
        return str(error)
    if parse_fraction(made.downsample, what="downsample") < 1 or made.glimpse_px(card.size_px) < 1:
        return f"downsample must be from 1 to the size, {card.size_px}, got {shown(made.downsample)}"
    if len(card.classes) != made.classes or len(set(card.classes)) < made.classes:
        return f"expected {made.classes} class names that differ, got {len(set(card.classes))}"
    if len(card.accuracy) not in (0, made.glimpses):
        return f"expected an accuracy for each of {made.glimpses} exits, got {len(card.accuracy)}"
    return ""


def _whole(most: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and 1 <= value <= most


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -1e9 < value < 1e9


def _is_fraction(value: Any) -> bool:
    """Return whether this spells a number that is not long to work out, as 1e999999999 is."""
    return isinstance(value, str) and re.fullmatch(r"\d{1,4}(\.\d{1,6})?(/[1-9]\d{0,3})?", value) is not None


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
