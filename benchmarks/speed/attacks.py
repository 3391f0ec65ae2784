"""Milliseconds per step of PGD here, at its bare limit, in torchattacks and in foolbox, in one run.

    python benchmarks/speed/attacks.py                                  # the bundled ResNet-18 pair
    python benchmarks/speed/attacks.py --model mgnet-r50 --rounds 3
    python benchmarks/speed/attacks.py --random-weights --threads 1     # needs no checkpoint

The default is 1280 steps of 64 images: about ten minutes on one core at 0.4 s a step, less on more cores.
On a busy machine take --threads 1 --clock cpu, which leaves out the time of others.

Everybody attacks the same glimpse-digits images, none of which is dropped: labels are the model's own
predictions.  The contenders take turns, round after round, so that a busy machine is busy for all; a
ratio is the median over rounds of that round's ratio.  The rows:

    bare limit           forward and input gradient of our frozen network (packed, batch norms merged),
                         nothing else
    pgd                  robustglimpse.attacks.gradient.pgd
    bare limit, judged   the bare limit and two forward passes: the clean verdict and the last one
    pgd, judged          evaluate.attack under the `paper` protocol: clean verdict, every iterate judged
    torchattacks         on the model as its users have it: NCHW, weights that require gradients
    foolbox              likewise
    ..., our network     the same library on the frozen network

A peer that is not installed is left out, with a note on stderr.

Measured on 2026-11-26, one thread of a two-core Zen 5 with other work on it, torch 2.14.1, torchattacks
3.5.1, foolbox 3.3.4, `--threads 1 --rounds 3 --clock cpu` (ms a step, and `pgd / it`):

    ffnet-r18   bare 207 (1.02)   pgd 209   torchattacks 305 (0.69)   foolbox 421 (0.50)
    mgnet-r18   bare 161 (1.01)   pgd 162   torchattacks 257 (0.63)   foolbox 424 (0.38)

Our frozen network is packed (models.packed), so that a library that attacks it gains as much.  The fewer
images, the more: see benchmarks/speed/autoattack.py.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustglimpse import evaluate
from robustglimpse.attacks.gradient import pgd
from robustglimpse.data import load_data
from robustglimpse.models import WEIGHTS, model_row, zoo
from robustglimpse.models.mgnet import Architecture, MGNet
from robustglimpse.records import Batch, Classifier, Threat
from robustglimpse.registry import Call
from robustglimpse.rng import KeyedDraws
from robustglimpse.train import load_recipe

THREAT = Threat("linf", 4 / 255)
STEP_SIZE = 1 / 255
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Contenders = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Subject:
    """One set of weights, as we freeze them and as a peer's user has them, and the images attacked.

    network: the same as the one inside classifier.  y: i64 [B], the classifier's own predictions of batch.
    """

    network: MGNet
    classifier: Classifier
    plain: nn.Module
    batch: Batch
    x: Tensor
    y: Tensor


class Plain(nn.Module):
    """A network as it comes: contiguous, weights that require gradients, normalisation inside."""

    def __init__(self, network: MGNet, card: zoo.Card) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(card.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(card.std)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.network((x - self.mean) / self.std).logits[-1]


class AsModule(nn.Module):
    """Our classifier as the nn.Module that both peers ask for; its network lends them the device."""

    def __init__(self, classifier: Classifier, network: MGNet) -> None:
        super().__init__()
        self.logits, self.network = classifier.logits, network

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x)


def subject(name: str, batch_size: int, *, random_weights: bool) -> Subject:
    """Return the model called name, bundled or on random weights, and its first test images."""
    state, card = random_checkpoint(name) if random_weights else bundled_checkpoint(name)
    network, twin = MGNet(card.architecture), MGNet(card.architecture)
    network.load_state_dict(state)
    twin.load_state_dict(state)
    classifier = zoo.classifier(network, card, name=name, sha256="")
    network = zoo.frozen(network)
    batch = next(load_data("glimpse-digits", limit=batch_size).batches(batch_size))
    x = batch.images.float() / 255
    with torch.no_grad():
        y = classifier.logits(x).argmax(1)
    batch = Batch(batch.images, y, batch.index)
    return Subject(network, classifier, Plain(twin, card).eval(), batch, x, y)


def bundled_checkpoint(name: str) -> tuple[dict[str, Tensor], zoo.Card]:
    path = Path(name) if name.endswith(".safetensors") else WEIGHTS / model_row(name).file
    state, card, _ = zoo.read_checkpoint(path)
    return state, card


def random_checkpoint(name: str) -> tuple[dict[str, Tensor], zoo.Card]:
    recipe = load_recipe(f"{name}-glimpse-digits")
    architecture = Architecture(
        recipe.backbone, recipe.glimpses, recipe.downsample, 10, recipe.gradient_scale
    )
    torch.manual_seed(0)
    return MGNet(architecture).state_dict(), zoo.Card(architecture, tuple("0123456789"), 64)


def ours(s: Subject, steps: int) -> Contenders:
    """Return PGD here and the limits beside it."""
    draws = KeyedDraws(0, s.batch.index)
    plan = evaluate.make_plan(
        Call("pgd", (("step_size", STEP_SIZE), ("steps", steps))),
        protocol="paper",
        threat=THREAT,
        normalisation=s.classifier.normalisation,
        restarts=1,
        seed=0,
        all_exits=False,
    )
    options = {"steps": steps, "step_size": STEP_SIZE, "random_start": False}
    return {
        "bare limit": lambda: bare(s, steps, judging=0),
        "pgd": lambda: [None for _ in pgd(s.classifier.logits, s.x, s.y, THREAT, draws, **options)],
        "bare limit, judged": lambda: bare(s, steps, judging=2),
        "pgd, judged": lambda: evaluate.attack(s.classifier, s.batch, plan, device="cpu"),
    }


def bare(s: Subject, steps: int, *, judging: int) -> None:
    """Take the input gradient `steps` times, and `judging` forward passes, of the bare network.

    The loss is scaled: in a trained MGNet the gradient of an unattended glimpse is below f32's normal
    range, where arithmetic takes several times as long.  That is no part of the limit.
    """
    mean, std = (torch.tensor(c)[:, None, None] for c in s.classifier.normalisation)
    x = ((s.x - mean) / std).contiguous(memory_format=torch.channels_last).requires_grad_()
    for _ in range(steps):
        loss = F.cross_entropy(s.network(x).logits[-1], s.y, reduction="sum")
        torch.autograd.grad(loss * 2.0**40, x)
    with torch.no_grad():
        for _ in range(judging):
            s.network(x)


def torchattacks_pgd(s: Subject, steps: int) -> Contenders:
    import torchattacks

    def run(model: nn.Module) -> Callable[[], object]:
        attack = torchattacks.PGD(model, eps=THREAT.eps, alpha=STEP_SIZE, steps=steps, random_start=False)
        return lambda: attack(s.x, s.y)

    ours = AsModule(s.classifier, s.network).eval()
    return {"torchattacks": run(s.plain), "torchattacks, our network": run(ours)}


def foolbox_pgd(s: Subject, steps: int) -> Contenders:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # an old scipy name among its own imports
        import foolbox

    attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP_SIZE, steps=steps, random_start=False)
    criterion = foolbox.criteria.Misclassification(s.y)

    def run(model: nn.Module) -> Callable[[], object]:
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        return lambda: attack.run(wrapped, s.x, criterion, epsilon=THREAT.eps)

    ours = AsModule(s.classifier, s.network).eval()
    return {"foolbox": run(s.plain), "foolbox, our network": run(ours)}


def contenders(s: Subject, steps: int) -> Contenders:
    """Return everybody who is installed, by row of the table."""
    everybody = ours(s, steps)
    for make in (torchattacks_pgd, foolbox_pgd):
        try:
            everybody |= make(s, steps)
        except ImportError as error:
            print(f"{make.__name__}: left out, {error}", file=sys.stderr)
    return everybody


def race(everybody: Contenders, rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Return the seconds of each contender in each round, after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in everybody}
    for turn in range(rounds + 1):
        for name, run in everybody.items():
            start = clock()
            run()
            if turn:
                seconds[name].append(clock() - start)
    return seconds


def table(seconds: dict[str, list[float]], steps: int) -> str:
    """Return the table: milliseconds per step, and how many times as long each of ours takes."""
    lines = [f"{'':28}{'ms/step':>9}{'pgd / it':>11}{'judged / it':>13}"]
    for name, own in seconds.items():
        ratios = (median_ratio(seconds["pgd"], own), median_ratio(seconds["pgd, judged"], own))
        ms = 1000 * statistics.median(own) / steps
        lines.append(f"{name:28}{ms:9.1f}{ratios[0]:11.3f}{ratios[1]:13.3f}")
    return "\n".join(lines)


def median_ratio(top: list[float], bottom: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(top, bottom, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="append", help="bundled name or .safetensors file; may be repeated")
    parser.add_argument("--random-weights", action="store_true", help="the recipe's network, untrained")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu, with --threads 1, is for a busy machine"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in args.model or ["ffnet-r18", "mgnet-r18"]:
        attacked = subject(name, args.batch_size, random_weights=args.random_weights)
        seconds = race(contenders(attacked, args.steps), args.rounds, CLOCKS[args.clock])
        sizes = f"batch {args.batch_size}, {args.steps} steps, {args.rounds} rounds"
        print(f"{name}: {sizes}, {args.threads} threads, {args.clock} time")
        print(table(seconds, args.steps), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
