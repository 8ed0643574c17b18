"""After a power cut at any moment, the newest checkpoint that was saved can be restored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from checkpoints import CheckpointStore
from learned_opt._src.errors import UserError
from tests.marks import slow
from tests.power import Cut, Disk, write

LIKE = {"x": np.zeros(1000)}


def state_of(update: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(update).standard_normal(1000)}


def cuts_while_saving(folder: Path) -> list[Cut]:
    """Save four checkpoints, of which the third is replaced, and keep two."""
    folder.mkdir()
    disk = Disk(folder)
    with disk.recorded(), CheckpointStore(folder / "run" / "checkpoints", keep=2) as store:
        for update, state in [(0, 0), (10, 10), (20, 99), (20, 20), (30, 30)]:
            store.save(update, state_of(state), {})
            store.wait()
            # A cut may lose a checkpoint that is just being replaced, but not the one before it.
            disk.promise(10 if state == 99 else update)
    return disk.cuts


def failures(cuts: list[Cut], folder: Path) -> Iterator[str]:
    """Restore from what each cut left, and describe what is wrong."""
    folder.mkdir()
    for number, cut in enumerate(without_unfinished(cuts)):
        write(cut.image, folder / str(number))
        with CheckpointStore(folder / str(number) / "run" / "checkpoints") as store:
            try:
                restored = store.restore(LIKE)
            except UserError as error:
                if store.updates() or cut.promised >= 0:
                    yield str(error)
                continue
        yield from restored.damaged
        if restored.update < cut.promised:
            yield f"{cut.promised} is lost"
        expected = [state_of(state)["x"].tobytes() for state in (restored.update, 99)]
        if restored.state["x"].tobytes() not in expected:
            yield "another state"


def without_unfinished(cuts: list[Cut]) -> list[Cut]:
    """Those of the cuts that differ in more than unfinished checkpoints, which a store removes anyway."""
    different = {}
    for cut in cuts:
        rest = ((name, content) for name, content in cut.image.items() if ".unfinished" not in name)
        different[cut.promised, *sorted(rest)] = cut
    return list(different.values())


def test_no_cut_loses_a_saved_checkpoint(tmp_path: Path) -> None:
    cuts = cuts_while_saving(tmp_path / "disk")
    assert len(cuts) > 100 and len(without_unfinished(cuts)) > 10
    assert list(failures(cuts, tmp_path / "after")) == []


@pytest.mark.parametrize("missing", ["sync_tree", slow("sync"), slow("make_folder")])
def test_the_cuts_find_what_is_not_synced(missing: str, tmp_path: Path) -> None:
    def without(path: Path) -> None:
        if missing == "make_folder":
            path.mkdir(parents=True, exist_ok=True)

    with mock.patch(f"checkpoints.store.{missing}", without):
        cuts = cuts_while_saving(tmp_path / "disk")
    assert next(failures(cuts, tmp_path / "after"), None)
