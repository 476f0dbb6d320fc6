from __future__ import annotations

from dataclasses import replace

import pytest
from examples import CLASSES, architectures, one_operation
from hypothesis import given
from hypothesis import strategies as st

from ghn import Architecture, Genotype
from ghn.deepnets1m.genotype import OPERATIONS
from ghn.deepnets1m.predefined import PREDEFINED
from ghn.networks.program import InvalidArchitecture
from ghn.networks.summary import summarise

SIZES = st.sampled_from((8, 16, 28, 32, 64, 224))


@given(architectures(), SIZES)
def test_a_summary_of_blocks_is_that_of_the_program(architecture: Architecture, size: int) -> None:
    program = architecture.compile(size, CLASSES)
    assert architecture.summary(size, CLASSES) == summarise(program)
    assert architecture.num_parameters(size, CLASSES) == program.num_parameters


@given(architectures(), st.sampled_from((16, 64, 128)), st.integers(1, 40))
def test_a_summary_of_blocks_is_that_of_the_program_at_other_widths(
    architecture: Architecture, C: int, fc_dim: int
) -> None:
    wide = architecture.with_width(C, fc_dim)
    assert wide.summary(32, 10) == summarise(wide.compile(32, 10))


@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name != "none"])
@pytest.mark.parametrize("norm", ["bnorm", None])
def test_each_operation_is_counted_as_it_is_compiled(operation: str, norm: str | None) -> None:
    architecture = one_operation(operation, norm=norm)
    assert architecture.summary(32, 10) == summarise(architecture.compile(32, 10))


@pytest.mark.parametrize("network", PREDEFINED.values(), ids=PREDEFINED)
def test_predefined_networks_have_a_summary_too(network: Architecture) -> None:
    assert network.summary(32, 10) == summarise(network.compile(32, 10))


def test_a_network_without_output_has_no_summary() -> None:
    cell = (("none", 0), ("none", 1))
    architecture = replace(one_operation("conv_1x1"), genotype=Genotype(cell, (2,), cell, (2,)))
    for describe in (architecture.compile, architecture.summary, architecture.num_parameters):
        with pytest.raises(InvalidArchitecture, match="the network has no output"):
            describe(32, 10)


@pytest.mark.parametrize(("size", "classes", "message"), [(7, 10, "image_size = 7"), (8, 0, "num_classes = 0")])
def test_impossible_sizes_are_refused(size: int, classes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        one_operation("conv_1x1").summary(size, classes)
