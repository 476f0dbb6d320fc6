"""Sampling of architectures: the splits of DeepNets-1M (Knyazev et al., NeurIPS 2021, appendix A).

Sampling keeps no state: each (seed, split, index) has its own stream of samples. The architecture at an index is the
first sample of its stream that is not the same network as one at a lower index. Splits are disjoint because the network
hash decides which split a network may belong to.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from ghn.deepnets1m.architecture import Architecture
from ghn.deepnets1m.genotype import LARGE_KERNELS, OPERATIONS, Edge, Genotype
from ghn.networks.program import InvalidArchitecture
from ghn.networks.sample import Sample, hash_bucket_of, random_stream

PARAMETER_FREE = OPERATIONS[:4]
"""Operations without parameters."""

CONVOLUTION_OPERATIONS = frozenset(name for name in OPERATIONS if "conv_" in name)
"""Operations with a convolution."""


@dataclass(frozen=True)
class SplitRules:
    """Rules by which the architectures of a split are sampled; the defaults are those of the training set.

    Ranges include both ends. `hash_buckets` are the buckets that belong to the split. `cells` is the range of the
    number of cells, `states` that of the number of states of a cell. An architecture with more cells than a number
    sampled from `threshold` is deep and has `states_if_deep` instead. A network may be without norm if it has at most
    `norm_free_cells` cells and `norm_free_states` states. `most_parameters` limits the elements of all parameters.
    """

    hash_buckets: tuple[int, ...] = tuple(range(59))
    cells: tuple[int, int] = (4, 18)
    threshold: tuple[int, int] = (7, 10)
    states: tuple[int, int] = (1, 4)
    states_if_deep: tuple[int, int] = (1, 2)
    norm_free_cells: int = 5
    norm_free_states: int = 2
    always_norm_free: bool = False
    most_parameters: int = 10_000_000


SPLIT_RULES = {
    "train": SplitRules(),
    "val": SplitRules(hash_buckets=(59,)),
    "test": SplitRules(hash_buckets=(60,)),
    "deep": SplitRules(
        hash_buckets=(61,), cells=(10, 36), threshold=(18, 18), norm_free_cells=11, most_parameters=100_000_000
    ),
    "dense": SplitRules(
        hash_buckets=(62,), states=(2, 10), states_if_deep=(2, 6), norm_free_states=6, most_parameters=100_000_000
    ),
    "bn_free": SplitRules(hash_buckets=(63,), always_norm_free=True),
}
"""Rules of each sampled split; `wide` is not sampled but made from `test` (`Architecture.widened`)."""


def samples(seed: int, split: str, index: int) -> Iterator[Sample[Architecture]]:
    """Yield the valid samples of the stream of an index, without end.

    Args:
        split: a key of `SPLIT_RULES`.
    """
    rules = SPLIT_RULES[split]
    rng = random_stream(f"{seed}/{split}/{index}")
    while True:
        architecture = _sample_once(rules, rng)
        if not has_valid_operations(architecture):
            continue
        try:
            summary = architecture.summary(32, 10)
        except InvalidArchitecture:  # the image does not reach the output; other dead ends are pruned, not rejected
            continue
        if hash_bucket_of(summary.network_hash) not in rules.hash_buckets:
            continue
        # The published limits hold for CIFAR-10 and ImageNet alike.
        parameters_large = architecture.num_parameters(224, 1000)
        if max(summary.num_parameters, parameters_large) <= rules.most_parameters:
            yield Sample(architecture, summary, parameters_large)


def sample_architecture(seed: int, split: str, index: int, attempt: int = 0) -> Architecture:
    """Return the sample number `attempt` of the stream of an index, at width 32.

    Args:
        split: a key of `SPLIT_RULES`.
        attempt: how many samples of the stream are skipped.
    """
    return next(islice(samples(seed, split, index), attempt, None)).architecture


def has_valid_operations(architecture: Architecture) -> bool:
    """Return whether the operations of both cells may be combined.

    Without a convolution, an architecture needs attention (`msa`) and no `cse`. A cell has at most one `cse` and one
    convolution with a large kernel.
    """
    genotype = architecture.genotype
    used = genotype.operations
    if not used & CONVOLUTION_OPERATIONS and ("cse" in used or "msa" not in used):
        return False
    for cell in (genotype.normal, genotype.reduce):
        operations = [operation for operation, _ in cell]
        if operations.count("cse") > 1 or sum(operation in LARGE_KERNELS for operation in operations) > 1:
            return False
    return True


def _sample_once(rules: SplitRules, rng: random.Random) -> Architecture:
    """Return an architecture, which need not be valid.

    The order of calls of `rng` is part of the definition of the splits.
    """
    n_cells = _uniform(rng, *rules.cells)
    is_deep = n_cells > _uniform(rng, *rules.threshold)
    states = _uniform(rng, *(rules.states_if_deep if is_deep else rules.states))
    genotype = _sample_genotype(states, rng)
    has_msa = "msa" in genotype.operations
    C_mult = _uniform(rng, 1, 2)
    may_lack_norm = n_cells <= rules.norm_free_cells and states <= rules.norm_free_states
    stem_type = _uniform(rng, 0, 1)
    return Architecture(
        genotype=genotype,
        n_cells=n_cells,
        C_mult=C_mult,
        ks=(3, 5, 7)[_uniform(rng, 0, 2)],
        stem_type=stem_type,
        stem_pool=stem_type == 0 and _chance(rng, 0.5),
        norm=None if rules.always_norm_free or (may_lack_norm and _chance(rng, 0.5)) else "bnorm",
        preproc=states > 1 or C_mult > 1 or not has_msa or _chance(rng, 0.2),
        glob_avg=has_msa or is_deep or _chance(rng, 0.9),
        fc_layers=_uniform(rng, 1, 2),
    )


def _sample_genotype(states: int, rng: random.Random) -> Genotype:
    """Return a genotype with so many states in each cell."""
    normal = _sample_cell(states, OPERATIONS, rng)
    reduce = _sample_cell(states, PARAMETER_FREE if _chance(rng, 0.5) else OPERATIONS, rng)
    concat = tuple(range(2, 2 + states))
    if states > 1 and _chance(rng, 0.5):
        concat = (*(state for state in concat[:-1] if _chance(rng, 0.5)), concat[-1])
    return Genotype(normal, concat, reduce, concat)


def _sample_cell(states: int, operations: tuple[str, ...], rng: random.Random) -> tuple[Edge, ...]:
    """Return the edges of a cell: each state reads two different earlier states, each through an operation."""
    if states == 1:
        operations = operations[1:]  # without `none`
    edges: list[Edge] = []
    for state in range(states):
        first = _uniform(rng, 0, state + 1)
        second = _uniform(rng, 0, state)
        second += second >= first
        edges += [(operations[_uniform(rng, 0, len(operations) - 1)], source) for source in (first, second)]
    return tuple(edges)


def _uniform(rng: random.Random, low: int, high: int) -> int:
    """Return an integer from `low` to `high`, both included.

    It is built on `random()` because Python promises the same sequence of that in all versions.
    """
    return low + int(rng.random() * (high - low + 1))


def _chance(rng: random.Random, probability: float) -> bool:
    """Return true with the given probability."""
    return rng.random() < probability
