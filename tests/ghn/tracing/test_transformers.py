"""Networks of transformers, one of every family: traced, predicted, run, trained, and otherwise as they were."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from examples import CLASSES, tiny_ghn
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase as NormBase
from transformers_networks import (
    LEFT_OUT,
    NETWORKS,
    WITHOUT_ATTENTION,
    WITHOUT_GRADIENTS,
    images,
    inputs_of,
    network_of,
    texts,
)

from ghn import Graph, PredictionReport, trace
from ghn.tracing.trace import Inputs, call_of

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Leave out warnings about kernels that are not installed."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(before)


def state_of(network: nn.Module) -> dict[str, Any]:
    """Return everything of a network but its parameters and the statistics of its norms: contents, by place."""
    found: dict[str, Any] = {}
    waiting: list[tuple[str, Any]] = []
    for name, layer in network.named_modules():
        left_out = ("_buffers", "track_running_stats") if isinstance(layer, NormBase) else ()
        waiting.append((name, {key: value for key, value in layer.__dict__.items() if key not in left_out}))
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, nn.Module | nn.Parameter):
            found[place] = id(value)
        elif isinstance(value, Tensor):
            found[place] = (id(value), value.dtype, value.device, value.nan_to_num().tolist())
        elif isinstance(value, dict):
            found[place] = list(value)
            waiting += [(f"{place}.{key}", part) for key, part in value.items()]
        elif isinstance(value, list | tuple):
            found[place] = len(value)
            waiting += [(f"{place}.{number}", part) for number, part in enumerate(value)]
        elif isinstance(value, transformers.PreTrainedConfig):
            found[place] = value.to_dict()
        else:
            found[place] = value if isinstance(value, bool | int | float | str | None) else id(value)
    return found


def results_of(network: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Return all real numbers that a network returns, in evaluation mode."""
    call = call_of(inputs)
    outputs = network.eval()(*call.arguments, **call.keywords)
    return [value for value in outputs.values() if isinstance(value, Tensor) and value.is_floating_point()]


def gradients_of(network: nn.Module, results: list[Tensor]) -> set[str]:
    """Return the names of the parameters that the results have a gradient for, but for experts, which values choose."""
    sum(result.sum() for result in results if result.requires_grad).backward()
    names = (name for name, parameter in network.named_parameters() if parameter.grad is not None)
    return {name for name in names if ".experts.expert_" not in name}


def assert_accounted_for(name: str, network: nn.Module, report: PredictionReport) -> None:
    names = [name for name, _ in network.named_parameters()]
    assert sorted([*report.predicted, *report.not_predicted]) == sorted(names)
    assert all(report.not_predicted.values())
    parts = LEFT_OUT.get(name, ())
    assert [left for left in report.not_predicted if not any(part in left for part in parts)] == []


def assert_makes_sense(name: str, graph: Graph) -> None:
    """Assert that a graph has the attentions, the class layers and the order of nodes that it should."""
    assert all(source < target for source, target in graph.edges)
    assert ("msa" in graph.primitives) != name.startswith(WITHOUT_ATTENTION)
    class_layers = [node.shape for node in graph.nodes if node.is_class_layer]
    assert bool(class_layers) == ("Classification" in name or "Answering" in name)
    assert all(shape is not None and shape[0] == CLASSES for shape in class_layers)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_transformers_is_predicted_and_runs(name: str) -> None:
    torch.manual_seed(0)
    network, untouched = network_of(name), network_of(name)
    inputs = inputs_of(name)
    before = state_of(network)
    report = tiny_ghn().predict(network, None if NETWORKS[name].make_inputs is None else inputs)
    after = state_of(network)
    assert {key: (value, after.get(key)) for key, value in before.items() if after.get(key) != value} == {}
    assert after.keys() == before.keys()
    assert_accounted_for(name, network, report)
    assert_makes_sense(name, report.graph)
    results, expected = results_of(network, inputs), results_of(untouched, inputs)
    assert results and all(result.isfinite().all() for result in results)
    if name not in WITHOUT_GRADIENTS:
        assert gradients_of(network, results) == gradients_of(untouched, expected)


@pytest.mark.parametrize(
    "name",
    ["BertModel", "GPT2LMHeadModel", "LlamaForCausalLM", "SwinForImageClassification", "T5ForConditionalGeneration"],
)
def test_the_graph_is_the_same_for_every_implementation_of_attention(name: str) -> None:
    network, inputs = network_of(name), inputs_of(name)
    graphs = []
    for implementation in ("eager", "sdpa"):
        network.set_attn_implementation(implementation)
        graphs.append(trace(network, inputs))
    assert graphs[0] == graphs[1]


@pytest.mark.parametrize("name", ["ViTForImageClassification", "SegformerForSemanticSegmentation"])
def test_hidden_states_are_returned_as_before_after_a_trace(name: str) -> None:
    """Hooks that collect them are put on layers at the first call, and a note on the network says so."""
    untouched, traced = network_of(name), network_of(name)
    trace(traced, {"pixel_values": images(), "output_hidden_states": True})
    lengths = [len(network(images(), output_hidden_states=True).hidden_states) for network in (untouched, traced)]
    assert lengths[0] == lengths[1] > 1


def test_a_batch_of_a_tokeniser_is_an_input() -> None:
    batch = transformers.BatchEncoding(texts())
    graph = trace(network_of("BertForSequenceClassification"), batch)
    assert not graph.not_predicted and sum(node.is_class_layer for node in graph.nodes) == 2
