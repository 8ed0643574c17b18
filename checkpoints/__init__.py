"""The whole state of a run, saved in the background with Orbax and restored bit for bit."""

from __future__ import annotations

from checkpoints.parts import newest_update, part_folder, saved_parts
from checkpoints.store import CheckpointStore, Restored

__all__ = ["CheckpointStore", "Restored", "newest_update", "part_folder", "saved_parts"]
