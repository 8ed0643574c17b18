"""Reads the `.wandb` file of an offline run, for which W&B has no public reader."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

BLOCK = 32 * 1024  # a LevelDB log, in which frames never cross a block boundary
FILE_HEADER = struct.Struct("<4sHB")  # ":W&B", a magic number, the version
FRAME_HEADER = struct.Struct("<IHB")  # checksum, length, whole (1), first (2), middle (3), last (4)


def read_records(path: Path) -> Iterator[Record]:
    """Yield every record of the `.wandb` file `path`, in the order of writing."""
    data = path.read_bytes()
    assert data.startswith(b":W&B"), f"{path} is not a W&B file"
    position, parts = FILE_HEADER.size, b""
    while position + FRAME_HEADER.size <= len(data):
        if BLOCK - position % BLOCK < FRAME_HEADER.size:  # too little room for a frame: padding
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = FRAME_HEADER.unpack_from(data, position)
        position += FRAME_HEADER.size
        parts += data[position : position + length]
        position += length
        if kind in (1, 4):
            yield Record.FromString(parts)
            parts = b""
