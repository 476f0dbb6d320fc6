"""Passes over a recorded graph: they find the pools that belong to an attention, and the layers that classify.

A node is found by its position; nodes are in topological order. An edge is a pair of positions (from, to).
"""

from __future__ import annotations

from dataclasses import replace

from ghn.networks.graph import Node


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
