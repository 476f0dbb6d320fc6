from __future__ import annotations

import copy
import operator
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_settings import ROOT, preset_settings

from pipeline.errors import UserError
from pipeline.params import (
    MOVED_KEYS,
    Params,
    leaves,
    load_params,
    read_values,
    set_leaf,
    settings_hash,
    validated,
    with_changes,
)

VALUES = yaml.safe_load((ROOT / "params.yaml").read_text())


def written(tmp_path: Path, change: dict[str, Any]) -> Path:
    """Write the project's settings with some values changed, and return the file."""
    values = copy.deepcopy(VALUES)
    for name, value in change.items():
        set_leaf(values, tuple(name.split(".")), value)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "params.yaml"


def refused(tmp_path: Path, change: dict[str, Any]) -> str:
    """Return the error about the project's settings with some values changed."""
    path = written(tmp_path, change)
    with pytest.raises(UserError) as caught:
        load_params(path)
    message = str(caught.value)
    assert len(message.splitlines()) <= 3
    return message


def test_the_projects_settings_are_valid_and_complete() -> None:
    assert load_params(ROOT / "params.yaml").model_dump() == VALUES


@pytest.mark.parametrize("name", ["cifar10", "imagenet", "fashion_mnist", "fashion_mnist_hour", "study", "transfer"])
def test_every_preset_is_valid_and_repeats_no_default(name: str) -> None:
    values = preset_settings(name)
    assert Params.model_validate(values).model_dump() == values
    named, defaults = (dict(leaves(each)) for each in (read_values(ROOT / f"params/{name}.yaml"), VALUES))
    assert named
    assert [keys for keys, value in named.items() if defaults[keys] == value] == []


def test_the_preset_of_fashion_mnist_fits_a_night_on_one_machine() -> None:
    params = Params.model_validate(preset_settings("fashion_mnist"))
    assert (params.dataset, params.images.size, params.train.widths) == ("fashion_mnist", 28, [16, 24, 32, 48])
    assert (params.generate.train, params.train.steps) == (20_000, 20_000)
    assert (params.workers.number, params.workers.gpus, params.workers.checkpoint_every) == (2, 0, 200)


