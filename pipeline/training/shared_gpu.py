"""Several workers on one GPU.

Small target networks leave a GPU waiting for the CPU that launches their kernels, so that several processes on one GPU
finish more architectures a second. NCCL refuses two processes on one GPU: Gloo takes its place, through the memory of
the CPU; a gradient is as large as the hypernetwork, some megabytes.

A GPU runs kernels of different processes in turns, unless CUDA's multi-process service is running on the node
(`nvidia-cuda-mps-control -d`, before Ray is started there): then they run at the same time. Nothing else has to be set.
"""

from __future__ import annotations

from typing import Literal

import torch

from pipeline.errors import UserError
from pipeline.params import WorkerSettings

USED_BEFORE = 0.2
"""Part of a worker's share of the memory that may be in use when it starts: what CUDA itself keeps for each process."""


def backend_of(workers: WorkerSettings) -> Literal["gloo", "nccl"]:
    """Return what connects the workers."""
    return "nccl" if workers.gpus == 1 else "gloo"


def take_memory(device: torch.device, share: float) -> None:
    """Limit this process to its share of a GPU's memory, so that it does not take that of the other workers.

    On a CPU nothing is limited.

    Raises:
        UserError: another program has left too little of it.
    """
    if device.type != "cuda":
        return
    free, total = torch.cuda.mem_get_info(device)
    require_free_memory(free, total, share)
    torch.cuda.set_per_process_memory_fraction(share, device)


def require_free_memory(free: int, total: int, share: float) -> None:
    """Check that a worker's share of a GPU's memory is free; all sizes in bytes.

    Raises:
        UserError: it is not.
    """
    if free < (1 - USED_BEFORE) * share * total:
        raise UserError(
            f"a worker with workers.gpus = {share:g} may use {share * total / 2**30:.1f} GiB of its GPU, of which only "
            f"{free / 2**30:.1f} GiB are free\n"
            "end what else runs on the GPU (`nvidia-smi` lists it), or use fewer workers or a smaller workers.gpus"
        )
