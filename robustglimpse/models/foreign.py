"""What other people's code may change around it: run from a seed, and put back after."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

OF_CUDNN = ("benchmark", "deterministic", "allow_tf32")


@contextmanager
def undisturbed() -> Iterator[None]:
    """Run with gradients and from seed 0; put torch's switches and everybody's random numbers back after.

    A module that is imported may switch gradients off for the whole process, a model may draw from numpy.
    """
    dtype, precision = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    cudnn = {name: getattr(torch.backends.cudnn, name) for name in OF_CUDNN}
    strictness = _strictness()
    of_numpy, of_python = np.random.get_state(), random.getstate()
    is_on = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if is_on else ()
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=devices):
            torch.default_generator.manual_seed(0)  # torch.manual_seed keeps a note for CUDA's first use
            if is_on:
                torch.cuda.manual_seed_all(0)
            np.random.seed(0)
            random.seed(0)
            yield
    finally:
        np.random.set_state(of_numpy)
        random.setstate(of_python)
        for name, value in cudnn.items():
            setattr(torch.backends.cudnn, name, value)
        if _strictness() != strictness:  # setting it imports half of torch
            torch.use_deterministic_algorithms(strictness[0], warn_only=strictness[1])
        torch.set_float32_matmul_precision(precision)
        torch.set_default_dtype(dtype)


def _strictness() -> tuple[bool, bool]:
    """Return whether only deterministic algorithms are allowed, and whether others merely warn."""
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
