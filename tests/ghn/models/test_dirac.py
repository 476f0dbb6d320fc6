"""The Dirac parametrisation: what passes through networks before anything is learned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from statistics import median

import pytest
import torch
from examples import CLASSES, CONFIG, sample
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ghn import GHN, load, trace
from ghn.deepnets1m.architecture import Architecture
from ghn.models.dirac import ATTENTION_SCALE, dirac_part, has_dirac_part, signals_of
from ghn.networks.operations import Parameter

IMAGE_SIZE = CONFIG.image_size

sizes = st.integers(1, 40).filter(lambda size: size != 3)


def fresh(dirac: bool) -> GHN:
    torch.manual_seed(0)
    return GHN(replace(CONFIG, dirac=dirac)).eval()


@torch.no_grad()
def deviation_of_logits(ghn: GHN, architecture: Architecture) -> float:
    """Return the deviation of the logits across images, the mean over classes."""
    images = torch.randn(32, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    (parameters,) = ghn.predict_parameters([architecture])
    return float(architecture.forward(parameters, images).std(0).mean())


def test_images_survive_the_first_predictions_of_norm_free_networks() -> None:
    networks = [sample("bn_free", index) for index in range(12)]
    published, ours = ([deviation_of_logits(fresh(dirac), network) for network in networks] for dirac in (False, True))
    assert median(published) < 1e-8
    assert min(ours) > 1e-5 and median(ours) > 1e-3 and max(ours) < 30


@given(sizes, sizes, st.sampled_from([(1, 1), (3, 3), (5, 5), (1, 7), (7, 1), (2, 2)]))
def test_a_dirac_part_averages_in_channels_of_equal_number(out: int, inputs: int, kernel: tuple[int, int]) -> None:
    part = dirac_part((out, inputs, *kernel))
    centre = part[:, :, kernel[0] // 2, kernel[1] // 2]
    torch.testing.assert_close(centre.sum(1), torch.ones(out))
    assert part.count_nonzero() == centre.count_nonzero()
    features = min(out, inputs)
    read = centre.nonzero()
    assert (read[:, 0] % features == read[:, 1] % features).all()
    if out == inputs:
        assert torch.equal(centre, torch.eye(out))


def test_a_convolution_with_its_dirac_part_passes_features_on() -> None:
    x = torch.randn(2, 8, 9, 9)
    for kernel in (1, 3, 5):
        weight = dirac_part((8, 8, kernel, kernel))
        assert torch.equal(torch.conv2d(x, weight, padding=kernel // 2), x)
    assert torch.equal(torch.conv2d(x, dirac_part((8, 1, 3, 3)), padding=2, dilation=2, groups=8), x)


def test_a_stem_begins_with_filters_in_pairs_of_opposite_sign() -> None:
    filters = dirac_part((16, 3, 3, 3), reads_image=True)
    assert torch.equal(filters[0::2], -filters[1::2])
    torch.testing.assert_close(filters.flatten(1).norm(dim=1), torch.ones(16))
    assert torch.linalg.matrix_rank(filters[:, 0].flatten(1)) == 8


def test_values_and_outputs_of_attention_pass_features_on() -> None:
    networks = (sample("train", index) for index in range(99))
    network = next(a for a in networks if "msa" in {name for name, _ in a.genotype.normal})
    batch = fresh(dirac=True).batch([network.graph(IMAGE_SIZE, CLASSES)])
    signals = signals_of(batch)
    (ours,), (published,) = (fresh(dirac).predict_parameters([network]) for dirac in (True, False))
    layers = [(i, node.parameters[0].name) for i, node in enumerate(batch.nodes) if node.parameters]
    fused = [(i, name) for i, name in layers if name.endswith("to_qkv.weight")]
    outputs = [(i, name) for i, name in layers if name.endswith("to_out.0.weight")]
    assert fused and [i for i, _ in fused] == signals.feeds_attention.nonzero()[0].tolist()
    assert outputs and [i for i, _ in outputs] == signals.reads_attention.nonzero()[0].tolist()
    for i, name in outputs:
        identity = torch.eye(len(published[name]))
        torch.testing.assert_close(ours[name], (published[name] + identity) * float(signals.gains[i]))
    for i, name in fused:
        queries, keys, values = published[name].chunk(3)
        expected = torch.cat([queries * ATTENTION_SCALE, keys * ATTENTION_SCALE, values + torch.eye(len(values))])
        torch.testing.assert_close(ours[name], expected * float(signals.gains[i]))


@pytest.mark.parametrize(
    ("parameter", "expected"),
    [
        (Parameter("conv.weight", (8, 4, 3, 3)), True),
        (Parameter("transposed.weight", (4, 8, 3, 3), axis_order="transposed"), False),
        (Parameter("linear.weight", (8, 4)), False),
        (Parameter("volume.weight", (8, 4, 3, 3, 3), axis_order="volume"), False),
        (Parameter("positions", (1, 8, 3, 3), "encoding"), False),
    ],
)
def test_only_convolutions_with_two_kernel_axes_have_a_dirac_part(parameter: Parameter, expected: bool) -> None:
    assert has_dirac_part(parameter) is expected


def test_gains_are_one_where_norms_follow_and_make_up_for_sums_elsewhere() -> None:
    ghn = fresh(dirac=True)
    with_norm = next(
        a
        for i in range(20)
        if (a := sample("train", i)).norm
        and not {"msa", "cse"} & {name for name, _ in (*a.genotype.normal, *a.genotype.reduce)}
    )
    batch = ghn.batch([with_norm.graph(IMAGE_SIZE, CLASSES)])
    gains = signals_of(batch).gains
    before_norms = {
        int(u)
        for u, v, d in zip(batch.sources, batch.targets, batch.distances, strict=True)
        if d == 1 and batch.nodes[v].primitive == "bn"
    }
    assert before_norms and all(gains[node] == 1 for node in before_norms if batch.nodes[node].primitive == "conv")
    norm_free = ghn.batch([sample("bn_free", 0).graph(IMAGE_SIZE, CLASSES)])
    assert signals_of(norm_free).gains.min() < 1


def test_gains_of_several_graphs_are_those_of_each() -> None:
    ghn = fresh(dirac=True)
    networks = [sample("bn_free", 0), sample("train", 1)]
    together = ghn.predict_parameters(networks)
    for network, parameters in zip(networks, together, strict=True):
        (alone,) = ghn.predict_parameters([network])
        for name, tensor in parameters.items():
            torch.testing.assert_close(tensor, alone[name])


def convolutions_of(architecture: Architecture) -> list[Parameter]:
    operations = architecture.program(IMAGE_SIZE, CLASSES).operations
    return [p for operation in operations if operation.kind == "conv" for p in operation.parameters]


def test_rows_without_norm_are_standardised() -> None:
    ghn = fresh(dirac=True)
    with torch.no_grad():
        for weight in ghn.decoder.weights.parameters():
            weight.mul_(2)
    (parameters,) = ghn.predict_parameters([architecture := sample("bn_free", 0)])
    inner = [parameters[p.name] for p in convolutions_of(architecture) if p.shape[1] > 3]
    assert inner
    for weight in inner:
        rows = weight.flatten(1)
        torch.testing.assert_close(rows.mean(1), torch.zeros(len(rows)), atol=1e-6, rtol=0)
        torch.testing.assert_close(rows.norm(dim=1), rows.norm(dim=1)[:1].expand(len(rows)))


@torch.no_grad()
@pytest.mark.parametrize("split", ["train", "bn_free"])
def test_where_nothing_is_predicted_stems_and_depthwise_convolutions_are_their_dirac_part(split: str) -> None:
    ghn = fresh(dirac=True)
    ghn.decoder.weights.channels.weight.zero_()
    ghn.decoder.weights.channels.bias.zero_()
    networks = [sample(split, index) for index in range(8)]
    compared = 0
    for network, parameters in zip(networks, ghn.predict_parameters(networks), strict=True):
        for parameter in convolutions_of(network):
            if parameter.shape[1] in (1, 3):
                part = dirac_part(parameter.shape, reads_image=parameter.shape[1] == 3)
                weight = parameters[parameter.name]
                torch.testing.assert_close(weight / weight.norm(), part / part.norm())
                compared += 1
    assert compared > 8


class Layers(nn.Module):
    """A network that is a function of its layers and of an image."""

    def __init__(self, function: Callable[..., Tensor], **layers: nn.Module):
        super().__init__()
        self.function, self.layers = function, nn.ModuleDict(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layers, x).mean((2, 3))


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def conv(inputs: int = 8, out: int = 8, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(inputs, out, 3, padding=1, bias=bias)


def signals_by_name(network: nn.Module, kind: str) -> dict[str, bool]:
    batch = fresh(dirac=True).batch([trace(network, image_size=IMAGE_SIZE)])
    values = getattr(signals_of(batch), kind)
    names = [node.parameters[0].name if node.parameters else "" for node in batch.nodes]
    return {name.removeprefix("layers."): bool(value) for name, value in zip(names, values, strict=True) if name}


def test_a_result_is_normalised_if_norms_alone_read_it_even_behind_a_concatenation() -> None:
    def function(m: nn.ModuleDict, x: Tensor) -> Tensor:
        stem = m["stem"](x)
        halves = m["norm"](torch.cat([m["first"](stem), m["second"](stem)], 1))
        return stem + m["both"](halves) + m["after"](m["scale"](m["scaled"](stem)))

    network = Layers(
        function,
        stem=conv(3),
        first=conv(out=4),
        second=conv(out=4),
        norm=nn.BatchNorm2d(8),
        both=conv(),
        scaled=conv(),
        scale=Scale(),
        after=conv(),
    )
    normalised = {name for name, value in signals_by_name(network, "is_normalised").items() if value}
    assert normalised == {"first.weight", "second.weight"}
    assert [name for name, value in signals_by_name(network, "reads_image").items() if value] == ["stem.weight"]


def test_only_the_branch_of_a_gate_is_opened() -> None:
    def gated(m: nn.ModuleDict, x: Tensor) -> Tensor:
        features = m["stem"](x)
        squeezed = m["squeeze"](features.mean((2, 3), keepdim=True)).relu()
        return features * m["excite"](squeezed).sigmoid()

    def two_branches(m: nn.ModuleDict, x: Tensor) -> Tensor:
        features = m["stem"](x)
        return m["squeeze"](features) * m["excite"](features).sigmoid()

    layers = {"stem": conv(3, bias=True), "squeeze": conv(bias=True), "excite": conv(bias=True)}
    opened = signals_by_name(Layers(gated, **layers), "opens_gate")
    assert [name for name, value in opened.items() if value] == ["excite.bias"]
    in_gate = signals_by_name(Layers(gated, **layers), "in_gate")
    assert {name for name, value in in_gate.items() if value} >= {"squeeze.weight", "excite.weight", "excite.bias"}
    assert not any(signals_by_name(Layers(two_branches, **layers), "opens_gate").values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnext50_32x4d", "regnet_y_400mf", "densenet121", "mobilenet_v3_small", "convnext_tiny"]
)
def test_public_networks_are_predicted_with_their_dirac_part(name: str) -> None:
    network = load(name).eval()
    report = GHN(replace(CONFIG, dirac=True, num_classes=1000)).predict(network)
    assert not report.not_predicted
    with torch.no_grad():
        assert network(torch.randn(2, 3, 64, 64)).isfinite().all()
