"""Training: a recipe file, one loop, every epoch saved, and the same weights after a kill as without one."""

from __future__ import annotations

import csv
import io
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import partial
from inspect import Parameter
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustglimpse import recipes
from robustglimpse.attacks import ATTACKS, check_call, options_of
from robustglimpse.attacks.gradient import Iterates
from robustglimpse.data import DATASETS, Dataset, load_data, resized
from robustglimpse.data.augment import pipeline
from robustglimpse.files import write_file
from robustglimpse.models import zoo
from robustglimpse.models.mgnet import Architecture, Glimpses, MGNet, initialise_as_authors_
from robustglimpse.notes import tell
from robustglimpse.progress import Progress, progress
from robustglimpse.records import Threat, UserError
from robustglimpse.registry import Call, parse_call, resolve, unknown
from robustglimpse.rng import KeyedDraws
from robustglimpse.team import Team, gather

# How TOML spells the types of a recipe's fields; all others are strings.
TOML_TYPES: dict[str, type | tuple[type, ...]] = {
    "int": int,
    "float": (int, float),
    "tuple[str, ...]": list,
}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a training run ends with.

    alpha: weight of the glimpse classifier's loss (eq. 6); 0 trains without one.
    start_from: a checkpoint (name or .safetensors) whose backbone this one starts with; "" for none.
    lr: the peak of the one-cycle schedule, reached after `warmup` (a fraction) of the steps.
    clip_norm: the gradient of all weights together is shortened to this norm; inf leaves it.
    attack: every batch is attacked before it is learned (adversarial training, Madry et al. 2018): a call
        such as "pgd(eps=8/255, step_size=4/255, steps=3)", in [0,1] pixel units; "" for none.
    optimizer: "sgd" is the paper's, with momentum; "adamw" does not decay norms and biases.
    batch_size: of all processes together.
    precision: "bf16" runs convolutions and products in bfloat16; weights stay f32.
    initialisation: of the attention and the heads, "torch" or "authors" (mgnet.initialise_as_authors_).
    glimpse_loss: which glimpses the glimpse classifier's loss has: "all" as eq. 8, or "later", all but the
        first, as the authors' code.
    size_px: side of the images learned and tested on; 0 leaves the data set's own.
    """

    model: str
    backbone: str
    glimpses: int
    downsample: str
    gradient_scale: float
    start_from: str
    dataset: str
    train_split: str
    test_split: str
    epochs: int
    batch_size: int
    optimizer: Literal["sgd", "adamw"]
    lr: float
    weight_decay: float
    clip_norm: float
    warmup: float
    alpha: float
    label_smoothing: float
    augment: tuple[str, ...]
    attack: str
    precision: Literal["f32", "bf16"]
    seed: int
    initialisation: Literal["torch", "authors"] = "torch"
    glimpse_loss: Literal["all", "later"] = "all"
    size_px: int = 0


def load_recipe(name: str) -> Recipe:
    """Return the recipe at a path, or the bundled one of that name. Keys are strict.

    Those of Recipe's fields with a default may be left out.
    """
    path = Path(name) if name.endswith(".toml") else recipes.FOLDER / f"{name}.toml"
    if not path.is_file():
        raise unknown(name, recipes.names(), kind="recipe", listing="recipes")
    try:
        table = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML ({error})") from None
    expected = {f.name: str(f.type) for f in fields(Recipe)}
    needed = {f.name for f in fields(Recipe) if f.default is MISSING}
    for word, wrong in (("unknown", table.keys() - expected.keys()), ("missing", needed - table.keys())):
        if wrong:
            raise UserError(f"{path}: {word} key {min(wrong)!r}; a recipe has {', '.join(sorted(expected))}")
    for key, value in table.items():
        kind = expected[key]
        if isinstance(value, bool) or not isinstance(value, TOML_TYPES.get(kind, str)):
            raise UserError(f"{path}: {key} must be of type {kind}, got {value!r}")
    return Recipe(**{**table, "augment": tuple(table["augment"])})


def training_loss(
    glimpses: Glimpses,
    glimpse_logits: Tensor | None,
    y: Tensor,
    *,
    alpha: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the loss of eq. 6-8: (1 - alpha) x global loss + alpha x glimpse loss.

    Each is the mean over glimpses of a cross-entropy: of the global classifier over all T, and of the
    glimpse classifier over those in glimpse_logits [S*B,K], from each glimpse's features alone.  Eq. 8 has
    all T of them there; the authors' code leaves the first out (a recipe's glimpse_loss says which).
    y: i64 [B].  Returns a scalar.
    """
    targets = y.repeat(len(glimpses.logits))
    loss = F.cross_entropy(glimpses.logits.flatten(0, 1).float(), targets, label_smoothing=label_smoothing)
    if glimpse_logits is None:
        return loss
    targets = targets[: len(glimpse_logits)]
    own = F.cross_entropy(glimpse_logits.float(), targets, label_smoothing=label_smoothing)
    return (1 - alpha) * loss + alpha * own


