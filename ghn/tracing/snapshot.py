"""Everything mutable that a network can reach, as it was before the network ran.

A forward pass may write into lists, dictionaries, hook tables, attributes and closures, into classes and global
variables, and into tensors that are no buffers. `unchanged` puts the old contents back: the same objects in the same
containers, in the same order. No tensor is copied except those that the network also keeps outside of its tables of
parameters and buffers.

What a network can reach is what its attributes, the functions of its classes and their global names lead to, through
any number of objects and modules. Not covered are:

- objects of the packages in `FOREIGN` (an open file, a logger, a thread-local store) and of extensions in C;
- what is found by a name that is computed when the network runs (`globals()[name]`, `sys.modules[name].table`);
- what methods other than `__init__` of a class write into, if no object of the class can be reached before the run;
- the entries of a `functools.lru_cache`, which cannot be read: a cache that the run has added to is emptied, and so
  are those of a module's methods, because what they remember may be made of parameters.
"""

from __future__ import annotations

import dis
import sys
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Restore = Callable[[], None]
"""A function that puts the old contents of a container back."""

MOST_OBJECTS = 1_000_000
"""Objects that are followed at most, so that a network that holds a whole program does not take forever."""

FOREIGN = frozenset({"ghn", "torch", "numpy", "logging", "threading", "asyncio", "concurrent", "multiprocessing"})
"""Packages whose objects, classes and functions are not looked into, except modules: what they keep is theirs."""

FOREIGN_CODE = FOREIGN | sys.stdlib_module_names
"""Packages whose classes, functions and modules are not looked into."""


@contextmanager
def unchanged(roots: Iterable[object]) -> Iterator[None]:
    """Put everything mutable that the roots can reach back to what it is now, when the context ends.

    The values of parameters and buffers are not kept where they are registered, because placeholders take their place.

    Args:
        roots: modules, and whatever else a forward pass may write into.
    """
    snapshot = _Snapshot()
    snapshot.follow(roots)
    try:
        yield
    finally:
        snapshot.restore()


