"""The computational graph of a network's primitives, which the hypernetwork reads.

Dimensions: N nodes, E edges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from ghn.networks.operations import Operation, Parameter
from ghn.networks.parameter_axes import Shape

PRIMITIVES = (
    "max_pool",
    "avg_pool",
    "sep_conv",
    "dil_conv",
    "conv",
    "msa",
    "cse",
    "sum",
    "concat",
    "input",
    "bias",
    "bn",
    "ln",
    "pos_enc",
    "glob_avg",
)
"""In the order of the hypernetwork's embedding."""

UNREACHABLE = 10_000
"""Stands for an infinite distance; larger than any path."""


@dataclass(frozen=True)
class Node:
    """A primitive, the 4-d shape that the hypernetwork sees and the parameters that it predicts there."""

    primitive: str
    shape: Shape | None = None
    parameters: tuple[Parameter, ...] = ()
    is_class_layer: bool = False
    """Whether this is the weight or the bias of the last layer."""


@dataclass(frozen=True)
class Graph:
    """The directed acyclic graph of a network's primitives; nodes are in topological order."""

    nodes: tuple[Node, ...]
    edges: tuple[tuple[int, int], ...]
    """Direct edges (from, to), without repetition."""
    not_predicted: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Parameters that are on no node, by name, with the reason; only traced networks have any."""

    @property
    def primitives(self) -> list[str]:
        return [node.primitive for node in self.nodes]

    @property
    def shapes(self) -> list[Shape | None]:
        return [node.shape for node in self.nodes]

    @property
    def parameters(self) -> list[Parameter]:
        """All parameters of all nodes."""
        return [parameter for node in self.nodes for parameter in node.parameters]

    def without_class_layers(self, reason: str, of_other_than: int | None = None) -> Graph:
        """The same graph, but the parameters of classification layers are not predicted.

        `of_other_than`: only those with another number of classes. `reason` may name the `{classes}` of each.
        """
        nodes, not_predicted = [], dict(self.not_predicted)
        for node in self.nodes:
            if node.is_class_layer and node.shape[0] != of_other_than:
                why = reason.format(classes=node.shape[0])
                not_predicted |= dict.fromkeys((parameter.name for parameter in node.parameters), why)
                node = replace(node, parameters=())
            nodes.append(node)
        return Graph(tuple(nodes), self.edges, not_predicted)

    @cached_property
    def sources(self) -> tuple[tuple[int, ...], ...]:
        """For each node, the nodes with an edge to it."""
        incoming: list[list[int]] = [[] for _ in self.nodes]
        for source, target in self.edges:
            incoming[target].append(source)
        return tuple(map(tuple, incoming))

    @cached_property
    def distances(self) -> np.ndarray:
        """Lengths of shortest paths, int16 (N, N): entry [u, v] from u to v, 0 where there is no path.

        One vectorised minimum a node: the distances to v are those to its sources, plus one.
        """
        N = len(self.nodes)
        to = np.full((N, N), UNREACHABLE, dtype=np.int16)
        for v, sources in enumerate(self.sources):
            if sources:
                row = to[sources[0]]
                for u in sources[1:]:
                    row = np.minimum(row, to[u])
                np.add(row, 1, out=to[v], where=row < UNREACHABLE)
            to[v, v] = 0
        return np.where(to == UNREACHABLE, 0, to).T

    @cached_property
    def levels(self) -> np.ndarray:
        """The length of the longest path that ends in each node, int64 (N,)."""
        level = [0] * len(self.nodes)
        for v, sources in enumerate(self.sources):
            level[v] = max((level[u] for u in sources), default=-1) + 1
        return np.array(level)

    def virtual_edges(self, longest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All pairs at distance 1 to `longest`: sources, targets and distances, (E,) each, sorted by target."""
        to = self.distances.T
        targets, sources = np.nonzero((to > 0) & (to <= longest))
        return sources, targets, to[targets, sources]


def graph_of_operations(operations: Sequence[Operation]) -> Graph:
    """Keep the primitives of a program's operations and let edges pass through everything else."""
    nodes: list[Node] = []
    edges: list[tuple[int, int]] = []
    ends: list[tuple[int, ...]] = []  # for each operation, the nodes that its result comes from

    def append(sources: tuple[int, ...], node: Node) -> tuple[int, ...]:
        nodes.append(node)
        edges.extend((source, len(nodes) - 1) for source in sources)
        return (len(nodes) - 1,)

    last = len(operations) - 1
    for position, operation in enumerate(operations):
        end: tuple[int, ...] = ()
        for source in operation.inputs:
            end = end + tuple(node for node in ends[source] if node not in end)
        for node in _nodes(operation, len(end), position == last):
            end = append(end, node)
        ends.append(end)
    return Graph(tuple(nodes), tuple(edges))


def _nodes(operation: Operation, inputs: int, is_last: bool) -> list[Node]:
    """The nodes of one operation, in a chain; none if it is not a primitive."""
    kind, parameters = operation.kind, operation.parameters
    if kind == "conv":
        dilation, groups = operation.settings[-2:]
        primitive = "conv" if groups == 1 else "sep_conv" if dilation == 1 else "dil_conv"
        return [Node(primitive, parameters[0].shape, parameters)]
    if kind == "linear":
        weight, *bias = parameters
        nodes = [Node("conv", (*weight.shape, 1, 1), (weight,), is_last)]
        return nodes + [Node("bias", (*b.shape, 1, 1, 1), (b,), is_last) for b in bias]
    if kind in ("batch_norm", "layer_norm"):
        return [Node("bn" if kind == "batch_norm" else "ln", (*parameters[0].shape, 1, 1, 1), parameters)]
    if kind == "position_encoding":
        return [Node("pos_enc", parameters[0].shape, parameters)]
    if kind in ("max_pool", "avg_pool"):
        return [Node(kind, (1, 1, operation.settings[0], operation.settings[0]))]
    if kind in ("add", "concat"):
        return [Node("sum" if kind == "add" else "concat")] if inputs > 1 else []
    primitive = {"image": "input", "attention": "msa", "scale": "cse", "global_pool": "glob_avg"}.get(kind)
    return [] if primitive is None else [Node(primitive)]


def distance_sum(graph: Graph, longest: int) -> int:
    """The sum of all distances up to `longest`, which tells graphs apart by their virtual edges."""
    distances = graph.distances
    return int(distances[distances <= longest].sum(dtype=np.int64))
