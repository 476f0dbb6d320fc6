"""Tracing: the graph of any `nn.Module`, from one forward pass that computes nothing.

The network runs without numbers (`ghn.tracing.without_numbers`): features and parameters have shapes alone. So a trace
takes milliseconds and no memory, however large the network is. Autograd records the functions, and
`ghn.tracing.recorder` turns them into primitives. A network that needs the numbers of its features (a branch on a
value) runs on the CPU instead, with the same result. Inputs that are no features, such as tokens and masks, keep their
numbers. Afterwards the network is as it was before.

Inputs have any number of axes here, so their names have no dimension suffixes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, ValuesView
from contextlib import nullcontext, suppress
from itertools import chain
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ghn.networks.graph import Graph
from ghn.networks.module import ProgramModule
from ghn.tracing.autograd_functions import Function, call_order, inputs_of, leaf_of
from ghn.tracing.eager import eager, uncompiled, without_autocast
from ghn.tracing.placeholders import placeholders
from ghn.tracing.recorder import CONSTANT, GraphRecorder, Value
from ghn.tracing.without_numbers import NotesUse, WithoutNumbers

CANDIDATE_IMAGE_SIZES = (224, 32, 28, 64, 96, 128, 160, 192, 256, 288, 299, 320, 384, 448, 512)
"""Sides of images, in pixels, that are tried in this order on a network that does not say which images it takes."""

TRACED_IMAGES = 2
"""Images in the traced batch: norms with batch statistics need more than one."""

CPU_ATTEMPTS = 3
"""Most inputs that are tried on the CPU, where a forward pass takes as long as the network does."""


class TracingError(ValueError):
    """A network that cannot be run or has an output without parameters; the message says what was tried."""


Inputs = Tensor | Sequence[Tensor] | Mapping[str, Any]
"""What a network is called with: a tensor, several tensors in order, or values by the names of its arguments."""


def trace(model: nn.Module, inputs: Inputs | None = None, image_size: int | None = None) -> Graph:
    """Return the graph of a network in evaluation mode.

    Each parameter of `model.named_parameters()` is on exactly one node, or in the graph's `not_predicted`. A language
    model of the design space `gpt` knows its own graph: nothing is traced.

    Args:
        inputs: what the network is called with: a tensor, tensors in order, or a mapping of keyword arguments, such as
            `{"input_ids": ids, "attention_mask": mask}`. By default images with as many channels as its first layer
            takes, or the `dummy_inputs` of a network of transformers that reads tokens.
        image_size: side of those images, in pixels; by default what the network says (`image_size`, or timm's
            `default_cfg`), otherwise the first of `CANDIDATE_IMAGE_SIZES` with which the network runs.

    Raises:
        TracingError: the network does not run on these inputs, or no output depends on a parameter.
    """
    if any(isinstance(p, nn.UninitializedParameter) for p in model.parameters()):
        raise TracingError("the network has lazy layers: run it once on an image before it is traced")
    if any(isinstance(layer, torch.jit.ScriptModule) for layer in model.modules()):
        raise TracingError("the network is scripted, or a part of it: give the module that it was made from")
    model = uncompiled(model)
    if isinstance(model, ProgramModule) and model.program.reads_text:
        return model.program.graph
    is_given = inputs is not None
    if inputs is None and getattr(model, "main_input_name", None) == "input_ids":
        inputs = cast("Inputs | None", getattr(model, "dummy_inputs", None))
    calls = [Call([images]) for images in _images(model, image_size)] if inputs is None else [call_of(inputs)]
    errors: list[Exception] = []
    own_errors: list[Exception] = []  # of the network itself, which has numbers
    for attempt in _attempts(model, calls):
        try:
            run = _record(model, attempt)
        except Exception as failure:  # a network may fail in any way on images of a size that is not its own
            (own_errors if attempt.has_numbers else errors).append(failure)
        else:
            return _graph_of(run)
    errors = own_errors or errors
    raise TracingError(_what_failed(model, calls, is_given, image_size, errors)) from errors[0]


def _what_failed(
    model: nn.Module, calls: Sequence[Call], is_given: bool, image_size: int | None, errors: Sequence[Exception]
) -> str:
    """Return what was tried, why it failed, and what helps."""
    tried = [str(tuple(tensor.shape)) for call in calls for tensor in call.tensors]
    shapes = ", ".join(tried[:3]) + (f" or {len(tried) - 3} others" if len(tried) > 3 else "")
    reasons = [f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}" for error in errors]
    message = f"{type(model).__name__} does not run on inputs of {shapes} ({reasons[0]})"
    if is_given:
        return message
    if image_size is None:
        depends_on_size = len(set(reasons)) > 1
        return message + (": give `inputs` or `image_size`" if depends_on_size else ": give its `inputs`")
    side = _side_that_works(model)
    return message + (": give its `inputs`" if side is None else f": it does with image_size={side}")


def _side_that_works(model: nn.Module) -> int | None:
    """Return the first side of images, in pixels, on which a network runs without numbers; None if there is none."""
    for attempt in _attempts(model, [Call([images]) for images in _images(model, None)]):
        (images,) = attempt.call.tensors
        if attempt.has_numbers or images.dim() < 4:
            continue
        with suppress(Exception):  # as in `trace`
            _record(model, attempt)
            return images.shape[-1]
    return None


class Call(NamedTuple):
    """The arguments that a network is called with; some of them are tensors."""

    arguments: Sequence[Any] = ()
    keywords: Mapping[str, Any] = {}

    @property
    def tensors(self) -> list[Tensor]:
        """All arguments that are tensors, in their order."""
        return [value for value in (*self.arguments, *self.keywords.values()) if isinstance(value, Tensor)]

    def map(self, change: Callable[[Tensor], Tensor]) -> Call:
        """Return the same arguments with each tensor changed."""

        def changed(value: Any) -> Any:
            return change(value) if isinstance(value, Tensor) else value

        return Call(list(map(changed, self.arguments)), {key: changed(value) for key, value in self.keywords.items()})


def call_of(inputs: Inputs) -> Call:
    """Return the call of a network that a user gives as `inputs`.

    Raises:
        TracingError: they are of another kind.
    """
    if isinstance(inputs, Tensor):
        return Call([inputs])
    if isinstance(inputs, Mapping) and all(isinstance(name, str) for name in inputs):
        return Call([], dict(inputs))
    if isinstance(inputs, Sequence) and all(isinstance(value, Tensor) for value in inputs):
        return Call(list(inputs))
    raise TracingError("inputs must be a tensor, a sequence of tensors, or a mapping of keyword arguments")


class Attempt(NamedTuple):
    """One way to run a network."""

    call: Call
    mode: NotesUse
    """The context that it runs in: without numbers, or on the CPU with numbers."""

    @property
    def has_numbers(self) -> bool:
        """Whether it runs on the CPU with numbers."""
        return not isinstance(self.mode, WithoutNumbers)


def _attempts(model: nn.Module, calls: Sequence[Call]) -> Iterator[Attempt]:
    """Yield ways to run a network: first without numbers, then some calls on the CPU.

    A network that is on the meta device itself has no numbers and is not tried on the CPU.
    """
    parameters = list(model.parameters())
    device = parameters[0].device if parameters else torch.device("cpu")
    following = [
        Attempt(
            call.map(lambda tensor: _without_features(tensor, device)), WithoutNumbers(device, follows_detached=True)
        )
        for call in calls
    ]
    yield from following
    for call, mode in following:  # some networks write into their parameters under `no_grad`
        if isinstance(mode, WithoutNumbers) and mode.has_followed:
            yield Attempt(call, WithoutNumbers(device, follows_detached=False))
    if not any(p.is_meta for p in parameters):
        for call in calls[:CPU_ATTEMPTS]:
            yield Attempt(call.map(_with_numbers), NotesUse())


def _without_features(tensor: Tensor, device: torch.device) -> Tensor:
    """Return an input without numbers; tokens, masks and positions keep theirs, on the network's device."""
    is_feature = tensor.is_floating_point() or tensor.is_complex()
    return tensor.to("meta" if is_feature else device)


