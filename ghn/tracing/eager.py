"""Running a network as it is written, whatever was wrapped around it to make its training cheaper.

Private names of PyTorch (`torch.utils.checkpoint`) were checked with PyTorch 2.14.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
import torch.utils.checkpoint as checkpointing
from torch import nn

_PATCHING = threading.RLock()


@contextmanager
def eager() -> Iterator[None]:
    """Run compiled functions as they are written, and keep activations that would be computed again later.

    Recomputed activations are recorded by autograd as a single function, or are gone when the record is read.
    """
    with _PATCHING, ExitStack() as stack:
        stack.enter_context(_replaced("CheckpointFunction", _Plain))
        stack.enter_context(_replaced("_checkpoint_without_reentrant_generator_impl", _plain_steps))
        if "torch._dynamo" in sys.modules:  # else nothing is compiled, and importing it takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


@contextmanager
def _replaced(name: str, value: object) -> Iterator[None]:
    before = getattr(checkpointing, name)
    setattr(checkpointing, name, value)
    try:
        yield
    finally:
        setattr(checkpointing, name, before)


class _Plain:
    """Stands for the function that computes activations again when gradients are computed."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        """Return the function's result."""
        return function(*args)


def _plain_steps(*_: object, **__: object) -> Iterator[None]:
    """Do nothing before and after the function whose activations would be computed again."""
    yield


def uncompiled(model: nn.Module) -> nn.Module:
    """Return the network that `torch.compile` made another of, which has the same parameters; others as they are."""
    while type(model).__name__ == "OptimizedModule" and isinstance(getattr(model, "_orig_mod", None), nn.Module):
        original = model._orig_mod
        assert isinstance(original, nn.Module)
        model = original
    return model


def without_autocast() -> AbstractContextManager[Any]:
    """Return a context in which no number types are chosen automatically."""
    stack = ExitStack()
    for device in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device):
            stack.enter_context(torch.autocast(device, enabled=False))
    return stack