def train(
    recipe: Recipe,
    out: Path,
    *,
    data_dir: Path | None = None,
    device: str = "cpu",
    epochs: int | None = None,
    precision: Literal["f32", "bf16"] | None = None,
    seed: int | None = None,
) -> Path:
    """Train to the recipe's end and return the checkpoint, out/model.safetensors.

    Goes on from out/last.pt where an earlier run of the same recipe was stopped; the weights come out
    the same as without the stop.  out/log.csv has a row for every epoch.
    Under torchrun its processes share every batch, on a GPU each where device is "cuda".
    epochs, precision, seed: others than the recipe's.  Raises UserError where out holds another recipe's run.
    """
    asked: dict[str, Any] = {"epochs": epochs, "precision": precision, "seed": seed}
    recipe = replace(recipe, **{key: value for key, value in asked.items() if value is not None})
    with gather(device) as team:
        _check(recipe, team)
        with team.first_before_others():
            dataset = _images(recipe, recipe.train_split, data_dir, is_cropped=_crop_px(recipe) is not None)
            test = _images(recipe, recipe.test_split, data_dir)
            for note in dict.fromkeys((*dataset.notes, *test.notes)):
                tell(note)
        run = _Run(recipe, dataset, team)
        run.resume(out / "last.pt")
        steps = recipe.epochs * run.steps_per_epoch
        shown = progress(steps, recipe.model) if team.is_first else _silence()
        with shown as report:
            for epoch in range(run.epochs_done, recipe.epochs):
                start = time.perf_counter()
                loss = run.epoch(epoch, report)
                accuracy = run.accuracy(test)
                run.rows.append([epoch + 1, round(loss, 5), *accuracy, round(time.perf_counter() - start, 1)])
                if team.is_first:
                    zoo.save_training_state(out / "last.pt", run.state())
                    write_file(out / "log.csv", run.log().encode())
        return run.export(out / "model.safetensors", test)


def _images(recipe: Recipe, split: str, data_dir: Path | None, *, is_cropped: bool = False) -> Dataset:
    """Return a split at the recipe's size, as evaluation shows it to what the recipe makes.

    is_cropped: whether a random crop brings images to that size.  Of a set that is read at any size they
    are then read at its own, or they would be enlarged.
    """
    row = DATASETS.get(recipe.dataset.partition(":")[0])
    if row is None or not row.takes_size:
        dataset = load_data(recipe.dataset, split=split, data_dir=data_dir)
        return resized(dataset, recipe.size_px) if recipe.size_px else dataset
    size_px = max(recipe.size_px, row.size_px if is_cropped else 0)
    return load_data(recipe.dataset, split=split, data_dir=data_dir, size_px=size_px or None)


def _crop_px(recipe: Recipe) -> int | None:
    """Return to which size the recipe's augmentations bring images, None where they leave it."""
    sizes = [parse_call(text).get("size_px") for text in recipe.augment]
    return next((size for size in reversed(sizes) if size is not None), None)


def _check(recipe: Recipe, team: Team) -> None:
    """Raise UserError for what nothing can be trained with; tell of a precision that will be slow."""
    _check_words(recipe)
    if recipe.epochs < 1 or recipe.batch_size < 2:
        raise UserError(
            f"epochs must be at least 1 and batch_size 2, got {recipe.epochs} and {recipe.batch_size}"
        )
    if recipe.batch_size % team.size or recipe.batch_size < 2 * team.size:
        raise UserError(
            f"batch_size {recipe.batch_size} cannot be shared by {team.size} processes, 2 images or more "
            "each; start another number of them, or change it in a copy of the recipe"
        )
    is_slow = recipe.precision == "bf16" and team.device.type == "cpu" and not _has_bf16_units()
    if is_slow and team.is_first:
        print(
            "this processor has no units for bf16 and imitates them, some ten times slower than f32; "
            "--precision f32 trains in f32",
            file=sys.stderr,
        )


