"""A project folder with small settings."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_settings import ROOT, small_settings

from pipeline.params import Params, load_params


@pytest.fixture(scope="session", autouse=True)
def ctrl_c() -> None:
    """A shell starts its background jobs deaf to Ctrl-C, which their children inherit: tests that send it need it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def small_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Params]]:
    """Makes an empty project folder, the working directory; called, it writes and reads the settings there."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def settings(**changes: Any) -> Params:
        Path("params.yaml").write_text(yaml.safe_dump(small_settings(**changes)))
        return load_params()

    yield settings
    torch.set_num_threads(threads)
