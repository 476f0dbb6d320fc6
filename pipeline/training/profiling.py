"""Recording some steps of a run as a Chrome trace."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

SKIPPED_STEPS = 2
"""Steps before the recorded ones: the first steps of a run are slower than the others."""


@contextmanager
def profiled_steps(steps: int, keep_file: Callable[[str, bytes], None]) -> Iterator[Callable[[], object]]:
    """Record steps within the block, which must call the yielded function after each step.

    Args:
        steps: how many to record; 0 records nothing.
        keep_file: takes the name and the content of the trace when it is complete.
    """
    if not steps:
        yield lambda: None
        return

    def keep_trace(profiler: torch.profiler.profile) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "trace.json.gz"
            profiler.export_chrome_trace(str(file))
            keep_file(file.name, file.read_bytes())

    schedule = torch.profiler.schedule(wait=SKIPPED_STEPS - 1, warmup=1, active=steps, repeat=1)
    with torch.profiler.profile(schedule=schedule, on_trace_ready=keep_trace) as profiler:
        yield profiler.step
