"""A frozen backbone whose weights are laid out once as the CPU's kernels read them: the same numbers, sooner.

torch rearranges the weights of a convolution at every call, forward and backward, which for a few images
takes longer than the arithmetic.  Here that happens once, and what runs are the operators that
torch.compile's own CPU code calls:

1. Every weight is packed for the way there, and for the way back once a gradient is asked for.
2. The shortcut is added inside the convolution before it.  (The rectifier is not: there it hides NaN.)
3. Kernels work on rows, and the last maps have rows of 4, 2 or 1.  So small maps [B,C,H,W] become volumes
   [B/8,C,H,W,8], in which 8 images make a row, convolved with kernels of size 1 along it; the zeros around a
   map of 2 x 2, more than half of its products, are skipped then.

What holds (tests/models/test_packed.py):

- In any batch features differ from the plain backbone's by at most 2e-6 of the largest, and gradients by at
  most 3e-6 of the largest where both come through the same rectifiers.  A rectifier whose input is within
  rounding of 0 may let through in one and not in the other, and the gradient jumps: by 2e-2 of the largest in
  a ResNet-50 of random weights, whose plain gradients jump as far from batch to batch.
- With oneDNN's kernels for AVX2, on one thread and on two: an image's features and gradient are bit for bit
  the same in any batch, and on one thread as on two.
- With these kernels, for 16 images and more (on two threads an even number), they are bit for bit the plain
  backbone's.  Below, the plain ones depend on the batch: a single image has kernels of its own, and on one
  thread torch gives 1 x 1 convolutions of fewer than 16 images to the BLAS, which adds in another order.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustglimpse.models.backbones import Backbone

MAPS, VOLUME = torch.channels_last, torch.channels_last_3d
# Maps of at most so many rows become volumes of so many images, if the batch fills them: a volume costs what
# so many images cost alone (measured on one Zen 5 core).
VOLUME_ROWS, VOLUME_IMAGES, VOLUME_COST = 4, 8, 5
# Weights are laid out for batches of so many, whatever comes first: all sizes then add in the same order.
PACKED_FOR = 64

# What the way back needs, in the order of the way there.
Tape = list[Tensor]


@cache
def can_pack() -> bool:
    """Return whether the operators are here and answer as convolutions do: torch promises neither."""
    kinds = [(3, 64, 7, 2, 1), (64, 64, 3, 1, 1), (64, 64, 3, 2, 1), (64, 64, 1, 2, 1), (64, 64, 3, 1, 4)]
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
            torch.default_generator.manual_seed(0)
            return all(_is_right(*kind, is_volume) for kind in kinds for is_volume in (False, True))
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False


def _is_right(inputs: int, outputs: int, kernel: int, stride: int, groups: int, is_volume: bool) -> bool:
    """Return whether a packed convolution and its gradient are near the usual ones."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups).requires_grad_(False)
    packed = _Conv(conv.to(memory_format=MAPS))
    x = torch.randn(VOLUME_IMAGES, inputs, 8, 8).contiguous(memory_format=MAPS)
    with torch.enable_grad():
        v = x.clone().requires_grad_()
        y = conv(v)
        g = torch.randn_like(y)
        expected = torch.autograd.grad(y, v, g)[0]
    with torch.no_grad():
        into, back = (_as_volumes, _as_maps) if is_volume else (torch.clone, torch.clone)
        found = packed.answer(into(x), into(torch.ones_like(y))) - 1
        gradient = packed.gradient(into(g), x)
        return torch.allclose(back(found), y, atol=1e-3) and torch.allclose(
            back(gradient), expected, atol=1e-3
        )


