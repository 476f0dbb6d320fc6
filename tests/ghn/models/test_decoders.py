from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ghn.models.conv_decoder import ConvDecoder
from ghn.models.parameter_decoder import ParameterDecoder
from ghn.models.vector_decoder import VectorDecoder
from ghn.networks.graph import Graph, Node
from ghn.networks.graph_batch import GraphBatch
from ghn.networks.operations import Parameter

HIDDEN, KERNEL, CLASSES = 8, 3, 5
WIDEST = 2 * HIDDEN


def decoder(normalise: bool) -> ParameterDecoder:
    return parameter_decoder(HIDDEN, KERNEL, CLASSES, normalise)


def parameter_decoder(hidden: int, kernel: int, num_classes: int, normalise: bool) -> ParameterDecoder:
    torch.manual_seed(0)
    weights, vectors = ConvDecoder(hidden, kernel, num_classes), VectorDecoder(hidden, num_classes)
    return ParameterDecoder(weights, vectors, normalise).double()


def weight(name: str, shape: tuple[int, ...], primitive: str = "conv", is_class_layer: bool = False) -> Node:
    four = (*shape, *(1,) * (4 - len(shape)))
    role = "encoding" if primitive == "pos_enc" else "weight"
    return Node(primitive, four, (Parameter(f"{name}.weight", shape, role),), is_class_layer)


def bias(name: str, size: int, is_class_layer: bool = False) -> Node:
    return Node("bias", (size, 1, 1, 1), (Parameter(f"{name}.bias", (size,), "bias"),), is_class_layer)


def norm(name: str, size: int) -> Node:
    parameters = (Parameter(f"{name}.weight", (size,), "scale"), Parameter(f"{name}.bias", (size,), "bias"))
    return Node("bn", (size, 1, 1, 1), parameters)


NODES = (
    Node("input"),
    weight("smaller", (6, 3, 3, 3)),
    weight("same", (WIDEST, WIDEST, 3, 3)),
    weight("one", (6, 3, 1, 1)),
    weight("wider", (40, 20, 3, 3)),
    weight("wider_out", (40, 7, 1, 1)),
    weight("wider_in", (7, 40, 1, 1)),
    weight("depthwise", (20, 1, 3, 3), "sep_conv"),
    weight("row", (8, 8, 1, 3)),
    weight("column", (8, 8, 3, 1)),
    weight("linear", (12, 33)),
    weight("linear_of_one", (12, 1)),
    weight("position", (1, 8, 2, 2), "pos_enc"),
    weight("large_kernel", (6, 3, 5, 5)),
    weight("large_position", (1, 24, 6, 6), "pos_enc"),
    norm("narrow_norm", 6),
    norm("wide_norm", 40),
    bias("bias", 12),
    bias("wide_bias", 50),
    weight("classes", (CLASSES, 40), is_class_layer=True),
    bias("classes", CLASSES, is_class_layer=True),
)
BATCH = GraphBatch.of([Graph(NODES, ())], 1)