class _Snapshot:
    """The contents of all objects that can be reached from some.

    Nearly all containers of a module are empty tables of hooks: these are not looked into one by one.
    """

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.kept: list[object] = []  # so that no address is used twice
        self.empty: list[Any] = []
        self.dictionaries: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        self.restores: list[Restore] = []
        self.ways: dict[type, Look] = {}
        self.classes: set[type] = set()

    def follow(self, roots: Iterable[object]) -> None:
        """Keep the contents of all objects that the roots can reach, the roots included."""
        waiting, seen, ways = list(roots), self.seen, self.ways
        while waiting and len(self.kept) < MOST_OBJECTS:
            found = waiting.pop()
            kind = type(found)
            if kind in ATOMS or id(found) in seen:
                continue
            seen.add(id(found))
            self.kept.append(found)
            if kind not in ways:
                ways[kind] = _way_into(kind)
                if not _is_foreign_code(kind):
                    waiting.append(kind)
            waiting += ways[kind](self, found)

    def restore(self) -> None:
        """Put the contents back where they have changed."""
        if any(self.empty):
            for found in self.empty:
                if found:
                    _kind(found).clear(found)
        for found, before in self.dictionaries:
            kind = type(found) if type(found) in TABLES else _kind(found)
            same_values = len(found) == len(before) and all(map(is_, kind.values(found), before.values()))
            if not same_values or not all(map(is_, kind.__iter__(found), before)):
                _refill(found, before)
        for restore in self.restores:
            restore()

    # Ways into objects: each keeps the contents of an object and returns the objects that it refers to.

    def module(self, found: nn.Module) -> Iterable[object]:
        """Look into a module; the values of its tables of tensors are not followed."""
        attributes = found.__dict__
        self.dictionaries.append((attributes, attributes.copy()))
        inner: list[object] = []
        for name, value in attributes.items():
            kind = type(value)
            if kind in ATOMS:
                continue
            if kind in TABLES and not value:
                self.empty.append(value)
            elif name == "_parameters" or name == "_buffers":
                self.dictionaries.append((value, _copy(value)))
                inner += [t.__dict__ for t in value.values() if t is not None and t.__dict__]
            elif name == "_modules":
                self.dictionaries.append((value, _copy(value)))
                inner += value.values()
            elif name != "_flat_weights" or not isinstance(found, nn.RNNBase):
                inner.append(value)
        return inner

    def dictionary(self, found: dict[Any, Any]) -> Iterable[object]:
        """Look into a dictionary."""
        if not found:
            self.empty.append(found)
            return ()
        before = _copy(found)
        self.dictionaries.append((found, before))
        return [*before, *before.values()]

    def collection(self, found: list[Any] | deque[Any] | set[Any]) -> Iterable[object]:
        """Look into a list, a deque or a set."""
        if not found:
            self.empty.append(found)
            return ()
        before: list[Any] = list(found)

        def restore() -> None:
            if len(found) != len(before) or not all(map(is_, found, before)):
                kind = _kind(found)
                fill: Any = set.update if isinstance(found, set) else kind.extend
                kind.clear(found)
                fill(found, before)

        self.restores.append(restore)
        return before

    def tuple(self, found: tuple[Any, ...] | frozenset[Any]) -> Iterable[object]:
        """Look into a container that does not change."""
        return found

    def tensor(self, found: Tensor) -> Iterable[object]:
        """Look into a tensor that is kept outside of the tables of modules: its values and its attributes."""
        alias, version, is_leaf, requires_grad = found.detach(), found._version, found.is_leaf, found.requires_grad
        before = alias.clone()

        def restore() -> None:
            if found.is_meta and not alias.is_meta:
                torch.utils.swap_tensors(found, alias)  # type: ignore[no-untyped-call]
            elif found.shape != alias.shape or found.data_ptr() != alias.data_ptr():
                found.data = alias
            if found._version != version or not _are_equal(found, before):
                found.data.copy_(before)
            if is_leaf and found.requires_grad != requires_grad:
                found.detach_().requires_grad_(requires_grad)

        self.restores.append(restore)
        return [found.__dict__] if found.__dict__ else ()

    def array(self, found: np.ndarray[Any, Any]) -> Iterable[object]:
        """Look into an array of numpy."""
        before = found.copy()

        def restore() -> None:
            if found.flags.writeable and found.tobytes() != before.tobytes():
                found[...] = before

        self.restores.append(restore)
        return found.flat if found.dtype == object else ()

    def generator(self, found: torch.Generator) -> Iterable[object]:
        """Look into a generator of random numbers."""
        before = found.get_state()

        def restore() -> None:
            found.set_state(before)

        self.restores.append(restore)
        return ()

    def function(self, found: types.FunctionType) -> Iterable[object]:
        """Look into a function: its closure, its defaults, and what its global names lead to."""
        if _is_foreign_code(found):
            return ()
        inner: list[Any] = [found.__dict__, found.__defaults__, found.__kwdefaults__]
        for cell in found.__closure__ or ():
            if _is_filled(cell):
                inner.append(cell.cell_contents)
                self.restores.append(partial(_fill, cell, cell.cell_contents))
        names, written = _names_in(found.__code__)
        for name in written:
            self.restores.append(partial(_bind, found.__globals__, name, found.__globals__.get(name, ABSENT)))
        named = _named(names, found.__globals__)
        for value in named:
            for base in value.__mro__ if isinstance(value, type) else ():
                if base not in self.classes:
                    inner += self.cls(base, "__init__")
        return [*inner, *(value for value in named if not isinstance(value, type))]

    def method(self, found: types.MethodType) -> Iterable[object]:
        """Look into a bound method."""
        return found.__self__, found.__func__

    def descriptor(self, found: Any) -> Iterable[object]:
        """Look into a static method, a class method or a property."""
        return (getattr(found, name, None) for name in ("__func__", "fget", "fset", "func"))

    def partial(self, found: partial[Any]) -> Iterable[object]:
        """Look into a function some of whose arguments are given."""
        return found.func, found.args, found.keywords

    def reference(self, found: weakref.ref[Any]) -> Iterable[object]:
        """Look into what a weak reference refers to, which lives on until the contents are put back."""
        return (found(),)

    def cache(self, found: Any) -> Iterable[object]:
        """Look into a function whose results are cached; the cache is emptied if the run adds to it."""
        misses = found.cache_info().misses

        def restore() -> None:
            if found.cache_info().misses != misses:
                found.cache_clear()

        self.restores.append(restore)
        return found.__dict__, found.__wrapped__

    def cls(self, found: type, function: str | None = None) -> Iterable[object]:
        """Look into a class and its bases: their attributes and functions.

        Args:
            function: the only function to look into, of a class that code names and that no object is of; a library
                names nearly all of its classes somewhere.
        """
        if _is_foreign_code(found):
            return ()
        self.classes.add(found)
        before: dict[str, Any] = {k: value for k, value in vars(found).items() if k not in WRITTEN_BY_PYTHON}
        if issubclass(found, nn.Module):  # what their methods remember may be made of parameters
            remembering: list[Any] = [value for value in before.values() if isinstance(value, CACHED)]
            for method in remembering:
                method.cache_clear()

        def restore() -> None:
            for name in vars(found).keys() - before.keys() - WRITTEN_BY_PYTHON:
                type.__delattr__(found, name)
            for name, value in before.items():
                if vars(found).get(name, ABSENT) is not value:
                    type.__setattr__(found, name, value)

        self.restores.append(restore)
        inner = [v for k, v in before.items() if function in (None, k) or not isinstance(v, FUNCTIONS)]
        return [*inner, *(found.__bases__ if function is None else ())]

    def instance(self, found: Any) -> Iterable[object]:
        """Look into any other object: its attributes, in a dictionary or in slots."""
        kind: Any = type(found)
        if _package(kind) in FOREIGN:
            return ()
        attributes = getattr(found, "__dict__", None)
        inner: list[Any] = [attributes] if isinstance(attributes, dict) else []
        slots = [slot for base in kind.__mro__ for slot in vars(base).values() if type(slot) is MEMBER]
        for slot in slots if not _is_foreign_code(kind) else ():
            value = getattr(found, slot.__name__, ABSENT)
            inner.append(value)
            self.restores.append(partial(_set_slot, slot, found, value))
        return inner

    def nothing(self, found: object) -> Iterable[object]:
        """Do not look into an object."""
        return ()


