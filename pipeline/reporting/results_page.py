"""The page about all results, and the tables and plots that the README shows."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.console import percent
from pipeline.params import Params, TrainSettings
from pipeline.reporting import plots, training_plots
from pipeline.reporting.page import Plot, Table, count, write_figures
from pipeline.reporting.page import render as render_page
from pipeline.reporting.read_results import Results, split_order
from pipeline.storage.files import write_bytes
from pipeline.tracking.mlflow_runs import flatten

EXTREMES = 3  # best and worst architectures that are listed for each split
LISTED_ARCHITECTURES = 3  # architectures that are named because they were dropped most often in training

PRECISION_WORDS = {
    "fp32": "fp32",
    "bf16": "bf16 in target networks, fp32 elsewhere",
    "fp64": "fp64",
}


def write_report(results: Results, params: Params, origin: dict[str, str], folder: Path) -> Path:
    """Writes plots, Markdown tables and page to `folder`; returns the path of the page.

    `origin` are the lines of the provenance.
    """
    tables = report_tables(results, params)
    for name in ("accuracy", "finetuning", "training"):
        write_bytes(folder / f"{name}.md", tables[name].markdown().encode())
    figures = write_figures(report_plots(results, params), folder)
    write_bytes(folder / "index.html", render(results, params, origin, tables, figures).encode())
    return folder / "index.html"


def render(
    results: Results,
    params: Params,
    origin: dict[str, str],
    tables: dict[str, Table],
    figures: dict[str, dict[str, str]],
) -> str:
    """The page; `figures` has for each name a caption and two `<svg>` elements, wide and narrow."""
    return render_page(
        "report.html.jinja",
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
    """The result in two sentences."""
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
    """A sentence on architectures whose logits are not finite; empty if there are none."""
    number = int(architectures["predicted_loss"].isna().sum())
    if not number:
        return ""
    return (
        f"The predicted parameters of {number:,} of {len(architectures):,} architectures give logits that "
        "are not finite; images without a finite logit count as wrong."
    )


def headline_numbers(results: Results) -> list[dict[str, str]]:
    """Value, unit, name and detail of the numbers on top of the page."""
    test = results.test
    return [
        {
            "kind": "predicted",
            "value": percent(test["predicted_top1"]),
            "unit": "%",
            "name": "predicted parameters",
            "detail": _detail(test, "predicted"),
        },
        {
            "kind": "random",
            "value": percent(test["random_top1"]),
            "unit": "%",
            "name": "random initialisation",
            "detail": _detail(test, "random"),
        },
        {
            "kind": "chance",
            "value": percent(results.chance),
            "unit": "%",
            "name": "chance",
            "detail": f"1 of {results.config.num_classes} classes",
        },
    ]


def _detail(row: pd.Series, kind: str) -> str:
    best, error = percent(row[f"{kind}_top1_max"]), row[f"{kind}_top1_error"]
    return f"best {best}" if pd.isna(error) else f"± {percent(error)}, best {best}"


def report_plots(results: Results, params: Params) -> dict[str, Plot]:
    """The plots by their file names."""
    architectures, chance = results.architectures, results.chance
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
        **_training_plots(results, params.train),
        "finetuning": Plot(
            "Test top-1 while fine-tuning on few images of other data sets, mean and standard error over "
            f"up to {runs} runs, each initialisation with its own best learning rate.",
            partial(plots.finetuning_curves, results.curves, finetuning_chances(results.finetuning)),
        ),
    }


def _training_plots(results: Results, settings: TrainSettings) -> dict[str, Plot]:
    history, kept = results.history, results.kept_step
    drops = training_plots.learning_rate_drops(history) if settings.schedule == "multi_step" else []
    parts = training_plots.step_parts(history)
    largest = max(parts, key=parts.__getitem__)
    validation = ""
    if kept is not None:
        validation = (
            " Validation is on architectures and images that are not trained on; a ring marks the step whose weights "
            "are kept."
        )
    unclipped = "" if settings.architecture_clip is not None else "; the latter are not clipped"
    window = training_plots.smoothing_steps(history)
    smooth = f" Curves are medians of {window:,} steps." if window > training_plots.steps_a_row(history) else ""
    workers = ""
    if settings.workers > 1:
        workers = (
            f" The slowest of {settings.workers:,} workers takes {history['imbalance'].median():.2f} times as long as "
            "their mean (median over the steps); the others wait for it, which is part of other."
        )
    return {
        "training": Plot(
            f"Loss and top-1 over {results.training['steps']:,.0f} steps, on training images, of networks whose "
            f"parameters were predicted in that step{_gaps(history)}.{validation}",
            partial(training_plots.training_curves, history, results.chance, drops, kept),
        ),
        "gradients": Plot(
            "Norms of gradients before they are clipped: of the whole gradient, at the hypernetwork's weights, and of "
            f"each architecture's own, at its predicted parameters, over those of a step{unclipped}.{smooth}",
            partial(training_plots.gradient_norms, history, settings.clip, settings.architecture_clip),
        ),
        "time": Plot(
            f"Where the time of a step goes: its largest part, {parts[largest] / sum(parts.values()):.0%}, is "
            f"{largest}. A bar begins where the one above ends. Graphs are not part of it: a thread of their own makes "
            "those of the next step in the background, in "
            f"{training_plots.short_seconds(history['graph_seconds'].mean())}.{workers}",
            partial(training_plots.time_of_a_step, history),
        ),
    }


def _gaps(history: pd.DataFrame) -> str:
    missing = int(history["loss"].isna().sum())
    return f"; {count(missing, 'step')} without a finite loss left out" if missing else ""


def report_tables(results: Results, params: Params) -> dict[str, Table]:
    """The tables by name; accuracy, finetuning and training are also written as Markdown."""
    return {
        "accuracy": accuracy_table(results.accuracy, results.architectures),
        "finetuning": finetuning_table(results.finetuning),
        "training": training_table(results, params),
        "splits": splits_table(results.manifest, results.accuracy),
        "published": PAPER_TABLE,
    }


def accuracy_table(accuracy: pd.DataFrame, architectures: pd.DataFrame) -> Table:
    """A row a split: accuracies in percent, means with their standard errors.

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
    """A row a data set and initialisation."""
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
    """What was trained, how long it took, where it ended, and what went wrong."""
    history, training, settings = results.history, results.training, params.train
    curves = history[["loss", "top1"]].dropna()
    end = curves.tail(training_plots.smoothing_window(len(history))).median()  # as the plot shows it
    waiting = history["wait_seconds"].sum() / history["step_seconds"].sum()
    rows = {
        "hypernetwork": f"{_variant(params)}, {plots.short_count(training['parameters'])} parameters",
        "images": f"{_images(params)}, {results.config.num_classes} classes",
        "steps": f"{training['steps']:,.0f}",
        "architectures a step": f"{params.meta_batch:,}",
        "images a step": f"{settings.batch:,}",
        "workers": f"{settings.workers:,} on {'GPUs' if settings.gpus_per_worker else 'CPUs'}",
        "precision": PRECISION_WORDS[training["precision"]],
        "time": duration(training["seconds"]),
        "architectures a second": f"{training['architectures_per_second']:.3g}",
        "images a second": f"{history['images_per_second'].median():,.0f}",
        "waiting for data": f"{waiting:.1%} of the time of steps",
    }
    if settings.workers > 1:
        rows["imbalance"] = f"slowest worker {history['imbalance'].median():.2f} × their mean, median"
    rows["loss, first step → end"] = f"{curves['loss'].iloc[0]:.3g} → {end['loss']:.3g}"
    rows["top-1, first step → end"] = f"{percent(curves['top1'].iloc[0])}% → {percent(end['top1'])}%"
    return Table(("training", ""), list({**rows, **_kept(results, settings), **_dropped(results)}.items()))


