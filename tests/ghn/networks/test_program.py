from __future__ import annotations

import pytest
import torch
from examples import CLASSES, architectures, images, one_operation, random_parameters
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from ghn import Architecture
from ghn.networks.functional import evaluate, run_operation, run_program
from ghn.networks.program import InvalidArchitecture, Program

SIZES = st.sampled_from((8, 16, 28, 32, 64, 224))


def shapes(program: Program, prefix: str) -> list[tuple[int, ...]]:
    return [p.shape for p in program.parameters() if p.name.startswith(prefix)]


@given(architectures(), SIZES)
def test_shapes_foretold_are_the_shapes_computed(architecture: Architecture, size: int) -> None:
    program = architecture.compile(size, CLASSES)
    parameters = random_parameters(program, device="meta")

    def kernel(operation, inputs):
        result = run_operation(operation, inputs, [parameters[p.name] for p in operation.parameters])
        expected = operation.shape if operation.kind == "position_encoding" else (2, *operation.shape)
        assert tuple(result.shape)[-len(expected) :] == expected, operation
        return result

    logits = evaluate(program, torch.empty(2, 3, size, size, device="meta"), kernel)
    assert logits.shape == (2, CLASSES)


@given(architectures(), SIZES)
def test_operations_come_in_order_and_all_reach_the_output(architecture: Architecture, size: int) -> None:
    operations = architecture.compile(size, CLASSES).operations
    read = {source for operation in operations for source in operation.inputs}
    assert all(max(operation.inputs, default=-1) < position for position, operation in enumerate(operations))
    assert read == set(range(len(operations) - 1))
    assert operations[0].kind == "image" and [o.kind for o in operations].count("image") == 1


@given(architectures())
def test_each_result_is_freed_once_after_its_last_use(architecture: Architecture) -> None:
    program = architecture.compile(16, CLASSES)
    freed = [source for sources in program.freed_after for source in sources]
    assert sorted(freed) == list(range(len(program.operations) - 1))
    for position, sources in enumerate(program.freed_after):
        later = {x for operation in program.operations[position + 1 :] for x in operation.inputs}
        assert not later & set(sources)


@given(architectures())
def test_parameters_have_names_of_their_own(architecture: Architecture) -> None:
    program = architecture.compile(16, CLASSES)
    names = [parameter.name for parameter in program.parameters()]
    assert len(set(names)) == len(names)
    assert program.num_parameters == sum(parameter.size for parameter in program.parameters())


@given(architectures())
def test_floating_point_operations_are_those_that_pytorch_counts(architecture: Architecture) -> None:
    program = architecture.compile(16, CLASSES)
    with FlopCounterMode(display=False) as counter:
        run_program(program, random_parameters(program, "meta"), torch.empty(2, 3, 16, 16, device="meta"))
    assert counter.get_total_flops() == 2 * program.flops


def test_activations_are_the_elements_of_all_results() -> None:
    program = one_operation("max_pool_3x3", n_cells=1, norm=None, preproc=False).compile(8, CLASSES)
    # The image, the stem's result, the pool's, eight averages and the logits.
    assert program.activations == 3 * 64 + 8 * 64 + 8 * 64 + 8 + CLASSES


NORM = [(8,), (8,)]
PARAMETERS = {
    "max_pool_3x3": [],
    "avg_pool_3x3": [],
    "skip_connect": [],
    "sep_conv_3x3": [(8, 1, 3, 3), (8, 8, 1, 1), *NORM] * 2,
    "sep_conv_5x5": [(8, 1, 5, 5), (8, 8, 1, 1), *NORM] * 2,
    "dil_conv_3x3": [(8, 1, 3, 3), (8, 8, 1, 1), *NORM],
    "dil_conv_5x5": [(8, 1, 5, 5), (8, 8, 1, 1), *NORM],
    "conv_1x1": [(8, 8, 1, 1), *NORM],
    "conv_7x1_1x7": [(8, 8, 1, 7), (8, 8, 7, 1), *NORM],
    "conv_3x3": [(8, 8, 3, 3), *NORM],
    "conv_5x5": [(8, 8, 5, 5), *NORM],
    "conv_7x7": [(8, 8, 7, 7), *NORM],
    "msa": [*NORM, (24, 8), (8, 8), (8,), *NORM, (8, 8), (8,), (8, 8), (8,)],
    "cse": [(4, 8), (4,), (8, 4), (8,)],
}


@pytest.mark.parametrize("size", [8, 16, 28, 64])
@pytest.mark.parametrize("operation", sorted(PARAMETERS))
def test_each_operation_has_its_parameters_and_runs_at_each_image_size(operation: str, size: int) -> None:
    architecture = one_operation(operation)
    program = architecture.compile(size, CLASSES)
    assert shapes(program, "cells.0._ops.0.") == PARAMETERS[operation]
    logits = architecture.forward(random_parameters(program), images(size))
    assert logits.shape == (4, CLASSES) and logits.isfinite().all()