def _with_numbers(tensor: Tensor) -> Tensor:
    """Return an input on the CPU; one without numbers is zero everywhere."""
    return torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor.cpu()


def _images(model: nn.Module, image_size: int | None) -> list[Tensor]:
    """Return batches of images on the meta device that the network may take, the most likely first."""
    dtype = image_dtype(model)
    declared = declared_shape(model)
    shapes: list[tuple[int, ...]] = []
    sides: Sequence[int] = CANDIDATE_IMAGE_SIZES
    if image_size is not None:
        sides = (image_size,)
    elif declared is not None:
        shapes, sides = [declared], (declared[-1], *sides)
    shapes += [_shape_for(model, side) for side in sides] + [(3, side, side) for side in sides]
    return [torch.empty(TRACED_IMAGES, *shape, dtype=dtype, device="meta") for shape in dict.fromkeys(shapes)]


def declared_shape(model: nn.Module) -> tuple[int, ...] | None:
    """Return the shape of the images that a network says that it takes: (channels, height, width)."""
    for name in ("pretrained_cfg", "default_cfg"):
        settings = getattr(model, name, None)
        if isinstance(settings, Mapping) and settings.get("input_size"):
            return tuple(settings["input_size"])
    size = getattr(model, "image_size", None)
    return (3, size, size) if isinstance(size, int) else None


