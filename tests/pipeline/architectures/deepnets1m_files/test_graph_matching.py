from __future__ import annotations

import networkx as nx
import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from ghn.deepnets1m.sampling import sample_architecture
from ghn.networks.graph import PRIMITIVES, Graph
from pipeline.architectures.deepnets1m_files.graph_matching import find_matching

SPLITS = st.sampled_from(["train", "deep", "dense"])
ARCHITECTURES = st.builds(sample_architecture, st.just(0), SPLITS, st.integers(0, 20))
RANDOM = st.integers(0, 1000).map(np.random.default_rng)


def labels_of(graph: Graph) -> np.ndarray:
    return np.array([PRIMITIVES.index(primitive) for primitive in graph.primitives])


def is_matching(p: np.ndarray | None, labels, distances, other_labels, other_distances) -> bool:
    return (
        p is not None
        and sorted(p) == list(range(len(labels)))
        and np.array_equal(labels, other_labels[p])
        and np.array_equal(distances, other_distances[p][:, p])
    )


@given(ARCHITECTURES, RANDOM, st.booleans())
def test_a_graph_is_found_again_in_any_order(architecture, random: np.random.Generator, labelled: bool) -> None:
    graph = architecture.graph(32, 10)
    labels, distances = labels_of(graph) * labelled, graph.distances
    order = random.permutation(len(labels))
    shuffled = labels[order], distances[order][:, order]
    assert is_matching(find_matching(labels, distances, *shuffled), labels, distances, *shuffled)


@given(ARCHITECTURES, RANDOM)
def test_a_graph_with_one_other_label_or_distance_is_another(architecture, random: np.random.Generator) -> None:
    graph = architecture.graph(32, 10)
    labels, distances = labels_of(graph), graph.distances
    order = random.permutation(len(labels))
    shuffled, shuffled_distances = labels[order], distances[order][:, order].copy()
    node, other = random.integers(len(labels), size=2)
    relabelled = shuffled.copy()
    relabelled[node] += 1
    assert find_matching(labels, distances, relabelled, shuffled_distances) is None
    shuffled_distances[node, other] += 1
    assert find_matching(labels, distances, shuffled, shuffled_distances) is None
    assert find_matching(labels, distances, labels[1:], distances[1:, 1:]) is None


@given(st.integers(1, 6), st.integers(0, 3), RANDOM)
def test_small_graphs_match_exactly_if_they_are_isomorphic(N: int, kinds: int, random: np.random.Generator) -> None:
    """Graphs with few nodes and labels have much symmetry, and often only look the same."""
    (labels, distances, one), (others, other_distances, other) = (random_graph(N, kinds, random) for _ in range(2))
    assume(sorted(labels) == sorted(others))
    p = find_matching(labels, distances, others, other_distances)
    expected = nx.is_isomorphic(one, other, node_match=lambda a, b: a == b)
    assert is_matching(p, labels, distances, others, other_distances) == expected
    assert (p is not None) == expected


def random_graph(N: int, kinds: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, nx.DiGraph]:
    labels = random.integers(kinds + 1, size=N)
    graph = nx.DiGraph()
    graph.add_nodes_from((node, {"label": label}) for node, label in enumerate(labels))
    graph.add_edges_from(np.argwhere(np.triu(random.random((N, N)) < 0.5, 1)).tolist())
    distances = np.zeros((N, N), dtype=np.int16)
    for source, lengths in nx.all_pairs_shortest_path_length(graph):
        distances[source, list(lengths)] = list(lengths.values())
    return labels, distances, graph


def test_regular_graphs_that_colours_cannot_tell_apart_are_told_apart() -> None:
    """Two circles of three nodes against one of six: with only the edges as distances, all nodes look the same."""
    circles = np.array([[0, 1, 1, 0, 0, 0], [1, 0, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]])
    circles = np.vstack([circles, np.roll(circles, 3, axis=1)])
    one = np.roll(np.eye(6, dtype=int), 1, axis=0) + np.roll(np.eye(6, dtype=int), -1, axis=0)
    same = np.zeros(6, dtype=int)
    assert find_matching(same, circles, same, one) is None
    order = np.array([0, 3, 1, 4, 2, 5])
    shuffled = circles[order][:, order]
    assert is_matching(find_matching(same, circles, same, shuffled), same, circles, same, shuffled)
