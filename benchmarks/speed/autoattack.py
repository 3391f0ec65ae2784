"""AutoAttack here against pyautoattack's, on the same images: who is left standing, and what it cost.

    python benchmarks/speed/autoattack.py                                   # mgnet-r18, 100 images
    python benchmarks/speed/autoattack.py --attack apgd-ce --limit 1000 --out results/autoattack
    python benchmarks/speed/autoattack.py --limit 1000 --chunk 1000

Needs `pip install 'robustglimpse[robustbench]'`.  Either side is handed --chunk images at a time and asks
the network about at most --batch-size of them: both go over a chunk attack by attack and fill batches from
what still stands.  Every chunk is kept under --out, by side, so that a stopped run goes on, and `--side
theirs` and `--side ours` can run beside each other.  Seconds are of the processor, on one thread, so that a
busy neighbour costs little; forwards and backwards are per image.
Labels are the true ones; an image that is wrong already is not attacked and counts as fallen, on both sides.
p is McNemar's exact test of whether the difference is chance.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustglimpse import evaluate
from robustglimpse.data import Dataset, load_data
from robustglimpse.files import write_file
from robustglimpse.models import load_model
from robustglimpse.records import Batch, Classifier, Norm, Threat
from robustglimpse.registry import parse_call, parse_fraction
from robustglimpse.stats import mcnemar

# Theirs by name, and the same attack here.
ATTACKS = {
    "apgd-ce": "apgd(steps=100)",
    "apgd-dlr": "apgd(steps=100, loss='dlr')",
    "square": "square(steps=1000, rescale=False)",
    "standard": "autoattack",
}


class Counted(nn.Module):
    """A classifier's logits as the module that pyautoattack asks for, counting images that pass."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.logits = classifier.logits
        self.forwards = self.backwards = 0

    def forward(self, x: Tensor) -> Tensor:
        logits = self.logits(_Contiguous.apply(x))
        self.forwards += len(x)
        self.backwards += len(x) * logits.requires_grad
        return logits


