"""Text as numbers, and the texts that come with every Python."""

from __future__ import annotations

import re

import numpy as np


def python_help() -> str:
    """Python's built-in help topics, about 465,000 characters in Python 3.11."""
    from pydoc_data.topics import topics

    return " ".join(topics.values())


def python_source() -> str:
    """Source code of modules of Python's standard library, about 900,000 characters in Python 3.12."""
    import _pydecimal
    import argparse
    import doctest
    import inspect
    import ipaddress
    import pickletools
    import subprocess
    import tarfile
    import typing

    modules = (argparse, _pydecimal, doctest, ipaddress, pickletools, subprocess, tarfile, typing)
    return "".join(inspect.getsource(module) for module in modules)


def encode(text: str, alphabet: int) -> np.ndarray:
    """Encode characters as numbers below `alphabet`, the most frequent first, int32 ``[len(text)]``.

    All characters after the first ``alphabet - 1`` share one number.
    """
    return _by_frequency(np.frombuffer(text.encode("utf-32-le"), np.uint32), alphabet)


def encode_words(text: str, vocabulary: int) -> np.ndarray:
    """Encode words and punctuation as numbers below `vocabulary`, the most frequent first, int32 ``[words]``.

    All words after the first ``vocabulary - 1`` share one number.
    """
    return _by_frequency(np.array(re.findall(r"\w+|[^\w\s]", text.lower())), vocabulary)


def _by_frequency(points: np.ndarray, most: int) -> np.ndarray:
    _, codes, counts = np.unique(points, return_inverse=True, return_counts=True)
    rank = np.argsort(np.argsort(-counts, kind="stable"))
    return np.minimum(rank[codes], most - 1).astype(np.int32)
