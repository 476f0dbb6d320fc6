"""Two training steps of a small hypernetwork, whose parts a test has registered."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import torch

from ghn import GHN, Architecture, Genotype, GHNConfig
from ghn.training.meta_batch import SampledArchitecture
from ghn.training.step import MicroBatch, StepSettings, Stopwatch, accumulate_micro_batch

CLASSES, SIZE = 3, 8
CONFIG = {"num_classes": CLASSES, "image_size": SIZE, "hidden": 8, "kernel": 3}


def network(operation: str) -> Architecture:
    """Return an architecture of three cells that apply one operation to the cell before."""
    cell = ((operation, 1), ("none", 0))
    genotype = Genotype(normal=cell, normal_concat=(2,), reduce=cell, reduce_concat=(2,))
    return Architecture(genotype, n_cells=3, C=8, fc_dim=16)


def assert_trains_two_steps_saves_and_loads(config: GHNConfig, folder: Path) -> None:
    """Assert that losses are finite, that each part's weights change, and that a checkpoint predicts the same."""
    torch.manual_seed(0)
    ghn = GHN(config)
    before = copy.deepcopy(ghn.state_dict())
    optimizer = torch.optim.Adam(ghn.parameters(), lr=0.01)
    networks = [network("conv_3x3"), network("sep_conv_5x5")]
    images_BCSS, labels_B = torch.randn(6, 3, SIZE, SIZE), torch.arange(6) % CLASSES
    for step in range(2):
        sampled = {i: SampledArchitecture(i, a, a.program(SIZE, CLASSES)) for i, a in enumerate(networks)}
        micro_batch = MicroBatch.of(ghn, sampled, own=[0, 1])
        optimizer.zero_grad()
        watch = Stopwatch(torch.device("cpu"))
        scores = accumulate_micro_batch(ghn, micro_batch, images_BCSS, labels_B, step, StepSettings(seed=0), watch)
        assert len(scores) == 2 and all(math.isfinite(score.loss) for score in scores.values())
        optimizer.step()
    for part in ("encoder", "gnn", "decoder.weights", "decoder.vectors"):
        weights = {name: weight for name, weight in ghn.state_dict().items() if name.startswith(f"{part}.")}
        assert weights and not all(torch.equal(weight, before[name]) for name, weight in weights.items()), part

    ghn.save(folder)
    again = GHN.from_pretrained(folder)
    assert again.config == config
    with torch.no_grad():
        for one, other in zip(*(g.eval().predict_parameters(networks) for g in (ghn, again)), strict=True):
            assert all(torch.equal(one[name], other[name]) for name in one)
