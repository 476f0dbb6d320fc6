"""A section of the settings: what it refuses, the types of its values, and its keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, Strict

# Integers are strict: otherwise `true` would be 1. Numbers are not, because YAML reads 1e-3 as a text.
Integer = Annotated[int, Strict()]
Count = Annotated[Integer, Field(ge=1)]
Natural = Annotated[Integer, Field(ge=0)]
Seed = Annotated[Integer, Field(ge=0, lt=2**63)]
Width = Annotated[Integer, Field(ge=8, multiple_of=8)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, lt=1)]

Keys = tuple[str, ...]
"""A setting's key, after those of the sections that it lies in."""


class Section(BaseModel):
    """A group of settings that refuses unknown keys and cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def of(cls, whole: BaseModel) -> Self:
        """Return the part of other settings that this class has fields for."""
        return cls(**{name: getattr(whole, name) for name in cls.model_fields})


def require_increasing(name: str, values: Sequence[float]) -> None:
    """Raise ValueError unless the values are different and in increasing order."""
    if list(values) != sorted(set(values)):
        raise ValueError(f"{name} = {values}: must be different and in increasing order")


def require_different(name: str, values: Sequence[object]) -> None:
    """Raise ValueError if a value is there twice."""
    if len(set(values)) < len(values):
        raise ValueError(f"{name} = {values}: must be different")


def section_of(key: str, section: type[Section]) -> type[Section] | None:
    """Return the class of the section that a key of a section names, or None if the key is no section's."""
    field = section.model_fields.get(key)
    if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, Section):
        return None
    return field.annotation


def leaves_of(values: Mapping[str, Any], section: type[Section]) -> Iterator[tuple[Keys, Any]]:
    """Yield the keys and the value of each setting, of a section and of the sections in it."""
    for key, value in values.items():
        inner = section_of(key, section)
        if inner is not None and isinstance(value, Mapping):
            yield from (((key, *keys), leaf) for keys, leaf in leaves_of(value, inner))
        else:
            yield (key,), value


def set_leaf(values: dict[str, Any], keys: Keys, value: Any) -> None:
    """Set one setting, in place; its sections must be there."""
    *sections, key = keys
    for section in sections:
        values = values[section]
    values[key] = value