def tile(x: Tensor, dim: int, size: int) -> Tensor:
    """Repeated, then cut."""
    return torch.cat([x] * -(-size // x.shape[dim]), dim).narrow(dim, 0, size)


def full_decode(decoder: ParameterDecoder, h: Tensor) -> Tensor:
    """Return everything that the convolutional decoder can predict for one node: (2H, 2H, S, S)."""
    part = decoder.weights
    x = F.relu(part.expand(h)).view(1, 4 * HIDDEN, KERNEL, KERNEL)
    x = F.relu(F.conv2d(x, part.mix.weight[:, :, None, None], part.mix.bias))
    x = F.conv2d(x, part.channels.weight[:, :, None, None], part.channels.bias)
    return x.view(WIDEST, WIDEST, KERNEL, KERNEL)


def reference(decoder: ParameterDecoder, h: Tensor, node: Node) -> dict[str, Tensor]:
    """Return the parameters of one node, from the definition: decode in full, cut or repeat, normalise."""
    first = node.parameters[0]
    if len(first.shape) > 1:
        out, inputs, kh, kw = node.shape
        decoded = full_decode(decoder, h)
        if node.is_class_layer:
            decoded = F.relu(decoded[:, :, 0, 0])
            decoded = (decoder.weights.classes.weight @ decoded) + decoder.weights.classes.bias[:, None]
            decoded = decoded[:, :, None, None]
        decoded = tile(tile(decoded, 0, out), 1, inputs)[:, :, :kh, :kw]
        if max(kh, kw) > KERNEL:
            decoded = F.interpolate(decoded, size=(kh, kw), mode="bilinear")
        if decoder.normalise and node.primitive != "pos_enc":
            halved = len(first.shape) == 4 and (inputs == 1 or kh < kw)
            decoded = decoded * math.sqrt((1 if halved else 2) / (inputs * kh * kw))
        return {first.name: decoded.reshape(first.shape)}
    rows = decoder.vectors.mlp(h).view(2, WIDEST)
    result = {}
    for parameter in node.parameters:
        is_weight = parameter.name.endswith("weight")
        vector = rows[0] if is_weight else rows[1]
        if node.is_class_layer:
            vector = decoder.vectors.classes(F.relu(rows[1]))
        vector = tile(vector, 0, parameter.size)
        if decoder.normalise:
            vector = 2 * torch.sigmoid(vector / 2) if is_weight else torch.tanh(vector / 5)
        result[parameter.name] = vector
    return result


@pytest.mark.parametrize("normalise", [True, False])
def test_decoding_only_what_is_needed_gives_the_slice_of_the_whole(normalise: bool) -> None:
    decode = decoder(normalise)
    h = torch.randn(len(NODES), HIDDEN, dtype=torch.float64).requires_grad_()
    (predicted,) = decode(h, BATCH)
    expected: dict[str, Tensor] = {}
    for state, node in zip(h, BATCH.nodes, strict=True):
        if node.parameters:
            expected |= reference(decode, state, node)
    assert predicted.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(predicted[name], tensor, msg=lambda text, name=name: f"{name}: {text}")

    cotangents = {name: torch.randn_like(tensor) for name, tensor in expected.items()}
    inputs = [h, *decode.parameters()]
    gradients, wanted = (
        torch.autograd.grad(sum((tensors[name] * cotangents[name]).sum() for name in expected), inputs)
        for tensors in (predicted, expected)
    )
    names = ["h", *(name for name, _ in decode.named_parameters())]
    for name, gradient, want in zip(names, gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, want, msg=lambda text, name=name: f"{name}: {text}")


def test_graphs_without_weights_are_decoded() -> None:
    batch = GraphBatch.of([Graph((Node("input"), norm("norm", 4)), ((0, 1),))], 1)
    (predicted,) = decoder(normalise=True)(torch.randn(2, HIDDEN).double(), batch)
    assert list(predicted) == ["norm.weight", "norm.bias"]


def test_nodes_of_one_group_are_told_apart() -> None:
    nodes = tuple(weight(f"conv{n}", (6, 3, 3, 3)) for n in range(3)) + tuple(norm(f"norm{n}", 6) for n in range(3))
    batch = GraphBatch.of([Graph(nodes[::2], ()), Graph(nodes[1::2], ())], 1)
    h = torch.randn(6, HIDDEN, dtype=torch.float64)
    decode = decoder(True)
    predicted = decode(h, batch)
    for state, node, graph in zip(h, batch.nodes, batch.graph_of, strict=True):
        for name, tensor in reference(decode, state, node).items():
            torch.testing.assert_close(predicted[graph][name], tensor)


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("smaller", math.sqrt(2 / 27)),
        ("wider", math.sqrt(2 / 180)),
        ("depthwise", math.sqrt(1 / 9)),
        ("row", math.sqrt(1 / 24)),
        ("column", math.sqrt(2 / 24)),
        ("linear", math.sqrt(2 / 33)),
        ("linear_of_one", math.sqrt(2)),
        ("classes", math.sqrt(2 / 40)),
        ("position", 1),
    ],
)
def test_weights_are_scaled_by_their_fan_in(name: str, factor: float) -> None:
    h = torch.randn(len(NODES), HIDDEN, dtype=torch.float64)
    raw, normalised = (decoder(normalise)(h, BATCH)[0][f"{name}.weight"] for normalise in (False, True))
    torch.testing.assert_close(normalised, raw * factor)


