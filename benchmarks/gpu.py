"""What training costs on a GPU: correctness, seconds of a step and its parts, memory, processes on one card, learning.

    benchmarks/gpu.sh [--small]

It needs PyTorch, NumPy, SciPy and safetensors, and fits ten minutes on one card. Settings are the published ones for
CIFAR-10; a step at 224×224 follows with batches of 256 images. Without a GPU, or with `--small`, all is so small that
it shows that the script runs, and nothing else. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest.mock import patch

import torch
from published_step import CLASSES, hypernetwork_seconds, meta_batches, train_step
from torch import Tensor
from torch.nn import functional as F

from ghn import GHN, GHNConfig
from ghn.models import gated_gnn
from ghn.models.gated_gnn import has_kernels
from ghn.networks.functional import run_program
from ghn.networks.graph_batch import GraphBatch
from ghn.training.meta_batch import SampledArchitecture
from ghn.training.step import StepSettings

GOLDEN = Path(__file__).parents[1] / "tests/golden/ghn2.pt"
LEARNING_RATE = 1e-3
PATIENCE = 180.0
"""Seconds in which all processes have taken their first steps."""

LARGEST_DIFFERENCES = {"logits": 1e-4, "gradient": 1e-3, "levels": 1e-4, "again": 0.0}


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    meta_batch: int
    architectures: int
    side: int
    batch: int
    large_side: int
    large_batch: int
    processes: tuple[int, ...]
    steps: int


FULL = Sizes(8, 64, 32, 64, 224, 256, (1, 2, 4), 300)
SMALL = Sizes(2, 2, 8, 2, 16, 2, (1, 2), 3)


def images_and_labels(side: int, batch: int, device: torch.device, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return images of classes that can be learned: a pattern for each class, under noise."""
    patterns = torch.randn(CLASSES, 3, side, side, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (batch,), generator=generator)
    images = patterns[labels] + 2 * torch.randn(batch, 3, side, side, generator=generator)
    return images.contiguous(memory_format=torch.channels_last).to(device), labels.to(device)


def new_ghn(side: int, device: torch.device) -> GHN:
    torch.manual_seed(0)
    return GHN(GHNConfig(num_classes=CLASSES, image_size=side)).to(device)


# What is measured


def differences(sizes: Sizes, device: torch.device) -> dict[str, float]:
    """Return the relative differences between device and CPU, in fp32: logits, and the gradient of a step."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    sampled = next(iter(meta_batches(sizes.meta_batch, sizes.meta_batch, sizes.side)))
    logits, gradients = [], []
    for place in (torch.device("cpu"), device):
        ghn = GHN.from_public_checkpoint(GOLDEN).to(place)
        images, labels = images_and_labels(sizes.side, min(sizes.batch, 16), place)
        with torch.no_grad():
            predicted = ghn(ghn.batch([item.program.graph for item in sampled]))
            found = [run_program(item.program, p, images) for item, p in zip(sampled, predicted, strict=True)]
        logits.append(torch.cat(found).cpu())
        train_step(ghn, sampled, images, labels, 0, StepSettings(seed=0, architecture_clip=1.0))
        gradients.append(torch.cat([weight.grad.flatten().cpu() for weight in ghn.parameters()]))
    return {"logits": relative(*logits), "gradient": relative(*gradients)}


def kernel_differences(sizes: Sizes, device: torch.device) -> dict[str, float]:
    """Return how far passes in one kernel are from those level by level, and from themselves when they run again.

    A missing barrier shows as a difference between two runs.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    ghn = GHN.from_public_checkpoint(GOLDEN).to(device)
    sampled = next(iter(meta_batches(sizes.meta_batch, sizes.meta_batch, sizes.side)))
    batch = GraphBatch.of([item.program.graph for item in sampled], ghn.gnn.longest_edge)
    h_NH = torch.randn(batch.num_nodes, ghn.config.hidden, generator=torch.Generator().manual_seed(0)).to(device)
    found = []
    for is_in_kernel in (False, True, True):
        with patch.object(gated_gnn, "has_kernels", lambda name, found=is_in_kernel: found):
            batch.cache.clear()
            h_NH.requires_grad_()
            states = ghn.gnn(h_NH, batch)
            found.append(torch.cat([states, *torch.autograd.grad(states.square().sum(), [h_NH])]))
    by_level, once, again = found
    return {"levels": relative(by_level, once), "again": relative(once, again)}


def relative(one: Tensor, other: Tensor) -> float:
    return ((one - other).norm() / one.norm()).item()


