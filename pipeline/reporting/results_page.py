"""The page about all results, with the tables and plots that the README shows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pandas as pd

from pipeline.console import percent
from pipeline.evaluation.initialisations import BASELINE, HEADLINE
from pipeline.params import (
    EvaluateSettings,
    FinetuneSettings,
    GenerateSettings,
    HypernetworkSettings,
    ImageSettings,
    Params,
    Section,
    TrainSettings,
    flat_settings,
)
from pipeline.reporting import accuracy_plots, training_plots
from pipeline.reporting.finetuning_tables import budgets_table, finetuning_findings, finetuning_table
from pipeline.reporting.leaderboard import LeaderboardRow
from pipeline.reporting.numbers import count, short_seconds
from pipeline.reporting.page import HeadlineNumber, PageFigure, Plot, Table, render_page, write_figures
from pipeline.reporting.read_results import Results
from pipeline.reporting.results_tables import (
    PAPER_TABLE,
    accuracy_table,
    extremes,
    name_of,
    splits_table,
    training_table,
)
from pipeline.reporting.seeds_section import seeds_section
from pipeline.storage.files import write_bytes

MARKDOWN_TABLES = ("accuracy", "finetuning", "budgets", "training")
"""Tables that are also written as Markdown files."""


class ReportSettings(Section):
    """The settings that results depend on. How a stage is run, and where its files lie, is not among them."""

    seed: int
    dataset: str
    meta_batch: int
    images: ImageSettings
    generate: GenerateSettings
    hypernetwork: HypernetworkSettings
    train: TrainSettings
    evaluate: EvaluateSettings
    finetune: FinetuneSettings

    @classmethod
    def of(cls, params: Params) -> ReportSettings:
        """Return the part of all settings that results depend on."""
        return cls(**{name: getattr(params, name) for name in cls.model_fields})

    @property
    def images_in_words(self) -> str:
        """The data set, and the size of its images."""
        return f"{self.dataset} at {self.images.size}×{self.images.size}"


def write_report(
    results: Results,
    settings: ReportSettings,
    origin: Mapping[str, str],
    folder: Path,
    seeds: LeaderboardRow | None = None,
) -> Path:
    """Write plots, Markdown tables and the page to `folder`, and return the path of the page.

    Args:
        results: the checked results.
        settings: those that the results depend on.
        origin: where the page comes from, by name.
        folder: exists.
        seeds: the row of the leaderboard that is shown, or None.
    """
    tables = report_tables(results, settings)
    for name in MARKDOWN_TABLES:
        write_bytes(folder / f"{name}.md", tables[name].markdown().encode())
    figures = write_figures(report_plots(results, settings.train), folder)
    write_bytes(folder / "index.html", render_report(results, settings, origin, tables, figures, seeds).encode())
    return folder / "index.html"


def render_report(
    results: Results,
    settings: ReportSettings,
    origin: Mapping[str, str],
    tables: Mapping[str, Table],
    figures: Mapping[str, PageFigure],
    seeds: LeaderboardRow | None = None,
) -> str:
    """Return the page with the given tables and figures, and with a row of the leaderboard if there is one."""
    accuracy, architectures, budgets = results.accuracy, results.architectures, results.budgets
    return render_page(
        "report.html.jinja",
        title=f"{name_of(results.config)} on {settings.dataset}",
        headline=headline(results),
        numbers=headline_numbers(results),
        warning=nonfinite_warning(accuracy, results.evaluated),
        figures=figures,
        tables=tables,
        seeds=seeds and seeds_section(seeds, accuracy, architectures, budgets),
        extremes=extremes(architectures, results.evaluated),
        findings=finetuning_findings(budgets, results.labels),
        origin=origin.items(),
        settings=flat_settings(settings.model_dump()).items(),
        dataset=settings.dataset,
    )


# What the page says


def headline(results: Results) -> str:
    """Return the result in two sentences."""
    row, baseline = results.headline, results.labels[BASELINE]
    gain = 100 * (row[f"{HEADLINE}_top1"] - row[f"{BASELINE}_top1"])
    error = 100 * math.hypot(row[f"{HEADLINE}_top1_error"], row[f"{BASELINE}_top1_error"])
    comparison = f"{abs(gain):.1f} points {'more' if gain > 0 else 'less'} than with {baseline}"
    if abs(gain) < 2 * error:
        comparison = f"not distinguishable from {baseline} (within two standard errors)"
    return (
        f"The hypernetwork predicted all parameters of {count(row['architectures'], 'architecture')} that "
        "it has never seen, each in one forward pass. Without any training of their own they classify "
        f"{percent(row[f'{HEADLINE}_top1'])}% of the test images correctly: {comparison}."
    )


def nonfinite_warning(accuracy: pd.DataFrame, labels: Mapping[str, str]) -> str:
    """Return a sentence on architectures whose logits are not finite; empty if there are none."""
    total = f"{accuracy['architectures'].sum():,}"
    found = []
    for name, label in labels.items():
        number = int(accuracy[f"{name}_nonfinite"].sum())
        whose = f"the {label} of" if name == HEADLINE else f"with {label},"
        if number:
            found.append(f"{whose} {number:,} of {total} architectures give logits that are not finite")
    if not found:
        return ""
    text = "; ".join([*found, "images without a finite logit count as wrong."])
    return text[0].upper() + text[1:]


def headline_numbers(results: Results) -> list[HeadlineNumber]:
    """Return the numbers on top of the page: one for each initialisation, and chance."""
    row = results.headline
    numbers = [
        HeadlineNumber(percent(row[f"{name}_top1"]), "%", label, _detail(row, name), is_accent=name == HEADLINE)
        for name, label in results.evaluated.items()
    ]
    classes = f"1 of {results.config.num_classes} classes"
    return [*numbers, HeadlineNumber(percent(results.chance), "%", "chance", classes)]


def _detail(row: pd.Series, initialisation: str) -> str:
    best, error = percent(row[f"{initialisation}_top1_max"]), row[f"{initialisation}_top1_error"]
    return f"best {best}" if pd.isna(error) else f"± {percent(error)}, best {best}"


def report_tables(results: Results, settings: ReportSettings) -> dict[str, Table]:
    """Return the tables by name."""
    return {
        "accuracy": accuracy_table(results.accuracy, results.evaluated),
        "finetuning": finetuning_table(results.finetuning, results.budgets),
        "budgets": budgets_table(results.budgets),
        "training": training_table(results, settings.images_in_words, settings.meta_batch, settings.train),
        "splits": splits_table(results.stored.rows, results.accuracy),
        "published": PAPER_TABLE,
    }


def report_plots(results: Results, settings: TrainSettings) -> dict[str, Plot]:
    """Return the plots by the names of their files, without suffix."""
    architectures, chance = results.architectures, results.chance
    series = accuracy_plots.series_of(results.labels)
    evaluated = [one for one in series if one.name in results.evaluated]
    finetuned = [one for one in series if one.name in set(results.curves["initialisation"])]
    return {
        "accuracy": Plot(
            "Top-1 of every evaluated architecture: a point is one architecture, a box the middle half of a "
            "split, a bar its mean, which is printed on the right.",
            partial(accuracy_plots.accuracy_by_split, architectures, evaluated, chance),
        ),
        "size": Plot(
            "Top-1 against the number of parameters: one hypernetwork predicts the small and the large "
            "networks of all splits.",
            partial(accuracy_plots.accuracy_by_size, architectures, evaluated, chance),
        ),
        "training": _training_plot(results, settings),
        "gradients": _gradients_plot(results.history, settings),
        "time": _time_plot(results),
        "finetuning": Plot(
            "Test top-1 while fine-tuning on few images of other data sets, mean and standard error over "
            f"up to {results.finetuning['runs'].max()} runs, each initialisation with its own best learning rate. "
            "Dashed: chance.",
            partial(
                accuracy_plots.finetuning_curves, results.curves, finetuned, finetuning_chances(results.finetuning)
            ),
        ),
    }


def _training_plot(results: Results, settings: TrainSettings) -> Plot:
    history, kept = results.history, results.training.best_step
    drops = training_plots.learning_rate_drops(history) if settings.schedule.name == "multi_step" else []
    missing = int(history["loss"].isna().sum())
    gaps = f"; {count(missing, 'step')} without a finite loss left out" if missing else ""
    validation = ""
    if kept is not None:
        validation = (
            " Validation is on architectures and images that are not trained on; a ring marks the step whose weights "
            "are kept."
        )
    return Plot(
        f"Loss and top-1 over {results.training.steps:,} steps, on training images, of networks whose parameters were "
        f"predicted in that step{gaps}.{validation}",
        partial(training_plots.training_curves, history, results.chance, drops, kept),
    )


def _gradients_plot(history: pd.DataFrame, settings: TrainSettings) -> Plot:
    unclipped = "" if settings.architecture_clip is not None else "; the latter are not clipped"
    window = training_plots.smoothing_steps(history)
    smooth = f" Curves are medians of {window:,} steps." if window > training_plots.steps_per_row(history) else ""
    return Plot(
        "Norms of gradients before they are clipped: of the whole gradient, at the hypernetwork's weights, and of "
        f"each architecture's own, at its predicted parameters, over those of a step{unclipped}.{smooth}",
        partial(training_plots.gradient_norms, history, settings.clip, settings.architecture_clip),
    )


def _time_plot(results: Results) -> Plot:
    history, number = results.history, results.training.workers
    parts = training_plots.step_parts(history)
    largest = max(parts, key=parts.__getitem__)
    workers = ""
    if number > 1:
        workers = (
            f" The slowest of {number:,} workers takes {history['imbalance'].median():.2f} times as long as their mean "
            "(median over the steps); the others wait for it, which is part of other."
        )
    return Plot(
        f"Where the time of a step goes: its largest part, {parts[largest] / sum(parts.values()):.0%}, is {largest}. "
        "A bar begins where the one above ends. Graphs are not part of it: a thread of their own makes those of the "
        f"next step in the background, in {short_seconds(history['graph_seconds'].mean())}.{workers}",
        partial(training_plots.time_of_a_step, history),
    )


def finetuning_chances(finetuning: pd.DataFrame) -> dict[str, float]:
    """Return the chance level of each data set."""
    return {dataset: 1 / classes for dataset, classes in zip(finetuning["dataset"], finetuning["classes"], strict=True)}
