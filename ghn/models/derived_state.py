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
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm as SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm as SpectralNormHook

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
            if parametrize.is_parametrized(layer):
                _assign_through_inverse(layer, predicted, f"{name}." if name else "")
        _refresh_spectral_norms(model)


def _assign_through_inverse(layer: nn.Module, predicted: Mapping[str, Tensor], prefix: str) -> None:
    """Give parametrised tensors the values that are predicted for the parameters that they are made of.

    Where a parametrisation has no inverse, or none for these values, its parameters keep what is predicted for them.
    """
    for tensor_name, parametrisations in layer.parametrizations.items():  # type: ignore[union-attr, operator]
        shape = getattr(layer, tensor_name).shape
        originals = [name for name, _ in parametrisations.named_parameters(recurse=False)]
        names = [f"{prefix}parametrizations.{tensor_name}.{name}" for name in originals]
        values = [predicted[name] for name in names if name in predicted and predicted[name].shape == shape]
        if values:
            with suppress(RuntimeError, NotImplementedError, ValueError):
                setattr(layer, tensor_name, values[0].to(getattr(layer, tensor_name), copy=True))


def _refresh_spectral_norms(model: nn.Module) -> None:
    """Let the singular vectors of spectrally normalised weights follow the weights."""
    for layer in model.modules():
        for hook in layer._forward_pre_hooks.values():
            if isinstance(hook, SpectralNormHook):
                for _ in range(POWER_ITERATIONS):
                    weight = hook.compute_weight(layer, do_power_iteration=True)
                setattr(layer, hook.name, weight.detach())
        if not parametrize.is_parametrized(layer):
            continue
        for tensor_name, parametrisations in layer.parametrizations.items():  # type: ignore[union-attr, operator]
            norms = [one for one in parametrisations if isinstance(one, SpectralNorm)]
            modes = [norm.training for norm in norms]
            for norm in norms:
                norm.training = True  # in which it iterates each time that the weight is read
            for _ in range(POWER_ITERATIONS if norms else 0):
                getattr(layer, tensor_name)
            for norm, training in zip(norms, modes, strict=True):
                norm.training = training


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
    layers = {name: layer for name, layer in layers.items() if _has_statistics(layer)}
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
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, BatchNorm) or (isinstance(layer, NormBase) and _has_statistics(layer))
    }
    frozen = _frozen_norms(model)
    observers = _reset_observers(model)
    with _estimating(model, list(layers.values())), _following(frozen.values()), torch.no_grad():
        for batch in batches:
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


def _has_statistics(layer: NormBase) -> bool:
    return layer.running_mean is not None


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
        axes = [axis for axis in range(x.dim()) if axis != 1]
        self.batches += 1
        for kept, found in zip(_statistics(layer), (x.mean(axes), x.var(axes)), strict=True):
            kept.lerp_(found.view(kept.shape).to(kept), 1 / self.batches)


@contextmanager
def _estimating(model: nn.Module, layers: Sequence[NormBase]) -> Iterator[None]:
    """Let norm layers gather statistics, with equal weight for each batch, and all else be in evaluation mode.

    Afterwards modes and momenta are as they were.
    """
    modes = [(module, module.training) for module in model.modules()]
    momenta = [layer.momentum for layer in layers]
    model.eval()
    for layer in layers:
        if not _has_statistics(layer):
            _give_statistics(layer)
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


def _give_statistics(layer: NormBase) -> None:
    """Give running statistics to a norm layer that has none."""
    reference = layer.weight if layer.weight is not None else torch.empty(0)
    layer.track_running_stats = True
    layer.running_mean = torch.zeros(layer.num_features, device=reference.device, dtype=reference.dtype)
    layer.running_var = torch.ones(layer.num_features, device=reference.device, dtype=reference.dtype)
    layer.num_batches_tracked = torch.zeros((), dtype=torch.long, device=reference.device)
