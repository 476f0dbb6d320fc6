"""Every classification network of torchvision, and one network of every family of timm: traced, predicted, run."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from small_settings import ROOT
from torch import nn

from ghn import GHN, PredictionReport, load

GHN2 = ROOT / "tests/golden" / "ghn2.pt"
TORCHVISION = torchvision.models.list_models(module=torchvision.models)

# Small ones of their families; of any other family its first network is taken.
SMALL = (Path(__file__).with_name("timm_networks.txt")).read_text().split()

RUN_BELOW = 15_000_000
"""Parameters; larger networks of timm are predicted and not run, to save time."""

LARGE = 50_000_000
"""Parameters; larger networks of torchvision are predicted and not run, to save time."""


@pytest.fixture(scope="module")
def ghn() -> GHN:
    return GHN.from_public_checkpoint(GHN2)


@pytest.fixture(autouse=True)
def without_random_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out random initialisation, which takes longer than everything else: parameters are predicted anyway."""
    for name in dir(nn.init):
        if name.endswith("_") and not name.startswith("_"):
            monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)


def assert_accounted_for(network: nn.Module, report: PredictionReport) -> None:
    names = [name for name, _ in network.named_parameters()]
    assert sorted([*report.predicted, *report.not_predicted]) == sorted(names)
    assert all(report.not_predicted.values())


def assert_runs(network: nn.Module, size: int) -> None:
    with torch.inference_mode():
        assert network.eval()(torch.randn(2, 3, size, size)).isfinite().all()


def test_torchvision_has_the_networks_that_it_had() -> None:
    assert len(TORCHVISION) >= 80


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_a_network_of_torchvision_is_predicted_and_runs(ghn: GHN, name: str) -> None:
    network = load(name, num_classes=10)
    report = ghn.predict(network)
    assert_accounted_for(network, report)
    if report.num_predicted < LARGE:
        assert_runs(network, 299 if name == "inception_v3" else getattr(network, "image_size", 224))
    auxiliary = {"googlenet": "aux", "inception_v3": "AuxLogits"}.get(name)
    assert all(auxiliary is not None and parameter.startswith(auxiliary) for parameter in report.not_predicted)
    assert sum(node.is_class_layer for node in report.graph.nodes) in (1, 2)  # a weight, and its bias if it has one
    gc.collect()


@pytest.mark.slow
def test_a_network_of_every_family_of_timm_is_predicted_and_runs(ghn: GHN) -> None:
    for family in timm.list_modules():
        names = timm.list_models(module=family)
        name = next((name for name in names if name in SMALL), names[0])
        network = timm.create_model(name, num_classes=10)
        report = ghn.predict(network)
        assert_accounted_for(network, report)
        assert report.not_predicted == {}, name
        if report.num_predicted < RUN_BELOW:
            assert_runs(network, network.pretrained_cfg["input_size"][-1])
        gc.collect()
