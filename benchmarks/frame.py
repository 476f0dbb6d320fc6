"""What all benchmarks share: the line about the machine, the last line of JSON, and the record that the README shows.

A benchmark prints what it measures and ends with `finish(result, record)`, which prints the result as one line of JSON.
With `--record` it also writes `benchmarks/results/<name>.json`: the command, the machine, the commit and the result.
`python benchmarks/readme_table.py` makes the README's table of speed from these files.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"

RecordName = Annotated[
    str | None, typer.Option("--record", help="Name to keep the result under, in benchmarks/results.", metavar="NAME")
]


def introduce(*details: str) -> None:
    """Print the line that names the machine, and what else the figures depend on."""
    print(", ".join((machine(), *details)), flush=True)


def machine() -> str:
    """Return the processor's name and what of it the figures depend on most."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    flags = fields.get("flags", "").split()
    has = next((flag for flag in ("avx512_bf16", "avx512f", "avx2") if flag in flags), "")
    return f"{fields.get('model name', platform.machine())} {f'({has})' if has else ''}".strip()


def finish(result: dict[str, Any], record: str | None) -> None:
    """Print the result as a line of JSON, the last one; with a name, write the record too."""
    if record is not None:
        RESULTS.mkdir(exist_ok=True)
        contents = {
            "command": command_line(),
            "machine": machine(),
            "python": platform.python_version(),
            "commit": commit(),
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "result": result,
        }
        (RESULTS / f"{record}.json").write_text(json.dumps(contents, indent=1) + "\n")
    print(json.dumps(result), flush=True)


def command_line() -> str:
    """Return the command that was given, without `--record`, with the cores that it was pinned to."""
    words = sys.argv[1:]
    if "--record" in words:
        place = words.index("--record")
        del words[place : place + 2]
    allowed = sorted(os.sched_getaffinity(0))
    pinned = [] if len(allowed) == os.cpu_count() else ["taskset", "-c", ",".join(map(str, allowed))]
    return shlex.join([*pinned, "python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def commit() -> str:
    """Return the commit of the repository; `-dirty` follows where code differs from it."""
    given = ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
    done = subprocess.run(given, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"
