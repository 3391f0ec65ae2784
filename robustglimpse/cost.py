"""What a model costs: multiply-accumulates, counted without running it."""

from __future__ import annotations

from robustglimpse.models.mgnet import Architecture, MGNet


def gmacs_per_exit(architecture: Architecture, size_px: int) -> tuple[float, ...]:
    """Return the billions of multiply-accumulates up to each exit, for one size_px square image.

    Convolutions, linear layers and attention count; norms, activations and sampling do not, as in
    the counts that papers call GFLOPs.  Nothing is computed: the network lives on the meta device.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        network = MGNet(architecture).eval()
        image = torch.empty(1, 3, size_px, size_px)
    counts = []
    for t in range(1, architecture.glimpses + 1):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(image, glimpses=t)
        counts.append(counter.get_total_flops() / 2e9)
    return tuple(counts)
