"""State of a network that was derived from its old parameters, or from activations under them.

What a network keeps besides its parameters may belong to the ones that were overwritten: the running statistics of
norms, the singular vectors of spectral norms, the ranges of quantisers. It is dropped, computed again, or made neutral.

Dimensions: B images, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.modules.batchnorm import _NormBase as NormBase
from torch.nn.modules.instancenorm import _InstanceNorm as InstanceNorm
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm as SpectralNorm
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm as SpectralNormHook
from torch.nn.utils.weight_norm import WeightNorm as WeightNormHook

from ghn.networks.running_statistics import gathering_statistics, has_statistics
from ghn.tracing.placeholders import forget_cached_properties
from ghn.tracing.snapshot import unchanged

POWER_ITERATIONS = 50
"""Power iterations after which the largest singular value of new weights is right to a percent or two."""


# Parameters and what is computed from them


def assign(model: nn.Module, predicted: Mapping[str, Tensor]) -> None:
    """Overwrite parameters of a network, in place.

    A parametrised tensor gets what is predicted as its value, through the `right_inverse` of its parametrisations, if
    they have one. Rows of embeddings that stand for padding keep their values. Spectral norms are computed again.

    Args:
        predicted: by name.
    """
    parameters = dict(model.named_parameters())
    padding = {
        id(layer.weight): layer.padding_idx
        for layer in model.modules()
        if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)) and layer.padding_idx is not None
    }
    with torch.no_grad():
        for name, tensor in predicted.items():
            parameter = parameters[name]
            row = padding.get(id(parameter))
            kept = None if row is None else parameter[row].clone()
            parameter.copy_(tensor)
            if kept is not None:
                parameter[row] = kept
        for name, layer in model.named_modules():
            forget_cached_properties(layer)
            _refresh_hooks(layer)
            if parametrize.is_parametrized(layer):
                for tensor_name, parametrisations in layer.parametrizations.items():
                    prefix = f"{name}.parametrizations.{tensor_name}.".removeprefix(".")
                    values = [
                        predicted[prefix + original]
                        for original, _ in parametrisations.named_parameters(recurse=False)
                        if prefix + original in predicted
                    ]
                    _assign_through_inverse(layer, tensor_name, values)
                    _refresh_spectral_norms(layer, tensor_name, parametrisations)
        _drop_cached(model)


def has_derived_tensors(model: nn.Module) -> bool:
    """Return whether a network computes weights from parameters: with parametrisations, or in hooks."""
    return any(parametrize.is_parametrized(layer) or layer._forward_pre_hooks for layer in model.modules())


def _assign_through_inverse(layer: nn.Module, tensor_name: str, predicted: Sequence[Tensor]) -> None:
    """Give a parametrised tensor the value that is predicted for one of the parameters that it is made of.

    Where a parametrisation has no inverse, or none for this value, its parameters keep what is predicted for them.
    """
    before = getattr(layer, tensor_name)
    values = [tensor for tensor in predicted if tensor.shape == before.shape]
    if values:
        with suppress(RuntimeError, NotImplementedError, ValueError):
            setattr(layer, tensor_name, values[0].to(before, copy=True))


def _refresh_spectral_norms(layer: nn.Module, tensor_name: str, parametrisations: Iterable[nn.Module]) -> None:
    """Let the singular vectors of a spectrally normalised weight follow the weight."""
    norms = [one for one in parametrisations if isinstance(one, SpectralNorm)]
    modes = [norm.training for norm in norms]
    for norm in norms:
        norm.training = True  # in which it iterates each time that the weight is read
    for _ in range(POWER_ITERATIONS if norms else 0):
        getattr(layer, tensor_name)
    for norm, training in zip(norms, modes, strict=True):
        norm.training = training


def _refresh_hooks(layer: nn.Module) -> None:
    """Compute the weight again that a hook computes before each forward pass."""
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, SpectralNormHook):
            for _ in range(POWER_ITERATIONS):
                weight = hook.compute_weight(layer, do_power_iteration=True)
            setattr(layer, hook.name, weight.detach())
        elif isinstance(hook, (WeightNormHook, BasePruningMethod)):
            hook(layer, ())


def _drop_cached(model: nn.Module) -> None:
    """Let layers drop what they have computed from their parameters for evaluation, as they do when they are trained.

    Afterwards each layer is in the mode that it was in.
    """
    modes = [(layer, layer.training) for layer in model.modules()]
    if all(training or type(layer).train is nn.Module.train for layer, training in modes):
        return
    model.train()
    for layer, training in modes:  # parents first, because they change the modes of their parts
        layer.train(training)


# Statistics of activations


_NO_CODE = (lambda: None).__code__


@dataclass(frozen=True)
class StatisticsReport:
    """What became of the statistics that layers kept of activations, by the layers' names."""

    of_batch: tuple[str, ...] = ()
    """Norm layers that now normalise with the statistics of each batch, in evaluation mode too."""
    estimated: tuple[str, ...] = ()
    """Layers whose statistics were estimated from images."""
    neutral: tuple[str, ...] = ()
    """Layers that cannot do without statistics, whose mean is now 0 and whose variance 1."""
    reset: tuple[str, ...] = ()
    """Observers of quantisation-aware training whose ranges are forgotten: they find new ones when the network runs."""


