"""Forward and backward pass of depthwise convolutions, with their own gradients and with PyTorch's.

    python benchmarks/depthwise.py [--channels 16] [--image-size 14] [--batch 64] [--dtype bf16] [--threads 1]

Times every kernel, stride and dilation of DeepNets-1M on images that are channels last in memory, as in training. The
last line is JSON. `seconds` has the seconds of each convolution with its own gradients, and their sum as `all`. `ratio`
has how many times as long PyTorch takes, by the same names.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Annotated, Literal

import torch
import typer
from frame import RecordName, finish, introduce
from predict import median_seconds
from torch import Tensor
from torch.nn import functional as F

from ghn.networks.depthwise import DILATIONS, KERNELS, STRIDES, depthwise_conv


def of_pytorch(x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    padding = dilation * (weight.shape[-1] // 2)
    return F.conv2d(x, weight, None, stride, padding, dilation, len(weight))


def pass_both_ways(convolve: partial[Tensor], x: Tensor, weight: Tensor) -> None:
    result = convolve(x, weight)
    torch.autograd.grad(result, (x, weight), torch.ones_like(result))


def main(
    channels: Annotated[int, typer.Option(min=1)] = 16,
    image_size: Annotated[int, typer.Option(min=1, help="In pixels.")] = 14,
    batch: Annotated[int, typer.Option(min=1, help="Images.")] = 64,
    dtype: Annotated[Literal["fp32", "bf16"], typer.Option()] = "bf16",
    threads: Annotated[int, typer.Option(help="Of PyTorch.")] = 1,
    repeats: Annotated[int, typer.Option(help="Timed passes; the median counts.")] = 25,
    record: RecordName = None,
) -> None:
    """Time depthwise convolutions."""
    torch.set_num_threads(threads)
    introduce(f"{threads} threads", dtype, f"PyTorch {torch.__version__}")
    precision = torch.bfloat16 if dtype == "bf16" else torch.float32
    x = torch.randn(batch, channels, image_size, image_size).contiguous(memory_format=torch.channels_last)
    x = x.to(precision).requires_grad_()
    seconds, ratio = {}, {}
    totals = [0.0, 0.0]
    for kernel, stride, dilation in product(KERNELS, STRIDES, DILATIONS):
        weight = torch.randn(channels, 1, kernel, kernel).to(precision).requires_grad_()
        ours, theirs = (
            median_seconds(partial(pass_both_ways, partial(f, stride=stride, dilation=dilation), x, weight), repeats)
            for f in (depthwise_conv, of_pytorch)
        )
        name = f"{kernel}x{kernel}, stride {stride}, dilation {dilation}"
        seconds[name], ratio[name] = round(ours, 6), round(theirs / ours, 2)
        totals = [totals[0] + ours, totals[1] + theirs]
        print(f"{name:28} {1e3 * ours:6.2f} ms, PyTorch's {1e3 * theirs:6.2f} ms: {theirs / ours:5.1f} times as long")
    seconds["all"], ratio["all"] = round(totals[0], 6), round(totals[1] / totals[0], 2)
    print(f"all of them: PyTorch's take {ratio['all']:.1f} times as long")
    finish({"ratio": ratio, "seconds": seconds}, record)


if __name__ == "__main__":
    typer.run(main)
