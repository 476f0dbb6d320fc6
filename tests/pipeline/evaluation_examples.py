"""Small architectures, hypernetworks and images for the tests of the evaluation."""

from __future__ import annotations

from pathlib import Path

import torch

from ghn import GHN, Architecture, Genotype, GHNConfig
from pipeline.evaluation.networks import Candidate, candidates_of
from pipeline.images.dataset import Images
from pipeline.images.load import load_cached_images
from pipeline.params import EvaluateSettings

SETTINGS = EvaluateSettings(batch=64, width=8, head_width=16)


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


def make_ghn(seed: int, num_classes: int = 10) -> GHN:
    torch.manual_seed(seed)
    return GHN(GHNConfig(num_classes=num_classes, image_size=8, hidden=8, kernel=5)).eval()


def digits(cache: Path) -> Images:
    return load_cached_images("digits", 8, cache)


def example_candidates() -> list[Candidate]:
    return candidates_of("test", ARCHITECTURES, SETTINGS, 8)
