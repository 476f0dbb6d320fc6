"""Summaries of architectures, added up from summaries of their blocks: the same as of their programs, but faster.

The result equals that of `summarise`: see `ghn.deepnets1m.block_builder`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from functools import lru_cache
from operator import add
from typing import NamedTuple

from ghn.deepnets1m.block_builder import NO_NODE, BlockBuilder
from ghn.networks.canonical_hash import MODULUS, Polynomial, constants, hash_of_value, image_value, offset, polynomial
from ghn.networks.program import InvalidArchitecture, ProgramBuilder
from ghn.networks.summary import Summary


class Counts(NamedTuple):
    """Numbers that are added up over the parts of a network; edges count in the part where they end."""

    operations: int
    nodes: int
    edges: int
    num_parameters: int
    flops: int


class BlockSummary(NamedTuple):
    """Summary of a part of a network with one input and one result, whose shape is `shape`."""

    shape: tuple[int, ...]
    counts: Counts
    depth: int
    """Edges of the graph's longest path from the input to the result."""
    polynomial: Polynomial


@lru_cache(maxsize=1 << 16)
def _block_summary(emit: Callable[..., int], shape: tuple[int, ...], *settings: Hashable) -> BlockSummary:
    """Return the summary of what `emit` emits for an input of a shape, with the given settings."""
    build = ProgramBuilder.on(shape)
    program = build.finish(emit(build, build.image, "", *settings))
    operations, graph = program.operations, program.graph
    nodes = len(graph.nodes) - 1  # without the one that stands for the input
    counts = Counts(len(operations) - 1, nodes, len(graph.edges), program.num_parameters, program.flops)
    return BlockSummary(operations[-1].shape, counts, int(graph.levels.max()), polynomial(operations))


COUNTS_OF_IMAGE = Counts(1, 1, 0, 0, 0)


class SummaryBuilder(BlockBuilder[BlockSummary]):
    """A builder that adds up the summaries of the blocks that reach the output."""

    def compiled(
        self, emit: Callable[..., int], shape: tuple[int, ...], *settings: Hashable
    ) -> tuple[BlockSummary, tuple[int, ...]]:
        """Return the summary of a block, and the shape of its result."""
        block = _block_summary(emit, shape, *settings)
        return block, block.shape

    def num_parameters(self, output: int | None) -> int:
        """Return the number of elements of all parameters that `output` depends on.

        Raises:
            InvalidArchitecture: the output is absent.
        """
        if output is None:
            raise InvalidArchitecture
        needed = [self._parts[position][0] for position in self.needed(output)]
        return sum([part.counts.num_parameters for part in needed if isinstance(part, BlockSummary)])

    def finish(self, output: int | None) -> Summary:
        """Return the summary of everything that `output` depends on.

        Raises:
            InvalidArchitecture: the output is absent.
        """
        if output is None:
            raise InvalidArchitecture
        parts = self._parts
        values = [0] * len(parts)  # the polynomial's value of each part
        ends = [NO_NODE] * len(parts)  # the part with the node that each part's result comes from
        depths = [0] * len(parts)  # edges of the longest path to that node
        values[0], ends[0] = image_value(self._image_size), 0
        counts = [COUNTS_OF_IMAGE]
        for position in self.needed(output)[1:]:
            part, inputs, shape = parts[position]
            if isinstance(part, BlockSummary):
                _, added, depth, polynomial = part
                source = inputs[0]
                values[position] = polynomial(values[source])
                ends[position] = position if added.nodes else ends[source]
                depths[position] = depths[source] + depth
            else:
                values[position] = _value(part, shape, [values[source] for source in inputs])
                read = {ends[source] for source in inputs}
                read.discard(NO_NODE)
                added = _counts_of_join(len(read))
                if len(read) > 1:
                    ends[position], depths[position] = position, 1 + max([depths[end] for end in read])
                elif read:
                    (end,) = read
                    ends[position], depths[position] = end, depths[end]
            counts.append(added)
        operations, nodes, edges, num_parameters, flops = map(sum, zip(*counts, strict=True))
        network_hash = hash_of_value(values[output], operations, num_parameters)
        return Summary(network_hash, nodes, edges, depths[output], num_parameters, flops)


@lru_cache
def _counts_of_join(read: int) -> Counts:
    """Return the counts of a sum or concatenation that reads so many nodes; it is a node if it reads at least two."""
    return Counts(1, 1, read, 0, 0) if read > 1 else Counts(1, 0, 0, 0, 0)


def _value(kind: str, shape: tuple[int, ...], inputs: list[int]) -> int:
    """Return the value of an operation without parameters and settings: see `ghn.networks.canonical_hash`."""
    A, B, offsets = _join_constants(kind, shape, len(inputs))
    product: int = math.prod(map(add, inputs, offsets))
    return (A * product + B) % MODULUS


@lru_cache(maxsize=1 << 12)
def _join_constants(kind: str, shape: tuple[int, ...], inputs: int) -> tuple[int, int, tuple[int, ...]]:
    """Return A, B and the c of each input of an operation: see `ghn.networks.canonical_hash`."""
    return *constants(kind, shape), tuple([offset(kind, place) for place in range(inputs)])