def image_dtype(model: nn.Module) -> torch.dtype:
    """Return the number type of the images that a network takes: that of the first layer with weights."""
    weights = (layer.weight for layer in model.modules() if isinstance(layer, LAYERS))
    return next((p.dtype for p in chain(weights, model.parameters()) if p.is_floating_point()), torch.float32)


LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""Layers that images may come into."""


def _shape_for(model: nn.Module, size: int) -> tuple[int, ...]:
    """Return the shape of an image with sides of `size` pixels and the channels of the first layer with weights."""
    first = next((layer for layer in model.modules() if isinstance(layer, LAYERS)), None)
    if first is None:
        return 3, size, size
    if isinstance(first, nn.Linear):
        return (first.in_features,)
    sides = {nn.Conv1d: (size,), nn.Conv2d: (size, size), nn.Conv3d: (16, size, size)}
    return first.in_channels, *next(side for kind, side in sides.items() if isinstance(first, kind))


class Recording(NamedTuple):
    """A recorded forward pass."""

    parameters: Mapping[str, Tensor]
    """Placeholders of the parameters by name."""
    originals: Mapping[str, Tensor]
    """The network's own parameters by name."""
    inputs: Sequence[Tensor]
    """Leaf tensors that the inputs were made from."""
    outputs: Sequence[Tensor]
    """All tensors that the network returned."""
    classes: int | None
    """The number of classes that the network says that it has; 0: it does not classify; None: it says nothing."""
    used: set[int]
    """The ids of the placeholders that a function was called with."""
    has_numbers: bool
    """Whether the network ran with numbers, so that it may have done what it does not do with others."""


def _record(model: nn.Module, attempt: Attempt) -> Recording:
    """Run the network once with placeholders; return what autograd has recorded."""
    with torch.inference_mode(False), torch.enable_grad(), without_autocast(), eager():
        leaves = attempt.call.map(lambda tensor: tensor.detach().clone().requires_grad_(tensor.is_floating_point()))
        originals = dict(model.named_parameters())
        call = leaves.map(Tensor.clone)  # a network may write into its inputs
        device = torch.device("cpu") if attempt.has_numbers else nullcontext()
        with placeholders(model, originals, not attempt.has_numbers) as parameters, device, attempt.mode as mode:
            mode.in_place_of = {id(originals[name]): placeholder for name, placeholder in parameters.items()}
            outputs = list(_tensors(model(*call.arguments, **call.keywords)))
    used, classes = mode.used, declared_classes(model)
    return Recording(parameters, originals, leaves.tensors, outputs, classes, used, attempt.has_numbers)


def declared_classes(model: nn.Module) -> int | None:
    """Return how many classes a network says that it has: 0 if it says that it does not classify, None if nothing."""
    for holder, name in ((model, "num_classes"), (getattr(model, "config", None), "num_labels")):
        classes = getattr(holder, name, None)
        if type(classes) is int and classes >= 0:
            return classes
    return None


