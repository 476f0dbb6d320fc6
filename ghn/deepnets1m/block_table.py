"""Tables of the nodes of architectures, put together from tables of their blocks.

The result equals that of `table_of` for the graph of the program: see `ghn.deepnets1m.block_builder`.

Dimensions: N nodes, E edges, 5 columns of a node.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ghn.deepnets1m.block_builder import NO_NODE, BlockBuilder
from ghn.networks.graph import PRIMITIVES
from ghn.networks.node_table import NO_SIZE, NodeTable, table_of
from ghn.networks.program import InvalidArchitecture, ProgramBuilder

INPUT = 0
"""The row of the node that stands for a part's input, in the edges of the part."""


class BlockTable(NamedTuple):
    """The nodes of a part of a network without that of its input, which is row 0 in its edges; the first is row 1."""

    nodes_N5: np.ndarray
    edges_E2: np.ndarray


@lru_cache(maxsize=1 << 16)
def _block_table(
    emit: Callable[..., int], shape: tuple[int, ...], *settings: Hashable
) -> tuple[BlockTable, tuple[int, ...]]:
    """Return the part that `emit` emits for an input of a shape, with the given settings, and its result's shape."""
    build = ProgramBuilder.on(shape)
    program = build.finish(emit(build, build.image, "", *settings))
    nodes_N5, edges_E2 = table_of(program.graph)
    return BlockTable(nodes_N5[1:], edges_E2), program.operations[-1].shape


class TableBuilder(BlockBuilder[BlockTable]):
    """A builder that puts the tables of the blocks together that reach the output."""

    def compiled(
        self, emit: Callable[..., int], shape: tuple[int, ...], *settings: Hashable
    ) -> tuple[BlockTable, tuple[int, ...]]:
        """Return the table of a block, and the shape of its result."""
        return _block_table(emit, shape, *settings)

    def finish(self, output: int | None) -> NodeTable:
        """Return the table of all nodes that `output` depends on.

        Raises:
            InvalidArchitecture: the output is absent.
        """
        if output is None:
            raise InvalidArchitecture
        ends = [NO_NODE] * len(self._parts)  # the node that each part's result comes from
        placed: list[tuple[BlockTable, int, int]] = []  # with the node of its input, and the number of nodes before it
        count = 0
        for position in self.needed(output):
            block, inputs, _ = self._parts[position]
            read = list(dict.fromkeys([ends[source] for source in inputs if ends[source] != NO_NODE]))
            end = read[0] if len(read) == 1 else NO_NODE
            if isinstance(block, BlockTable):
                part = block
                placed.append((part, end, count))
            else:
                part = _join(block, tuple([node - (count - 1) for node in read]))
                placed.append((part, count - 1, count))
            count += len(part.nodes_N5)
            ends[position] = count - 1 if len(part.nodes_N5) else end
        return _put_together(placed)


@lru_cache(maxsize=1 << 14)
def _join(kind: str, sources: tuple[int, ...]) -> BlockTable:
    """Return the part of the image, or of a sum or concatenation, which is a node if it reads at least two nodes.

    Args:
        sources: the nodes that it reads, as rows of its own edges: 0 is the node before it, -1 the one before that.
    """
    if kind != "image" and len(sources) < 2:
        return BlockTable(np.empty((0, 5), np.int32), np.empty((0, 2), np.int32))
    primitive = PRIMITIVES.index({"image": "input", "add": "sum"}.get(kind, kind))
    edges_E2 = np.array([(source, 1) for source in sources], dtype=np.int32).reshape(-1, 2)
    return BlockTable(np.array([(primitive, *(NO_SIZE,) * 4)], dtype=np.int32), edges_E2)


def _put_together(placed: Sequence[tuple[BlockTable, int, int]]) -> NodeTable:
    """Return the table of parts, each with the node of its input and the number of nodes before it."""
    parts = [part for part, _, _ in placed]
    lengths = [len(part.edges_E2) for part in parts]
    inputs_E, before_E = np.repeat(np.array([place for _, *place in placed], dtype=np.int32), lengths, axis=0).T
    edges_E2 = np.concatenate([part.edges_E2 for part in parts])
    reads_input_E2 = edges_E2 == INPUT
    edges_E2 = np.where(reads_input_E2, inputs_E[:, None], edges_E2 + (before_E - 1)[:, None])
    return NodeTable(np.concatenate([part.nodes_N5 for part in parts]), edges_E2)
