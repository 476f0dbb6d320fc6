"""How an architecture's cells, stem and head become a program."""

from __future__ import annotations

from ghn.architectures import Architecture
from ghn.program import LARGE_IMAGE, Program, ProgramBuilder

MSA_HEADS = 8


def compile_architecture(architecture: Architecture, image_size: int, num_classes: int) -> Program:
    """The program of an architecture for square images and a number of classes.

    Raises:
        InvalidArchitecture: nothing reaches the output.
        ValueError: the image is too small or the number of classes is not positive.
    """
    if image_size < 8:
        raise ValueError(f"image_size = {image_size}: must be at least 8 pixels")
    if num_classes < 1:
        raise ValueError(f"num_classes = {num_classes}: must be at least 1")
    return _Compiler(architecture, image_size, num_classes).compile()


class _Compiler:
    """Walks through one architecture, emitting operations as it goes."""

    def __init__(self, architecture: Architecture, image_size: int, num_classes: int):
        self.architecture = architecture
        self.build = ProgramBuilder(image_size, num_classes)
        self.large = image_size >= LARGE_IMAGE
        self.keeps_resolution = architecture.has_msa

    def compile(self) -> Program:
        architecture = self.architecture
        older, newer = self._stem()
        width = architecture.C
        reductions = {n for n in (architecture.n_cells // 3, 2 * architecture.n_cells // 3) if n > 0}
        # After stem 1 the two inputs of cell 0 differ in resolution as if a reduction had come before.
        reduced = architecture.stem_type == 1
        for index in range(architecture.n_cells):
            reduction = index in reductions
            if reduction:
                width *= architecture.C_mult
            older, newer = newer, self._cell(f"cells.{index}", older, newer, width, reduction, reduced)
            reduced = reduction
        return self.build.finish(None if newer is None else self._head(newer))

    def _norm(self, x: int, name: str) -> int:
        return x if self.architecture.norm is None else self.build.batch_norm(x, name)

    def _stem(self) -> tuple[int, int]:
        build, architecture, C = self.build, self.architecture, self.architecture.C
        if architecture.has_msa:
            patch, padding = (16, 0) if self.large else (3, 1)
            x = build.conv(build.image, C, patch, "stem0", stride=patch, padding=padding)
            x = build.position_encoding(x, "pos_enc")
            return x, x
        if architecture.stem_type == 0:
            channels = 3 * C if architecture.preproc and not self.large else C
            x = build.conv(build.image, channels, architecture.ks, "stem.0", stride=4 if self.large else 1)
            x = self._norm(x, "stem.1")
            if architecture.stem_pool:
                x = build.pool("max_pool", x, stride=2)
            return x, x
        stride = 2 if self.large else 1
        x = build.conv(build.image, C // 2, architecture.ks, "stem0.0", stride=stride)
        x = build.unary("relu", self._norm(x, "stem0.1"))
        first = self._norm(build.conv(x, C, 3, "stem0.3", stride=stride), "stem0.4")
        second = build.conv(build.unary("relu", first), C, 3, "stem1.1", stride=2)
        return first, self._norm(second, "stem1.2")

    def _cell(
        self, name: str, older: int | None, newer: int | None, width: int, reduction: bool, reduced: bool
    ) -> int | None:
        genotype = self.architecture.genotype
        shrink = reduced and not self.keeps_resolution
        states = [
            self._preprocess(older, width, f"{name}.preprocess0", shrink),
            self._preprocess(newer, width, f"{name}.preprocess1", False),
        ]
        edges, concat = (
            (genotype.reduce, genotype.reduce_concat) if reduction else (genotype.normal, genotype.normal_concat)
        )
        for position in range(0, len(edges), 2):
            ends = []
            for index in (position, position + 1):
                operation, source = edges[index]
                stride = 2 if reduction and source < 2 and not self.keeps_resolution else 1
                ends.append(self._edge(operation, states[source], width, stride, f"{name}._ops.{index}"))
            states.append(self.build.add(ends))
        return self.build.concat([states[state] for state in concat])

    def _preprocess(self, x: int | None, width: int, name: str, shrink: bool) -> int | None:
        if x is None:
            return None
        if not self.architecture.preproc:
            return self.build.subsample(x, 2) if shrink else x
        if shrink:
            return self._factorised_reduction(x, width, name)
        x = self.build.conv(self.build.unary("relu", x), width, 1, f"{name}.op.1")
        return self._norm(x, f"{name}.op.2")

    def _factorised_reduction(self, x: int, width: int, name: str) -> int:
        """Halves the resolution; the two convolutions read complementary pixels."""
        build = self.build
        x = build.unary("relu", x)
        shifted = build.unary("shift", x)
        halves = [
            build.conv(x, width // 2, 1, f"{name}.conv_1", stride=2),
            build.conv(shifted, width - width // 2, 1, f"{name}.conv_2", stride=2),
        ]
        return self._norm(build.concat(halves), f"{name}.bn")

    def _edge(self, operation: str, x: int | None, width: int, stride: int, name: str) -> int | None:
        if x is None or operation == "none":
            return None
        build = self.build
        if operation in ("max_pool_3x3", "avg_pool_3x3"):
            return build.pool(operation.removesuffix("_3x3"), x, stride=stride)
        if operation == "skip_connect":
            return x if stride == 1 else self._factorised_reduction(x, width, name)
        if operation == "msa":
            return self._attention(x, width, name)
        if operation == "cse":
            return self._squeeze_excitation(x, width, stride, name)
        if operation == "conv_7x1_1x7":
            x = build.conv(build.unary("relu", x), width, (1, 7), f"{name}.op.1", stride=(1, stride))
            x = build.conv(x, width, (7, 1), f"{name}.op.2", stride=(stride, 1))
            return self._norm(x, f"{name}.op.3")
        family, kernel = operation.rsplit("_", 1)
        k = int(kernel[0])
        if family == "sep_conv":
            x = self._depthwise(x, width, k, stride, 1, f"{name}.op", 1)
            return self._depthwise(x, width, k, 1, 1, f"{name}.op", 5)
        if family == "dil_conv":
            return self._depthwise(x, width, k, stride, 2, f"{name}.op", 1)
        x = build.conv(build.unary("relu", x), width, k, f"{name}.op.1", stride=stride)
        return self._norm(x, f"{name}.op.2")

    def _depthwise(self, x: int, width: int, k: int, stride: int, dilation: int, name: str, first: int) -> int:
        """ReLU, depthwise convolution, 1×1 convolution, norm."""
        build = self.build
        channels = build.shape(x)[0]
        padding = k // 2 if dilation == 1 else k - k % 2
        x = build.unary("relu", x)
        x = build.conv(
            x,
            channels,
            k,
            f"{name}.{first}",
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=channels,
        )
        x = build.conv(x, width, 1, f"{name}.{first + 1}")
        return self._norm(x, f"{name}.{first + 2}")

    def _attention(self, x: int, width: int, name: str) -> int:
        """A pre-norm transformer block over the pixels (Dosovitskiy et al., ICLR 2021); networks with one never
        reduce their resolution."""
        build = self.build
        channels, height, side = build.shape(x)
        tokens = build.emit("tokens", (x,), (height * side, channels))
        normed = build.layer_norm(tokens, f"{name}.ln1")
        qkv = build.linear(normed, 3 * channels, f"{name}.to_qkv", bias=False)
        mixed = build.emit("attention", (qkv,), (height * side, channels), (), (MSA_HEADS,))
        tokens = build.add([build.linear(mixed, channels, f"{name}.to_out.0"), tokens])
        hidden = build.linear(build.layer_norm(tokens, f"{name}.ln2"), width, f"{name}.ff.net.0")
        tokens = build.add([build.linear(build.unary("gelu", hidden), width, f"{name}.ff.net.3"), tokens])
        return build.emit("untokens", (tokens,), (width, height, side))

    def _squeeze_excitation(self, x: int, width: int, stride: int, name: str) -> int:
        """Channel squeeze and excitation (Hu, Shen, Sun, CVPR 2018), with Hardswish as the gate.

        The channels of the whole map are weighed before it is subsampled.
        """
        build = self.build
        squeezed = build.emit("squeeze", (x,), (width,))
        hidden = build.unary("relu", build.linear(squeezed, width // 2, f"{name}.fc1"))
        gate = build.unary("hardswish", build.linear(hidden, width, f"{name}.fc2"))
        x = build.emit("scale", (x, gate), build.shape(x))
        return x if stride == 1 else build.subsample(x, stride)

    def _head(self, x: int) -> int:
        build, architecture = self.build, self.architecture
        x = build.global_pool(x) if architecture.glob_avg else build.flatten(x)
        if architecture.fc_layers == 1:
            return build.linear(x, build.num_classes, "classifier")
        x = build.unary("relu", build.linear(x, architecture.fc_dim, "classifier.0"))
        return build.linear(build.unary("dropout", x), build.num_classes, "classifier.3")
