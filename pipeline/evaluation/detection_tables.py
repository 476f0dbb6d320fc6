"""Contracts of the tables that stage detect writes, and the summary that follows from them."""

from __future__ import annotations

import math
from typing import TypedDict

import pandas as pd
from pandera.typing import DataFrame

from pipeline.contracts import Contract, count, finite, natural, positive, share
from pipeline.evaluation.initialisations import BASELINE

EARLY_SHARE = 1 / 3
"""The share of the epochs at which initialisations are compared beside the end."""


FoundBoxes = tuple[list[list[float]], list[int], list[float]]
"""Boxes, labels and scores of what is found in a scene, as JSON."""


class ShownScene(TypedDict):
    """A scene as JSON: its picture as a PNG in base64, and its objects."""

    png: str
    boxes: list[list[float]]
    labels: list[int]


class ShownDetections(TypedDict):
    """`results/detect/shown.json`: scenes, and what is found in each by backbone and initialisation."""

    classes: list[str]
    scenes: list[ShownScene]
    found: dict[str, dict[str, list[FoundBoxes]]]


class DetectionCurves(Contract):
    """`results/detect/curves.parquet`: a row for each (backbone, initialisation, seed) and epoch.

    `ap` is COCO's average precision on all test scenes, `ap50` that at an overlap of 0.5.
    """

    backbone: str
    initialisation: str
    learning_rate: float = positive()
    rate_is_inside: bool
    seed: int = natural()
    epoch: int = count()
    ap: float = share()
    ap50: float = share()

    class Config:
        unique = ["backbone", "initialisation", "seed", "epoch"]


class DetectionRates(Contract):
    """`results/detect/learning_rates.csv`: a row for each (backbone, initialisation) and learning rate tried."""

    backbone: str
    initialisation: str
    learning_rate: float
    held_out_ap50: float = share()
    is_chosen: bool

    class Config:
        unique = ["backbone", "initialisation", "learning_rate"]


class DetectionSummary(Contract):
    """`results/detect/summary.csv`: a row for each (backbone, initialisation), means over seeds.

    `early_…` is after `early_epoch`, a third of the epochs; errors are standard errors over seeds (missing for one
    seed). `early_difference` is that of `early_ap50` from random initialisation, in pairs of seeds.
    """

    backbone: str
    initialisation: str
    learning_rate: float
    rate_is_inside: bool
    seeds: int = count()
    epochs: int = count()
    early_epoch: int = count()
    early_ap50: float = share()
    early_ap50_error: float = finite(nullable=True)
    early_difference: float = finite(nullable=True)
    early_difference_error: float = finite(nullable=True)
    ap50: float = share()
    ap50_error: float = finite(nullable=True)
    ap: float = share()
    ap_error: float = finite(nullable=True)

    class Config:
        unique = ["backbone", "initialisation"]


def summarise_detection(curves: DataFrame[DetectionCurves]) -> DataFrame[DetectionSummary]:
    """Return a row for each backbone and initialisation, in the order of the table."""
    rows = []
    for (backbone, name), own in curves.groupby(["backbone", "initialisation"], sort=False):
        last = own["epoch"].max()
        early = max(1, round(EARLY_SHARE * last))
        of_baseline = curves[(curves["backbone"] == backbone) & (curves["initialisation"] == BASELINE)]
        begun, ended = _at(own, early), _at(own, last)
        difference = begun["ap50"] - _at(of_baseline, early)["ap50"]
        is_compared = name != BASELINE and len(difference)
        rows.append(
            {
                "backbone": backbone,
                "initialisation": name,
                "learning_rate": own["learning_rate"].iloc[0],
                "rate_is_inside": own["rate_is_inside"].iloc[0],
                "seeds": own["seed"].nunique(),
                "epochs": last,
                "early_epoch": early,
                "early_ap50": begun["ap50"].mean(),
                "early_ap50_error": begun["ap50"].sem(),
                "early_difference": difference.mean() if is_compared else math.nan,
                "early_difference_error": difference.sem() if is_compared else math.nan,
                "ap50": ended["ap50"].mean(),
                "ap50_error": ended["ap50"].sem(),
                "ap": ended["ap"].mean(),
                "ap_error": ended["ap"].sem(),
            }
        )
    return DetectionSummary.validate(pd.DataFrame(rows))


def _at(curves: pd.DataFrame, epoch: int) -> pd.DataFrame:
    """Return the rows of an epoch by seed."""
    return curves[curves["epoch"] == epoch].set_index("seed")


def detection_metrics(summary: DataFrame[DetectionSummary]) -> dict[str, float]:
    """Return the headline figures by the names that MLflow knows them by, such as `resnet18_predicted_ap50`."""
    return {
        f"{row['backbone'].replace('/', '_')}_{row['initialisation']}_{figure}": row[figure]
        for row in summary.to_dict("records")
        for figure in ("early_ap50", "ap50", "ap")
    }
