"""The stages on language models: generate, train, sgd, evaluate and study, and what the others say."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml
from small_settings import ROOT, small_settings
from typer.testing import CliRunner

from ghn.design_spaces import DESIGN_SPACES, GPT
from pipeline.architectures.store import ArchitectureStore
from pipeline.architectures.verify import verify
from pipeline.cli import app
from pipeline.errors import UserError
from pipeline.evaluation.bits import add_bits, bits_a_byte
from pipeline.params import Params, load_params, with_changes
from pipeline.stages.evaluate import evaluate
from pipeline.stages.generate import generate
from pipeline.stages.sgd import sgd
from pipeline.stages.study import study
from pipeline.stages.train import train

TEXT = {
    "dataset": "text",
    "images": {"size": 16, "shift": 0, "folder": str(ROOT / "docs"), "passed_over": 1},
    "generate": {"space": "gpt"},
    "sgd": {"architectures": {"val": 1, "test": 1, "deep": 1}, "sources": 1, "epochs": [1], "batch": 64},
    "train": {
        "steps": 40,
        "batch": 16,
        "ema": None,
        "optimizer": {"learning_rate": 0.02},
        "schedule": {"warmup": 5},
        "validation": {"every": 20, "images": 0.01},
    },
    "study": {"variants": ["ghn2"], "seeds": [0]},
}


@pytest.mark.slow
def test_a_hypernetwork_learns_to_predict_language_models(
    ray_on_this_machine: None,
    small_project: Callable[..., Params],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    params = small_project(**TEXT)
    generate(params)
    verify(params, recompute=3)
    store = ArchitectureStore(params.storage)
    assert store.space == GPT and list(store.splits) == ["train", "val", "test", "wide", "deep"]
    record = store["test"].row(0, "seed", "draw").to_pylist()[0]
    assert store.read("test", 0) == DESIGN_SPACES[GPT].sample(record["seed"], "test", 0, record["draw"])
    assert store.read("wide", 0).C == 4 * store.read("test", 0).C

    train(params)
    evaluate(params)
    table = pd.read_parquet("results/evaluate/architectures.parquet")
    assert set(table["split"]) == {"test", "wide", "deep"}
    bits = bits_a_byte(table, "initialisation").set_index(["split", "initialisation"])["bits"]
    for split in ("test", "wide", "deep"):
        assert bits[split, "random"] == pytest.approx(8, abs=0.5), "tables of tokens begin small"
        assert bits[split, "predicted"] < bits[split, "random"] - 1.5
    metrics = json.loads(Path("results/evaluate/metrics.json").read_text())
    assert metrics["wide"]["predicted_bits"] == pytest.approx(bits["wide", "predicted"])
    assert "Bits per byte of test text" in capsys.readouterr().out

    sgd(params)
    trained = json.loads(Path("results/sgd/metrics.json").read_text())
    assert set(trained) == {"train", "val", "test", "deep"}
    assert trained["test"]["sgd_1_bits"] < 8 and 0 <= trained["test"]["sgd_1_noisy_top1"] <= 1

    monkeypatch.setattr("pipeline.stages.study.seconds_per_step", lambda *arguments: 0.5)
    study(params, "ghn2", 0)
    scores = json.loads(Path("results/study/ghn2-0/scores.json").read_text())
    assert set(scores) == {f"{split}_{figure}" for split in ("test", "wide", "deep") for figure in ("top1", "bits")}


def test_bits_are_means_over_networks_with_a_finite_loss() -> None:
    rows = [("test", "predicted", math.log(4)), ("test", "predicted", math.log(16)), ("test", "random", None)]
    table = pd.DataFrame(rows, columns=["split", "initialisation", "loss"]).astype({"loss": float})
    found = bits_a_byte(table, "initialisation")
    assert found["initialisation"].tolist() == ["predicted"] and found["networks"].tolist() == [2]
    assert found["bits"][0] == pytest.approx(3) and found["bits_error"][0] == pytest.approx(1)
    metrics: dict = {"test": {}}
    assert add_bits(metrics, found, "initialisation") == {"test_predicted_bits": pytest.approx(3)}
    assert metrics == {"test": {"predicted_bits": pytest.approx(3)}}


@pytest.mark.parametrize("stage", ["describe", "copies", "finetune", "condition", "detect", "properties", "report"])
def test_a_stage_for_images_says_what_runs_on_text(small_project: Callable[..., Params], stage: str) -> None:
    small_project(**TEXT)
    result = CliRunner().invoke(app, [stage])
    assert result.exit_code == 1
    assert "dataset = text is text, and this stage is for networks of images" in result.output
    assert "dvc repro train sgd evaluate study" in result.output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generate": {"space": "deepnets1m"}}, "generate.space = deepnets1m: must be gpt"),
        ({"dataset": "digits"}, "generate.space = gpt: must be deepnets1m, because dataset = digits is images"),
        ({"finetune": {"datasets": ["faces", "python"]}}, "finetune.datasets has python, which is text"),
        ({"condition": {"datasets": ["text", "digits"]}}, "condition.datasets has text, which is text"),
        ({"train": {"norm_free": 0.1}}, "train.norm_free = 0.1: must be null"),
        ({"sgd": {"architectures": {"dense": 1}}}, r"sgd.architectures.dense = 1: generate.space = gpt has no such"),
        ({"generate": {"space": "gpt", "imported": {"test": "x"}}}, "imported has architectures of DeepNets-1M"),
        ({"generate": {"space": "llama"}}, "llama"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(with_changes(with_changes(small_settings(), TEXT), changes)))
    with pytest.raises(UserError, match=message):
        load_params(path)
