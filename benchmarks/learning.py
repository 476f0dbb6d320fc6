"""The race of learners: how well a hypernetwork predicts after a fixed time of training.

    python benchmarks/learning.py NAME [--minutes 10] [--seeds 3] [--preset fashion_mnist] [-S train.ema=0.999 …]
    python benchmarks/learning.py --write     # puts the leaderboard into docs/learning.md and README.md

Trains and evaluates as `dvc repro` does, with the settings of the repository and the changes that are given, once for
each seed, which decides the architectures, the initial weights and all that is sampled. The number of steps is the one
that fits the time on this machine: a short run measures the seconds per step first, unless `-S train.steps=N` says it.
Then the row NAME of `benchmarks/leaderboard.json` is written, in the place of an earlier one of the same name, data
set, time and machine. A run that was interrupted goes on where it stopped when the command is given again; the results
of finished runs are read from `--folder`.

Rules. A row is a result of three seeds; its figures are means ± standard errors over seeds. Training time is the time
of the steps: neither the start of the processes nor validation counts. Accuracy is the mean top-1 over all stored
architectures of a split, on the test images that `evaluate.images` says, at the end. The time to an accuracy is that of
the first validation that reaches it, on architectures of split val and on held-out images, which no step has seen. Rows
compare if their machine is the same and nothing else ran on it.

The last line is JSON: the row.
"""

from __future__ import annotations

import copy
import itertools
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import matplotlib
import pandas as pd
import typer
import yaml
from frame import ROOT, command_line, commit, introduce, machine
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scratch_project import project_settings

from pipeline.errors import UserError
from pipeline.params import settings_hash, validated, with_changes
from pipeline.reporting.leaderboard import LEADERBOARD as LEADERBOARD_FILE
from pipeline.reporting.leaderboard import (
    NETWORK,
    RACE_SPLITS,
    TARGETS,
    LeaderboardRow,
    SeedResult,
    leaderboard_json,
    mean_and_error,
    read_leaderboard,
    shown_row,
)
from pipeline.reporting.page import Table
from pipeline.reporting.plots import STYLE, WIDE, png
from pipeline.reporting.seeds_section import NETWORK_LABEL, seeds_markdown
from pipeline.reporting.theme import SERIES_COLORS
from pipeline.storage.files import write_bytes
from pipeline.training import pace

LEADERBOARD = ROOT / LEADERBOARD_FILE
DOCUMENT, PLOT, README = ROOT / "docs" / "learning.md", ROOT / "docs" / "learning.png", ROOT / "README.md"

BOARD_MARKS = "<!-- leaderboard: python benchmarks/learning.py --write -->\n", "<!-- end of leaderboard -->"
SEEDS_MARKS = "<!-- seeds: python benchmarks/learning.py --write -->\n", "<!-- end of seeds -->"

TIMED_STEPS, WARM_UP = 80, 20
"""Steps of the run that measures the seconds per step, and how many of them are left out."""

VALIDATIONS = 20
"""Validations of a run whose number of steps follows from its time."""

LINE_STYLES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))


# A row


def race_settings(preset: str | None, changes: Sequence[str]) -> dict[str, Any]:
    """Return the settings of the repository with the preset's, and with changes such as `train.ema=0.999`.

    Raises:
        UserError: a key is unknown, or a value impossible.
    """
    settings = project_settings(preset)
    for change in [*changes, "tracking.experiment=learning"]:
        key, equals, text = change.partition("=")
        if not equals:
            raise UserError(f"-S {change}: must be key=value, such as train.ema=0.999")
        value = yaml.safe_load(text)
        for name in reversed(key.split(".")):
            value = {name: value}
        settings = with_changes(settings, value)
    return validated(settings, "params.yaml with the preset and -S").model_dump()