def test_the_papers_settings_are_the_papers() -> None:
    cifar10, imagenet = (Params.model_validate(preset_settings(name)) for name in ("cifar10", "imagenet"))
    for params, images, batch, classes_smoothing in ((cifar10, 50_000, 64, 0.0), (imagenet, 1_281_167, 256, 0.1)):
        assert (params.meta_batch, params.train.batch, params.train.label_smoothing) == (8, batch, classes_smoothing)
        optimizer = params.train.optimizer
        assert params.train.steps * batch / images == pytest.approx(300, rel=1e-3)
        assert params.generate.train == 1_000_000
        assert (params.generate.test, params.generate.wide) == (500, 100)
        assert params.train.widths == list(range(32, 129, 16))
        assert params.train.head_widths == list(range(64, 513, 64))
        assert params.train.schedule.milestones == pytest.approx([2 / 3, 5 / 6], abs=1e-3)
        assert (optimizer.learning_rate, optimizer.weight_decay, params.train.clip) == (1e-3, 1e-5, 5)
        assert params.train.architecture_clip is None
        assert params.train.schedule.name == "multi_step"
        assert (params.workers.number, params.workers.gpus) == (4 if params is imagenet else 1, 1)
        assert (params.hypernetwork.hidden, params.hypernetwork.virtual_edges) == (32, 50)
    assert (cifar10.images.size, cifar10.hypernetwork.kernel) == (32, 11)
    assert (imagenet.images.size, imagenet.hypernetwork.kernel) == (224, 16)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"meta_batch": 0}, "meta_batch = 0"),
        ({"meta_batch": "many"}, 'meta_batch = "many"'),
        ({"images.size": 7}, "images.size = 7"),
        ({"images.size": 225}, "at most 224"),
        ({"images.passed_over": 1.5}, "images.passed_over = 1.5"),
        ({"images.passed_over": -0.1}, "images.passed_over = -0.1"),
        ({"images.max_pixels": 0}, "images.max_pixels = 0"),
        ({"images.max_pixels": 1e9}, "images.max_pixels = 1000000000.0"),
        ({"train.optimizer.learning_rate": 0}, "train.optimizer.learning_rate = 0"),
        ({"train.optimizer.learning_rate": float("inf")}, "train.optimizer.learning_rate"),
        ({"train.widths": [12]}, "multiple of 8"),
        ({"train.widths": [32, 16]}, "increasing order"),
        ({"train.schedule.milestones": [0.9, 0.5]}, "train.schedule.milestones"),
        ({"train.precision": "fp16"}, "fp32"),
        ({"train.precision": "bfloat16"}, 'train.precision = "bfloat16"'),
        ({"train.precision": None}, "train.precision = null"),
        ({"train.schedule.name": "linear"}, "cosine"),
        ({"workers.placement": "pack"}, "STRICT_SPREAD"),
        ({"train.schedule.warmup": -1}, "train.schedule.warmup = -1"),
        ({"train.schedule.warmup": VALUES["train"]["steps"]}, "must be less than train.steps"),
        ({"train.ema": 0}, "train.ema = 0"),
        ({"train.ema": 1}, "train.ema = 1"),
        ({"workers.number": 0}, "workers.number = 0"),
        ({"train.micro_batches": 0}, "train.micro_batches = 0"),
        ({"train.micro_batches": None}, "train.micro_batches = null"),
        ({"workers.number": 2, "workers.minimum": 3}, "workers.minimum = 3: must be at most workers.number = 2"),
        ({"workers.minimum": 0}, "workers.minimum = 0"),
        ({"workers.gpus": 2}, "workers.gpus = 2"),
        ({"workers.gpus": -0.5}, "workers.gpus = -0.5"),
        ({"train.log_every": 0}, "train.log_every = 0"),
        ({"workers.profile_steps": -1}, "workers.profile_steps = -1"),
        ({"train.validation.every": 0}, "train.validation.every = 0"),
        ({"train.validation.images": 0}, "train.validation.images = 0"),
        ({"train.validation.images": 0.6}, "at most 0.5"),
        (
            {"train.validation.every": 250, "train.validation.architectures": 51, "generate.val": 50},
            "train.validation.architectures = 51: must be at most generate.val = 50",
        ),
        ({"hypernetwork.variant": "ghn4"}, "ghn2"),
        ({"properties.repeats": 0}, "properties.repeats = 0"),
        ({"properties.resamples": 10}, "properties.resamples = 10"),
        (
            {"properties.published": "paper_results/0.json", "generate.imported": {"val": "a/manifest.json"}},
            "properties.published = paper_results/0.json: must be null, or split test",
        ),
        ({"generate.wide": 10_000}, "wide = 10000 is more than test"),
        (
            {"generate.imported": {"wide": "a/manifest.json"}},
            "generate.imported names split wide: must be one of train",
        ),
        ({"generate.imported": {"train": ""}}, 'generate.imported.train = ""'),
        ({"generate.imported": None}, "generate.imported = null"),
        ({"seed": -1}, "at least 0"),
        ({"seed": 2**63}, "less than"),
        ({"meta_batch": True}, "meta_batch = true"),
        ({"meta_batch": "8"}, 'meta_batch = "8"'),
        ({"meta_batch": 8.0}, "meta_batch = 8.0"),
        ({"meta_batch": {1: 2}}, "meta_batch = {1: 2}"),
        ({"images.flip": "off"}, 'images.flip = "off"'),
        ({"images.shift": 14}, "images.shift = 14"),
        ({"finetune.architectures": 101}, "finetune.architectures = 101"),
        ({"finetune.images_per_class": 10}, "finetune.images_per_class = 10"),
        ({"finetune.images_per_class": [10, 1]}, "images_per_class = [10, 1]"),
        ({"finetune.learning_rates": [0.1, 0.03]}, "learning_rates = [0.1, 0.03]"),
        ({"finetune.learning_rates": [0.1, 20]}, "learning_rates has 20"),
        ({"finetune.learning_rate_limits": [1, 0.1]}, "learning_rate_limits = [1.0, 0.1]"),
        ({"study.variants": ["ghn9"]}, "study.variants names ghn9: must be one of "),
        ({"study.seeds": [0, 0]}, "seeds = [0, 0]: must be different"),
        ({"study.changes": {"ghn2": {}, "mlp": {"hypernetwork": {"variant": "ghn9"}}}}, "study.changes.mlp"),
        ({"study.changes": {"ghn2": {}, "mlp": {"evaluate": {"batch": 4}}}}, "study.changes.mlp has evaluate: must be"),
        ({"study.changes": {"ghn2": {"meta_batch": 0}, "mlp": {}}}, "meta_batch = 0 in study.changes.ghn2"),
        ({"sgd.architectures": {"test": 101}}, "sgd.architectures.test = 101: must be at most generate.test = 100"),
        ({"sgd.architectures": {"train": 1}}, "sgd.architectures names split train: must be one of val"),
        ({"sgd.architectures": {"test": 0}}, "sgd.architectures.test = 0"),
        ({"sgd.sources": 10_001}, "sgd.sources = 10001: must be at most generate.train = 10000"),
        ({"sgd.epochs": [3, 1]}, "sgd.epochs = [3, 1]"),
        ({"sgd.held_out": 0.6}, "at most 0.5"),
        ({"sgd.converged_at": 1}, "sgd.converged_at = 1"),
        ({"sgd.learning_rates": [0.1, 20]}, "learning_rates has 20"),
        ({"copies.architectures": 0}, "copies.architectures = 0"),
        ({"evaluate.running_statistics": -1}, "evaluate.running_statistics = -1"),
        ({"storage": "s4://bucket/prefix"}, "s4://bucket/prefix"),
        ({"storage": "s3:/bucket"}, "s3:/bucket"),
        ({"storage": "s3://"}, "s3://bucket/prefix"),
    ],
)
def test_an_impossible_value_is_refused_with_what_is_possible(
    tmp_path: Path, change: dict[str, Any], expected: str
) -> None:
    message = refused(tmp_path, change)
    assert expected in message
    assert "must be" in message


