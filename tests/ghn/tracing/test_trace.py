"""Graphs of traced networks: programs have their own graph again; networks that are hard to run are run or refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from examples import CLASSES, architectures, images, tiny_ghn
from hypothesis import given
from hypothesis import strategies as st
from small_networks import Calls, parameter
from torch import Tensor, nn
from torch.nn import functional as F

from ghn import Architecture, TracingError, trace
from ghn.deepnets1m.predefined import PREDEFINED


@given(architectures(), st.sampled_from([8, 16, 32, 224]))
def test_modules_of_programs_are_traced_to_the_graph_of_their_program(architecture: Architecture, size: int) -> None:
    with torch.device("meta"):
        module = architecture.module(size, CLASSES)
    assert trace(module, image_size=size) == architecture.graph(size, CLASSES)


@pytest.mark.parametrize("name", PREDEFINED)
@pytest.mark.parametrize("size", [32, 224])
def test_the_predefined_networks_are_traced_to_the_graph_of_their_program(name: str, size: int) -> None:
    with torch.device("meta"):
        module = PREDEFINED[name].module(size, 10)
    assert trace(module, image_size=size) == PREDEFINED[name].graph(size, 10)


@given(architectures())
def test_a_module_that_runs_with_numbers_is_traced_to_the_same_graph(architecture: Architecture) -> None:
    """A branch on a value is impossible on the meta device."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = architecture.module(16, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x) if x.sum() < 1 else x

    expected = architecture.graph(16, CLASSES)
    graph = trace(Branches(), image_size=16)
    assert graph.primitives == expected.primitives and graph.edges == expected.edges
    assert [p.name for p in graph.parameters] == [f"network.{p.name}" for p in expected.parameters]


def test_a_network_is_as_it_was_after_it_was_traced() -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.seen = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), None
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.seen = self.norm(self.conv(x))
            self.count += 1
            return self.seen

    network = Remembers().train()
    network.conv.eval()
    before = {name: (tensor, tensor.clone()) for name, tensor in network.state_dict(keep_vars=True).items()}
    trace(network)
    assert network.training and network.norm.training and not network.conv.training and network.seen is None
    for name, tensor in network.state_dict(keep_vars=True).items():
        assert tensor is before[name][0] and torch.equal(tensor, before[name][1])
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_network_can_be_traced_where_gradients_are_off(context: Callable) -> None:
    with context():
        assert trace(nn.Conv2d(3, 4, 1), image_size=8).primitives == ["input", "conv", "bias"]


def test_frozen_parameters_are_traced_too() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)).requires_grad_(False)
    assert len(trace(network, image_size=8).parameters) == 4
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_networks_of_other_number_types_are_traced(dtype: torch.dtype) -> None:
    assert trace(nn.Conv2d(3, 4, 1).to(dtype)).primitives == ["input", "conv", "bias"]


def test_the_image_size_is_found_by_trying() -> None:
    """A LeNet for 28×28 grey images does not declare that size."""
    network = nn.Sequential(nn.Conv2d(1, 6, 5), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * 12 * 12, 10))
    assert trace(network).primitives == ["input", "conv", "bias", "max_pool", "conv", "bias"]


def test_several_inputs_and_outputs_are_traced() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(4, 3), nn.Linear(5, 3)

        def forward(self, x: Tensor, y: Tensor) -> dict[str, list[Tensor]]:
            left, right = self.left(x), self.right(y)
            return {"both": [left + right], "one": [left]}

    graph = trace(Two(), (torch.zeros(2, 4), torch.zeros(2, 5)))
    assert sorted(graph.primitives) == ["bias", "bias", "conv", "conv", "input", "input", "sum"]


def test_images_that_the_network_does_not_take_are_an_error_that_says_so() -> None:
    network = nn.Sequential(nn.Conv2d(3, 6, 5), nn.Flatten(), nn.Linear(10, 10))
    with pytest.raises(
        TracingError, match=r"Sequential does not run on inputs of \(2, 3, 64, 64\).*: give its `inputs`"
    ):
        trace(network, image_size=64)
    with pytest.raises(TracingError, match="does not run on inputs of"):
        trace(network)


