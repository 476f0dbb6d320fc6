"""Summaries of networks: parameters, FLOPs, and the size of the graph."""

from __future__ import annotations

from typing import NamedTuple

from ghn.networks.program import Program


class Summary(NamedTuple):
    """The network hash and the counts of a network, for images of one size and one number of classes."""

    network_hash: str
    nodes: int
    """Nodes of the graph."""
    edges: int
    """Direct edges of the graph."""
    depth: int
    """Edges of the longest path of the graph."""
    num_parameters: int
    """Elements of all parameters."""
    flops: int
    """Floating-point operations of one image's forward pass: see `Program.flops`."""


def summarise(program: Program) -> Summary:
    """Return the summary of a program, counted operation by operation."""
    graph = program.graph
    return Summary(
        network_hash=program.network_hash,
        nodes=len(graph.nodes),
        edges=len(graph.edges),
        depth=int(graph.levels.max()),
        num_parameters=program.num_parameters,
        flops=program.flops,
    )
