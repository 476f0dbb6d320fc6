"""Sampling of architectures: the splits of DeepNets-1M (Knyazev et al., NeurIPS 2021, appendix A).

Stateless: each (seed, split, index) has a stream of samples of its own, of which the first is the architecture at that
index, unless it is the same network as one at a lower index: then it is the first that is not. Splits are disjoint by
construction: a hash of the network's hash says which split it may belong to.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

from ghn.deepnets1m.architecture import Architecture
from ghn.deepnets1m.genotype import OPERATIONS, Edge, Genotype
from ghn.networks.program import LARGE_IMAGE, InvalidArchitecture
from ghn.networks.summary import Summary

PARAMETER_FREE = OPERATIONS[:4]

CONVOLUTION_OPERATIONS = frozenset(name for name in OPERATIONS if "conv_" in name)

LARGE_KERNELS = frozenset({"conv_5x5", "conv_7x7"})

SHARES = 64
"""Identities fall into this many equal shares, each of which belongs to one split."""


@dataclass(frozen=True)
class SplitRules:
    """How a split's architectures are drawn; the defaults are those of the training set.

    `threshold` is the range of the number of cells above which fewer states are drawn; a network may be without
    norm if it has at most `norm_free_cells` cells and `norm_free_states` states.
    """

    shares: tuple[int, ...] = tuple(range(59))
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
    "val": SplitRules(shares=(59,)),
    "test": SplitRules(shares=(60,)),
    "deep": SplitRules(
        shares=(61,), cells=(10, 36), threshold=(18, 18), norm_free_cells=11, most_parameters=100_000_000
    ),
    "dense": SplitRules(
        shares=(62,), states=(2, 10), states_if_deep=(2, 6), norm_free_states=6, most_parameters=100_000_000
    ),
    "bn_free": SplitRules(shares=(63,), always_norm_free=True),
}
"""`wide` is not drawn: it is made from test (`widen`)."""


class Sample(NamedTuple):
    """A valid architecture at width 32, with what was computed to know that it is valid."""

    architecture: Architecture
    summary: Summary
    """For 32×32 images, 10 classes."""
    parameters_large: int
    """Elements of all parameters for 224×224 images, 1000 classes."""


def samples(seed: int, split: str, index: int) -> Iterator[Sample]:
    """The valid samples of the stream of an index; there is no end to them."""
    rules = SPLIT_RULES[split]
    rng = random.Random(int.from_bytes(hashlib.blake2b(f"{seed}/{split}/{index}".encode()).digest()[:16], "big"))
    while True:
        architecture = _draw(rules, rng)
        if not has_valid_operations(architecture):
            continue
        try:
            summary = architecture.summary(32, 10)
        except InvalidArchitecture:  # the image does not reach the output; what else does not is pruned, not rejected
            continue
        if share_of(summary.network_hash) not in rules.shares:
            continue
        # The published limits hold for CIFAR-10 and ImageNet alike.
        parameters_large = architecture.num_parameters(224, 1000)
        if max(summary.num_parameters, parameters_large) <= rules.most_parameters:
            yield Sample(architecture, summary, parameters_large)


def sample_architecture(seed: int, split: str, index: int, draw: int = 0) -> Architecture:
    """The architecture that is draw `draw` of an index's stream, at width 32."""
    return next(islice(samples(seed, split, index), draw, None)).architecture


def share_of(network_hash: str) -> int:
    """Which of the `SHARES` a network hash falls into."""
    return int(network_hash[:8], 16) % SHARES


def widen(architecture: Architecture, image_size: int) -> Architecture:
    """The architecture of split `wide` that belongs to one of split `test`: 4 times the width, 2 for large images."""
    return replace(architecture, C=architecture.C * (2 if image_size >= LARGE_IMAGE else 4))


def has_valid_operations(architecture: Architecture) -> bool:
    """Whether the combination of operations is kept."""
    genotype = architecture.genotype
    used = genotype.operations
    if not used & CONVOLUTION_OPERATIONS and ("cse" in used or "msa" not in used):
        return False
    for cell in (genotype.normal, genotype.reduce):
        operations = [operation for operation, _ in cell]
        if operations.count("cse") > 1 or sum(operation in LARGE_KERNELS for operation in operations) > 1:
            return False
    return True


def training_widths(
    architecture: Architecture,
    num_parameters: int,
    widths: Sequence[int],
    head_widths: Sequence[int],
    draw: Sequence[float],
) -> Architecture:
    """The architecture with the widths that it is trained with this time: large networks are kept narrow.

    Args:
        num_parameters: at width 32, for 32×32 images and 10 classes.
        widths: what C may be, smallest first.
        head_widths: what fc_dim may be, smallest first.
        draw: two uniform numbers in [0, 1).
    """
    n_cells, used = architecture.n_cells, architecture.genotype.operations
    smallest = None  # of the widths, how many may be drawn: all
    if num_parameters > 800_000 or not architecture.glob_avg or used & LARGE_KERNELS or n_cells > 12:
        smallest = 1
    elif num_parameters > 400_000 or n_cells > 10:
        smallest = 2
    elif num_parameters > 200_000 or n_cells > 8:
        smallest = 3
    allowed = widths[:smallest]
    C = allowed[int(draw[0] * len(allowed))]
    heads = head_widths if smallest is None and C <= 64 else head_widths[:4]
    return replace(architecture, C=C, fc_dim=heads[int(draw[1] * len(heads))])


def _draw(rules: SplitRules, rng: random.Random) -> Architecture:
    n_cells = _uniform(rng, *rules.cells)
    is_deep = n_cells > _uniform(rng, *rules.threshold)
    states = _uniform(rng, *(rules.states_if_deep if is_deep else rules.states))
    genotype = _draw_genotype(states, rng)
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


def _draw_genotype(states: int, rng: random.Random) -> Genotype:
    normal = _draw_cell(states, OPERATIONS, rng)
    reduce = _draw_cell(states, PARAMETER_FREE if _chance(rng, 0.5) else OPERATIONS, rng)
    concat = tuple(range(2, 2 + states))
    if states > 1 and _chance(rng, 0.5):
        concat = (*(state for state in concat[:-1] if _chance(rng, 0.5)), concat[-1])
    return Genotype(normal, concat, reduce, concat)


def _draw_cell(states: int, operations: tuple[str, ...], rng: random.Random) -> tuple[Edge, ...]:
    """Each state reads two different earlier states, each through an operation."""
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
    """An integer of low..high; built on `random()`, whose sequence Python keeps the same across versions."""
    return low + int(rng.random() * (high - low + 1))


def _chance(rng: random.Random, probability: float) -> bool:
    return rng.random() < probability
