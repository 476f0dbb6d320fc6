"""The section `hypernetwork` of the settings follows `GHNConfig`."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from small_settings import ROOT

from ghn import GHNConfig
from ghn.models.config import VARIANTS
from pipeline.params import HypernetworkSettings

VALUES = yaml.safe_load((ROOT / "params.yaml").read_text())["hypernetwork"]


def settings(**changes: Any) -> HypernetworkSettings:
    return HypernetworkSettings.model_validate({**VALUES, **changes})


def test_every_field_of_the_configuration_is_a_setting_but_the_sizes_of_the_task() -> None:
    fields = {field.name for field in dataclasses.fields(GHNConfig)} - {"num_classes", "image_size"}
    assert set(HypernetworkSettings.model_fields) == fields == set(VALUES)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_settings_of_a_variant_give_its_configuration(variant: str) -> None:
    config = settings(variant=variant, dirac=None).config(num_classes=10, image_size=14)
    assert config == GHNConfig(10, 14, variant) and config.composition == VARIANTS[variant]


def test_a_part_that_is_set_replaces_that_of_the_variant() -> None:
    config = settings(variant="ghn1", gnn="gated_virtual", layer_norm=True).config(10, 14)
    assert (config.gnn, config.normalise, config.layer_norm) == ("gated_virtual", False, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gnn": "gcn"}, "gnn = 'gcn': must be gated, gated_virtual, mlp or transformer"),
        ({"decoder": "diffusion"}, "decoder = 'diffusion': must be conv, conv_central, low_rank, implicit or grown"),
        ({"variant": "ghn3", "heads": 5}, "heads = 5: must be a divisor of hidden = 32"),
        ({"hidden": 12}, "hidden = 12: must be a multiple of 8"),
        ({"kernel": 17}, "kernel = 17: must be at most 16"),
        ({"virtual_edges": 0}, "virtual_edges = 0: must be an integer, at least 1"),
        ({"hidden": "8"}, "valid integer"),
        ({"hidden": True}, "valid integer"),
        ({"normalise": "yes"}, "valid boolean"),
    ],
)
def test_an_impossible_value_is_refused_with_what_is_possible(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        settings(**change)
