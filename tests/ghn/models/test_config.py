"""Configurations: presets, parts that differ from them, and files of earlier versions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from examples import CLASSES, CONFIG, sample

from ghn import GHN, GHNConfig
from ghn.models.config import GNNS, VARIANTS, WEIGHT_DECODERS, Composition
from ghn.models.gated_gnn import GatedGNN
from ghn.models.nodewise_mlp import NodewiseMLP

SIZES = {"num_classes": CLASSES, "image_size": 16, "hidden": 8, "kernel": 3}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_a_preset_of_parts(variant: str) -> None:
    config = GHNConfig(**SIZES, variant=variant)
    assert config.composition == VARIANTS[variant]
    assert tuple(getattr(config, part) for part in Composition._fields) == VARIANTS[variant]


def test_a_part_that_is_given_replaces_that_of_the_variant() -> None:
    ghn = GHN(GHNConfig(**SIZES, variant="ghn1", gnn="mlp", normalise=True))
    assert isinstance(ghn.gnn, NodewiseMLP) and ghn.decoder.normalise
    assert isinstance(ghn.norm, torch.nn.Identity)  # as in GHN-1


def test_virtual_edges_come_with_the_graph_neural_network() -> None:
    graph = sample("test", 0).graph(16, CLASSES)
    for gnn, longest in (("gated", 1), ("gated_virtual", 3), ("mlp", 1)):
        ghn = GHN(GHNConfig(**SIZES, virtual_edges=3, gnn=gnn))
        assert ghn.batch([graph]).distances.max() == longest


def test_positions_of_arguments_are_those_of_earlier_versions() -> None:
    config = GHNConfig(10, 8, "ghn1", 16, 5, 7)
    assert (config.num_classes, config.image_size, config.variant) == (10, 8, "ghn1")
    assert (config.hidden, config.kernel, config.virtual_edges) == (16, 5, 7)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_settings_in_another_variant_have_its_parts(variant: str) -> None:
    other = GHNConfig(**{**CONFIG.to_dict(), "variant": variant})
    assert other.composition == VARIANTS[variant] and other.hidden == CONFIG.hidden
    assert GHNConfig(**other.to_dict()) == other
    differing = GHNConfig(**SIZES, variant=variant, layer_norm=variant == "ghn1")
    assert GHNConfig(**differing.to_dict()) == differing


def test_a_composed_hypernetwork_is_saved_completely_and_loaded(tmp_path: Path) -> None:
    ghn = GHN(GHNConfig(**SIZES, variant="ghn1", gnn="gated_virtual", virtual_edges=4, layer_norm=True, dirac=True))
    ghn.save(tmp_path / "checkpoint")
    saved = json.loads((tmp_path / "checkpoint/config.json").read_text())
    assert saved == {
        **SIZES,
        "variant": "ghn1",
        "virtual_edges": 4,
        "gnn": "gated_virtual",
        "decoder": "conv",
        "normalise": False,
        "layer_norm": True,
        "dirac": True,
    }
    again = GHN.from_pretrained(tmp_path / "checkpoint")
    assert again.config == ghn.config and isinstance(again.gnn, GatedGNN)
    (first,), (second,) = (g.predict_parameters([sample("train", 0)]) for g in (ghn, again))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "parts",
    [
        {"variant": "ghn3", "layers": 1, "heads": 1, "small_start": False},
        {"variant": "ghn3", "channels": 5},
        {"layers": 2, "channels": 5, "small_start": True},
    ],
)
def test_parts_that_came_later_are_saved_where_they_differ(tmp_path: Path, parts: dict[str, Any]) -> None:
    config = GHNConfig(**SIZES, **parts)
    GHN(config).save(tmp_path / "checkpoint")
    assert GHN.from_pretrained(tmp_path / "checkpoint").config == config


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_file_that_only_names_the_variant_is_read(tmp_path: Path, variant: str) -> None:
    GHN(GHNConfig(**SIZES, variant=variant)).save(tmp_path / "checkpoint")
    earlier = {**SIZES, "variant": variant, "virtual_edges": 50}
    (tmp_path / "checkpoint/config.json").write_text(json.dumps(earlier))
    assert GHN.from_pretrained(tmp_path / "checkpoint").config == GHNConfig(**SIZES, variant=variant)


@pytest.mark.parametrize(
    ("field", "value", "possible"),
    [
        ("variant", "ghn4", "ghn2, ghn1, mlp, ghn3 or logah"),
        ("variant", None, "ghn2, ghn1, mlp, ghn3 or logah"),
        ("gnn", "gcn", "gated, gated_virtual, mlp or transformer"),
        ("gnn", ["mlp"], "gated, gated_virtual, mlp or transformer"),
        ("decoder", "diffusion", "conv, conv_central, low_rank, implicit or grown"),
        ("normalise", "yes", "true or false"),
        ("layer_norm", 1, "true or false"),
        ("layers", 0, "an integer, at least 1"),
        ("channels", 0, "an integer, at least 1"),
    ],
)
def test_an_unknown_part_is_refused_with_what_is_possible(field: str, value: object, possible: str) -> None:
    with pytest.raises(ValueError) as error:
        GHNConfig(**{**SIZES, field: value})
    assert str(error.value) == f"{field} = {value!r}: must be {possible}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "heads = 3: must be a divisor of hidden = 8"),
        ({"virtual_edges": 255}, "virtual_edges = 255: must be at most 254 for gnn = transformer"),
    ],
)
def test_sizes_that_a_transformer_cannot_have_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GHNConfig(**SIZES, variant="ghn3", **changes)
    GHNConfig(**SIZES, variant="ghn2", **changes)  # which has no use for them


def test_rounds_of_message_passing_share_their_weights() -> None:
    torch.manual_seed(0)
    one, two = (GHN(GHNConfig(**SIZES, layers=layers)).eval() for layers in (1, 2))
    two.load_state_dict(one.state_dict())
    batch = one.batch([sample("test", 0).graph(16, CLASSES)])
    h = one.encoder(batch)
    assert torch.equal(two.gnn(h, batch), one.gnn(one.gnn(h, batch), batch))


def test_every_name_in_a_registry_builds_a_hypernetwork() -> None:
    for gnn in GNNS:
        for decoder in WEIGHT_DECODERS:
            ghn = GHN(GHNConfig(**SIZES, gnn=gnn, decoder=decoder))
            (predicted,) = ghn.predict_parameters([sample("train", 0)])
            assert all(tensor.isfinite().all() for tensor in predicted.values())


def test_a_configuration_does_not_wait_for_pytorch() -> None:
    code = "import sys; from ghn import GHNConfig; GHNConfig(10, 32); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