def _check_words(recipe: Recipe) -> None:
    """Raise UserError for words that a recipe does not know, and for parts that contradict each other."""
    for key, kind in get_type_hints(Recipe).items():
        choices = get_args(kind)
        if choices and isinstance(choices[0], str) and getattr(recipe, key) not in choices:
            raise UserError(f"{key} must be {' or '.join(choices)}, got {getattr(recipe, key)!r}")
    pipeline(recipe.augment)
    crop_px = _crop_px(recipe)
    if recipe.size_px < 0 or (recipe.size_px and crop_px not in (None, recipe.size_px)):
        raise UserError(
            "size_px must be 0 or the side of the images, and that of a crop in augment, got "
            f"{recipe.size_px}" + (f" and a crop to {crop_px}" if crop_px is not None else "")
        )
    if recipe.glimpse_loss == "later" and recipe.alpha > 0 and recipe.glimpses < 2:
        raise UserError(
            "glimpse_loss = 'later' leaves the first glimpse out, and a network of one has no other; "
            "take 'all', or alpha = 0"
        )


def _has_bf16_units() -> bool:
    """Return whether oneDNN, which computes convolutions on the CPU, has bf16 arithmetic here."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@contextmanager
def _silence() -> Iterator[Progress]:
    """Yield what takes reports and shows none."""
    yield lambda done, note="": None


class _Run:
    """A network in training: what one epoch changes, and what a resume needs."""

    def __init__(self, recipe: Recipe, dataset: Dataset, team: Team) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.team, self.device = recipe, team, team.device
        self.images = dataset.images  # mapped from a file, where they come from files
        self.labels = torch.from_numpy(dataset.labels)
        self.classes = dataset.classes
        self.augment = pipeline(recipe.augment)
        self.hardener = _hardener(recipe.attack) if recipe.attack else None
        self.steps_per_epoch = len(self.labels) // recipe.batch_size
        if not self.steps_per_epoch:
            raise UserError(f"batch_size {recipe.batch_size} is more than the {len(self.labels)} images")
        architecture = Architecture(
            recipe.backbone, recipe.glimpses, recipe.downsample, len(self.classes), recipe.gradient_scale
        )
        network = MGNet(architecture, glimpse_head=recipe.alpha > 0)
        if recipe.initialisation == "authors":
            initialise_as_authors_(network)
        if recipe.start_from:
            zoo.start_backbone_(network, recipe.start_from)
        self.network = network.to(self.device).to(memory_format=torch.channels_last)
        learner = _Learner(self.network, recipe)
        # A network of one glimpse has no use for its localisation network.
        self.learner = team.joined(learner, some_unused=recipe.glimpses == 1)
        self.optimizer = _optimizer(self.network, recipe)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            recipe.lr,
            total_steps=recipe.epochs * self.steps_per_epoch,
            pct_start=recipe.warmup,
        )
        self.rows: list[list[float]] = []

    @property
    def epochs_done(self) -> int:
        return len(self.rows)

    def epoch(self, epoch: int, report: Progress) -> float:
        """Train for one epoch and return its mean loss."""
        # Every random number of an epoch follows from the seed and its number: a resume needs no state.
        torch.manual_seed(self.recipe.seed * 100_003 + epoch)
        self.network.train()
        size = self.recipe.batch_size
        order = torch.randperm(len(self.labels))
        if self.team.size > 1:  # all have drawn the same order, and each its own augmentations
            torch.manual_seed(torch.initial_seed() * self.team.size + self.team.rank)
        total = 0.0
        for step in range(self.steps_per_epoch):
            rows = self.team.share(order[step * size : (step + 1) * size])
            images = torch.from_numpy(self.images[rows.numpy()]).to(self.device)
            x = self.augment(images).float() / 255
            y = self.labels[rows].to(self.device)
            if self.hardener is not None:
                x = self._attacked(x, y, KeyedDraws(self.recipe.seed, rows, f"epoch {epoch}"))
            loss = self.learner(self._normalised(x), y)
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip_norm)
            self.optimizer.step()
            self.schedule.step()
            total += loss.item()
            report(epoch * self.steps_per_epoch + step + 1, f"loss {total / (step + 1):.3f}")
        (total,) = self.team.sum([total])
        return total / self.steps_per_epoch / self.team.size

    def _attacked(self, x: Tensor, y: Tensor, draws: KeyedDraws) -> Tensor:
        """Return the last iterate of the recipe's attack on the network as it would be used."""
        assert self.hardener is not None
        attack, threat = self.hardener
        self.network.eval()
        for x_adv in attack(lambda v: self.network(self._normalised(v)).logits[-1], x, y, threat, draws):
            x = x_adv
        self.network.train()
        return x

    def _normalised(self, x: Tensor) -> Tensor:
        """Return [0,1] images as the network takes them."""
        mean = x.new_tensor(zoo.IMAGENET_MEAN)[:, None, None]
        std = x.new_tensor(zoo.IMAGENET_STD)[:, None, None]
        return ((x - mean) / std).contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def accuracy(self, dataset: Dataset) -> list[float]:
        """Return the share of the images that each exit classifies correctly, in f32."""
        self.network.eval()
        # Each process has seen other images: the first one's batch-norm statistics are the network's.
        self.team.copy_first_(self.network.buffers())
        correct = torch.zeros(self.recipe.glimpses)
        for k, batch in enumerate(dataset.batches(128)):
            if k % self.team.size != self.team.rank:
                continue
            logits = self.network(self._normalised(batch.images.to(self.device).float() / 255)).logits.cpu()
            correct += (logits.argmax(2) == batch.labels).sum(1)
        return [round(c / len(dataset.labels), 6) for c in self.team.sum(correct.tolist())]

    def state(self) -> dict[str, Any]:
        return {
            "recipe": {**asdict(self.recipe), "augment": list(self.recipe.augment)},
            "processes": self.team.size,
            "rows": self.rows,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def resume(self, path: Path) -> None:
        """Take over the state at path, where there is one."""
        if not path.exists():
            return
        state = zoo.read_training_state(path)
        ours = {**asdict(self.recipe), "augment": list(self.recipe.augment)}
        # A state may be older than the keys that have a default.
        theirs = {f.name: f.default for f in fields(Recipe) if f.default is not MISSING} | state["recipe"]
        if theirs != ours:
            changed = sorted(k for k in ours if ours[k] != theirs.get(k))
            raise UserError(
                f"{path} is of another recipe ({', '.join(changed)} differ); choose another --out"
            )
        before = state.get("processes", 1)
        if before != self.team.size:
            raise UserError(
                f"{path} is of a run with {before} processes, not {self.team.size}, and would end in other "
                "weights; start as many as before, or choose another --out"
            )
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.rows = state["rows"]

    def log(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text)
        exits = [f"accuracy_exit_{t + 1}" for t in range(self.recipe.glimpses)]
        writer.writerow(["epoch", "loss", *exits, "seconds"])
        writer.writerows(self.rows)
        return text.getvalue()

    def export(self, path: Path, test: Dataset) -> Path:
        """Write the weights as fp16, with the accuracy that the rounded weights have."""
        state = {
            name: t.half().float() if t.is_floating_point() else t
            for name, t in self.network.state_dict().items()
        }
        self.network.load_state_dict(state)
        card = zoo.Card(
            self.network.architecture,
            self.classes,
            test.size_px,
            dataset=self.recipe.dataset,
            recipe=self.recipe.model,
            accuracy=tuple(self.accuracy(test)),
        )
        inference = {name: t for name, t in state.items() if not name.startswith("glimpse_fc.")}
        if self.team.is_first:
            zoo.save_checkpoint(path, inference, card)
        self.team.wait()
        return path


class _Learner(nn.Module):
    """A network and its loss in one, as a team wants them: normalised images and labels -> loss."""

    def __init__(self, network: MGNet, recipe: Recipe) -> None:
        super().__init__()
        self.network, self.recipe = network, recipe

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        recipe = self.recipe
        with torch.autocast(x.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            glimpses = self.network(x)
            head = self.network.glimpse_fc
            features = glimpses.features[1 if recipe.glimpse_loss == "later" else 0 :]
            own = head(features.flatten(0, 1)) if head is not None else None
            return training_loss(glimpses, own, y, alpha=recipe.alpha, label_smoothing=recipe.label_smoothing)


def _hardener(text: str) -> tuple[Callable[..., Iterates], Threat]:
    """Return the attack of a recipe's call and its threat: linf, in pixels of [0,1]."""
    call = parse_call(text)
    options = dict(call.arguments)
    eps = options.pop("eps", None)
    row = check_call(Call(call.name, tuple(options.items())), "linf")
    needed = [name for name, default in options_of(row).items() if default is Parameter.empty]
    missing = [name for name in ("eps", *needed) if name not in dict(call.arguments)]
    if row.runs_long or row.is_adapted or missing:
        usable = ", ".join(name for name, known in ATTACKS.items() if not known.runs_long)
        raise UserError(
            f"a recipe's attack is one of {usable}, with eps and all it needs, got {text!r}; "
            "for example pgd(eps=8/255, step_size=4/255, steps=3)"
        )
    return partial(resolve(row), **options), Threat("linf", float(eps))


def _optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimizer."""
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            network.parameters(), recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay, fused=True
        )
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, recipe.lr, fused=True)
