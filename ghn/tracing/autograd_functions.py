"""Functions that autograd has recorded, and their arguments, as the tracer reads them.

PyTorch keeps the arguments of a recorded function in attributes that begin with an underscore, which are private. They
are read in this module alone. Checked with PyTorch 2.14.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Function = torch.autograd.graph.Node
"""A function that autograd has recorded; not a node of `ghn.networks.graph`."""


def operation_name(function: Function) -> str:
    """Return the name of an operation: `Convolution` for a function that is called `ConvolutionBackward0`."""
    return function.name().rpartition("::")[2].rstrip("0123456789").removesuffix("Backward").lstrip("_")


def custom_function(function: Function) -> type[torch.autograd.Function] | None:
    """Return the subclass of `torch.autograd.Function` that was called; None for a function of PyTorch itself."""
    return getattr(function, "_forward_cls", None)


def leaf_of(function: Function) -> Tensor | None:
    """Return the leaf tensor that a function stands for; None if it stands for an operation."""
    return getattr(function, "variable", None)


def inputs_of(function: Function) -> list[Function | None]:
    """Return for each input of a function the function that computed it; None for inputs without a gradient."""
    return [source for source, _ in function.next_functions]


def call_order(function: Function) -> int:
    """Return a number that is higher for functions that were called later."""
    return function._sequence_nr()


class ConvolutionSettings(NamedTuple):
    """Settings of a convolution that decide its primitive."""

    groups: int
    dilation: Sequence[int]
    transposed: bool


def convolution_settings(function: Function) -> ConvolutionSettings:
    """Return the settings of a convolution."""
    saved = _saved(function)
    return ConvolutionSettings(saved._saved_groups, saved._saved_dilation, saved._saved_transposed)


def kernel_size(function: Function) -> Sequence[int]:
    """Return the kernel of a pool, in pixels along each axis."""
    kernel: Sequence[int] = _saved(function)._saved_kernel_size
    return kernel


def adaptive_pool_sizes(function: Function) -> list[tuple[int, int]]:
    """Return for each axis of an adaptive pool how many pixels its input and its result have."""
    before, after = _saved(function)._saved_self.shape, _result_shape(function)
    axes = 3 if "3D" in function.name() else 2
    return list(zip(before[-axes:], after[-axes:], strict=True))


class MeanAxes(NamedTuple):
    """Axes that a mean is taken over, of a tensor of `total` axes."""

    over: set[int]
    total: int


def mean_axes(function: Function) -> MeanAxes | None:
    """Return the axes that a mean is taken over; None for the mean of all elements."""
    if function.name() == "MeanBackward0":
        return None
    saved = _saved(function)
    total = len(saved._saved_self_sym_sizes)
    return MeanAxes({_axis(number, total) for number in saved._saved_dim}, total)


def exchanges_last_axes(function: Function) -> bool:
    """Return whether a transposition or permutation exchanges the last two axes of its input."""
    axes = len(_result_shape(function))
    if axes < 2:
        return False
    name, saved = operation_name(function), _saved(function)
    if name == "T":
        return True
    if name == "Transpose":
        return {_axis(number, axes) for number in (saved._saved_dim0, saved._saved_dim1)} == {axes - 2, axes - 1}
    return [_axis(number, axes) for number in saved._saved_dims][-2:] == [axes - 1, axes - 2]


def summed_length(function: Function) -> int | None:
    """Return the length of the axis that a matrix product sums over; None if autograd has not kept it."""
    for name in ("_saved_mat2_sym_sizes", "_saved_mat2", "_saved_batch2"):
        kept = getattr(function, name, None)
        if kept is not None:
            return int((kept.shape if isinstance(kept, Tensor) else kept)[-2])
    return None


def _saved(function: Function) -> Any:
    """Return the function with attributes of any type: PyTorch declares none of those that it saves."""
    return function


def _result_shape(function: Function) -> Sequence[int]:
    """Return the shape of a function's result, which is the shape of its backward pass's input."""
    shape: Sequence[int] = _saved(function)._input_metadata[0].shape
    return shape


def _axis(number: int, axes: int) -> int:
    """Return one of `axes` axes, counted from 0; autograd keeps negative ones as unsigned numbers of 64 bits."""
    number = int(number) % 2**64
    return number if number < axes else number - 2**64 + axes