def _kept(results: Results, settings: TrainSettings) -> dict[str, str]:
    """Which weights are kept, and how well they do on validation."""
    average = f", moving average with decay {settings.ema:g}" if settings.ema is not None else ""
    if results.kept_step is None:
        return {"weights kept": f"of the last step{average}"}
    return {
        "validation top-1": f"{percent(results.training['val_top1'])}%, the best of "
        f"{count(results.history['val_top1'].count(), 'validation')}",
        "weights kept": f"of step {results.kept_step:,}{average}",
    }


def _dropped(results: Results) -> dict[str, str]:
    """How many architectures were dropped in training, and which most often."""
    if results.dropped.empty:
        return {"dropped": "no architecture"}
    times = results.dropped.groupby("identity", sort=False).size().sort_values(ascending=False, kind="stable")
    named = [f"{identity} ({count(number, 'time')})" for identity, number in times[:LISTED_ARCHITECTURES].items()]
    return {
        "dropped": f"{count(len(results.dropped), 'architecture')}, whose loss or gradient was not finite",
        "most often": ", ".join(named),
    }


def splits_table(manifest: dict[str, Any], accuracy: pd.DataFrame) -> Table:
    """How many architectures each split has, and how many of them were evaluated."""
    evaluated = dict(zip(accuracy["split"], accuracy["architectures"], strict=True))
    generated = {split: content["rows"] for split, content in manifest["splits"].items()}
    rows = [
        (
            split,
            f"{generated[split]:,}" if split in generated else "",
            f"{evaluated[split]:,}" if split in evaluated else "",
        )
        for split in sorted({*generated, *evaluated}, key=split_order)
    ]
    return Table(("split", "generated", "evaluated"), rows)


PAPER_TABLE = Table(
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
    """The chance level of each data set."""
    return {dataset: 1 / classes for dataset, classes in zip(finetuning["dataset"], finetuning["classes"], strict=True)}


def _variant(params: Params) -> str:
    return {"ghn2": "GHN-2", "ghn1": "GHN-1", "mlp": "MLP"}[params.hypernetwork.variant]


def _images(params: Params) -> str:
    return f"{params.dataset} at {params.images.size}×{params.images.size}"


def duration(seconds: float) -> str:
    """A time in its two largest units: 2 d 3 h, 1 h 05 min, 4 min 10 s, 12.3 s."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if round(seconds) < 3600:
        return f"{round(seconds) // 60} min {round(seconds) % 60:02d} s"
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{hours // 24} d {hours % 24} h"
