"""The processes that train one network together: those that torchrun started, or this one alone."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

PATIENCE = timedelta(hours=12)  # the others wait while the first decodes the images


@dataclass(frozen=True)
class Team:
    """The place of this process among those of a run; device: where it computes."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files and reports."""
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """Return the part of rows that is for this process: every row is for one."""
        return rows[self.rank :: self.size]

    def joined(self, module: nn.Module, *, some_unused: bool) -> nn.Module:
        """Return the module so that its gradients are the mean over all processes.

        some_unused: whether it has parameters that its loss does not depend on.
        """
        if self.size == 1:
            return module
        from torch.nn.parallel import DistributedDataParallel

        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=devices, find_unused_parameters=some_unused)

    def sum(self, values: Iterable[float]) -> list[float]:
        """Return the sum of each value over all processes."""
        import torch
        from torch import distributed

        totals = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        if self.size > 1:
            distributed.all_reduce(totals)
        return [float(total) for total in totals]

    def copy_first_(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors of every process with those of the first."""
        from torch import distributed

        for tensor in tensors if self.size > 1 else ():
            distributed.broadcast(tensor, 0)

    def wait(self) -> None:
        """Return when all processes are here."""
        from torch import distributed

        if self.size > 1:
            distributed.barrier()

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """Let the first process do what is inside, and then the others, who find its files in the cache."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()


@contextmanager
def gather(device: str) -> Iterator[Team]:
    """Yield the place of this process in its team, and leave the team at the end.

    device: "cuda" becomes the GPU that torchrun has for this process.
    """
    import torch
    from torch import distributed

    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Team(0, 1, torch.device(device))
        return
    on_gpu = torch.device(device).type == "cuda"
    where = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device(device)
    if on_gpu:
        torch.cuda.set_device(where)
    distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=PATIENCE)
    try:
        yield Team(distributed.get_rank(), size, where)
    finally:
        distributed.destroy_process_group()
