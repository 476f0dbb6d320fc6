"""Depthwise convolutions with gradients of their own give what PyTorch gives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from ghn.networks.depthwise import DILATIONS, STRIDES, depthwise_conv, is_covered

Case = tuple[int, int, int, int, int, int]

cases = st.tuples(
    st.sampled_from([1, 3, 5]),  # kernel
    st.sampled_from(STRIDES),
    st.sampled_from(DILATIONS),
    st.integers(1, 9),  # channels
    st.integers(1, 15),  # height
    st.integers(1, 15),  # width
)


def tensors(case: Case, dtype: torch.dtype, channels_last: bool = True) -> tuple[Tensor, Tensor]:
    kernel, _, _, channels, height, width = case
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, channels, height, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(channels, 1, kernel, kernel, generator=generator, dtype=torch.float64)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return x.to(dtype).contiguous(memory_format=layout).requires_grad_(), weight.to(dtype).requires_grad_()


def with_gradients(result: Tensor, x: Tensor, weight: Tensor) -> list[Tensor]:
    upstream = torch.randn(result.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [result.detach(), *torch.autograd.grad(result, (x, weight), upstream.to(result.dtype))]


def of_pytorch(x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    padding = dilation * (weight.shape[-1] // 2)
    return F.conv2d(x, weight, None, stride, padding, dilation, len(weight))


@settings(max_examples=150)
@given(cases, st.booleans())
def test_results_and_gradients_are_those_of_pytorch(case: Case, channels_last: bool) -> None:
    _, stride, dilation, *_ = case
    x, weight = tensors(case, torch.float64, channels_last)
    expected = with_gradients(of_pytorch(x, weight, stride, dilation), x, weight)
    for ours, theirs in zip(
        with_gradients(depthwise_conv(x, weight, stride, dilation), x, weight), expected, strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 1, 1), (3, 2, 2), (5, 1, 2), (5, 2, 1)])
def test_precisions_of_training_agree_with_float64(kernel: int, stride: int, dilation: int, dtype: torch.dtype) -> None:
    case = (kernel, stride, dilation, 16, 14, 14)
    low, exact = tensors(case, dtype), tensors(case, torch.float64)
    expected = with_gradients(of_pytorch(*exact, stride, dilation), *exact)
    for ours, theirs in zip(with_gradients(depthwise_conv(*low, stride, dilation), *low), expected, strict=True):
        assert ours.dtype == dtype
        error = (ours.double() - theirs).norm() / theirs.norm()
        assert error < (2e-2 if dtype == torch.bfloat16 else 1e-5)


def test_autocast_lowers_the_precision_as_it_does_for_any_convolution() -> None:
    x, weight = tensors((3, 1, 1, 8, 14, 14), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        result = depthwise_conv(x, weight, 1, 1)
        assert result.dtype == of_pytorch(x, weight, 1, 1).dtype == torch.bfloat16
    result.float().sum().backward()
    assert x.grad is not None and weight.grad is not None
    assert x.grad.dtype == weight.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("shape", "conv_settings", "covered"),
    [
        ((16, 1, 3, 3), (1, 1, 1, 1, 1, 16), True),
        ((16, 1, 5, 5), (2, 2, 4, 4, 2, 16), True),
        ((16, 1, 1, 1), (1, 1, 0, 0, 2, 16), True),  # the centre of a larger kernel
        ((16, 1, 7, 7), (1, 1, 3, 3, 1, 16), False),  # another kernel
        ((16, 1, 3, 3), (1, 1, 0, 0, 1, 16), False),  # another padding
        ((16, 1, 3, 3), (3, 3, 1, 1, 1, 16), False),  # another stride
        ((16, 2, 3, 3), (1, 1, 1, 1, 1, 8), False),  # groups of several channels
        ((16, 1, 1, 3), (1, 1, 0, 1, 1, 16), False),  # not square
    ],
)
def test_other_convolutions_are_left_to_pytorch(
    shape: tuple[int, ...], conv_settings: tuple[int, ...], covered: bool
) -> None:
    assert is_covered(torch.zeros(shape), conv_settings) is covered


@pytest.mark.parametrize("side", [2, 6])
def test_gradients_can_be_differentiated_again(side: int) -> None:
    x, weight = tensors((5, 2, 2, 2, side, side), torch.float64)
    assert torch.autograd.gradgradcheck(lambda a, b: depthwise_conv(a, b, 2, 2), (x, weight))


def test_transformed_functions_are_differentiated_too() -> None:
    x, weight = tensors((3, 1, 2, 4, 6, 6), torch.float64)

    def loss(own_weight: Tensor) -> Tensor:
        return depthwise_conv(x.detach(), own_weight, 1, 2).square().sum()

    (expected,) = torch.autograd.grad(of_pytorch(x.detach(), weight, 1, 2).square().sum(), weight)
    torch.testing.assert_close(torch.func.grad(loss)(weight.detach()), expected)
    several = torch.stack([weight.detach(), 2 * weight.detach()])
    torch.testing.assert_close(torch.vmap(loss)(several), torch.stack([loss(one) for one in several]))
