"""Tracing and predicting public networks, at 224 pixels.

    python benchmarks/predict.py [resnet50 densenet121 vit_b_16 …] [--threads 2] [--repeats 9]

Compares with what else could be done in that time: one forward pass of an image through the network, and making it with
random parameters. The last line is JSON: `seconds` and `forward_passes` (of one image, that take as long) by network.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Annotated

import torch
import typer
from frame import RecordName, finish, introduce

from ghn import GHN, GHNConfig, load, trace

CONFIG = GHNConfig(num_classes=1000, image_size=224, kernel=16)
"""The published settings for ImageNet."""


def median_seconds(function: Callable[[], object], repeats: int) -> float:
    """Return the median seconds over `repeats` calls, after two that do not count."""
    taken = []
    for _ in range(repeats + 2):
        started = perf_counter()
        function()
        taken.append(perf_counter() - started)
    return statistics.median(taken[2:])


def main(
    names: Annotated[list[str] | None, typer.Argument(help="See `ghn list`.")] = None,
    threads: Annotated[int, typer.Option(help="Of PyTorch.")] = 2,
    repeats: Annotated[int, typer.Option(help="Timed runs; the median counts.")] = 9,
    record: RecordName = None,
) -> None:
    """Time predictions."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    ghn = GHN(CONFIG).eval()
    introduce(f"{threads} threads", "fp32", f"PyTorch {torch.__version__}")
    print(
        f"{'network':16} {'parameters':>12} {'nodes':>6} {'trace':>8} {'predict':>8}   forward passes   random starts"
    )
    seconds: dict[str, float] = {}
    forward_passes: dict[str, float] = {}
    for name in names or ["resnet50", "densenet121", "vit_b_16"]:
        network = load(name).eval()
        traced = median_seconds(lambda: trace(network), repeats)  # noqa: B023
        seconds[name] = median_seconds(lambda: ghn.predict(network), repeats)  # noqa: B023
        images = torch.randn(1, 3, getattr(network, "image_size", 224), getattr(network, "image_size", 224))
        with torch.inference_mode():
            forward = median_seconds(lambda: network(images), repeats)  # noqa: B023
        forward_passes[name] = round(seconds[name] / forward, 2)
        random_start = median_seconds(lambda: load(name), 1)  # noqa: B023
        print(
            f"{name:16} {sum(p.numel() for p in network.parameters()):12,} {len(trace(network).nodes):6} "
            f"{traced:6.3f} s {seconds[name]:6.3f} s   {seconds[name] / forward:14.2f}   "
            f"{seconds[name] / random_start:13.2f}"
        )
    rounded = {name: round(value, 4) for name, value in seconds.items()}
    finish({"seconds": rounded, "forward_passes": forward_passes}, record)


if __name__ == "__main__":
    typer.run(main)
