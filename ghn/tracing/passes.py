"""Passes over a recorded graph: they find the pools that belong to an attention, and the layers that classify.

They also add the parts that are like others and that the recorded inputs were not routed to.

A node is found by its position; nodes are in topological order. An edge is a pair of positions (from, to).
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import replace

from ghn.networks.graph import Node
from ghn.networks.parameter_axes import Sizes


def siblings(lost: Set[str], shapes: Mapping[str, Sizes]) -> list[dict[str, str]]:
    """Return modules none of whose parameters are on a node, and which are like another whose parameters all are.

    Such modules are the experts of a mixture that the recorded inputs were not routed to.

    Args:
        lost: names of the parameters that are on no node.
        shapes: of all parameters by name.

    Returns:
        For each such module the names of its parameters, and of those that they are like.
    """
    modules: dict[str, dict[str, Sizes]] = {}
    for name, shape in shapes.items():
        parts = name.split(".")
        for depth in range(1, len(parts)):
            modules.setdefault(".".join(parts[:depth]), {})[".".join(parts[depth:])] = shape
    found: list[dict[str, str]] = []
    done: set[str] = set()
    for module, own in modules.items():  # a module comes before its parts
        names = {f"{module}.{name}" for name in own}
        if not names.issubset(lost) or not names.isdisjoint(done):
            continue
        parent = module.rpartition(".")[0]
        for other, of_other in modules.items():
            if other.rpartition(".")[0] == parent and own == of_other and not any(f"{other}.{n}" in lost for n in own):
                found.append({f"{module}.{name}": f"{other}.{name}" for name in own})
                done |= names
                break
    return found


def with_copies(
    nodes: list[Node], edges: list[tuple[int, int]], copies: list[dict[str, str]]
) -> tuple[list[Node], list[tuple[int, int]], dict[int, list[int]]]:
    """Return the graph with copies of nodes, which have the same edges as the nodes that they are copies of.

    Args:
        copies: for each module that is added the names of its parameters, and of those that they are like.

    Returns:
        The nodes, the edges, and the new positions of each node: of itself, then of its copies.
    """
    renamed = [{old: new for new, old in copy.items()} for copy in copies]
    made: list[Node] = []
    place: dict[tuple[int, int | None], int] = {}  # by the node and the number of the copy
    for n, node in enumerate(nodes):
        place[n, None] = len(made)
        made.append(node)
        for number, names in enumerate(renamed):
            parameters = tuple(p._replace(name=names[p.name]) for p in node.parameters if p.name in names)
            if parameters:
                place[n, number] = len(made)
                made.append(replace(node, parameters=parameters))
    numbers = [None, *range(len(copies))]
    new_edges = dict.fromkeys(
        (place.get((source, number), place[source, None]), place.get((target, number), place[target, None]))
        for source, target in edges
        for number in numbers
    )
    return made, list(new_edges), {n: [place[n, i] for i in numbers if (n, i) in place] for n in range(len(nodes))}


def without_squeezes(
    nodes: list[Node], edges: list[tuple[int, int]], ends: set[int]
) -> tuple[list[Node], list[tuple[int, int]], dict[int, int]]:
    """Return the graph without the global pools that only a channel attention reads: they are part of `cse`.

    Args:
        ends: nodes that the network's outputs come from.

    Returns:
        The kept nodes, the edges, which pass through the pools, and the new position of each kept node.
    """
    successors: list[list[int]] = [[] for _ in nodes]
    for source, target in edges:
        successors[source].append(target)
    is_seen = [False] * len(nodes)  # reached by the output other than through a channel attention
    for node in reversed(range(len(nodes))):
        is_seen[node] = node in ends or any(nodes[n].primitive != "cse" and is_seen[n] for n in successors[node])
    squeezes = {n for n, node in enumerate(nodes) if node.primitive == "glob_avg" and not is_seen[n]}
    comes_from: dict[int, list[int]] = {n: [] for n in squeezes}
    for source, target in edges:
        if target in squeezes:
            comes_from[target] += comes_from.get(source, [source])
    place = {node: position for position, node in enumerate(n for n in range(len(nodes)) if n not in squeezes)}
    kept = dict.fromkeys(
        (place[origin], place[target])
        for source, target in edges
        if target not in squeezes
        for origin in comes_from.get(source, [source])
    )
    return [node for n, node in enumerate(nodes) if n not in squeezes], list(kept), place


def with_class_layers(nodes: list[Node], edges: list[tuple[int, int]], ends: set[int], scales: set[int]) -> list[Node]:
    """Return the nodes with the layers marked that give the logits.

    These are linear layers and 1×1 convolutions with no other such layer after them, and their biases and scales.

    Args:
        ends: nodes that the network's outputs come from.
        scales: nodes `ln` that scale without a norm.
    """
    predecessors: list[list[int]] = [[] for _ in nodes]
    for source, target in edges:
        predecessors[target].append(source)
    found: set[int] = set()
    waiting, reached = list(ends), set(ends)
    while waiting:
        number = waiting.pop()
        node = nodes[number]
        if node.primitive == "conv" and node.shape is not None and node.shape[2:] == (1, 1):
            found.add(number)
        elif node.primitive in ("bias", "glob_avg", "avg_pool", "max_pool", "sum", "concat") or number in scales:
            new = [source for source in predecessors[number] if source not in reached]
            reached.update(new)
            waiting += new
    after = [False] * len(nodes)  # whether a node comes before another layer that was found
    for number in reversed(range(len(nodes))):
        if after[number] or number in found:
            for source in predecessors[number]:
                after[source] = True
    layers = {number for number in found if not after[number]}
    classes = {_out_channels(nodes[number]) for number in layers}
    following = set(layers)
    for number in sorted(reached):  # in topological order: a bias may follow a scale
        is_vector_node = nodes[number].primitive == "bias" or number in scales
        if is_vector_node and following.issuperset(predecessors[number]):
            following.add(number)
            if _out_channels(nodes[number]) in classes:  # a temperature has a single channel
                layers.add(number)
    return [replace(node, is_class_layer=True) if n in layers else node for n, node in enumerate(nodes)]


def _out_channels(node: Node) -> int:
    """Return the out channels of a node; 0 for a node without a shape."""
    return 0 if node.shape is None else node.shape[0]
