"""Pages as a browser lays them out."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

# A window cannot be as narrow as a phone, but a frame can. The page runs the probe when it is laid out, and sends what
# it returns to the window around it, which leaves it in its title.
FRAME = """<!doctype html>
<body style="margin: 0">
<script>addEventListener("message", event => document.title = event.data)</script>
<iframe src="page.html" style="border: 0; width: {width}px; height: 2000px"></iframe>"""
PROBE = """<script>addEventListener("load", () => parent.postMessage(JSON.stringify({{
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  width: innerWidth,
  text: document.body.innerText,
  seen: (() => {{ {probe} }})(),
}}), "*"))</script>"""


@dataclass(frozen=True)
class Look:
    """A page in a browser: by how many pixels it is too wide, its width, its text, and what the probe returned."""

    overflow: int
    width: int
    text: str
    seen: Any


def look_at(page: Path, width: int, folder: Path, probe: str = "return null", dark: bool = False) -> Look:
    """Open a page in a window of `width` pixels, and run `probe` in it, the body of a function in JavaScript.

    Files go to `folder`.

    Raises:
        AssertionError: the page logs something on the console.
    """
    assert CHROMIUM is not None
    (folder / "page.html").write_text(page.read_text() + PROBE.format(probe=probe))
    (folder / "frame.html").write_text(FRAME.format(width=width))
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            f"--user-data-dir={folder / 'profile'}",
            f"--window-size={max(width, 500)},2000",
            "--dump-dom",
            (folder / "frame.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in done.stderr, "the page logs errors"
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title is not None, "the page was not laid out"
    return Look(**json.loads(unescape(title[1])))
