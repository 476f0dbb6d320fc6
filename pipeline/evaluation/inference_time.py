"""How long networks take to classify a batch of images on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from ghn.networks.network import Network
from pipeline.evaluation.networks import fresh_module

WARM_UP_RUNS = 2
"""Forward passes before the first that counts: they allocate memory and choose algorithms."""


@torch.inference_mode()
def inference_seconds(
    networks: Sequence[Network],
    image_size: int,
    classes: int,
    batch: int,
    repeats: int,
    device: torch.device,
) -> list[float]:
    """Return the seconds per batch of each network: the median of its forward passes, after a warm-up.

    Networks run in this process, one after the other, and PyTorch has one thread, so that nothing of the stage runs
    beside them. Parameters and images are random; times do not depend on them.

    Args:
        image_size: side of the images, in pixels.
        batch: images per batch.
        repeats: forward passes that count.
        device: where the networks run; of a GPU, the end of its work counts.
    """
    x_BCSS = torch.rand(batch, 3, image_size, image_size, generator=torch.Generator().manual_seed(0)).to(device)
    with one_thread():
        modules = (fresh_module(network, image_size, classes, seed=0).to(device).eval() for network in networks)
        return [_median_seconds(module, x_BCSS, repeats) for module in modules]


def _median_seconds(module: nn.Module, x_BCSS: torch.Tensor, repeats: int) -> float:
    for _ in range(WARM_UP_RUNS):
        module(x_BCSS)
    return float(np.median([_seconds(lambda: module(x_BCSS), x_BCSS.device) for _ in range(repeats)]))


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    _wait_for(device)
    start = time.perf_counter()
    run()
    _wait_for(device)
    return time.perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch compute with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
