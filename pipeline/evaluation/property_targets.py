"""The properties of networks that are predicted: what stage sgd has measured, and their time on this machine."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from pandera.typing import DataFrame

from pipeline.errors import UserError
from pipeline.evaluation.inference_time import inference_seconds
from pipeline.evaluation.initialisations import HEADLINE
from pipeline.evaluation.networks import Candidate
from pipeline.evaluation.property_features import keys_of
from pipeline.evaluation.tables import ArchitectureScores, SgdScores

NEVER = 2.0
"""Convergence time of a network that does not converge, in trainings: as published, later than all that do."""

KEYS = ["split", "index"]


def sgd_targets(scores: DataFrame[SgdScores]) -> pd.DataFrame:
    """Return a row for each trained network, by split and index.

    Columns: `top1_after_<epochs>` for each budget; of the largest budget `noisy_top1`, accuracy on noisy images, and
    `convergence_time`, the share of the steps after which training has converged, 2 if it has not.
    """
    by_budget = scores.pivot(index=KEYS, columns="epochs", values="top1").sort_index(axis=1)
    targets = by_budget.add_prefix("top1_after_").rename_axis(columns=None)
    largest = scores[scores["epochs"] == scores["epochs"].max()].set_index(KEYS)
    converged = largest["convergence_steps"].astype("Float64") / largest["steps"]
    return targets.assign(noisy_top1=largest["noisy_top1"], convergence_time=converged.fillna(NEVER).astype(float))


def time_targets(
    candidates: Sequence[Candidate], image_size: int, classes: int, batch: int, repeats: int
) -> pd.DataFrame:
    """Return `cpu_seconds` per batch of each network, by split and index, and `gpu_seconds` where there is a GPU."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    networks = [candidate.network for candidate in candidates]
    seconds = {
        f"{'gpu' if device == 'cuda' else device}_seconds": inference_seconds(
            networks, image_size, classes, batch, repeats, torch.device(device)
        )
        for device in devices
    }
    return pd.DataFrame(seconds, index=keys_of([(candidate.split, candidate.index) for candidate in candidates]))


def other_properties(scores: DataFrame[SgdScores], evaluated: DataFrame[ArchitectureScores]) -> pd.DataFrame:
    """Return what is no target but is compared with them: `predicted_top1` and `parameters`, by split and index.

    `predicted_top1` is the accuracy with predicted parameters, missing where stage evaluate has not measured it.
    """
    predicted = evaluated[evaluated["initialisation"] == HEADLINE].set_index(KEYS)["top1"]
    parameters = scores.drop_duplicates(KEYS).set_index(KEYS)["parameters"]
    return pd.DataFrame({"parameters": parameters}).join(predicted.rename("predicted_top1"), how="left")


def trained_candidates(scores: DataFrame[SgdScores], stored: Sequence[Candidate], place: object) -> list[Candidate]:
    """Return those of the stored networks that a table of stage sgd is of, each once, in the table's order.

    Raises:
        UserError: the table is of a network that is not stored; the message names it and `place`, the table's file.
    """
    by_key = {candidate.key: candidate for candidate in stored}
    keys = list(zip(scores["split"], scores["index"], scores["identity"], strict=True))
    for split, index, identity in keys:
        if (split, index, identity) not in by_key:
            raise UserError(
                f"{place} has network {identity} as {split}/{index}, stage generate has another one there\n"
                "`dvc repro` trains those that are stored"
            )
    return [by_key[key] for key in dict.fromkeys(keys)]