Look = Callable[[_Snapshot, Any], Iterable[object]]
"""A method of the snapshot that keeps the contents of an object and returns the objects that it refers to."""

CACHED: Any = type(lru_cache(len))
"""The class of functions whose results are cached."""

LOOKS: dict[type, Look] = {
    nn.Module: _Snapshot.module,
    dict: _Snapshot.dictionary,
    list: _Snapshot.collection,
    deque: _Snapshot.collection,
    set: _Snapshot.collection,
    tuple: _Snapshot.tuple,
    frozenset: _Snapshot.tuple,
    Tensor: _Snapshot.tensor,
    np.ndarray: _Snapshot.array,
    torch.Generator: _Snapshot.generator,
    types.FunctionType: _Snapshot.function,
    types.MethodType: _Snapshot.method,
    staticmethod: _Snapshot.descriptor,
    classmethod: _Snapshot.descriptor,
    property: _Snapshot.descriptor,
    partial: _Snapshot.partial,
    weakref.ref: _Snapshot.reference,
    CACHED: _Snapshot.cache,
    type: _Snapshot.cls,
    types.ModuleType: _Snapshot.nothing,
}
"""For each kind of object how it is looked into; the first that fits counts."""

ABSENT: Any = type("Absent", (), {"__slots__": ()})()
"""Stands for the value of a name that has none."""

ATOMS = frozenset(
    {type(None), bool, int, float, complex, str, bytes, range, slice, type(...), types.BuiltinFunctionType}
    | {torch.dtype, torch.device, torch.Size, type(ABSENT)}
)
"""Types whose objects neither change nor refer to others."""

