"""The low-rank, implicit and grown decoders against their definitions."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from examples import sample
from torch import Tensor, nn
from torch.nn import functional as F

from ghn import GHN, GHNConfig
from ghn.models.config import WEIGHT_DECODERS
from ghn.models.conv_decoder import ConvDecoder
from ghn.models.grown_decoder import GrownDecoder
from ghn.models.implicit_decoder import FREQUENCIES, ImplicitDecoder, PlaceFactor, place_features
from ghn.models.low_rank_decoder import LowRankDecoder
from ghn.models.weight_decoder import WeightDecoder

HIDDEN, RANK = 8, 3
CONFIG = GHNConfig(num_classes=3, image_size=16, hidden=HIDDEN, kernel=3, channels=6, rank=RANK)


def decoder(name: str) -> WeightDecoder:
    torch.manual_seed(0)
    return WEIGHT_DECODERS[name](CONFIG).double()


def states(count: int) -> Tensor:
    return torch.randn(count, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", WEIGHT_DECODERS)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    part = decoder(name)
    sizes = [part.decoded_shape(shape, False) for shape in ((4, 3, 3, 3), (13, 5, 1, 1))]
    h = [states(2).requires_grad_(), states(1).requires_grad_()]
    parameters = [parameter for parameter in part.parameters() if parameter.numel() < 200][:4]
    assert torch.autograd.gradcheck(lambda *inputs: tuple(part(inputs[:2], sizes)), (*h, *parameters), atol=1e-6)


@pytest.mark.parametrize("name", WEIGHT_DECODERS)
@pytest.mark.parametrize("gnn", ["gated_virtual", "transformer"])
def test_all_of_it_has_gradients_with_every_graph_neural_network(name: str, gnn: str) -> None:
    ghn = GHN(GHNConfig(3, 16, hidden=HIDDEN, kernel=3, gnn=gnn, decoder=name, heads=2, layers=2))
    networks = [sample("train", 0), sample("train", 1).with_width(24)]
    for architecture, parameters in zip(networks, ghn.predict_parameters(networks), strict=True):
        architecture.forward(parameters, torch.randn(2, 3, 16, 16)).logsumexp(1).sum().backward(retain_graph=True)
    unused = [name for name, parameter in ghn.named_parameters() if parameter.grad is None]
    assert unused == []


# Low rank


@pytest.mark.parametrize("shape", [(5, 3, 3, 3), (6, 6, 1, 1), (2, 6, 3, 1), (1, 4, 2, 2)])
def test_a_low_rank_weight_is_the_product_of_its_factors(shape: tuple[int, int, int, int]) -> None:
    part = LowRankDecoder(HIDDEN, RANK, channels=6, kernel=3, extent=20).double()
    h = states(2)
    (weights,) = part([h], [shape])
    out, inputs, height, width = shape
    for row, weight in zip(h, weights, strict=True):
        numbers = part.rows(F.relu(part.mlp(row).view(2 * RANK, RANK)))  # (2r, K)
        factors = numbers.reshape(2 * 20, RANK)
        product = factors[: out * height] @ factors[20 : 20 + inputs * width].T
        expected = product.view(out, height, inputs, width).transpose(1, 2)
        torch.testing.assert_close(weight, expected)
    assert torch.linalg.matrix_rank(weights[0].transpose(1, 2).reshape(out * height, -1)) <= RANK


@pytest.mark.parametrize(
    ("length", "decoded"), [(4, 4), (6, 8), (15, 20), (31, 31), (32, 64), (24, 64), (63, 64), (64, 64), (500, 64)]
)
def test_the_halves_of_a_low_rank_vector_are_scale_and_bias(length: int, decoded: int) -> None:
    part = LowRankDecoder(HIDDEN, RANK, channels=64, kernel=3).double()
    rows = part.vectors(states(2), length)
    assert rows.shape == (2, 2, decoded)
    (column,) = part([states(2)], [(2 * decoded, 1, 1, 1)])
    torch.testing.assert_close(rows.flatten(1), column.flatten(1))


def test_the_extent_of_a_low_rank_decoder_bounds_what_is_decoded() -> None:
    part = LowRankDecoder(HIDDEN, RANK, channels=64, kernel=11, extent=70)
    assert part.decoded_shape((64, 50, 1, 1), False) == (64, 50, 1, 1)
    assert part.decoded_shape((64, 50, 7, 3), False) == (10, 23, 7, 3)
    assert part.decoded_shape((100, 3, 13, 13), True) == (6, 3, 11, 11)


# Implicit


def answer(factor: PlaceFactor, h: Tensor, place: list[float], shape: tuple[int, ...]) -> Tensor:
    """Return the vector of one place, asked for alone."""
    angles = [math.pi * 2**octave * x for x in place for octave in range(FREQUENCIES)]
    halves = [angles[i : i + FREQUENCIES] for i in range(0, len(angles), FREQUENCIES)]
    features = torch.tensor(
        [value for half in halves for value in [*map(math.sin, half), *map(math.cos, half)]], dtype=torch.float64
    )
    sizes = torch.tensor([math.log(size) / math.log(256) for size in shape], dtype=torch.float64)
    return factor.last(F.relu(factor.state(h) + factor.place(features) + factor.sizes(sizes)))


def test_each_entry_of_an_implicit_weight_is_the_answer_at_its_place() -> None:
    torch.manual_seed(0)
    part, h, shape = ImplicitDecoder(HIDDEN, RANK).double(), states(1)[0], (4, 3, 2, 3)
    ((weight,),) = part([h[None]], [shape])
    for at in torch.cartesian_prod(*(torch.arange(size) for size in shape)).tolist():
        o, i, y, x = ((position + 0.5) / size for position, size in zip(at, shape, strict=True))
        product = answer(part.out, h, [o], shape) * answer(part.inputs, h, [i], shape)
        expected = (product * answer(part.positions, h, [y, x], shape)).sum() / math.sqrt(RANK)
        torch.testing.assert_close(weight[tuple(at)], expected)


def test_channels_of_an_implicit_weight_do_not_repeat() -> None:
    part = ImplicitDecoder(HIDDEN, 32).double()
    (weights,) = part([states(1)], [(500, 7, 1, 1)])
    assert torch.cdist(weights[0].flatten(1), weights[0].flatten(1)).fill_diagonal_(1).min() > 1e-6
    assert torch.linalg.matrix_rank(weights[0].flatten(1)) <= part.most_rank
    places = place_features([2000], torch.zeros((), dtype=torch.bfloat16))
    assert len(places.unique(dim=0)) == 2000


@pytest.mark.parametrize(
    ("name", "dirac", "rank"), [("conv", False, None), ("low_rank", False, 3), ("low_rank", True, None)]
)
def test_a_report_says_the_rank_and_which_channels_repeat(name: str, dirac: bool, rank: int | None) -> None:
    ghn = GHN(replace(CONFIG, decoder=name, dirac=dirac, num_classes=40))
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 9, 3), nn.Conv2d(9, 5, 1), nn.AdaptiveAvgPool2d(1))
    network = nn.Sequential(network, nn.Flatten(), nn.Linear(5, 40))
    report = ghn.predict(network)
    assert report.rank == rank
    class_layer = () if name == "conv" else ("2.weight",)  # of which convolutional decoders have a row for each class
    assert report.repeated == ("0.1.weight", "0.2.weight", *class_layer)


# Grown


def test_the_blocks_of_a_grown_weight_follow_from_those_before() -> None:
    torch.manual_seed(0)
    part = GrownDecoder(HIDDEN, 3, 3, channels=6).double()
    h = states(2)
    grown, small = part([h, h[:1]], [(15, 4, 3, 3), (5, 4, 3, 3)])
    assert grown.shape == (2, 15, 4, 3, 3)
    state, blocks = h, []
    for out in (6, 6, 3):
        (block,) = ConvDecoder.forward(part, [state], [(out, 4, 3, 3)])
        blocks.append(block)
        if out == 6:
            channels = block.flatten(2)
            state = part.cell(torch.cat([channels.mean(2), channels.pow(2).mean(2)], 1), state)
    torch.testing.assert_close(grown, torch.cat(blocks, 1))
    torch.testing.assert_close(small[0], grown[0, :5])
    assert not torch.allclose(grown[:, :6], grown[:, 6:12])
