"""The training step at the published settings for CIFAR-10, which several benchmarks time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from ghn import GHN
from ghn.deepnets1m.sampling import samples
from ghn.training.load_balance import MAX_MICRO_BATCH_SIZE
from ghn.training.meta_batch import MetaBatchSettings, SampledArchitecture, TrainingSet, sample_meta_batch
from ghn.training.step import MicroBatch, StepSettings, Stopwatch, accumulate_micro_batch

WIDTHS, HEAD_WIDTHS = range(32, 129, 16), range(64, 513, 64)
"""What the published C and fc_dim are sampled from."""

META_BATCH, MAX_NODES = 8, 2200
"""As published: larger meta-batches are made of several of these, so that all see the same architectures."""

TRAINING_SET = 1000
CLASSES = 10


@cache
def training_set() -> TrainingSet:
    sampled = [next(samples(0, "train", index)) for index in range(TRAINING_SET)]
    return TrainingSet(
        nodes=np.array([sample.summary.nodes for sample in sampled]),
        parameters=np.array([sample.summary.num_parameters for sample in sampled]),
        norm_free=np.array([sample.architecture.norm is None for sample in sampled]),
        read=lambda index: sampled[index].architecture,
    )


def meta_batches(size: int, architectures: int, image_size: int) -> Iterator[list[SampledArchitecture]]:
    """Meta-batches of a size, which together hold the same architectures whatever the size is."""
    among, several = training_set(), max(1, architectures // size)
    settings = MetaBatchSettings(META_BATCH, WIDTHS, HEAD_WIDTHS, MAX_NODES)
    published = range(math.ceil(several * size / META_BATCH))
    several_published = [
        item for step in published for item in sample_meta_batch(among, settings, 0, step, image_size, CLASSES)
    ]
    return (several_published[start : start + size] for start in range(0, several * size, size))


def train_step(
    ghn: GHN, sampled: Sequence[SampledArchitecture], images: Tensor, labels: Tensor, step: int, settings: StepSettings
) -> tuple[float, dict[str, float]]:
    """Return the seconds of a step, and those of its phases: graphs, and what `Stopwatch` measures."""
    started = perf_counter()
    watch, graph_seconds = Stopwatch(images.device), 0.0
    ghn.zero_grad()
    for start in range(0, len(sampled), MAX_MICRO_BATCH_SIZE):
        positions = range(start, min(start + MAX_MICRO_BATCH_SIZE, len(sampled)))
        micro_batch = MicroBatch.of(ghn, {position: sampled[position] for position in positions}, positions)
        graph_seconds += micro_batch.graph_seconds
        accumulate_micro_batch(ghn, micro_batch, images, labels, step, settings, watch)
    torch.nn.utils.clip_grad_norm_(ghn.parameters(), 5.0)
    phases = {"graphs": graph_seconds, **watch.seconds()}
    return perf_counter() - started, phases


def hypernetwork_seconds(phases: dict[str, float]) -> float:
    """Return the seconds of a step's graphs and of the hypernetwork's forward and backward pass."""
    return sum(phases[name] for name in ("graphs", "hypernetwork_forward", "hypernetwork_backward"))
