from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from examples import CLASSES, architectures, one_operation
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from ghn import Architecture
from ghn.networks.graph import Graph, Node
from ghn.networks.operations import Parameter
from ghn.similarity.alignment import GAP_COST, Pair, align, cheapest_path, with_parameters

COSTS = arrays(
    np.float64, array_shapes(min_dims=2, max_dims=2, max_side=5), elements=st.floats(0, 10) | st.just(np.inf)
)


def chain(*nodes: tuple[str, int]) -> Graph:
    """Return a chain of nodes with primitives and out channels."""
    made = tuple(Node(name, (n, 1, 1, 1), (Parameter(f"{i}", (n,)),)) for i, (name, n) in enumerate(nodes))
    return Graph(made, tuple((i, i + 1) for i in range(len(nodes) - 1)))


def cost_of(pairs: list[tuple[int, int]], costs_TS: np.ndarray, gap_cost: float) -> float:
    return sum(costs_TS[pair] for pair in pairs) + gap_cost * (sum(costs_TS.shape) - 2 * len(pairs))


@given(COSTS, st.floats(0.1, 5))
def test_no_alignment_is_cheaper(costs_TS: np.ndarray, gap_cost: float) -> None:
    T, S = costs_TS.shape
    every = [
        list(zip(targets, sources, strict=True))
        for count in range(min(T, S) + 1)
        for targets in combinations(range(T), count)
        for sources in combinations(range(S), count)
    ]
    found = cheapest_path(costs_TS, gap_cost)
    assert found in every
    least = min(cost_of(pairs, costs_TS, gap_cost) for pairs in every)
    assert cost_of(found, costs_TS, gap_cost) == pytest.approx(least)


@given(architectures())
def test_a_network_is_aligned_with_itself(architecture: Architecture) -> None:
    graph = architecture.graph(32, CLASSES)
    assert align(graph, graph) == [Pair(n, n) for n in with_parameters(graph)]


@given(architectures(), st.sampled_from((16, 24, 32)))
def test_a_wider_network_is_aligned_node_by_node(architecture: Architecture, width: int) -> None:
    graph, wide = (network.graph(32, CLASSES) for network in (architecture, architecture.with_width(width)))
    assert align(wide, graph) == [Pair(n, n) for n in with_parameters(graph)]


@given(architectures(), architectures())
def test_pairs_are_in_order_and_of_equal_primitives(one: Architecture, two: Architecture) -> None:
    target, source = one.graph(32, CLASSES), two.graph(32, CLASSES)
    pairs = align(target, source)
    assert pairs[-1] == (len(target.nodes) - 1, len(source.nodes) - 1)  # the biases of both class layers
    for (t, s), (later_t, later_s) in pairwise(pairs):
        assert t < later_t and s < later_s
    for t, s in pairs:
        assert target.nodes[t].primitive == source.nodes[s].primitive
        assert target.nodes[t].is_class_layer == source.nodes[s].is_class_layer


def test_a_cell_that_only_one_network_has_is_left_out() -> None:
    source, target = (one_operation("conv_3x3", n_cells=n) for n in (5, 6))
    graph, deeper = source.graph(32, 10), target.graph(32, 10)
    assert len(align(deeper, graph)) == len(with_parameters(graph)) == len(with_parameters(deeper)) - 4


def test_the_nearer_shape_and_depth_are_chosen() -> None:
    middle = chain(("ln", 1), ("conv", 16), ("ln", 1))
    assert align(middle, chain(("ln", 1), ("conv", 16), ("conv", 64), ("conv", 4), ("ln", 1))) == [
        (0, 0),
        (1, 1),
        (2, 4),
    ]
    assert align(middle, chain(("ln", 1), ("conv", 16), ("conv", 16), ("conv", 4), ("ln", 1))) == [
        (0, 0),
        (1, 2),
        (2, 4),
    ]
    assert align(chain(("bn", 8), ("conv", 8)), chain(("conv", 8), ("bn", 8), ("conv", 8))) == [(0, 1), (1, 2)]
    same = chain(("conv", 8), ("conv", 8), ("conv", 8), ("conv", 8))
    assert align(chain(("conv", 8), ("bn", 8), ("conv", 8)), same) == [(0, 0), (2, 3)]


def test_a_pair_that_costs_more_than_two_gaps_is_none() -> None:
    apart = int(np.exp(2 * GAP_COST)) + 1
    assert align(chain(("conv", 1)), chain(("conv", apart))) == []
    assert align(chain(("conv", 1)), chain(("conv", apart - 2))) == [(0, 0)]
    assert align(chain(("conv", 1)), chain(("bn", 1))) == []
