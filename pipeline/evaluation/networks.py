"""The networks that are evaluated, at which width; and the seeds of their random parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import nn

from ghn.deepnets1m.predefined import PREDEFINED
from ghn.networks.network import Network, ScalableNetwork
from ghn.networks.program import Program
from pipeline.cluster.ray_cluster import capacity
from pipeline.params import EvaluateSettings, settings_hash

if TYPE_CHECKING:
    from pipeline.architectures.store import ArchitectureStore

EVALUATED_SPLITS = ("test", "wide", "deep", "dense", "bn_free", "predefined")
"""The splits whose architectures are measured, in the order of the tables: those that a design space has."""

GPU_SHARE = 0.25
"""Share of a GPU that a task gets, where there are GPUs: a single small network leaves most of a GPU idle."""


@dataclass(frozen=True)
class Candidate:
    """A network to measure, at the width at which it is measured; `network_hash` is that of its stored record."""

    split: str
    index: int
    name: str
    network_hash: str
    network: Network

    @property
    def key(self) -> tuple[str, int, str]:
        """Split, index and network hash, which no other candidate has, not even one of other stored architectures."""
        return self.split, self.index, self.network_hash


class NetworkRow(TypedDict):
    """What a row of measurements says of its network, as JSON: see `pipeline.evaluation.tables.NetworkTable`."""

    split: str
    index: int
    name: str
    identity: str
    parameters: int
    nodes: int


def network_row(candidate: Candidate, program: Program) -> NetworkRow:
    """Return what a row of measurements says of a candidate that is compiled to a program."""
    return NetworkRow(
        split=candidate.split,
        index=candidate.index,
        name=candidate.name,
        identity=candidate.network_hash,
        parameters=program.num_parameters,
        nodes=len(program.graph.nodes),
    )


def candidates_of(
    split: str, networks: Sequence[Network], settings: EvaluateSettings, image_size: int
) -> list[Candidate]:
    """Return the first networks of a split at the width at which they are evaluated; predefined ones keep their own."""
    if split == "predefined":
        named = zip(list(PREDEFINED)[: len(networks)], networks, strict=True)
        return [Candidate(split, i, name, network.network_hash, network) for i, (name, network) in enumerate(named)]
    return [
        Candidate(split, i, "", network.network_hash, evaluated_network(split, network, settings, image_size))
        for i, network in enumerate(networks)
    ]


def evaluated_candidates(
    store: ArchitectureStore, settings: EvaluateSettings, image_size: int, most: int | None = None
) -> list[Candidate]:
    """Return the networks of all evaluated splits, or the first `most` of each, at the width of the evaluation."""
    return [
        candidate
        for split in evaluated_splits(store)
        for candidate in candidates_of(split, store.networks(split, most), settings, image_size)
    ]


def evaluated_splits(store: ArchitectureStore) -> list[str]:
    """Return the evaluated splits of a store's design space; the predefined networks are of DeepNets-1M's."""
    own = {*store.splits, *(["predefined"] if store.has_predefined else [])}
    return [split for split in EVALUATED_SPLITS if split in own]


def evaluated_network(split: str, network: Network, settings: EvaluateSettings, image_size: int) -> Network:
    """Return a network of a split at the width at which it is evaluated; predefined ones keep their own."""
    return network if split == "predefined" else at_width(network, settings, image_size, wide=split == "wide")


def at_width(network: Network, settings: EvaluateSettings, image_size: int, wide: bool = False) -> ScalableNetwork:
    """Return a stored architecture at the evaluation's width, or at that of split `wide`.

    Raises:
        TypeError: the network has no width.
    """
    if not isinstance(network, ScalableNetwork):
        raise TypeError(f"{type(network).__name__} has no width: must be an architecture of a design space")
    factor = network.wide_factor(image_size) if wide else 1
    return network.with_width(factor * settings.width, settings.head_width)


def available_device() -> torch.device:
    """Return a GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def gpus_of_task() -> float:
    """Return the GPUs that a task of the cluster asks for: a share of one, or none where the cluster has none."""
    return GPU_SHARE if capacity()["GPU"] else 0


def fresh_module(network: Network, image_size: int, classes: int, seed: int) -> nn.Module:
    """Return the network in PyTorch's default initialisation, which is a function of `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return network.module(image_size, classes)


def seed_of(*key: int | str) -> int:
    """Return a seed of 60 bits that is a function of the key alone."""
    return int(settings_hash(key, 15), 16)
