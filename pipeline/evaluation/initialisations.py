"""How a network gets the parameters that it starts with, by name.

An initialisation is a function from a network to tensors by parameter name. The parameters that it does not return
stay in PyTorch's default initialisation. Stage finetune measures every entry of `INITIALISATIONS`, and stage evaluate
every one that is not for training alone. A new entry appears in their tables, in the report and in MLflow without
another change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ghn.models.hypernetwork import Hypernetwork
from ghn.networks.network import Network
from pipeline.evaluation import post_processing
from pipeline.evaluation.networks import fresh_module


@dataclass(frozen=True)
class InitialisationContext:
    """The inputs of an initialisation beside the network.

    `ghn` is in evaluation mode on the device on which it predicts. `image_size` is in pixels. `seed` is that of the
    network: PyTorch's default initialisation is a function of it, and so is every random number of an initialisation.
    """

    ghn: Hypernetwork
    image_size: int
    classes: int
    seed: int


@dataclass(frozen=True)
class Initialisation:
    """A way to initialise networks.

    `label` names it in sentences and legends. `tensors` returns the tensors of a network by parameter name, all of
    them or some; they may lie on any device. Ray sends it to processes that have not registered anything.
    `is_evaluated` says whether stage evaluate measures it too, without any training of the networks.
    """

    label: str
    tensors: Callable[[Network, InitialisationContext], Mapping[str, Tensor]]
    is_evaluated: bool = True


def predicted_tensors(network: Network, context: InitialisationContext) -> Mapping[str, Tensor]:
    """Return all parameters, as the hypernetwork predicts them.

    The network is predicted alone, so that no other network can change the last digits.
    """
    (parameters,) = context.ghn.predict_parameters([network], context.image_size, context.classes)
    return parameters


def no_tensors(network: Network, context: InitialisationContext) -> Mapping[str, Tensor]:
    """Return no parameter: all of them stay in PyTorch's default initialisation."""
    return {}


def orthogonalised_tensors(network: Network, context: InitialisationContext) -> Mapping[str, Tensor]:
    """Return predicted parameters with orthogonal rows: see `post_processing.orthogonalised`."""
    return post_processing.orthogonalised(predicted_tensors(network, context))


INITIALISATIONS: dict[str, Initialisation] = {
    "predicted": Initialisation("predicted parameters", predicted_tensors),
    "random": Initialisation("random initialisation", no_tensors),
    "predicted_orthogonal": Initialisation("predicted, orthogonalised", orthogonalised_tensors, is_evaluated=False),
}
"""The initialisations that are measured, in the order of tables and legends. Names become parts of column names."""


HEADLINE = "predicted"
"""The initialisation whose figures head the report and the list of runs."""

BASELINE = "random"
"""The initialisation that all others are compared with."""


def evaluated_initialisations() -> dict[str, Initialisation]:
    """Return the registered initialisations that stage evaluate measures."""
    return {name: initialisation for name, initialisation in INITIALISATIONS.items() if initialisation.is_evaluated}


@torch.no_grad()
def initial_tensors(
    initialisation: Initialisation, network: Network, context: InitialisationContext
) -> dict[str, Tensor]:
    """Return what an initialisation returns for a network; its random numbers are a function of the context's seed.

    Raises:
        ValueError: the network has no parameter of a returned name.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        tensors = dict(initialisation.tensors(network, context))
    known = {parameter.name for parameter in network.program(context.image_size, context.classes).parameters()}
    if unknown := sorted(tensors.keys() - known):
        raise ValueError(f"{initialisation.label}: the network has no parameter {unknown[0]}")
    return tensors


def initialised_module(initialisation: Initialisation, network: Network, context: InitialisationContext) -> nn.Module:
    """Return the network in an initialisation, to classify with: its tensors may share memory with each other.

    The tensors become the parameters. A copy would need more memory; and its layout in memory may be another one,
    which changes the last digits of the logits.
    """
    tensors = initial_tensors(initialisation, network, context)
    if len(tensors) == len(list(network.program(context.image_size, context.classes).parameters())):
        with torch.device("meta"):  # all parameters are replaced, so they need neither memory nor values
            module = network.module(context.image_size, context.classes)
    else:
        module = fresh_module(network, context.image_size, context.classes, context.seed)
    module.load_state_dict(tensors, strict=False, assign=True)
    return module


def load_body(
    module: nn.Module, initialisation: Initialisation, network: Network, context: InitialisationContext
) -> None:
    """Copy the tensors of an initialisation into the network's module, all but those of the classification layer.

    The module may have another number of classes than `context.classes`.
    """
    tensors = initial_tensors(initialisation, network, context)
    *_, class_layer = network.program(context.image_size, context.classes).operations
    body = tensors.keys() - {parameter.name for parameter in class_layer.parameters}
    module.load_state_dict({name: tensors[name] for name in body}, strict=False)
