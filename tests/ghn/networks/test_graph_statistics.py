from __future__ import annotations

import networkx
import numpy as np
import pytest

from ghn.deepnets1m.predefined import PREDEFINED
from ghn.deepnets1m.sampling import sample_architecture
from ghn.networks.graph import PRIMITIVES, Graph, Node
from ghn.networks.graph_statistics import average_degree, average_path, statistics_of_graph


@pytest.mark.parametrize("split", ["train", "deep", "dense", "bn_free"])
def test_degree_path_and_diameter_are_those_of_the_graph_without_directions(split: str) -> None:
    graph = sample_architecture(1, split, 0).graph(32, 10)
    undirected = networkx.Graph(graph.edges)
    statistics = statistics_of_graph(graph)
    assert statistics.degree == average_degree(graph) == pytest.approx(np.mean([d for _, d in undirected.degree]))
    assert statistics.path == average_path(graph) == pytest.approx(networkx.average_shortest_path_length(undirected))
    assert statistics.diameter == networkx.diameter(undirected)
    assert statistics.depth == networkx.dag_longest_path_length(networkx.DiGraph(graph.edges))


def test_a_triangle_with_a_tail_has_the_statistics_that_one_counts() -> None:
    graph = Graph((Node("input"), Node("sum"), Node("sum"), Node("conv")), ((0, 1), (0, 2), (1, 2), (2, 3)))
    statistics = statistics_of_graph(graph)
    assert statistics[:4] == (2, (1 + 1 + 2 + 1 + 2 + 1) / 6, 2, 3)
    shares = dict(zip(PRIMITIVES, statistics.shares, strict=True))
    assert {primitive: share for primitive, share in shares.items() if share} == {
        "input": 0.25,
        "sum": 0.5,
        "conv": 0.25,
    }


def test_degree_and_path_of_resnet50_are_the_published_ones() -> None:
    graph = PREDEFINED["resnet50"].graph(32, 10)
    assert len(graph.nodes) == 126
    assert average_degree(graph) == pytest.approx(2.238095238095238)
    assert average_path(graph) == pytest.approx(11.193269841269842)
