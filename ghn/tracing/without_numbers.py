"""Running a network whose features have no numbers, while everything else it computes has.

The parameters, the inputs and what is computed from them are on PyTorch's meta device. What a network makes of nothing
(positions, masks, tables) keeps its numbers and its device: networks may look at it, and may keep it for later calls.
Where both meet, the numbers are left out. Features say that they are on the device of the network, so that a network
does nothing that it would not do otherwise.

Tensors have any number of axes here, so their names have no dimension suffixes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ghn.tracing.shape_only import SHAPE_ONLY_VERSIONS


class NotesUse(TorchFunctionMode):
    """A context for a forward pass that notes which parameters functions are called with.

    A network may also keep its parameters elsewhere, in a list say, where no placeholder has taken their place:
    functions are called with the placeholders all the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self.in_place_of: dict[int, Tensor] = {}
        """Placeholders by the ids of the network's own parameters."""
        self.used: set[int] = set()
        """The ids of the tensors of a subclass, such as parameters, that a function was called with."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of PyTorch with placeholders in the place of the network's own parameters."""
        kwargs = kwargs or {}
        tensors = list(_tensors((*args, *kwargs.values()) if kwargs else args))
        if not self.in_place_of.keys().isdisjoint(map(id, tensors)):
            args, kwargs = self.with_placeholders(args, kwargs)
            tensors = list(_tensors((*args, *kwargs.values())))
        return self.call(func, args, kwargs, tensors)

    def call(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], tensors: Sequence[Tensor]
    ) -> Any:
        """Call a function as it is, and note the parameters among its tensors."""
        self.note(func, tensors)
        return func(*args, **kwargs)

    def with_placeholders(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return arguments with placeholders in the place of the network's own parameters."""

        def changed(tensor: Tensor) -> Tensor:
            return self.in_place_of.get(id(tensor), tensor)

        return _each(args, changed), {name: _each(value, changed) for name, value in kwargs.items()}

    def note(self, func: Callable[..., Any], tensors: Sequence[Tensor]) -> None:
        """Note the parameters that a function is called with, unless it only asks for an attribute."""
        if func.__name__ != "__get__" or func in DETACHES:
            self.used.update([id(tensor) for tensor in tensors if type(tensor) is not Tensor])


class WithoutNumbers(NotesUse):
    """A context for a forward pass, as in the module docstring.

    Args:
        device: that of the network, which features say that they are on.
        follows_detached: whether functions are recorded too where the network switches gradients off.
    """

    def __init__(self, device: torch.device, follows_detached: bool):
        super().__init__()
        self.device, self.follows_detached = device, follows_detached
        self.has_followed = False
        """Whether the network has switched gradients off anywhere."""

    def call(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], tensors: Sequence[Tensor]
    ) -> Any:
        """Call a function of PyTorch with arguments that all have numbers or all have none."""
        if self.follows_detached and (func is torch._C._set_grad_enabled or func in DETACHES):
            self.has_followed = True
            if func is torch._C._set_grad_enabled:
                return None
            if args[0].requires_grad:
                self.note(func, args)
                return args[0].view_as(args[0])
        if func in ASKS_FOR_DEVICE:
            return ASKS_FOR_DEVICE[func](self.device) if args[0].is_meta else func(*args)
        self.note(func, tensors)
        if func in MOVES:
            return _converted(func, args, kwargs)
        if func in INDEXES and args[0].is_meta:
            args = (args[0], _exact_index(args[1]), *args[2:])
            tensors = list(_tensors((*args, *kwargs.values())))
        have_none = [tensor.is_meta for tensor in tensors]
        if any(have_none):
            shape_only = SHAPE_ONLY_VERSIONS.get(func)
            if shape_only is not None:
                return shape_only(*args, **kwargs)
            if not all(have_none):
                if _writes(func) and not args[0].is_meta:
                    torch.utils.swap_tensors(args[0], args[0].to("meta"))  # type: ignore[no-untyped-call]
                args = (*_without_numbers(args[:1]), *_without_numbers(args[1:]))
                kwargs = {name: _without_numbers(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


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

INDEXES = frozenset({Tensor.__getitem__, Tensor.__setitem__})
"""Functions whose second argument chooses elements of the first."""


def _exact_index(index: Any) -> Any:
    """Return an index with positions in place of masks, and numbers in place of tensors of one, where these are known.

    How many elements a mask chooses is not seen without its numbers.
    """
    if isinstance(index, tuple):
        parts = [_exact_index(part) for part in index]
        return tuple(chain.from_iterable(part if isinstance(part, tuple) else (part,) for part in parts))
    if not isinstance(index, Tensor) or index.is_meta:
        return index
    if index.dtype == torch.bool and index.dim():
        return index.nonzero(as_tuple=True)
    return _whole_number(index)


def _whole_number(value: Any) -> Any:
    """Return the number in place of a tensor of a single whole number, which is known; anything else as it is."""
    return int(value) if _is_whole_number(value) else value


def _is_whole_number(value: Any) -> bool:
    """Return whether a value is a tensor of a single whole number, which is known."""
    if not isinstance(value, Tensor) or value.is_meta or value.dim():
        return False
    return not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)


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


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return an argument with all tensors in it changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        parts = [_each(part, change) for part in value]
        return parts if isinstance(value, list) else tuple(parts)
    return value


def _without_numbers(value: Any) -> Any:
    """Return an argument with all tensors in it on the meta device; sizes and positions become numbers."""
    if isinstance(value, Tensor):
        return value if value.is_meta else value.to("meta")
    if isinstance(value, (list, tuple)):
        are_sizes = all(isinstance(part, int) or _is_whole_number(part) for part in value)
        change = _whole_number if are_sizes else _without_numbers
        return (list if isinstance(value, list) else tuple)(map(change, value))
    return value
