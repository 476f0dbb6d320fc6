"""Against what the public GHN-2 code computed (DESIGN, section 15)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch

from ghn import GHN, Architecture
from ghn.graphs import Graph, distance_sum
from ghn.predefined import PREDEFINED

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = json.loads((GOLDEN / "deepnets_ghn2.json").read_text())
RESNET = json.loads((GOLDEN / "ghn2.json").read_text())["resnet50"]
LONGEST = 50


@pytest.fixture(scope="module")
def ghn() -> GHN:
    return GHN.from_public_checkpoint(GOLDEN / "ghn2.pt")


def as_networkx(primitives: list[str], edges: Any) -> nx.DiGraph:
    graph = nx.DiGraph()
    graph.add_nodes_from((node, {"primitive": primitive}) for node, primitive in enumerate(primitives))
    graph.add_edges_from(map(tuple, edges))
    return graph


def assert_isomorphic(graph: Graph, primitives: list[str], edges: list[list[int]]) -> None:
    ours, golden = as_networkx(graph.primitives, graph.edges), as_networkx(primitives, edges)
    assert nx.is_isomorphic(ours, golden, node_match=lambda a, b: a["primitive"] == b["primitive"])


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_an_architecture_has_the_golden_graph_and_size(case: dict[str, Any]) -> None:
    architecture = Architecture.from_dict(case["arch"])
    graph = architecture.graph(32, 10)
    assert_isomorphic(graph, case["nodes"], case["edges"])
    assert distance_sum(graph, LONGEST) == case["distance_sum"]
    assert len(graph.virtual_edges(LONGEST)[0]) == len(case["edges"]) + case["n_virtual"]
    assert architecture.num_parameters(32, 10) == case["num_params"]


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_a_predicted_network_gives_the_golden_logits(ghn: GHN, case: dict[str, Any]) -> None:
    architecture = Architecture.from_dict(case["arch"])
    x = torch.sin(0.01 * torch.arange(8 * 3 * 32 * 32)).view(8, 3, 32, 32)
    with torch.no_grad():
        (predicted,) = ghn.predict_parameters([architecture])
        logits = architecture.forward(predicted, x)
    torch.testing.assert_close(logits, torch.tensor(case["logits"]), atol=1e-4, rtol=0)


def test_resnet50_has_the_golden_graph() -> None:
    graph = PREDEFINED["resnet50"].graph(224, 10)
    assert_isomorphic(graph, RESNET["nodes"], RESNET["edges_1hop"])
    assert len(graph.virtual_edges(LONGEST)[0]) == RESNET["n_edges"]


def test_resnet50_is_predicted_as_golden(ghn: GHN) -> None:
    with torch.no_grad():
        (predicted,) = ghn.predict_parameters([PREDEFINED["resnet50"]], image_size=224)
    assert {name: list(tensor.shape) for name, tensor in predicted.items()} == {
        name: golden["shape"] for name, golden in RESNET["params"].items()
    }
    for name, golden in RESNET["params"].items():
        values = predicted[name].flatten()
        assert values.norm().item() == pytest.approx(golden["l2"], rel=1e-4), name
        for part, expected in ((values[:8], golden["head"]), (values[-4:], golden["tail"])):
            torch.testing.assert_close(part, torch.tensor(expected), atol=2e-6, rtol=1e-4)
