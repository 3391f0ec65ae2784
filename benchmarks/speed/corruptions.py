"""CPU milliseconds to corrupt an image at all five severities: here, and by imagecorruptions 1.1.2.

    python benchmarks/speed/corruptions.py                              # 64 px, a batch of 64
    python benchmarks/speed/corruptions.py --size 224 --rounds 5        # 224 px, a batch of 16
    python benchmarks/speed/corruptions.py --no-peer                    # needs no imagecorruptions

CPU time of one thread, the best of several rounds in which the two take turns.  64 px images are
glimpse-digits; 224 px ones are the photographs of ../shared/data/imagenet-samples (or of
$ROBUSTGLIMPSE_SHARED), and enlarged digits where that folder is missing.  The first line says which.

We take the constants of the size, and textures for frost where imagecorruptions is installed.  The peer
takes images one by one, knows the constants of 224 px alone, and takes those at 64 px too: there its
cells are of another strength, but the same work.  A cell of it that raises on the installed numpy and
scikit-image is shown as "fails", and its corruption is left out of both sums of the ratio.

"forward" is one pass of ffnet-r18 over the same batch, without gradients: corrupting a cell should cost
less than looking at it.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from robustglimpse import load_data, load_model
from robustglimpse.corruptions import SEVERITIES, corrupt, names
from robustglimpse.corruptions.weather import frost_source
from robustglimpse.rng import KeyedDraws

BATCH = {64: 64, 224: 16}
# The peer's cost per image does not depend on how many there are; zoom at 224 px takes .4 s each.
PEER_IMAGES = {64: 8, 224: 2}
# What is slower than this per image is not asked again: its first run stands.
PATIENCE_MS = 2000.0
Peer = Callable[..., Any]


def subject(size: int) -> tuple[Tensor, str]:
    """Return images u8 [B,3,size,size] and what they are."""
    count = BATCH[size]
    if size == 64:
        return torch.from_numpy(np.array(load_data("glimpse-digits", limit=count).images)), "glimpse-digits"
    shared = os.environ.get("ROBUSTGLIMPSE_SHARED") or Path(__file__).parents[3] / "shared"
    folder = Path(shared) / "data" / "imagenet-samples" / "val"
    if folder.is_dir():
        images = load_data(f"imagefolder:{folder}", size_px=size, limit=count).images
        return torch.from_numpy(np.array(images)), "photographs of imagenet-samples"
    digits = torch.from_numpy(np.array(load_data("glimpse-digits", limit=count).images)).float()
    enlarged = F.interpolate(digits, size=(size, size), mode="bicubic")
    return enlarged.clamp(0, 255).byte(), "enlarged glimpse-digits"


def find_peer() -> Peer | None:
    """Return imagecorruptions.corrupt with OpenCV on one thread, or None with a note."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old names of scipy and setuptools among its imports
            import cv2
            import imagecorruptions
    except ImportError as error:
        print(f"imagecorruptions: left out, {error}", file=sys.stderr)
        return None
    cv2.setNumThreads(1)
    peer: Peer = imagecorruptions.corrupt
    return peer


def cpu_s(run: Callable[[], object]) -> float:
    """Return the seconds of CPU that a run takes."""
    start = time.process_time()
    run()
    return time.process_time() - start


def ours_ms(images: Tensor, name: str) -> float:
    """Return milliseconds per image for all severities of a corruption, here."""
    draws = KeyedDraws(0, torch.arange(len(images)))
    seconds = cpu_s(lambda: [corrupt(images, name, severity, draws=draws) for severity in SEVERITIES])
    return 1000 * seconds / len(images)


def peer_ms(peer: Peer, images: Sequence[Any], name: str) -> float:
    """Return the same for the peer; NaN if it raises.  images: u8 [H,W,3] each."""

    def run() -> None:
        for image in images:
            for severity in SEVERITIES:
                peer(image, severity=severity, corruption_name=name)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return 1000 * cpu_s(run) / len(images)
        except Exception as error:  # whatever an old library does on a new stack, the cell is a hole
            print(f"imagecorruptions {name}: fails, {type(error).__name__}: {error}", file=sys.stderr)
            return math.nan


def race(
    images: Tensor, cells: Sequence[str], peer: Peer | None, rounds: int
) -> tuple[dict[str, float], dict[str, float], float]:
    """Return the best milliseconds per image of us and the peer by corruption, and of a forward pass."""
    pixels = list(images.permute(0, 2, 3, 1).contiguous().numpy()[: PEER_IMAGES[images.shape[2]]])
    model = load_model("ffnet-r18")
    x = images.float() / 255
    ours, theirs, forward = dict.fromkeys(cells, math.inf), {}, math.inf
    for name in cells:  # to warm up: tables and textures are made once
        ours_ms(images, name)
        if peer:
            theirs[name] = peer_ms(peer, pixels[:1], name)
    for _ in range(rounds):
        for name in cells:
            ours[name] = min(ours[name], ours_ms(images, name))
            if peer and theirs[name] < PATIENCE_MS:  # so is no NaN
                theirs[name] = min(theirs[name], peer_ms(peer, pixels, name))
        with torch.no_grad():
            forward = min(forward, 1000 * cpu_s(lambda: model.logits(x)) / len(x))
    return ours, theirs, forward


def table(ours: Mapping[str, float], theirs: Mapping[str, float], forward: float) -> str:
    """Return the table: milliseconds per image for five severities, ratios, sums, the forward pass."""
    lines = [f"{'ms per image, 5 severities':28}{'here':>9}{'peer':>10}{'peer / here':>13}"]
    for name, own in ours.items():
        lines.append(row(name, own, theirs.get(name)))
    common = names()
    lines.append(row(f"{5 * len(common)} cells", sum(ours[name] for name in common), None))
    shared = [name for name in common if math.isfinite(theirs.get(name, math.nan))]
    if shared:
        sums = (sum(times[name] for name in shared) for times in (ours, theirs))
        lines.append(row(f"{5 * len(shared)} cells that both run", *sums))
    cell = sum(ours[name] for name in common) / (5 * len(common))
    lines.append(f"{'forward of ffnet-r18':28}{forward:9.2f}")
    lines.append(f"{'mean cell':28}{cell:9.2f}   {cell / forward:.2f} of a forward pass")
    return "\n".join(lines)


def row(name: str, own: float, other: float | None) -> str:
    if other is None:
        return f"{name:28}{own:9.2f}"
    if math.isnan(other):
        return f"{name:28}{own:9.2f}{'fails':>10}"
    return f"{name:28}{own:9.2f}{other:10.2f}{other / own:13.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, choices=BATCH, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--extras", action="store_true", help="the four extras too; they are in no sum")
    args = parser.parse_args()
    torch.set_num_threads(1)
    images, kind = subject(args.size)
    print(
        f"{len(images)} {kind}, {args.size} px, best of {args.rounds} rounds; "
        f"torch {torch.__version__}, numpy {np.__version__}, frost textures: {frost_source()}"
    )
    cells = names(extras=args.extras)
    print(table(*race(images, cells, find_peer() if args.peer else None, args.rounds)))


if __name__ == "__main__":
    main()
