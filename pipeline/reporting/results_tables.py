"""Tables of the page about all results, beside those of fine-tuning; accuracy and training are also Markdown files."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from ghn.models.config import Composition, GHNConfig
from pipeline.console import percent
from pipeline.evaluation.initialisations import HEADLINE
from pipeline.params import TrainSettings
from pipeline.reporting import training_plots
from pipeline.reporting.numbers import count, duration, short_count, short_seconds
from pipeline.reporting.page import Table
from pipeline.reporting.read_results import Results, split_order

EXTREMES = 3
"""Best and worst architectures that are listed for each split."""

MOST_DROPPED_LISTED = 3
"""Architectures that are named because they were dropped most often in training."""

VARIANT_NAMES = {"ghn2": "GHN-2", "ghn1": "GHN-1", "mlp": "MLP", "ghn3": "GHN-3", "logah": "LoGAH"}

PRECISION_WORDS = {
    "fp32": "fp32",
    "bf16": "bf16 in target networks, fp32 elsewhere",
    "fp64": "fp64",
}

DEVICE_WORDS = {"cuda": "GPUs", "cpu": "CPUs"}

PAPER_TABLE = Table(
    ("", "test", "wide", "deep", "dense", "bn_free", "ResNet-50"),
    [
        ("MLP", "42.2 / 60.2", "22.3 / 45.3", "37.9 / 56.5", "44.8 / 58.5", "23.9 / 44.0", "17.7"),
        ("GHN-1", "51.4 / 59.9", "43.1 / 58.6", "48.3 / 59.0", "51.8 / 59.3", "13.7 / 18.4", "19.2"),
        ("GHN-2", "66.9 / 77.1", "64.0 / 76.0", "60.5 / 76.5", "65.8 / 76.6", "36.8 / 58.7", "58.6"),
        ("SGD, 50 epochs", "88.5 / 93.1", "88.9 / 94.8", "84.5 / 92.5", "87.3 / 93.0", "45.6 / 89.1", "93.5"),
    ],
)
"""Mean / best top-1 on CIFAR-10, in %, of Knyazev et al., NeurIPS 2021."""


def name_of(config: GHNConfig) -> str:
    """Return the name of a hypernetwork: its variant, and the parts that are not the variant's."""
    own = config.to_dict()
    parts = [_part_in_words(part, own[part]) for part in Composition._fields if part in own]
    return ", ".join([VARIANT_NAMES.get(config.variant, config.variant), *parts])


def _part_in_words(part: str, value: str | int) -> str:
    """Return a part of a hypernetwork and its value: "decoder conv", "with dirac", "without layer norm"."""
    words = part.replace("_", " ")
    return f"{'with' if value else 'without'} {words}" if isinstance(value, bool) else f"{words} {value}"


def accuracy_table(accuracy: pd.DataFrame, initialisations: Mapping[str, str]) -> Table:
    """Return a row for each split: accuracies in percent, means with their standard errors.

    An initialisation also has a column for its number of architectures with logits that are not finite, if there are
    any.

    Args:
        accuracy: a row for each split.
        initialisations: their labels by name.
    """
    columns = ["split", "architectures"]
    cells = [accuracy["split"].tolist(), [f"{number:,}" for number in accuracy["architectures"]]]
    for name in initialisations:
        columns += [f"{name}: top-1, %", "best", "top-5, %"]
        cells += [
            list(map(percent, accuracy[f"{name}_top1"], accuracy[f"{name}_top1_error"])),
            list(map(percent, accuracy[f"{name}_top1_max"])),
            list(map(percent, accuracy[f"{name}_top5"])),
        ]
    for name in initialisations:
        nonfinite = accuracy[f"{name}_nonfinite"]
        if nonfinite.any():
            columns.append("not finite" if name == HEADLINE else f"{name}: not finite")
            cells.append([f"{number:,}" for number in nonfinite])
    return Table(tuple(columns), list(zip(*cells, strict=True)))


def training_table(results: Results, images: str, meta_batch: int, settings: TrainSettings) -> Table:
    """Return what was trained, how long it took, where it ended, and what went wrong.

    Args:
        results: the checked results.
        images: the images in words.
        meta_batch: architectures per step.
        settings: those of training.
    """
    history, training = results.history, results.training
    waiting = history["wait_seconds"].sum() / history["step_seconds"].sum()
    rows = {
        "hypernetwork": f"{name_of(results.config)}, {short_count(training.parameters)} parameters",
        "images": f"{images}, {results.config.num_classes} classes",
        "steps": f"{training.steps:,}",
        "architectures per step": f"{meta_batch:,}",
        "images per step": f"{settings.batch:,}",
        "workers": f"{training.workers:,} on {DEVICE_WORDS[training.device]}",
        "precision": PRECISION_WORDS[training.precision],
        "time": duration(training.seconds),
        "architectures per second": f"{training.architectures_per_second:.3g}",
        "images per second": f"{history['images_per_second'].median():,.0f}",
        "waiting for data": f"{waiting:.1%} of the time of steps",
    }
    if training.workers > 1:
        rows["imbalance"] = f"slowest worker {history['imbalance'].median():.2f} × their mean, median"
    rows |= _learning_rows(history) | _kept_rows(results, settings) | _dropped_rows(results.dropped)
    return Table(("training", ""), list(rows.items()))