def step_figures(
    steps: Sequence[Sequence[SampledArchitecture]], side: int, batch: int, device: torch.device
) -> dict[str, Any]:
    """Return the median seconds of a step and of its phases, and the most memory of the device."""
    ghn, settings = new_ghn(side, device), StepSettings(seed=0)
    images, labels = images_and_labels(side, batch, device)
    for number, sampled in enumerate(steps):  # new shapes cost cuDNN a plan
        train_step(ghn, sampled, images, labels, number, settings)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds, phases = [], []
    for number, sampled in enumerate(steps):
        wait_for(device)
        started = perf_counter()
        phases.append(train_step(ghn, sampled, images, labels, number, settings)[1])
        wait_for(device)
        seconds.append(perf_counter() - started)
    return {
        "step_seconds": statistics.median(seconds),
        "hypernetwork_seconds": statistics.median(map(hypernetwork_seconds, phases)),
        **{name: statistics.median(of_step[name] for of_step in phases) for name in phases[0]},
        "peak_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    }


def throughput(processes: int, sizes: Sizes, device: torch.device) -> float | None:
    """Return the architectures per second of several processes on the same device together; None if one has failed."""
    context = get_context("spawn")
    barrier, results = context.Barrier(processes), context.SimpleQueue()
    children = [
        context.Process(target=take_steps, args=(rank, sizes, str(device), barrier, results))
        for rank in range(processes)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    return sum(results.get() for _ in children) if all(child.exitcode == 0 for child in children) else None


def take_steps(rank: int, sizes: Sizes, name: str, barrier: Barrier, results: Any) -> None:
    """Put the architectures per second of one process among several, which begin together."""
    torch.set_num_threads(1)
    device = use(name)
    steps = list(meta_batches(sizes.meta_batch, sizes.architectures, sizes.side))
    ghn, settings = new_ghn(sizes.side, device), StepSettings(seed=rank)
    images, labels = images_and_labels(sizes.side, sizes.batch, device)
    for number, sampled in enumerate(steps):
        train_step(ghn, sampled, images, labels, number, settings)
    wait_for(device)
    barrier.wait(PATIENCE)  # a process that has failed does not come
    started = perf_counter()
    for number, sampled in enumerate(steps):
        train_step(ghn, sampled, images, labels, number, settings)
    wait_for(device)
    results.put(sum(map(len, steps)) / (perf_counter() - started))


def learning(steps: Sequence[Sequence[SampledArchitecture]], sizes: Sizes, device: torch.device) -> dict[str, float]:
    """Return the mean loss of the first and of the last tenth of the steps of a training."""
    ghn = new_ghn(sizes.side, device)
    optimizer = torch.optim.Adam(ghn.parameters(), LEARNING_RATE, fused=True)
    settings, losses = StepSettings(seed=0, architecture_clip=1.0), []
    for number in range(sizes.steps):
        sampled = steps[number % len(steps)]
        images, labels = images_and_labels(sizes.side, sizes.batch, device, seed=number)
        train_step(ghn, sampled, images, labels, number, settings)
        for weight in ghn.parameters():
            if weight.grad is not None:
                weight.grad /= len(sampled)
        optimizer.step()
        losses.append(loss_of(ghn, sampled[0], images, labels))
    part = max(1, len(losses) // 10)
    return {"first_loss": statistics.fmean(losses[:part]), "last_loss": statistics.fmean(losses[-part:])}


@torch.no_grad()
def loss_of(ghn: GHN, item: SampledArchitecture, images: Tensor, labels: Tensor) -> float:
    """Return the loss of one network with predicted parameters."""
    (predicted,) = ghn(ghn.batch([item.program.graph]))
    return F.cross_entropy(run_program(item.program, predicted, images), labels).item()


# The machine and the table


def use(name: str) -> torch.device:
    """Return a device, with TF32 allowed as `precision: auto` does."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    return torch.device(name)


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def show(result: dict[str, Any], name: str, found: Any) -> None:
    """Keep and print a part of the result, so that a run that is cut off has shown it."""
    result[name] = found
    print(f"{name}: {json.dumps(found)}", flush=True)


def main() -> None:
    """Measure everything and print it; exit with status 1 where the device does not compute what the CPU does."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="only show that the script runs")
    is_small = parser.parse_args().small
    on_gpu = torch.cuda.is_available()
    sizes, device = FULL if on_gpu and not is_small else SMALL, torch.device("cuda" if on_gpu else "cpu")
    result: dict[str, Any] = {}
    show(result, "device", torch.cuda.get_device_name() if on_gpu else "CPU")
    show(result, "pytorch", torch.__version__)
    show(result, "has_kernels", has_kernels(device.type))
    show(result, "sizes", vars(sizes))
    found = differences(sizes, device)
    if result["has_kernels"]:
        found |= kernel_differences(sizes, device)
    show(result, "differences", found)

    device = use(str(device))
    steps = list(meta_batches(sizes.meta_batch, sizes.architectures, sizes.side))
    show(result, "step", step_figures(steps, sizes.side, sizes.batch, device))
    show(result, "learning", learning(steps, sizes, device))
    rates = {processes: throughput(processes, sizes, device) for processes in sizes.processes}
    show(result, "architectures_per_second", rates)
    large = list(meta_batches(sizes.meta_batch, sizes.meta_batch, sizes.large_side))
    try:
        show(result, "large_step", step_figures(large, sizes.large_side, sizes.large_batch, device))
    except torch.OutOfMemoryError as error:
        show(result, "large_step", {"error": str(error).splitlines()[0]})
    print(json.dumps(result))
    if any(difference > LARGEST_DIFFERENCES[name] for name, difference in found.items()):
        sys.exit(f"more than {LARGEST_DIFFERENCES}")


if __name__ == "__main__":
    main()
