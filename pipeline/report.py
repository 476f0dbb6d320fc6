"""Stage `report`: one HTML page, and the tables and plots that the README shows.

Reads what the other stages wrote, checks it, and computes nothing that they have not measured.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ghn import GHNConfig
from pipeline import plots
from pipeline.errors import UserError
from pipeline.params import SPLITS, Params, fingerprint
from pipeline.results import RESULTS, results_folder, trained_ghn, write_bytes
from pipeline.tracking import CODE, flatten, stage_run

TEMPLATE = Path(__file__).with_name("report.html.jinja")
EXTREMES = 3  # best and worst architectures that are listed for each split


@dataclass(frozen=True)
class Results:
    """What the other stages measured, checked: complete, consistent, every number finite.

    `architectures` and `accuracy` (a row a split) are in the order of the splits.
    """

    config: GHNConfig
    checkpoint: str
    manifest: dict[str, Any]
    history: pd.DataFrame
    training: dict[str, float]
    architectures: pd.DataFrame
    accuracy: pd.DataFrame
    curves: pd.DataFrame
    finetuning: pd.DataFrame

    @property
    def chance(self) -> float:
        return 1 / self.config.num_classes

    @property
    def test(self) -> pd.Series:
        """The row of `accuracy` that the headline shows."""
        return self.accuracy.set_index("split").loc["test"]


@dataclass(frozen=True)
class Table:
    """Cells as text; the first `words` columns are left-aligned, the others hold numbers."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    words: int = 1

    def markdown(self) -> str:
        rules = tuple(":--" if column < self.words else "--:" for column in range(len(self.columns)))
        lines = (self.columns, rules, *self.rows)
        return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


@dataclass(frozen=True)
class Plot:
    """A figure for any width (inches), and the sentence below it."""

    caption: str
    draw: Callable[[float], Figure]


def report(params: Params) -> None:
    """Writes `results/report`: index.html, *.png, *.md; logs them, and the tables, to MLflow.

    Raises UserError if a stage has not written its results, or they cannot be trusted.
    """
    results = read_results(RESULTS)
    with stage_run("report", params.model_dump(), experiment=params.tracking.experiment, last=True) as run:
        folder = results_folder("report")
        page = write_report(results, params, provenance(results, params), folder)
        run.log_artifact(folder)
        run.log_table(results.accuracy, "tables/accuracy")
        run.log_table(results.finetuning, "tables/finetuning")
    print(f"{headline(results)}\n{page}")


def write_report(results: Results, params: Params, origin: dict[str, str], folder: Path) -> Path:
    """Writes plots, Markdown tables and page to `folder`; returns the path of the page.

    `origin` are the lines of the provenance.
    """
    tables = report_tables(results, params)
    for name in ("accuracy", "finetuning", "training"):
        write_bytes(folder / f"{name}.md", tables[name].markdown().encode())
    figures = {}
    for name, plot in report_plots(results).items():
        wide, narrow = plot.draw(plots.WIDE), plot.draw(plots.NARROW)
        write_bytes(folder / f"{name}.png", plots.png(wide))
        figures[name] = {
            "caption": plot.caption,
            "wide": plots.inline_svg(wide, f"{name}-wide", plot.caption),
            "narrow": plots.inline_svg(narrow, f"{name}-narrow", plot.caption),
        }
    write_bytes(folder / "index.html", render(results, params, origin, tables, figures).encode())
    return folder / "index.html"