class PackedBackbone(nn.Module):
    """A frozen backbone: images [B,3,H,W] -> features [B,D].

    backbone: in eval mode, its batch norms merged; its convolutions are taken over.  Numbers other than f32
    and other devices are served without packing.  Weights are packed when images of a new size come; changes
    after that are not seen.  Gradients are of first order, and of the images alone.
    Raises ValueError for a backbone with batch norms.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        if any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules()):
            raise ValueError("expected a backbone whose batch norms are merged (fold_batch_norm_)")
        self.stem = _Conv(backbone.conv1)
        self.maxpool = backbone.maxpool
        layers = (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4)
        blocks = nn.ModuleList(_Block(block) for layer in layers for block in layer)
        self.blocks = cast("list[_Block]", blocks)

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled() and self.stem.packs(x):
            features: Tensor = _Differentiable.apply(x, self)
            return features
        return self.features(x)

    def features(self, x: Tensor, tape: Tape | None = None) -> Tensor:
        """Return features [B,D] of images [B,3,H,W]; what `gradient` needs is put on the tape."""
        count = len(x)
        x = x.contiguous(memory_format=MAPS)
        if tape is not None:
            tape.append(x)
        x = self.stem(x)
        if isinstance(self.maxpool, nn.MaxPool2d):
            x = _pooled(x, self.maxpool, tape)
        x = torch.relu_(x)  # after pooling: the same numbers, a quarter of them
        if tape is not None:
            tape.append(x)
        for block in self.blocks:
            if x.ndim == 4 and self.stem.packs(x) and _fills_volumes(x, block.stride):
                x = _as_volumes(x)
            x = block(x, tape)
        features = x.mean((2, 3))
        if x.ndim == 4:
            return features
        return features.permute(0, 2, 1).reshape(-1, features.shape[1])[:count]

    def gradient(self, g: Tensor, tape: Tape) -> Tensor:
        """Return the gradient of the images from that of their features [B,D]; the tape is used up."""
        count, last = len(g), tape[-1]
        if last.ndim == 5:
            g = F.pad(g, (0, 0, 0, -count % VOLUME_IMAGES))
            g = g.view(-1, VOLUME_IMAGES, g.shape[1]).permute(0, 2, 1)
        g = (g[:, :, None, None] / (last.shape[2] * last.shape[3])).expand_as(last)
        for block in reversed(self.blocks):
            g = block.gradient(g, tape)
            if g.ndim > tape[-1].ndim:
                g = _as_maps(g)[:count]
        g = _where_positive(g, tape.pop())
        if isinstance(self.maxpool, nn.MaxPool2d):
            indices, x = tape.pop(), tape.pop()
            g = torch.ops.aten.max_pool2d_with_indices_backward(g, x, *_pooling(self.maxpool), indices)
        return self.stem.gradient(g, tape.pop())

    @property
    def packed_bytes(self) -> int:
        """How much memory the packed weights take, beside the weights themselves."""
        packed = [w for m in self.modules() if isinstance(m, _Conv) for w in m.packed.values()]
        return sum(w.numel() * w.element_size() for w in packed)


class _Differentiable(torch.autograd.Function):
    """The features of a packed backbone, its whole way back in one function."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, backbone: PackedBackbone) -> Tensor:
        tape: Tape = []
        features = backbone.features(x, tape)
        ctx.backbone = backbone
        ctx.save_for_backward(*tape)
        return features

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return ctx.backbone.gradient(g, list(ctx.saved_tensors)), None


class _Block(nn.Module):
    """A residual block of maps or volumes."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.stride = block.stride
        self.shortcut = None if block.downsample is None else _Conv(block.downsample[0])
        names = [name for name in ("conv1", "conv2", "conv3") if hasattr(block, name)]
        self.convs = cast("list[_Conv]", nn.ModuleList(_Conv(getattr(block, name)) for name in names))

    def forward(self, x: Tensor, tape: Tape | None) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        for i, conv in enumerate(self.convs):
            is_last = i + 1 == len(self.convs)
            x = torch.relu_(conv(x, shortcut if is_last else None))
            if tape is not None:
                tape.append(x)
        return x

    def gradient(self, g: Tensor, tape: Tape) -> Tensor:
        """Return the gradient of the block's input from that of its output."""
        g = _where_positive(g, tape.pop())
        through = self.convs[-1].gradient(g, tape[-1])
        for conv in reversed(self.convs[:-1]):
            through = _where_positive(through, tape.pop())
            through = conv.gradient(through, tape[-1])
        return through.add_(g if self.shortcut is None else self.shortcut.gradient(g, tape[-1]))


