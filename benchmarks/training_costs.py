"""How well the predicted seconds of training steps fit the measured ones, and the prices that would fit best.

    python benchmarks/training_costs.py [--architectures 60] [--dtype fp32]

Measures the forward and backward pass of training architectures, 64 images, one thread, at 32×32 pixels (widths 32 to
128) and at 14×14 (widths 16 to 64), compares `ghn.training.cost_model.training_seconds` with that, and fits its prices
again. It also shows how evenly two and three workers would share meta-batches of eight. The last line is JSON: for each
image size `relative_error` (standard deviation of predicted / measured, which has mean 1), and `imbalance` of two
workers (slowest / mean, by measured seconds).
"""

from __future__ import annotations

from time import perf_counter
from typing import Annotated, Literal

import numpy as np
import torch
import typer
from frame import RecordName, finish, introduce
from scipy.optimize import nnls

from ghn import GHN, Architecture, GHNConfig
from ghn.deepnets1m.sampling import samples
from ghn.networks.program import Program
from ghn.training.cost_model import Work, training_seconds, work_of
from ghn.training.load_balance import assign_meta_batch
from ghn.training.step import StepSettings, target_gradient

BATCH = 64
META_BATCH = 8
SIZES = {32: (range(32, 129, 16), range(64, 513, 64)), 14: ((16, 24, 32, 64), (64, 128))}
"""Image sizes, and the widths and head widths that are sampled for them."""


def sampled(image_size: int, count: int) -> list[Architecture]:
    """Return the first training architectures, at widths that training samples."""
    widths, head_widths = SIZES[image_size]
    random = np.random.default_rng(0)
    first = [next(samples(0, "train", index)) for index in range(count)]
    return [
        item.architecture.with_sampled_widths(item.summary.num_parameters, widths, head_widths, random.random(2))
        for item in first
    ]


def measured(ghn: GHN, architecture: Architecture, settings: StepSettings, batch: int) -> float:
    """Return the seconds of a forward and backward pass, the shorter of two."""
    size = ghn.config.image_size
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch) % ghn.config.num_classes
    program = architecture.program(size, ghn.config.num_classes)
    with torch.no_grad():
        (parameters,) = ghn.predict_parameters([architecture])
    seconds = []
    for _ in range(2):
        started = perf_counter()
        target_gradient(program, parameters, images, labels, settings)
        seconds.append(perf_counter() - started)
    return min(seconds)


def features(program: Program, batch: int) -> list[float]:
    """Return the features that the prices are multiplied with."""
    work = dict.fromkeys(Work, 0)
    for kind, amount in map(work_of, program.operations):
        work[kind] += batch * amount
    return [len(program.operations), batch * program.activations, *work.values()]


def imbalance(seconds: np.ndarray, costs: np.ndarray, nodes: list[int], workers: int) -> float:
    """Return slowest worker / mean, over all meta-batches, by measured seconds of target networks."""
    slowest, mean = 0.0, 0.0
    for start in range(0, len(seconds) - META_BATCH + 1, META_BATCH):
        chosen = slice(start, start + META_BATCH)
        of_workers = assign_meta_batch(costs[chosen].tolist(), nodes[chosen], workers, micro_batches=1)
        loads = [sum(seconds[start + position] for part in parts for position in part.own) for parts in of_workers]
        slowest, mean = slowest + max(loads), mean + sum(loads) / workers
    return slowest / mean


def main(
    architectures: Annotated[int, typer.Option(min=META_BATCH, help="Of each image size.")] = 64,
    dtype: Annotated[Literal["fp32", "bf16"], typer.Option(help="Of target networks.")] = "fp32",
    batch: Annotated[int, typer.Option(min=2, help="Images.")] = BATCH,
    record: RecordName = None,
) -> None:
    """Compare predicted with measured seconds."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    settings = StepSettings(seed=0, precision=torch.bfloat16 if dtype == "bf16" else torch.float32)
    introduce("1 thread", dtype, f"PyTorch {torch.__version__}")
    rows, times, result = [], [], {}
    for size in SIZES:
        ghn = GHN(GHNConfig(num_classes=10, image_size=size))
        several = sampled(size, architectures)
        programs = [architecture.program(size, 10) for architecture in several]
        seconds = np.array([measured(ghn, architecture, settings, batch) for architecture in several])
        costs = np.array([training_seconds(program, batch) for program in programs])
        ratio = costs / seconds
        error = float(ratio.std() / ratio.mean())
        nodes = [len(program.graph.nodes) for program in programs]
        two, three = (imbalance(seconds, costs, nodes, workers) for workers in (2, 3))
        print(
            f"{size}×{size}: {seconds.sum():.1f} s measured, {costs.sum():.1f} s predicted; error {error:.1%} for one"
        )
        print(f"  slowest worker / mean of two workers {two:.3f}, of three {three:.3f}")
        result[str(size)] = {"relative_error": round(error, 4), "imbalance": round(two, 4)}
        rows += [features(program, batch) for program in programs]
        times += seconds.tolist()
    table = np.array(rows) / np.array(times)[:, None]
    prices, _ = nnls(table, np.ones(len(table)))
    for name, price in zip(["operation", "activation", *Work], prices, strict=True):
        print(f"  best price of {name}: {price:.2g} s")
    finish(result, record)


if __name__ == "__main__":
    typer.run(main)