def test_norm_weights_and_biases_are_squashed() -> None:
    h = 50 * torch.randn(len(NODES), HIDDEN, dtype=torch.float64)
    (raw,), (normalised,) = (decoder(normalise)(h, BATCH) for normalise in (False, True))
    weights, biases = raw["wide_norm.weight"], raw["wide_norm.bias"]
    torch.testing.assert_close(normalised["wide_norm.weight"], 2 / (1 + torch.exp(-weights / 2)))
    torch.testing.assert_close(normalised["wide_norm.bias"], torch.tanh(biases / 5))
    torch.testing.assert_close(normalised["classes.bias"], torch.tanh(raw["classes.bias"] / 5))
    torch.testing.assert_close(weights[:WIDEST], weights[WIDEST : 2 * WIDEST])


SIZES = [(4, 4, 2, 2), (3, 2, 1, 1), (4, 1, 1, 2)]
"""Sizes that overlap, so that their gradients are added up in the same weights."""


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape))).requires_grad_()


class Applied(nn.Module):
    """A decoder as a function of its states alone."""

    def __init__(self, decode: nn.Module, function: Callable[..., Any]):
        super().__init__()
        self.decode, self.function = decode, function

    def forward(self, *states: Tensor) -> Any:
        return self.function(*states)


def assert_gradients(decode: nn.Module, function: Callable[..., Any], *states: Tensor) -> None:
    """Assert that numerical and analytical gradients agree, at the states and at all weights."""
    module = Applied(decode, function)
    names = [name for name, _ in module.named_parameters()]

    def called(*values: Tensor) -> Any:
        return functional_call(module, dict(zip(names, values[len(states) :], strict=True)), values[: len(states)])

    assert torch.autograd.gradcheck(called, (*states, *decode.parameters()))


def test_the_gradient_of_the_weight_decoder_is_right() -> None:
    torch.manual_seed(0)
    decode = ConvDecoder(hidden=2, kernel=2, num_classes=3).double()
    assert_gradients(decode, lambda *states: tuple(decode(states, SIZES)), leaf(2, 2), leaf(1, 2), leaf(3, 2))


def test_the_gradient_of_the_classification_layer_is_right() -> None:
    torch.manual_seed(0)
    decode = ConvDecoder(hidden=2, kernel=2, num_classes=3).double()
    assert_gradients(decode, lambda h: decode.classification(*decode([h], [(4, 3, 1, 1)])), leaf(2, 2))


def test_the_gradient_of_the_vector_decoder_is_right() -> None:
    torch.manual_seed(0)
    decode = VectorDecoder(hidden=2, num_classes=3).double()

    def both(h: Tensor) -> tuple[Tensor, Tensor]:
        rows = decode(h)
        return rows, decode.classification(rows)

    assert_gradients(decode, both, leaf(3, 2))


@pytest.mark.parametrize("normalise", [False, True])
def test_the_gradient_of_all_parameters_of_a_graph_is_right(normalise: bool) -> None:
    decode = parameter_decoder(2, 2, 3, normalise)
    nodes = (
        weight("conv", (5, 3, 3, 3)),
        norm("norm", 5),
        weight("position", (1, 5, 3, 3), "pos_enc"),
        weight("fc", (3, 5), is_class_layer=True),
        bias("fc", 3, is_class_layer=True),
    )
    batch = GraphBatch.of([Graph(nodes, ())], 1)
    assert_gradients(decode, lambda h: tuple(decode(h, batch)[0].values()), leaf(len(nodes), 2))
