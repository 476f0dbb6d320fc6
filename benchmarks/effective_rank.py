"""The effective rank of the weights that hypernetworks predict, beside that of random ones.

    python benchmarks/effective_rank.py [results/study/*/checkpoint] [--architectures 10]

Reads checkpoints, by default that of stage train, and predicts the first architectures of split test at the width of
the evaluation, and those of split wide. A weight (out, in · kernel) with singular values s has the effective rank
exp(H), where H is the entropy of s / Σs in nats (Roy and Vetterli, EUSIPCO 2007); the share is that of the highest rank
it could have. Counted are weights of at least 8 rows and columns. The mean is over weights of a network, then over
networks; its error is that over networks. Random are PyTorch's default initialisation.

The last line is JSON: for each checkpoint and for `random`, by split, `share` and `share_error`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from frame import RecordName, finish, introduce
from torch import Tensor

from ghn import GHN
from ghn.design_spaces import DESIGN_SPACES
from ghn.networks.network import Network
from pipeline.console import percent, print_table
from pipeline.evaluation.networks import at_width
from pipeline.params import load_params

SMALLEST = 8
"""Rows and columns of the weights that count, at least: a small matrix has nearly full rank by chance."""

SPLITS = ("test", "wide")

Parameters = Callable[[Network], Mapping[str, Tensor]]


def effective_rank(weight: Tensor) -> float:
    """Return the effective rank of a weight (out, …), viewed as a matrix; 0 of one that is zero."""
    values = torch.linalg.svdvals(weight.flatten(1).double())
    if not values.sum() > 0:
        return 0.0
    shares = values / values.sum()
    return math.exp(float(torch.special.entr(shares).sum()))


def mean_share(parameters: Mapping[str, Tensor]) -> float:
    """Return the mean share of the highest rank that a network's weights have, as effective rank."""
    weights = [weight for weight in parameters.values() if weight.ndim > 1 and min(weight.flatten(1).shape) >= SMALLEST]
    return float(np.mean([effective_rank(weight) / min(weight.flatten(1).shape) for weight in weights]))


@torch.no_grad()
def shares(networks: Mapping[str, list[Network]], parameters: Parameters) -> dict[str, dict[str, float]]:
    """Return the mean over the networks of each split, and its standard error."""
    found = {split: [mean_share(parameters(network)) for network in own] for split, own in networks.items()}
    return {
        split: {
            "share": round(float(np.mean(own)), 4),
            "share_error": round(float(np.std(own, ddof=1) / math.sqrt(len(own))), 4),
        }
        for split, own in found.items()
    }


def main(
    checkpoints: Annotated[list[Path] | None, typer.Argument(help="Folders; by default that of stage train.")] = None,
    architectures: Annotated[int, typer.Option(help="Of each split, 2 or more.", min=2)] = 10,
    record: RecordName = None,
) -> None:
    """Measure the effective rank of predicted weights."""
    params = load_params()
    space = DESIGN_SPACES[params.generate.space]
    sampled = [space.sample(params.seed, "test", index) for index in range(architectures)]
    size = params.images.size
    networks = {
        split: [at_width(network, params.evaluate, size, wide=split == "wide") for network in sampled]
        for split in SPLITS
    }
    found: dict[str, dict[str, dict[str, float]]] = {}
    for folder in checkpoints or [Path("results/train/checkpoint")]:
        ghn = GHN.from_pretrained(folder)
        found[str(folder)] = shares(networks, lambda network, ghn=ghn: ghn.predict_parameters([network], size)[0])
        classes = ghn.config.num_classes  # the same ones for all: those of the data set
    torch.manual_seed(params.seed)
    found["random"] = shares(networks, lambda network: dict(network.module(size, classes).named_parameters()))
    introduce(f"{architectures} architectures of each split")
    rows = [
        {"parameters": name} | {split: percent(own[split]["share"], own[split]["share_error"]) for split in SPLITS}
        for name, own in found.items()
    ]
    print_table("Effective rank of weights, in % of the highest possible", rows)
    finish(found, record)


if __name__ == "__main__":
    typer.run(main)
