"""The results of a study: its variants over seeds, compared in pairs with the first variant.

A pair is one architecture, measured with the parameters that two variants predict for it. Its accuracies are means over
the seeds. So a p-value says whether the difference holds for other architectures of the split; the standard errors over
seeds beside it say how much another training run would change a mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd
from pandera.typing import DataFrame

from pipeline.contracts import count, finite, share
from pipeline.evaluation.significance import NO_DIFFERENCE, PairedComparisons, holm, paired_difference
from pipeline.evaluation.tables import ArchitectureScores

OUT_OF_DISTRIBUTION = ("wide", "deep", "dense", "bn_free")
"""The splits whose mean is the row `SHIFTED`: architectures unlike those of training."""

SHIFTED = "out of distribution"


class Cell(NamedTuple):
    """A run of a study."""

    variant: str
    seed: int


class StudyScores(PairedComparisons):
    """`results/compare/study.csv`: a row for each (variant, split), over seeds and architectures.

    The last split is `SHIFTED`, the mean over those of `OUT_OF_DISTRIBUTION`, each split with the same weight; its test
    pools their architectures.
    `top1_error` is the standard error over seeds (missing for one seed). `difference` is that from the first variant in
    pairs of architectures, `difference_error` its standard error over architectures, and `corrected_p_value` that of a
    paired t-test, corrected by Holm over the whole table. The first variant has no difference, and what lacks pairs has
    no test. `steps` is the mean number of steps that the study's time allowed.
    """

    variant: str
    split: str
    seeds: int = count()
    architectures: int = count()
    steps: float
    top1: float = share()
    top1_error: float = finite(nullable=True)

    class Config:
        unique = ["variant", "split"]


def summarise_study(
    scores: Mapping[Cell, DataFrame[ArchitectureScores]], steps: Mapping[Cell, int]
) -> DataFrame[StudyScores]:
    """Return a row for each variant and split, and for the mean of the splits out of distribution.

    Args:
        scores: of each run, the first one's variant being that which the others are compared with.
        steps: of training, of each run.
    """
    parts = [own.assign(variant=cell.variant, seed=cell.seed) for cell, own in scores.items()]
    table = pd.concat(parts, ignore_index=True)[["variant", "seed", "split", "index", "top1"]]
    shifted = table[table["split"].isin(OUT_OF_DISTRIBUTION)]
    mean_steps = pd.Series({cell: count for cell, count in steps.items()}).groupby(level=0).mean()
    splits = {str(split): own for split, own in table.groupby("split", sort=False)}
    if len(shifted):
        splits[SHIFTED] = shifted
    reference = next(iter(scores)).variant
    rows = []
    for variant in dict.fromkeys(cell.variant for cell in scores):
        for split, own in splits.items():
            rows.append(
                {
                    "variant": variant,
                    "split": split,
                    "steps": float(mean_steps[variant]),
                    **_row(own, variant, reference),
                }
            )
    summary = pd.DataFrame(rows)
    summary["corrected_p_value"] = holm(summary["p_value"].to_numpy(dtype=float))
    return StudyScores.validate(summary)


def _row(scores: pd.DataFrame, variant: str, reference: str) -> dict[str, float]:
    """Return the figures of a variant on one split, or on several that have the same weight."""
    own = scores[scores["variant"] == variant]
    of_seeds = own.groupby(["seed", "split"])["top1"].mean().groupby("seed").mean()
    by_architecture = scores.groupby(["variant", "split", "index"])["top1"].mean()
    mean = by_architecture[variant]
    row = {
        "seeds": len(of_seeds),
        "architectures": len(mean),
        "top1": of_seeds.mean(),
        "top1_error": of_seeds.sem(),
    }
    if variant == reference:
        return row | NO_DIFFERENCE
    differences = paired_difference(mean, by_architecture[reference])
    mean_of_splits = (mean - by_architecture[reference]).groupby("split").mean().mean()
    return row | differences | {"difference": mean_of_splits}
