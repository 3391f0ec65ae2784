"""What a run finds around it: set as it needs, and left as it was."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from robustglimpse import notes


@contextmanager
def own_surroundings() -> Iterator[None]:
    """Run with gradients, in f32 and without autocast, whatever the caller has set; put all of it back.

    Inside inference_mode nothing could be differentiated, under autocast results would differ in silence.
    Also put back: the TF32 flag that choose_device sets on a GPU, and the folders on sys.path.  Every note is
    told once.
    """
    path, tf32, dtype = list(sys.path), torch.backends.cudnn.allow_tf32, torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(notes.one_run())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            sys.path[:] = path
            torch.backends.cudnn.allow_tf32 = tf32
            torch.set_default_dtype(dtype)
