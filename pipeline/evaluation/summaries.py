"""Summaries of the measured tables, for the stages and for the report."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from pandera.typing import DataFrame

from pipeline.evaluation.initialisations import BASELINE, HEADLINE
from pipeline.evaluation.tables import ArchitectureScores, FinetuningCurves, FinetuningSummary, SplitSummary


def summarise_architectures(scores: DataFrame[ArchitectureScores]) -> DataFrame[SplitSummary]:
    """Return a row for each split: mean, standard error and maximum over its architectures, for each initialisation.

    Splits and initialisations keep their order. A split of one architecture has no standard error.
    """
    columns: dict[str, pd.Series] = {}
    nonfinite: dict[str, pd.Series] = {}
    for initialisation in scores["initialisation"].unique():
        own = scores[scores["initialisation"] == initialisation]
        splits = own.groupby("split", sort=False)
        columns |= {
            f"{initialisation}_top1": splits["top1"].mean(),
            f"{initialisation}_top1_error": splits["top1"].sem(),
            f"{initialisation}_top1_max": splits["top1"].max(),
            f"{initialisation}_top5": splits["top5"].mean(),
        }
        nonfinite[initialisation] = own["loss"].isna().groupby(own["split"]).sum()
    architectures = scores[scores["initialisation"] == HEADLINE].groupby("split").size()
    columns = {"architectures": architectures, **columns, "nonfinite": nonfinite[HEADLINE]}
    columns |= {f"{initialisation}_nonfinite": counts for initialisation, counts in nonfinite.items()}
    summary = pd.DataFrame(columns).loc[scores["split"].unique()]  # pandas has sorted the splits
    return SplitSummary.validate(summary.rename_axis("split").reset_index())


def initialisations_of(summary: DataFrame[SplitSummary]) -> list[str]:
    """Return the initialisations that a summary has columns of, in their order."""
    return [column.removesuffix("_top1") for column in summary if column.endswith("_top1")]


def summarise_curves(curves: DataFrame[FinetuningCurves], classes: Mapping[str, int]) -> DataFrame[FinetuningSummary]:
    """Return a row for each (dataset, initialisation), over all architectures and seeds.

    Args:
        classes: the number of classes of each data set.
    """
    rows = []
    for (dataset, initialisation), own in curves.groupby(["dataset", "initialisation"], sort=False):
        baseline = mean_curve(curves[(curves["dataset"] == dataset) & (curves["initialisation"] == BASELINE)])
        reached = mean_curve(own)[mean_curve(own) >= baseline.iloc[-1]]
        final = own[own["step"] == own["step"].max()]["test_top1"]
        rows.append(
            {
                "dataset": dataset,
                "initialisation": initialisation,
                "classes": classes[dataset],
                "learning_rate": own["learning_rate"].iloc[0],
                "runs": len(final),
                "test_top1": final.mean(),
                "test_top1_error": final.sem(),
                "steps_to_target": reached.index[0] if len(reached) else None,
                "target_top1": baseline.iloc[-1],
            }
        )
    return FinetuningSummary.validate(pd.DataFrame(rows))


def mean_curve(curves: pd.DataFrame) -> pd.Series:
    """Return the mean test accuracy over runs, by step in increasing order."""
    return curves.groupby("step")["test_top1"].mean()