def _learning_rows(history: pd.DataFrame) -> dict[str, str]:
    """Return where loss and top-1 began and ended, smoothed at the end as in the plot."""
    curves = history[["loss", "top1"]].dropna()
    start, end = curves.iloc[0], curves.tail(training_plots.smoothing_window(len(history))).median()
    return {
        "loss, first step → end": f"{start['loss']:.3g} → {end['loss']:.3g}",
        "top-1, first step → end": f"{percent(start['top1'])}% → {percent(end['top1'])}%",
    }


def _kept_rows(results: Results, settings: TrainSettings) -> dict[str, str]:
    """Return which weights are kept, and how well they do on validation."""
    average = f", moving average with decay {settings.ema:g}" if settings.ema is not None else ""
    if results.training.val_top1 is None:
        return {"weights kept": f"of the last step{average}"}
    validations = count(results.history["val_top1"].count(), "validation")
    return {
        "validation top-1": f"{percent(results.training.val_top1)}%, the best of {validations}",
        "weights kept": f"of step {results.training.best_step:,}{average}",
    }


def _dropped_rows(dropped: pd.DataFrame) -> dict[str, str]:
    """Return how many architectures were dropped in training, and which most often."""
    if dropped.empty:
        return {"dropped": "no architecture"}
    times = dropped.groupby("identity", sort=False).size().sort_values(ascending=False, kind="stable")
    named = [f"{identity} ({count(number, 'time')})" for identity, number in times[:MOST_DROPPED_LISTED].items()]
    return {
        "dropped": f"{count(len(dropped), 'architecture')}, whose loss or gradient was not finite",
        "most often": ", ".join(named),
    }


def speed_table(architectures: pd.DataFrame) -> Table:
    """Return a row for each split: the sizes of its networks, and the seconds in which their parameters are predicted.

    Args:
        architectures: a row for each (split, index, initialisation).
    """
    predicted = architectures[architectures["initialisation"] == HEADLINE]
    lines = []
    for split, own in predicted.groupby("split", sort=False):
        seconds = own["initialise_seconds"]
        rate = own["parameters"].sum() / seconds.sum()
        times = (short_seconds(seconds.median()), short_seconds(seconds.max()), short_count(rate))
        sizes = (f"{own['nodes'].median():,.0f}", short_count(own["parameters"].median()))
        lines.append((str(split), f"{len(own):,}", *sizes, *times))
    columns = ("split", "networks", "nodes, median", "parameters, median", "prediction, median", "slowest")
    return Table((*columns, "parameters per second"), lines)


def speed_findings(results: Results, meta_batch: int, settings: TrainSettings) -> list[str]:
    """Return how fast predictions and training were, in two sentences."""
    history, training = results.history, results.training
    predicted = results.architectures[results.architectures["initialisation"] == HEADLINE]
    step = history["step_seconds"].mean()
    return [
        f"All parameters of a network are predicted in {short_seconds(predicted['initialise_seconds'].median())} "
        f"(median of {count(len(predicted), 'network')}).",
        f"A step of training with {count(meta_batch, 'architecture')} and {count(settings.batch, 'image')} takes "
        f"{short_seconds(step)}, {training.architectures_per_second:.3g} architectures per second, with "
        f"{count(training.workers, 'worker')} on {DEVICE_WORDS[training.device]}; all {training.steps:,} steps took "
        f"{duration(training.seconds)}.",
    ]


def splits_table(generated: Mapping[str, int], accuracy: pd.DataFrame) -> Table:
    """Return how many architectures each split has, and how many of them were evaluated."""
    evaluated = dict(zip(accuracy["split"], accuracy["architectures"], strict=True))
    rows = [
        (
            split,
            f"{generated[split]:,}" if split in generated else "",
            f"{evaluated[split]:,}" if split in evaluated else "",
        )
        for split in sorted({*generated, *evaluated}, key=split_order)
    ]
    return Table(("split", "generated", "evaluated"), rows)


def extremes(architectures: pd.DataFrame, initialisations: Mapping[str, str]) -> dict[str, Table]:
    """Return the `EXTREMES` best and worst architectures of each split, or all of them if there are not more.

    Args:
        architectures: a row for each (split, index, initialisation).
        initialisations: their labels by name. Architectures are ranked by the accuracy of the first one.
    """
    first, *_ = initialisations
    columns = ("rank", "architecture", "parameters", *(f"{name}, %" for name in initialisations))
    tables = {}
    for split, group in architectures.groupby("split", sort=False):
        top1 = group.pivot(index="index", columns="initialisation", values="top1")
        ranked = group[group["initialisation"] == first].sort_values(["top1", "index"], ascending=[False, True])
        shown = list(range(len(ranked)))
        if len(ranked) > 2 * EXTREMES:
            shown = [*shown[:EXTREMES], *shown[-EXTREMES:]]
        rows = [
            (
                f"{rank + 1:,}",
                row["name"] or row["identity"],
                short_count(row["parameters"]),
                *(percent(top1.loc[row["index"], name]) for name in initialisations),
            )
            for rank, row in zip(shown, ranked.iloc[shown].to_dict("records"), strict=True)
        ]
        tables[str(split)] = Table(columns, rows, words=2)
    return tables
