"""Depthwise convolutions whose backward pass on a CPU takes about as long as their forward pass.

PyTorch's own backward pass of the depthwise convolutions of DeepNets-1M takes up to 200 times their forward pass,
except for 3×3 kernels without stride and dilation on maps that are not tiny (2.14, one thread). On maps smaller than
the kernel's reach even its forward pass can take 100 times as long as usual. Both can be had from faster operations:

- A convolution with stride 2 and dilation 2 reads every second row and column alone: it is one without stride and
  dilation on these. One whose kernel is a single position is a product.
- The gradient at the input is the convolution of the output's gradient with the flipped kernel. With a stride, zeros
  are put between the elements of the output's gradient first.
- The gradient at the weight is a sum of products for each kernel position. PyTorch is fast at those of 3×3 kernels
  without dilation. So a dilated convolution is taken apart into convolutions without dilation, on the maps of every
  second row and column, and a 5×5 kernel into overlapping 3×3 ones. On maps of up to 2×2 pixels, where PyTorch is slow
  at these too, the products of all pairs of pixels are one batched matrix product.

The results are PyTorch's, except for the order in which they are summed. `benchmarks/depthwise.py` compares the times.

Dimensions: B images, C channels, Y×X pixels of the input, V×U pixels of the output, k×k kernel positions.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

KERNELS, STRIDES, DILATIONS = (3, 5), (1, 2), (1, 2)
"""Sides of the kernels, strides and dilations of DeepNets-1M's depthwise convolutions, which are covered here. So is
the side 1, which remains of a kernel where only its centre meets the map."""

TINY = 2
"""Largest side in pixels of the maps whose weight gradients are computed from all pairs of pixels."""


def depthwise_conv(x_BCYX: Tensor, weight_C1kk: Tensor, stride: int, dilation: int) -> Tensor:
    """Return the depthwise convolution (B, C, V, U), padded so that V = ⌈Y / stride⌉.

    Args:
        stride: 1 or 2.
        dilation: 1 or 2.
    """
    if torch.is_autocast_enabled(x_BCYX.device.type):
        dtype = torch.get_autocast_dtype(x_BCYX.device.type)
        x_BCYX, weight_C1kk = x_BCYX.to(dtype), weight_C1kk.to(dtype)
    result: Tensor = _DepthwiseConv.apply(x_BCYX, weight_C1kk, stride, dilation)
    return result


def is_covered(weight: Tensor, settings: tuple[int, ...]) -> bool:
    """Return whether `depthwise_conv` computes a convolution, and faster than PyTorch does.

    Args:
        weight: of the convolution, with four axes.
        settings: those of the program's operation `conv`.
    """
    sh, sw, ph, pw, dilation, groups = settings
    channels, inputs, kh, kw = weight.shape
    return (
        weight.device.type == "cpu"
        and inputs == 1
        and channels == groups
        and kh == kw
        and kh in (1, *KERNELS)
        and sh == sw
        and sh in STRIDES
        and dilation in DILATIONS
        and ph == pw == dilation * (kh // 2)
    )


class _DepthwiseConv(torch.autograd.Function):
    """The convolution, with its gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x_BCYX: Tensor, weight_C1kk: Tensor, stride: int, dilation: int) -> Tensor:
        """Return the result (B, C, V, U)."""
        if stride == dilation == 2:
            return _convolved(_every_second(x_BCYX), weight_C1kk, 1, 1)
        return _convolved(x_BCYX, weight_C1kk, stride, dilation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int, int], output: Tensor) -> None:
        """Keep what the gradient is computed from."""
        x_BCYX, weight_C1kk, ctx.stride, ctx.dilation = inputs
        ctx.save_for_backward(x_BCYX, weight_C1kk)

    @staticmethod
    def backward(ctx: Any, d_BCVU: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Return the gradients at the input and at the weight, which can be differentiated again."""
        x_BCYX, weight_C1kk = ctx.saved_tensors
        d_x = d_weight = None
        if ctx.needs_input_grad[0]:
            d_x = _input_gradient(d_BCVU, weight_C1kk, ctx.stride, ctx.dilation, x_BCYX.shape)
        if ctx.needs_input_grad[1]:
            d_weight = _weight_gradient(x_BCYX, d_BCVU, weight_C1kk.shape[-1], ctx.stride, ctx.dilation)
        return d_x, d_weight, None, None


def _convolved(x_BCYX: Tensor, weight_C1kk: Tensor, stride: int, dilation: int) -> Tensor:
    """Return the convolution (B, C, V, U), computed by PyTorch; one of a single kernel position as a product."""
    kernel = weight_C1kk.shape[-1]
    if kernel == 1:
        return x_BCYX[:, :, ::stride, ::stride] * weight_C1kk.view(1, -1, 1, 1)
    return F.conv2d(x_BCYX, weight_C1kk, None, stride, dilation * (kernel // 2), dilation, len(weight_C1kk))


def _every_second(x_BCYX: Tensor) -> Tensor:
    """Return every second row and column, channels last in memory."""
    return x_BCYX[:, :, ::2, ::2].contiguous(memory_format=torch.channels_last)


def _input_gradient(d_BCVU: Tensor, weight_C1kk: Tensor, stride: int, dilation: int, shape: torch.Size) -> Tensor:
    """Return the gradient (B, C, Y, X) at an input of that shape."""
    if stride == dilation == 2:
        return _spread(_convolved(d_BCVU, weight_C1kk.flip(2, 3), 1, 1), shape)
    if stride == 2:
        d_BCVU = _spread(d_BCVU, shape)
    return _convolved(d_BCVU, weight_C1kk.flip(2, 3), 1, dilation)


def _spread(x_BCVU: Tensor, shape: torch.Size) -> Tensor:
    """Return a map of that shape (B, C, Y, X) with these elements in every second row and column, and zeros between."""
    B, C, Y, X = shape
    spread_BCYX = x_BCVU.new_zeros(B, Y, X, C).permute(0, 3, 1, 2)  # channels last in memory
    spread_BCYX[:, :, ::2, ::2] = x_BCVU
    return spread_BCYX


def _weight_gradient(x_BCYX: Tensor, d_BCVU: Tensor, kernel: int, stride: int, dilation: int) -> Tensor:
    """Return the gradient (C, 1, k, k) at the weight."""
    if stride == dilation == 2 or (kernel == 1 and stride == 2):
        return _undilated_weight_gradient(_every_second(x_BCYX), d_BCVU, kernel, 1)
    if dilation == 1 or kernel == 1:
        return _undilated_weight_gradient(x_BCYX, d_BCVU, kernel, stride)
    return _undilated_weight_gradient(_four_maps(x_BCYX), _four_maps(d_BCVU), kernel, 1)


def _four_maps(x_BCYX: Tensor) -> Tensor:
    """Return the maps of even and odd rows and columns as images (4B, C, ⌈Y/2⌉, ⌈X/2⌉), channels last in memory."""
    Y, X = x_BCYX.shape[2:]
    if Y % 2 or X % 2:
        x_BCYX = F.pad(x_BCYX, (0, X % 2, 0, Y % 2))
    B, C, Y, X = x_BCYX.shape
    x_B22YXC = x_BCYX.permute(0, 2, 3, 1).reshape(B, Y // 2, 2, X // 2, 2, C).permute(0, 2, 4, 1, 3, 5)
    return x_B22YXC.reshape(4 * B, Y // 2, X // 2, C).permute(0, 3, 1, 2)


def _undilated_weight_gradient(x_BCYX: Tensor, d_BCVU: Tensor, kernel: int, stride: int) -> Tensor:
    """Return the gradient (C, 1, k, k) at the weight of a convolution without dilation."""
    if kernel == 1:
        return (x_BCYX * d_BCVU).sum((0, 2, 3)).view(-1, 1, 1, 1)
    if max(x_BCYX.shape[2:]) <= TINY:
        return _weight_gradient_of_pairs(x_BCYX, d_BCVU, kernel, stride)
    if kernel == 3:
        return _weight_gradient_3x3(x_BCYX, d_BCVU, stride, padding=1)
    x_BCYX = F.pad(x_BCYX, (kernel // 2,) * 4)
    height, width = ((size - 1) * stride + 3 for size in d_BCVU.shape[2:])
    gradient_C1kk = x_BCYX.new_empty(x_BCYX.shape[1], 1, kernel, kernel)
    for top in range(0, kernel - 2, 2):
        for left in range(0, kernel - 2, 2):
            window_BCYX = x_BCYX[:, :, top : top + height, left : left + width]
            part_C133 = _weight_gradient_3x3(window_BCYX, d_BCVU, stride, padding=0)
            gradient_C1kk[:, :, top : top + 3, left : left + 3] = part_C133
    return gradient_C1kk


def _weight_gradient_of_pairs(x_BCYX: Tensor, d_BCVU: Tensor, kernel: int, stride: int) -> Tensor:
    """Return the gradient (C, 1, k, k) at the weight from the products of all pairs of an input and an output pixel."""
    B, C, Y, X = x_BCYX.shape
    V, U = d_BCVU.shape[2:]
    x_CPB = x_BCYX.permute(1, 2, 3, 0).reshape(C, Y * X, B)
    d_CBQ = d_BCVU.permute(1, 0, 2, 3).reshape(C, B, V * U)
    products_CPQ = torch.bmm(x_CPB, d_CBQ)
    meets_PQK = _meetings(Y, X, V, U, kernel, stride).to(products_CPQ)
    return (products_CPQ.flatten(1) @ meets_PQK).view(C, 1, kernel, kernel)


@lru_cache(maxsize=256)
def _meetings(Y: int, X: int, V: int, U: int, kernel: int, stride: int) -> Tensor:
    """Return which kernel position joins an input pixel to an output pixel (Y·X·V·U, k·k): one or none, as 1 or 0."""
    y, x, v, u = (axis.flatten() for axis in torch.meshgrid(*map(torch.arange, (Y, X, V, U)), indexing="ij"))
    row, column = (place - stride * out + kernel // 2 for place, out in ((y, v), (x, u)))
    meets = (row >= 0) & (row < kernel) & (column >= 0) & (column < kernel)
    positions = torch.where(meets, row * kernel + column, 0)
    return F.one_hot(positions, kernel * kernel).float() * meets[:, None]


def _weight_gradient_3x3(x_BCYX: Tensor, d_BCVU: Tensor, stride: int, padding: int) -> Tensor:
    """Return PyTorch's gradient (C, 1, 3, 3) at the weight of a 3×3 convolution without dilation."""
    C = x_BCYX.shape[1]
    strides, paddings, needed = [stride, stride], [padding, padding], [False, True, False]
    _, gradient_C133, _ = torch.ops.aten.convolution_backward(
        d_BCVU, x_BCYX, x_BCYX.new_empty(C, 1, 3, 3), None, strides, paddings, [1, 1], False, [0, 0], C, needed
    )
    result: Tensor = gradient_C133
    return result