@pytest.mark.parametrize(
    "change",
    [
        *({"train.precision": precision} for precision in ("auto", "fp32", "bf16", "fp64")),
        *({"train.schedule.name": schedule} for schedule in ("multi_step", "cosine")),
        *({"workers.placement": placement} for placement in ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")),
        {"train.schedule.warmup": VALUES["train"]["steps"] - 1},
        {"workers.number": 4, "train.micro_batches": 4, "workers.minimum": 4},
        {"workers.number": 64, "train.micro_batches": 1, "workers.minimum": 1},
        {"train.micro_batches": 1000, "meta_batch": 1},
        {"train.ema": 0.999},
        {"evaluate.running_statistics": None},
        {"sgd.architectures": {}},
        {"sgd.sources": 10_001, "generate.imported": {"train": "a/manifest.json"}},
        {"images.passed_over": 0, "images.max_pixels": 10**12},
        {"images.passed_over": 1},
        {"train.validation.architectures": VALUES["generate"]["val"]},
        {"train.validation.architectures": 51, "generate.val": 50, "train.validation.every": None},  # which is off
        {"train.validation.architectures": 51, "generate.val": 50, "generate.imported": {"val": "a/manifest.json"}},
    ],
    ids=str,
)
def test_what_is_possible_is_accepted(tmp_path: Path, change: dict[str, Any]) -> None:
    params = load_params(written(tmp_path, change))
    for name, value in change.items():
        assert operator.attrgetter(name)(params) == value


def test_a_variant_of_the_study_differs_in_what_it_changes_in_its_seed_and_in_having_no_validation() -> None:
    params = validated(VALUES, "params.yaml")
    variant = params.of_variant("no_virtual_edges", seed=3)
    assert variant.hypernetwork.gnn == "gated"
    others = {
        "seed": 0,
        "hypernetwork": {"gnn": None},
        "train": {"validation": {"every": params.train.validation.every}},
    }
    assert with_changes(variant.model_dump(), others) == params.model_dump()
    with pytest.raises(UserError, match=r"no variant ghn9 in study\.changes: must be one of ghn2, ghn1, mlp"):
        params.of_variant("ghn9", seed=0)


def test_a_run_of_few_steps_warms_up_in_a_quarter_of_them() -> None:
    params = validated(VALUES, "params.yaml")
    assert params.with_train(20).train.schedule.warmup == 5
    assert params.with_train(100_000).train.schedule.warmup == params.train.schedule.warmup


def test_a_misspelt_key_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    assert "did you mean meta_batch?" in refused(tmp_path, {"meta_bach": 4})
    assert "did you mean steps?" in refused(tmp_path, {"train.step": 4})


def test_a_key_that_has_moved_is_refused_with_its_new_name(tmp_path: Path) -> None:
    assert "train.workers is now workers.number" in refused(tmp_path, {"train.workers": 2})
    assert "train.schedule is now train.schedule.name" in refused(tmp_path, {"train.schedule": "cosine"})


def test_a_file_of_an_earlier_version_is_refused_with_the_new_names_of_all_its_keys(tmp_path: Path) -> None:
    values = copy.deepcopy(VALUES)
    earlier = {old: operator.attrgetter(new)(load_params(ROOT / "params.yaml")) for old, new in MOVED_KEYS.items()}
    for section in ("optimizer", "schedule", "validation"):
        del values["train"][section]
    del values["workers"]
    values["train"] |= {name.removeprefix("train."): value for name, value in earlier.items()}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError) as caught:
        load_params(tmp_path / "params.yaml")
    assert str(caught.value).count(" is now ") == len(MOVED_KEYS)
    assert "missing" not in str(caught.value)


