"""A recorder that turns the functions of a forward pass into primitives of the graph that a hypernetwork reads.

`GraphRecorder` applies its rules to the functions one by one, in the order of their calls, and adds nodes to a graph.
Functions that are no primitives (activations, reshapes, dropout, constants) add no node: edges pass through them.

Parameters are followed too. A parameter that has only been reshaped, indexed or combined with other parameters waits
in its `Value` until it meets the features of the images. The function where they meet decides its role. A matrix
product or a convolution makes it a weight, a product channel by channel a scale, a sum channel by channel a bias. In
any other function it is an encoding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ghn.networks.graph import Graph, Node
from ghn.networks.operations import AxisOrder, Parameter, Role
from ghn.networks.parameter_axes import Shape, Sizes, encoding_shape, is_vector, kernel_shape, matrix_shape, stack_shape
from ghn.tracing.autograd_functions import (
    Function,
    adaptive_pool_sizes,
    convolution_settings,
    custom_function,
    exchanges_last_axes,
    kernel_size,
    mean_axes,
    operation_name,
    summed_length,
)
from ghn.tracing.passes import siblings, with_class_layers, with_copies, without_squeezes
from ghn.tracing.shape_only import Recorded


class Value(NamedTuple):
    """A tensor of the forward pass, as the recorder knows it; without sources and parameters it is a constant."""

    sources: tuple[int, ...] = ()
    """Nodes that the tensor is computed from."""
    parameters: tuple[str, ...] = ()
    """Names of parameters that the tensor is computed from and that are on no node yet."""
    transposed: bool = False
    """Whether the last two axes of the parameter (of several, the first) are exchanged."""
    is_product: bool = False
    """Whether the tensor is the first product of an attention, whose second product follows."""


CONSTANT = Value()
"""A tensor that depends on no image and no parameter."""

ToNodeShape = Callable[[Sizes], tuple[Shape, AxisOrder]]
"""Function from the shape of a weight to the shape of its node and the weight's axis order."""