def test_the_advice_is_a_size_of_images_only_where_that_helps() -> None:
    of_28_pixels = nn.Sequential(nn.Conv2d(3, 2, 5), nn.Flatten(), nn.Linear(2 * 24 * 24, 10))
    with pytest.raises(TracingError, match=r"inputs of \(2, 3, 64, 64\).*: it does with image_size=28$"):
        trace(of_28_pixels, image_size=64)
    with pytest.raises(TracingError, match=r": give its `inputs`$"):
        trace(Calls(lambda self, x: self.layer(x.no_such_attribute), layer=nn.Conv2d(3, 4, 1)), image_size=64)
    with pytest.raises(TracingError, match=r"mat1 and mat2 shapes cannot be multiplied[^:]*$"):
        trace(of_28_pixels, inputs=torch.zeros(2, 3, 64, 64))


def test_an_output_that_depends_on_nothing_is_an_error() -> None:
    with pytest.raises(TracingError, match="no output"):
        trace(Calls(lambda self, x: torch.zeros(3), layer=nn.Linear(2, 2)))


def test_lazy_layers_are_an_error_that_says_what_to_do() -> None:
    with pytest.raises(TracingError, match="run it once"):
        trace(nn.LazyConv2d(4, 1))


def test_a_traced_network_has_the_features_of_its_images() -> None:
    """Parameters that are predicted from the recorded forward pass give finite logits in a real one."""
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, CLASSES)
    )
    tiny_ghn().predict(network, image_size=16)
    assert network.eval()(images(16)).isfinite().all()


def test_a_layer_that_merges_weights_in_evaluation_mode_keeps_its_own() -> None:
    class Merges(nn.Linear):
        def train(self, mode: bool = True) -> nn.Module:
            if not mode:
                self.weight.data += 1
            return super().train(mode)

    layer = Merges(4, 4)
    before = layer.weight.clone()
    trace(layer)
    assert torch.equal(layer.weight, before)


def test_a_network_that_runs_with_numbers_and_writes_into_its_weights_keeps_its_own() -> None:
    class Writes(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if x.sum() < 1:  # impossible on the meta device
                self.weight.data.zero_()
            return super().forward(x)

    layer = Writes(4, 4)
    before = layer.weight.clone()
    trace(layer)
    assert torch.equal(layer.weight, before)


def test_parameters_that_are_also_kept_in_a_list_are_found() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = parameter(4, 3, 1, 1)
            self.weights = [self.weight]

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weights[0])

    graph = trace(Keeps(), image_size=8)
    assert graph.primitives == ["input", "conv"] and not graph.not_predicted


def test_the_channels_are_those_of_the_first_layer_whatever_is_declared() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 26 * 26, 3))
    network.image_size = 28
    assert trace(network).primitives == trace(network, image_size=28).primitives == ["input", *["conv", "bias"] * 2]


def test_outputs_of_any_kind_are_found() -> None:
    class Output(dict):
        pass

    @dataclass
    class Other:
        logits: Tensor
        nothing: None = None

    for wrap in (lambda y: Output(logits=y), lambda y: Other(y), lambda y: (None, {"a": [y]})):
        network = Calls(lambda self, x, wrap=wrap: wrap(self.layer(x)), layer=nn.Linear(4, 3))
        assert trace(network, torch.zeros(2, 4)).primitives == ["input", "conv", "bias"]


def test_scripted_networks_are_an_error_and_stay_as_they_are() -> None:
    network = nn.Sequential(nn.Linear(4, 4), torch.jit.script(nn.Linear(4, 4)))
    with pytest.raises(TracingError, match="scripted"):
        trace(network)
    assert all(layer.training for layer in network.modules())


def test_a_parameter_without_elements_is_not_predicted() -> None:
    network = Calls(
        lambda self, x: torch.cat([self.layer(x), self.more], 1), layer=nn.Linear(4, 3), more=parameter(2, 0)
    )
    report = tiny_ghn().predict(network, torch.zeros(2, 4))
    assert report.predicted == ("layer.weight", "layer.bias")
    assert report.not_predicted == {"more": "it has no elements"}


