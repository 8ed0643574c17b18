"""Atomic writing of files."""

from __future__ import annotations

from pathlib import Path


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a temporary file next to `path`, and rename it when it is complete.

    Args:
      path: the file; an existing file is replaced.
      content: bytes, or text that is encoded as UTF-8.

    Raises:
      OSError: the file could not be written; an existing file is unchanged.
    """
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    partial.replace(path)
