from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from examples import CLASSES, architectures, graphs, sample
from hypothesis import given
from hypothesis import strategies as st

from ghn import Architecture
from ghn.deepnets1m.predefined import PREDEFINED
from ghn.networks.graph import Graph, Node
from ghn.networks.node_table import NodeTable, table_of
from ghn.similarity.weisfeiler_lehman import features, similarities

CHAIN = Graph((Node("input"), Node("conv", (8, 3, 3, 3)), Node("bn", (8, 1, 1, 1))), ((0, 1), (1, 2)))


def similarity_of_all(*networks: Architecture) -> np.ndarray:
    found = features([network.node_table(32, CLASSES) for network in networks])
    return similarities(found, found)


def by_hand(one: Graph, two: Graph, rounds: int) -> float:
    """Return the mean of the normalised kernels of two graphs, with nested tuples as labels."""

    def counts(graph: Graph, has_shape: bool) -> Counter:
        total: Counter = Counter()
        labels: list = [(node.primitive, node.shape if has_shape else ()) for node in graph.nodes]
        for number in range(rounds + 1):
            total.update((number, label) for label in labels)
            labels = [
                (
                    labels[v],
                    tuple(sorted((labels[a] for a, b in graph.edges if b == v), key=repr)),
                    tuple(sorted((labels[b] for a, b in graph.edges if a == v), key=repr)),
                )
                for v in range(len(labels))
            ]
        return total

    def product(a: Counter, b: Counter) -> int:
        return sum(count * b[label] for label, count in a.items())

    def kernel(a: Counter, b: Counter) -> float:
        return product(a, b) / np.sqrt(product(a, a) * product(b, b))

    return np.mean([kernel(counts(one, has_shape), counts(two, has_shape)) for has_shape in (False, True)])


@given(graphs(8), graphs(8), st.integers(0, 3))
def test_it_is_the_kernel_of_its_definition(one: Graph, two: Graph, rounds: int) -> None:
    found = similarities(features([table_of(one)], rounds), features([table_of(two)], rounds))
    assert found == pytest.approx(by_hand(one, two, rounds), abs=1e-6)


@given(architectures(), architectures())
def test_equal_graphs_have_similarity_one_and_no_others_do(one: Architecture, two: Architecture) -> None:
    found = similarity_of_all(one, two, one)
    assert [*np.diag(found), found[0, 2]] == pytest.approx([1] * 4, abs=1e-5)
    np.testing.assert_allclose(found, found.T, atol=1e-6)
    assert 0 <= found[0, 1] <= 1
    if len(one.graph(32, CLASSES).nodes) != len(two.graph(32, CLASSES).nodes):
        assert found[0, 1] < 1 - 1e-5


@given(st.lists(architectures(), min_size=2, max_size=4))
def test_graphs_computed_together_have_the_features_that_each_has_alone(networks: list[Architecture]) -> None:
    tables = [network.node_table(16, CLASSES) for network in networks]
    together = features(tables)
    for number, table in enumerate(tables):
        alone, own = features([table]), slice(*together.starts[number : number + 2])
        np.testing.assert_array_equal(together.labels_F[own], alone.labels_F)
        np.testing.assert_array_equal(together.weights_F[own], alone.weights_F)


def test_the_order_of_nodes_does_not_count() -> None:
    graph = PREDEFINED["darts"].graph(32, 10)
    order = np.random.default_rng(0).permutation(len(graph.nodes))
    nodes_N5, edges_E2 = table_of(graph)
    shuffled = NodeTable(nodes_N5[np.argsort(order)], order[edges_E2].astype(np.int32))
    assert similarities(features([NodeTable(nodes_N5, edges_E2)]), features([shuffled])) == pytest.approx(1)


def test_the_direction_of_edges_counts() -> None:
    backwards = replace(CHAIN, edges=tuple((v, u) for u, v in CHAIN.edges))
    found = [features([table_of(graph)], rounds=1) for graph in (CHAIN, backwards)]
    assert similarities(*found) < 0.6


def test_a_wider_network_is_similar_to_the_one_that_it_was_made_from() -> None:
    networks = [sample("train", index) for index in range(60)]
    wide = [network.with_width(88, 16) for network in networks]  # no candidate has 88, 176 or 264 channels
    found = similarities(*[features([network.node_table(32, 10) for network in each]) for each in (wide, networks)])
    assert (np.diag(found) > 0.5).all() and (np.diag(found) < 1).all()
    assert (found.argmax(axis=1) == np.arange(60)).mean() > 0.9


def test_labels_are_the_same_in_every_process() -> None:
    code = (
        "from ghn.deepnets1m.predefined import PREDEFINED; from ghn.similarity.weisfeiler_lehman import features;"
        "print(features([PREDEFINED['vit'].node_table(32, 10)]).labels_F.tolist())"
    )
    outputs = {subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(2)}
    own = features([PREDEFINED["vit"].node_table(32, 10)]).labels_F.tolist()
    assert outputs == {f"{own}\n".encode()}
