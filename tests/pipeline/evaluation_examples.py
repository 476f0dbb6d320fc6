"""Small architectures, hypernetworks and images for the tests of the evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ghn import GHN, Architecture, Genotype, GHNConfig
from pipeline.architectures.shards import row, table_of, write_shard
from pipeline.architectures.store import write_manifest
from pipeline.evaluation.networks import Candidate, candidates_of
from pipeline.evaluation.tables import SgdScores
from pipeline.images.dataset import Images
from pipeline.images.load import load_cached_images
from pipeline.params import EvaluateSettings
from pipeline.results import MANIFEST

SETTINGS = EvaluateSettings(batch=64, images=None, running_statistics=0, width=8, head_width=16, similarity=10)


def architecture(*operations: str, n_cells: int = 2, **fields: object) -> Architecture:
    edges = tuple((operation, source) for source, operation in enumerate(operations))
    return Architecture(Genotype(edges, (2,), edges, (2,)), n_cells=n_cells, **fields)


ARCHITECTURES = [
    architecture("conv_3x3", "skip_connect"),
    architecture("sep_conv_3x3", "max_pool_3x3", fc_layers=2),
    architecture("conv_1x1", "cse", stem_type=1),
    architecture("msa", "skip_connect"),
    architecture("conv_5x5", "avg_pool_3x3", norm=None, n_cells=3),
    architecture("dil_conv_3x3", "conv_3x3", C_mult=2, n_cells=3),
]


def store_splits(splits: Mapping[str, Sequence[Architecture]]) -> None:
    """Write architectures to the storage of the working directory, a shard for each split, and their manifest."""
    shards = {
        split: write_shard(f"storage/{split}/0.parquet", table_of([row(*item) for item in enumerate(architectures)]))
        for split, architectures in splits.items()
    }
    write_manifest(MANIFEST, {split: (split, [shard]) for split, shard in shards.items()})


def make_ghn(seed: int, num_classes: int = 10) -> GHN:
    torch.manual_seed(seed)
    return GHN(GHNConfig(num_classes=num_classes, image_size=8, hidden=8, kernel=5)).eval()


def digits(cache: Path) -> Images:
    return load_cached_images("digits", 8, cache)


def example_candidates() -> list[Candidate]:
    return candidates_of("test", ARCHITECTURES, SETTINGS, 8)


def sgd_scores(candidates: Sequence[Candidate], budgets: Sequence[int] = (1, 3), seed: int = 0) -> pd.DataFrame:
    """Return a made-up table of stage sgd: a row for each network and budget. Every fourth network never converges."""
    rng = np.random.default_rng(seed)
    rows = []
    for position, candidate in enumerate(candidates):
        program = candidate.network.program(8, 10)
        for epochs in budgets:
            top1 = rng.uniform(0.2, 0.9)
            rows.append(
                {
                    "split": candidate.split,
                    "index": candidate.index,
                    "name": candidate.name,
                    "identity": candidate.network_hash,
                    "parameters": program.num_parameters,
                    "nodes": len(program.graph.nodes),
                    "epochs": epochs,
                    "learning_rate": 0.1,
                    "rate_is_inside": True,
                    "top1": top1,
                    "top5": 0.95,
                    "loss": 1 - top1,
                    "running_top1": top1,
                    "noisy_top1": top1 * rng.uniform(0.5, 1),
                    "convergence_steps": None if position % 4 == 3 else int(rng.integers(1, 10 * epochs)),
                    "steps": 10 * epochs,
                    "train_seconds": 1.0,
                    "initialise_seconds": 0.5,
                    "seconds": 1.5,
                }
            )
    return SgdScores.validate(pd.DataFrame(rows))
