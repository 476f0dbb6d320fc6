"""A registered hypernetwork goes to the hub, with a card of what MLflow knows of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from evaluation_examples import make_ghn
from hub_server import HubServer
from typer.testing import CliRunner

from ghn import GHN
from pipeline.cli import app
from pipeline.params import Params
from pipeline.tracking.mlflow_runs import stage_run


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer.in_place_of_the_hub(tmp_path / "cache", monkeypatch) as server:
        yield server


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["push", *arguments])
    return done.stdout if done.exit_code == 0 else done.stderr


@pytest.mark.slow
def test_the_card_has_the_settings_and_the_results_of_the_model(
    small_project: Callable[..., Params], hub: HubServer
) -> None:
    params = small_project(meta_batch=3, images={"folder": "/mine/private"}, dataset="digits")
    for seed, loss in ((0, 2.5), (1, 1.5)):
        make_ghn(seed).save("checkpoint")
        with stage_run("train", params.model_dump()) as train:
            train.log_metrics({"train_loss": loss})
            train.log_ghn("checkpoint")
    with stage_run("evaluate", params.model_dump()) as evaluate:
        evaluate.summary({"test_top1": 0.625})

    assert run("models:/ghn/2", "me/mine") == f"models:/ghn/2 is at {hub.endpoint}/me/mine\n"
    weights = dict(GHN.from_pretrained("hf://me/mine").named_parameters())
    assert all(parameter.equal(weights[name]) for name, parameter in make_ghn(1).named_parameters())
    card = hub.repositories["me/mine"]["README.md"].decode()
    assert "| test_top1 | 0.625 |" in card
    assert "| meta_batch | 3 |" in card and "| train.steps | 6 |" in card and "storage" not in card
    assert "private" not in card and "| dataset | digits |" in card

    assert "me/earlier" in run("models:/ghn/1", "me/earlier")
    earlier = hub.repositories["me/earlier"]["README.md"].decode()
    assert "test_top1" not in earlier and "| train_loss | 2.5 |" in earlier

    assert run("models:/ghn/3", "me/mine").startswith("error: MLflow does not have models:/ghn/3")
    assert run("ghn", "me/mine") == "error: ghn is no registered model: must be such as models:/ghn/1\n"
    hub.stop()
    assert "me/mine: the hub refuses or does not answer" in run("models:/ghn/1", "me/mine")
