"""One of several processes that train together; test_team.py starts them all.

Arguments: rank, processes, a folder, and four free ports with commas between.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from robustglimpse import train as module
from robustglimpse.data import load_data
from robustglimpse.models.mgnet import MGNet
from robustglimpse.team import gather
from robustglimpse.train import Recipe, train

TINY = Recipe(
    model="tiny@glimpse-digits", backbone="resnet18", glimpses=2, downsample="2", gradient_scale=0.02,
    start_from="", dataset="glimpse-digits", train_split="train", test_split="test", epochs=2,
    batch_size=16, optimizer="sgd", lr=1e-2, weight_decay=1e-4, clip_norm=float("inf"), warmup=0.3, alpha=0.6,
    label_smoothing=0.0, augment=("shift(pixels=2)", "flip"), attack="", precision="f32", seed=5,
)  # fmt: skip


class Killed(BaseException):
    """Stands for a signal."""


def hashed(network: MGNet) -> str:
    """Return a hash of all parameters, and of nothing that training measures."""
    content = b"".join(parameter.detach().numpy().tobytes() for parameter in network.parameters())
    return hashlib.sha256(content).hexdigest()


def gradient_error(rank: int) -> float:
    """Return how far the team's gradient of a batch is from one process's, beside the largest entry.

    In eval mode, where an image's loss does not depend on the others.
    """
    with gather("cpu") as team:
        torch.manual_seed(rank)  # each starts with other weights: those of the first count
        recipe = replace(TINY, alpha=0.0, glimpses=1, downsample="1")
        learner = module._Learner(MGNet(module.Architecture("resnet18", 1, "1", 10, 0.02)), recipe)
        learner.network.loc_network.requires_grad_(True)
        joined = team.joined(learner, some_unused=True).eval()
        alone = copy.deepcopy(learner)
        generator = torch.Generator().manual_seed(0)
        x, y = torch.randn(4, 3, 32, 32, generator=generator), torch.arange(4)
        joined(team.share(x), team.share(y)).backward()
        alone(x, y).backward()
        assert team.sum([1.0, rank]) == [team.size, sum(range(team.size))]
    mine, theirs = (
        torch.cat([p.grad.flatten() for p in each.parameters() if p.grad is not None])
        for each in (learner, alone)
    )
    return float((mine - theirs).abs().max() / theirs.abs().max())


def main() -> None:
    rank, processes, folder, ports = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4].split(",")
    digits = load_data("glimpse-digits", limit=32)
    digits = replace(digits, images=digits.images[:, :, ::2, ::2].copy())
    module.load_data = lambda *_, **__: digits  # type: ignore[assignment]
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1",
    }  # fmt: skip
    found: dict[str, Any] = {"weights": {}}
    usual_export, usual_epoch = module._Run.export, module._Run.epoch

    def export(run: Any, *arguments: Any) -> Path:
        found["weights"][out] = hashed(run.network)
        return usual_export(run, *arguments)

    def killed_in_the_second(run: Any, epoch: int, *arguments: Any) -> float:
        if epoch == 1:
            raise Killed
        return usual_epoch(run, epoch, *arguments)

    module._Run.export = export  # type: ignore[method-assign]
    os.environ["MASTER_PORT"] = ports[0]
    found["gradient_error"] = gradient_error(rank)
    out, os.environ["MASTER_PORT"] = "straight", ports[1]
    train(TINY, folder / out)
    out, os.environ["MASTER_PORT"] = "killed", ports[2]
    module._Run.epoch = killed_in_the_second  # type: ignore[method-assign]
    try:
        train(TINY, folder / out)
    except Killed:
        module._Run.epoch = usual_epoch  # type: ignore[method-assign]
    os.environ["MASTER_PORT"] = ports[3]
    train(TINY, folder / out)
    (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