def run_stages(project: Path, settings: Mapping[str, Any], stages: Iterable[str]) -> None:
    """Run stages of the pipeline in a project's folder; a stage that was interrupted goes on where it stopped."""
    project.mkdir(parents=True, exist_ok=True)
    (project / "params.yaml").write_text(yaml.safe_dump(dict(settings), sort_keys=False))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{ROOT / 'mlflow.db'}")
    for stage in stages:
        command = [sys.executable, "-m", "pipeline.cli", stage]
        if subprocess.run(command, cwd=project, env=environment).returncode != 0:
            raise SystemExit(f"stage {stage} failed in {project}: the same command goes on from there")


def steps_within(minutes: float, settings: Mapping[str, Any], project: Path) -> int:
    """Return how many steps take so many minutes, from the mean of a short run in the project's folder."""
    if not (project / "results/train/metrics.json").exists():
        short = copy.deepcopy(dict(settings))
        short["train"] |= {"steps": TIMED_STEPS, "log_every": 1}
        short["train"]["schedule"] |= {"warmup": 0}
        short["train"]["validation"] |= {"every": None}
        run_stages(project, short, ["generate", "train"])
    history = pd.read_csv(project / "results/train/history.csv")
    per_step = history["step_seconds"].iloc[WARM_UP:].mean()
    return pace.steps_within(minutes, per_step)


def run_seed(project: Path, settings: Mapping[str, Any]) -> SeedResult:
    """Train and evaluate with one seed, unless the folder has the results, and return what is measured."""
    if not (project / "results/evaluate/metrics.json").exists():  # the last file that the stage writes
        run_stages(project, settings, ["generate", "train", "evaluate"])
    return seed_result(project / "results", settings["seed"])


def seed_result(results: Path, seed: int) -> SeedResult:
    """Return what a run measured, from what its stages wrote to `results`."""
    history = pd.read_csv(results / "train/history.csv")
    summary = pd.read_csv(results / "evaluate/summary.csv").set_index("split")
    networks = pd.read_parquet(results / "evaluate/architectures.parquet")
    predicted = networks[networks["initialisation"] == "predicted"].set_index("name")["top1"]
    steps = history["step"].diff().fillna(history["step"])  # of each row
    minutes, count = (steps * history["step_seconds"]).cumsum() / 60, int(history["step"].iloc[-1])
    curve = []
    if "val_top1" in history:
        validations = pd.DataFrame({"minutes": minutes, "top1": 100 * history["val_top1"]}).dropna()
        curve = [(round(at, 3), round(top1, 2)) for at, top1 in validations.itertuples(index=False)]
    return SeedResult(
        seed=seed,
        steps=count,
        minutes=round(minutes.iloc[-1], 2),
        seconds_per_step=round(60 * minutes.iloc[-1] / count, 4),
        minutes_to={
            str(target): next((round(at, 2) for at, top1 in curve if top1 >= target), None) for target in TARGETS
        },
        top1={split: round(100 * float(summary.loc[split, "predicted_top1"]), 2) for split in RACE_SPLITS},
        resnet50=round(100 * float(predicted[NETWORK]), 2),
        curve=curve,
    )


def first_commit(folder: Path) -> str:
    """Return the commit with which the runs of a folder began.

    Raises:
        UserError: the code is another one now, so that the seeds would not compare.
    """
    now, path = commit(), folder / "commit.txt"
    if not path.exists():
        write_bytes(path, now.encode())
    begun = path.read_text()
    if begun != now:
        raise UserError(f"these runs began with commit {begun}, now it is {now}\ngo back to it, or delete {folder}")
    return begun


