"""What a model costs: parameters, multiply-accumulates, latency and peak memory of every exit."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from robustglimpse.models import DEFAULT_DATASET, is_from_outside, models, zoo
from robustglimpse.models.backbones import backbone_called
from robustglimpse.models.fast import FastMGNet
from robustglimpse.models.mgnet import Architecture, MGNet, bare_architecture
from robustglimpse.models.packed import PackedBackbone
from robustglimpse.progress import Progress, progress
from robustglimpse.records import UserError

WARM_UPS = 3  # unmeasured runs before the measured ones: the first allocate and choose kernels
FEWEST_RUNS = 5  # even where they take longer than BUDGET_S
BUDGET_S = 10.0
# What the paper measured, for where only some of it is asked for.
PAPER_SIZE_PX, PAPER_CLASSES, PAPER_GLIMPSES, PAPER_DOWNSAMPLE = 224, 100, 4, "7/3"


@dataclass(frozen=True)
class Subject:
    """A network to be measured, and the images that it takes.

    network: as it is attacked and judged: in eval mode, channels-last, batch norms merged.
    params: of the network as it is trained, without the glimpse classifier, which serves training only.
    """

    name: str
    network: MGNet
    size_px: int
    params: int


@dataclass(frozen=True)
class ExitCost:
    """What one exit of a model costs.

    gmacs: billions of multiply-accumulates for one image, keys and values of earlier glimpses kept.
    gmacs_published: as the paper counted them; see gmacs_as_published.
    latency_ms: by batch size, the median over `runs` runs of a warm network (models.fast where is_fast).
    peak_mb: by batch size, 10^6 bytes at the most at one time; see peak_bytes.
    """

    model: str
    exit: int
    architecture: Architecture
    size_px: int
    params: int
    gmacs: float
    gmacs_published: float
    latency_ms: Mapping[int, float]
    peak_mb: Mapping[int, float]
    runs: Mapping[int, int]
    device: str
    threads: int
    is_fast: bool


def subject(
    name: str,
    *,
    size_px: int | None = None,
    classes: int | None = None,
    glimpses: int | None = None,
    downsample: str | None = None,
    device: str = "cpu",
) -> Subject:
    """Return the checkpoint called name, or, where any of the four options is given, the bare architecture.

    The options that are left out are then the paper's on ImageNet100; weights are random, from seed 0.
    Raises UserError for a name that is neither, and for models from outside.
    """
    if is_from_outside(name):
        raise UserError(
            f"{name}: only our own networks can be profiled, by exit; give a name such as mgnet-r18"
        )
    if (size_px, classes, glimpses, downsample) == (None, None, None, None):
        _check_there_is_a_checkpoint(name)
        network, card = zoo.load_network(name)
        size_px = card.size_px
    else:
        architecture = bare_architecture(
            name,
            classes=PAPER_CLASSES if classes is None else classes,
            glimpses=PAPER_GLIMPSES if glimpses is None else glimpses,
            downsample=PAPER_DOWNSAMPLE if downsample is None else downsample,
        )
        size_px = PAPER_SIZE_PX if size_px is None else size_px
        if architecture.glimpse_px(size_px) < 1:
            raise UserError(f"size must be at least {architecture.downsample} px, got {size_px}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = MGNet(architecture)
    params = sum(p.numel() for p in network.parameters())
    return Subject(name, zoo.frozen(network, device), size_px, params)


def _check_there_is_a_checkpoint(name: str) -> None:
    """Raise UserError for an architecture's name that no checkpoint has; others are the zoo's to judge."""
    known = name in models() or f"{name}@{DEFAULT_DATASET}" in models()
    family, _, short = name.partition("-")
    if not known and family in ("mgnet", "ffnet") and backbone_called(short) is not None:
        raise UserError(
            f"{name}: there is no such checkpoint (robustglimpse list models); give --size "
            f"{PAPER_SIZE_PX} for the architecture on random weights"
        )


def profile(
    subjects: Sequence[Subject],
    *,
    batch_sizes: Sequence[int] = (1, 32),
    repeats: int = 30,
    is_fast: bool = False,
) -> list[ExitCost]:
    """Return what every exit of every network costs, in their order.

    is_fast: time the networks rewritten for answers alone (models.fast), on the CPU; the rest stays.
    repeats: measured runs of each exit and batch size; fewer, but at least 5, where they take above 10 s.
    """
    if repeats < 1 or not batch_sizes or min(batch_sizes) < 1:
        raise UserError(f"repeats and batch sizes must be at least 1, got {repeats} and {list(batch_sizes)}")
    if is_fast and any(_device(s).type != "cpu" for s in subjects):
        raise UserError("--fast is for the CPU; give --device cpu with it, or leave it out")
    exits = sum(s.network.architecture.glimpses for s in subjects)
    with progress(exits * len(batch_sizes), "profile") as report:
        return [cost for s in subjects for cost in _exits(s, batch_sizes, repeats, report, is_fast)]


def _device(s: Subject) -> torch.device:
    return next(s.network.parameters()).device


def _exits(
    s: Subject, batch_sizes: Sequence[int], repeats: int, report: Progress, is_fast: bool
) -> list[ExitCost]:
    architecture = s.network.architecture
    ours = gmacs_per_exit(architecture, s.size_px)
    published = gmacs_as_published(architecture, s.size_px)
    device = _device(s)
    rewritten = FastMGNet(s.network) if is_fast else None
    done, costs = 0, []
    for t in range(1, architecture.glimpses + 1):
        ms, mb, runs = {}, {}, {}
        for size in batch_sizes:
            x = _images(size, s.size_px, device)
            run = _forward(s.network, x, t)
            timed = partial(rewritten, x, glimpses=t) if rewritten else run
            seconds = timings(timed, repeats, device)
            ms[size], runs[size] = 1000 * median(seconds), len(seconds)
            mb[size] = peak_bytes(run, s.network, x) / 1e6
            done += 1
            report(done, f"{s.name}, exit {t}, batch {size}")
        costs.append(
            ExitCost(
                s.name, t, architecture, s.size_px, s.params, ours[t - 1], published[t - 1], ms, mb, runs,
                str(device), torch.get_num_threads(), is_fast,
            )
        )  # fmt: skip
    return costs


def _images(count: int, size_px: int, device: torch.device) -> Tensor:
    """Return normalised images as a classifier hands them to its network: noise, channels-last."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 3, size_px, size_px, generator=generator).to(device)
    return x.contiguous(memory_format=torch.channels_last)


