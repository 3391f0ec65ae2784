"""How long MGNet takes beside FF-Net, as the paper has it: four 96 px glimpses against one look at 224 px.

    python benchmarks/speed/inference.py                        # ResNet-18, batch 1 and 16, 1 and 2 threads
    python benchmarks/speed/inference.py --backbone r50 --rounds 5
    python benchmarks/speed/inference.py --threads 1 --clock cpu --rounds 5    # on a busy machine

Random weights: time does not depend on them.  The ways to run a network, all with the same logits:

    as trained     eager, NCHW, batch norms, keys and values of earlier glimpses kept
    recomputing    likewise, but the attention over all glimpses so far anew at every glimpse, as published
    frozen         zoo.frozen: batch norms merged, backbone packed; what `bench` attacks and judges
    fast           models.fast: rewritten for answers alone; what `profile --fast` times

The four networks of both families take turns, round after round, so that a busy machine is busy for all; a
ratio is the median over rounds of that round's ratio.  The paper's ratios are 0.68 (r18) and 0.70 (r50).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from robustglimpse.models import zoo
from robustglimpse.models.fast import FastMGNet
from robustglimpse.models.mgnet import MGNet, bare_architecture, look, region_of

SIZE_PX, CLASSES, GLIMPSES, DOWNSAMPLE = 224, 100, 4, "7/3"
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
FAMILIES = ("ffnet", "mgnet")
WAYS = ("as trained", "recomputing", "frozen", "fast")
Run = Callable[[], Tensor]


class Recomputing(nn.Module):
    """The network with torch's own attention, asked for all glimpses so far every time."""

    def __init__(self, network: MGNet) -> None:
        super().__init__()
        self.network = network
        self.mha = nn.MultiheadAttention(network.loc_network.fc.in_features, 1)
        self.mha.load_state_dict(network.feat_fusion.mha.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        network = self.network
        side = network.architecture.glimpse_px(x.shape[-1])
        region = x.new_tensor([1.0, 0.0, 0.0]).expand(len(x), 3)
        coded, logits = x.new_empty(0), []
        for _ in range(network.architecture.glimpses):
            feature = network.backbone(look(x, region, side))
            coded = torch.cat([coded, torch.cat([feature, region], 1)[None]])
            attended = self.mha(coded, coded, coded, need_weights=False)[0]
            fused = torch.relu(network.feat_fusion.norm(attended)[-1])
            logits.append(network.global_fc(fused))
            region = region_of(network.loc_network(fused))
        return torch.stack(logits)


def contenders(backbone: str, batch_size: int) -> dict[tuple[str, str], Run]:
    """Return what runs each family in each way, to logits [T,B,K], on the same images."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(batch_size, 3, 28, 28, generator=generator)
    x = nn.functional.interpolate(coarse, (SIZE_PX, SIZE_PX), mode="bicubic")
    last = x.contiguous(memory_format=torch.channels_last)
    found: dict[tuple[str, str], Run] = {}
    for family in FAMILIES:
        architecture = bare_architecture(
            f"{family}-{backbone}", classes=CLASSES, glimpses=GLIMPSES, downsample=DOWNSAMPLE
        )
        torch.manual_seed(0)
        network = MGNet(architecture).eval().requires_grad_(False)
        recomputing = Recomputing(network).eval().requires_grad_(False)
        frozen = zoo.frozen(network)
        fast = FastMGNet(network)
        found |= {
            (family, "as trained"): lambda n=network: n(x).logits,
            (family, "recomputing"): lambda n=recomputing: n(x),
            (family, "frozen"): lambda n=frozen: n(last).logits,
            (family, "fast"): lambda n=fast: n(last),
        }
    return found


@torch.inference_mode()
def race(everybody: dict[tuple[str, str], Run], rounds: int, clock: Callable[[], float]) -> dict:
    """Return the seconds of each contender in each round, after one round to warm up."""
    seconds: dict[tuple[str, str], list[float]] = {name: [] for name in everybody}
    for turn in range(rounds + 1):
        for name, run in everybody.items():
            start = clock()
            run()
            if turn:
                seconds[name].append(clock() - start)
    return seconds


@torch.inference_mode()
def widest(everybody: dict[tuple[str, str], Run]) -> float:
    """Return how far any way's logits are from those as trained."""
    return max(
        float((run() - everybody[family, "as trained"]()).abs().max())
        for (family, _), run in everybody.items()
    )


def median_ratio(top: list[float], bottom: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(top, bottom, strict=True))


def table(seconds: dict[tuple[str, str], list[float]]) -> str:
    """Return the table: milliseconds (median and least) of both families, and MGNet's over FF-Net's."""
    lines = [
        f"{'':14}{'ffnet ms':>18}{'mgnet ms':>18}{'mgnet / ffnet':>15}{'of the least':>14}{'it / fast':>11}"
    ]
    for way in WAYS:
        ff, mg = (seconds[family, way] for family in FAMILIES)
        cells = [f"{1000 * statistics.median(own):9.1f} ({1000 * min(own):6.1f})" for own in (ff, mg)]
        ratios = median_ratio(mg, ff), min(mg) / min(ff), median_ratio(mg, seconds["mgnet", "fast"])
        lines.append(
            f"{way:14}{cells[0]:>18}{cells[1]:>18}{ratios[0]:15.2f}{ratios[1]:14.2f}{ratios[2]:11.2f}"
        )
    return "\n".join(lines)


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", action="append", help="r18, r34, r50, rx50 or wrn50; may be repeated")
    parser.add_argument("--batch-size", type=numbers, default=[1, 16])
    parser.add_argument("--threads", type=numbers, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9, help="of batch 1 eight times as many")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu, with --threads 1, is for a busy machine"
    )
    args = parser.parse_args()
    for backbone in args.backbone or ["r18"]:
        for batch_size in args.batch_size:
            everybody = contenders(backbone, batch_size)
            for threads in args.threads:
                torch.set_num_threads(threads)
                rounds = args.rounds * (8 if batch_size == 1 else 1)
                seconds = race(everybody, rounds, CLOCKS[args.clock])
                print(
                    f"{backbone}, batch {batch_size}, {threads} threads, {rounds} rounds, {args.clock} time; "
                    f"logits within {widest(everybody):.0e}"
                )
                print(table(seconds), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