def run_row(
    name: str, minutes: float, seeds: int, preset: str | None, changes: Sequence[str], folder: Path, board: Path
) -> None:
    """Run the seeds of a row that have not finished, write the row to the leaderboard and print it.

    Args:
        name: that of the row.
        minutes: of training, for each seed.
        seeds: their number.
        preset: the name of a file of `params/`, or None.
        changes: settings such as `train.ema=0.999`.
        folder: all runs of all rows lie in it.
        board: the leaderboard's file.

    Raises:
        UserError: a setting is unknown or impossible, or the leaderboard cannot be read.
    """
    settings = race_settings(preset, changes)
    read_leaderboard(board)  # what is wrong with it is better known before hours of training
    introduce()
    folder = folder / f"{name.replace(' ', '-')}-{settings_hash([settings, minutes])}"
    begun = first_commit(folder)
    given = {change.partition("=")[0] for change in changes}
    if "train.steps" not in given:
        settings["train"]["steps"] = steps_within(minutes, settings, folder / "timing")
    if "train.validation.every" not in given:
        settings["train"]["validation"]["every"] = max(1, settings["train"]["steps"] // VALIDATIONS)
    row = LeaderboardRow(
        name=name,
        dataset=settings["dataset"],
        minutes=minutes,
        command=command_line().replace(" --write", ""),
        machine=machine(),
        commit=begun,
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        seeds=[run_seed(folder / f"seed-{seed}", settings | {"seed": seed}) for seed in range(seeds)],
    )
    rows = with_row(read_leaderboard(board), row)
    write_bytes(board, leaderboard_json(rows).encode())
    print(row.model_dump_json(), flush=True)


def with_row(rows: Sequence[LeaderboardRow], row: LeaderboardRow) -> list[LeaderboardRow]:
    """Return the rows with a new one at the end, without an earlier one that it replaces."""
    return [*(other for other in rows if _identity(other) != _identity(row)), row]


def _identity(row: LeaderboardRow) -> tuple[str, str, float, str]:
    return row.name, row.dataset, row.minutes, row.machine


# The documents


def write_documents() -> None:
    """Put the leaderboard with its plot into its document, and the default run over three seeds into the README.

    Raises:
        UserError: the leaderboard cannot be read, or a document lacks its marks.
    """
    rows = read_leaderboard(LEADERBOARD)
    board = board_markdown(rows)
    if any(seed.curve for row in rows for seed in row.seeds):
        write_bytes(PLOT, png(curves_figure(rows)))
        board = f"![Top-1 in validation against minutes of training]({PLOT.name})\n\n{board}"
    replace_between(DOCUMENT, BOARD_MARKS, board)
    replace_between(README, SEEDS_MARKS, seeds_markdown(shown_row(rows, project_settings()["dataset"])))


def replace_between(document: Path, marks: tuple[str, str], text: str) -> None:
    """Replace what a document has between two marks.

    Raises:
        UserError: it does not have the marks.
    """
    before, begin, rest = document.read_text().partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not end:
        raise UserError(f"{document} has no lines {marks[0].strip()} and {marks[1]}")
    write_bytes(document, f"{before}{begin}\n{text}{end}{after}".encode())


def board_markdown(rows: Sequence[LeaderboardRow]) -> str:
    """Return the leaderboard: a section for each data set, time and machine, the best row of each first."""
    parts = []
    for title, members in sections(rows).items():
        commands = "".join(f"- {row.name}: `{row.command}`\n" for row in members)
        parts.append(f"### {title}\n\n{board_table(members).markdown()}\n{commands}\n")
    return "".join(parts)


def sections(rows: Sequence[LeaderboardRow]) -> dict[str, list[LeaderboardRow]]:
    """Return the rows that compare with each other, best first, by what they have in common."""
    found: dict[str, list[LeaderboardRow]] = {}
    for row in sorted(rows, key=lambda row: -row.top1("test").mean):
        found.setdefault(f"{row.dataset}, {row.minutes:g} minutes, {row.machine}", []).append(row)
    return dict(sorted(found.items()))


def board_table(rows: Sequence[LeaderboardRow]) -> Table:
    """Return a line for each row: cost, times to accuracies, and accuracies in percent."""
    columns = ("row", "commit", "seeds", "steps", "s per step", "minutes")
    columns += (*(f"min to {target} %" for target in TARGETS), *RACE_SPLITS, NETWORK_LABEL)
    lines = []
    for row in rows:
        seeds = row.seeds
        numbers = [
            cell([seed.steps for seed in seeds], digits=0),
            cell([seed.seconds_per_step for seed in seeds], digits=3),
            cell([seed.minutes for seed in seeds]),
            *(cell([seed.minutes_to[str(target)] for seed in seeds]) for target in TARGETS),
            *(cell([seed.top1[split] for seed in seeds]) for split in RACE_SPLITS),
            cell([seed.resnet50 for seed in seeds]),
        ]
        lines.append((row.name, f"`{row.commit}`", str(len(seeds)), *numbers))
    return Table(columns, lines, words=2)


def cell(values: Sequence[float | None], digits: int = 1) -> str:
    """Return mean ± standard error over seeds; if some have no value, how many have one."""
    present = [value for value in values if value is not None]
    if len(present) == len(values):
        return mean_and_error(present).words(digits)
    return f"{len(present)} of {len(values)} seeds" if present else "never"


# The plot


def curves_figure(rows: Sequence[LeaderboardRow]) -> Figure:
    """Return top-1 in validation against minutes of training: a panel for each section, a line for each row."""
    groups = {title: [row for row in own if row.seeds[0].curve] for title, own in sections(rows).items()}
    groups = {title: own for title, own in groups.items() if own}
    heights = [max(3.2, 0.8 + 0.2 * len(own)) for own in groups.values()]  # inches; the legend has a line a row
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDE, sum(heights)), layout="constrained")
        panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights).flat
        for axes, (title, own) in zip(panels, groups.items(), strict=True):
            styles = itertools.product(LINE_STYLES, SERIES_COLORS)
            for row, (dashes, color) in zip(own, itertools.cycle(styles), strict=False):
                add_curve(axes, row, color, dashes)
            axes.set(title=title, xlabel="minutes of training", ylabel="top-1 in validation, %")
            axes.set_xlim(left=0)
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def add_curve(axes: Axes, row: LeaderboardRow, color: str, dashes: Any) -> None:
    """Add the mean of a row's validations over seeds, with a band of one standard error on each side."""
    minutes, centres, errors = [], [], []
    for validations in zip(*(seed.curve for seed in row.seeds), strict=False):  # up to the shortest curve
        times, accuracies = zip(*validations, strict=True)
        centre, error = mean_and_error(accuracies)
        minutes.append(mean(times))
        centres.append(centre)
        errors.append(error or 0.0)
    axes.plot(minutes, centres, color=color, linestyle=dashes, linewidth=1.4, label=row.name)
    low, high = ([c + sign * e for c, e in zip(centres, errors, strict=True)] for sign in (-1, 1))
    axes.fill_between(minutes, low, high, color=color, alpha=0.15, linewidth=0)


