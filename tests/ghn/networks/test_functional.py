from __future__ import annotations

import math

import pytest
import torch
from examples import CLASSES, architectures, images, one_operation, random_parameters
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ghn import Architecture, Genotype
from ghn.networks.functional import run_operation, run_program
from ghn.networks.program import ProgramBuilder


def run(build: ProgramBuilder, position: int | None, *inputs: Tensor, parameters: tuple[Tensor, ...] = ()) -> Tensor:
    return run_operation(build.operations[position], inputs, parameters)


@given(architectures(), st.sampled_from((8, 16, 28, 64)))
def test_gradients_flow_into_all_given_parameters(architecture: Architecture, size: int) -> None:
    program = architecture.program(size, CLASSES)
    parameters = {name: x.mul_(0.1).requires_grad_() for name, x in random_parameters(program).items()}
    logits = architecture.forward({name: x * 1 for name, x in parameters.items()}, images(size))
    assert logits.shape == (4, CLASSES) and logits.isfinite().all()
    gradients = torch.autograd.grad(logits.sum(), list(parameters.values()))
    assert [gradient.shape for gradient in gradients] == [parameter.shape for parameter in parameters.values()]


def test_a_missing_parameter_is_named() -> None:
    program = one_operation("conv_3x3").compile(8, CLASSES)
    parameters = random_parameters(program)
    del parameters["classifier.bias"]
    with pytest.raises(KeyError, match=r"classifier\.bias"):
        run_program(program, parameters, images(8))


def test_dropout_is_off_unless_a_generator_is_given() -> None:
    architecture = one_operation("conv_3x3", fc_layers=2, fc_dim=512)
    parameters = random_parameters(architecture.program(8, CLASSES))
    plain = architecture.forward(parameters, images(8))
    first, again, other = (
        architecture.forward(parameters, images(8), torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(plain, architecture.forward(parameters, images(8)))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other) and not torch.allclose(first, plain)


def test_dropout_keeps_half_of_the_elements_and_doubles_them() -> None:
    build = ProgramBuilder(64, CLASSES)
    program = build.finish(build.unary("dropout", build.image))
    result = run_program(program, {}, torch.ones(1, 3, 64, 64), torch.Generator().manual_seed(0))
    assert set(result.unique().tolist()) == {0.0, 2.0}
    assert result.mean().item() == pytest.approx(1, abs=0.05)


def test_batch_norm_uses_the_statistics_of_the_batch() -> None:
    build = ProgramBuilder(8, CLASSES)
    x, weight, bias = images(8), torch.randn(3), torch.randn(3)
    normalised = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    result = run(build, build.batch_norm(build.image, "bn"), x, parameters=(weight, bias))
    torch.testing.assert_close(result, normalised * weight[:, None, None] + bias[:, None, None])


def test_attention_is_the_softmax_of_products_a_head() -> None:
    build = ProgramBuilder(8, CLASSES)
    tokens, channels, heads = 9, 16, 8
    attention = build.emit("attention", (0,), (tokens, channels), (), (heads,))
    x = torch.randn(2, tokens, 3 * channels)
    parts = []
    for head in range(heads):
        q, k, v = (x[:, :, start + 2 * head : start + 2 * head + 2] for start in (0, channels, 2 * channels))
        parts.append((q @ k.transpose(1, 2) / math.sqrt(2)).softmax(2) @ v)
    torch.testing.assert_close(run(build, attention, x), torch.cat(parts, 2))


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "bf16"])
def test_attention_in_reduced_precision_is_that_in_single_precision(autocast: bool) -> None:
    """On a CPU it is another kernel, whose gradients are compared too."""
    build = ProgramBuilder(8, CLASSES)
    tokens, channels = 49, 64
    attention = build.emit("attention", (0,), (tokens, channels), (), (8,))
    x = torch.randn(2, tokens, 3 * channels).bfloat16().float()  # the same numbers in both
    weights = torch.randn(2, tokens, channels)

    def attend(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast and x.dtype == torch.bfloat16):
            result = run(build, attention, x)
        assert result.dtype == x.dtype
        (gradient,) = torch.autograd.grad((result.float() * weights).sum(), [x])
        return result.detach().float(), gradient.float()

    for expected, reduced in zip(attend(x), attend(x.bfloat16()), strict=True):
        assert (reduced - expected).norm() < 0.01 * expected.norm()  # bfloat16 has 8 bits


