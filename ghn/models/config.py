"""What a hypernetwork is made of."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Variant = Literal["ghn2", "ghn1", "mlp"]


@dataclass(frozen=True)
class GHNConfig:
    """What a hypernetwork is made of.

    `kernel` is S, the largest predicted kernel or position encoding: 11 for small images, 16 for 224.
    """

    num_classes: int
    image_size: int
    variant: Variant = "ghn2"
    hidden: int = 32
    kernel: int = 11
    virtual_edges: int = 50

    def __post_init__(self) -> None:
        if self.variant not in ("ghn2", "ghn1", "mlp"):
            raise ValueError(f"variant = {self.variant!r}: must be ghn2, ghn1 or mlp")
        for name in ("num_classes", "image_size", "hidden", "kernel", "virtual_edges"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)!r}: must be an integer, at least 1")
        if self.hidden < 8 or self.hidden % 8:
            raise ValueError(f"hidden = {self.hidden}: must be a multiple of 8, at least 8")

    @property
    def longest_edge(self) -> int:
        """The longest distance that becomes an edge; 1 if the variant has no virtual edges."""
        return self.virtual_edges if self.variant == "ghn2" else 1

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
