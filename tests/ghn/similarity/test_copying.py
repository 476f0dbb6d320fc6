from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from examples import CLASSES, architectures, images, one_operation, random_parameters
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ghn import Architecture
from ghn.deepnets1m.genotype import OPERATIONS
from ghn.deepnets1m.predefined import PREDEFINED
from ghn.networks.functional import run_program
from ghn.networks.network import Network
from ghn.networks.program import Program, ProgramBuilder
from ghn.similarity.copying import Copy, copy_parameters

SIZE = 16


def logits(network: Network, parameters: dict[str, Tensor]) -> Tensor:
    return network.forward(parameters, images(SIZE, dtype=torch.float64))


def parameters_of(network: Network) -> dict[str, Tensor]:
    """Return random parameters in double precision, small enough that no logit overflows."""
    random = random_parameters(network.program(SIZE, CLASSES), dtype=torch.float64)
    return {name: tensor / max(1, tensor[0].numel()) ** 0.5 for name, tensor in random.items()}


def copied(target: Network, source: Network, tensors: dict[str, Tensor]) -> Copy:
    return copy_parameters(target.program(SIZE, CLASSES), source.program(SIZE, CLASSES), tensors)


def plain_chain(width: int) -> Program:
    """Return a chain of linear layers, without anything that would hide how large activations are."""
    build = ProgramBuilder(8, CLASSES)
    x = build.global_pool(build.conv(0, width, 3, "stem"))
    for number in range(3):
        x = build.linear(x, width, f"layers.{number}")
    return build.finish(build.linear(x, CLASSES, "classifier"))


@given(architectures())
def test_a_network_copied_onto_itself_stays_the_same_to_the_last_bit(network: Architecture) -> None:
    tensors = parameters_of(network)
    copy = copied(network, network, tensors)
    assert copy.share == 1
    assert copy.tensors.keys() == tensors.keys()
    assert all(torch.equal(copy.tensors[name], tensor) for name, tensor in tensors.items())


@given(architectures(), st.sampled_from((2, 3)))
def test_a_wider_version_computes_what_the_source_computes(source: Architecture, factor: int) -> None:
    wide = source.with_width(factor * source.C, fc_dim=factor * 16 + 1)
    tensors = parameters_of(source)
    copy = copied(wide, source, tensors)
    assert copy.share == 1
    torch.testing.assert_close(logits(wide, copy.tensors), logits(source, tensors), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name != "none"])
@pytest.mark.parametrize("fields", [{}, {"C_mult": 2, "stem_type": 1}, {"glob_avg": False, "norm": None}], ids=str)
def test_every_operation_computes_the_same_when_it_is_wider(operation: str, fields: dict) -> None:
    source = one_operation(operation, **fields)
    tensors = parameters_of(source)
    wide = source.with_width(24)
    copy = copied(wide, source, tensors)
    torch.testing.assert_close(logits(wide, copy.tensors), logits(source, tensors), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("small", "large"), [("conv_1x1", "conv_3x3"), ("conv_3x3", "conv_7x7")])
def test_a_larger_kernel_computes_the_same(small: str, large: str) -> None:
    source, target = one_operation(small), one_operation(large)
    tensors = parameters_of(source)
    copy = copied(target, source, tensors)
    assert copy.share == 1
    torch.testing.assert_close(logits(target, copy.tensors), logits(source, tensors))


def test_a_smaller_kernel_has_the_central_positions_of_the_leading_channels() -> None:
    source, target = one_operation("conv_5x5", C=16), one_operation("conv_3x3", C=8)
    tensors = parameters_of(source)
    copy = copied(target, source, tensors)
    name = "cells.0._ops.0.op.1.weight"
    assert torch.equal(copy.tensors[name], tensors[name][:8, :8, 1:4, 1:4])


def test_parts_of_a_concatenation_are_cut_one_by_one() -> None:
    def with_two_states(width: int) -> Architecture:
        cell = (("conv_3x3", 1), ("none", 0), ("conv_1x1", 1), ("none", 0))
        one = one_operation("conv_1x1", C=width)
        return replace(one, genotype=replace(one.genotype, normal=cell, normal_concat=(2, 3)))

    source, target = with_two_states(16), with_two_states(8)
    tensors = parameters_of(source)
    name = "cells.1.preprocess1.op.1.weight"
    found = copied(target, source, tensors).tensors[name]
    assert torch.equal(found, torch.cat([tensors[name][:8, :8], tensors[name][:8, 16:24]], 1))


def test_repeated_inputs_of_linear_chains_give_equal_logits() -> None:
    source = plain_chain(6)
    tensors = random_parameters(source, dtype=torch.float64)
    for width in (7, 12, 30, 6):
        target = plain_chain(width)
        copy = copy_parameters(target, source, tensors)
        assert copy.share == 1
        assert {name: tensor.shape for name, tensor in copy.tensors.items()} == {
            parameter.name: parameter.shape for parameter in target.parameters()
        }
        torch.testing.assert_close(run(target, copy.tensors), run(source, tensors))


def run(program: Program, parameters: dict[str, Tensor]) -> Tensor:
    return run_program(program, parameters, images(program.image_size, dtype=torch.float64))


@given(architectures(), architectures(), st.sampled_from((8, 16, 40)))
def test_copies_have_the_shapes_of_the_target_and_are_finite(
    target: Architecture, source: Architecture, width: int
) -> None:
    target = target.with_width(width)
    tensors = parameters_of(source)
    copy = copied(target, source, tensors)
    shapes = {parameter.name: parameter.shape for parameter in target.program(SIZE, CLASSES).parameters()}
    assert all(tensor.shape == shapes[name] and tensor.isfinite().all() for name, tensor in copy.tensors.items())
    elements = sum(tensor.numel() for tensor in copy.tensors.values())
    assert copy.share == elements / target.num_parameters(SIZE, CLASSES)
    assert 0 < copy.share <= 1
    class_layer = target.program(SIZE, CLASSES).operations[-1].parameters
    assert {parameter.name for parameter in class_layer} <= copy.tensors.keys()


@pytest.mark.parametrize("target", PREDEFINED)
@pytest.mark.parametrize("source", PREDEFINED)
def test_predefined_networks_are_copied_onto_each_other(target: str, source: str) -> None:
    networks = PREDEFINED[target], PREDEFINED[source]
    copy = copied(*networks, random_parameters(networks[1].program(SIZE, CLASSES)))
    assert copy.share == 1 if target == source else 0 < copy.share <= 1


def test_class_layers_of_other_classes_stay_at_initialisation() -> None:
    network = one_operation("conv_3x3")
    source, target = network.program(SIZE, 5), network.program(SIZE, 7)
    copy = copy_parameters(target, source, random_parameters(source))
    missing = {parameter.name for parameter in target.parameters()} - copy.tensors.keys()
    assert missing == {"classifier.weight", "classifier.bias"}


def test_position_encodings_of_other_grids_are_cut_and_repeated() -> None:
    network = one_operation("msa")
    tensors = random_parameters(network.program(16, CLASSES))
    source = tensors["pos_enc.weight"]
    smaller = copy_parameters(network.program(8, CLASSES), network.program(16, CLASSES), tensors).tensors
    assert torch.equal(smaller["pos_enc.weight"], source[:, :, 1:4, 1:4])
    larger = copy_parameters(network.program(32, CLASSES), network.program(16, CLASSES), tensors).tensors
    assert larger["pos_enc.weight"].shape == (1, 8, 11, 11)
    assert torch.equal(larger["pos_enc.weight"][:, :, ::10, ::10], source[:, :, ::5, ::5])
