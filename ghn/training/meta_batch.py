"""Meta-batches: the architectures of each training step, as a function of (seed, step) alone.

Dimensions: A architectures of the training set, M architectures of a meta-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ghn.networks.network import ScalableNetwork
from ghn.networks.program import Program

ARCHITECTURE_STREAM = 101
"""Key of the random numbers that sample architectures, so that no two uses of randomness share a stream."""

MAX_ATTEMPTS = 100
"""Most meta-batches that are sampled for one step before `max_nodes` counts as too small."""


@dataclass(frozen=True)
class TrainingSet:
    """The training architectures: their graph nodes (A,), their numbers of parameters (A,) and a reader by index.

    The numbers of parameters are those at width 32, for 32×32 images and 10 classes. `norm_free` says which of them are
    without norm (A,).
    """

    nodes: NDArray[np.integer]
    parameters: NDArray[np.integer]
    norm_free: NDArray[np.bool_]
    read: Callable[[int], ScalableNetwork]

    @cached_property
    def indices_by_norm(self) -> dict[str, NDArray[np.int64]]:
        """The indices of the architectures `without` norm and of those `with` norm."""
        return {"without": np.flatnonzero(self.norm_free), "with": np.flatnonzero(~self.norm_free)}


@dataclass(frozen=True)
class MetaBatchSettings:
    """Settings by which the meta-batch of a step is sampled.

    `size` is the number of architectures. `widths` are the values that C may have and `head_widths` those of fc_dim,
    smallest first. `max_nodes` limits the graph nodes of a whole meta-batch of up to 8 architectures; the limit of a
    larger one grows in proportion. `norm_free` is the probability that an architecture is one without norm; None: all
    architectures of the training set are equally likely, as published.
    """

    size: int
    widths: Sequence[int]
    head_widths: Sequence[int]
    max_nodes: int
    norm_free: float | None = None


@dataclass(frozen=True)
class SampledArchitecture:
    """One architecture of a meta-batch: its index in the training set, itself with its widths, and its program.

    It carries the program because the cache of `Network.program` cannot hold those of two large meta-batches: preparing
    one step would evict the programs of the step before, which is still being computed.
    """

    index: int
    architecture: ScalableNetwork
    program: Program


def sample_meta_batch(
    training_set: TrainingSet,
    settings: MetaBatchSettings,
    seed: int,
    step: int,
    image_size: int,
    num_classes: int,
) -> list[SampledArchitecture]:
    """Return the architectures of a step, compiled for the given images and classes.

    Args:
        image_size: side of the images, in pixels.

    Raises:
        ValueError: see `sample_indices`.
    """
    indices_M, uniforms_M2 = sample_indices(training_set, settings, seed, step)
    meta_batch = []
    for index, uniforms in zip(indices_M.tolist(), uniforms_M2.tolist(), strict=True):
        original, num_parameters = training_set.read(index), int(training_set.parameters[index])
        architecture = original.with_sampled_widths(num_parameters, settings.widths, settings.head_widths, uniforms)
        meta_batch.append(SampledArchitecture(index, architecture, architecture.compile(image_size, num_classes)))
    return meta_batch


def sample_indices(
    training_set: TrainingSet, settings: MetaBatchSettings, seed: int, step: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the indices (M,) of a step's architectures, and two uniform numbers (M, 2) that choose the widths of each.

    Indices whose graphs have too many nodes in all are sampled again.

    Raises:
        ValueError: a hundred meta-batches in a row had too many nodes, or no architecture is of a wanted kind.
    """
    size = settings.size
    for attempt in range(MAX_ATTEMPTS):
        rng = np.random.Generator(
            np.random.Philox(np.random.SeedSequence(seed, spawn_key=(ARCHITECTURE_STREAM, step, attempt)))
        )
        indices_M = _sample_indices(rng, training_set, settings)
        if training_set.nodes[indices_M].sum() <= settings.max_nodes * max(1, size / 8):
            return indices_M, rng.random((size, 2))
    raise ValueError(f"max_nodes = {settings.max_nodes}: too few for {size} architectures per step")


def _sample_indices(
    rng: np.random.Generator, training_set: TrainingSet, settings: MetaBatchSettings
) -> NDArray[np.int64]:
    """Return the indices (M,) of a meta-batch of any number of nodes: each at most once, if there are enough.

    Raises:
        ValueError: no architecture is of a wanted kind.
    """
    if settings.norm_free is None:
        return _choose(rng, len(training_set.nodes), settings.size)
    kinds = training_set.indices_by_norm
    for kind, indices in kinds.items():
        if not len(indices):  # even if this step asks for none of them, a later one will
            raise ValueError(f"norm_free = {settings.norm_free}: no architecture of split train is {kind} norm")
    norm_free = int(rng.binomial(settings.size, settings.norm_free))
    numbers = {"without": norm_free, "with": settings.size - norm_free}
    chosen = [kinds[kind][_choose(rng, len(kinds[kind]), number)] for kind, number in numbers.items() if number]
    return rng.permutation(np.concatenate(chosen))


def _choose(rng: np.random.Generator, count: int, number: int) -> NDArray[np.int64]:
    """Return `number` of the integers below `count`, each at most once if there are enough."""
    return rng.choice(count, number, replace=number > count)
