"""SIGTERM as an exception: a scheduler that ends this process gets the same clean-up as Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.errors import Terminated


@contextmanager
def sigterm_raises_terminated() -> Iterator[Callable[[], None]]:
    """Raise Terminated in the main thread when this process receives SIGTERM within the block.

    Only the first SIGTERM raises, so that a second one does not interrupt the clean-up. Yield a function that installs
    the handler again, for use after a library has replaced it. Other threads than the main one cannot install handlers:
    there the block changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = signal.getsignal(signal.SIGTERM)
    handler = before if isinstance(before, _RaiseOnce) else _RaiseOnce()

    def install() -> None:
        signal.signal(signal.SIGTERM, handler)

    install()
    try:
        yield install
    except KeyboardInterrupt as interrupt:
        if isinstance(interrupt, Terminated) or not handler.has_raised:
            raise
        raise Terminated("terminated") from interrupt  # Ray's C++ code raises a plain KeyboardInterrupt in its place
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


class _RaiseOnce:
    def __init__(self) -> None:
        self.has_raised = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self.has_raised:
            self.has_raised = True
            raise Terminated("terminated")