def render(
    results: Results,
    params: Params,
    origin: dict[str, str],
    tables: dict[str, Table],
    figures: dict[str, dict[str, str]],
) -> str:
    """Returns the page; `figures` has for each name a caption and two `<svg>` elements, wide and narrow."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(TEMPLATE.read_text()).render(
        title=f"{_variant(params)} on {params.dataset}",
        headline=headline(results),
        numbers=headline_numbers(results),
        warning=nonfinite_warning(results.architectures),
        figures=figures,
        tables=tables,
        extremes=extremes(results.architectures),
        origin=origin.items(),
        settings=flatten(params.model_dump()).items(),
        dataset=params.dataset,
    )


# What the page says


def headline(results: Results) -> str:
    """Returns the result in two sentences."""
    test = results.test
    gain = 100 * (test["predicted_top1"] - test["random_top1"])
    error = 100 * math.hypot(test["predicted_top1_error"], test["random_top1_error"])
    comparison = f"{abs(gain):.1f} points {'more' if gain > 0 else 'less'} than with random initialisation"
    if abs(gain) < 2 * error:
        comparison = "not distinguishable from random initialisation (within two standard errors)"
    return (
        f"The hypernetwork predicted all parameters of {count(test['architectures'], 'architecture')} that "
        "it has never seen, each in one forward pass. Without any training of their own they classify "
        f"{percent(test['predicted_top1'])}% of the test images correctly: {comparison}."
    )


def nonfinite_warning(architectures: pd.DataFrame) -> str:
    """Returns a sentence on architectures whose logits are not finite; empty if there are none."""
    number = int(architectures["predicted_loss"].isna().sum())
    if not number:
        return ""
    return (
        f"The predicted parameters of {number:,} of {len(architectures):,} architectures give logits that "
        "are not finite; images without a finite logit count as wrong."
    )


def headline_numbers(results: Results) -> list[dict[str, str]]:
    """Returns value, name and detail of the numbers on top of the page."""
    test = results.test
    return [
        {
            "kind": "predicted",
            "value": percent(test["predicted_top1"]),
            "name": "predicted parameters",
            "detail": _detail(test, "predicted"),
        },
        {
            "kind": "random",
            "value": percent(test["random_top1"]),
            "name": "random initialisation",
            "detail": _detail(test, "random"),
        },
        {
            "kind": "chance",
            "value": percent(results.chance),
            "name": "chance",
            "detail": f"1 of {results.config.num_classes} classes",
        },
    ]


def _detail(row: pd.Series, kind: str) -> str:
    best, error = percent(row[f"{kind}_top1_max"]), row[f"{kind}_top1_error"]
    return f"best {best}" if pd.isna(error) else f"± {percent(error)}, best {best}"


def report_plots(results: Results) -> dict[str, Plot]:
    """Returns the plots by their file names."""
    history, architectures, chance = results.history, results.architectures, results.chance
    parts = plots.step_parts(history)
    largest = max(parts, key=parts.__getitem__)
    runs = results.finetuning["runs"].max()
    return {
        "accuracy": Plot(
            "Top-1 of every evaluated architecture: a point is one architecture, a box the middle half of a "
            "split, a bar its mean, which is printed on the right.",
            partial(plots.accuracy_by_split, architectures, chance),
        ),
        "size": Plot(
            "Top-1 against the number of parameters: one hypernetwork predicts the small and the large "
            "networks of all splits.",
            partial(plots.accuracy_by_size, architectures, chance),
        ),
        "training": Plot(
            f"Loss and top-1 over {len(history):,} steps, on training images, of networks whose parameters "
            f"were predicted in that step{_gaps(history)}.",
            partial(plots.training_curves, history, chance),
        ),
        "time": Plot(
            f"Where the time of a step goes: {largest} take{'' if largest.endswith('s') else 's'} "
            f"{parts[largest] / sum(parts.values()):.0%} of it. A bar begins where the one above ends.",
            partial(plots.time_of_a_step, history),
        ),
        "finetuning": Plot(
            "Test top-1 while fine-tuning on few images of other data sets, mean and standard error over "
            f"up to {runs} runs, each initialisation with its own best learning rate.",
            partial(plots.finetuning_curves, results.curves, finetuning_chances(results.finetuning)),
        ),
    }


def _gaps(history: pd.DataFrame) -> str:
    missing = int(history["loss"].isna().sum())
    return f"; {count(missing, 'step')} without a finite loss left out" if missing else ""


def report_tables(results: Results, params: Params) -> dict[str, Table]:
    """Returns the tables by name; accuracy, finetuning and training are also written as Markdown."""
    return {
        "accuracy": accuracy_table(results.accuracy, results.architectures),
        "finetuning": finetuning_table(results.finetuning),
        "training": training_table(results, params),
        "splits": splits_table(results.manifest, results.accuracy),
        "published": PUBLISHED,
    }


def accuracy_table(accuracy: pd.DataFrame, architectures: pd.DataFrame) -> Table:
    """Returns a row a split: accuracies in percent, means with their standard errors.

    Has a column for the number of architectures with logits that are not finite, if there are any.
    """
    measures = ("top-1, %", "best", "top-5, %")
    columns = ("split", "architectures", f"predicted: {measures[0]}", *measures[1:], f"random: {measures[0]}")
    columns += measures[1:]
    rows = []
    for row in accuracy.to_dict("records"):
        cells = [row["split"], f"{row['architectures']:,}"]
        for kind in ("predicted", "random"):
            top1, error = row[f"{kind}_top1"], row[f"{kind}_top1_error"]
            cells += [percent(top1, error), percent(row[f"{kind}_top1_max"]), percent(row[f"{kind}_top5"])]
        rows.append(tuple(cells))
    nonfinite = architectures["predicted_loss"].isna().groupby(architectures["split"]).sum()
    if nonfinite.any():
        columns += ("not finite",)
        rows = [(*cells, f"{nonfinite[cells[0]]:,}") for cells in rows]
    return Table(columns, rows)


def finetuning_table(finetuning: pd.DataFrame) -> Table:
    """Returns a row a data set and initialisation."""
    columns = (
        "data set",
        "initialisation",
        "learning rate",
        "runs",
        "top-1, %",
        "steps to target",
        "target, %",
    )
    rows = [
        (
            row["dataset"],
            row["initialisation"],
            f"{row['learning_rate']:g}",
            f"{row['runs']:,}",
            percent(row["test_top1"], row["test_top1_error"]),
            "not reached" if pd.isna(row["steps_to_target"]) else f"{row['steps_to_target']:,.0f}",
            percent(row["target_top1"]),
        )
        for row in finetuning.to_dict("records")
    ]
    return Table(columns, rows, words=2)


def training_table(results: Results, params: Params) -> Table:
    """Returns what was trained, how long it took, and where it ended."""
    history, training = results.history, results.training
    curves = history[["loss", "top1"]].dropna()
    last = slice(-plots.smoothing_window(len(history)), None)
    rows = {
        "hypernetwork": f"{_variant(params)}, {plots.short_count(training['parameters'])} parameters",
        "images": f"{_images(params)}, {results.config.num_classes} classes",
        "steps": f"{training['steps']:,.0f}",
        "architectures a step": f"{params.meta_batch:,}",
        "images a step": f"{params.train.batch:,}",
        "workers": f"{params.train.workers:,} on {'GPUs' if params.train.gpus_per_worker else 'CPUs'}, "
        f"{params.train.precision}",
        "time": duration(training["seconds"]),
        "architectures a second": f"{training['architectures_per_second']:.3g}",
        "images a second": f"{history['images_per_second'].median():.3g}",
        "loss, first step → end": f"{curves['loss'].iloc[0]:.3g} → {curves['loss'].iloc[last].mean():.3g}",
        "top-1, first step → end": f"{percent(curves['top1'].iloc[0])}% → {percent(curves['top1'].iloc[last].mean())}%",
    }
    if dropped := history["dropped"].sum():
        rows["dropped"] = f"{count(dropped, 'architecture')}, whose loss was not finite"
    return Table(("training", ""), list(rows.items()))


def splits_table(manifest: dict[str, Any], accuracy: pd.DataFrame) -> Table:
    """Returns how many architectures each split has, and how many of them were evaluated."""
    evaluated = dict(zip(accuracy["split"], accuracy["architectures"], strict=True))
    generated = {split: content["rows"] for split, content in manifest["splits"].items()}
    rows = [
        (
            split,
            f"{generated[split]:,}" if split in generated else "",
            f"{evaluated[split]:,}" if split in evaluated else "",
        )
        for split in sorted({*generated, *evaluated}, key=_split_order)
    ]
    return Table(("split", "generated", "evaluated"), rows)


PUBLISHED = Table(
    ("", "test", "wide", "deep", "dense", "bn_free", "ResNet-50"),
    [
        ("MLP", "42.2 / 60.2", "22.3 / 45.3", "37.9 / 56.5", "44.8 / 58.5", "23.9 / 44.0", "17.7"),
        ("GHN-1", "51.4 / 59.9", "43.1 / 58.6", "48.3 / 59.0", "51.8 / 59.3", "13.7 / 18.4", "19.2"),
        ("GHN-2", "66.9 / 77.1", "64.0 / 76.0", "60.5 / 76.5", "65.8 / 76.6", "36.8 / 58.7", "58.6"),
        ("SGD, 50 epochs", "88.5 / 93.1", "88.9 / 94.8", "84.5 / 92.5", "87.3 / 93.0", "45.6 / 89.1", "93.5"),
    ],
)
"""Knyazev et al., NeurIPS 2021."""


def extremes(architectures: pd.DataFrame, count: int = EXTREMES) -> dict[str, Table]:
    """Returns, for each split, the `count` best and worst architectures; all, where that would be all."""
    columns = ("rank", "architecture", "parameters", "predicted, %", "random, %")
    tables = {}
    for split, group in architectures.groupby("split", sort=False):
        ranked = group.sort_values(["predicted_top1", "index"], ascending=[False, True])
        shown = range(len(ranked))
        if len(ranked) > 2 * count:
            shown = [*shown[:count], *shown[-count:]]
        rows = [
            (
                f"{rank + 1:,}",
                row["name"] or row["identity"],
                plots.short_count(row["parameters"]),
                percent(row["predicted_top1"]),
                percent(row["random_top1"]),
            )
            for rank, row in zip(shown, ranked.iloc[list(shown)].to_dict("records"), strict=True)
        ]
        tables[str(split)] = Table(columns, rows, words=2)
    return tables


def finetuning_chances(finetuning: pd.DataFrame) -> dict[str, float]:
    """Returns the chance level of each data set; none if the summary has no column `classes`."""
    if "classes" not in finetuning:
        return {}
    return {dataset: 1 / classes for dataset, classes in zip(finetuning["dataset"], finetuning["classes"], strict=True)}


def provenance(results: Results, params: Params) -> dict[str, str]:
    """Returns where the page comes from: code, data, versions, date."""
    shards = [shard["sha256"] for split in results.manifest["splits"].values() for shard in split["shards"]]
    return {
        "code": git_state(),
        "DVC experiment": os.environ.get("DVC_EXP_NAME") or "none",
        "images": _images(params),
        "architectures": f"digest {fingerprint(shards)} of {len(shards):,} shards",
        "checkpoint": f"digest {results.checkpoint[:12]}",
        "seed": str(params.seed),
        "workers": str(params.train.workers),
        "versions": f"Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in ("torch", "ray", "mlflow", "dvc")),
        "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }


def git_state() -> str:
    """Returns the commit of the current folder and whether code or settings differ from it."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return "not in a git repository with a commit"
    changed = _git("status", "--porcelain", "--", *CODE, ":/params.yaml", ":/*.jinja")
    if not changed:
        return f"git {commit[:12]}, clean"
    files = [line.split(maxsplit=1)[1] for line in changed.splitlines()]
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return f"git {commit[:12]}, with uncommitted changes in {', '.join(files[:3])}{more}"


