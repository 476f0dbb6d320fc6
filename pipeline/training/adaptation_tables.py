"""Contracts of the tables that stage adapt writes, and the summary that follows from them.

A pair is one network, whose parameters come from two starts. Its accuracies are means over the seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
from pandera.typing import DataFrame

from pipeline.contracts import Contract, count, finite, natural, positive, share
from pipeline.evaluation.significance import NO_DIFFERENCE, PairedComparisons, holm, paired_difference

ADAPTED, SCRATCH, ALONE = "adapted", "scratch", "alone"
"""Where parameters come from: the adapted hypernetwork; one that learned from the same images alone; SGD on each
network by itself, from parameters that the hypernetwork before adaptation predicts."""

COMPETITION = ["dataset", "images_per_class", "start"]


class AdaptationScores(Contract):
    """`results/adapt/networks.parquet`: a row for each (dataset, images_per_class, start, seed, architecture).

    `architecture` is an index in split test, `test_top1` its accuracy on all test images.
    """

    dataset: str
    images_per_class: int = count()
    start: str
    learning_rate: float = positive()
    rate_is_inside: bool
    seed: int = natural()
    architecture: int = natural()
    test_top1: float = share()

    class Config:
        unique = ["dataset", "images_per_class", "start", "seed", "architecture"]


class AdaptationRates(Contract):
    """`results/adapt/learning_rates.csv`: a row for each (dataset, images_per_class, start) and learning rate tried."""

    dataset: str
    images_per_class: int
    start: str
    learning_rate: float
    held_out_top1: float = share()
    is_chosen: bool

    class Config:
        unique = ["dataset", "images_per_class", "start", "learning_rate"]


class AdaptationSummary(PairedComparisons):
    """`results/adapt/summary.csv`: a row for each (dataset, images_per_class, start), over seeds and networks.

    `is_all` says that all images were trained on that are not held out, `images_per_class` of each class in the mean.
    `test_top1_error` is the standard error over seeds (missing for one seed). `difference` is that from `ADAPTED` in
    pairs of networks, and `corrected_p_value` that of a paired t-test, corrected by Holm over the table.
    `network_images` counts the images that networks were trained on, of all networks together: the cost, on any
    machine. `seconds` is the mean time of a run (missing for `ALONE`, whose networks have tasks of their own).
    """

    dataset: str
    images_per_class: int = count()
    is_all: bool
    start: str
    classes: int = count()
    learning_rate: float
    rate_is_inside: bool
    seeds: int = count()
    architectures: int = count()
    test_top1: float = share()
    test_top1_error: float = finite(nullable=True)
    network_images: int = count()
    seconds: float = finite(nullable=True)

    class Config:
        unique = ["dataset", "images_per_class", "start"]


def summarise_adaptation(
    scores: DataFrame[AdaptationScores],
    classes: Mapping[str, int],
    all_images: Mapping[str, int | None],
    network_images: Mapping[str, int],
    seconds: Mapping[Any, float],
) -> DataFrame[AdaptationSummary]:
    """Return a row for each data set, number of images and start, in the order of the table.

    Args:
        scores: a row for each start, seed and network.
        classes: the number of classes of each data set.
        all_images: the number of images per class that stands for all, by data set.
        network_images: the cost of each start.
        seconds: the mean time of a run, by data set, number of images and start.
    """
    rows = []
    for (dataset, number), on_same_images in scores.groupby(["dataset", "images_per_class"], sort=False):
        means = on_same_images.groupby(["start", "architecture"], sort=False)["test_top1"].mean()
        for start, own in on_same_images.groupby("start", sort=False):
            over_seeds = own.groupby("seed")["test_top1"].mean()
            compared = NO_DIFFERENCE if start == ADAPTED else paired_difference(means[start], means[ADAPTED])
            rows.append(
                {
                    "dataset": dataset,
                    "images_per_class": number,
                    "is_all": all_images.get(str(dataset)) == number,
                    "start": start,
                    "classes": classes[str(dataset)],
                    "learning_rate": own["learning_rate"].iloc[0],
                    "rate_is_inside": own["rate_is_inside"].iloc[0],
                    "seeds": len(over_seeds),
                    "architectures": own["architecture"].nunique(),
                    "test_top1": over_seeds.mean(),
                    "test_top1_error": over_seeds.sem(),
                    "network_images": network_images[str(start)],
                    "seconds": seconds.get((str(dataset), int(str(number)), str(start)), math.nan),
                    **compared,
                }
            )
    table = pd.DataFrame(rows)
    table["corrected_p_value"] = holm(table["p_value"].to_numpy(dtype=float))
    return AdaptationSummary.validate(table)


def adapted_accuracies(summary: DataFrame[AdaptationSummary]) -> dict[str, float]:
    """Return the mean accuracies by the names that MLflow knows them by, such as `digits_10_adapted_top1`."""
    accuracies = summary.set_index(COMPETITION)["test_top1"].to_dict()
    return {"_".join(map(str, competition)) + "_top1": top1 for competition, top1 in accuracies.items()}
