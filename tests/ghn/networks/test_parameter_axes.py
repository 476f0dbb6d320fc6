from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ghn.networks.operations import AxisOrder, Parameter
from ghn.networks.parameter_axes import Shape, Sizes, arrange, encoding_shape, fan_in, kernel_shape, matrix_shape

SHAPES = st.lists(st.integers(1, 40), min_size=1, max_size=5).map(tuple)


@given(SHAPES)
def test_an_encoding_of_any_shape_is_arranged(shape: Sizes) -> None:
    four, axis_order = encoding_shape(shape)
    assert four[0] == 1 and math.prod(four) <= math.prod(shape)
    assert arrange(torch.zeros(2, *four), Parameter("x", shape, "encoding", axis_order)).shape == (2, *shape)


@given(SHAPES, st.booleans(), st.integers(1, 3))
def test_a_kernel_of_any_shape_is_arranged(shape: Sizes, transposed: bool, groups: int) -> None:
    assert_arranged((shape[0] * groups, *shape[1:]), *kernel_shape((shape[0] * groups, *shape[1:]), transposed, groups))


@given(SHAPES, st.none() | st.integers(1, 40), st.booleans())
def test_a_matrix_of_any_shape_is_arranged(shape: Sizes, summed: int | None, inputs_first: bool) -> None:
    assert_arranged(shape, *matrix_shape(shape, summed, inputs_first))


def assert_arranged(shape: Sizes, four: Sizes, axis_order: AxisOrder) -> None:
    parameter = Parameter("x", shape, "weight", axis_order)
    assert arrange(torch.zeros(2, *four), parameter).shape == (2, *shape)
    assert math.prod(shape) % fan_in(parameter, four) == 0


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
    ("found", "expected"),
    [
        (kernel_shape((8, 6, 3, 5)), ((8, 6, 3, 5), "plain")),
        (kernel_shape((8, 3, 3, 5), groups=2), ((8, 3, 3, 5), "plain")),
        (kernel_shape((6, 8, 3, 5), transposed=True), ((8, 6, 3, 5), "transposed")),
        (kernel_shape((6, 4, 3, 5), transposed=True, groups=2), ((8, 3, 3, 5), "transposed")),
        (kernel_shape((8, 6, 3)), ((8, 6, 1, 3), "plain")),
        (kernel_shape((8, 6, 2, 3, 5)), ((8, 6, 3, 5), "volume")),
        (kernel_shape((6, 8, 2, 3, 5), transposed=True), ((8, 6, 3, 5), "transposed")),
        (matrix_shape((8, 6), None, inputs_first=False), ((8, 6, 1, 1), "plain")),
        (matrix_shape((6, 8), None, inputs_first=True), ((8, 6, 1, 1), "transposed")),
        (matrix_shape((8, 6), 6, inputs_first=True), ((8, 6, 1, 1), "plain")),  # the lengths tell
        (matrix_shape((6, 6), 6, inputs_first=True), ((6, 6, 1, 1), "transposed")),  # they do not
        (matrix_shape((96, 3, 32), 96, inputs_first=True), ((96, 96, 1, 1), "transposed")),  # to heads
        (matrix_shape((3, 32, 64), 96, inputs_first=True), ((64, 96, 1, 1), "transposed")),  # from heads
        (matrix_shape((5, 6, 8), 6, inputs_first=True), ((8, 30, 1, 1), "matrices")),  # one for each of 5
    ],
)
def test_a_weight_has_its_outputs_and_inputs_where_they_are(found: Any, expected: Any) -> None:
    assert found == expected


@pytest.mark.parametrize(
    ("shape", "four", "axis_order", "axis", "inputs"),
    [
        ((4, 6), (4, 6, 1, 1), "plain", 0, 6),
        ((6, 4), (4, 6, 1, 1), "transposed", 1, 6),
        ((6, 4, 3, 2), (4, 6, 3, 2), "transposed", 1, 36),
        ((6, 4, 5, 3, 2), (4, 6, 3, 2), "transposed", 1, 180),
        ((2, 6, 4), (4, 12, 1, 1), "matrices", 2, 6),
        ((4, 6, 3), (4, 6, 1, 3), "plain", 0, 18),
        ((4, 6, 2, 3, 1), (4, 6, 3, 1), "volume", 0, 36),
    ],
)
def test_every_layout_keeps_the_outputs_apart_and_knows_their_inputs(
    shape: Sizes, four: Shape, axis_order: AxisOrder, axis: int, inputs: int
) -> None:
    decoded = torch.arange(four[0], dtype=torch.float64)[None, :, None, None, None].expand(1, *four)
    parameter = Parameter("weight", shape, "weight", axis_order)
    arranged = arrange(decoded, parameter)[0]
    assert torch.equal(arranged.movedim(axis, 0).flatten(1).unique(dim=1)[:, 0], torch.arange(four[0]).double())
    assert arranged.movedim(axis, 0).flatten(1).unique(dim=1).shape[1] == 1
    assert fan_in(parameter, four) == inputs


def test_groups_of_a_transposed_convolution_have_channels_of_their_own() -> None:
    four, axis_order = kernel_shape((6, 4, 1, 1), transposed=True, groups=2)  # from 2 times 3 channels to 2 times 4
    parameter = Parameter("weight", (6, 4, 1, 1), "weight", axis_order)
    outputs = torch.arange(8.0)[None, :, None, None, None].expand(1, *four)
    arranged = arrange(outputs, parameter)[0, :, :, 0, 0]
    assert arranged.tolist() == [[0, 1, 2, 3]] * 3 + [[4, 5, 6, 7]] * 3
    assert fan_in(parameter, four) == 3


@pytest.mark.parametrize("axis_order", ["tokens", "channels_first"])
def test_tokens_lie_on_their_grid_and_class_tokens_come_first(axis_order: str) -> None:
    decoded = torch.randn(1, 1, 5, 3, 3)
    shape = (1, 11, 5) if axis_order == "tokens" else (1, 5, 11)
    arranged = arrange(decoded, Parameter("positions", shape, "encoding", axis_order))[0, 0]
    tokens = arranged if axis_order == "tokens" else arranged.T
    grid = decoded[0, 0].flatten(1).T
    assert torch.equal(tokens[2:], grid)
    torch.testing.assert_close(tokens[:2], grid.mean(0).expand(2, -1))
