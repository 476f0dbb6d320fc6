"""Contracts of the tables that stage condition writes, and the summary that follows from them."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from pandera.typing import DataFrame

from pipeline.contracts import Contract, count, finite, natural, share

TOGETHER, SINGLE = "together", "single"
"""A hypernetwork that learns from all data sets, or from one."""


class ConditioningScores(Contract):
    """`results/condition/networks.parquet`: a row for each (dataset, hypernetwork, seed, architecture).

    `is_learned` says whether the hypernetwork has learned from the data set; else it has only statistics of a few
    images. `architecture` is an index in split test, `test_top1` its accuracy on all test images.
    """

    dataset: str
    hypernetwork: str
    is_learned: bool
    seed: int = natural()
    architecture: int = natural()
    test_top1: float = share()

    class Config:
        unique = ["dataset", "hypernetwork", "seed", "architecture"]


class ConditioningSummary(Contract):
    """`results/condition/summary.csv`: a row for each data set, means over networks and seeds.

    `together_top1` is that of the hypernetwork for all data sets, `single_top1` that of one for this data set alone
    (missing for one that was not learned). Errors are standard errors over seeds (missing for one seed).
    """

    dataset: str
    classes: int = count()
    is_learned: bool
    seeds: int = count()
    together_top1: float = share()
    together_top1_error: float = finite(nullable=True)
    single_top1: float = share(nullable=True)
    single_top1_error: float = finite(nullable=True)

    class Config:
        unique = ["dataset"]


def summarise_conditioning(
    scores: DataFrame[ConditioningScores], classes: Mapping[str, int]
) -> DataFrame[ConditioningSummary]:
    """Return a row for each data set, those that were learned first.

    Args:
        scores: a row for each hypernetwork, data set, seed and network.
        classes: the number of classes of each data set.
    """
    rows = []
    for dataset, own in scores.groupby("dataset", sort=False):
        over_seeds = own.groupby(["hypernetwork", "seed"])["test_top1"].mean()
        together = over_seeds[TOGETHER]
        single = over_seeds.get(SINGLE, pd.Series(dtype=float))
        rows.append(
            {
                "dataset": dataset,
                "classes": classes[str(dataset)],
                "is_learned": bool(own["is_learned"].iloc[0]),
                "seeds": len(together),
                "together_top1": together.mean(),
                "together_top1_error": together.sem(),
                "single_top1": single.mean(),
                "single_top1_error": single.sem(),
            }
        )
    table = pd.DataFrame(rows).sort_values("is_learned", ascending=False, kind="stable", ignore_index=True)
    return ConditioningSummary.validate(table)


def conditioned_accuracies(summary: DataFrame[ConditioningSummary]) -> dict[str, float]:
    """Return the mean accuracies by the names that MLflow knows them by, such as `digits_together_top1`."""
    return {
        f"{row['dataset']}_{name}": row[name]
        for row in summary.to_dict("records")
        for name in ("together_top1", "single_top1")
        if not pd.isna(row[name])
    }
