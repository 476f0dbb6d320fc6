from __future__ import annotations

from examples import CLASSES, architectures, one_operation, sampled
from hypothesis import given
from hypothesis import strategies as st

from ghn import Architecture
from ghn.networks.program import Program, ProgramBuilder
from ghn.training.cost_model import hypernetwork_seconds, training_seconds


def seconds(architecture: Architecture, size: int = 16, batch: int = 8) -> float:
    return training_seconds(architecture.program(size, CLASSES), batch)


@given(architectures(), st.sampled_from((8, 14, 32)), st.integers(1, 512))
def test_every_network_takes_time_and_more_for_more_images(architecture: Architecture, size: int, batch: int) -> None:
    one, more, double = (seconds(architecture, size, count) for count in (batch, batch + 1, 2 * batch))
    assert 0 < one < more
    assert double < 2 * one  # starting the operations takes as long whatever the batch


@given(sampled(), st.integers(1, 512))
def test_a_wider_network_costs_more(architecture: Architecture, batch: int) -> None:
    costs = [seconds(architecture.with_width(C), batch=batch) for C in (8, 16, 32, 64)]
    assert costs == sorted(costs) and len(set(costs)) == 4


@given(sampled())
def test_larger_images_cost_more(architecture: Architecture) -> None:
    costs = [seconds(architecture, size) for size in (16, 32, 64)]
    assert costs == sorted(costs) and len(set(costs)) == 3


def test_a_deeper_network_costs_more() -> None:
    costs = [seconds(one_operation("conv_3x3", n_cells=cells)) for cells in (2, 4, 8, 16)]
    assert costs == sorted(costs) and len(set(costs)) == 4


def convolution(groups: int, dilation: int) -> Program:
    """Return a program of one 3×3 convolution, whose FLOPs do not depend on the dilation."""
    build = ProgramBuilder.on((32, 16, 16))
    return build.finish(build.conv(0, 32, 3, "conv", padding=dilation, dilation=dilation, groups=groups))


def test_an_operation_of_a_dilated_depthwise_convolution_costs_more_than_one_of_a_plain_one() -> None:
    dense, plain, dilated = convolution(1, 1), convolution(32, 1), convolution(32, 2)
    assert plain.flops == dilated.flops and plain.activations == dilated.activations
    assert dense.flops == 32 * plain.flops
    costs = [training_seconds(program, 64) for program in (plain, dilated)]
    assert costs[1] > 1.5 * costs[0]
    assert training_seconds(dense, 64) < 32 * costs[0]


@given(st.integers(1, 10_000))
def test_a_prediction_takes_time_and_more_for_more_nodes_but_not_twice_as_much_for_twice_as_many(nodes: int) -> None:
    assert 0 < hypernetwork_seconds(nodes) < hypernetwork_seconds(nodes + 1)
    assert hypernetwork_seconds(2 * nodes) < 2 * hypernetwork_seconds(nodes)
