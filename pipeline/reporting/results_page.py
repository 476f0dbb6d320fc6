"""The page about all results, with the tables and plots that the README shows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from pipeline.console import percent
from pipeline.evaluation.initialisations import BASELINE, HEADLINE
from pipeline.evaluation.study_summary import SHIFTED
from pipeline.params import (
    AdaptSettings,
    ConditionSettings,
    CopiesSettings,
    DetectSettings,
    EvaluateSettings,
    FinetuneSettings,
    GenerateSettings,
    HypernetworkSettings,
    ImageSettings,
    Section,
    StudySettings,
    TrainSettings,
    flat_settings,
)
from pipeline.reporting import accuracy_plots, comparison_plots, property_plots, training_plots
from pipeline.reporting.adaptation_section import adaptation_accuracies, adaptation_findings, adaptation_table
from pipeline.reporting.comparison_tables import (
    copies_sentence,
    correlations_table,
    distance_findings,
    initialisations_table,
    properties_findings,
    properties_table,
    worth_findings,
    worth_table,
)
from pipeline.reporting.conditioning_section import conditioning_findings, conditioning_table
from pipeline.reporting.detection_section import (
    SHOWN_SCORE,
    detected_scenes,
    detection_curves,
    detection_findings,
    detection_table,
)
from pipeline.reporting.extremes import ExtremesGallery
from pipeline.reporting.finetuning_tables import budgets_table, finetuning_findings, finetuning_table
from pipeline.reporting.leaderboard import LeaderboardRow
from pipeline.reporting.numbers import count, short_seconds
from pipeline.reporting.page import (
    LARGEST_GRAPH,
    HeadlineNumber,
    PageFigure,
    Plot,
    Recipe,
    Table,
    render_page,
    write_figures,
)
from pipeline.reporting.read_results import Results
from pipeline.reporting.results_tables import (
    PAPER_TABLE,
    accuracy_table,
    extremes,
    name_of,
    speed_findings,
    speed_table,
    splits_table,
    training_table,
)
from pipeline.reporting.seeds_section import seeds_section
from pipeline.reporting.study_tables import study_changes, study_findings, study_table
from pipeline.reporting.trait_tables import traits_findings, traits_table
from pipeline.storage.files import write_bytes

MARKDOWN_TABLES = (
    *("accuracy", "adaptation", "finetuning", "budgets", "worth", "initialisations", "properties", "study", "traits"),
    *("conditioning", "detection", "training"),
)
"""Tables that are also written as Markdown files."""


STUDY_SPLITS = ("test", SHIFTED)
"""The splits of the study that have a panel in its figure."""


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
    copies: CopiesSettings
    finetune: FinetuneSettings
    adapt: AdaptSettings
    condition: ConditionSettings
    detect: DetectSettings
    study: StudySettings

    @property
    def images_in_words(self) -> str:
        """The data set, and the size of its images."""
        return f"{self.dataset} at {self.images.size}×{self.images.size}"


@dataclass(frozen=True)
class PageParts:
    """What a page shows that is not in the results of the stages.

    Attributes:
        origin: where the page comes from, by name.
        recipe: how it is made again.
        gallery: pictures of the best and of the worst architectures.
        seeds: the row of the leaderboard that is shown, or None.
    """

    origin: Mapping[str, str]
    recipe: Recipe
    gallery: ExtremesGallery
    seeds: LeaderboardRow | None = None


def write_report(results: Results, settings: ReportSettings, parts: PageParts, folder: Path) -> Path:
    """Write plots, Markdown tables and the page to `folder`, and return the path of the page.

    Args:
        results: the checked results.
        settings: those that the results depend on.
        parts: what else the page shows.
        folder: the files go there.
    """
    tables = report_tables(results, settings)
    for name in MARKDOWN_TABLES:
        write_bytes(folder / f"{name}.md", tables[name].markdown().encode())
    figures = write_figures(report_plots(results, settings.train), folder)
    write_bytes(folder / "index.html", render_report(results, settings, parts, tables, figures).encode())
    return folder / "index.html"


def render_report(
    results: Results,
    settings: ReportSettings,
    parts: PageParts,
    tables: Mapping[str, Table],
    figures: Mapping[str, PageFigure],
) -> str:
    """Return the page with the given tables and figures."""
    accuracy, architectures, budgets, seeds = results.accuracy, results.architectures, results.budgets, parts.seeds
    return render_page(
        "report.html.jinja",
        title=f"{name_of(results.config)} on {settings.dataset}",
        headline=headline(results),
        numbers=headline_numbers(results),
        warning=nonfinite_warning(accuracy, results.evaluated),
        figures=figures,
        tables=tables,
        worth_findings=worth_findings(results.worth),
        copies_sentence=copies_sentence(results.initialisations),
        study_findings=study_findings(results.study),
        study_changes=study_changes(settings.study).items(),
        study_minutes=f"{settings.study.minutes:g}",
        distance_findings=distance_findings(results.correlations, HEADLINE),
        property_findings=properties_findings(results.properties),
        trait_findings=traits_findings(results.traits),
        gallery=parts.gallery,
        largest_graph=LARGEST_GRAPH,
        extremes=extremes(architectures, results.evaluated),
        speed_findings=speed_findings(results, settings.meta_batch, settings.train),
        findings=finetuning_findings(budgets, results.labels),
        adaptation_findings=adaptation_findings(results.adaptation),
        conditioning_findings=conditioning_findings(results.conditioning),
        detection_findings=detection_findings(results.detection, results.detection_labels),
        seeds=seeds and seeds_section(seeds, accuracy, architectures, budgets),
        commands=parts.recipe.commands,
        is_clean=parts.recipe.is_clean,
        origin=parts.origin.items(),
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
        "adaptation": adaptation_table(results.adaptation),
        "conditioning": conditioning_table(results.conditioning),
        "detection": detection_table(results.detection, results.detection_labels),
        "worth": worth_table(results.worth),
        "initialisations": initialisations_table(results.initialisations, results.labels),
        "distances": correlations_table(results.correlations, HEADLINE),
        "properties": properties_table(results.properties),
        "study": study_table(results.study),
        "traits": traits_table(results.traits),
        "speed": speed_table(results.architectures),
        "training": training_table(results, settings.images_in_words, settings.meta_batch, settings.train),
        "splits": splits_table(results.stored.rows, results.accuracy),
        "published": PAPER_TABLE,
    }


def report_plots(results: Results, settings: TrainSettings) -> dict[str, Plot]:
    """Return the plots by the names of their files, without suffix."""
    return {
        **_accuracy_plots(results),
        **_comparison_plots(results),
        "training": _training_plot(results, settings),
        "gradients": _gradients_plot(results.history, settings),
        "time": _time_plot(results),
        "finetuning": _finetuning_plot(results),
        "adaptation": Plot(
            "Top-1 of networks of split test that no training has seen, over the images per class that were learned "
            "from, mean and standard error over seeds. Dashed: chance.",
            partial(adaptation_accuracies, results.adaptation),
        ),
        "detection": Plot(
            "AP50 on test scenes after each epoch, mean and standard error over seeds, each initialisation of the "
            "backbone with its own best learning rate.",
            partial(detection_curves, results.detection_curves, results.detection_labels),
        ),
        **_scenes_plot(results),
    }


def _scenes_plot(results: Results) -> dict[str, Plot]:
    """Return the figure of detections in scenes; none where all detectors have diverged."""
    shown = results.detection_scenes
    backbone = next(iter(shown["found"]), None)
    if backbone is None:
        return {}
    return {
        "scenes": Plot(
            f"Test scenes with what detectors on {backbone} find after training, above a score of "
            f"{SHOWN_SCORE:g}: a box in green has the right class and place.",
            partial(detected_scenes, shown, backbone, results.detection_labels),
        )
    }


def _accuracy_plots(results: Results) -> dict[str, Plot]:
    architectures, chance = results.architectures, results.chance
    series = accuracy_plots.series_of(results.labels)
    evaluated = [one for one in series if one.name in results.evaluated]
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
    }


def _comparison_plots(results: Results) -> dict[str, Plot]:
    """Return the plots about training by SGD, the study, distances, properties and embeddings."""
    study_splits = [split for split in STUDY_SPLITS if split in set(results.study["split"])]
    figures = {
        "epochs": Plot(
            "Top-1 of the architectures that were also trained by SGD, over the epochs of training, mean and standard "
            "error. Each number of epochs is a run of its own, with its own learning rate.",
            partial(comparison_plots.accuracy_over_epochs, results.initialisations, BASELINE, HEADLINE, results.chance),
        ),
        "study": Plot(
            "Top-1 of each variant, mean and standard error over seeds; dashed: the first variant.",
            partial(comparison_plots.study_accuracies, results.study, study_splits),
        ),
        "distance": Plot(
            "Top-1 with predicted parameters against the distance to the most similar training architecture: a "
            "hypernetwork that remembers would be better near them.",
            partial(comparison_plots.accuracy_by_distance, results.distances, results.chance),
        ),
        "embeddings": Plot(
            "Mean node embeddings of all evaluated networks in two dimensions. Colours are quarters of the networks by "
            "top-1 with predicted parameters.",
            partial(property_plots.embedding_map, results.networks),
        ),
    }
    known = results.properties.dropna(subset="tau")
    if len(known):
        figures["properties"] = Plot(
            "How well properties of networks of split test are ranked, by embeddings and by two baselines, with 95% "
            "bootstrap intervals.",
            partial(property_plots.property_taus, known),
        )
    return figures


def _finetuning_plot(results: Results) -> Plot:
    finetuned = [
        one for one in accuracy_plots.series_of(results.labels) if one.name in set(results.curves["initialisation"])
    ]
    return Plot(
        "Test top-1 while fine-tuning on few images of other data sets, mean and standard error over "
        f"up to {results.finetuning['runs'].max()} runs, each initialisation with its own best learning rate. "
        "Dashed: chance.",
        partial(accuracy_plots.finetuning_curves, results.curves, finetuned, finetuning_chances(results.finetuning)),
    )


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