@dataclass
class GraphRecorder:
    """The graph of one forward pass, as far as its functions are recorded.

    `shapes` are the shapes of all parameters by name. `not_predicted` collects the parameters that no node can hold,
    with the reason.
    """

    shapes: dict[str, Sizes]
    nodes: list[Node] = field(default_factory=list)
    edges: list[tuple[int, int]] = field(default_factory=list)
    not_predicted: dict[str, str] = field(default_factory=dict)
    _node_of: dict[str, int] = field(default_factory=dict)
    _scales: set[int] = field(default_factory=set)  # nodes `ln` that scale without a norm

    def image(self) -> Value:
        """Add an input of the network; return its value."""
        return self._append(Node("input"), ())

    def parameter(self, name: str) -> Value:
        """Return the value of a parameter; it adds no node until it meets features."""
        return Value(parameters=(name,))

    def apply(self, function: Function, inputs: Sequence[Value]) -> Value:
        """Record an autograd function of the given inputs; return the value of its result."""
        name = operation_name(function)
        custom = custom_function(function)
        if custom is not None and not issubclass(custom, Recorded):
            return self._unknown(f"the custom function {name}", inputs)
        rule = RULES.get(name)
        if rule is not None:
            return rule(self, function, inputs)
        if name.startswith("ScaledDotProduct"):
            return self._attention(function, inputs)
        return self._unknown(name, inputs)

    def finish(
        self, outputs: Sequence[tuple[Value, bool]], not_routed: Iterable[str], why_lost: Callable[[str], str]
    ) -> Graph:
        """Return the graph of everything recorded.

        Args:
            outputs: the value of each of the network's outputs, and whether it may be logits.
            not_routed: names of parameters that were not used, and might be with other inputs.
            why_lost: gives the reason why a parameter, by its name, is on no node.
        """
        ends = {node: False for value, _ in outputs for node in self.as_features(value).sources}
        for value, may_be_logits in outputs:
            if may_be_logits:
                ends |= dict.fromkeys(self.as_features(value).sources, True)
        ends = self._add_siblings(set(self._unplaced(not_routed)), ends)
        for name in self._unplaced(self.shapes):
            self.not_predicted[name] = why_lost(name)
        nodes, edges, place = without_squeezes(self.nodes, self.edges, set(ends))
        logits = {place[end] for end, may_be_logits in ends.items() if may_be_logits and end in place}
        if logits:
            scales = {place[node] for node in self._scales if node in place}
            nodes = with_class_layers(nodes, edges, logits, scales)
        return Graph(tuple(nodes), tuple(edges), self.not_predicted)

    def _add_siblings(self, lost: set[str], ends: dict[int, bool]) -> dict[int, bool]:
        """Add nodes for modules that were not used and are like others that were; return the new ends."""
        copies = siblings(lost, self.shapes) if lost else []
        if not copies:
            return ends
        self.nodes, self.edges, places = with_copies(self.nodes, self.edges, copies)
        self._node_of = {p.name: n for n, node in enumerate(self.nodes) for p in node.parameters}
        self._scales = {place for node in self._scales for place in places[node]}
        return {place: may_be_logits for node, may_be_logits in ends.items() for place in places[node]}

    # Nodes

    def _append(self, node: Node, sources: Sequence[int]) -> Value:
        """Add a node with edges from its sources; return its value."""
        self.nodes.append(node)
        here = len(self.nodes) - 1
        self.edges.extend((source, here) for source in sources)
        for parameter in node.parameters:
            self._node_of[parameter.name] = here
        return Value((here,))

    def _unplaced(self, names: Iterable[str]) -> list[str]:
        """Return those parameters that are on no node yet and may still be predicted."""
        return [name for name in names if name not in self._node_of and name not in self.not_predicted]

    def as_features(self, value: Value) -> Value:
        """Return a value that other nodes can read.

        Parameters become encodings, and the first product of an attention that has no second one becomes its node.
        """
        if value.parameters:
            return self._encoding(value)
        if value.is_product:
            return self._append(Node("msa"), value.sources)
        return value

    def _encoding(self, value: Value) -> Value:
        """Add nodes without incoming edges for the parameters of a value; return the value of these nodes."""
        for name in self._unplaced(value.parameters):
            shape, axis_order = encoding_shape(self.shapes[name])
            self._append(Node("pos_enc", shape, (Parameter(name, self.shapes[name], "encoding", axis_order),)), ())
        nodes = [self._node_of[name] for name in value.parameters if name in self._node_of]
        return Value(tuple(dict.fromkeys(nodes)))

    def _vectors(self, x: Value, names: Sequence[str], role: Role, primitive: str) -> Value:
        """Add a node that scales or shifts each channel of `x`; return its value."""
        vectors = [name for name in names if is_vector(self.shapes[name])]
        for name in self._unplaced([name for name in names if name not in vectors]):
            self.not_predicted[name] = f"combined with {', '.join(vectors)} before it meets the features"
        parameters = tuple(Parameter(name, self.shapes[name], role) for name in self._unplaced(vectors))
        shape = (math.prod(self.shapes[vectors[0]]), 1, 1, 1)
        value = self._append(Node(primitive, shape, parameters), x.sources)
        if role == "scale":
            self._scales.update(value.sources)
        return value._replace(is_product=x.is_product)

    def _weight(self, x: Value, weight: Value, primitive: str, to_node_shape: ToNodeShape) -> Value:
        """Add a node that multiplies `x` with a weight; return its value.

        Scales that are combined with the weight become nodes after it, because they scale its outputs.
        """
        x = self.as_features(x)
        main = max(weight.parameters, key=lambda name: math.prod(self.shapes[name]))
        shape, axis_order = to_node_shape(self.shapes[main])
        parameters = tuple(Parameter(name, self.shapes[name], "weight", axis_order) for name in self._unplaced([main]))
        value = self._append(Node(primitive, shape, parameters), x.sources)
        for name in self._unplaced(weight.parameters):
            if is_vector(self.shapes[name]):
                value = self._vectors(value, [name], "scale", "ln")
            else:
                self.not_predicted[name] = f"combined with {main} before it meets the features"
        return value

    # Rules: each records a function of its inputs and returns the value of the function's result.

    def lookup(self, function: Function, inputs: Sequence[Value]) -> Value:
        """Record rows of a parameter that tokens or positions have chosen: features from here on."""
        return self.as_features(_merged(inputs))

    def convolution(self, function: Function, inputs: Sequence[Value]) -> Value:
        """Record a convolution: of images with a weight, with computed kernels, or with a fixed filter."""
        x, weight, bias = inputs
        groups, dilation, transposed = convolution_settings(function)
        primitive = "conv" if groups == 1 else "sep_conv" if max(dilation) == 1 else "dil_conv"
        if weight.parameters:
            value = self._weight(x, weight, primitive, lambda shape: kernel_shape(shape, transposed, groups))
        elif weight.sources:  # kernels that the network computes
            value = self._append(Node(primitive), _sources(map(self.as_features, (x, weight))))
        else:  # a fixed filter
            value = x
        return self._shift(value, bias)

    def _shift(self, x: Value, bias: Value) -> Value:
        """Record `x` plus a bias."""
        if bias.parameters and all(map(is_vector, self._shapes(bias))):
            return self._vectors(x, bias.parameters, "bias", "bias")
        return self._join([x, bias], "sum") if bias != CONSTANT else x

    def matrix_product(self, function: Function, inputs: Sequence[Value]) -> Value:
        """Record a matrix product of the last two inputs, to which a third one in front of them is added.

        One factor may be a weight. Two factors that depend on the images are a product of an attention.
        """
        *shift, left, right = inputs
        summed = summed_length(function)
        if right.parameters and (left.sources or right.transposed):
            value = self._weight(left, right, "conv", lambda shape: matrix_shape(shape, summed, not right.transposed))
        elif left.parameters and right.sources:
            value = self._weight(right, left, "conv", lambda shape: matrix_shape(shape, summed, left.transposed))
        elif left.sources and right.sources:
            value = self._product([left, right])
        else:
            value = _merged([left, right])
        return self._shift(value, shift[0]) if shift else value

    def linear(self, function: Function, inputs: Sequence[Value]) -> Value:
        """Record a linear layer of an input, a weight and a bias."""
        x, weight, bias = inputs
        return self.matrix_product(function, [bias, x, weight._replace(transposed=not weight.transposed)])

    def grouped_product(self, function: Function, inputs: Sequence[Value]) -> Value:
        """Record a product of rows with a stack of matrices: each row is multiplied with that of its expert."""
        rows, stack = inputs
        if rows.sources and stack.parameters:
            return self._weight(rows, stack, "conv", lambda shape: stack_shape(shape, not stack.transposed))
        return self.matrix_product(function, inputs)

    def _product(self, factors: Sequence[Value]) -> Value:
        """Record a product of features: the first one of an attention adds no node, the second one its node."""
        if any(factor.is_product for factor in factors):
            return self._append(Node("msa"), _sources(factors))
        return Value(_sources(factors), is_product=True)

    def _attention(self, function: Function, inputs: Sequence[Value]) -> Value:
        """Record an attention that is computed by a single function, as if its products were computed one by one."""
        query, key, value, *mask = inputs
        scores = self._product([self.as_features(query), self.as_features(key)])
        if mask and mask[0] != CONSTANT:
            scores = self.shift(function, [scores, mask[0]])
        return self._product([scores, self.as_features(value)])

    def norm(self, function: Function, inputs: Sequence[Value]) -> Value:
        """Record a norm with its affine parameters on one node: `bn` over the batch, `ln` within each image."""
        primitive = "bn" if "BatchNorm" in function.name() else "ln"
        x, *affine = inputs
        if not x.sources and x.parameters and not (primitive == "ln" and any(v.parameters for v in affine)):
            return _merged(inputs)  # the norm standardises a weight; one with a scale of its own is for features
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

    def shift(self, function: Function, inputs: Sequence[Value]) -> Value:
        """Record a sum or a difference."""
        features = [value for value in inputs if value.sources]
        parameters = [value for value in inputs if value.parameters]
        if len(features) == 1 and len(parameters) == 1:
            return self._shift(features[0], parameters[0])
        return self._join(inputs, "sum")

    def scale(self, function: Function, inputs: Sequence[Value]) -> Value:
        """Record a product or a quotient, element by element."""
        features = [value for value in inputs if value.sources]
        parameters = [value for value in inputs if value.parameters]
        if len(features) == 1 and parameters and all(map(is_vector, self._shapes(parameters[0]))):
            return self._vectors(features[0], parameters[0].parameters, "scale", "ln")
        return self._join(inputs, "cse")

    def scale_and_shift(self, function: Function, inputs: Sequence[Value]) -> Value:
        """Record `shift + left · right`, element by element."""
        shift, left, right = inputs
        return self.shift(function, [self.scale(function, [left, right]), shift])

    def _shapes(self, value: Value) -> list[Sizes]:
        """Return the shapes of a value's parameters."""
        return [self.shapes[name] for name in value.parameters]

    def concat(self, function: Function, inputs: Sequence[Value]) -> Value:
        """Record a concatenation."""
        return self._join(inputs, "concat")

    def _join(self, inputs: Sequence[Value], primitive: str) -> Value:
        """Record a primitive of several values: a node, if they are computed from different nodes."""
        if not any(value.sources for value in inputs):
            return _merged(inputs)
        features = [self._encoding(value) if value.parameters else value for value in inputs]
        different = {value.sources for value in features if value.sources}
        sources = _sources(features)
        is_product = any(value.is_product for value in features)
        if len(different) > 1 and len(sources) > 1:
            return self._append(Node(primitive), sources)._replace(is_product=is_product)
        return Value(sources, is_product=is_product)

    def pool(self, function: Function, inputs: Sequence[Value]) -> Value:
        """Record a pool with a kernel."""
        return self._pool("max_pool" if "Max" in function.name() else "avg_pool", kernel_size(function), inputs[0])

    def adaptive_pool(self, function: Function, inputs: Sequence[Value]) -> Value:
        """Record a pool to a size: an average is the global average pool, whatever the size, as published."""
        if "Avg" in function.name():
            return self._global_pool(inputs[0])
        kernel = [-(-before // after) for before, after in adaptive_pool_sizes(function)]
        return inputs[0] if all(size == 1 for size in kernel) else self._pool("max_pool", kernel, inputs[0])

    def _pool(self, primitive: str, kernel: Sequence[int], x: Value) -> Value:
        """Record a pool of the last two axes of its kernel; a pool of anything but features adds no node."""
        if not x.sources:
            return x
        kh, kw = (*kernel, 1)[:2] if len(kernel) < 3 else kernel[-2:]
        return self._append(Node(primitive, (1, 1, kh, kw)), self.as_features(x).sources)

    def mean(self, function: Function, inputs: Sequence[Value]) -> Value:
        """Record a mean: over all positions the global average pool, otherwise a statistic, which is no node."""
        (x,) = inputs
        axes = mean_axes(function)
        if x.sources and axes is not None and axes.over in GLOBAL_POOLS.get(axes.total, ()):
            return self._global_pool(x)
        return x

    def _global_pool(self, x: Value) -> Value:
        """Add a node of the global average pool; return its value."""
        return self._append(Node("glob_avg"), self.as_features(x).sources)

    def transpose(self, function: Function, inputs: Sequence[Value]) -> Value:
        """Record a transposition or permutation, which matters for parameters alone."""
        (x,) = inputs
        if not x.parameters or not exchanges_last_axes(function):
            return x
        return x._replace(transposed=not x.transposed)

    def prelu(self, function: Function, inputs: Sequence[Value]) -> Value:
        """Record a PReLU, whose slopes count as a bias: one number a channel."""
        x, slope = inputs
        return self._shift(x, slope)

    def threshold(self, function: Function, inputs: Sequence[Value]) -> Value:
        """Record the larger or the smaller of two values; thresholds of channels count as a bias, as slopes do."""
        return self.shift(function, inputs)

    def _unknown(self, name: str, inputs: Sequence[Value]) -> Value:
        """Record a function without a rule: edges pass through it, and several inputs become a sum."""
        if not any(value.sources for value in inputs):
            return _merged(inputs)
        for value in inputs:
            for parameter in self._unplaced(value.parameters):
                self.not_predicted[parameter] = f"it meets the features in {name}, which has no primitive"
        return self._join([value._replace(parameters=()) for value in inputs], "sum")


def _sources(values: Iterable[Value]) -> tuple[int, ...]:
    """Return the sources of all values, each once."""
    return tuple(dict.fromkeys(source for value in values for source in value.sources))


def _merged(values: Sequence[Value]) -> Value:
    """Return one value for several values that are combined before they meet the features."""
    names = tuple(dict.fromkeys(name for value in values for name in value.parameters))
    transposed = next((value.transposed for value in values if value.parameters), False)
    return Value(_sources(values), names, transposed)


GLOBAL_POOLS: dict[int, tuple[set[int], ...]] = {
    3: ({1},),  # tokens (B, T, C)
    4: ({2, 3}, {1, 2}),  # maps (B, C, Y, X), or with the channels last
    5: ({2, 3, 4}, {1, 2, 3}),
}
"""Axes of positions, by the number of axes of a tensor: a mean over exactly these is the global average pool.

Letters: B images, T tokens, C channels, Y×X pixels.
"""

Rule = Callable[[GraphRecorder, Function, Sequence[Value]], Value]
"""A method that records a function of the given inputs and returns the value of its result."""

RULES: dict[str, Rule] = {
    "Convolution": GraphRecorder.convolution,
    "Embedding": GraphRecorder.lookup,
    "EmbeddingBag": GraphRecorder.lookup,
    "Addmm": GraphRecorder.matrix_product,
    "Baddbmm": GraphRecorder.matrix_product,
    "Bmm": GraphRecorder.matrix_product,
    "GroupedMm": GraphRecorder.grouped_product,
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
    "Maximum": GraphRecorder.threshold,
    "Minimum": GraphRecorder.threshold,
}
"""Rules by the name of an operation (`operation_name`); `GraphRecorder._unknown` records all others."""
