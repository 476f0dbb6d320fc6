"""The blocks of architectures: functions that emit the operations of each block to a builder.

What a block emits depends on the shape of its input and on its settings alone. Arguments of every block:

* build: the builder.
* x: the position of the input.
* name: the first part of the parameters' names.
* C, width: output channels.
* ks, kernel, k: side of the kernel, in pixels.
* norm: whether batch norms follow convolutions.

Every block returns the position of its result.

Sources of the blocks: DARTS (Liu, Simonyan, Yang, ICLR 2019) and DeepNets-1M (Knyazev et al., NeurIPS 2021), unless a
block names another.
"""

from __future__ import annotations

from ghn.networks.program import ProgramBuilder

MSA_HEADS = 8
"""Heads of every attention."""


def patches(build: ProgramBuilder, x: int, name: str, C: int, large: bool) -> int:
    """Emit the stem of a transformer: patches of 16×16 pixels, of 3×3 for small images, and a position encoding."""
    patch, padding = (16, 0) if large else (3, 1)
    x = build.conv(x, C, patch, f"{name}stem0", stride=patch, padding=padding)
    return build.position_encoding(x, f"{name}pos_enc")


def stem_0(
    build: ProgramBuilder, x: int, name: str, channels: int, ks: int, stride: int, pool: bool, norm: bool
) -> int:
    """Emit stem 0: a convolution, a norm and perhaps a max-pool that halves the resolution."""
    x = build.conv(x, channels, ks, f"{name}.0", stride=stride)
    x = _normed(build, x, f"{name}.1", norm)
    return build.pool("max_pool", x, stride=2) if pool else x


def stem_1(build: ProgramBuilder, x: int, name: str, C: int, ks: int, stride: int, norm: bool) -> int:
    """Emit the part of stem 1 that gives the first of its two results: two convolutions with a ReLU between them."""
    x = build.conv(x, C // 2, ks, f"{name}.0", stride=stride)
    x = build.unary("relu", _normed(build, x, f"{name}.1", norm))
    return _normed(build, build.conv(x, C, 3, f"{name}.3", stride=stride), f"{name}.4", norm)


def relu_conv_norm(build: ProgramBuilder, x: int, name: str, width: int, kernel: int, stride: int, norm: bool) -> int:
    """Emit ReLU, convolution and norm."""
    x = build.conv(build.unary("relu", x), width, kernel, f"{name}.1", stride=stride)
    return _normed(build, x, f"{name}.2", norm)


def subsample(build: ProgramBuilder, x: int, name: str) -> int:
    """Emit a subsampling that halves the resolution."""
    return build.subsample(x, 2)


def factorised_reduction(build: ProgramBuilder, x: int, name: str, width: int, norm: bool) -> int:
    """Emit a block that halves the resolution by two convolutions, which read complementary pixels."""
    x = build.unary("relu", x)
    shifted = build.unary("shift", x)
    halves = [
        build.conv(x, width // 2, 1, f"{name}.conv_1", stride=2),
        build.conv(shifted, width - width // 2, 1, f"{name}.conv_2", stride=2),
    ]
    return _normed(build, build.concat(halves), f"{name}.bn", norm)


def edge(build: ProgramBuilder, x: int, name: str, operation: str, width: int, stride: int, norm: bool) -> int:
    """Emit the operation of a cell's edge: any but `none`, and the identity only where it halves the resolution."""
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
    """Emit ReLU, depthwise convolution, 1×1 convolution and norm; their parameters are numbered from `first`."""
    channels = build.shape(x)[0]
    padding = k // 2 if dilation == 1 else k - k % 2
    x = build.unary("relu", x)
    x = build.conv(
        x, channels, k, f"{name}.{first}", stride=stride, padding=padding, dilation=dilation, groups=channels
    )
    x = build.conv(x, width, 1, f"{name}.{first + 1}")
    return _normed(build, x, f"{name}.{first + 2}", norm)


def attention(build: ProgramBuilder, x: int, name: str, width: int) -> int:
    """Emit a pre-norm transformer block whose tokens are the pixels (Dosovitskiy et al., ICLR 2021).

    Networks with such a block never reduce their resolution.
    """
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
    """Emit squeeze and excitation of channels (Hu, Shen, Sun, CVPR 2018), with Hardswish as the gate.

    The channels of the whole map are scaled before the map is subsampled.
    """
    squeezed = build.emit("squeeze", (x,), (width,))
    hidden = build.unary("relu", build.linear(squeezed, width // 2, f"{name}.fc1"))
    gate = build.unary("hardswish", build.linear(hidden, width, f"{name}.fc2"))
    x = build.emit("scale", (x, gate), build.shape(x))
    return x if stride == 1 else build.subsample(x, stride)


def head(build: ProgramBuilder, x: int, name: str, glob_avg: bool, hidden: int | None, num_classes: int) -> int:
    """Emit the head: a global average pool or all pixels, and one linear layer or two with `hidden` features."""
    x = build.global_pool(x) if glob_avg else build.flatten(x)
    if hidden is None:
        return build.linear(x, num_classes, name)
    x = build.unary("relu", build.linear(x, hidden, f"{name}.0"))
    return build.linear(build.unary("dropout", x), num_classes, f"{name}.3")


def _normed(build: ProgramBuilder, x: int, name: str, norm: bool) -> int:
    """Emit a batch norm, or nothing without `norm`."""
    return build.batch_norm(x, name) if norm else x
