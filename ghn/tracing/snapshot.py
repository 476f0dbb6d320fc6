"""Everything mutable that a network can reach, as it was before the network ran.

A forward pass may write into lists, dictionaries, hook tables, attributes and closures, and into tensors that are no
buffers. `unchanged` puts the old contents back: the same objects in the same containers, in the same order. No tensor
is copied except those that no module has registered.
"""

from __future__ import annotations

import types
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache, partial
from typing import Any, cast

from torch import Tensor, nn

Restore = Callable[[], None]
"""A function that puts the old contents of a container back."""

MOST_OBJECTS = 1_000_000
"""Objects that are followed at most, so that a network that holds a whole program does not take forever."""

FOREIGN = ("torch", "numpy", "logging", "threading", "asyncio", "concurrent", "multiprocessing")
"""Packages whose classes and functions are not looked into: what they keep is theirs."""


@contextmanager
def unchanged(roots: Iterable[object], registered: Iterable[Tensor]) -> Iterator[None]:
    """Put everything mutable that the roots can reach back to what it is now, when the context ends.

    Args:
        roots: modules, and whatever else a forward pass may write into.
        registered: tensors whose values are not followed, because nothing writes into them.
    """
    snapshot = _Snapshot({id(tensor) for tensor in registered})
    snapshot.follow(roots)
    try:
        yield
    finally:
        snapshot.restore()


class _Snapshot:
    """The contents of all objects that can be reached from some.

    Nearly all containers of a module are empty tables of hooks: these are not looked into one by one.
    """

    def __init__(self, registered: set[int]):
        self.seen = registered
        self.kept: list[object] = []  # so that no address is used twice
        self.empty: list[dict[Any, Any]] = []
        self.dictionaries: list[tuple[dict[Any, Any], list[Any], list[Any], list[int]]] = []
        self.restores: list[Restore] = []
        self.classes: set[type] = set()

    def follow(self, roots: Iterable[object]) -> None:
        """Keep the contents of all objects that the roots can reach, the roots included."""
        waiting = list(roots)
        while waiting and len(self.kept) < MOST_OBJECTS:
            found = waiting.pop()
            if type(found) in ATOMS or id(found) in self.seen:
                continue
            self.seen.add(id(found))
            self.kept.append(found)
            waiting += self._look_into(found)

    def restore(self) -> None:
        """Put the contents back where they have changed."""
        for found in self.empty:
            if found:
                _kind(found).clear(found)
        for found, keys, values, identities in self.dictionaries:
            if list(map(id, found.values())) != identities or list(found) != keys:
                kind = _kind(found)
                kind.clear(found)
                for key, value in zip(keys, values, strict=True):
                    kind.__setitem__(found, key, value)
        for restore in self.restores:
            restore()

    def _look_into(self, found: Any) -> Iterable[object]:
        """Keep the contents of an object, and return the objects that it refers to."""
        if isinstance(found, dict):
            return self._dictionary(found)
        if isinstance(found, nn.Module):
            return self._module(found)
        if isinstance(found, (list, deque, set)):
            return self._collection(found)
        if isinstance(found, (tuple, frozenset)):
            return found
        if isinstance(found, Tensor):
            return self._tensor(found)
        if isinstance(found, types.FunctionType):
            return () if _is_foreign(found) else self._function(found)
        if isinstance(found, types.MethodType):
            return found.__self__, found.__func__
        if isinstance(found, partial):
            return found.func, found.args, found.keywords
        if isinstance(found, (type, types.ModuleType)):
            return ()
        return self._object(found)

    def _module(self, found: nn.Module) -> Iterable[object]:
        """Keep the attributes of a module, and return what these and the functions of its class refer to."""
        inner = self._dictionary(found.__dict__)
        kind: type = type(found)
        if kind not in self.classes:
            self.classes.add(kind)
            return [*inner, *_functions_of(kind)]
        return inner

    def _dictionary(self, found: dict[Any, Any]) -> Iterable[object]:
        if not found:
            self.empty.append(found)
            return ()
        values = list(found.values())
        self.dictionaries.append((found, list(found), values, list(map(id, values))))
        inner = []
        for value in values:
            kind = type(value)
            if kind in TABLES and not value:
                self.empty.append(value)
            elif kind not in ATOMS:
                inner.append(value)
        return inner

    def _collection(self, found: list[Any] | deque[Any] | set[Any]) -> Iterable[object]:
        before = list(found)
        fill: Callable[[Iterable[Any]], object] = found.update if isinstance(found, set) else found.extend

        def restore() -> None:
            if len(found) != len(before) or any(one is not old for one, old in zip(found, before, strict=True)):
                found.clear()
                fill(before)

        self.restores.append(restore)
        return before

    def _tensor(self, found: Tensor) -> Iterable[object]:
        """Keep the values of a tensor that no module has registered, and its attributes."""
        before, version = found.detach().clone(), found._version

        def restore() -> None:
            if found._version != version:
                found.detach().copy_(before)

        self.restores.append(restore)
        return [found.__dict__] if found.__dict__ else ()

    def _function(self, found: types.FunctionType) -> Iterable[object]:
        cells = [cell for cell in found.__closure__ or () if _is_filled(cell)]
        for cell in cells:
            self.restores.append(partial(_fill, cell, cell.cell_contents))
        return (
            found.__dict__,
            found.__defaults__,
            found.__kwdefaults__,
            *(cell.cell_contents for cell in cells),
            *_globals_of(found),
        )

    def _object(self, found: object) -> Iterable[object]:
        attributes = getattr(found, "__dict__", None)
        return (attributes,) if isinstance(attributes, dict) and not _is_foreign(type(found)) else ()


ATOMS = frozenset(
    {type(None), bool, int, float, complex, str, bytes, range, slice, type(...), types.BuiltinFunctionType}
)
"""Types whose objects neither change nor refer to others."""


TABLES = (dict, OrderedDict)
"""Types of the tables of a module."""


def _kind(found: dict[Any, Any]) -> Any:
    """Return the class whose methods change a dictionary, whatever a subclass makes of them."""
    return OrderedDict if isinstance(found, OrderedDict) else dict


def _is_foreign(found: Any) -> bool:
    return str(getattr(found, "__module__", "") or "").partition(".")[0] in FOREIGN


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _fill(cell: types.CellType, contents: object) -> None:
    cell.cell_contents = contents


@cache
def _functions_of(kind: Hashable) -> tuple[types.FunctionType, ...]:
    """Return the functions of a class and of its bases, except those of foreign packages."""
    return tuple(
        function
        for base in cast(type, kind).__mro__
        if not _is_foreign(base)
        for function in vars(base).values()
        if isinstance(function, types.FunctionType)
    )


def _globals_of(function: types.FunctionType) -> list[object]:
    """Return the containers, tensors and functions that a function knows by a global name."""
    kinds = (dict, list, set, deque, Tensor, types.FunctionType)
    found = (function.__globals__.get(name) for name in _names_in(function.__code__))
    return [value for value in found if isinstance(value, kinds)]


@lru_cache(maxsize=16384)
def _names_in(code: types.CodeType) -> tuple[str, ...]:
    """Return the global names in a function's code, and in the functions that it defines."""
    inner = [name for part in code.co_consts if isinstance(part, types.CodeType) for name in _names_in(part)]
    return (*code.co_names, *inner)
