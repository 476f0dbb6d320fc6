"""What is counted of a network: parameters, FLOPs, and the size of its graph."""

from __future__ import annotations

from typing import NamedTuple

from ghn.networks.program import Program


class Summary(NamedTuple):
    """What there is to count of a network, for images of one size and a number of classes."""

    network_hash: str
    nodes: int
    """Of the graph."""
    edges: int
    """Of the graph, without virtual ones."""
    depth: int
    """Edges of the longest path of the graph."""
    num_parameters: int
    flops: int
    """Of one image's forward pass: see `Program.flops`."""


def summarise(program: Program) -> Summary:
    """The summary of a program, counted operation by operation."""
    graph = program.graph
    return Summary(
        network_hash=program.network_hash,
        nodes=len(graph.nodes),
        edges=len(graph.edges),
        depth=int(graph.levels.max()),
        num_parameters=program.num_parameters,
        flops=program.flops,
    )
