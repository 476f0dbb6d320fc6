"""Decoder-only transformers whose blocks differ: records that compile to programs.

Sources: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, for the pre-norm blocks; Black et
al., "GPT-NeoX-20B", 2022, section 2.1, for blocks whose two halves are parallel; Press and Wolf, EACL 2017, for tied
embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from ghn.networks.network import ScalableNetwork
from ghn.networks.program import Program, ProgramBuilder

if TYPE_CHECKING:
    from torch import Tensor

POSITIONS = ("learned", "rotary")
"""How a network knows where a token is: by a learned table, or by rotations of queries and keys."""

ACTIVATIONS = ("gelu", "relu")
"""What lies between the two linear layers of a block."""

EMBEDDING = "embedding"
"""The name of the table of tokens, which is the last layer's weight too where they are tied."""

WIDENED = 4
"""How many times as wide the architectures of split `wide` are as those of split `test` that they are made from."""


class TransformerBlock(NamedTuple):
    """One block: attention with so many heads, and an MLP whose hidden width is `mlp_ratio` times the width."""

    heads: int
    mlp_ratio: int


@dataclass(frozen=True)
class GptArchitecture(ScalableNetwork):
    """A language model: an embedding of tokens, pre-norm blocks, a norm, and a linear layer that gives the logits.

    Attributes:
        blocks: from the first to the last.
        C: width of the tokens, a multiple of twice the heads of each block.
        positions: one of `POSITIONS`.
        activation: one of `ACTIVATIONS`.
        tied: whether the last layer's weight is the table of the embedding.
        parallel: whether the MLP of a block reads what the attention reads, so that both are added at once.
    """

    reads_text: ClassVar[bool] = True

    blocks: tuple[TransformerBlock, ...]
    C: int = 32
    positions: str = "learned"
    activation: str = "gelu"
    tied: bool = False
    parallel: bool = False

    def __post_init__(self) -> None:
        if not self.blocks:
            raise ValueError("blocks = []: must be at least 1")
        if type(self.C) is not int or self.C < 2:
            raise ValueError(f"C = {self.C!r}: must be an integer, at least 2")
        for block in self.blocks:
            for name, value in block._asdict().items():
                if type(value) is not int or value < 1:
                    raise ValueError(f"{name} = {value!r}: must be an integer, at least 1")
            if self.C % (2 * block.heads):
                raise ValueError(f"C = {self.C}: must be divisible by twice the {block.heads} heads of a block")
        for name, possible in (("positions", POSITIONS), ("activation", ACTIVATIONS)):
            if getattr(self, name) not in possible:
                raise ValueError(f"{name} = {getattr(self, name)!r}: must be one of {', '.join(possible)}")
        for name in ("tied", "parallel"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} = {getattr(self, name)!r}: must be true or false")

    def compile(self, image_size: int, num_classes: int) -> Program:
        """Return the program for texts of `image_size` tokens out of a vocabulary of `num_classes`.

        Raises:
            ValueError: one of them is not positive.
        """
        if image_size < 1:
            raise ValueError(f"image_size = {image_size}: a text must have at least 1 token")
        if num_classes < 1:
            raise ValueError(f"num_classes = {num_classes}: must be at least 1")
        build = ProgramBuilder.of_text(image_size, num_classes)
        embedding = x = build.embedding(build.image, self.C, EMBEDDING)
        if self.positions == "learned":
            x = build.token_positions(x, "positions")
        for number, block in enumerate(self.blocks):
            x = self._block(build, x, f"blocks.{number}", block)
        x = build.layer_norm(x, "norm")
        return build.finish(build.tied(x, embedding) if self.tied else build.linear(x, num_classes, "head", bias=False))

    def _block(self, build: ProgramBuilder, x: int, name: str, block: TransformerBlock) -> int:
        """Emit a block; return the position of its result."""
        normed = build.layer_norm(x, f"{name}.norm1")
        qkv = build.linear(normed, 3 * self.C, f"{name}.qkv")
        settings = block.heads, int(self.positions == "rotary")
        mixed = build.emit("causal_attention", (qkv,), build.shape(x), (), settings)
        attended = build.linear(mixed, self.C, f"{name}.out")
        if not self.parallel:
            x = build.add([x, attended])
            normed = build.layer_norm(x, f"{name}.norm2")
        hidden = build.linear(normed, block.mlp_ratio * self.C, f"{name}.fc1")
        changed = build.linear(build.unary(self.activation, hidden), self.C, f"{name}.fc2")
        return build.add([x, attended, changed] if self.parallel else [x, changed])

    def num_classes_of(self, parameters: Mapping[str, Tensor]) -> int:
        """Return the size of the vocabulary that parameters are for."""
        return len(parameters[f"{EMBEDDING}.weight"])

    def with_width(self, C: int, fc_dim: int | None = None) -> GptArchitecture:
        """Return the same architecture with another width; it has no head with a hidden width."""
        return replace(self, C=C)

    @staticmethod
    def wide_factor(image_size: int) -> int:
        """Return how many times as wide the architectures of split `wide` are."""
        return WIDENED

    def with_sampled_widths(
        self, num_parameters: int, widths: Sequence[int], head_widths: Sequence[int], uniforms: Sequence[float]
    ) -> GptArchitecture:
        """Return the architecture with a width that the first of the numbers in [0, 1) chooses."""
        return replace(self, C=widths[int(uniforms[0] * len(widths))])

    def to_dict(self) -> dict[str, Any]:
        """Return the record of the architecture in plain JSON types."""
        return {**asdict(self), "blocks": [list(block) for block in self.blocks]}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> GptArchitecture:
        """Return the architecture of a record that `to_dict` has returned; other keys are ignored.

        Raises:
            ValueError: a field is missing or impossible.
        """
        if "blocks" not in record:
            raise ValueError("architecture record has no 'blocks'")
        known = {field.name: record[field.name] for field in fields(cls) if field.name in record}
        try:
            blocks = tuple(TransformerBlock(*block) for block in record["blocks"])
        except TypeError as error:
            raise ValueError(f"blocks = {record['blocks']!r}: must be pairs of heads and MLP ratio") from error
        return cls(**{**known, "blocks": blocks})