TABLES = frozenset({dict, OrderedDict, set})
"""Types of the tables of a module."""

WRITTEN_BY_PYTHON = frozenset({"__dict__", "__weakref__", "__doc__", "__abstractmethods__", "_abc_impl"})
"""Attributes of classes that are not looked into."""

FUNCTIONS = (types.FunctionType, staticmethod, classmethod, property)
"""Kinds of the functions of a class."""

MEMBER = types.MemberDescriptorType


def _way_into(kind: type) -> Look:
    """Return how objects of a class are looked into."""
    return next((look for base, look in LOOKS.items() if issubclass(kind, base)), _Snapshot.instance)


def _kind(found: Any) -> Any:
    """Return the class whose methods change a container, whatever a subclass makes of them."""
    return next(kind for kind in (OrderedDict, dict, list, deque, set) if isinstance(found, kind))


def _copy(found: dict[Any, Any]) -> dict[Any, Any]:
    """Return the contents of a dictionary in their order, whatever a subclass makes of them."""
    return found.copy() if type(found) is dict else dict(_kind(found).items(found))


def _refill(found: dict[Any, Any], before: dict[Any, Any]) -> None:
    """Give a dictionary its old contents, and write no more into it than necessary."""
    kind = _kind(found)
    if list(kind.__iter__(found)) != list(before):
        kind.clear(found)
    for key, value in before.items():
        if kind.get(found, key, ABSENT) is not value:
            kind.__setitem__(found, key, value)


def _are_equal(found: Tensor, before: Tensor) -> bool:
    """Return whether a tensor has the values that it had, as far as values of its kind can be compared."""
    if found.is_meta or found.layout is not torch.strided or found.is_quantized or found.is_nested:
        return True
    return torch.equal(found.detach(), before)


def _package(found: Any) -> str:
    return str(getattr(found, "__module__", "") or "").partition(".")[0]


def _is_foreign_code(found: Any) -> bool:
    return _package(found) in FOREIGN_CODE


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _fill(cell: types.CellType, contents: object) -> None:
    cell.cell_contents = contents


def _bind(namespace: dict[str, Any], name: str, value: object) -> None:
    """Give a global name the value that it had, or none."""
    if value is ABSENT:
        namespace.pop(name, None)
    elif namespace.get(name, ABSENT) is not value:
        namespace[name] = value


def _set_slot(slot: types.MemberDescriptorType, found: object, value: object) -> None:
    """Give a slot of an object the value that it had, or none."""
    if getattr(found, slot.__name__, ABSENT) is value:
        return
    if value is ABSENT:
        slot.__delete__(found)
    else:
        slot.__set__(found, value)


def _named(names: tuple[str, ...], namespace: dict[str, Any]) -> list[object]:
    """Return what a function's names mean in its module, and in the modules that it knows by name."""
    found = [namespace[name] for name in names if name in namespace]
    for module in found:
        if isinstance(module, types.ModuleType) and module.__name__.partition(".")[0] not in FOREIGN_CODE:
            found += [vars(module)[name] for name in names if name in vars(module)]
    return found


@lru_cache(maxsize=16384)
def _names_in(code: types.CodeType) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return all names in a function's code and in the functions that it defines, and the global ones it writes."""
    names, written = dict.fromkeys(code.co_names), dict[str, None]()
    if not WRITES_GLOBAL.isdisjoint(code.co_code[::2]):
        written |= {step.argval: None for step in dis.get_instructions(code) if step.opcode in WRITES_GLOBAL}
    for part in code.co_consts:
        if isinstance(part, types.CodeType):
            inner, inner_written = _names_in(part)
            names |= dict.fromkeys(inner)
            written |= dict.fromkeys(inner_written)
    return tuple(names), tuple(written)


WRITES_GLOBAL = frozenset({dis.opmap["STORE_GLOBAL"], dis.opmap["DELETE_GLOBAL"]})
"""Instructions of Python that give a value to a global name."""
