"""A program that mutates optimizer files and reads each within a second of CPU time and 100 MB.

python -m tests.learned_opt.fuzz COUNT SEED

Prints one JSON object: how many mutated files were read with equal content, how many were refused, and the
longest time that a file took. Any other outcome ends the program with a traceback.
"""

from __future__ import annotations

import json
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np

import learned_opt

MEMORY = 100 * 2**20  # bytes
CARD = {"task": "digits-mlp", "steps": 200, "seeds": 8, "own": {"mean_loss": 0.12}, "tuned": {}}


def originals(folder: Path) -> list[tuple[bytes, dict]]:
    """A file for each kind of weights, with its content."""
    found = []
    for name, blocks in {"mlp": 1, "celo2-style": 1, "sgdm-per-block": 4}.items():
        theta = learned_opt.get_architecture(name).init_theta(jax.random.key(0), blocks)
        path = folder / "original"
        learned_opt.save(path, name, theta, {"updates": 3, "task": {"name": "digits-mlp"}}, [CARD])
        found.append((path.read_bytes(), learned_opt.read(path).theta))
    return found


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Make one to three changes, half of them in the header, which has the structure."""
    header = 8 + int.from_bytes(content[:8], "little")
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        end = min(len(data), header) if rng.random() < 0.5 else len(data)
        at = int(rng.integers(0, max(1, end)))
        length = int(rng.integers(1, 9))
        kind = rng.integers(0, 12)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            data[at : at + length] = rng.bytes(length)
        elif kind == 2:
            data[at:at] = rng.bytes(length)
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            del data[at:]
        elif kind == 5:
            data[at:at] = data[at : at + int(rng.integers(1, 2000))]  # duplicated
        elif kind == 6:
            lengths = [0, 1, header, 2**31, 2**40, 2**63 - 1, 2**64 - 1]
            data[:8] = lengths[rng.integers(len(lengths))].to_bytes(8, "little")
        else:
            data = _change_text(data, rng)
    return bytes(data)


def _change_text(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Change a number or word in the header, and update the header's length."""
    end = 8 + min(int.from_bytes(data[:8], "little"), len(data))
    header, rest = bytes(data[8:end]), bytes(data[end:])
    places = list(re.finditer(rb"\d+|[A-Za-z_]{3,}", header))
    if not places:
        return data
    place = places[rng.integers(len(places))]
    others = [b"0", b"-1", b"1e999", b"9" * 5000, b"null", b"[" * 3000, b"F16", b"\\u0000", b"{}", b'"']
    header = header[: place.start()] + others[rng.integers(len(others))] + header[place.end() :]
    return bytearray(len(header).to_bytes(8, "little") + header + rest)


def main(count: int, seed: int) -> None:
    """Mutate, read, and count the outcomes."""
    rng = np.random.default_rng(seed)
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mutated.safetensors"
        files = originals(Path(folder))
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY, -1))
        for _ in range(count):
            content, theta = files[rng.integers(len(files))]
            path.write_bytes(mutate(content, rng))
            began = time.process_time()
            try:
                artifact = learned_opt.read(path)
                learned_opt.describe(artifact)
            except learned_opt.UserError as error:
                assert str(path) in str(error)
                outcomes["refused"] += 1
            else:
                jax.tree.map(np.testing.assert_array_equal, artifact.theta, theta)
                outcomes["same"] += 1
            slowest = max(slowest, time.process_time() - began)
    print(json.dumps({"same": outcomes["same"], "refused": outcomes["refused"], "slowest": slowest}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
