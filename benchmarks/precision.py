"""Training in bfloat16 and in single precision: whether it learns alike, and from which image size it is faster.

    python benchmarks/precision.py [--steps 300] [--seeds 3] [--out docs/precision.png]

trains the default run's first steps with several seeds in each precision, as `ghn train` does, and plots the loss. The
seeds are the noise: the difference of the precisions' mean losses at the end is compared with its standard error. The
last line is JSON: `fp32_loss`, `bf16_loss` (means over the seeds of the median of the last fifty steps), `difference`,
`standard_error`.

    python benchmarks/precision.py --speed [--device cuda] [--sides 14,32,224] [--architectures 8] [--threads 1]

times the forward and backward passes of target networks in both precisions, for images of several sides, each with the
batch and the widths of the settings whose images are nearest in size. On GPUs single precision uses TF32. The last line
is JSON: `device`, `ratios` (seconds in bfloat16 over seconds in single precision, by side), `bf16_from` (the side, in
pixels, from which bfloat16 is faster; null if it is slower at the largest side). The measured side belongs into
`BF16_FROM_PIXELS` of `pipeline.training.precision`, by which `train.precision: auto` chooses.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated

import matplotlib
import numpy as np
import pandas as pd
import torch
import typer
from frame import RecordName, finish, introduce
from scratch_project import project_settings, scratch_project, trained
from torch import Tensor

from ghn import GHN, GHNConfig
from ghn.deepnets1m.sampling import samples
from ghn.networks.program import Program
from ghn.training.step import StepSettings, scores_of, target_gradient
from pipeline.params import Params, TrainSettings
from pipeline.training.precision import BF16_FROM_PIXELS, TORCH_DTYPES, allow_tf32, has_native_bf16

matplotlib.use("Agg")
from matplotlib import pyplot

LAST_STEPS = 50
"""Steps at the end whose median loss counts: single losses are heavy-tailed."""

COLOURS = {"fp32": "#4c72b0", "bf16": "#dd8452"}

SIDES = {"cpu": (8, 14, 20, 24, 28, 32), "cuda": (14, 32, 48, 64, 96, 112, 128, 160, 224)}
"""Sides of images that are timed, in pixels, by type of device."""

PRESETS_OF_SIZES = (None, "cifar10", "imagenet")
"""The settings whose batches and widths are usual for images of their size; None is params.yaml alone."""

CLASSES = 10
REPEATS = 3


def plot(losses: Mapping[str, Sequence[pd.Series]], out: Path) -> None:
    """Write the running median of each run's loss, the runs of a precision in one colour."""
    figure, axes = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    for precision, runs in losses.items():
        for number, loss in enumerate(runs):
            smooth = loss.rolling(25, center=True, min_periods=1).median()
            label = f"{precision}, {len(runs)} seeds" if number == 0 else None
            axes.plot(smooth.index, smooth, color=COLOURS[precision], alpha=0.8, linewidth=1.2, label=label)
    axes.set(xlabel="step", ylabel="loss, median of 25 steps")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(out, dpi=150)


def compare_losses(steps: int, seeds: int, out: Path) -> dict[str, float]:
    """Train in both precisions, plot the losses, print how they differ, and return the result."""
    out = out.absolute()
    settings = project_settings()
    settings["train"]["steps"] = steps
    settings["train"]["validation"]["every"] = None
    losses: dict[str, list[pd.Series]] = {precision: [] for precision in COLOURS}
    with scratch_project(settings):
        for seed in range(seeds):
            for precision, runs in losses.items():
                varied = copy.deepcopy(settings) | {"seed": seed}
                varied["train"] |= {"precision": precision}
                runs.append(trained(varied).set_index("step")["loss"])
    plot(losses, out)
    ends = pd.DataFrame({name: [run.tail(LAST_STEPS).median() for run in runs] for name, runs in losses.items()})
    mean, error = ends.mean(), ends.sem()
    difference, noise = float(mean["bf16"] - mean["fp32"]), math.hypot(*error)
    for precision in COLOURS:
        values = ", ".join(f"{value:.3f}" for value in ends[precision])
        print(f"{precision}: {mean[precision]:.3f} ± {error[precision]:.3f} (seeds {values})")
    print(f"difference {difference:+.3f}, standard error {noise:.3f}: {abs(difference) / noise:.1f} of them")
    return {
        "fp32_loss": round(float(mean["fp32"]), 4),
        "bf16_loss": round(float(mean["bf16"]), 4),
        "difference": round(difference, 4),
        "standard_error": round(noise, 4),
    }


@dataclass(frozen=True)
class TargetNetwork:
    """A network to time, with predicted parameters."""

    program: Program
    parameters: dict[str, Tensor]


def usual_settings(side: int) -> TrainSettings:
    """Return the settings of training whose images are nearest in size."""
    presets = [Params.model_validate(project_settings(preset)) for preset in PRESETS_OF_SIZES]
    return min(presets, key=lambda params: abs(math.log(params.images.size / side))).train