def drop_statistics(model: nn.Module, runs: Callable[[], bool] | None = None) -> StatisticsReport:
    """Make norm layers with running statistics drop them and normalise with those of each batch.

    Predicted networks are evaluated so in the literature, because running statistics belong to other parameters.
    Layers that would not run without statistics get neutral ones.

    Args:
        runs: returns whether the network runs; None: it does.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, NormBase)}
    layers = {name: layer for name, layer in layers.items() if has_statistics(layer)}
    kept = {name: (layer.running_mean, layer.running_var, layer.num_batches_tracked) for name, layer in layers.items()}
    for layer in layers.values():
        layer.track_running_stats = False
        layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    neutral = [*_frozen_norms(model)]
    if runs is not None and _reads_statistics(model) and not runs():
        for name, layer in layers.items():
            layer.track_running_stats = True
            layer.running_mean, layer.running_var, layer.num_batches_tracked = kept[name]
        neutral += layers
        layers = {}
    for name in neutral:
        _make_neutral(model.get_submodule(name))
    return StatisticsReport(of_batch=tuple(layers), neutral=tuple(neutral), reset=_reset_observers(model))


def measure_statistics(model: nn.Module, batches: Iterable[Tensor]) -> StatisticsReport:
    """Replace the statistics that layers keep of activations by their means over batches of images.

    Norm layers of PyTorch that have none get some.

    Args:
        batches: images (B, C, S, S).
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, BatchNorm)}
    frozen = _frozen_norms(model) | {
        name: layer
        for name, layer in model.named_modules()  # which cannot take the mean over batches
        if isinstance(layer, InstanceNorm) and has_statistics(layer)
    }
    observers = _reset_observers(model)
    measured = [*layers.values(), *frozen.values(), *_quantisers(model, observers)]
    with (
        gathering_statistics(model, list(layers.values())),
        _following(frozen.values()),
        _as_before_but_for(measured, model),
        torch.no_grad(),
    ):
        for batch in batches:
            with unchanged([model, torch.default_generator]):
                model(batch)
    return StatisticsReport(estimated=(*layers, *frozen), reset=observers)


def _reads_statistics(model: nn.Module) -> bool:
    """Return whether the code of a layer that is no norm names the statistics of norms."""
    kinds = {type(layer) for layer in model.modules() if not isinstance(layer, NormBase)}
    return any(
        "running_var" in getattr(function, "__code__", _NO_CODE).co_names
        for kind in kinds
        for base in kind.__mro__
        for function in vars(base).values()
    )


def _frozen_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Return the norm layers that are none of PyTorch's and keep a running mean and variance, by name."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if not isinstance(layer, NormBase)
        and isinstance(getattr(layer, "running_mean", None), Tensor)
        and isinstance(getattr(layer, "running_var", None), Tensor)
    }


@torch.no_grad()
def _make_neutral(layer: nn.Module) -> None:
    mean, variance = _statistics(layer)
    mean.zero_()
    variance.fill_(1)


def _statistics(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the running mean and variance of a norm layer."""
    mean, variance = layer.running_mean, layer.running_var
    assert isinstance(mean, Tensor) and isinstance(variance, Tensor)
    return mean, variance


def _reset_observers(model: nn.Module) -> tuple[str, ...]:
    """Let the observers of quantisation-aware training forget their ranges; return their names."""
    names = []
    for name, layer in model.named_modules():
        forget = getattr(layer, "reset_min_max_vals", None)
        if callable(forget) and isinstance(getattr(layer, "min_val", None), Tensor):
            forget()
            names.append(name)
    return tuple(names)


def _quantisers(model: nn.Module, observers: Iterable[str]) -> list[nn.Module]:
    """Return the observers of quantisation-aware training and the modules that quantise with what they find."""
    names = {name.rpartition(".")[0] for name in observers}.union(observers)
    return [model.get_submodule(name) for name in names]


@contextmanager
def _as_before_but_for(layers: Iterable[nn.Module], model: nn.Module) -> Iterator[None]:
    """Give the buffers of a network their values back when the context ends, except those of some layers."""
    measured = {id(buffer) for layer in layers for buffer in layer.buffers(recurse=False)}
    kept = [(buffer, buffer.clone()) for buffer in model.buffers() if id(buffer) not in measured]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in kept:
                buffer.copy_(before)


@contextmanager
def _following(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Let norm layers that never change their statistics take the mean over the batches that they see."""
    handles = [layer.register_forward_pre_hook(_MeanOverBatches()) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _MeanOverBatches:
    """A hook that gives a layer the mean and the variance of each channel of its input, over the batches so far."""

    def __init__(self) -> None:
        self.batches = 0

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach().float()
        if isinstance(layer, InstanceNorm):
            x = x if x.dim() > layer._get_no_batch_dim() else x[None]  # type: ignore[no-untyped-call]
            mean, variance = x.flatten(2).mean((0, 2)), x.flatten(2).var(2).mean(0)  # variance within each image
        else:
            axes = [axis for axis in range(x.dim()) if axis != 1]
            mean, variance = x.mean(axes), x.var(axes)
        self.batches += 1
        for kept, found in zip(_statistics(layer), (mean, variance), strict=True):
            kept.lerp_(found.view(kept.shape).to(kept), 1 / self.batches)
