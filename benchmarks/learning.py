"""The race of learners: how well a hypernetwork predicts after a fixed time of training.

    python benchmarks/learning.py NAME [--minutes 10] [--seeds 3] [--preset fashion_mnist_hour] [-S train.ema=0.999 …]
    python benchmarks/learning.py --write     # puts the leaderboard into docs/learning.md

Trains and evaluates as `dvc repro` does, with the settings of the repository and the changes that are given, once for
each seed, which decides the architectures, the initial weights and all that is sampled. The number of steps is the one
that fits the time on this machine: a short run measures the seconds per step first, unless `-S train.steps=N` says it.
Then the row NAME of `benchmarks/leaderboard.json` is written or replaced. A run that was interrupted goes on where
it stopped when the command is given again; finished runs are read from `--folder`.

Rules. A row is a result of three seeds; its figures are means ± standard errors over seeds. Training time is the time
of the steps: neither the start of the processes nor validation counts. Accuracy is the mean top-1 over all stored
architectures of a split, on all test images, at the end. The time to an accuracy is that of the first validation that
reaches it, on architectures of split val and on held-out images, which no step has seen. Rows compare if their machine
is the same and nothing else ran on it.

The last line is JSON: the row.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import pandas as pd
import typer
import yaml
from frame import ROOT, command_line, commit, introduce, machine
from scratch_project import project_settings

from pipeline.params import Params, set_leaf, settings_hash

LEADERBOARD = ROOT / "benchmarks" / "leaderboard.json"
DOCUMENT = ROOT / "docs" / "learning.md"
BEGIN_MARK, END_MARK = "<!-- leaderboard: python benchmarks/learning.py --write -->\n", "<!-- end of leaderboard -->"

SPLITS = ("test", "wide", "deep", "dense", "bn_free")
NETWORK = "resnet50"
TARGETS = (60, 70, 80)
"""Accuracies in percent whose time is measured."""

TIMED_STEPS, WARM_UP = 80, 20
"""Steps of the run that measures the seconds per step, and how many of them are left out."""

Row = dict[str, Any]


def race_settings(preset: str | None, changes: Sequence[str]) -> dict[str, Any]:
    """Return the settings of the repository with the preset's, and with changes such as `train.ema=0.999`."""
    settings = project_settings(preset)
    for change in changes:
        key, _, value = change.partition("=")
        set_leaf(settings, tuple(key.split(".")), yaml.safe_load(value))
    settings["tracking"]["experiment"] = "learning"
    return Params.model_validate(settings).model_dump()


def run_stages(project: Path, settings: Mapping[str, Any], stages: Iterable[str]) -> None:
    """Run stages of the pipeline in a project's folder; a stage that was interrupted goes on where it stopped."""
    project.mkdir(parents=True, exist_ok=True)
    (project / "params.yaml").write_text(yaml.safe_dump(dict(settings), sort_keys=False))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{ROOT / 'mlflow.db'}")
    for stage in stages:
        command = [sys.executable, "-m", "pipeline.cli", stage]
        subprocess.run(command, cwd=project, env=environment, check=True)


def steps_within(minutes: float, settings: Mapping[str, Any], folder: Path) -> int:
    """Return how many steps take so many minutes, from the mean of a short run."""
    project = folder / "timing"
    if not (project / "results/train/history.csv").exists():
        short = json.loads(json.dumps(settings))
        short["train"] |= {"steps": TIMED_STEPS}
        short["train"]["schedule"] |= {"warmup": 0}
        short["train"]["validation"] |= {"every": None}
        run_stages(project, short, ["generate", "train"])
    history = pd.read_csv(project / "results/train/history.csv")
    per_step = history["step_seconds"].iloc[WARM_UP:].mean()
    return max(1, round(60 * minutes / per_step))


