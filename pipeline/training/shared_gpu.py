"""Several workers on one GPU.

Small target networks leave a GPU waiting for the CPU that launches their kernels, so that several processes on one GPU
finish more architectures per second. NCCL refuses two processes on one GPU: Gloo takes its place, through the memory of
the CPU; a gradient is as large as the hypernetwork, some megabytes.

A GPU runs kernels of different processes in turns, unless CUDA's multi-process service is running on the node
(`nvidia-cuda-mps-control -d`, before Ray is started there): then they run at the same time. Nothing else has to be set.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

import torch

from pipeline.errors import UserError
from pipeline.params import WorkerSettings

FOR_CUDA = 0.1
"""Part of a worker's share of the memory that is left to CUDA itself, which keeps some for each process."""

WAIT_SECONDS = 30.0
"""How long a worker waits for memory that processes of the run before it are about to free."""


def backend_of(workers: WorkerSettings) -> Literal["gloo", "nccl"]:
    """Return what connects the workers."""
    return "nccl" if workers.gpus == 1 else "gloo"


def take_memory(device: torch.device, share: float) -> None:
    """Limit this process to its share of a GPU's memory, so that it does not take that of the other workers.

    On a CPU, or a whole GPU, nothing is limited.

    Raises:
        UserError: another program has left too little of it.
    """
    if device.type != "cuda" or share in (0, 1):
        return
    require_free_memory(lambda: torch.cuda.mem_get_info(device), share)
    torch.cuda.set_per_process_memory_fraction((1 - FOR_CUDA) * share, device)


def require_free_memory(
    free_and_total: Callable[[], tuple[int, int]], share: float, wait_seconds: float = WAIT_SECONDS
) -> None:
    """Wait until a worker's share of a GPU's memory is free; all sizes in bytes.

    Raises:
        UserError: it is not.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        free, total = free_and_total()
        if free >= (1 - 2 * FOR_CUDA) * share * total:
            return
        if time.monotonic() > deadline:
            raise UserError(
                f"a worker with workers.gpus = {share:g} may use {share * total / 2**30:.1f} GiB of its GPU, of which "
                f"only {free / 2**30:.1f} GiB are free\n"
                "end what else runs on the GPU (`nvidia-smi` lists it), or use fewer workers or a smaller workers.gpus"
            )
        time.sleep(0.5)
