"""The computational graph of a network's primitives, which hypernetworks read.

Dimensions: N nodes, E edges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from ghn.networks.operations import Operation, Parameter
from ghn.networks.parameter_axes import Shape, positions_shape

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
"""Names of the primitives, in the order of their embeddings in `ghn.models.node_encoder`."""

PRIMITIVE_OF = {
    "image": "input",
    "text": "input",
    "attention": "msa",
    "causal_attention": "msa",
    "scale": "cse",
    "global_pool": "glob_avg",
}
"""The primitive of each kind of operation that is always the same one, without parameters."""

UNREACHABLE = 10_000
"""Stands for an infinite distance; it is longer than any path, in edges."""


@dataclass(frozen=True)
class Node:
    """A primitive, the 4-d shape that hypernetworks read and the parameters that they predict there.

    A node with parameters has a shape.
    """

    primitive: str
    shape: Shape | None = None
    parameters: tuple[Parameter, ...] = ()
    is_class_layer: bool = False
    """Whether there is a row for each class or token: a weight or bias of a classification layer, or an embedding."""


@dataclass(frozen=True)
class Graph:
    """The directed acyclic graph of a network's primitives; nodes are in topological order."""

    nodes: tuple[Node, ...]
    edges: tuple[tuple[int, int], ...]
    """Direct edges (source, target), each once."""
    not_predicted: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Names of the parameters that are on no node, with the reason; only traced networks have any."""

    @property
    def primitives(self) -> list[str]:
        """The primitive of each node."""
        return [node.primitive for node in self.nodes]

    @property
    def shapes(self) -> list[Shape | None]:
        """The shape of each node."""
        return [node.shape for node in self.nodes]

    @property
    def parameters(self) -> list[Parameter]:
        """The parameters of all nodes."""
        return [parameter for node in self.nodes for parameter in node.parameters]

    def without_class_layers(self, reason: str, of_other_than: int | None = None) -> Graph:
        """Return the same graph without the parameters of classification layers.

        Args:
            reason: why they are not predicted; `{classes}` in it stands for the layer's number of classes.
            of_other_than: a number of classes; layers that have it keep their parameters.
        """
        nodes, not_predicted = [], dict(self.not_predicted)
        for node in self.nodes:
            if node.is_class_layer and node.shape is not None and node.shape[0] != of_other_than:
                why = reason.format(classes=node.shape[0])
                not_predicted |= dict.fromkeys((parameter.name for parameter in node.parameters), why)
                node = replace(node, parameters=())
            nodes.append(node)
        return Graph(tuple(nodes), self.edges, not_predicted)

    @cached_property
    def sources(self) -> tuple[tuple[int, ...], ...]:
        """The sources of the edges to each node."""
        incoming: list[list[int]] = [[] for _ in self.nodes]
        for source, target in self.edges:
            incoming[target].append(source)
        return tuple(map(tuple, incoming))

    @cached_property
    def distances(self) -> np.ndarray:
        """The lengths of shortest paths in edges, int16 (N, N): entry [u, v] from u to v, 0 where there is no path.

        The distances to v are those to its sources, plus one: one vectorised minimum per node.
        """
        N = len(self.nodes)
        to_NN = np.full((N, N), UNREACHABLE, dtype=np.int16)  # entry [v, u] from u to v
        for v, sources in enumerate(self.sources):
            if sources:
                row_N = to_NN[sources[0]]
                for u in sources[1:]:
                    row_N = np.minimum(row_N, to_NN[u])
                np.add(row_N, 1, out=to_NN[v], where=row_N < UNREACHABLE)
            to_NN[v, v] = 0
        return np.where(to_NN == UNREACHABLE, 0, to_NN).T

    @cached_property
    def levels(self) -> np.ndarray:
        """The length in edges of the longest path to each node, int64 (N,)."""
        level = [0] * len(self.nodes)
        for v, sources in enumerate(self.sources):
            level[v] = max((level[u] for u in sources), default=-1) + 1
        return np.array(level)

    def virtual_edges(self, longest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return sources, targets and distances, (E,) each, of all pairs at distance 1 to `longest`, sorted by target.

        These are the direct edges too.
        """
        to_NN = self.distances.T
        targets_E, sources_E = np.nonzero((to_NN > 0) & (to_NN <= longest))
        return sources_E, targets_E, to_NN[targets_E, sources_E]


def graph_of_operations(operations: Sequence[Operation]) -> Graph:
    """Return the graph of a program's primitives; its edges pass through all other operations."""
    nodes: list[Node] = []
    edges: list[tuple[int, int]] = []
    placed: set[str] = set()  # names of parameters: tied ones are on the first node that uses them
    ends: list[tuple[int, ...]] = []  # for each operation, the last nodes on the paths to its result

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
            new = tuple(parameter for parameter in node.parameters if parameter.name not in placed)
            placed.update(parameter.name for parameter in new)
            end = append(end, node if new == node.parameters else replace(node, parameters=new))
        ends.append(end)
    return Graph(tuple(nodes), tuple(edges))


def _nodes(operation: Operation, inputs: int, is_last: bool) -> list[Node]:
    """Return the nodes of one operation, a chain; none if it is not a primitive.

    Args:
        inputs: the number of nodes that its inputs come from.
        is_last: whether it is the program's last operation.
    """
    kind, parameters = operation.kind, operation.parameters
    if kind == "conv":
        dilation, groups = operation.settings[-2:]
        in_groups = "sep_conv" if dilation == 1 else "dil_conv"
        return [Node("conv" if groups == 1 else in_groups, _four_axes(parameters[0]), parameters)]
    if kind == "linear":
        weight, *bias = parameters
        nodes = [Node("conv", _four_axes(weight), (weight,), is_last)]
        return nodes + [Node("bias", _four_axes(b), (b,), is_last) for b in bias]
    if kind in ("batch_norm", "layer_norm"):
        return [Node("bn" if kind == "batch_norm" else "ln", _four_axes(parameters[0]), parameters)]
    if (
        kind == "embedding"
    ):  # the linear layer of tokens as unit vectors, with a row for each token as a class layer has
        return [Node("conv", _four_axes(parameters[0]), parameters, is_class_layer=True)]
    if kind == "position_encoding":
        (table,) = parameters
        is_of_text = table.axis_order == "tokens"
        return [Node("pos_enc", positions_shape(table.shape) if is_of_text else _four_axes(table), parameters)]
    if kind in ("max_pool", "avg_pool"):
        return [Node(kind, (1, 1, operation.settings[0], operation.settings[0]))]
    if kind in ("add", "concat"):
        return [Node("sum" if kind == "add" else "concat")] if inputs > 1 else []
    primitive = PRIMITIVE_OF.get(kind)
    return [] if primitive is None else [Node(primitive)]


def _four_axes(parameter: Parameter) -> Shape:
    """Return the shape of a parameter with at most four axes, with ones for those that it lacks."""
    out, inputs, height, width = (*parameter.shape, 1, 1, 1)[:4]
    return out, inputs, height, width
