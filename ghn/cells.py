"""How an architecture's cells, stem and head are put together from blocks, and what operations the blocks have.

`assemble` describes a network to a builder, block by block: to a `ProgramBuilder`, which keeps every operation, or to
an `OutlineBuilder`, which has seen most blocks before. A block is a function of a builder, its input, the name of its
parameters and settings; what it emits depends on the input's shape and the settings alone.
"""

from __future__ import annotations

from ghn.architectures import Architecture
from ghn.outlines import OutlineBuilder, Summary
from ghn.program import LARGE_IMAGE, Builder, Program, ProgramBuilder

MSA_HEADS = 8


def compile_architecture(architecture: Architecture, image_size: int, num_classes: int) -> Program:
    """The program of an architecture for square images and a number of classes.

    Raises:
        InvalidArchitecture: nothing reaches the output.
        ValueError: the image is too small or the number of classes is not positive.
    """
    build = ProgramBuilder(image_size, num_classes)
    return build.finish(assemble(build, architecture, image_size, num_classes))


def outline_architecture(architecture: Architecture, image_size: int, num_classes: int) -> Summary:
    """What `summarise(compile_architecture(…))` gives and raises, without a program."""
    build = OutlineBuilder(image_size)
    return build.finish(assemble(build, architecture, image_size, num_classes))


def count_parameters(architecture: Architecture, image_size: int, num_classes: int) -> int:
    """The number of elements of all parameters, after pruning."""
    build = OutlineBuilder(image_size)
    return build.num_parameters(assemble(build, architecture, image_size, num_classes))


def assemble(build: Builder, architecture: Architecture, image_size: int, num_classes: int) -> int | None:
    """Describes an architecture to a builder; the position of the logits, None if they are absent."""
    if image_size < 8:
        raise ValueError(f"image_size = {image_size}: must be at least 8 pixels")
    if num_classes < 1:
        raise ValueError(f"num_classes = {num_classes}: must be at least 1")
    x = _cells(build, architecture, *_stem(build, architecture, image_size >= LARGE_IMAGE))
    if x is None:
        return None
    hidden = architecture.fc_dim if architecture.fc_layers == 2 else None
    return build.block(head, x, "classifier", architecture.glob_avg, hidden, num_classes)


def _stem(build: Builder, architecture: Architecture, large: bool) -> tuple[int, int]:
    """The two results that the first cell reads."""
    C, ks, norm = architecture.C, architecture.ks, architecture.norm is not None
    if architecture.has_msa:
        x = build.block(patches, build.image, "", C, large)
        return x, x
    if architecture.stem_type == 0:
        channels = 3 * C if architecture.preproc and not large else C
        x = build.block(stem_0, build.image, "stem", channels, ks, 4 if large else 1, architecture.stem_pool, norm)
        return x, x
    first = build.block(stem_1, build.image, "stem0", C, ks, 2 if large else 1, norm)
    return first, build.block(relu_conv_norm, first, "stem1", C, 3, 2, norm)


