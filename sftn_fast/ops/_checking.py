"""The switch of the losses' checks of arguments: on by default, and a choice for each context."""

from __future__ import annotations

from contextlib import AbstractContextManager

from sftn_fast.ops._context_setting import ContextSetting
from sftn_fast.ops.validation import check_flag

_checks = ContextSetting("checks", True)
checked = _checks.get
"""Return whether the losses check their arguments in this context."""


def unchecked() -> AbstractContextManager[None]:
    """Skip the checks of arguments of the losses called inside ``with unchecked():``, which saves a few microseconds.

    A wrong argument is then an error of the kernel or of PyTorch, with a message that may not name it. Plain PyTorch
    may also broadcast or promote what the checks would refuse. The choice holds for this thread or asyncio task, and
    for tasks started inside the block.
    """
    return _checks.block(False)


def set_unchecked(value: bool) -> None:
    """Set whether the losses skip the checks of arguments outside any ``with unchecked():`` block, in all threads.

    Raises:
        TypeError: for a value other than True and False.
    """
    check_flag("value", value)
    _checks.set(not value)
