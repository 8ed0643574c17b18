"""Meta-training: how theta is learned, and the commands that do it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meta_train.run.interface import Compared, Learned, learn

__all__ = ["Compared", "Learned", "learn"]


def __getattr__(name: str) -> Any:
    # Imported late, because the commands import this package before they know what they need.
    if name in __all__:
        from meta_train.run import interface

        return getattr(interface, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