def _forward(network: MGNet, x: Tensor, exit_number: int) -> Callable[[], object]:
    @torch.inference_mode()
    def run() -> object:
        return network(x, glimpses=exit_number).logits

    return run


def timings(run: Callable[[], object], repeats: int, device: torch.device) -> list[float]:
    """Return the wall seconds of each of `repeats` runs (see profile), after a few to warm up."""
    seconds: list[float] = []
    start = time.perf_counter()
    for k in range(-WARM_UPS, repeats):
        begun = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if k >= 0:
            seconds.append(time.perf_counter() - begun)
        if len(seconds) >= FEWEST_RUNS and time.perf_counter() - start > BUDGET_S:
            break
    return seconds


def peak_bytes(run: Callable[[], object], network: nn.Module, x: Tensor) -> int:
    """Return how many bytes of tensors are alive at most while run runs: weights, images and what it makes.

    On CUDA the allocator's own peak, which counts what kernels borrow as well and the rounding of blocks.
    On the CPU every tensor that an operation returns is followed until it is freed, and packed copies of
    weights (models.packed) count; what a convolution borrows and gives back inside is not seen, nor is the
    memory of Python and torch themselves.
    """
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
        torch.cuda.reset_peak_memory_stats(x.device)
        run()
        torch.cuda.synchronize(x.device)
        return int(torch.cuda.max_memory_allocated(x.device))
    run()  # so that weights are packed
    packed = sum(m.packed_bytes for m in network.modules() if isinstance(m, PackedBackbone))
    live = _LiveBytes([x, *network.parameters(), *network.buffers()])
    with live:
        run()
    return live.peak + packed


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the storage of every tensor that comes out of an operation, and how much is alive at once."""

    def __init__(self, held: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._alive: dict[int, int] = {}
        self.now: int = 0
        self.peak: int = 0
        for tensor in held:
            self._follow(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._follow(leaf)
        return result

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        self._alive[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._alive.pop(key)


def gmacs_per_exit(architecture: Architecture, size_px: int) -> tuple[float, ...]:
    """Return the billions of multiply-accumulates up to each exit, for one size_px square image.

    Convolutions, linear layers and attention count; norms, activations and sampling do not, as in
    the counts that papers call GFLOPs.  Nothing is computed: the network lives on the meta device.
    """
    with torch.device("meta"):
        network = MGNet(architecture).eval()
        image = torch.empty(1, 3, size_px, size_px)
    counts: list[float] = []
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        # The classifier is the last that an exit needs, and called once at each.
        network.global_fc.register_forward_hook(lambda *_: counts.append(counter.get_total_flops() / 2e9))
        network(image)
    return tuple(counts)


def gmacs_as_published(architecture: Architecture, size_px: int) -> tuple[float, ...]:
    """Return the billions of multiply-accumulates up to each exit as the paper's tables have them.

    The authors' network asked its multi-head attention anew for all glimpses so far at every glimpse
    (queries, keys, values and outputs of each: 4 t W^2 at glimpse t, W features wide), and the
    localisation network after the last glimpse too.  fvcore, which counted it, has convolutions and linear
    layers but not the two small products inside the attention.  (In Table 3 it was a later fvcore, which
    adds 2 for every value of a batch norm and 4 for every value sampled: up to 0.3 % more.)
    """
    side = architecture.glimpse_px(size_px)
    with torch.device("meta"):
        network = MGNet(architecture).eval()
        glimpse = torch.empty(1, 3, side, side)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.backbone(glimpse)
    seen = counter.get_total_flops() / 2e9
    width = network.loc_network.fc.in_features
    heads = width * (architecture.classes + 3) / 1e9
    fusion = 4 * width**2 / 1e9
    return tuple(t * (seen + heads) + fusion * t * (t + 1) / 2 for t in range(1, architecture.glimpses + 1))
