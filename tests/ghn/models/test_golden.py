"""Against what the public codes computed: GHN-2, GHN-1, MLP, GHN-3 and LoGAH, with random weights."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import networkx as nx
import pytest
import torch
import torchvision
from small_settings import ROOT

from ghn import GHN, Architecture
from ghn.deepnets1m.predefined import PREDEFINED
from ghn.networks.graph import Graph

GOLDEN = ROOT / "tests/golden"
CASES = json.loads((GOLDEN / "deepnets_ghn2.json").read_text())
VARIANTS = ("ghn2", "ghn1", "mlp", "ghn3", "logah")
RESNETS = {variant: json.loads((GOLDEN / f"{variant}.json").read_text()) for variant in VARIANTS}
LONGEST = 50


@lru_cache
def hypernetwork(variant: str) -> GHN:
    return GHN.from_public_checkpoint(GOLDEN / f"{variant}.pt")


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
    distances = graph.virtual_edges(LONGEST)[2]
    assert distances.sum() == case["distance_sum"]
    assert len(distances) == len(case["edges"]) + case["n_virtual"]
    assert architecture.num_parameters(32, 10) == case["num_params"]


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_a_predicted_network_gives_the_golden_logits(case: dict[str, Any]) -> None:
    architecture = Architecture.from_dict(case["arch"])
    x = torch.sin(0.01 * torch.arange(8 * 3 * 32 * 32)).view(8, 3, 32, 32)
    with torch.no_grad():
        (predicted,) = hypernetwork("ghn2").predict_parameters([architecture])
        logits = architecture.forward(predicted, x)
    torch.testing.assert_close(logits, torch.tensor(case["logits"]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_the_module_of_a_golden_architecture_is_traced_to_its_graph_and_predicted_to_its_logits(
    case: dict[str, Any],
) -> None:
    module = Architecture.from_dict(case["arch"]).module(32, 10)
    report = hypernetwork("ghn2").predict(module)
    assert_isomorphic(report.graph, case["nodes"], case["edges"])
    x = torch.sin(0.01 * torch.arange(8 * 3 * 32 * 32)).view(8, 3, 32, 32)
    with torch.no_grad():
        logits = module.eval()(x)
    torch.testing.assert_close(logits, torch.tensor(case["logits"]), atol=1e-4, rtol=0)


def assert_golden(parameters: dict[str, torch.Tensor], golden: dict[str, Any]) -> None:
    assert {name: list(tensor.shape) for name, tensor in parameters.items()} == {
        name: expected["shape"] for name, expected in golden["params"].items()
    }
    for name, expected in golden["params"].items():
        values = parameters[name].flatten()
        assert values.norm().item() == pytest.approx(expected["l2"], rel=1e-4), name
        assert values.mean().item() == pytest.approx(expected["mean"], rel=1e-4, abs=2e-6), name
        assert values.std().item() == pytest.approx(expected["std"], rel=1e-4), name
        for part, numbers in ((values[:8], expected["head"]), (values[-4:], expected["tail"])):
            torch.testing.assert_close(part, torch.tensor(numbers), atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_torchvision_network_is_traced_and_predicted_as_golden(variant: str, name: str) -> None:
    ghn, golden = hypernetwork(variant), RESNETS[variant][name]
    network = torchvision.models.get_model(name, num_classes=10)
    report = ghn.predict(network)
    assert_isomorphic(report.graph, golden["nodes"], golden["edges_1hop"])
    longest = 1 if variant == "ghn1" else LONGEST
    distances = report.graph.virtual_edges(longest)[2]
    assert len(distances) == golden["n_edges"]
    if variant in ("ghn3", "logah"):
        assert distances.sum() == golden["distance_sum"]
    assert not report.not_predicted
    assert_golden({name: parameter.detach() for name, parameter in network.named_parameters()}, golden)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_predefined_resnet50_is_predicted_as_golden(variant: str) -> None:
    network, golden = PREDEFINED["resnet50"], RESNETS[variant]["resnet50"]
    assert_isomorphic(network.graph(224, 10), golden["nodes"], golden["edges_1hop"])
    with torch.no_grad():
        (predicted,) = hypernetwork(variant).predict_parameters([network], image_size=224)
    assert_golden(predicted, golden)