class _Contiguous(torch.autograd.Function):
    """The identity, with a contiguous gradient: pyautoattack takes views of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].contiguous()


@dataclass(frozen=True)
class Job:
    """What both sides are asked: an attack of ATTACKS, in which ball, with which seed and batches."""

    attack: str
    norm: Norm
    eps: float
    seed: int
    batch_size: int


def theirs(classifier: Classifier, batch: Batch, job: Job) -> dict[str, Any]:
    """Return which images of a chunk pyautoattack leaves standing, and what it spent."""
    from pyautoattack import AutoAttack

    module = Counted(classifier).eval()
    x, y = batch.images.float().contiguous() / 255, batch.labels
    start = time.process_time()
    runner = AutoAttack(module, norm={"linf": "Linf", "l2": "L2"}[job.norm], eps=job.eps, seed=job.seed)
    if job.attack != "standard":
        runner.version, runner.attacks_to_run = "custom", [job.attack]
        runner.square.n_queries = 1000
    x_adv, _ = runner.run_standard_evaluation(x, y, batch_size=job.batch_size)
    spent = time.process_time() - start
    counts = module.forwards, module.backwards
    with torch.no_grad():
        stands = torch.cat([classifier.logits(part) for part in x_adv.split(job.batch_size)]).argmax(1) == y
    return _record(batch, stands.tolist(), spent, *counts)


def ours(classifier: Classifier, batch: Batch, job: Job) -> dict[str, Any]:
    """Return which images of a chunk the same attack here leaves standing, and what it spent."""

    def run(turn: evaluate.Turn) -> evaluate.Columns:
        shown = Batch(batch.images[turn.rows], batch.labels[turn.rows], batch.index[turn.rows])
        return evaluate.attack(
            classifier, shown, turn.plan, device="cpu", at_once=job.batch_size, before=turn.before
        )

    plan = evaluate.make_plan(
        parse_call(ATTACKS[job.attack]), protocol="standard", threat=Threat(job.norm, job.eps),
        normalisation=classifier.normalisation, restarts=1, seed=job.seed, all_exits=False,
    )  # fmt: skip
    start = time.process_time()
    columns = evaluate.in_turns(plan, len(batch.labels), job.batch_size, run)
    spent = time.process_time() - start
    stands = (columns["first_success_step"] == -1).tolist()
    return _record(batch, stands, spent, int(columns["forwards"].sum()), int(columns["backwards"].sum()))


def _record(
    batch: Batch, stands: list[bool], seconds: float, forwards: int, backwards: int
) -> dict[str, Any]:
    return {
        "index": batch.index.tolist(), "stands": stands, "seconds": round(seconds, 2),
        "forwards": forwards, "backwards": backwards,
    }  # fmt: skip


def run(
    side: Any, classifier: Classifier, dataset: Dataset, chunk: int, folder: Path, job: Job
) -> list[dict[str, Any]]:
    """Return the records of all chunks, running those that the folder lacks."""
    records = []
    for batch in dataset.batches(chunk):
        path = folder / f"{int(batch.index[0])}.json"
        if not path.exists():
            record = side(classifier, batch, job)
            write_file(path, json.dumps(record).encode())
            print(
                f"{path}: {sum(record['stands'])} of {len(batch.labels)}, {record['seconds']} s", flush=True
            )
        records.append(json.loads(path.read_text()))
    return records


def total(records: list[dict[str, Any]], key: str) -> Any:
    return sum(record[key] for record in records)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mgnet-r18")
    parser.add_argument("--attack", choices=ATTACKS, action="append")
    parser.add_argument("--norm", choices=["linf", "l2"], default="linf")
    parser.add_argument("--eps", default="8/255")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--chunk", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", choices=["theirs", "ours", "both"], default="both")
    parser.add_argument("--out", type=Path, default=Path("runs/autoattack"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    classifier = load_model(asked.model)
    dataset = load_data(classifier.meta["dataset"], limit=asked.limit)
    eps = parse_fraction(asked.eps, what="eps")
    sides = {"theirs": theirs, "ours": ours}
    for attack in asked.attack or ["standard"]:
        name = f"{Path(asked.model).stem}-{attack}-{asked.norm}-{asked.eps.replace('/', '_')}"
        name += f"-seed{asked.seed}" if asked.seed else ""
        name += f"-by{asked.chunk}" if asked.chunk != parser.get_default("chunk") else ""
        job = Job(attack, asked.norm, eps, asked.seed, asked.batch_size)
        chosen = sides if asked.side == "both" else {asked.side: sides[asked.side]}
        found = {
            side: run(function, classifier, dataset, asked.chunk, asked.out / name / side, job)
            for side, function in chosen.items()
        }
        if len(found) < len(sides):
            continue
        told = f"{asked.norm} {asked.eps}, {len(dataset.labels)} images, seed {asked.seed}"
        print(f"\n{asked.model}, {attack}, {told}")
        stands = {}
        for side, records in found.items():
            stands[side] = np.concatenate([record["stands"] for record in records])
            forwards, backwards = (total(records, k) / len(stands[side]) for k in ("forwards", "backwards"))
            print(
                f"{side:>7}: {100 * stands[side].mean():6.2f} % robust, {total(records, 'seconds'):8.1f} s, "
                f"{forwards:8.1f} forwards, {backwards:8.1f} backwards"
            )
        only_ours = int((stands["ours"] & ~stands["theirs"]).sum())
        only_theirs = int((stands["theirs"] & ~stands["ours"]).sum())
        print(
            f"         {only_ours} stand against ours alone, {only_theirs} against theirs alone "
            f"(p = {mcnemar(only_ours, only_theirs):.2f}); "
            f"time ratio {total(found['ours'], 'seconds') / total(found['theirs'], 'seconds'):.2f}"
        )


if __name__ == "__main__":
    main()