def test_average_pools_do_not_count_the_padding() -> None:
    build = ProgramBuilder(8, CLASSES)
    ones = torch.ones(1, 3, 8, 8)
    assert torch.equal(run(build, build.pool("avg_pool", build.image), ones), ones)


def test_a_pool_and_a_subsampling_of_an_odd_side_agree_in_size() -> None:
    build = ProgramBuilder(7, CLASSES)
    x = images(7)
    pooled = run(build, build.pool("max_pool", build.image, stride=2), x)
    subsampled = run(build, build.subsample(build.image, 2), x)
    assert pooled.shape == subsampled.shape == (4, 3, 4, 4)
    assert torch.equal(subsampled, x[:, :, ::2, ::2])


def test_the_shift_reads_the_pixels_between_and_zeros_at_the_far_edge() -> None:
    build = ProgramBuilder(5, CLASSES)
    x = images(5)
    shifted = run(build, build.unary("shift", build.image), x)
    assert torch.equal(shifted[:, :, :4, :4], x[:, :, 1:, 1:])
    assert not shifted[:, :, 4].any() and not shifted[:, :, :, 4].any()


def test_absent_states_are_zeros_in_a_concatenation_and_nothing_in_a_sum() -> None:
    build = ProgramBuilder(8, CLASSES)
    assert build.add([None, None]) is None and build.concat([None, None]) is None
    assert build.add([None, build.image]) == build.image
    result = run_program(build.finish(build.concat([None, build.image])), {}, images(8))
    assert torch.equal(result, torch.cat([torch.zeros(4, 3, 8, 8), images(8)], 1))


def test_squeeze_and_excitation_weighs_the_whole_map_and_then_subsamples() -> None:
    cell = (("cse", 1), ("none", 0))
    genotype = Genotype(normal=(("skip_connect", 1), ("none", 0)), normal_concat=(2,), reduce=cell, reduce_concat=(2,))
    architecture = Architecture(genotype, n_cells=2, C=8, preproc=False, norm=None)  # the second cell reduces
    p = random_parameters(architecture.compile(8, CLASSES))
    fc1, fc2 = ((p[f"cells.1._ops.0.{fc}.weight"], p[f"cells.1._ops.0.{fc}.bias"]) for fc in ("fc1", "fc2"))
    x = torch.nn.functional.conv2d(images(8), p["stem.0.weight"], padding=1)
    hidden = torch.nn.functional.linear(x.mean((2, 3)), *fc1).relu()
    gate = torch.nn.functional.hardswish(torch.nn.functional.linear(hidden, *fc2))
    pooled = (x * gate[:, :, None, None])[:, :, ::2, ::2].mean((2, 3))
    logits = torch.nn.functional.linear(pooled, p["classifier.weight"], p["classifier.bias"])
    torch.testing.assert_close(architecture.forward(p, images(8)), logits, rtol=1e-4, atol=1e-3)


def test_squeeze_and_excitation_scales_channels() -> None:
    architecture = one_operation("cse", n_cells=1, preproc=False, norm=None)
    program = architecture.compile(8, CLASSES)
    p = random_parameters(program)
    x = torch.nn.functional.conv2d(images(8), p["stem.0.weight"], padding=1)
    hidden = (x.mean((2, 3)) @ p["cells.0._ops.0.fc1.weight"].T + p["cells.0._ops.0.fc1.bias"]).relu()
    gate = torch.nn.functional.hardswish(hidden @ p["cells.0._ops.0.fc2.weight"].T + p["cells.0._ops.0.fc2.bias"])
    logits = (x * gate[:, :, None, None]).mean((2, 3)) @ p["classifier.weight"].T + p["classifier.bias"]
    torch.testing.assert_close(architecture.forward(p, images(8)), logits, rtol=1e-4, atol=1e-3)