def _cells(build: Builder, architecture: Architecture, older: int | None, newer: int | None) -> int | None:
    """The result of the last cell; `older` and `newer` are those that the first one reads."""
    genotype, norm, width = architecture.genotype, architecture.norm is not None, architecture.C
    keeps_resolution = architecture.has_msa
    reductions = {n for n in (architecture.n_cells // 3, 2 * architecture.n_cells // 3) if n > 0}
    # After stem 1 the two inputs of cell 0 differ in resolution as if a reduction had come before.
    shrink = architecture.stem_type == 1 and not keeps_resolution
    for index in range(architecture.n_cells):
        edges, concat, stride = genotype.normal, genotype.normal_concat, 1
        if index in reductions:
            edges, concat, stride = genotype.reduce, genotype.reduce_concat, 1 if keeps_resolution else 2
            width *= architecture.C_mult
        name = f"cells.{index}"
        if architecture.preproc:
            states = [
                _preprocess(build, older, f"{name}.preprocess0", width, shrink, norm),
                _preprocess(build, newer, f"{name}.preprocess1", width, False, norm),
            ]
        else:
            states = [build.block(subsample, older, name) if shrink and older is not None else older, newer]
        for place in range(0, len(edges), 2):
            ends = [
                _edge(build, states[source], f"{name}._ops.{k}", operation, width, stride if source < 2 else 1, norm)
                for k, (operation, source) in enumerate(edges[place : place + 2], start=place)
            ]
            states.append(build.add(ends))
        older, newer = newer, build.concat([states[state] for state in concat])
        shrink = stride == 2
    return newer


def _preprocess(build: Builder, x: int | None, name: str, width: int, shrink: bool, norm: bool) -> int | None:
    if x is None:
        return None
    if shrink:
        return build.block(factorised_reduction, x, name, width, norm)
    return build.block(relu_conv_norm, x, f"{name}.op", width, 1, 1, norm)


def _edge(build: Builder, x: int | None, name: str, operation: str, width: int, stride: int, norm: bool) -> int | None:
    if x is None or operation == "none":
        return None
    if operation == "skip_connect" and stride == 1:
        return x
    return build.block(edge, x, name, operation, width, stride, norm)


# Blocks. All begin with (build, x, name); x is a position, as is what they return.


def patches(build: ProgramBuilder, x: int, name: str, C: int, large: bool) -> int:
    """The stem of a transformer."""
    patch, padding = (16, 0) if large else (3, 1)
    x = build.conv(x, C, patch, f"{name}stem0", stride=patch, padding=padding)
    return build.position_encoding(x, f"{name}pos_enc")


def stem_0(
    build: ProgramBuilder, x: int, name: str, channels: int, ks: int, stride: int, pool: bool, norm: bool
) -> int:
    x = build.conv(x, channels, ks, f"{name}.0", stride=stride)
    x = _normed(build, x, f"{name}.1", norm)
    return build.pool("max_pool", x, stride=2) if pool else x


def stem_1(build: ProgramBuilder, x: int, name: str, C: int, ks: int, stride: int, norm: bool) -> int:
    """What comes before the second of its two results."""
    x = build.conv(x, C // 2, ks, f"{name}.0", stride=stride)
    x = build.unary("relu", _normed(build, x, f"{name}.1", norm))
    return _normed(build, build.conv(x, C, 3, f"{name}.3", stride=stride), f"{name}.4", norm)


def relu_conv_norm(build: ProgramBuilder, x: int, name: str, width: int, kernel: int, stride: int, norm: bool) -> int:
    x = build.conv(build.unary("relu", x), width, kernel, f"{name}.1", stride=stride)
    return _normed(build, x, f"{name}.2", norm)


def subsample(build: ProgramBuilder, x: int, name: str) -> int:
    """Halves the resolution."""
    return build.subsample(x, 2)


def factorised_reduction(build: ProgramBuilder, x: int, name: str, width: int, norm: bool) -> int:
    """Halves the resolution; the two convolutions read complementary pixels."""
    x = build.unary("relu", x)
    shifted = build.unary("shift", x)
    halves = [
        build.conv(x, width // 2, 1, f"{name}.conv_1", stride=2),
        build.conv(shifted, width - width // 2, 1, f"{name}.conv_2", stride=2),
    ]
    return _normed(build, build.concat(halves), f"{name}.bn", norm)


def edge(build: ProgramBuilder, x: int, name: str, operation: str, width: int, stride: int, norm: bool) -> int:
    """An operation of a cell's edge, other than `none` and the identity."""
    if operation in ("max_pool_3x3", "avg_pool_3x3"):
        return build.pool(operation.removesuffix("_3x3"), x, stride=stride)
    if operation == "skip_connect":
        return factorised_reduction(build, x, name, width, norm)
    if operation == "msa":
        return attention(build, x, name, width)
    if operation == "cse":
        return squeeze_excitation(build, x, name, width, stride)
    if operation == "conv_7x1_1x7":
        x = build.conv(build.unary("relu", x), width, (1, 7), f"{name}.op.1", stride=(1, stride))
        x = build.conv(x, width, (7, 1), f"{name}.op.2", stride=(stride, 1))
        return _normed(build, x, f"{name}.op.3", norm)
    family, kernel = operation.rsplit("_", 1)
    k = int(kernel[0])
    if family == "sep_conv":
        x = depthwise(build, x, f"{name}.op", 1, width, k, stride, 1, norm)
        return depthwise(build, x, f"{name}.op", 5, width, k, 1, 1, norm)
    if family == "dil_conv":
        return depthwise(build, x, f"{name}.op", 1, width, k, stride, 2, norm)
    return relu_conv_norm(build, x, f"{name}.op", width, k, stride, norm)


def depthwise(
    build: ProgramBuilder, x: int, name: str, first: int, width: int, k: int, stride: int, dilation: int, norm: bool
) -> int:
    """ReLU, depthwise convolution, 1×1 convolution, norm; their parameters are numbered from `first`."""
    channels = build.shape(x)[0]
    padding = k // 2 if dilation == 1 else k - k % 2
    x = build.unary("relu", x)
    x = build.conv(
        x, channels, k, f"{name}.{first}", stride=stride, padding=padding, dilation=dilation, groups=channels
    )
    x = build.conv(x, width, 1, f"{name}.{first + 1}")
    return _normed(build, x, f"{name}.{first + 2}", norm)


def attention(build: ProgramBuilder, x: int, name: str, width: int) -> int:
    """A pre-norm transformer block over the pixels (Dosovitskiy et al., ICLR 2021); networks with one never
    reduce their resolution."""
    channels, height, side = build.shape(x)
    tokens = build.emit("tokens", (x,), (height * side, channels))
    normed = build.layer_norm(tokens, f"{name}.ln1")
    qkv = build.linear(normed, 3 * channels, f"{name}.to_qkv", bias=False)
    mixed = build.emit("attention", (qkv,), (height * side, channels), (), (MSA_HEADS,))
    tokens = build.add([build.linear(mixed, channels, f"{name}.to_out.0"), tokens])
    hidden = build.linear(build.layer_norm(tokens, f"{name}.ln2"), width, f"{name}.ff.net.0")
    tokens = build.add([build.linear(build.unary("gelu", hidden), width, f"{name}.ff.net.3"), tokens])
    return build.emit("untokens", (tokens,), (width, height, side))


def squeeze_excitation(build: ProgramBuilder, x: int, name: str, width: int, stride: int) -> int:
    """Channel squeeze and excitation (Hu, Shen, Sun, CVPR 2018), with Hardswish as the gate.

    The channels of the whole map are weighed before it is subsampled.
    """
    squeezed = build.emit("squeeze", (x,), (width,))
    hidden = build.unary("relu", build.linear(squeezed, width // 2, f"{name}.fc1"))
    gate = build.unary("hardswish", build.linear(hidden, width, f"{name}.fc2"))
    x = build.emit("scale", (x, gate), build.shape(x))
    return x if stride == 1 else build.subsample(x, stride)


def head(build: ProgramBuilder, x: int, name: str, glob_avg: bool, hidden: int | None, num_classes: int) -> int:
    x = build.global_pool(x) if glob_avg else build.flatten(x)
    if hidden is None:
        return build.linear(x, num_classes, name)
    x = build.unary("relu", build.linear(x, hidden, f"{name}.0"))
    return build.linear(build.unary("dropout", x), num_classes, f"{name}.3")


def _normed(build: ProgramBuilder, x: int, name: str, norm: bool) -> int:
    return build.batch_norm(x, name) if norm else x
