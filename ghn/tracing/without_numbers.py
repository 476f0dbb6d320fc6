"""Running a network whose features have no numbers, while everything else it computes has.

The parameters, the inputs and what is computed from them are on PyTorch's meta device. What a network makes of nothing
(positions, masks, tables) keeps its numbers and its device: networks may look at it, and may keep it for later calls.
Where both meet, the numbers are left out. Features say that they are on the device of the network, so that a network
does nothing that it would not do otherwise.

Tensors have any number of axes here, so their names have no dimension suffixes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ghn.tracing.shape_only import SHAPE_ONLY_VERSIONS


class WithoutNumbers(TorchFunctionMode):
    """A context for a forward pass, as in the module docstring.

    Args:
        device: that of the network, which features say that they are on.
        follows_detached: whether functions are recorded too where the network switches gradients off.
    """

    def __init__(self, device: torch.device, follows_detached: bool):
        super().__init__()
        self.device, self.follows_detached = device, follows_detached
        self.used: set[int] = set()
        """The ids of the parameters that a function was called with."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of PyTorch with arguments that all have numbers or all have none."""
        kwargs = kwargs or {}
        if func is torch._C._set_grad_enabled and self.follows_detached:
            return None
        for argument in args:
            kind = type(argument)
            if kind is not Tensor and (kind in LISTS or issubclass(kind, nn.Parameter)) and func.__name__ != "__get__":
                self._note_use(argument)
        shape_only = SHAPE_ONLY_VERSIONS.get(func)
        if shape_only is not None and any(tensor.is_meta for tensor in _tensors((*args, *kwargs.values()))):
            return shape_only(*args, **kwargs)
        if func in DETACHES and self.follows_detached and args[0].requires_grad:
            return args[0].view_as(args[0])
        if func in ASKS_FOR_DEVICE:
            return ASKS_FOR_DEVICE[func](self.device) if args[0].is_meta else func(*args)
        if func in MOVES:
            return _converted(func, args, kwargs)
        if len(args) == 1 and not kwargs:
            return func(*args)
        have_none = {tensor.is_meta for tensor in _tensors((args, *kwargs.values()))}
        if len(have_none) > 1:
            if _writes(func) and not args[0].is_meta:
                torch.utils.swap_tensors(args[0], args[0].to("meta"))  # type: ignore[no-untyped-call]
            args, kwargs = _without_numbers(args), {name: _without_numbers(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)

    def _note_use(self, argument: Tensor | Sequence[Any]) -> None:
        """Note which parameters a function was called with."""
        tensors = argument if isinstance(argument, (list, tuple)) else [argument]
        self.used.update(id(tensor) for tensor in _tensors(tensors) if isinstance(tensor, nn.Parameter))


LISTS = (list, tuple)

ASKS_FOR_DEVICE: dict[Callable[..., Any], Callable[[torch.device], Any]] = {
    Tensor.device.__get__: lambda device: device,
    Tensor.is_cpu.__get__: lambda device: device.type == "cpu",  # type: ignore[attr-defined]
    Tensor.is_cuda.__get__: lambda device: device.type == "cuda",  # type: ignore[attr-defined]
    Tensor.get_device: lambda device: -1 if device.index is None else device.index,
}
"""What features answer to questions about their device."""

DETACHES = frozenset({Tensor.detach, Tensor.data.__get__})  # type: ignore[attr-defined]
"""Functions that return a tensor without its history."""

MOVES = frozenset({Tensor.to, Tensor.type_as, Tensor.cpu, Tensor.cuda})
"""Functions that move a tensor to a device or give it another number type."""


def _converted(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return a tensor with the number type that was asked for, without moving it between having numbers and not."""
    x, *others = args
    others += kwargs.values()
    if not x.is_meta and not any(tensor.is_meta for tensor in _tensors(others)):
        return func(*args, **kwargs)
    dtypes = [other.dtype if isinstance(other, Tensor) else other for other in others]
    dtype = next((other for other in dtypes if isinstance(other, torch.dtype)), x.dtype)
    return x.to(dtype)


def _writes(func: Callable[..., Any]) -> bool:
    """Return whether a function writes into its first argument."""
    name = func.__name__
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


def _tensors(values: Any) -> Iterator[Tensor]:
    """Yield the tensors in arguments, which may be nested in lists and tuples."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _without_numbers(value: Any) -> Any:
    """Return an argument with all tensors in it on the meta device."""
    if isinstance(value, Tensor):
        return value if value.is_meta else value.to("meta")
    if isinstance(value, (list, tuple)):
        parts = [_without_numbers(part) for part in value]
        return parts if isinstance(value, list) else tuple(parts)
    return value