def _graph_of(run: Recording) -> Graph:
    """Return the graph of a recorded forward pass.

    Raises:
        TracingError: no output depends on the input or a parameter.
    """
    outputs = [tensor for tensor in run.outputs if tensor.grad_fn is not None]
    if not outputs:
        raise TracingError("no output of the network depends on its input or its parameters")
    recorder = GraphRecorder({name: tuple(p.shape) for name, p in run.parameters.items()})
    for name, parameter in run.parameters.items():
        if not parameter.is_floating_point():
            recorder.not_predicted[name] = f"its elements are {parameter.dtype}, not real numbers"
        elif not parameter.numel():
            recorder.not_predicted[name] = "it has no elements"
    values: dict[int, Value] = {id(t): recorder.image() for t in run.inputs if t.requires_grad}
    for parameters in (run.originals, run.parameters):  # a network may also keep the originals elsewhere
        values |= {id(p): recorder.parameter(name) for name, p in parameters.items()}
    ends = _replay(recorder, [tensor.grad_fn for tensor in outputs if tensor.grad_fn is not None], values)
    images = len(run.inputs[0]) if run.inputs and run.inputs[0].dim() else 1
    may_be_logits = [_may_be_logits(tensor, images, run.classes) for tensor in outputs]
    not_routed = [name for name in run.parameters if run.has_numbers and not _is_used(run, name)]
    return recorder.finish(list(zip(ends, may_be_logits, strict=True)), not_routed, lambda name: _why_lost(run, name))


def _is_used(run: Recording, name: str) -> bool:
    """Return whether a function was called with a parameter."""
    return id(run.parameters[name]) in run.used


def _why_lost(run: Recording, name: str) -> str:
    """Return why a parameter is on no node, as far as the recording shows."""
    if _is_used(run, name):
        return "it is used, but no gradients flow to it from the output"
    if run.has_numbers:
        return "it was not used with the inputs of the trace"
    return "the output does not depend on it in evaluation mode"


def _may_be_logits(output: Tensor, images: int, classes: int | None) -> bool:
    """Return whether an output may be the logits (B, classes) of B images."""
    return output.dim() == 2 and len(output) == images and classes in (None, output.shape[1])


def _replay(recorder: GraphRecorder, ends: Sequence[Function], leaves: Mapping[int, Value]) -> list[Value]:
    """Apply the recorder to all functions that lead to `ends`, in the order of their calls; return the ends' values.

    Args:
        leaves: values of inputs and parameters, by the id of the tensor.
    """
    functions: dict[Function, list[Function | None]] = {}
    waiting = list(ends)
    while waiting:
        function = waiting.pop()
        if function not in functions:
            functions[function] = inputs_of(function)
            waiting += [source for source in functions[function] if source is not None]
    values: dict[Function | None, Value] = {None: CONSTANT}

    def value_of(function: Function | None) -> Value:
        if function is not None and function not in values:
            inputs = [value_of(source) for source in functions[function]]
            leaf = leaf_of(function)
            values[function] = recorder.apply(function, inputs) if leaf is None else leaves.get(id(leaf), CONSTANT)
        return values[function]

    for function in sorted(functions, key=call_order):
        value_of(function)
    return [value_of(function) for function in ends]


def _tensors(outputs: Any) -> Iterator[Tensor]:
    """Yield all tensors in the outputs of a network.

    They may be nested in lists, mappings, dataclasses, distributions and other objects.
    """
    waiting, seen = [outputs], set[int]()
    while waiting:
        found = waiting.pop()
        if isinstance(found, Tensor):
            yield found
        if isinstance(found, (Tensor, nn.Module, type)) or id(found) in seen:
            continue
        seen.add(id(found))
        inner: Iterable[Any] = ()
        if isinstance(found, Mapping):
            inner = found.values()
        elif isinstance(found, (list, tuple, set, frozenset, ValuesView)):
            inner = found
        else:
            inner = getattr(found, "__dict__", {}).values()
        waiting += reversed(list(inner))
