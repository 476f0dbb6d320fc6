from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from ghn import list_architectures, load, trace
from ghn.deepnets1m.predefined import PREDEFINED
from ghn.deepnets1m.sampling import sample_architecture
from ghn.zoo import find_network


def test_names_are_listed_by_pattern() -> None:
    assert list_architectures("resnet*") == ["resnet101", "resnet152", "resnet18", "resnet34", "resnet50"]
    assert list_architectures("predefined/*") == [f"predefined/{name}" for name in PREDEFINED]
    assert "timm/resnet10t" in list_architectures("timm/*")
    assert list_architectures("nothing*") == []
    assert len(set(list_architectures())) == len(list_architectures())


@pytest.mark.parametrize("name", ["resnet18", "timm/resnet10t", "predefined/darts", "deep/3"])
def test_a_network_is_loaded_by_its_name(name: str) -> None:
    network = load(name, num_classes=7, image_size=32)
    assert isinstance(network, nn.Module)
    assert network.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize("name", list_architectures("hf/*"))
def test_every_network_of_transformers_is_traced_without_memory_and_accounted_for(name: str) -> None:
    with torch.device("meta"):
        network = load(name, num_classes=7)
    graph = trace(network)
    names = [parameter for parameter, _ in network.named_parameters()]
    assert sorted(parameter.name for parameter in graph.parameters) == sorted(names)
    assert graph.not_predicted == {}


def test_predefined_and_sampled_networks_are_found_by_their_name() -> None:
    assert find_network("deep/3") == sample_architecture(0, "deep", 3)
    assert find_network("predefined/resnet50") == PREDEFINED["resnet50"]
    assert find_network("resnet50") is None and find_network("wrong/3") is None


@pytest.mark.parametrize(("name", "hint"), [("resnet51", "did you mean resnet50"), ("!", "`ghn list`")])
def test_an_unknown_name_is_an_error_with_a_hint(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        load(name)


def test_the_library_needs_neither_the_pipeline_nor_other_networks() -> None:
    """The library imports PyTorch, NumPy, SciPy and safetensors alone."""
    absent = [
        "torchvision",
        "timm",
        "transformers",
        "ray",
        "mlflow",
        "dvc",
        "pyarrow",
        "pandas",
        "pipeline",
        "h5py",
        "matplotlib",
    ]
    code = f"import sys; import ghn; print([name for name in {absent} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
