"""Comparison of everything that can be reached from some objects, before and after something was done.

It shares nothing with `ghn.tracing.snapshot`, which it tests.
"""

from __future__ import annotations

import types
import weakref
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

ATOMS = (type(None), bool, int, float, complex, str, bytes, type(...), torch.dtype, torch.device, range, slice)
LEFT_OUT = (types.ModuleType, types.CodeType, types.BuiltinFunctionType, types.MethodWrapperType)


class Fingerprint:
    """What can be reached from some objects, and what each of it was when the fingerprint was taken.

    Args:
        roots: by name.
        classes_of: the Python package whose classes are looked into too.
    """

    def __init__(self, roots: dict[str, Any], classes_of: str):
        self.roots, self.classes_of = roots, classes_of
        self.found: dict[int, tuple[Any, str, Any]] = {}
        waiting = [(value, name) for name, value in roots.items()]
        while waiting:
            value, path = waiting.pop()
            if isinstance(value, (*ATOMS, *LEFT_OUT)) or id(value) in self.found:
                continue
            parts = list(self._parts(value))
            self.found[id(value)] = value, path, [self._summary(value), *((name, _name(part)) for name, part in parts)]
            waiting += [(part, f"{path}{name}") for name, part in parts]

    def changes(self, allowed: Collection[int] = ()) -> list[str]:
        """Return the paths of everything that is not as it was, and how it differs.

        Args:
            allowed: ids of objects that may change.
        """
        now = Fingerprint(self.roots, self.classes_of).found
        found = []
        for key, (_, path, before) in self.found.items():
            after = now[key][2] if key in now else before  # of what is gone, the holder has changed
            if key not in allowed and after != before:
                was, became = [x for x in before if x not in after], [x for x in after if x not in before]
                found.append(f"{path}: {was!r:.200} became {became!r:.200}")
        return found

    def _summary(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            numbers = None if value.is_meta else value.detach().float().numpy().tobytes()
            return type(value), value.device, value.dtype, value.shape, value.requires_grad, value.is_leaf, numbers
        if isinstance(value, np.ndarray):
            return value.tobytes()
        return type(value)

    def _parts(self, value: Any) -> Iterator[tuple[str, Any]]:
        """Yield what an object refers to, with the words that lead there."""
        if isinstance(value, dict):
            yield from ((f"[{_name(key)}]", inner) for key, inner in value.items())
            yield from ((f".key {_name(key)}", key) for key in value)
        elif isinstance(value, (list, tuple, deque)):
            yield from ((f"[{position}]", inner) for position, inner in enumerate(value))
        elif isinstance(value, (set, frozenset)):
            yield from ((f" has {_name(inner)}", inner) for inner in sorted(value, key=_name))
        elif isinstance(value, weakref.ref):
            yield "()", value()
        elif isinstance(value, types.FunctionType):
            cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
            yield from ((f"<{name}>", cell.cell_contents) for name, cell in cells)
            yield from ((".defaults", value.__defaults__), (".__dict__", value.__dict__))
        elif isinstance(value, types.MethodType):
            yield from ((".self", value.__self__), (".function", value.__func__))
        elif isinstance(value, type):
            if value.__module__.partition(".")[0] == self.classes_of:
                yield from _named(vars(value))
        else:
            yield from _named(getattr(value, "__dict__", {}))
            yield from ((f".{slot}", getattr(value, slot, "absent")) for slot in _slots(value))
            if isinstance(value, Tensor):
                yield ".grad", value.grad if value.is_leaf else None
            yield ".class", type(value)


def _named(attributes: Iterable[Any] | Any) -> Iterator[tuple[str, Any]]:
    return ((f".{name}", value) for name, value in attributes.items() if name not in ("__dict__", "__weakref__"))


def _slots(value: Any) -> list[str]:
    found = (vars(base).get("__slots__", ()) for base in type(value).__mro__)
    return [name for names in found for name in ([names] if isinstance(names, str) else names) if name[:2] != "__"]


def _name(value: Any) -> str:
    return repr(value) if isinstance(value, ATOMS) else f"{type(value).__name__} {id(value)}"
