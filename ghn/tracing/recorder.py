"""From recorded PyTorch functions to primitives: what each function is in the graph that a hypernetwork reads.

`GraphRecorder` is told of the functions of a forward pass one by one, in their order, and grows a graph. Functions
that are no primitives (activations, reshapes, dropout, constants) add no node: edges pass through them.

Parameters are followed too. A parameter that has only been reshaped, indexed or combined with other parameters waits
in its `Value` until it meets the features of the images, and what happens there decides what it is: a matrix product
or a convolution makes it a weight, a product channel by channel a scale, a sum channel by channel a bias, and joined
in any other way it is an encoding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor
from torch.autograd.function import BackwardCFunction

from ghn.networks.graph import Graph, Node
from ghn.networks.operations import AxisOrder, Parameter, Role
from ghn.networks.parameter_axes import Shape, Sizes, encoding_shape, is_vector, kernel_shape, matrix_shape
from ghn.tracing.passes import with_class_layers, without_squeezes
from ghn.tracing.shape_only import Recorded


class Value(NamedTuple):
    """What is known of a tensor of the forward pass; without sources and parameters it is a constant."""

    sources: tuple[int, ...] = ()
    """The nodes that it comes from."""
    parameters: tuple[str, ...] = ()
    """Parameters that it is made of and that are on no node yet."""
    transposed: bool = False
    """Whether the last two axes of a parameter (of several, the first) are exchanged."""
    is_product: bool = False
    """Whether it is the first product of an attention, whose second one is still to come."""


CONSTANT = Value()

ToNodeShape = Callable[[Sizes], tuple[Shape, AxisOrder]]
"""From the shape of a weight to the shape of its node, and its axis_order."""

UNUSED = "the output does not depend on it (in evaluation mode, and as far as gradients flow)"


@dataclass
class GraphRecorder:
    """Grows the graph of one forward pass from its functions.

    `shapes` are the parameters' by name; `not_predicted` collects those that no node can hold, with the reason.
    """

    shapes: dict[str, Sizes]
    nodes: list[Node] = field(default_factory=list)
    edges: list[tuple[int, int]] = field(default_factory=list)
    not_predicted: dict[str, str] = field(default_factory=dict)
    _node_of: dict[str, int] = field(default_factory=dict)
    _scales: set[int] = field(default_factory=set)  # nodes that only scale: `ln` without a norm

    def image(self) -> Value:
        """An input of the network."""
        return self._append(Node("input"), ())

    def parameter(self, name: str) -> Value:
        return Value(parameters=(name,))

    def apply(self, function: Any, inputs: Sequence[Value]) -> Value:
        """The result of a recorded autograd function of the given inputs."""
        name = operation_name(function)
        if isinstance(function, BackwardCFunction) and not issubclass(function._forward_cls, Recorded):
            return self._unknown(f"the custom function {name}", inputs)
        rule = RULES.get(name)
        if rule is not None:
            return rule(self, function, inputs)
        if name.startswith("ScaledDotProduct"):
            return self._attention(inputs)
        return self._unknown(name, inputs)

    def finish(self, outputs: Sequence[Value], classifies: bool) -> Graph:
        """The graph of everything recorded, given the values of the network's outputs.

        `classifies`: whether the outputs are logits.
        """
        ends = {node for value in outputs for node in self.as_features(value).sources}
        for name in self.shapes:
            if name not in self._node_of and name not in self.not_predicted:
                self.not_predicted[name] = UNUSED
        nodes, edges, place = without_squeezes(self.nodes, self.edges, ends)
        if classifies:
            scales = {place[node] for node in self._scales if node in place}
            nodes = with_class_layers(nodes, edges, {place[end] for end in ends if end in place}, scales)
        return Graph(tuple(nodes), tuple(edges), self.not_predicted)

    # Nodes

    def _append(self, node: Node, sources: Sequence[int]) -> Value:
        self.nodes.append(node)
        here = len(self.nodes) - 1
        self.edges.extend((source, here) for source in sources)
        for parameter in node.parameters:
            self._node_of[parameter.name] = here
        return Value((here,))

    def _unplaced(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if name not in self._node_of and name not in self.not_predicted]

    def as_features(self, value: Value) -> Value:
        """A value that other nodes can read: a finished product of attention, parameters as encodings."""
        if value.parameters:
            return self._encoding(value)
        if value.is_product:
            return self._append(Node("msa"), value.sources)
        return value

    def _encoding(self, value: Value) -> Value:
        """Nodes without incoming edges for the parameters of a value."""
        for name in self._unplaced(value.parameters):
            shape, axis_order = encoding_shape(self.shapes[name])
            self._append(Node("pos_enc", shape, (Parameter(name, self.shapes[name], "encoding", axis_order),)), ())
        nodes = [self._node_of[name] for name in value.parameters if name in self._node_of]
        return Value(tuple(dict.fromkeys(nodes)))

    def _vectors(self, x: Value, names: Sequence[str], role: Role, primitive: str) -> Value:
        """A node that scales or shifts each channel of `x`."""
        vectors = [name for name in names if is_vector(self.shapes[name])]
        for name in self._unplaced([name for name in names if name not in vectors]):
            self.not_predicted[name] = f"combined with {', '.join(vectors)} before it meets the features"
        parameters = tuple(Parameter(name, self.shapes[name], role) for name in self._unplaced(vectors))
        shape = (math.prod(self.shapes[vectors[0]]), 1, 1, 1)
        value = self._append(Node(primitive, shape, parameters), x.sources)
        if role == "scale":
            self._scales.update(value.sources)
        return value._replace(is_product=x.is_product)

    def _weight(self, x: Value, weight: Value, primitive: str, laid_out: ToNodeShape) -> Value:
        """A node that multiplies `x` with a weight; scales of the weight follow it, since they scale its outputs."""
        x = self.as_features(x)
        main = max(weight.parameters, key=lambda name: math.prod(self.shapes[name]))
        shape, axis_order = laid_out(self.shapes[main])
        parameters = tuple(Parameter(name, self.shapes[name], "weight", axis_order) for name in self._unplaced([main]))
        value = self._append(Node(primitive, shape, parameters), x.sources)
        for name in self._unplaced(weight.parameters):
            if is_vector(self.shapes[name]):
                value = self._vectors(value, [name], "scale", "ln")
            else:
                self.not_predicted[name] = f"combined with {main} before it meets the features"
        return value

    # Functions

    def convolution(self, function: Any, inputs: Sequence[Value]) -> Value:
        x, weight, bias = inputs
        groups, dilation = function._saved_groups, function._saved_dilation
        primitive = "conv" if groups == 1 else "sep_conv" if max(dilation) == 1 else "dil_conv"
        if weight.parameters:
            transposed = function._saved_transposed
            value = self._weight(x, weight, primitive, lambda shape: kernel_shape(shape, transposed, groups))
        elif weight.sources:  # kernels that the network computes itself
            value = self._append(Node(primitive), _sources(map(self.as_features, (x, weight))))
        else:  # a fixed filter
            value = x
        return self._shift(value, bias)

    def _shift(self, x: Value, bias: Value) -> Value:
        """`x` plus a bias."""
        if bias.parameters and all(map(is_vector, self._shapes(bias))):
            return self._vectors(x, bias.parameters, "bias", "bias")
        return self._join([x, bias], "sum") if bias != CONSTANT else x

    def matrix_product(self, function: Any, inputs: Sequence[Value]) -> Value:
        """`[shift,] left, right`; one of them may be a weight, and two that depend on the images are attention."""
        *shift, left, right = inputs
        summed = _summed_axis(function)
        if right.parameters and (left.sources or right.transposed):
            value = self._weight(left, right, "conv", lambda shape: matrix_shape(shape, summed, not right.transposed))
        elif left.parameters and right.sources:
            value = self._weight(right, left, "conv", lambda shape: matrix_shape(shape, summed, left.transposed))
        elif left.sources and right.sources:
            value = self._product([left, right])
        else:
            value = _merged([left, right])
        return self._shift(value, shift[0]) if shift else value

    def linear(self, function: Any, inputs: Sequence[Value]) -> Value:
        x, weight, bias = inputs
        return self.matrix_product(function, [bias, x, weight._replace(transposed=not weight.transposed)])

    def _product(self, factors: Sequence[Value]) -> Value:
        """The first product of an attention is no node; the second one is the attention."""
        if any(factor.is_product for factor in factors):
            return self._append(Node("msa"), _sources(factors))
        return Value(_sources(factors), is_product=True)

    def _attention(self, inputs: Sequence[Value]) -> Value:
        return self._append(Node("msa"), _sources(map(self.as_features, inputs)))

    def norm(self, function: Any, inputs: Sequence[Value]) -> Value:
        """A norm with its affine parameters on one node: `bn` over the batch, `ln` within each image."""
        primitive = "bn" if "BatchNorm" in function.name() else "ln"
        x, *affine = inputs
        if not x.sources and x.parameters:  # a weight is standardised
            return _merged(inputs)
        x = self.as_features(x)
        scale, bias = (*affine, CONSTANT, CONSTANT)[:2]
        if any(value.sources or len(value.parameters) > 1 for value in (scale, bias)):  # computed: an adaptive norm
            scaled = self.scale(function, [self._append(Node(primitive), x.sources), scale])
            return self.shift(function, [scaled, bias])
        roles: list[tuple[Role, Value]] = [("scale", scale), ("bias", bias)]
        named = [(role, value.parameters[0]) for role, value in roles if value.parameters]
        new = set(self._unplaced([name for _, name in named]))
        parameters = tuple(Parameter(name, self.shapes[name], role) for role, name in named if name in new)
        shape = (math.prod(self.shapes[named[0][1]]), 1, 1, 1) if named else None
        return self._append(Node(primitive, shape, parameters), x.sources)

    def shift(self, function: Any, inputs: Sequence[Value]) -> Value:
        """A sum or a difference."""
        features = [value for value in inputs if value.sources]
        parameters = [value for value in inputs if value.parameters]
        if len(features) == 1 and len(parameters) == 1:
            return self._shift(features[0], parameters[0])
        return self._join(inputs, "sum")

    def scale(self, function: Any, inputs: Sequence[Value]) -> Value:
        """A product or a quotient, element by element."""
        features = [value for value in inputs if value.sources]
        parameters = [value for value in inputs if value.parameters]
        if len(features) == 1 and parameters and all(map(is_vector, self._shapes(parameters[0]))):
            return self._vectors(features[0], parameters[0].parameters, "scale", "ln")
        return self._join(inputs, "cse")

    def scale_and_shift(self, function: Any, inputs: Sequence[Value]) -> Value:
        """`shift + left · right`, element by element."""
        shift, left, right = inputs
        return self.shift(function, [self.scale(function, [left, right]), shift])

    def _shapes(self, value: Value) -> list[Sizes]:
        return [self.shapes[name] for name in value.parameters]

    def concat(self, function: Any, inputs: Sequence[Value]) -> Value:
        return self._join(inputs, "concat")

    def _join(self, inputs: Sequence[Value], primitive: str) -> Value:
        """A node for several values, if they come from different nodes."""
        if not any(value.sources for value in inputs):
            return _merged(inputs)
        features = [self._encoding(value) if value.parameters else value for value in inputs]
        different = {value.sources for value in features if value.sources}
        sources = _sources(features)
        is_product = any(value.is_product for value in features)
        if len(different) > 1 and len(sources) > 1:
            return self._append(Node(primitive), sources)._replace(is_product=is_product)
        return Value(sources, is_product=is_product)

    def pool(self, function: Any, inputs: Sequence[Value]) -> Value:
        kernel = function._saved_kernel_size
        return self._pool("max_pool" if "Max" in function.name() else "avg_pool", kernel, inputs[0])

    def adaptive_pool(self, function: Any, inputs: Sequence[Value]) -> Value:
        before, after = function._saved_self.shape, function._input_metadata[0].shape
        axes = 3 if "3D" in function.name() else 2
        pairs = list(zip(before[-axes:], after[-axes:], strict=True))
        is_average = "Avg" in function.name()
        if is_average and all(size == 1 for _, size in pairs):
            return self._global_pool(inputs[0])
        kernel = [-(-size // parts) for size, parts in pairs]
        if all(size == 1 for size in kernel):
            return inputs[0]
        return self._pool("avg_pool" if is_average else "max_pool", kernel, inputs[0])

    def _pool(self, primitive: str, kernel: Sequence[int], x: Value) -> Value:
        if not x.sources:
            return x
        kh, kw = (*kernel, 1)[:2] if len(kernel) < 3 else kernel[-2:]
        return self._append(Node(primitive, (1, 1, kh, kw)), self.as_features(x).sources)

    def mean(self, function: Any, inputs: Sequence[Value]) -> Value:
        """Over all positions it is the global average pool; over channels or all elements a statistic."""
        (x,) = inputs
        if function.name() == "MeanBackward0":
            return x
        axes = len(function._saved_self_sym_sizes)
        over = {_axis(number, axes) for number in function._saved_dim}
        if x.sources and over in GLOBAL_POOLS.get(axes, ()):
            return self._global_pool(x)
        return x

    def _global_pool(self, x: Value) -> Value:
        return self._append(Node("glob_avg"), self.as_features(x).sources)

    def transpose(self, function: Any, inputs: Sequence[Value]) -> Value:
        (x,) = inputs
        axes = len(function._input_metadata[0].shape)
        if not x.parameters or axes < 2 or not _exchanges_last_axes(function, axes):
            return x
        return x._replace(transposed=not x.transposed)

    def prelu(self, function: Any, inputs: Sequence[Value]) -> Value:
        x, slope = inputs
        return self._shift(x, slope)

    def _unknown(self, name: str, inputs: Sequence[Value]) -> Value:
        """A function without a rule. With one input it is passed through; several are summed up."""
        if not any(value.sources for value in inputs):
            return _merged(inputs)
        for value in inputs:
            for parameter in self._unplaced(value.parameters):
                self.not_predicted[parameter] = f"it meets the features in {name}, which has no primitive"
        return self._join([value._replace(parameters=()) for value in inputs], "sum")


def operation_name(function: Any) -> str:
    """`Convolution` for a function that calls itself `ConvolutionBackward0`."""
    return function.name().rpartition("::")[2].rstrip("0123456789").removesuffix("Backward").lstrip("_")


def _sources(values: Any) -> tuple[int, ...]:
    return tuple(dict.fromkeys(source for value in values for source in value.sources))


def _merged(values: Sequence[Value]) -> Value:
    """One value of several that are joined before they meet the features."""
    names = tuple(dict.fromkeys(name for value in values for name in value.parameters))
    transposed = next((value.transposed for value in values if value.parameters), False)
    return Value(_sources(values), names, transposed)


def _exchanges_last_axes(function: Any, axes: int) -> bool:
    """Whether a transposition exchanges the last two of `axes` axes."""
    name = operation_name(function)
    if name == "T":
        return True
    if name == "Transpose":
        return {_axis(number, axes) for number in (function._saved_dim0, function._saved_dim1)} == {axes - 2, axes - 1}
    return [_axis(number, axes) for number in function._saved_dims][-2:] == [axes - 1, axes - 2]


def _axis(number: int, axes: int) -> int:
    """One of `axes` axes; autograd keeps negative ones as unsigned numbers of 64 bits."""
    number = int(number) % 2**64
    return number if number < axes else number - 2**64 + axes


def _summed_axis(function: Any) -> int | None:
    """How long the axis is that a matrix product sums over, if autograd has kept it."""
    for name in ("_saved_mat2_sym_sizes", "_saved_mat2", "_saved_batch2"):
        kept = getattr(function, name, None)
        if kept is not None:
            return int((kept.shape if isinstance(kept, Tensor) else kept)[-2])
    return None


GLOBAL_POOLS: dict[int, tuple[set[int], ...]] = {
    3: ({1},),  # tokens (B, T, C)
    4: ({2, 3}, {1, 2}),  # maps (B, C, Y, X), or with the channels last
    5: ({2, 3, 4}, {1, 2, 3}),
}
"""Which axes a mean is taken over to be the global average pool, by the number of axes."""

Rule = Callable[[GraphRecorder, Any, Sequence[Value]], Value]

RULES: dict[str, Rule] = {
    "Convolution": GraphRecorder.convolution,
    "Addmm": GraphRecorder.matrix_product,
    "Baddbmm": GraphRecorder.matrix_product,
    "Bmm": GraphRecorder.matrix_product,
    "Linear": GraphRecorder.linear,
    "Mm": GraphRecorder.matrix_product,
    "Mv": GraphRecorder.matrix_product,
    "BatchNorm": GraphRecorder.norm,
    "LayerNorm": GraphRecorder.norm,
    "NativeBatchNorm": GraphRecorder.norm,
    "CudnnBatchNorm": GraphRecorder.norm,
    "NativeLayerNorm": GraphRecorder.norm,
    "NativeGroupNorm": GraphRecorder.norm,
    "FusedRmsNorm": GraphRecorder.norm,
    "Add": GraphRecorder.shift,
    "Sub": GraphRecorder.shift,
    "Rsub": GraphRecorder.shift,
    "Mul": GraphRecorder.scale,
    "Div": GraphRecorder.scale,
    "Addcmul": GraphRecorder.scale_and_shift,
    "Cat": GraphRecorder.concat,
    "Stack": GraphRecorder.concat,
    "CopySlices": GraphRecorder.concat,
    "MaxPool2DWithIndices": GraphRecorder.pool,
    "MaxPool3DWithIndices": GraphRecorder.pool,
    "AvgPool2D": GraphRecorder.pool,
    "AvgPool3D": GraphRecorder.pool,
    "AdaptiveAvgPool2D": GraphRecorder.adaptive_pool,
    "AdaptiveAvgPool3D": GraphRecorder.adaptive_pool,
    "AdaptiveMaxPool2D": GraphRecorder.adaptive_pool,
    "AdaptiveMaxPool3D": GraphRecorder.adaptive_pool,
    "Mean": GraphRecorder.mean,
    "T": GraphRecorder.transpose,
    "Transpose": GraphRecorder.transpose,
    "Permute": GraphRecorder.transpose,
    "PreluKernel": GraphRecorder.prelu,
}
"""How each function is recorded; all others are passed through (`GraphRecorder._unknown`)."""