def test_the_report_says_what_is_computed_for_nothing() -> None:
    network = Calls(
        lambda self, x: self.layer(x) if self.other(x) is not None else x, layer=nn.Linear(4, 3), other=nn.Linear(4, 3)
    )
    reasons = trace(network, torch.zeros(2, 4)).not_predicted
    assert set(reasons) == {"other.weight", "other.bias"}
    assert set(reasons.values()) == {"it is used, but no gradients flow to it from the output"}


@pytest.mark.parametrize("wrong", ["images", [torch.zeros(2, 4), None], {0: torch.zeros(2, 4)}])
def test_inputs_of_another_kind_are_an_error(wrong: object) -> None:
    with pytest.raises(TracingError, match="inputs must be a tensor, a sequence of tensors, or a mapping of keyword"):
        trace(nn.Linear(4, 4), wrong)


class Reads(nn.Module):
    """A network of texts that is a function of its embedding, its linear layer, and keyword arguments."""

    def __init__(self, function: Callable[..., Tensor]):
        super().__init__()
        self.function, self.words, self.layer = function, nn.Embedding(20, 8), nn.Linear(8, CLASSES)

    def forward(self, ids: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
        return self.layer(self.function(self, ids, mask) * scale)


IDS = torch.tensor([[5, 6, 7, 2], [8, 9, 3, 2]])
READS = ["pos_enc", "conv", "bias"]


def test_inputs_may_be_keyword_arguments_of_any_kind() -> None:
    network = Reads(lambda self, ids, mask: (self.words(ids) * mask[..., None]).sum(1))
    graph = trace(network, {"ids": IDS, "mask": IDS > 2, "scale": 2.0})
    assert graph.primitives == READS and [node.is_class_layer for node in graph.nodes] == [False, True, True]
    report = tiny_ghn().predict(network, {"ids": IDS, "mask": IDS > 2})
    assert report.predicted == ("words.weight", "layer.weight", "layer.bias")


def test_keyword_arguments_of_another_name_are_an_error_that_says_so() -> None:
    with pytest.raises(TracingError, match=r"Reads does not run on inputs of \(2, 4\) .*unexpected keyword argument"):
        trace(Reads(lambda self, ids, mask: self.words(ids).sum(1)), {"tokens": IDS})


def _last_word(self: Reads, ids: Tensor, mask: Tensor | None) -> Tensor:
    return self.words(ids)[torch.arange(len(ids)), (ids != 2).sum(1)]


def _ends(self: Reads, ids: Tensor, mask: Tensor | None) -> Tensor:
    return self.words(ids)[ids == 2, :].view(len(ids), -1, 8)[:, -1]


def _written_over(self: Reads, ids: Tensor, mask: Tensor | None) -> Tensor:
    x = self.words(ids).clone()
    x[ids == 2] = 0
    return x.mean(1)


def _of_known_length(self: Reads, ids: Tensor, mask: Tensor | None) -> Tensor:
    longest = (ids != 2).sum(1).max()
    return F.interpolate(self.words(ids).transpose(1, 2), size=(longest,)).view(len(ids), 8, longest).mean(2)


def _branches(self: Reads, ids: Tensor, mask: Tensor | None) -> Tensor:
    x = self.words(ids)
    return x.mean(1) if (ids == 2).any() and ids.unique_consecutive().numel() > 3 else x.exp()


@pytest.mark.parametrize("function", [_last_word, _ends, _written_over, _of_known_length, _branches])
def test_tokens_keep_their_numbers_where_features_have_none(function: Callable[..., Tensor]) -> None:
    """What depends on tokens alone is known: masks, lengths, branches. So the network needs no memory of its own."""
    network = Reads(function)
    assert [p for p in trace(network, {"ids": IDS}).primitives if p != "glob_avg"] == READS
    assert network.words.weight.isfinite().all() and network(IDS).shape == (2, CLASSES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ghn.tracing.trace.CPU_ATTEMPTS", 0)
        trace(network, {"ids": IDS})  # runs without the numbers of features