@pytest.mark.parametrize("operation", sorted(PARAMETERS))
def test_without_norm_there_are_no_norms_but_those_of_attention(operation: str) -> None:
    program = one_operation(operation, norm=None).compile(16, CLASSES)
    assert "batch_norm" not in {o.kind for o in program.operations}
    assert ("layer_norm" in {o.kind for o in program.operations}) == (operation == "msa")


def test_a_skip_in_a_reduction_halves_the_resolution_in_two_parts() -> None:
    program = one_operation("skip_connect", n_cells=2).compile(16, CLASSES)
    assert shapes(program, "cells.1._ops.0.") == [(4, 8, 1, 1), (4, 8, 1, 1), *NORM]
    assert program.operations[-3].shape == (8, 8, 8)


@pytest.mark.parametrize(
    ("fields", "size", "parameters", "result"),
    [
        ({"ks": 5}, 32, [(24, 3, 5, 5), (24,), (24,)], (24, 32, 32)),
        ({"ks": 5, "preproc": False}, 32, [(8, 3, 5, 5), *NORM], (8, 32, 32)),
        ({"ks": 7}, 224, [(8, 3, 7, 7), *NORM], (8, 56, 56)),
        ({"stem_pool": True}, 32, [(24, 3, 3, 3), (24,), (24,)], (24, 16, 16)),
        ({"stem_pool": True, "norm": None}, 224, [(8, 3, 3, 3)], (8, 28, 28)),
        ({"stem_type": 1}, 32, [(4, 3, 3, 3), (4,), (4,), (8, 4, 3, 3), *NORM, (8, 8, 3, 3), *NORM], (8, 16, 16)),
        ({"stem_type": 1, "norm": None}, 224, [(4, 3, 3, 3), (8, 4, 3, 3), (8, 8, 3, 3)], (8, 28, 28)),
    ],
)
def test_stems_follow_the_design(fields: dict, size: int, parameters: list, result: tuple[int, ...]) -> None:
    program = one_operation("max_pool_3x3", n_cells=1, **fields).compile(size, CLASSES)
    assert shapes(program, "stem") == parameters
    last = max(n for n, o in enumerate(program.operations) if any(p.name.startswith("stem") for p in o.parameters))
    last += fields.get("stem_pool", False)
    assert program.operations[last].shape == result


@pytest.mark.parametrize(("size", "patch", "side"), [(8, 3, 3), (16, 3, 6), (28, 3, 10), (32, 3, 11), (224, 16, 14)])
def test_attention_reads_patches_with_a_learned_position(size: int, patch: int, side: int) -> None:
    program = one_operation("msa").compile(size, CLASSES)
    assert shapes(program, "stem") == [(8, 3, patch, patch)]
    assert shapes(program, "pos_enc") == [(1, 8, side, side)]
    resolutions = {operation.shape[1:] for operation in program.operations[1:] if len(operation.shape) == 3}
    assert resolutions == {(side, side)}


@pytest.mark.parametrize(
    ("fields", "parameters"),
    [
        ({}, [(CLASSES, 8), (CLASSES,)]),
        ({"glob_avg": False}, [(CLASSES, 8 * 16 * 16), (CLASSES,)]),
        ({"fc_layers": 2}, [(16, 8), (16,), (CLASSES, 16), (CLASSES,)]),
        ({"fc_layers": 2, "glob_avg": False}, [(16, 8 * 16 * 16), (16,), (CLASSES, 16), (CLASSES,)]),
    ],
)
def test_heads_follow_the_design(fields: dict, parameters: list) -> None:
    architecture = one_operation("conv_3x3", n_cells=1, **fields)
    assert shapes(architecture.compile(16, CLASSES), "classifier") == parameters


@pytest.mark.parametrize(
    ("n_cells", "reductions"), [(1, []), (2, [1]), (3, [1, 2]), (4, [1, 2]), (6, [2, 4]), (18, [6, 12])]
)
def test_reductions_are_a_third_and_two_thirds_of_the_way(n_cells: int, reductions: list[int]) -> None:
    program = one_operation("conv_3x3", n_cells=n_cells, C_mult=2).compile(32, CLASSES)
    outputs = [o for o in program.operations if any(p.name.endswith("_ops.0.op.2.weight") for p in o.parameters)]
    passed = [sum(index >= reduction for reduction in reductions) for index in range(n_cells)]
    assert [o.shape for o in outputs] == [(8 * 2**n, 32 // 2**n, 32 // 2**n) for n in passed]


def test_a_network_without_an_output_is_invalid() -> None:
    with pytest.raises(InvalidArchitecture, match="no output"):
        one_operation("none").compile(32, 10)


@pytest.mark.parametrize(
    ("size", "classes", "message"), [(7, 10, "image_size = 7: must be"), (32, 0, "num_classes = 0: must be")]
)
def test_impossible_sizes_are_refused(size: int, classes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        one_operation("conv_3x3").compile(size, classes)
