from __future__ import annotations

from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
from examples import CLASSES, architectures, graphs, one_operation, sample
from hypothesis import given
from hypothesis import strategies as st

from ghn import Architecture, Genotype
from ghn.networks.graph import PRIMITIVES, Graph, Node
from ghn.networks.graph_batch import GraphBatch

SIZES = st.sampled_from((8, 28, 32, 64, 224))


def as_networkx(graph: Graph) -> nx.DiGraph:
    result = nx.DiGraph(graph.edges)
    result.add_nodes_from(range(len(graph.nodes)))
    return result


def edges_of(graph: Graph, longest: int) -> set[tuple[int, int, int]]:
    return set(zip(*(part.tolist() for part in graph.virtual_edges(longest)), strict=True))


@given(graphs(15) | st.builds(lambda a: a.graph(32, 10), architectures()))
def test_distances_are_lengths_of_shortest_paths(graph: Graph) -> None:
    expected = np.zeros_like(graph.distances)
    for u, lengths in nx.all_pairs_shortest_path_length(as_networkx(graph)):
        for v, length in lengths.items():
            expected[u, v] = length
    assert np.array_equal(graph.distances, expected)


@given(graphs(15), st.integers(1, 6))
def test_virtual_edges_are_the_pairs_up_to_the_longest_distance(graph: Graph, longest: int) -> None:
    lengths = dict(nx.all_pairs_shortest_path_length(as_networkx(graph)))
    expected = {(u, v, d) for u, row in lengths.items() for v, d in row.items() if 1 <= d <= longest}
    assert edges_of(graph, longest) == expected
    assert {(u, v) for u, v, d in edges_of(graph, longest) if d == 1} == set(graph.edges)


def test_pairs_farther_apart_than_the_longest_edge_are_left_out() -> None:
    chain = Graph((Node("conv"),) * 60, tuple(pairwise(range(60))))
    assert {d for _, _, d in edges_of(chain, 50)} == set(range(1, 51))
    assert chain.virtual_edges(50)[2].sum() == sum(d * (60 - d) for d in range(1, 51))


@given(graphs(15) | st.builds(lambda a: a.graph(32, 10), architectures()))
def test_levels_are_the_longest_paths(graph: Graph) -> None:
    expected = np.zeros(len(graph.nodes), dtype=int)
    for level, nodes in enumerate(nx.topological_generations(as_networkx(graph))):
        expected[nodes] = level
    assert np.array_equal(graph.levels, expected)


@given(architectures(), SIZES)
def test_every_parameter_is_on_one_node(architecture: Architecture, size: int) -> None:
    graph = architecture.graph(size, CLASSES)
    on_nodes = [parameter for node in graph.nodes for parameter in node.parameters]
    assert sorted(on_nodes) == sorted(architecture.program(size, CLASSES).parameters())


@given(architectures(), SIZES)
def test_every_node_is_between_the_input_and_the_last_layer(architecture: Architecture, size: int) -> None:
    graph = architecture.graph(size, CLASSES)
    directed, last = as_networkx(graph), len(graph.nodes) - 1
    assert all(u < v for u, v in graph.edges) and len(set(graph.edges)) == len(graph.edges)
    assert nx.ancestors(directed, last) == set(range(last))
    sources = [graph.primitives[v] for v in directed if directed.in_degree(v) == 0]
    assert sorted(sources) == (["input", "pos_enc"] if architecture.has_msa else ["input"])
    assert [v for v in directed if graph.nodes[v].is_class_layer] == [last - 1, last]


@given(architectures())
def test_only_sums_concatenations_and_excitations_join_nodes(architecture: Architecture) -> None:
    graph = architecture.graph(32, CLASSES)
    for primitive, sources in zip(graph.primitives, graph.sources, strict=True):
        joins = primitive in ("sum", "concat", "cse")
        assert len(sources) >= 2 if joins else len(sources) <= 1


@given(architectures(), SIZES)
def test_nodes_have_the_shape_of_their_parameters(architecture: Architecture, size: int) -> None:
    for node in architecture.graph(size, CLASSES).nodes:
        assert node.primitive in PRIMITIVES
        if node.primitive in ("conv", "sep_conv", "dil_conv", "pos_enc", "bias", "bn", "ln"):
            shape = node.parameters[0].shape
            assert node.shape == (*shape, *(1,) * (4 - len(shape)))
            assert len(node.parameters) == (2 if node.primitive in ("bn", "ln") else 1)
        else:
            assert not node.parameters
            assert node.shape == ((1, 1, 3, 3) if node.primitive.endswith("_pool") else None)


PRIMITIVES_OF = {
    "max_pool_3x3": ["max_pool"],
    "avg_pool_3x3": ["avg_pool"],
    "skip_connect": [],
    "sep_conv_3x3": ["sep_conv", "conv", "bn"] * 2,
    "dil_conv_5x5": ["dil_conv", "conv", "bn"],
    "conv_5x5": ["conv", "bn"],
    "conv_7x1_1x7": ["conv", "conv", "bn"],
    "cse": ["conv", "bias", "conv", "bias", "cse"],
    "msa": ["ln", "conv", "msa", "conv", "bias", "sum", "ln", "conv", "bias", "conv", "bias", "sum"],
}


@pytest.mark.parametrize("operation", sorted(PRIMITIVES_OF))
def test_each_operation_has_its_primitives(operation: str) -> None:
    graph = one_operation(operation, n_cells=1, preproc=False).graph(32, 10)
    stem = ["input", "conv", "pos_enc", "sum"] if operation == "msa" else ["input", "conv", "bn"]
    assert graph.primitives == [*stem, *PRIMITIVES_OF[operation], "glob_avg", "conv", "bias"]


def test_a_sum_of_a_node_with_itself_is_no_node() -> None:
    cell = (("skip_connect", 0), ("skip_connect", 1))
    architecture = Architecture(Genotype(cell, (2,), cell, (2,)), n_cells=1, preproc=False)
    assert "sum" not in architecture.graph(32, 10).primitives


@given(st.lists(graphs(), min_size=1, max_size=4), st.integers(1, 4))
def test_a_batch_is_its_graphs_side_by_side_in_levels(several: list[Graph], longest: int) -> None:
    batch = GraphBatch.of(several, longest)
    assert batch.num_graphs == len(several) and batch.num_nodes == sum(len(graph.nodes) for graph in several)
    levels = np.concatenate([np.full(b - a, level) for level, (a, b) in enumerate(pairwise(batch.level_bounds))])
    originals = [(batch.graph_of[i], node.shape[0] - 1) for i, node in enumerate(batch.nodes)]
    assert levels.tolist() == [several[graph].levels[node] for graph, node in originals]
    assert sorted(originals) == [(k, v) for k, graph in enumerate(several) for v in range(len(graph.nodes))]
    edges = {
        (originals[u], originals[v], d)
        for u, v, d in zip(batch.sources, batch.targets, batch.distances.tolist(), strict=True)
    }
    assert edges == {((k, u), (k, v), d) for k, graph in enumerate(several) for u, v, d in edges_of(graph, longest)}


def test_a_graph_is_the_same_at_every_width() -> None:
    architecture = sample("dense", 0)
    narrow, wide = architecture.graph(32, 10), architecture.with_width(128).graph(32, 10)
    assert narrow.primitives == wide.primitives and narrow.edges == wide.edges