def target_networks(side: int, count: int, settings: TrainSettings, device: torch.device) -> list[TargetNetwork]:
    """Return the first training architectures at widths that training samples, for images of a side in pixels."""
    torch.manual_seed(0)
    ghn = GHN(GHNConfig(num_classes=CLASSES, image_size=side)).to(device)
    random = np.random.default_rng(0)
    networks = []
    for index in range(count):
        sample = next(samples(0, "train", index))
        widths = settings.widths, settings.head_widths
        architecture = sample.architecture.with_sampled_widths(sample.summary.num_parameters, *widths, random.random(2))
        with torch.no_grad():
            (parameters,) = ghn.predict_parameters([architecture])
        networks.append(TargetNetwork(architecture.program(side, CLASSES), parameters))
    return networks


def seconds_of_passes(network: TargetNetwork, images: Tensor, labels: Tensor, precision: str) -> float:
    """Return the seconds of a forward and a backward pass, the shortest of several after one that does not count."""
    settings = StepSettings(seed=0, precision=TORCH_DTYPES[precision])
    seconds = []
    for _ in range(1 + REPEATS):
        started = perf_counter()
        measured, _ = target_gradient(network.program, network.parameters, images, labels, settings)
        scores_of({0: measured})  # waits for the device
        seconds.append(perf_counter() - started)
    return min(seconds[1:])


def bf16_ratio(side: int, count: int, device: torch.device) -> float:
    """Return the seconds of target networks in bfloat16 over those in single precision, and print them."""
    settings = usual_settings(side)
    networks = target_networks(side, count, settings, device)
    images = torch.randn(settings.batch, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(settings.batch, device=device) % CLASSES
    fp32, bf16 = (
        sum(seconds_of_passes(network, images, labels, precision) for network in networks)
        for precision in ("fp32", "bf16")
    )
    print(
        f"{side} pixels, {settings.batch} images, C {settings.widths[0]} to {settings.widths[-1]}: "
        f"fp32 {fp32:.3f} s, bf16 {bf16:.3f} s, {bf16 / fp32:.2f} of it",
        flush=True,
    )
    return bf16 / fp32


def faster_from(ratios: Mapping[int, float]) -> int | None:
    """Return the smallest side from which on every ratio is below 1; None if there is none."""
    side = None
    for each in sorted(ratios, reverse=True):
        if ratios[each] >= 1:
            break
        side = each
    return side


def compare_speed(device: torch.device, sides: Sequence[int], architectures: int) -> dict[str, object]:
    """Time both precisions for each side, print from which side bfloat16 is faster, and return the result."""
    if device.type == "cuda":
        allow_tf32()
    if not has_native_bf16(device):
        print(f"this {device.type} device emulates bfloat16: `auto` chooses fp32 at any size")
    ratios = {side: bf16_ratio(side, architectures, device) for side in sides}
    side = faster_from(ratios)
    found = "bf16 is slower at the largest side" if side is None else f"bf16 is faster from {side} pixels on"
    print(f"{found}; `auto` chooses it from {BF16_FROM_PIXELS[device.type]} pixels on")
    return {
        "device": device.type,
        "ratios": {str(side): round(ratio, 3) for side, ratio in ratios.items()},
        "bf16_from": side,
    }


def main(
    steps: Annotated[int, typer.Option(min=LAST_STEPS, help="Of each run.")] = 300,
    seeds: Annotated[int, typer.Option(min=2, help="Runs in each precision.")] = 3,
    out: Annotated[Path, typer.Option(help="The plot.")] = Path("docs/precision.png"),
    speed: Annotated[bool, typer.Option("--speed", help="Time target networks instead.")] = False,
    device: Annotated[str, typer.Option(help="With --speed: cpu or cuda.")] = "cpu",
    sides: Annotated[str | None, typer.Option(help="With --speed: sides of images in pixels, such as 14,32.")] = None,
    architectures: Annotated[int, typer.Option(min=1, help="With --speed: target networks.")] = 8,
    threads: Annotated[int, typer.Option(min=1, help="With --speed: of PyTorch.")] = 1,
    record: RecordName = None,
) -> None:
    """Compare training in both precisions: the losses, or with --speed the seconds."""
    if not speed:
        introduce(f"PyTorch {torch.__version__}")
        finish(compare_losses(steps, seeds, out), record)
        return
    torch.set_num_threads(threads)
    name = torch.cuda.get_device_name() if device == "cuda" else f"{threads} threads"
    introduce(name, f"{architectures} target networks", f"PyTorch {torch.__version__}")
    chosen = [int(side) for side in sides.split(",")] if sides else SIDES[device]
    finish(compare_speed(torch.device(device), chosen, architectures), record)


if __name__ == "__main__":
    typer.run(main)
