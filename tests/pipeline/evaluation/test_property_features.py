from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from evaluation_examples import architecture, example_candidates, make_ghn

from ghn import GHN, GHNConfig, sample_architecture
from ghn.networks.graph import PRIMITIVES
from pipeline.evaluation.networks import Candidate
from pipeline.evaluation.property_features import EMBEDDING, FEATURES, NETWORKS_AT_ONCE, feature_tables
from pipeline.evaluation.property_regression import regress_properties


def test_all_features_have_a_row_for_each_network_by_split_and_index() -> None:
    candidates, ghn = example_candidates(), make_ghn(0)
    tables = feature_tables(candidates, ghn)
    assert {name: table.shape for name, table in tables.items()} == {
        EMBEDDING: (6, 8),
        "size": (6, 3),
        "graph": (6, 19),
    }
    for table in tables.values():
        assert table.index.tolist() == [("test", index) for index in range(6)]
        assert np.isfinite(table.to_numpy()).all()


def test_an_embedding_does_not_depend_on_the_networks_beside_it() -> None:
    ghn, networks = make_ghn(0), [candidate.network for candidate in example_candidates()] * 3
    assert len(networks) > NETWORKS_AT_ONCE
    together = FEATURES[EMBEDDING](networks, ghn)
    alone = np.concatenate([FEATURES[EMBEDDING]([network], ghn) for network in networks])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_sizes_are_the_logarithms_of_parameters_nodes_and_flops() -> None:
    ghn, network = make_ghn(0), architecture("conv_3x3", "skip_connect")
    program = network.program(8, 10)
    expected = [program.num_parameters, len(program.graph.nodes), program.flops]
    assert np.exp(FEATURES["size"]([network], ghn))[0].tolist() == pytest.approx(expected)


def test_graph_features_see_the_wiring_and_not_the_width() -> None:
    ghn, narrow = make_ghn(0), architecture("conv_3x3", "skip_connect")
    first, wider, other = FEATURES["graph"]([narrow, narrow.with_width(64), architecture("conv_3x3", "cse")], ghn)
    assert first.tolist() == wider.tolist() != other.tolist()
    assert first[-len(PRIMITIVES) :].sum() == pytest.approx(1)


@pytest.mark.slow
def test_a_property_that_is_a_function_of_the_graph_is_found_from_embeddings_and_a_random_one_is_not() -> None:
    """The hypernetwork is untrained: its embeddings describe the graph all the same."""
    counts = {"val": 250, "test": 150}
    keys = [(split, index) for split, count in counts.items() for index in range(count)]
    networks = [sample_architecture(0, split, index).with_width(16, 32) for split, index in keys]
    candidates = [Candidate(*key, "", "", network) for key, network in zip(keys, networks, strict=True)]
    torch.manual_seed(0)
    ghn = GHN(GHNConfig(num_classes=10, image_size=16, hidden=32, kernel=3)).eval()
    embeddings = {EMBEDDING: feature_tables(candidates, ghn)[EMBEDDING]}
    graphs = [network.graph(16, 10) for network in networks]
    norms = pd.Series(
        [graph.primitives.count("bn") / len(graph.nodes) for graph in graphs], embeddings[EMBEDDING].index
    )
    is_test = norms.index.get_level_values("split") == "test"
    targets = pd.DataFrame({"norms": norms, "reversed": norms.where(~is_test, -norms)})
    targets["random"] = np.random.default_rng(1).permutation(norms)
    scores, _ = regress_properties(embeddings, targets, 200, 0)
    tau = scores.set_index("target")["tau"]
    assert tau["norms"] > 0.9
    assert tau["reversed"] < -0.9
    assert abs(tau["random"]) < 0.1
