"""Processes that communicate as training workers do."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


def in_processes(workers: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Return what `function(rank, workers, *arguments)` returns in each of so many processes of a gloo group.

    They are forked from a process that has imported what they need, because importing it takes seconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["pytest", "torch", "pipeline.training.validation", "pipeline.training.gradient_reduction"]
    )
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(workers, context) as pool:
        store = os.path.join(folder, "store")
        futures = [pool.submit(_in_group, store, rank, workers, function, arguments) for rank in range(workers)]
        return [future.result() for future in futures]


def _in_group(store: str, rank: int, workers: int, function: Callable[..., Any], arguments: tuple) -> Any:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo", store=dist.FileStore(store, workers), rank=rank, world_size=workers, timeout=timedelta(seconds=60)
    )
    try:
        return function(rank, workers, *arguments)
    finally:
        dist.destroy_process_group()
