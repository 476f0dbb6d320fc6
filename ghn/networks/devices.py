"""Copies from the memory of the CPU to a device."""

from __future__ import annotations

import torch
from torch import Tensor


def upload(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Return a tensor of the CPU on a device, and in another precision if one is given.

    The CPU does not wait for a GPU: the copy is made from memory that the system does not move, when the GPU has done
    what it was asked for before.
    """
    tensor = tensor if dtype is None else tensor.to(dtype)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
