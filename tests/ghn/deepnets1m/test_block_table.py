from __future__ import annotations

import numpy as np
import pytest
from examples import CLASSES, architectures
from hypothesis import given
from hypothesis import strategies as st

from ghn import Architecture
from ghn.deepnets1m.predefined import PREDEFINED
from ghn.networks.network import Network
from ghn.networks.node_table import NodeTable, joined, table_of


def assert_same(table: NodeTable, other: NodeTable) -> None:
    for array, expected in zip(table, other, strict=True):
        assert array.dtype == expected.dtype == np.int32
        np.testing.assert_array_equal(array, expected)


@given(architectures(), st.sampled_from((8, 16, 28, 32, 64, 224)), st.sampled_from((8, 16, 64)))
def test_a_table_of_blocks_is_that_of_the_graph(architecture: Architecture, size: int, width: int) -> None:
    network = architecture.with_width(width)
    assert_same(network.node_table(size, CLASSES), table_of(network.compile(size, CLASSES).graph))


@pytest.mark.parametrize("network", PREDEFINED.values(), ids=PREDEFINED)
def test_predefined_networks_have_a_table_too(network: Network) -> None:
    assert_same(network.node_table(32, 10), table_of(network.graph(32, 10)))


def test_joined_tables_keep_their_edges() -> None:
    tables = [PREDEFINED[name].node_table(32, 10) for name in ("vit", "resnet50", "darts")]
    whole, sizes = joined(tables)
    starts = np.cumsum(sizes) - sizes
    for table, start, size in zip(tables, starts, sizes, strict=True):
        np.testing.assert_array_equal(whole.nodes_N5[start : start + size], table.nodes_N5)
        of_graph_E = (whole.edges_E2[:, 0] >= start) & (whole.edges_E2[:, 0] < start + size)
        np.testing.assert_array_equal(whole.edges_E2[of_graph_E] - start, table.edges_E2)
