"""Convolutions of maps smaller than their kernels, of which only the part that meets the map is computed."""

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from ghn.networks.functional import run_operation
from ghn.networks.operations import Operation

pairs = st.tuples(st.integers(1, 2), st.integers(1, 2))


@settings(max_examples=200)
@given(
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    kernel=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    padding=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    strides=pairs,
    dilation=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
)
def test_results_and_gradients_are_those_of_pytorch(
    size: tuple[int, int],
    kernel: tuple[int, int],
    padding: tuple[int, int],
    strides: tuple[int, int],
    dilation: int,
    groups: int,
) -> None:
    assume(all(n + 2 * p >= dilation * (k - 1) + 1 for n, p, k in zip(size, padding, kernel, strict=True)))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, *size, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 4 // groups, *kernel, generator=generator, dtype=torch.float64, requires_grad=True)
    expected = F.conv2d(x, weight, None, strides, padding, dilation, groups)
    operation = Operation("conv", (0,), expected.shape[1:], (), (*strides, *padding, dilation, groups))
    result = run_operation(operation, [x], [weight])
    torch.testing.assert_close(result, expected, rtol=1e-11, atol=1e-11)
    upstream = torch.randn(result.shape, generator=generator, dtype=torch.float64)
    for ours, theirs in zip(
        torch.autograd.grad(result, (x, weight), upstream),
        torch.autograd.grad(expected, (x, weight), upstream),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
