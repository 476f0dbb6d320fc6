"""Which architectures a step holds: a function of (seed, step) alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ghn.deepnets1m.architecture import Architecture
from ghn.deepnets1m.sampling import training_widths

ARCHITECTURE_STREAM = 101
"""What random numbers are for: part of the key, so that no two uses share a stream."""


@dataclass(frozen=True)
class TrainingSet:
    """What drawing a meta-batch needs to know of the training architectures: arrays (count,) and a reader."""

    nodes: np.ndarray
    parameters: np.ndarray
    read: Callable[[int], Architecture]


@dataclass(frozen=True)
class SampledArchitecture:
    """One architecture of a meta-batch, with its training widths; `index` is its place in the training set."""

    index: int
    architecture: Architecture


def sample_meta_batch(
    training_set: TrainingSet,
    seed: int,
    step: int,
    meta_batch: int,
    widths: Sequence[int],
    head_widths: Sequence[int],
    max_nodes: int,
) -> list[SampledArchitecture]:
    """The architectures of a step.

    A draw with more than `max_nodes` graph nodes in all is drawn again; beyond 8 architectures, in proportion.

    Raises:
        ValueError: a hundred samples in a row were too large.
    """
    count = len(training_set.nodes)
    for attempt in range(100):
        rng = np.random.Generator(
            np.random.Philox(np.random.SeedSequence(seed, spawn_key=(ARCHITECTURE_STREAM, step, attempt)))
        )
        indices = rng.choice(count, meta_batch, replace=meta_batch > count)
        if training_set.nodes[indices].sum() <= max_nodes * max(1, meta_batch / 8):
            break
    else:
        raise ValueError(f"max_nodes = {max_nodes}: too few for {meta_batch} architectures a step")
    drawn = []
    for index, draw in zip(indices.tolist(), rng.random((meta_batch, 2)), strict=True):
        architecture = training_set.read(index)
        architecture = training_widths(architecture, training_set.parameters[index], widths, head_widths, draw)
        drawn.append(SampledArchitecture(index, architecture))
    return drawn
