"""Networks by name: those of torchvision, timm and transformers, the predefined ones, and the samples of each split."""

from __future__ import annotations

import difflib
import re
from fnmatch import fnmatchcase
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ghn.deepnets1m.predefined import PREDEFINED
from ghn.deepnets1m.sampling import SPLIT_RULES, sample_architecture
from ghn.gpt.sampling import GPT_SPLIT_RULES, gpt_samples
from ghn.networks.network import Network

if TYPE_CHECKING:
    from torch import nn

SAMPLED_NAME = re.compile(rf"({'|'.join(SPLIT_RULES)})/(\d+)")
"""Name of a sampled architecture: a split and an index."""

GPT_NAME = re.compile(rf"gpt/({'|'.join(GPT_SPLIT_RULES)})/(\d+)")
"""Name of a sampled language model."""

TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert-base": ("BertForSequenceClassification", {}),
    "gpt2": ("GPT2LMHeadModel", {}),
    "gpt2-medium": ("GPT2LMHeadModel", {"n_embd": 1024, "n_layer": 24, "n_head": 16}),
    "gpt2-large": ("GPT2LMHeadModel", {"n_embd": 1280, "n_layer": 36, "n_head": 20}),
    "gpt2-xl": ("GPT2LMHeadModel", {"n_embd": 1600, "n_layer": 48, "n_head": 25}),
    "llama-160m": (
        "LlamaForCausalLM",
        {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    ),
    "vit-base": ("ViTForImageClassification", {}),
}
"""Networks of transformers by name: a class, and what its configuration has of its own. Nothing is downloaded."""


def list_architectures(pattern: str = "*") -> list[str]:
    """Return the names that `load` takes and that match a shell pattern such as `*resnet*`.

    Names of torchvision have no prefix (`resnet50`). Names of timm, if it is installed, begin with `timm/`, those of
    transformers with `hf/`, and those of the split `predefined` with `predefined/`. Names of sampled architectures,
    `<split>/<index>` or `gpt/<split>/<index>`, are not listed.
    """
    names = [f"predefined/{name}" for name in PREDEFINED]
    # These packages are not required, and importing them takes seconds: they are imported where they are used.
    if find_spec("torchvision") is not None:
        import torchvision

        names += torchvision.models.list_models(module=torchvision.models)
    if find_spec("timm") is not None:
        import timm

        names += [f"timm/{name}" for name in timm.list_models()]
    if find_spec("transformers") is not None:
        names += [f"hf/{name}" for name in TRANSFORMERS]
    return [name for name in names if fnmatchcase(name, pattern)]


def find_network(name: str) -> Network | None:
    """Return the network that is named `predefined/<name>` or `<split>/<index>`; None for any other name.

    `<split>/<index>` is the architecture at that index of the split, sampled with seed 0, and `gpt/<split>/<index>` the
    language model.
    """
    if (sampled := GPT_NAME.fullmatch(name)) is not None:
        return next(gpt_samples(0, sampled[1], int(sampled[2]))).architecture
    sampled = SAMPLED_NAME.fullmatch(name)
    if sampled is not None:
        return sample_architecture(0, sampled[1], int(sampled[2]))
    return PREDEFINED.get(name.removeprefix("predefined/")) if name.startswith("predefined/") else None


def load(name: str, num_classes: int = 1000, image_size: int = 224) -> nn.Module:
    """Return the network of a name (see `list_architectures`), with random parameters.

    Args:
        num_classes: number of logits; networks that predict words have their own.
        image_size: side of its images, in pixels, for predefined and sampled networks alone: those of torchvision and
            timm fix it themselves. Of language models it is the length of the texts, and `num_classes` the vocabulary.

    Raises:
        ValueError: there is no network of this name.
    """
    network = find_network(name)
    if network is not None:
        return network.module(image_size, num_classes)
    if name not in list_architectures():
        close = difflib.get_close_matches(name, list_architectures(), n=3)
        splits = f"{' or '.join(SPLIT_RULES)} with a number, such as deep/7 or gpt/deep/7"
        others = f"must be a name that `ghn list` lists, or {splits}"
        hint = f"did you mean {', '.join(close)}?" if close else others
        raise ValueError(f"unknown architecture {name!r}: {hint}")
    if name.startswith("timm/"):
        import timm

        model: nn.Module = timm.create_model(name.removeprefix("timm/"), num_classes=num_classes)
        return model
    if name.startswith("hf/"):
        import transformers

        kind, settings = TRANSFORMERS[name.removeprefix("hf/")]
        network_class = getattr(transformers, kind)
        model = network_class(network_class.config_class(num_labels=num_classes, **settings))
        return model.eval()
    import torchvision

    # These two would spend a minute on their own random initialisation, and warn that it is going to change.
    own = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **own)
    return model