def run_seed(project: Path, settings: Mapping[str, Any]) -> Row:
    """Train and evaluate with one seed, unless the folder has the results, and return what is measured."""
    if not (project / "results/evaluate/summary.csv").exists():
        run_stages(project, settings, ["generate", "train", "evaluate"])
    history = pd.read_csv(project / "results/train/history.csv")
    summary = pd.read_csv(project / "results/evaluate/summary.csv").set_index("split")
    networks = pd.read_parquet(project / "results/evaluate/architectures.parquet")
    steps = history["step"].diff().fillna(history["step"])  # of each row
    minutes = (steps * history["step_seconds"]).cumsum() / 60
    reached = {t: minutes[history["val_top1"] >= t / 100] for t in TARGETS}
    validated = history["val_top1"].notna()
    predicted = networks[networks["initialisation"] == "predicted"].set_index("name")["top1"]
    return {
        "seed": settings["seed"],
        "steps": int(history["step"].iloc[-1]),
        "minutes": round(float(minutes.iloc[-1]), 2),
        "seconds_per_step": round(60 * float(minutes.iloc[-1]) / int(history["step"].iloc[-1]), 4),
        "minutes_to": {str(t): round(float(times.iloc[0]), 2) if len(times) else None for t, times in reached.items()},
        "top1": {split: round(100 * float(summary.loc[split, "predicted_top1"]), 2) for split in SPLITS},
        NETWORK: round(100 * float(predicted[NETWORK]), 2),
        "curve": [
            [round(float(at), 3), round(100 * float(top1), 2)]
            for at, top1 in zip(minutes[validated], history["val_top1"][validated], strict=True)
        ],
    }


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean over seeds and its standard error, which is 0 for one seed."""
    return mean(values), stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def shown(values: Sequence[float | None], digits: int = 1) -> str:
    """Return mean ± standard error over seeds; a hyphen if a seed has none."""
    present = [value for value in values if value is not None]
    if len(present) < len(values):
        return "-"
    centre, error = mean_and_error(present)
    return f"{centre:.{digits}f} ± {error:.{digits}f}" if len(values) > 1 else f"{centre:.{digits}f}"


def table(rows: Sequence[Row]) -> str:
    """Return the leaderboard as Markdown, a section for each data set and time, the best row of each first."""
    titles = [
        "row",
        "commit",
        "seeds",
        "steps",
        "s a step",
        "minutes",
        *(f"min to {target} %" for target in TARGETS),
        *SPLITS,
        "ResNet-50",
    ]
    sections: dict[str, list[Row]] = {}
    for row in rows:
        sections.setdefault(f"{row['dataset']}, {row['minutes']:g} minutes, {row['machine']}", []).append(row)
    lines: list[str] = []
    for title, members in sections.items():
        lines += [f"### {title}", "", f"| {' | '.join(titles)} |", f"| :-- | :-- |{' --: |' * (len(titles) - 2)}"]
        for row in sorted(members, key=lambda row: -mean(seed["top1"]["test"] for seed in row["seeds"])):
            seeds = row["seeds"]
            cells = [
                row["name"],
                f"`{row['commit']}`",
                len(seeds),
                shown([seed["steps"] for seed in seeds], 0),
                shown([seed["seconds_per_step"] for seed in seeds], 3),
                shown([seed["minutes"] for seed in seeds]),
                *(shown([seed["minutes_to"][str(target)] for seed in seeds]) for target in TARGETS),
                *(shown([seed["top1"][split] for seed in seeds]) for split in SPLITS),
                shown([seed[NETWORK] for seed in seeds]),
            ]
            lines.append(f"| {' | '.join(map(str, cells))} |")
        lines.append("")
        lines += [f"- {row['name']}: `{row['command']}`" for row in members]
        lines.append("")
    return "\n".join(lines)


def read_rows() -> list[Row]:
    rows: list[Row] = json.loads(LEADERBOARD.read_text()) if LEADERBOARD.exists() else []
    return rows


def write_document() -> None:
    """Put the leaderboard into the document, between its two markers."""
    before, rest = DOCUMENT.read_text().split(BEGIN_MARK)
    DOCUMENT.write_text(before + BEGIN_MARK + "\n" + table(read_rows()) + END_MARK + rest.split(END_MARK)[1])


def main(
    name: Annotated[str | None, typer.Argument(help="Of the row.")] = None,
    minutes: Annotated[float, typer.Option(min=0.01, help="Of training, for each seed.")] = 10,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    preset: Annotated[str | None, typer.Option(help="A file of params/.")] = None,
    change: Annotated[list[str] | None, typer.Option("-S", help="A setting, as in `dvc exp run`.")] = None,
    folder: Annotated[Path, typer.Option(help="Of the runs.")] = ROOT / "storage" / "learning",
    write: Annotated[bool, typer.Option(help="Write the leaderboard into docs/learning.md.")] = False,
) -> None:
    """Run a row of the leaderboard, or write the leaderboard."""
    if name is not None:
        run_row(name, minutes, seeds, preset, change or [], folder)
    if write:
        write_document()


def run_row(name: str, minutes: float, seeds: int, preset: str | None, changes: Sequence[str], folder: Path) -> None:
    introduce()
    settings = race_settings(preset, changes)
    folder = folder / f"{name.replace(' ', '-')}-{settings_hash([settings, minutes])}"
    if not any(change.startswith("train.steps=") for change in changes):
        settings["train"]["steps"] = steps_within(minutes, settings, folder)
        settings["train"]["validation"]["every"] = max(1, settings["train"]["steps"] // 20)
    measured = [run_seed(folder / f"seed-{seed}", settings | {"seed": seed}) for seed in range(seeds)]
    row = {
        "name": name,
        "dataset": settings["dataset"],
        "minutes": minutes,
        "command": command_line(),
        "machine": machine(),
        "commit": commit(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "seeds": measured,
    }
    rows = [
        other
        for other in read_rows()
        if (other["name"], other["dataset"], other["minutes"], other["machine"])
        != (name, row["dataset"], minutes, row["machine"])
    ]
    LEADERBOARD.write_text(json.dumps([*rows, row], indent=1) + "\n")
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    typer.run(main)
