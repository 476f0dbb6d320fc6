"""Nodes of each kind of layer: the primitive, the shape, the edges, and the roles of the parameters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from small_networks import Calls, assert_predicted, edges, named, parameter
from torch import Tensor, nn
from torch.nn import functional as F

from ghn import Graph, trace
from ghn.networks.parameter_axes import fan_in

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...], str, tuple[int, ...], str]] = {
    "conv": (nn.Conv2d(6, 8, (3, 5)), (6, 9, 9), "conv", (8, 6, 3, 5), "plain"),
    "grouped": (nn.Conv2d(6, 8, 3, groups=2), (6, 9, 9), "sep_conv", (8, 3, 3, 3), "plain"),
    "dilated": (nn.Conv2d(6, 8, 3, dilation=2), (6, 9, 9), "conv", (8, 6, 3, 3), "plain"),
    "dilated groups": (nn.Conv2d(6, 6, 3, dilation=2, groups=6), (6, 9, 9), "dil_conv", (6, 1, 3, 3), "plain"),
    "transposed": (nn.ConvTranspose2d(6, 8, 3), (6, 9, 9), "conv", (8, 6, 3, 3), "transposed"),
    "transposed groups": (nn.ConvTranspose2d(6, 8, 3, groups=2), (6, 9, 9), "sep_conv", (8, 3, 3, 3), "transposed"),
    "1-d": (nn.Conv1d(6, 8, 3), (6, 9), "conv", (8, 6, 1, 3), "plain"),
    "1-d transposed": (nn.ConvTranspose1d(6, 8, 3), (6, 9), "conv", (8, 6, 1, 3), "transposed"),
    "3-d": (nn.Conv3d(6, 8, (2, 3, 5)), (6, 9, 9, 9), "conv", (8, 6, 3, 5), "volume"),
    "3-d transposed": (nn.ConvTranspose3d(6, 8, (2, 3, 5)), (6, 9, 9, 9), "conv", (8, 6, 3, 5), "transposed"),
    "linear": (nn.Linear(6, 8), (5, 6), "conv", (8, 6, 1, 1), "plain"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_kind_of_layer_with_weights_has_its_primitive_and_shape(name: str) -> None:
    layer, shape, primitive, four, axis_order = LAYERS[name]
    graph = trace(layer, torch.zeros(2, *shape))
    assert graph.primitives == ["input", primitive, "bias"] and graph.edges == ((0, 1), (1, 2))
    assert graph.shapes == [None, four, (8 if name != "dilated groups" else 6, 1, 1, 1)]
    kind, weight = named(graph)["weight"]
    assert (kind, weight.role, weight.axis_order) == (primitive, "weight", axis_order)
    assert named(graph)["bias"][1].role == "bias"
    assert_predicted(layer, graph)


@pytest.mark.parametrize(
    ("norm", "primitive"),
    [
        (nn.BatchNorm2d(6), "bn"),
        (nn.GroupNorm(2, 6), "ln"),
        (nn.LayerNorm([6, 4, 4]), "ln"),
        (nn.InstanceNorm2d(6, affine=True), "bn"),
        (nn.SyncBatchNorm(6), "bn"),
    ],
)
def test_every_norm_has_its_weight_and_bias_on_one_node(norm: nn.Module, primitive: str) -> None:
    graph = trace(nn.Sequential(nn.Conv2d(3, 6, 1, bias=False), norm), torch.zeros(2, 3, 4, 4))
    assert graph.primitives == ["input", "conv", primitive]
    assert [p.role for p in graph.nodes[2].parameters] == ["scale", "bias"]


def test_attention_is_one_node_between_its_projections() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    network = Calls(lambda self, x: self.mix(x, x, x)[0], mix=attention)
    graph = trace(network, torch.zeros(2, 5, 8))
    assert graph.primitives == ["input", "conv", "bias", "msa", "conv", "bias"]
    assert graph.edges == ((0, 1), (1, 2), (2, 3), (3, 4), (4, 5))
    assert named(graph)["mix.in_proj_weight"][0] == "conv" and named(graph)["mix.in_proj_bias"][0] == "bias"


def test_attention_with_a_position_table_sums_it_into_the_first_product() -> None:
    """Swin looks up a table of relative positions and adds it before the softmax."""
    index = torch.randint(9, (4, 4))

    def mix(self: nn.Module, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(len(x), 4, 3, 2, 4).permute(2, 0, 3, 1, 4)
        logits = q @ k.transpose(-2, -1) + self.table[index.to(x.device)].permute(2, 0, 1)
        return logits.softmax(-1) @ v

    network = Calls(mix, qkv=nn.Linear(8, 24, bias=False), table=parameter(9, 2))
    graph = trace(network, torch.zeros(1, 4, 8))
    assert edges(graph) == {("input", "conv"), ("conv", "sum"), ("pos_enc", "sum"), ("sum", "msa"), ("conv", "msa")}
    assert graph.shapes[graph.primitives.index("pos_enc")] == (1, 2, 3, 3)


def test_an_attention_is_the_same_graph_in_one_function_and_in_several() -> None:
    def in_one(self: nn.Module, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(len(x), 4, 3, 2, 4).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.table + q @ self.far(x)[:, None])

    def in_several(self: nn.Module, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(len(x), 4, 3, 2, 4).permute(2, 0, 3, 1, 4)
        return (q @ k.transpose(-2, -1) + (self.table + q @ self.far(x)[:, None])).softmax(-1) @ v

    def with_numbers(self: nn.Module, x: Tensor) -> Tensor:
        return in_one(self, x) if x.sum() < 1 else x

    def branching(function: Callable[[nn.Module, Tensor], Tensor]) -> Graph:
        layers = {"qkv": nn.Linear(8, 24, bias=False), "far": nn.Linear(8, 4, bias=False), "table": parameter(2, 4, 4)}
        return trace(Calls(function, **layers), torch.zeros(2, 4, 8))

    graph = branching(in_one)
    assert graph == branching(in_several) == branching(with_numbers)
    assert graph.primitives.count("msa") == 1


@pytest.mark.parametrize("is_transposed", [True, False])
def test_a_stack_of_experts_is_a_weight(is_transposed: bool) -> None:
    """Each row is multiplied with the matrix of its expert, whichever that is, and all experts are predicted."""

    def route(self: nn.Module, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        expert = self.router(rows).argmax(-1)
        ends = F.one_hot(expert, 3).sum(0).cumsum(0).to(torch.int32)
        stack = self.experts.transpose(1, 2) if is_transposed else self.experts
        return torch._grouped_mm(rows[expert.argsort()], stack, offs=ends)

    experts = parameter(3, 16, 8) if is_transposed else parameter(3, 8, 16)
    network = Calls(route, router=nn.Linear(8, 3), experts=experts)
    graph = trace(network, torch.zeros(2, 4, 8))
    kind, weight = named(graph)["experts"]
    assert (kind, weight.role) == ("conv", "weight")
    (shape,) = (node.shape for node in graph.nodes if weight in node.parameters)
    assert shape == ((48, 8, 1, 1) if is_transposed else (16, 24, 1, 1))
    assert fan_in(weight, shape) == 8
    assert list(graph.not_predicted) == ["router.weight", "router.bias"]  # it chooses, which has no gradient
    assert_predicted(network, graph)


@pytest.mark.parametrize("function", [torch.maximum, torch.minimum])
def test_thresholds_of_channels_are_a_bias(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    network = Calls(
        lambda self, x: function(self.threshold, self.conv(x)), conv=nn.Conv2d(3, 4, 1), threshold=parameter(4, 1, 1)
    )
    graph = trace(network, image_size=8)
    assert graph.primitives == ["input", "conv", "bias", "bias"]
    assert_predicted(network, graph)


def test_a_class_token_and_a_position_encoding_are_nodes_without_incoming_edges() -> None:
    def embed(self: nn.Module, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.positions
        return self.head(tokens[:, 0])

    network = Calls(
        embed,
        patches=nn.Conv2d(3, 8, 4, 4),
        token=parameter(1, 1, 8),
        positions=parameter(1, 10, 8),
        head=nn.Linear(8, 3),
    )
    graph = trace(network, image_size=12)
    assert graph.primitives == ["input", "conv", "bias", "pos_enc", "concat", "pos_enc", "sum", "conv", "bias"]
    assert graph.edges == ((0, 1), (1, 2), (3, 4), (2, 4), (4, 6), (5, 6), (6, 7), (7, 8))
    token, positions = (graph.nodes[n] for n in (3, 5))
    assert token.shape == (1, 8, 1, 1) and token.parameters[0].role == "encoding"
    assert positions.shape == (1, 8, 3, 3) and positions.parameters[0].axis_order == "tokens"
    assert_predicted(network, graph)


def test_a_layer_scale_is_a_norm_without_a_norm() -> None:
    network = Calls(
        lambda self, x: x + self.scale * self.conv(x), conv=nn.Conv2d(3, 3, 1, bias=False), scale=parameter(3, 1, 1)
    )
    graph = trace(network, image_size=8)
    assert edges(graph) == {("input", "conv"), ("conv", "ln"), ("ln", "sum"), ("input", "sum")}
    assert named(graph)["scale"][1].role == "scale"
    assert_predicted(network, graph)


def test_the_squeeze_of_a_channel_attention_is_no_node_but_the_global_pool_is() -> None:
    def squeeze(self: nn.Module, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return F.adaptive_avg_pool2d(x * gate, 1).flatten(1)

    layers = {"stem": nn.Conv2d(3, 8, 3, bias=False), "down": nn.Conv2d(8, 2, 1, bias=False)}
    graph = trace(Calls(squeeze, **layers, up=nn.Conv2d(2, 8, 1, bias=False)), image_size=8)
    assert graph.primitives == ["input", "conv", "conv", "conv", "cse", "glob_avg"]
    assert graph.edges == ((0, 1), (1, 2), (2, 3), (1, 4), (3, 4), (4, 5))


def test_means_over_channels_are_statistics_and_no_pools() -> None:
    def normalise(self: nn.Module, x: Tensor) -> Tensor:
        x = x - x.mean(1, keepdim=True)
        return self.weight[:, None, None] * (x / (x.pow(2).mean(1, keepdim=True) + 1e-6).sqrt())

    graph = trace(Calls(normalise, weight=parameter(3)), image_size=8)
    assert graph.primitives == ["input", "ln"] and graph.edges == ((0, 1),)


@pytest.mark.parametrize(
    ("pool", "primitive", "shape"),
    [
        (nn.MaxPool2d(3, 2), "max_pool", (1, 1, 3, 3)),
        (nn.AvgPool2d((2, 4)), "avg_pool", (1, 1, 2, 4)),
        (nn.AdaptiveAvgPool2d(1), "glob_avg", None),
        (nn.AdaptiveAvgPool2d(2), "glob_avg", None),  # as published, whatever the size
        (nn.AdaptiveAvgPool2d(8), "glob_avg", None),
        (nn.AdaptiveMaxPool2d(4), "max_pool", (1, 1, 2, 2)),
    ],
)
def test_every_pool_has_its_primitive(pool: nn.Module, primitive: str, shape: tuple[int, ...] | None) -> None:
    graph = trace(nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), pool), image_size=8)
    assert graph.primitives == ["input", "conv", primitive] and graph.shapes[2] == shape


def test_a_maximum_that_changes_nothing_is_no_node() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.AdaptiveMaxPool2d(8))
    assert trace(network, image_size=8).primitives == ["input", "conv"]


def test_activations_dropout_and_reshapes_are_no_nodes() -> None:
    activations = [
        nn.ReLU(),
        nn.GELU(),
        nn.SiLU(),
        nn.Hardswish(),
        nn.Tanh(),
        nn.Dropout(),
        nn.Flatten(),
        nn.Identity(),
    ]
    assert trace(nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), *activations), image_size=8).primitives == [
        "input",
        "conv",
    ]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_recurrent_layer_is_one_step_of_its_recurrence(kind: type[nn.RNNBase], bidirectional: bool) -> None:
    layer = kind(6, 4, num_layers=2, bidirectional=bidirectional, batch_first=True)
    network = Calls(
        lambda self, x: self.head(self.layer(x)[0]), layer=layer, head=nn.Linear(8 if bidirectional else 4, 3)
    )
    graph = trace(network, torch.zeros(2, 50, 6))
    assert not graph.not_predicted and len(graph.nodes) < 50
    assert_predicted(network, graph)
    assert network(torch.zeros(2, 50, 6)).shape == (2, 50, 3)  # it runs as before


def test_a_layer_that_is_used_twice_has_its_parameters_on_its_first_node() -> None:
    network = Calls(lambda self, x: self.conv(self.conv(x)), conv=nn.Conv2d(3, 3, 3, padding=1))
    graph = trace(network, image_size=8)
    assert graph.primitives == ["input", "conv", "bias", "conv", "bias"]
    assert [len(node.parameters) for node in graph.nodes] == [0, 1, 1, 0, 0]
    assert graph.shapes[3] == graph.shapes[1]


def test_tied_parameters_are_one() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    network[2].weight = network[0].weight
    graph = trace(network)
    assert [p.name for p in graph.parameters] == ["0.weight", "0.bias", "2.bias"]


def test_a_standardised_weight_is_the_weight_of_its_convolution_and_its_gain_scales_it() -> None:
    def standardised(self: nn.Module, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight * self.gain)

    network = Calls(standardised, weight=parameter(4, 3, 3, 3), gain=parameter(4, 1, 1, 1))
    graph = trace(network, image_size=8)
    assert graph.primitives == ["input", "conv", "ln"]
    assert named(graph)["weight"][1].role == "weight" and named(graph)["gain"][1].role == "scale"
    assert_predicted(network, graph)


def test_a_matrix_on_either_side_knows_its_inputs() -> None:
    right = trace(Calls(lambda self, x: x @ self.weight, weight=parameter(6, 4)), torch.zeros(2, 5, 6))
    left = trace(Calls(lambda self, x: self.weight @ x, weight=parameter(4, 6)), torch.zeros(2, 6, 5))
    assert right.shapes == left.shapes == [None, (4, 6, 1, 1)]
    assert right.parameters[0].axis_order == "transposed" and left.parameters[0].axis_order == "plain"


def test_what_cannot_be_predicted_is_listed_with_the_reason() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return self.conv(torch.atan2(x, self.odd))

    network = Calls(forward, conv=nn.Conv2d(3, 4, 1), odd=parameter(3, 8, 8), unused=nn.Linear(2, 2))
    graph = trace(network, image_size=8)
    assert set(named(graph)) == {"conv.weight", "conv.bias"}
    assert graph.not_predicted["odd"] == "it meets the features in Atan2, which has no primitive"
    for name in ("unused.weight", "unused.bias"):
        assert graph.not_predicted[name].startswith("the output does not depend on it")


@pytest.mark.parametrize("depth", [1, 2])
def test_the_last_layer_classifies(depth: int) -> None:
    head = [nn.Linear(8, 8), nn.ReLU()] * (depth - 1) + [nn.Linear(8, 3)]
    graph = trace(nn.Sequential(nn.Conv2d(3, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head), image_size=8)
    assert [node.is_class_layer for node in graph.nodes[-2:]] == [True, True]
    assert sum(node.is_class_layer for node in graph.nodes) == 2


def test_a_convolution_before_the_global_pool_can_be_the_last_layer() -> None:
    graph = trace(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), image_size=8)
    assert [node.is_class_layer for node in graph.nodes] == [False, True, True, False]


@pytest.mark.parametrize(
    "network",
    [
        nn.Conv2d(3, 3, 1),  # gives a map
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten()),  # features
    ],
)
def test_a_network_without_a_head_has_no_layer_that_classifies(network: nn.Module) -> None:
    assert not any(node.is_class_layer for node in trace(network, image_size=8).nodes)


@pytest.mark.parametrize(
    ("equation", "weight", "four"),
    [
        ("bnc,co->bno", (6, 4), (4, 6, 1, 1)),
        ("bnc,oc->bno", (4, 6), (4, 6, 1, 1)),
        ("bnc,chd->bnhd", (6, 2, 5), (10, 6, 1, 1)),
    ],
)
def test_einsum_knows_the_inputs_of_its_weight(equation: str, weight: tuple[int, ...], four: tuple[int, ...]) -> None:
    network = Calls(lambda self, x: torch.einsum(equation, x, self.weight), weight=parameter(*weight))
    graph = trace(network, torch.zeros(2, 7, 6))
    assert graph.shapes == [None, four]
    assert_predicted(network, graph)


def test_a_weight_transposed_before_a_linear_layer_knows_its_inputs() -> None:
    graph = trace(Calls(lambda self, x: F.linear(x, self.weight.t()), weight=parameter(6, 4)), torch.zeros(2, 5, 6))
    assert graph.shapes == [None, (4, 6, 1, 1)] and graph.parameters[0].axis_order == "transposed"


def test_a_low_rank_addition_belongs_to_its_weight() -> None:
    """The factors of LoRA cannot be distinguished from the weight that they are added to."""
    layers = {"weight": parameter(4, 6), "a": parameter(4, 2), "b": parameter(2, 6)}
    graph = trace(Calls(lambda self, x: F.linear(x, self.weight + self.a @ self.b), **layers), torch.zeros(2, 5, 6))
    assert graph.primitives == ["input", "conv"] and named(graph).keys() == {"weight"}
    assert all("combined with weight" in reason for reason in graph.not_predicted.values())


def test_class_and_grid_positions_that_are_joined_are_encodings() -> None:
    def embed(self: nn.Module, x: Tensor) -> Tensor:
        return x + torch.cat([self.token, self.grid], 1)

    graph = trace(Calls(embed, token=parameter(1, 1, 8), grid=parameter(1, 9, 8)), torch.zeros(2, 10, 8))
    assert sorted(graph.primitives) == ["input", "pos_enc", "pos_enc", "sum"] and not graph.not_predicted


@pytest.mark.parametrize(("kind", "parameters"), [("weight norm", 3), ("temperature", 2)])
def test_a_scaled_layer_is_the_last_layer_with_what_it_has_for_each_class(kind: str, parameters: int) -> None:
    head = nn.Linear(8, 3)
    if kind == "weight norm":
        network: nn.Module = nn.Sequential(nn.Linear(6, 8), nn.utils.parametrizations.weight_norm(head))
    else:
        network = Calls(
            lambda self, x: self.head(self.body(x)) / self.t, body=nn.Linear(6, 8), head=head, t=parameter()
        )
    graph = trace(network, torch.zeros(2, 6))
    classifying = [p.name for node in graph.nodes if node.is_class_layer for p in node.parameters]
    assert len(classifying) == parameters == len(graph.without_class_layers("left").not_predicted)
    assert_predicted(network, graph)


def test_layers_of_a_residual_stream_are_not_the_last_one() -> None:
    def stream(self: nn.Module, x: Tensor) -> Tensor:
        x = self.a(x)
        x = x + self.b(F.relu(x))
        return x + self.c(F.relu(x))

    layers = {name: nn.Linear(6, 6, bias=False) for name in "abc"}
    graph = trace(Calls(stream, **layers), torch.zeros(2, 6))
    assert [p.name for node in graph.nodes if node.is_class_layer for p in node.parameters] == ["c.weight"]


def test_a_custom_function_with_the_name_of_an_operation_is_not_that_operation() -> None:
    class Linear(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor, weight: Tensor) -> Tensor:
            return x * weight.sum()

    graph = trace(Calls(lambda self, x: Linear.apply(x, self.weight), weight=parameter(4, 4)), torch.zeros(2, 4))
    assert graph.primitives == ["input"]
    assert graph.not_predicted == {
        "weight": "it meets the features in the custom function Linear, which has no primitive"
    }


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64])
def test_parameters_that_are_no_real_numbers_are_listed(dtype: torch.dtype) -> None:
    odd = nn.Parameter(torch.ones(3, dtype=dtype), requires_grad=False)
    graph = trace(Calls(lambda self, x: self.layer(x), layer=nn.Linear(4, 3), odd=odd), torch.zeros(2, 4))
    assert graph.not_predicted == {"odd": f"its elements are {dtype}, not real numbers"}
