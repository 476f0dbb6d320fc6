"""Networks of the split `predefined`: ResNet-50, ViT and DARTS."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ghn.deepnets1m.architecture import Architecture
from ghn.deepnets1m.genotype import Genotype
from ghn.networks.network import Network
from ghn.networks.program import LARGE_IMAGE, Program, ProgramBuilder


@dataclass(frozen=True)
class ResNet(Network):
    """ResNet-50 (He, Zhang, Ren, Sun, CVPR 2016), or a ResNet of bottleneck blocks of other numbers or width.

    `blocks` are the numbers of blocks of the stages, `C` is the width of the first stage. The stem keeps the resolution
    of images below `LARGE_IMAGE` pixels: it has stride 1 and no max-pool.
    """

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    C: int = 64

    def to_dict(self) -> dict[str, Any]:
        """Return the record of the network in plain JSON types."""
        return {"predefined": "resnet50", "blocks": list(self.blocks), "C": self.C}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> ResNet:
        """Return the network of a record; numbers of blocks and width are by default those of ResNet-50.

        Raises:
            ValueError: the record names another network.
        """
        if record["predefined"] != "resnet50":
            raise ValueError(f"predefined = {record['predefined']!r}: must be 'resnet50'")
        return cls(blocks=tuple(record.get("blocks", cls.blocks)), C=record.get("C", cls.C))

    def compile(self, image_size: int, num_classes: int) -> Program:
        """Return the program for square images and a number of classes."""
        build = ProgramBuilder(image_size, num_classes)
        large = image_size >= LARGE_IMAGE
        x = build.conv(build.image, self.C, 7, "conv1", stride=2 if large else 1)
        x = build.unary("relu", build.batch_norm(x, "bn1"))
        if large:
            x = build.pool("max_pool", x, stride=2)
        for stage, blocks in enumerate(self.blocks):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                x = _bottleneck(build, x, self.C * 2**stage, stride, f"layer{stage + 1}.{block}")
        return build.finish(build.linear(build.global_pool(x), num_classes, "fc"))


def _bottleneck(build: ProgramBuilder, x: int, width: int, stride: int, name: str) -> int:
    """Emit a bottleneck block with 4 · `width` output channels; return the position of its result."""
    y = build.unary("relu", build.batch_norm(build.conv(x, width, 1, f"{name}.conv1"), f"{name}.bn1"))
    y = build.conv(y, width, 3, f"{name}.conv2", stride=stride)
    y = build.unary("relu", build.batch_norm(y, f"{name}.bn2"))
    y = build.batch_norm(build.conv(y, 4 * width, 1, f"{name}.conv3"), f"{name}.bn3")
    if stride > 1 or build.shape(x)[0] != 4 * width:
        x = build.conv(x, 4 * width, 1, f"{name}.downsample.0", stride=stride)
        x = build.batch_norm(x, f"{name}.downsample.1")
    return build.unary("relu", build.add([y, x]))


VIT = Architecture(
    genotype=Genotype(
        normal=(("msa", 1), ("none", 0)),
        normal_concat=(2,),
        reduce=(("msa", 1), ("none", 0)),
        reduce_concat=(2,),
    ),
    n_cells=12,
    C=128,
    preproc=False,
)
"""A vision transformer of twelve blocks (Dosovitskiy et al., ICLR 2021)."""

DARTS = Architecture(
    genotype=Genotype(
        normal=(
            ("sep_conv_3x3", 0),
            ("sep_conv_3x3", 1),
            ("sep_conv_3x3", 0),
            ("sep_conv_3x3", 1),
            ("sep_conv_3x3", 1),
            ("skip_connect", 0),
            ("skip_connect", 0),
            ("dil_conv_3x3", 2),
        ),
        normal_concat=(2, 3, 4, 5),
        reduce=(
            ("max_pool_3x3", 0),
            ("max_pool_3x3", 1),
            ("skip_connect", 2),
            ("max_pool_3x3", 1),
            ("max_pool_3x3", 0),
            ("skip_connect", 2),
            ("skip_connect", 2),
            ("max_pool_3x3", 1),
        ),
        reduce_concat=(2, 3, 4, 5),
    ),
    n_cells=14,
    C=32,
    C_mult=2,
)
"""A network of the cells that second-order DARTS found (Liu, Simonyan, Yang, ICLR 2019)."""

PREDEFINED: dict[str, Network] = {"resnet50": ResNet(), "vit": VIT, "darts": DARTS}
"""Networks of the split `predefined` by name, in its order."""
