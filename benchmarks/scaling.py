"""How many architectures per second training does with several workers of one thread each.

    python benchmarks/scaling.py --workers 2 [--steps 12] [--batch 64] [--image-size 32] [--precision fp32]

Trains as `ghn train` does, with Ray Train, at the published settings for CIFAR-10 (meta-batch 8, widths 32 to 128), on
images that are at hand, resized: first with one worker, then with `--workers`, the same steps. The first ones, which
are slower, are left out, and each step counts as the faster of its `--repeats`, because the speed of shared machines
changes from minute to minute. The machine needs a core for each worker.

The last line is JSON: `workers`, `architectures_per_second`, `speedup` over one worker, `imbalance` (slowest worker /
mean), and the shares of the time in which steps wait for data (`waiting`) and exchange gradients (`communication`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pandas as pd
import torch
import typer
from frame import RecordName, finish, introduce
from scratch_project import project_settings, scratch_project, trained

WARM_UP = 12
"""Steps that are left out: until then a worker's memory grows, and the largest networks of a step take longer."""


def settings_of(
    workers: int, most_workers: int, steps: int, batch: int, image_size: int, precision: str, placement: str
) -> dict[str, Any]:
    """Return the published settings with so many workers; with another number the run is the same to the last digit."""
    settings = project_settings("cifar10") | {"dataset": "mnist_5k"}
    settings["images"] |= {"size": image_size, "flip": False}
    settings["generate"] |= dict.fromkeys(("val", "test", "wide", "deep", "dense", "bn_free"), 4) | {"train": 1000}
    for stage in ("finetune", "adapt", "condition"):
        settings[stage]["architectures"] = 1
    settings["sgd"] |= {"architectures": {}}
    settings["train"] |= {
        "steps": steps + WARM_UP,
        "batch": batch,
        "micro_batches": most_workers,
        "precision": precision,
        "log_every": 1,
    }
    settings["train"]["validation"]["every"] = None
    settings["workers"] |= {"number": workers, "cpus": 1, "gpus": 0, "placement": placement}
    return settings


def main(
    workers: Annotated[int, typer.Option(min=1, help="Processes of one thread.")] = 2,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps.")] = 12,
    batch: Annotated[int, typer.Option(min=2, help="Images.")] = 64,
    image_size: Annotated[int, typer.Option(min=8, help="In pixels.")] = 32,
    precision: Annotated[Literal["fp32", "bf16"], typer.Option(help="Of target networks.")] = "fp32",
    placement: Annotated[
        Literal["PACK", "STRICT_SPREAD"], typer.Option(help="Of workers on nodes, where RAY_ADDRESS names a cluster.")
    ] = "PACK",
    repeats: Annotated[int, typer.Option(min=1, help="Runs with each number of workers, in turn.")] = 2,
    record: RecordName = None,
) -> None:
    """Compare a number of workers with one."""
    counts = list(dict.fromkeys((1, workers)))
    settings = {count: settings_of(count, workers, steps, batch, image_size, precision, placement) for count in counts}
    histories: dict[int, list[pd.DataFrame]] = {count: [] for count in counts}
    with scratch_project(settings[workers], cpus=workers):
        for count in counts * repeats:
            histories[count].append(trained(settings[count]).iloc[WARM_UP:])
    introduce(precision, f"PyTorch {torch.__version__}", f"{steps} steps")
    seconds = {count: pd.DataFrame([run["step_seconds"] for run in runs]).min() for count, runs in histories.items()}
    speeds = {count: settings[count]["meta_batch"] * steps / seconds[count].sum() for count in counts}
    for count, speed in speeds.items():
        print(f"{count} worker{'s' if count > 1 else ''}: {speed:.3f} architectures/s")
    several = pd.concat(histories[workers])
    imbalance = float((several["imbalance"] * several["step_seconds"]).sum() / several["step_seconds"].sum())
    waiting = float(several["wait_seconds"].sum() / several["step_seconds"].sum())
    communication = float(several["communication_seconds"].sum() / several["step_seconds"].sum())
    speedup = speeds[workers] / speeds[1]
    print(
        f"{speedup:.2f} times as many; slowest worker / mean {imbalance:.3f}; "
        f"{waiting:.2%} of the time waits for data, {communication:.2%} is the exchange of gradients"
    )
    result = {
        "workers": workers,
        "architectures_per_second": round(speeds[workers], 4),
        "speedup": round(speedup, 3),
        "imbalance": round(imbalance, 4),
        "waiting": round(waiting, 5),
        "communication": round(communication, 5),
    }
    finish(result, record)


if __name__ == "__main__":
    typer.run(main)
