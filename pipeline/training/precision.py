"""The precision of target networks, where the settings leave the choice to the run (`train.precision: auto`).

bfloat16 halves the time of arithmetic, but adds operations that convert tensors. So it is faster where a target network
spends its time on arithmetic, and slower where the network waits for something else. Networks for larger images have
more arithmetic: the side of the images decides.

* On a GPU, small networks wait for kernels to be launched, and a conversion is one launch more. Measured on an H200
  with the published CIFAR-10 settings (images of 32 pixels), a step takes 0.48 s in bfloat16 and 0.33 s in fp32: 45 %
  more. The side from which bfloat16 is faster was *not* measured. 112 pixels are a cautious guess, half the side of
  the published ImageNet settings. `python benchmarks/precision.py --speed --device cuda` measures the side.
* On a CPU with instructions for bfloat16 the same command measures it; there it is 24 pixels.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.distributed as dist

BF16_FROM_PIXELS = {"cpu": 24, "cuda": 112}
"""Side of images, in pixels, from which bfloat16 is chosen, by type of device. That of GPUs is not measured."""

TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
"""PyTorch's type for each precision that target networks can have."""


class PrecisionChoice(NamedTuple):
    """A precision of target networks, and the reason for it."""

    precision: Literal["fp32", "bf16"]
    reason: str


def choose_precision(device_type: str, has_bf16: bool, image_size: int | None) -> PrecisionChoice:
    """Return the precision in which target networks are expected to be faster.

    Args:
        device_type: `cpu` or `cuda`.
        has_bf16: whether the device computes in bfloat16 without emulating it.
        image_size: side of the images, in pixels; None for texts, for which it was not measured.
    """
    side = BF16_FROM_PIXELS[device_type]
    if device_type == "cuda":
        device, tf32 = "GPU", "with TF32 for matrix products and convolutions; "
        slow_in_bf16 = "wait for launches, which bf16 has more of"
    else:
        device, tf32 = "CPU", ""
        slow_in_bf16 = "take longer to convert tensors to bf16 than they save"
    if not has_bf16:
        return PrecisionChoice("fp32", f"{tf32}the {device} has no bfloat16")
    if image_size is None:
        return PrecisionChoice("fp32", f"{tf32}bf16 was not measured for texts")
    if image_size < side:
        networks = f"networks for images of {image_size} pixels on a {device}"
        return PrecisionChoice("fp32", f"{tf32}{networks} {slow_in_bf16}; bf16 from {side} pixels on")
    return PrecisionChoice("bf16", f"images of {image_size} pixels on a {device} that has bfloat16")


def agree_on_precision(choice: PrecisionChoice, workers: int, device: torch.device) -> PrecisionChoice:
    """Return one choice for all workers: bf16 only if each worker's own choice is bf16. All workers must call this."""
    if workers == 1:
        return choice
    prefers_bf16 = torch.tensor(float(choice.precision == "bf16"), device=device)
    dist.all_reduce(prefers_bf16, dist.ReduceOp.MIN)
    if prefers_bf16 or choice.precision == "fp32":
        return choice
    return PrecisionChoice("fp32", "the device of another worker has no bfloat16")


def has_native_bf16(device: torch.device) -> bool:
    """Return whether a device computes in bfloat16 without emulating it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


def allow_tf32() -> None:
    """Let GPUs round the factors of fp32 matrix products and convolutions to TF32, which has 10 bits of mantissa.

    PyTorch's own default, which `train.precision: fp32` keeps, allows it for convolutions, but not for matrix products.
    """
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
