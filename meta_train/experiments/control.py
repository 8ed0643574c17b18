"""Control: PES learns to swim from short unrolls, faster than full ES; truncated ES does not learn it.

Protocol: a linear policy of 16 numbers for the swimmer (``inner_tasks.problems.swimmer``), starting from
zeros, with episodes of T = 1,000 steps. N = 10 pairs; SGD. The gradient is ``sum(L u) / (std(L) N)``, where L
are the losses of the windows, u the perturbations in units of sigma, and std is over all particles.

| Method | K | sigma | learning rate |
|---|---|---|---|
| PES | 100 | 0.3 | 0.1 |
| full ES | 1,000 | 0.3 | 0.3 |
| truncated ES | 100 | 0.1 | 0.1 |

Each method has 500,000 steps of the simulator; as in the source, those of the unperturbed particle of
truncated ES are not counted. The reward of the unperturbed policy over whole episodes, averaged over four
starts, is measured 50 times at equal intervals. The small scale has 150,000 steps and 15 measurements.

Source: Vicol, Metz, Sohl-Dickstein, ICML 2021, and its published code (which uses the simulator in C and 50
episodes per measurement).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes
from rich.console import Console

from inner_tasks.problems.swimmer import (
    ACTIONS,
    FRAME_SKIP,
    OBSERVATIONS,
    RESET_NOISE,
    Swimmer,
    c_model,
    swimmer,
)
from meta_train.estimators import Estimator, full_es, mean_of, pes, truncated_es
from meta_train.estimators.base import Info, State
from meta_train.estimators.window import unroll
from meta_train.experiments.base import (
    Claim,
    Experiment,
    Outcome,
    Result,
    Settings,
    Verdict,
    is_above,
    judged,
    variance,
)
from meta_train.experiments.descent import descend

PAIRS = 10
STEPS = {"small": 150_000, "paper": 500_000}
RECORDS = {"small": 15, "paper": 50}
EPISODES = 4
GOAL = 300.0
# The gait is drawn FRAMES times, FRAME_EVERY steps apart, after WARM_UP steps; each FRAME_GAP below the last.
FRAMES, FRAME_EVERY, WARM_UP, FRAME_GAP = 10, 8, 400, 1.2


class Method(NamedTuple):
    """How one method is run."""

    make: Callable[..., Estimator]
    label: str
    truncation: int
    sigma: float
    learning_rate: float


METHODS = {
    "pes": Method(pes, "PES", 100, 0.3, 0.1),
    "full-es": Method(full_es, "full ES", 1000, 0.3, 0.3),
    "truncated-es": Method(truncated_es, "truncated ES", 100, 0.1, 0.1),
}


def standardised(estimator: Estimator, scale: float) -> Estimator:
    """An estimator of many particles, times `scale`, over the standard deviation of their losses."""

    def estimate(theta: jax.Array, state: State, key: jax.Array) -> tuple[jax.Array, State, Info]:
        gradient, state, info = estimator.estimate(theta, state, key)
        variance = info["square_loss"] / info["particles"] - jnp.square(info["loss"] / info["particles"])
        return scale * gradient / jnp.sqrt(variance), state, info

    return Estimator(estimator.init, estimate)


def reward(problem: Swimmer, theta: jax.Array, episodes: int = EPISODES) -> jax.Array:
    """Mean reward of a few whole episodes, which are the same for every policy."""

    def one(key: jax.Array) -> jax.Array:
        start = jnp.zeros((), jnp.int32)
        return -unroll(problem, theta, problem.init(key), start, key, problem.horizon).loss

    return jnp.mean(jax.vmap(one)(jax.random.split(jax.random.key(0), episodes)))


def run(settings: Settings, console: Console) -> Result:
    """Run every method, with all seeds side by side."""
    problem, steps, records = swimmer(), STEPS[settings.scale], RECORDS[settings.scale]
    outcomes = {}
    for name, method in METHODS.items():
        own = {} if method.make is full_es else {"truncation": method.truncation}
        estimator = method.make(problem, sigma=method.sigma, chunk=2, **own)
        updates = steps // (2 * PAIRS * method.truncation)
        # The estimators divide by sigma^2 K, and `descend` multiplies by K again.
        outcome = descend(
            method.label,
            standardised(mean_of(estimator, PAIRS), method.sigma),
            optax.sgd(method.learning_rate),
            jnp.zeros((ACTIONS, OBSERVATIONS)),
            lambda theta: reward(problem, theta),
            truncation=method.truncation,
            seeds=settings.seeds,
            updates=updates,
            every=max(1, updates // records),
            folder=settings.folder / "paths" / name,
            console=console,
            devices=settings.devices,
        )
        counted = 2 * PAIRS * method.truncation * outcome.curve["update"]
        outcomes[name] = outcome._replace(curve={**outcome.curve, "steps": counted})
    return Result(outcomes, verdict(outcomes))


def steps_to_goal(outcome: Outcome) -> np.ndarray:
    """Steps of the simulator until the reward first passes the goal, ``[seeds]``; infinite if never."""
    passed = outcome.curve["loss"] > GOAL
    first = outcome.curve["steps"][passed.argmax(axis=1)]
    return np.where(passed.any(axis=1), first, np.inf)


def verdict(outcomes: Mapping[str, Outcome]) -> Verdict:
    """PES passes the goal on most seeds, truncated ES on none; PES is ahead of full ES."""
    reached = {name: steps_to_goal(outcome) for name, outcome in outcomes.items()}
    said = []
    for name, steps in reached.items():
        final, there = outcomes[name].final_loss, np.isfinite(steps)
        when = f", after {np.median(steps[there]):,.0f} steps (median)" if there.any() else ""
        said.append(
            f"{METHODS[name].label} {final.mean():.0f} ± {np.sqrt(variance(final)):.0f}, above {GOAL:.0f} in "
            f"{there.sum()} of {there.size}{when}"
        )
    labelled = {name: (METHODS[name].label, outcome.final_loss) for name, outcome in outcomes.items()}
    swims, truncated = np.isfinite(reached["pes"]), np.isfinite(reached["truncated-es"])
    # On the way they are compared at the records of full ES, which has the fewest.
    full, mine = outcomes["full-es"].curve, outcomes["pes"].curve
    ahead = [
        np.array([np.interp(full["steps"], curve["steps"], seed).mean() for seed in curve["loss"]])
        for curve in (mine, full)
    ]
    return judged(
        "reward at the end, mean and standard deviation over seeds: " + "; ".join(said),
        Claim(bool(swims.mean() > 0.5), f"PES passes {GOAL:.0f} in most seeds"),
        Claim(not truncated.any(), "truncated ES passes it in none"),
        is_above(labelled["pes"], labelled["truncated-es"]),
        is_above(("PES, averaged over the steps on the way,", ahead[0]), ("full ES", ahead[1])),
        is_above(labelled["pes"], labelled["full-es"]),
    )


def draw(result: Result, folder: Path) -> Sequence[Path]:
    """Draw reward over steps of the simulator, and the gait of the best policy as a strip of frames."""
    from meta_train.experiments.drawing import styles
    from meta_train.report.figures import picture

    paths = [folder / "control.png", folder / "control_gait.png"]
    with picture(paths[0], figsize=(6.4, 4)) as (figure, axes):
        for name, style in styles(result.methods).items():
            curve = result.methods[name].curve
            mean, std = curve["loss"].mean(axis=0), curve["loss"].std(axis=0)
            axes.plot(curve["steps"], mean, label=METHODS[name].label, **style)
            axes.fill_between(curve["steps"], mean - std, mean + std, color=style["color"], alpha=0.15, lw=0)
        axes.axhline(GOAL, color="grey", lw=0.8, ls=":")
        axes.set(
            xlabel="steps of the simulator",
            ylabel="reward of an episode",
            title="unperturbed policy: mean and standard deviation over seeds",
        )
        axes.legend()
    best = result.methods["pes"]
    with picture(paths[1], figsize=(5, 7)) as (figure, axes):
        _draw_gait(axes, best.theta[best.final_loss.argmax()].reshape(ACTIONS, OBSERVATIONS))
    return paths


def _draw_gait(axes: Axes, policy: np.ndarray) -> None:
    """Draw the three links at several times, one below the other, in the simulator in C."""
    import mujoco

    model = c_model()
    data = mujoco.MjData(model)
    # A random start, as in the episodes: at rest, a linear policy would not move.
    rng = np.random.default_rng(0)
    data.qpos[:] += rng.uniform(-RESET_NOISE, RESET_NOISE, model.nq)
    data.qvel[:] += rng.uniform(-RESET_NOISE, RESET_NOISE, model.nv)
    seconds: list[float] = []
    for step in range(WARM_UP + FRAMES * FRAME_EVERY):
        data.ctrl[:] = policy @ np.concatenate([data.qpos[2:], data.qvel])
        if step >= WARM_UP and (step - WARM_UP) % FRAME_EVERY == 0:
            mujoco.mj_forward(model, data)
            for geom in range(1, model.ngeom):
                half = model.geom_size[geom, 1] * data.geom_xmat[geom].reshape(3, 3)[:, 2]
                ends = np.stack([data.geom_xpos[geom] - half, data.geom_xpos[geom] + half])
                below = len(seconds) * FRAME_GAP
                axes.plot(ends[:, 0], ends[:, 1] - below, lw=6, color=f"C{geom}", solid_capstyle="round")
            seconds.append(data.time)
        for _ in range(FRAME_SKIP):
            mujoco.mj_step(model, data)
    axes.set_yticks(-FRAME_GAP * np.arange(FRAMES), [f"{second - seconds[0]:.1f}" for second in seconds])
    axes.set(aspect="equal", xlabel="x", ylabel="seconds", title="gait of the best policy")


EXPERIMENT = Experiment(
    name="control",
    summary="a linear policy for MuJoCo's swimmer",
    source="Vicol, Metz, Sohl-Dickstein, ICML 2021, and its published code (control)",
    run=run,
    draw=draw,
    protocol=__doc__,
    seeds=tuple(range(12)),
    spread=True,
)
