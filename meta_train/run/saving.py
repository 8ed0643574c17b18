"""The checkpoints of a run: each process saves a part, and any number of processes can resume from them."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from checkpoints import CheckpointStore, Restored, part_folder, saved_parts
from meta_train.devices import processes
from meta_train.outer.loop import RunState, gathered, scattered
from meta_train.outer.population import Population


def open_store(folder: Path) -> CheckpointStore:
    """The checkpoint store of this process's part.

    Args:
      folder: the checkpoint folder of the run.
    """
    return CheckpointStore(part_folder(folder, jax.process_index(), jax.process_count()))


def save(store: CheckpointStore, population: Population, state: RunState, update: int) -> None:
    """Save the state after an update in the background."""
    store.save(update, gathered(population, state), metadata={})


def restore(folder: Path, store: CheckpointStore, population: Population, like: RunState) -> Restored:
    """The state after the newest update that every part has, on the devices of the population.

    If a different number of processes saved it, each process takes its share of all parts and saves that.

    Args:
      folder: the checkpoint folder of the run.
      store: the checkpoint store of this process's part.
      population: the population that the particles belong to.
      like: a state of this run; its values do not matter.

    Raises:
      UserError: there is no intact checkpoint of such a state.
    """
    like = gathered(population, like)
    index, count, saved = jax.process_index(), jax.process_count(), saved_parts(folder)
    rows = len(jax.tree.leaves(like.particles)[0])
    part_like = like._replace(
        particles=jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((rows * count // saved, *x.shape[1:]), x.dtype), like.particles
        )
    )
    stores = (
        [store] if saved == count else [CheckpointStore(part_folder(folder, i, saved)) for i in range(saved)]
    )
    newest = None
    while True:
        parts = [each.restore(part_like, newest) for each in stores]
        oldest = processes.global_min(min(part.update for part in parts))
        if processes.global_min(all(part.update == oldest for part in parts)):
            break
        # A process that was killed may have saved fewer checkpoints than the others.
        newest = oldest
    state = parts[0].state
    if saved != count:
        own = slice(index * rows, (index + 1) * rows)
        split = [part.state.particles for part in parts]
        state = state._replace(particles=jax.tree.map(lambda *x: np.concatenate(x)[own], *split))
        store.save(oldest, state, parts[0].metadata)
        store.wait()
        processes.barrier("every process has saved its share")
        if processes.is_primary():
            for each in stores:
                each.clear()
    damaged = [sentence for part in parts for sentence in part.damaged]
    return Restored(oldest, scattered(population, state), parts[0].metadata, damaged)
