"""What holds for every network that is predicted, checked on compositions of awkward parts.

More examples than in CI, without the limit of time: `EXAMPLES=20000 python -m pytest --timeout 0 -k any_composition`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from contextlib import suppress
from typing import Any

import pytest
import torch
from awkward_networks import state
from awkward_networks.base import HEADS, PARTS, SIDE, WRAPPERS
from awkward_networks.compositions import Composition, Observer, compositions
from awkward_networks.heads import Output
from examples import tiny_ghn
from fingerprint import Fingerprint
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn

from ghn import PredictionReport, TracingError, trace
from ghn.tracing.eager import uncompiled

EXAMPLES = int(os.environ.get("EXAMPLES", "500"))

UNUSED = "the output does not depend on it in evaluation mode"
REASONS = (
    re.escape(UNUSED),
    r"it is used, but no gradients flow to it from the output",
    r"it was not used with the inputs of the trace",
    r"it has no elements",
    r"its elements are torch\.\w+, not real numbers",
    r"combined with [\w., ]+ before it meets the features",
    r"it meets the features in [\w ]+, which has no primitive",
    r"classification layer of \d+ classes, this hypernetwork predicts \d+",
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread: None) -> None:
    """Use one thread: where cores are busy, threads wait for each other."""


def tensors(output: Any) -> list[Tensor]:
    """Return the tensors in an output."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, torch.distributions.Distribution):
        return [output.logits]
    if isinstance(output, Output):
        return [output.logits]
    inner = output.values() if isinstance(output, dict) else output if isinstance(output, (list, tuple)) else ()
    return [tensor for part in inner for tensor in tensors(part)]


def images() -> Tensor:
    return torch.randn(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def logits(network: nn.Module) -> list[Tensor]:
    with torch.no_grad():
        return tensors(network.eval()(images()))


def outcome(network: nn.Module, observer: Observer | None) -> str:
    """Return how the network runs in both modes, backward included, and what its hooks count."""
    before = [] if observer is None else list(observer.calls)
    try:
        logits(network)
        loss = sum(y.float().square().sum() for y in tensors(network.train()(images())) if y.is_floating_point())
        if loss.requires_grad:
            loss.backward()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    calls = [] if observer is None else observer.calls[len(before) :]
    return f"runs, hooks: {calls}"


def everything(network: nn.Module, observer: Observer | None) -> Fingerprint:
    """Return the fingerprint of the network and of all else that its parts may write into."""
    roots = {"network": network, "observer": observer, **{name: vars(state)[name] for name in state.GLOBALS}}
    return Fingerprint(roots, state.__package__)


def global_values() -> list[Any]:
    return [vars(state)[name] for name in state.GLOBALS]


def may_change(network: nn.Module, report: PredictionReport) -> set[int]:
    """Return the ids of what a prediction may change: predicted tensors, and what was derived from the old ones."""
    found = {id(p) for name, p in network.named_parameters() if name in report.predicted}
    statistics = report.statistics
    for name in (*statistics.of_batch, *statistics.estimated, *statistics.neutral, *statistics.reset):
        found |= of_layer(network.get_submodule(name))
    for layer in network.modules():
        computes = [type(hook).__module__.startswith("torch.nn.utils") for hook in layer._forward_pre_hooks.values()]
        if (
            isinstance(layer, state.CachesProperty)
            or any(computes)
            or type(layer).__module__ == "torch.nn.utils.parametrizations"
        ):
            found |= of_layer(layer)
    return found


def of_layer(layer: nn.Module) -> set[int]:
    return {id(layer), id(layer.__dict__), id(layer._buffers), *map(id, layer.buffers(recurse=False))}


def check(composition: Composition, is_calibrated: bool) -> None:
    """Assert the rules for one network."""
    state.clear()  # it is about networks that may be gone at any time
    network, observer = composition.build()
    twin, twin_observer = composition.build()
    before, values, random = everything(network, observer), global_values(), torch.get_rng_state()

    def assert_as_before(allowed: Collection[int] = ()) -> None:
        changes = before.changes(allowed)
        assert not changes, "\n".join(changes)
        assert all(a is b for a, b in zip(global_values(), values, strict=True)), "a global name"
        assert torch.equal(torch.get_rng_state(), random), "random numbers"

    with suppress(TracingError):
        trace(network, image_size=SIDE)
    assert_as_before()
    parameters = {name: p.detach().clone() for name, p in uncompiled(network).named_parameters()}
    arguments: dict[str, Any] = {"calibration_images": images()} if is_calibrated else {"image_size": SIDE}
    ghn = tiny_ghn()
    torch.set_rng_state(random)
    try:
        report = ghn.predict(network, **arguments)
    except ValueError:
        assert_as_before()
        return
    network, twin = uncompiled(network), uncompiled(twin)
    assert_as_before(may_change(network, report))
    assert_accounted_for(network, report, parameters)
    assert outcome(network, observer) == outcome(twin, twin_observer)
    assert_reasons_hold(network, report)


def assert_accounted_for(network: nn.Module, report: PredictionReport, before: dict[str, Tensor]) -> None:
    parameters = dict(network.named_parameters())
    assert sorted([*report.predicted, *report.not_predicted]) == sorted(parameters)
    for name in report.predicted:
        assert parameters[name].isfinite().all(), name
    for name in report.not_predicted:
        assert torch.equal(parameters[name], before[name]), name


def assert_reasons_hold(network: nn.Module, report: PredictionReport) -> None:
    parameters = dict(network.named_parameters())
    expected = seeded_logits(network)
    is_steady = all(map(torch.equal, seeded_logits(network), expected))  # some parts change themselves in each pass
    for name, reason in report.not_predicted.items():
        assert any(re.fullmatch(pattern, reason) for pattern in REASONS), (name, reason)
        if reason == UNUSED and parameters[name].is_floating_point() and is_steady:
            with torch.no_grad():
                parameters[name].add_(1)
            assert all(map(torch.equal, seeded_logits(network), expected)), (name, reason)


def seeded_logits(network: nn.Module) -> list[Tensor]:
    torch.manual_seed(0)
    return logits(network)


@pytest.mark.slow
@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(compositions())
def test_the_rules_hold_for_any_composition(composition: Composition) -> None:
    check(composition, is_calibrated=False)


@pytest.mark.slow
@settings(max_examples=EXAMPLES // 2, suppress_health_check=list(HealthCheck))
@given(compositions())
def test_the_rules_hold_for_any_composition_that_is_calibrated(composition: Composition) -> None:
    check(composition, is_calibrated=True)


@pytest.mark.parametrize("is_calibrated", [False, True])
@pytest.mark.parametrize("name", sorted(PARTS))
def test_the_rules_hold_for_each_part_alone(name: str, is_calibrated: bool) -> None:
    check(Composition((name,), "linear", "bare", True, False, True), is_calibrated)


@pytest.mark.parametrize("name", sorted(HEADS))
def test_the_rules_hold_for_each_head_alone(name: str) -> None:
    check(Composition((), name, "bare", False, True, True), False)


@pytest.mark.parametrize("name", sorted(WRAPPERS))
def test_the_rules_hold_for_each_wrapper_alone(name: str) -> None:
    check(Composition(("convolution", "batch_norm"), "linear", name, True, True, True), False)