def count(number: float, noun: str) -> str:
    """Returns "1 noun", "2 nouns"."""
    return f"{number:,.0f} {noun}{'' if number == 1 else 's'}"


def _variant(params: Params) -> str:
    return {"ghn2": "GHN-2", "ghn1": "GHN-1", "mlp": "MLP"}[params.hypernetwork.variant]


def _images(params: Params) -> str:
    return f"{params.dataset} at {params.images.size}×{params.images.size}"


def percent(share: float, error: float | None = None) -> str:
    """Returns a share (0 to 1) in percent, without the sign; with its standard error where there is one."""
    text = f"{100 * share:.1f}"
    return text if error is None or pd.isna(error) else f"{text} ± {100 * error:.1f}"


def duration(seconds: float) -> str:
    """Returns a time in its two largest units: 2 d 3 h, 1 h 05 min, 4 min 10 s, 12.3 s."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if round(seconds) < 3600:
        return f"{round(seconds) // 60} min {round(seconds) % 60:02d} s"
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{hours // 24} d {hours % 24} h"


# Reading what the other stages wrote

STEP_SECONDS = ("step_seconds", *plots.TIME_PARTS)
ACCURACIES = ("predicted_top1", "predicted_top5", "random_top1", "random_top5")


def read_results(folder: Path) -> Results:
    """Returns the results of the other stages under `folder`.

    Raises UserError, naming the file and the stage to run, if something is missing, not finite, not a share
    where a share is meant, or if two files contradict each other.
    """
    train, evaluate, finetune = folder / "train", folder / "evaluate", folder / "finetune"
    manifest = _read_json(folder / "generate" / "manifest.json", "generate", {"splits"})
    history = _read_table(
        train / "history.csv",
        "train",
        numbers=("step", "learning_rate", *STEP_SECONDS, "images_per_second", "dropped"),
        shares=("top1",),
        optional=("loss", "top1"),  # missing in a step that had to drop all of its architectures
    )
    unexplained = history[["loss", "top1"]].isna().any(axis=1) & (history["dropped"] == 0)
    _check_rows(history, "loss", unexplained, "finite", train / "history.csv", "train")
    training = _read_json(
        train / "metrics.json",
        "train",
        {"loss", "top1", "steps", "seconds", "architectures_per_second", "parameters"},
    )
    architectures = _read_table(
        evaluate / "architectures.parquet",
        "evaluate",
        words=("split", "name", "identity"),
        numbers=("index", "parameters"),
        shares=ACCURACIES,
        optional=("predicted_loss", "random_loss"),  # missing where logits are not finite
    )
    accuracy = _read_table(
        evaluate / "summary.csv",
        "evaluate",
        words=("split",),
        numbers=("architectures",),
        shares=(*ACCURACIES, "predicted_top1_max", "random_top1_max"),
        optional=("predicted_top1_error", "random_top1_error"),  # a single architecture has no standard error
    )
    curves = _read_table(
        finetune / "curves.parquet",
        "finetune",
        words=("dataset", "initialisation"),
        numbers=("architecture", "seed", "step"),
        shares=("test_top1",),
    )
    finetuning = _read_table(
        finetune / "summary.csv",
        "finetune",
        words=("dataset", "initialisation"),
        numbers=("learning_rate", "runs"),
        shares=("test_top1", "target_top1"),
        optional=("test_top1_error", "steps_to_target"),  # a target may never be reached
    )
    _check_agreement(architectures, accuracy, evaluate)
    ghn, checkpoint = trained_ghn(train / "checkpoint")
    return Results(
        config=ghn.config,
        checkpoint=checkpoint,
        manifest=manifest,
        history=history,
        training=training,
        architectures=_in_split_order(architectures),
        accuracy=_in_split_order(accuracy),
        curves=curves,
        finetuning=finetuning,
    )


def _read_table(
    path: Path,
    stage: str,
    *,
    words: tuple[str, ...] = (),
    numbers: tuple[str, ...] = (),
    shares: tuple[str, ...] = (),
    optional: tuple[str, ...] = (),
) -> pd.DataFrame:
    """A table with at least these columns: `numbers` are finite, `shares` 0 to 1, `optional` may be empty."""
    _check_exists(path, stage)
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, keep_default_na=True)
    except (ValueError, OSError) as error:  # of pandas and of pyarrow: what they say about a damaged file
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}\n{_again(stage)}") from error
    missing = [column for column in (*words, *numbers, *shares, *optional) if column not in table]
    if missing:
        raise UserError(f"{path} has no column {missing[0]}\n{_again(stage)}")
    if table.empty:
        raise UserError(f"{path} has no rows\n{_again(stage)}")
    for column in words:
        table[column] = table[column].fillna("").astype(str)
    for column in dict.fromkeys((*numbers, *shares, *optional)):
        values = pd.to_numeric(table[column], errors="coerce")
        wrong = ~np.isfinite(values) & (table[column].notna() if column in optional else True)
        _check_rows(table, column, wrong, "finite", path, stage)
        if column in shares:
            _check_rows(table, column, (values < 0) | (values > 1), "a share, 0 to 1", path, stage)
        table[column] = values
    return table


def _check_rows(table: pd.DataFrame, column: str, wrong: pd.Series, right: str, path: Path, stage: str) -> None:
    if not wrong.any():
        return
    row = int(np.flatnonzero(wrong)[0])
    raise UserError(
        f"{column} = {table[column].iloc[row]} in row {row + 1} of {path}: must be {right}\n"
        f"{int(wrong.sum()):,} of {len(table):,} rows are wrong. {_again(stage)}"
    )


def _read_json(path: Path, stage: str, keys: set[str]) -> dict[str, Any]:
    _check_exists(path, stage)
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}\n{_again(stage)}") from error
    for name, value in _leaves(content):
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{name} = {value} in {path}: must be finite\n{_again(stage)}")
    missing = sorted(keys - content.keys()) if isinstance(content, dict) else sorted(keys)
    if missing:
        raise UserError(f"{path} has no {missing[0]}\n{_again(stage)}")
    return content


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(inner, f"{name}.{key}".removeprefix("."))
        return
    yield name, value


def _check_exists(path: Path, stage: str) -> None:
    if not path.is_file():
        raise UserError(f"{path} not found: stage {stage} writes it, run `dvc repro {stage}`")


def _check_agreement(architectures: pd.DataFrame, accuracy: pd.DataFrame, folder: Path) -> None:
    """A summary that is not of these architectures would put wrong numbers on top of the page."""
    means = architectures.groupby("split")[list(ACCURACIES)].mean()
    counts = architectures.groupby("split").size()
    again = _again("evaluate")
    if "test" not in counts:
        raise UserError(f"{folder / 'architectures.parquet'} has no architecture of split test\n{again}")
    if set(counts.index) != set(accuracy["split"]) or accuracy["split"].duplicated().any():
        raise UserError(
            f"{folder}: summary.csv has the splits {', '.join(accuracy['split'])}\n"
            f"architectures.parquet has {', '.join(counts.index)}\n{again}"
        )
    for row in accuracy.to_dict("records"):
        split = row["split"]
        expected = {"architectures": counts[split], **means.loc[split]}
        for column, value in expected.items():
            if abs(row[column] - value) > 1e-3:
                raise UserError(
                    f"{column} of split {split} is {row[column]:.6g} in {folder / 'summary.csv'}\n"
                    f"but {value:.6g} over the rows of architectures.parquet\n{again}"
                )


def _again(stage: str) -> str:
    return f"`dvc repro --force {stage}` writes it again"


def _in_split_order(table: pd.DataFrame) -> pd.DataFrame:
    return table.sort_values("split", key=lambda splits: splits.map(_split_order), kind="stable", ignore_index=True)


def _split_order(split: str) -> int:
    order = (*SPLITS, "predefined")
    return order.index(split) if split in order else len(order)


def _git(*arguments: str) -> str | None:
    if shutil.which("git") is None:
        return None
    done = subprocess.run(["git", *arguments], capture_output=True, text=True)
    return done.stdout.rstrip() if done.returncode == 0 else None