def main(
    name: Annotated[str | None, typer.Argument(help="The row's name; without it nothing is run.")] = None,
    minutes: Annotated[float, typer.Option(min=0.01, help="Minutes of training, for each seed.")] = 10,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds: 0, 1 and so on.")] = 3,
    preset: Annotated[str | None, typer.Option(help="A file of params/, without its suffix.")] = None,
    change: Annotated[
        list[str] | None, typer.Option("-S", help="A setting, as in `dvc exp run`.", metavar="KEY=VALUE")
    ] = None,
    folder: Annotated[Path, typer.Option(help="Where the runs lie.")] = ROOT / "storage" / "learning",
    board: Annotated[Path, typer.Option("--leaderboard", help="The file that the row is written to.")] = LEADERBOARD,
    write: Annotated[bool, typer.Option("--write", help="Write docs/learning.md and the README's table.")] = False,
) -> None:
    """Run a row of the leaderboard, or write the leaderboard into the documents."""
    if name is None and not write:
        raise typer.BadParameter("the name of a row, or --write")
    try:
        if name is not None:
            run_row(name, minutes, seeds, preset, change or [], folder, board)
        if write:
            write_documents()
    except UserError as error:
        raise typer.BadParameter(str(error)) from error


if __name__ == "__main__":
    typer.run(main)