def test_a_value_in_place_of_a_section_is_refused(tmp_path: Path) -> None:
    assert "images = 8" in (message := refused(tmp_path, {"images": 8}))
    assert "must be a section of keys" in message
    assert "train.optimizer = null" in refused(tmp_path, {"train.optimizer": None})


def test_many_problems_are_told_in_three_lines(tmp_path: Path) -> None:
    assert "and 2 more" in refused(tmp_path, {"seed": -1, "meta_batch": 0, "train.steps": 0, "train.batch": 1})


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "seed: [\n", "seed"])
def test_a_file_that_holds_no_settings_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError, match=r"params\.yaml"):
        load_params(tmp_path / "params.yaml")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes(b"seed: \xff")
    with pytest.raises(UserError, match=r"params\.yaml is not YAML"):
        load_params(tmp_path / "params.yaml")


def test_a_number_may_have_an_exponent(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text().replace("learning_rate: 0.003", "learning_rate: 3e-3")
    (tmp_path / "params.yaml").write_text(text)
    assert load_params(tmp_path / "params.yaml").train.optimizer.learning_rate == 0.003


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml not found"):
        load_params(tmp_path / "nowhere.yaml")


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    values = {key: value for key, value in VALUES.items() if key != "seed"}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match="seed is missing"):
        load_params(tmp_path / "params.yaml")


def test_a_fingerprint_depends_on_every_value_and_not_on_the_order_of_keys() -> None:
    assert settings_hash({"a": 1, "b": [2, None]}) == settings_hash({"b": [2, None], "a": 1})
    assert len({settings_hash({"a": value}) for value in (1, 2, 1.5, "1", None, True)}) == 6
