"""Whether training in bfloat16 learns as training in single precision does.

    python benchmarks/precision.py [--steps 300] [--seeds 3] [--out docs/precision.png]

Trains the default run's first steps with several seeds in each precision, as `ghn train` does, and plots the loss. The
seeds are the noise: the difference of the precisions' mean losses at the end is compared with its standard error. The
last line is JSON: `fp32_loss`, `bf16_loss` (means over the seeds of the median of the last fifty steps), `difference`,
`standard_error`.
"""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Annotated

import matplotlib
import pandas as pd
import typer
from scratch_project import project_settings, scratch_project, trained

matplotlib.use("Agg")
from matplotlib import pyplot

END = 50
"""Steps at the end whose median loss counts: single losses are heavy-tailed."""

COLOURS = {"fp32": "#4c72b0", "bf16": "#dd8452"}


def plot(losses: dict[str, list[pd.Series]], out: Path) -> None:
    """The running median of each run's loss, the runs of a precision in one colour."""
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


def main(
    steps: Annotated[int, typer.Option(min=END, help="Of each run.")] = 300,
    seeds: Annotated[int, typer.Option(min=2, help="Runs in each precision.")] = 3,
    out: Annotated[Path, typer.Option(help="The plot.")] = Path("docs/precision.png"),
) -> None:
    """Compare the losses of both precisions."""
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
    ends = pd.DataFrame({name: [run.tail(END).median() for run in runs] for name, runs in losses.items()})
    mean, error = ends.mean(), ends.sem()
    difference, noise = float(mean["bf16"] - mean["fp32"]), math.hypot(*error)
    for precision in COLOURS:
        values = ", ".join(f"{value:.3f}" for value in ends[precision])
        print(f"{precision}: {mean[precision]:.3f} ± {error[precision]:.3f} (seeds {values})")
    print(f"difference {difference:+.3f}, standard error {noise:.3f}: {abs(difference) / noise:.1f} of them")
    result = {
        "fp32_loss": round(float(mean["fp32"]), 4),
        "bf16_loss": round(float(mean["bf16"]), 4),
        "difference": round(difference, 4),
        "standard_error": round(noise, 4),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    typer.run(main)