class _Conv(nn.Module):
    """A convolution of maps [B,C,H,W] or of volumes [B/8,C,H,W,8], and its way back."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        # By the shape of what comes, the batch aside, and on the way back by what the stride left over.
        self.packed: dict[tuple[torch.Size, tuple[int, ...] | None], Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave the packed weights behind, which can be neither copied nor pickled."""
        return {**self.__dict__, "packed": {}}

    def packs(self, x: Tensor) -> bool:
        """Return whether x is served by packed weights."""
        weight = self.conv.weight
        is_usual = x.dtype == weight.dtype == torch.float32 and x.device.type == weight.device.type == "cpu"
        return is_usual and not weight.requires_grad and can_pack()

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """Return conv(x), or conv(x) + shortcut."""
        if self.packs(x):
            return self.answer(x, shortcut)
        y: Tensor = self.conv(x)
        return y if shortcut is None else y + shortcut

    def answer(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """Return the same by packed weights."""
        y: Tensor
        options = _options(self.conv, x.ndim)
        key = (x.shape[1:], None)
        if key not in self.packed:
            shape = [PACKED_FOR, *x.shape[1:]]
            weight = _weight(self.conv, x.ndim)
            self.packed[key] = torch.ops.mkldnn._reorder_convolution_weight(weight, *options, shape)
        if shortcut is None:
            y = torch.ops.mkldnn._convolution_pointwise(
                x, self.packed[key], self.conv.bias, *options, "none", [], ""
            )
        else:
            y = torch.ops.mkldnn._convolution_pointwise.binary(
                x, shortcut, self.packed[key], self.conv.bias, *options, "add", 1.0, None, [], ""
            )
        return y

    def gradient(self, g: Tensor, x: Tensor) -> Tensor:
        """Return the gradient of the input from that of the output; x: something of the input's sides."""
        is_strided = max(self.conv.stride) > 1
        if is_strided and g.ndim == 5:  # goes over maps: kernels for volumes add in another order here
            return _as_volumes(self.gradient(_as_maps(g), x))
        count = len(g)
        if is_strided:
            g = _shared_evenly(g)
        padding, stride, dilation, groups = _options(self.conv, g.ndim)
        # How many rows at the input's end no step of the stride has reached.
        sides = zip(x.shape[2:4], self.conv.kernel_size, padding, stride, dilation, strict=False)
        rest = [(side + 2 * p - d * (k - 1) - 1) % s for side, k, p, s, d in sides] + [0] * (g.ndim - 4)
        options = (padding, rest, stride, dilation, groups)
        key = (g.shape[1:], tuple(rest))
        if key not in self.packed:
            shape = [PACKED_FOR, *g.shape[1:]]
            weight = _weight(self.conv, g.ndim)
            self.packed[key] = torch.ops.mkldnn._reorder_convolution_transpose_weight(weight, *options, shape)
        y: Tensor = torch.ops.mkldnn._convolution_transpose_pointwise(
            g, self.packed[key], None, *options, "none", [], ""
        )
        return y[:count]


def _options(conv: nn.Conv2d, ndim: int) -> tuple[list[int], list[int], list[int], int]:
    """Return conv's padding, stride, dilation and groups, for maps (4) or volumes (5)."""
    assert not isinstance(conv.padding, str)
    padding, stride, dilation = list(conv.padding), list(conv.stride), list(conv.dilation)
    if ndim == 5:
        padding, stride, dilation = [*padding, 0], [*stride, 1], [*dilation, 1]
    return padding, stride, dilation, conv.groups


def _weight(conv: nn.Conv2d, ndim: int) -> Tensor:
    weight = conv.weight.detach()
    if ndim == 4:
        return weight
    # From a contiguous copy: in a view of channels-last weights the row's stride is 1, and kernels for groups
    # then read something else.
    return weight.contiguous()[..., None].contiguous(memory_format=VOLUME)


def _pooled(x: Tensor, pool: nn.MaxPool2d, tape: Tape | None) -> Tensor:
    y: Tensor
    if tape is None:
        y = pool(x)
    else:
        y, indices = torch.ops.aten.max_pool2d_with_indices(x, *_pooling(pool))
        tape += [x, indices]
    return y


def _pooling(pool: nn.MaxPool2d) -> tuple[Any, ...]:
    return [pool.kernel_size] * 2, [pool.stride] * 2, [pool.padding] * 2, [pool.dilation] * 2, pool.ceil_mode


def _where_positive(g: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of a rectifier's input from that of its output y."""
    masked: Tensor = torch.ops.aten.threshold_backward(g, y, 0)
    return masked


def _fills_volumes(x: Tensor, stride: int) -> bool:
    """Return whether maps x are better off as volumes in a block with that stride."""
    volumes = -(-len(x) // VOLUME_IMAGES)
    return -(-x.shape[2] // stride) <= VOLUME_ROWS and volumes * VOLUME_COST <= len(x)


def _shared_evenly(g: Tensor) -> Tensor:
    """Return maps [B,C,H,W] with zeros behind the last, so many that all threads get as many maps.

    Where they do not, the kernels of a strided convolution's way back cut maps in pieces, and add in another
    order.  Fewer maps than threads stay as they are: there the pieces are what keeps all threads at work.
    """
    threads = torch.get_num_threads()
    rest = -len(g) % threads if len(g) > threads else 0
    return F.pad(g, (0, 0, 0, 0, 0, 0, 0, rest)) if rest else g


def _as_volumes(x: Tensor) -> Tensor:
    """Return maps [B,C,H,W] as volumes [B/8,C,H,W,8], images of zeros behind the last."""
    x = F.pad(x, (0, 0, 0, 0, 0, 0, 0, -len(x) % VOLUME_IMAGES))
    x = x.view(-1, VOLUME_IMAGES, *x.shape[1:]).permute(0, 2, 3, 4, 1)
    return x.contiguous(memory_format=VOLUME)


def _as_maps(x: Tensor) -> Tensor:
    """Return volumes as the maps that they were made of."""
    x = x.permute(0, 4, 1, 2, 3)
    return x.reshape(-1, *x.shape[2:]).contiguous(memory_format=MAPS)
