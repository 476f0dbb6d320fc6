from __future__ import annotations

import subprocess
import sys

import pytest

import ghn


@pytest.mark.parametrize(
    "modules",
    ["ghn.deepnets1m.sampling, ghn.networks.graph, ghn.deepnets1m.architecture", "pipeline.architectures.store"],
)
def test_architectures_do_not_wait_for_pytorch(modules: str) -> None:
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_everything_that_the_library_names_is_there() -> None:
    assert set(ghn.__all__) <= set(dir(ghn))
    for name in ghn.__all__:
        assert getattr(ghn, name).__module__.startswith("ghn.")
    with pytest.raises(AttributeError, match="'ghn' has no attribute 'ghost'"):
        _ = ghn.ghost
