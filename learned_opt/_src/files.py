"""Files that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file beside its place, and move it there when it is complete.

    Args:
      path: where to; an existing file is replaced.
      content: bytes, or text that is encoded as UTF-8.

    Raises:
      OSError: it could not be written; a file that was there is as it was.
    """
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    partial.replace(path)
