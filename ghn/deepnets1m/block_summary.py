"""Summaries of architectures, added up from summaries of their blocks: the same as of their programs, but faster.

Architectures are made of some hundred different *blocks*: a sep_conv_3x3 with 32 channels on 16×16 pixels is the same
in all of them. Each block is compiled once, by the code that compiles whole programs, and its summary is kept. A
builder adds up the summaries of a network's blocks. The result equals that of `summarise`, many times faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from functools import lru_cache
from operator import add
from typing import NamedTuple

from ghn.networks.canonical_hash import MODULUS, Polynomial, constants, hash_of_value, image_value, offset, polynomial
from ghn.networks.program import Builder, InvalidArchitecture, ProgramBuilder
from ghn.networks.summary import Summary

NO_NODE = -1
"""Stands for the node of a result that comes from no node."""


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

Part = tuple[BlockSummary | str, tuple[int, ...], tuple[int, ...]]
"""A part of a network: the summary of a block, or the kind of an operation without parameters; the positions of its
inputs; the shape of its result."""


class SummaryBuilder(Builder):
    """A builder that collects blocks, sums and concatenations, and adds up those that reach the output."""

    def __init__(self, image_size: int) -> None:
        self._image_size = image_size
        self._parts: list[Part] = [("image", (), (3, image_size, image_size))]

    def shape(self, x: int) -> tuple[int, ...]:
        """Return the shape of the result at a position."""
        return self._parts[x][2]

    def block(self, emit: Callable[..., int], x: int, name: str, *settings: Hashable) -> int:
        """Add the summary of a block; return its position."""
        parts = self._parts
        block = _block_summary(emit, parts[x][2], *settings)
        parts.append((block, (x,), block.shape))
        return len(parts) - 1

    def emit(self, kind: str, inputs: tuple[int, ...], shape: tuple[int, ...]) -> int:
        """Add an operation without parameters and settings; return its position."""
        self._parts.append((kind, inputs, shape))
        return len(self._parts) - 1

    def num_parameters(self, output: int | None) -> int:
        """Return the number of elements of all parameters that `output` depends on.

        Raises:
            InvalidArchitecture: the output is absent.
        """
        if output is None:
            raise InvalidArchitecture
        needed = [self._parts[position][0] for position in self._needed(output)]
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
        for position in self._needed(output)[1:]:
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

    def _needed(self, output: int) -> list[int]:
        """Return the positions of the parts that `output` depends on, in order; the image is always the first."""
        needed = {0, output}
        for position in range(output, 0, -1):
            if position in needed:
                needed.update(self._parts[position][1])
        return sorted(needed)


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
