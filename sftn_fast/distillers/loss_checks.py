"""Checks of what a method returns, which the author of a method of their own sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from sftn_fast.distillers.method import FusedTerms
from sftn_fast.utils.user_code import place_of_function


def require_scalar(name: str, function: Callable[..., Any], loss: Any) -> Tensor:
    """Return the ``loss`` that ``function`` of the method ``name`` has returned.

    Raises:
        ValueError: It is not one number, a tensor without dimensions.
    """
    if isinstance(loss, Tensor) and loss.ndim == 0:
        return loss
    given = f"a tensor {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
    where = f"{name}: {function.__name__}(){place_of_function(function)}"
    raise ValueError(f"{where} must return one number, a tensor without dimensions such as a mean, got {given}")


def require_terms(name: str, function: Callable[..., Any], terms: Any) -> None:
    """Raise ValueError unless ``function`` of the method ``name`` has returned :class:`FusedTerms` of numbers."""
    if not isinstance(terms, FusedTerms):
        where = f"{name}: {function.__name__}(){place_of_function(function)}"
        raise ValueError(f"{where} must return FusedTerms, got {type(terms).__name__}")
    for term in terms:
        require_scalar(name, function, term)
