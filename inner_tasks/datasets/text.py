"""Text as numbers, and the text that every Python carries."""

from __future__ import annotations

import numpy as np


def python_help() -> str:
    """Python's own help on its syntax and topics, some 465,000 characters in Python 3.11."""
    from pydoc_data.topics import topics

    return " ".join(topics.values())


def encode(text: str, alphabet: int) -> np.ndarray:
    """Characters as numbers below `alphabet`, the most frequent first, int32 ``[len(text)]``.

    All characters but the first ``alphabet - 1`` are one and the same.
    """
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    _, codes, counts = np.unique(points, return_inverse=True, return_counts=True)
    rank = np.argsort(np.argsort(-counts, kind="stable"))
    return np.minimum(rank[codes], alphabet - 1).astype(np.int32)
