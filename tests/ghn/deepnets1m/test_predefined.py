from __future__ import annotations

import pytest
import torch
from examples import images, random_parameters

from ghn import network_from_dict
from ghn.deepnets1m.predefined import DARTS, PREDEFINED, VIT, ResNet


@pytest.mark.parametrize("size", [8, 16, 28, 32, 64, 224])
@pytest.mark.parametrize("name", sorted(PREDEFINED))
def test_predefined_networks_compile_at_every_image_size(name: str, size: int) -> None:
    network = PREDEFINED[name]
    program = network.compile(size, 10)
    logits = network.forward(random_parameters(program, "meta"), torch.empty(2, 3, size, size, device="meta"))
    assert logits.shape == (2, 10)


def test_resnet50_has_the_published_number_of_parameters() -> None:
    assert PREDEFINED["resnet50"].num_parameters(224, 1000) == 25_557_032


@pytest.mark.slow
def test_resnet50_is_that_of_torchvision() -> None:
    from torchvision.models import resnet50

    theirs = resnet50(num_classes=10).double()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean = module.running_var = None  # statistics of the batch, as everywhere here
    x = images(128, count=2, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(PREDEFINED["resnet50"].forward(dict(theirs.named_parameters()), x), theirs(x))


def test_resnet50_keeps_the_resolution_of_small_images() -> None:
    small, large = (PREDEFINED["resnet50"].compile(size, 10) for size in (32, 224))
    assert "max_pool" in {o.kind for o in large.operations} and "max_pool" not in {o.kind for o in small.operations}
    assert small.operations[1].shape == (64, 32, 32) and large.operations[1].shape == (64, 112, 112)


def test_vit_is_twelve_attention_blocks_one_after_the_other() -> None:
    graph = VIT.graph(32, 10)
    assert graph.primitives.count("msa") == 12 and "bn" not in graph.primitives
    assert VIT.C == 128 and graph.levels[-1] == len(graph.nodes) - 2  # one chain, but for the position encoding


def test_darts_has_fourteen_cells_of_four_states() -> None:
    primitives = DARTS.graph(32, 10).primitives
    assert primitives.count("concat") == 14 + 2  # the cells after the two reductions read one input through two halves
    assert primitives.count("dil_conv") == 12


def test_a_narrow_resnet_survives_its_record() -> None:
    assert network_from_dict(ResNet(C=16).to_dict()) == ResNet(C=16)


def test_a_resnet_of_other_blocks_survives_its_record() -> None:
    assert network_from_dict(ResNet(blocks=(1, 1, 1, 1)).to_dict()) == ResNet(blocks=(1, 1, 1, 1))


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="predefined = 'resnet99': must be"):
        network_from_dict({"predefined": "resnet99"})
