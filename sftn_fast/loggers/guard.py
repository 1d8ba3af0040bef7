"""Protection of a training from the libraries that log it."""

from __future__ import annotations

import io
import random
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

from sftn_fast.utils.text import one_line, printable

LONGEST = 400
"""Largest number of characters of a library's error in a message."""


def reason(error: BaseException) -> str:
    """Return what went wrong, in one line."""
    return printable(one_line(str(error)) or type(error).__name__, LONGEST)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Run the body with standard streams of its own; restore random generators, signal handlers and hooks after it.

    Libraries draw names from the global generators, print, and install handlers.
    """
    import numpy as np
    import torch

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    handlers, hook = _handlers(), sys.excepthook
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
        sys.excepthook = hook
        for number, handler in handlers.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)


def _handlers() -> dict[int, Any]:
    """Return the handlers of the signals that stop a training; none outside the main thread, which sets them."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]
    return {number: handler for number in numbers if (handler := signal.getsignal(number)) is not None}
