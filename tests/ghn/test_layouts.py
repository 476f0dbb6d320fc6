from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ghn.layouts import Sizes, arrange, encoding_shape, fan_in, weight_shape
from ghn.program import Parameter

SHAPES = st.lists(st.integers(1, 40), min_size=1, max_size=5).map(tuple)


@given(SHAPES)
def test_an_encoding_of_any_shape_is_arranged(shape: Sizes) -> None:
    four, layout = encoding_shape(shape)
    assert four[0] == 1 and math.prod(four) <= math.prod(shape)
    assert arrange(torch.zeros(2, *four), Parameter("x", shape, "encoding", layout)).shape == (2, *shape)


@given(SHAPES, st.booleans(), st.booleans())
def test_a_weight_of_any_shape_is_arranged(shape: Sizes, is_conv: bool, transposed: bool) -> None:
    four, layout = weight_shape(shape, is_conv, transposed)
    parameter = Parameter("x", shape, "weight", layout)
    assert arrange(torch.zeros(2, *four), parameter).shape == (2, *shape)
    assert math.prod(shape) % fan_in(parameter) == 0


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((1, 192, 14, 14), ((1, 192, 14, 14), "plain")),
        ((1, 14, 14, 192), ((1, 192, 14, 14), "tokens")),
        ((1, 196, 192), ((1, 192, 14, 14), "tokens")),
        ((1, 197, 192), ((1, 192, 14, 14), "tokens")),  # and a class token
        ((1, 240, 192), ((1, 192, 15, 16), "tokens")),
        ((169, 3), ((1, 3, 13, 13), "tokens")),  # relative positions of windows of 7×7, 3 heads
        ((4, 196), ((1, 4, 14, 14), "channels_first")),  # positions of 14×14 tokens for each of 4 heads
        ((8, 9, 10), ((1, 8, 9, 10), "plain")),
        ((1, 1, 192), ((1, 192, 1, 1), "plain")),  # a class token
    ],
)
def test_positions_lie_on_their_grid(shape: Sizes, expected: tuple[Sizes, str]) -> None:
    assert encoding_shape(shape) == expected


@pytest.mark.parametrize(
    ("shape", "four", "layout"),
    [
        ((6, 4), (4, 6, 1, 1), "transposed"),
        ((6, 4, 3, 2), (4, 6, 3, 2), "transposed"),
        ((2, 6, 4), (4, 12, 1, 1), "matrices"),
        ((4, 6, 3), (4, 6, 3, 1), "plain"),
        ((4, 6, 2, 3, 1), (4, 6, 3, 1), "volume"),
    ],
)
def test_every_layout_keeps_the_channels_apart(shape: tuple[int, ...], four: Sizes, layout: str) -> None:
    """Each output channel of the decoded weight is one output channel of the parameter."""
    decoded = torch.arange(four[0], dtype=torch.float64)[None, :, None, None, None].expand(1, *four)
    arranged = arrange(decoded, Parameter("weight", shape, "weight", layout))[0]
    axis = {"plain": 0, "volume": 0, "transposed": 1, "matrices": 2}[layout]
    assert arranged.shape == shape
    assert torch.equal(arranged.movedim(axis, 0).flatten(1).unique(dim=1)[:, 0], torch.arange(four[0]).double())
    assert fan_in(Parameter("weight", shape, "weight", layout)) == math.prod(shape) // four[0] // (
        2 if layout == "matrices" else 1
    )


@pytest.mark.parametrize("layout", ["tokens", "channels_first"])
def test_tokens_lie_on_their_grid_and_class_tokens_come_first(layout: str) -> None:
    decoded = torch.randn(1, 1, 5, 3, 3)
    shape = (1, 11, 5) if layout == "tokens" else (1, 5, 11)
    arranged = arrange(decoded, Parameter("positions", shape, "encoding", layout))[0, 0]
    tokens = arranged if layout == "tokens" else arranged.T
    grid = decoded[0, 0].flatten(1).T
    assert torch.equal(tokens[2:], grid)
    torch.testing.assert_close(tokens[:2], grid.mean(0).expand(2, -1))
