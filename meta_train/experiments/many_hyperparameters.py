"""Many hyperparameters: PES tunes twenty at once better than random search and truncated ES.

Protocol: an MLP with four hidden layers of 100 units is trained on MNIST for T = 1,000 steps by SGD with
momentum, with minibatches of 100. Each of its 10 tensors has its own learning rate ``exp(.)`` and momentum
``sigmoid(.)``. The meta-loss is the loss on a minibatch of validation images after each step, summed over an
episode. K = 10, N = 10 particles, sigma = 0.3; Adam with a learning rate of 1e-2. Every method has the same
number of inner steps, counting those of all particles; random search spends T of them on each of its points.
The loss of the unperturbed theta over whole episodes is measured 100 times at equal intervals; the pictures
show the lowest so far.

The other methods start in the box in which the released code starts PES: learning rates of 1e-4 to 1e-2,
log-uniform, and momenta of 0.01 to 0.9. They can leave it, so random search is run three times, each with the
same number of inner steps: in this box; in one that contains most of the points where the others end, 1e-4 to
1 and 0.01 to 0.99; and in the box that it has in the released code, 1e-8 to 10 and 0.01 to 0.999.

The talk mentions twenty hyperparameters and MNIST. ``--version released`` does what the released code does:
five hidden layers on Fashion-MNIST, so 12 tensors, and for each hidden layer the share of its units that are
active (0.2 to 0.8, in the released box of random search 0.01 to 0.999), 29 hyperparameters in all.

The small scale has images of 14x14 pixels, hidden layers of 32 units, T = 200, N = 12 (six pairs, for two
cores), and 288,000 inner steps.

Source: Vicol, Metz, Sohl-Dickstein, ICML 2021, and its published code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from inner_tasks import InnerState, TaskSettings, Training, find_objective
from inner_tasks.task import Params
from inner_tasks.tasks.images import mlp_task
from learned_opt._src.architectures.sgdm import ZERO, Accumulators, heavy_ball
from learned_opt._src.architectures.tunable import tunable
from learned_opt._src.learned_optimizer import Theta
from meta_train.estimators import Estimator, nres, pes, truncated_es
from meta_train.experiments.base import Experiment, Outcome, Result, Settings, Verdict, is_above, judged
from meta_train.experiments.learning import learn, mean_losses

TRUNCATION = 10
SIGMA = 0.3
LEARNING_RATE = 1e-2
BATCH_SIZE = 100
RECORDS = 100


class Method(NamedTuple):
    """A method that updates theta, and the cost of its particles."""

    make: Callable[..., Estimator]
    label: str
    unrolled: int  # particles unrolled per pair, including an unperturbed one


METHODS = {
    "pes": Method(pes, "PES", 2),
    "nres": Method(nres, "NRES", 2),
    "truncated-es": Method(truncated_es, "truncated ES", 3),
}


class Protocol(NamedTuple):
    """The settings that differ between scales."""

    pool: int  # images are smaller by this factor
    width: int  # of the hidden layers
    horizon: int
    particles: int
    steps: int  # inner steps of all particles; a hundredth of them is a whole number of updates
    runs: int  # episodes that a theta is measured on


PROTOCOLS = {
    "small": Protocol(2, 32, 200, 12, 288_000, 4),
    "paper": Protocol(1, 100, 1000, 10, 3_000_000, 10),
}


class Version(NamedTuple):
    """The settings that differ between versions."""

    dataset: str
    layers: int  # hidden layers
    masked: bool  # whether the share of active units of each layer is a hyperparameter


VERSIONS = {"talk": Version("mnist", 4, False), "released": Version("fashion_mnist", 5, True)}


class Box(NamedTuple):
    """The box that the initial points are drawn from."""

    learning_rate: tuple[float, float]  # log-uniform
    momentum: tuple[float, float]
    share: tuple[float, float]


START = Box((1e-4, 1e-2), (0.01, 0.9), (0.2, 0.8))
# Random search by its box.
SEARCHES = {
    "random-search-start": (START, "random search, box of the starts"),
    "random-search-ends": (Box((1e-4, 1.0), (0.01, 0.99), (0.2, 0.99)), "random search, box of the ends"),
    "random-search-wide": (Box((1e-8, 10.0), (0.01, 0.999), (0.01, 0.999)), "random search, released box"),
}
LABELS = {name: method.label for name, method in METHODS.items()}
LABELS |= {name: label for name, (_, label) in SEARCHES.items()}


@dataclass(frozen=True)
class Options:
    """Options of this experiment."""

    version: Literal["talk", "released"] = "talk"
    """talk: twenty hyperparameters on MNIST; released: the 29 of the released code, on Fashion-MNIST."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MaskedTraining(Training):
    """Training in which ``sigmoid(theta["share"])`` is the share of active units of each hidden layer."""

    def step(self, theta: Theta, state: InnerState, key: jax.Array) -> tuple[InnerState, jax.Array]:
        """One training step of the network of active units."""
        shares, own = theta["share"], {name: x for name, x in theta.items() if name != "share"}
        loss = self.task.loss
        task = dataclasses.replace(self.task, loss=lambda p, batch: loss(active(p, shares), batch))
        return Training(self.data, task, self.optimizer, self.horizon, self.objective).step(own, state, key)


def active(params: Params, shares: jax.Array) -> Params:
    """An MLP in which the units of hidden layer l beyond the share ``sigmoid(shares[l])`` output zero."""
    params = dict(params)
    for layer, share in enumerate(shares):
        name = f"Dense_{layer}"
        width = params[name]["bias"].size
        on = (jnp.arange(width) + 0.5) / width < jax.nn.sigmoid(share)
        params[name] = jax.tree.map(lambda p, on=on: p * on, params[name])
    return params


def tuning(protocol: Protocol, version: Version, data_dir: Path | None) -> Training:
    """Training with hyperparameters for each tensor, as an unrolled problem."""

    def rule(
        own: Mapping[str, jax.Array], gradient: jax.Array, accumulators: Accumulators, count: jax.Array
    ) -> tuple[jax.Array, Accumulators]:
        rate, decay = jnp.exp(own["log_learning_rate"]), jax.nn.sigmoid(own["momentum"])
        return heavy_ball(gradient, accumulators, rate, decay)

    hyperparameters = tunable(rule, ZERO, {"log_learning_rate": 0.0, "momentum": 0.0}, per_block=True)
    settings = TaskSettings((protocol.width,) * version.layers, BATCH_SIZE, protocol.horizon)
    task = mlp_task(version.dataset, settings, pool=protocol.pool)
    kind = MaskedTraining if version.masked else Training
    objective = find_objective("validation-loss", task)
    return kind(task.load(data_dir), task, hyperparameters, protocol.horizon, objective)


def draw_theta(key: jax.Array, box: Box, version: Version) -> Theta:
    """A random point of the box."""
    rate_key, momentum_key, share_key = jax.random.split(key, 3)
    blocks = 2 * (version.layers + 1)
    low, high = np.log(box.learning_rate)

    def logit(key: jax.Array, size: int, ends: tuple[float, float]) -> jax.Array:
        x = jax.random.uniform(key, (size,), minval=ends[0], maxval=ends[1])
        return jnp.log(x) - jnp.log1p(-x)

    theta = {
        "log_learning_rate": jax.random.uniform(rate_key, (blocks,), minval=low, maxval=high),
        "momentum": logit(momentum_key, blocks, box.momentum),
    }
    return theta | {"share": logit(share_key, version.layers, box.share)} if version.masked else theta


def run(settings: Settings, console: Console) -> Result:
    """Run every method from random points, and random search."""
    protocol, version = PROTOCOLS[settings.scale], VERSIONS[settings.options.version]
    problem = tuning(protocol, version, settings.data_dir)
    like = draw_theta(jax.random.key(0), START, version)

    def values(thetas: np.ndarray, runs: int, label: str) -> np.ndarray:
        """Loss summed over an episode, for thetas ``[..., entries]``."""
        means = mean_losses(problem, thetas, like, runs, label=label, settings=settings, console=console)
        return protocol.horizon * means

    outcomes = {}
    for name, method in METHODS.items():
        per_update = protocol.particles // 2 * method.unrolled * TRUNCATION
        every = max(1, protocol.steps // per_update // RECORDS)
        path = learn(
            name,
            method.label,
            partial(method.make, sigma=SIGMA, truncation=TRUNCATION, chunk=settings.chunk),
            problem,
            optax.adam(LEARNING_RATE),
            lambda key: draw_theta(key, START, version),
            pairs=protocol.particles // 2,
            updates=every * RECORDS,
            every=every,
            settings=settings,
            console=console,
        )
        value = values(path["theta"], protocol.runs, f"path of {method.label}")
        outcomes[name] = _outcome(path["steps"], value, path["theta"])
    for name, (box, label) in SEARCHES.items():
        outcomes[name] = _random_search(box, label, protocol, version, settings, values)
    return Result(outcomes, verdict(outcomes), pictured={"version": settings.options.version})


def _random_search(
    box: Box,
    label: str,
    protocol: Protocol,
    version: Version,
    settings: Settings,
    values: Callable[..., np.ndarray],
) -> Outcome:
    """Try random points of the box once each; the best so far is then measured like the other methods."""
    count = protocol.steps // protocol.horizon

    @jax.vmap
    def draw(key: jax.Array) -> jax.Array:
        return jax.flatten_util.ravel_pytree(draw_theta(key, box, version))[0]

    thetas = np.stack([draw(jax.random.split(jax.random.key(seed), count)) for seed in settings.seeds])
    tried = values(thetas, 1, label)
    best = np.array([[np.argmin(seed[: n + 1]) for n in range(count)] for seed in tried])
    path = np.take_along_axis(thetas, best[..., None], axis=1)
    # Measure each point that was ever the best of its seed, once.
    chosen, inverse = np.unique(best + count * np.arange(len(best))[:, None], return_inverse=True)
    measured = values(thetas.reshape(-1, thetas.shape[-1])[chosen], protocol.runs, f"best of {label}")
    steps = protocol.horizon * np.arange(1, count + 1)
    return _outcome(steps, measured[inverse].reshape(best.shape), path)


def _outcome(steps: np.ndarray, values: np.ndarray, thetas: np.ndarray) -> Outcome:
    """The outcome with the lowest value so far, and its theta."""
    least = np.minimum.accumulate(values, axis=1)
    best = thetas[np.arange(len(values)), values.argmin(axis=1)]
    return Outcome(least[:, -1], best, {"steps": steps, "value": values, "best": least})


def verdict(outcomes: Mapping[str, Outcome]) -> Verdict:
    """PES ends below truncated ES and below the best of the random searches, on average over seeds."""
    final = {name: outcome.final_loss for name, outcome in outcomes.items()}
    said = ", ".join(
        f"{LABELS[name]} {values.mean():.1f} ({values.min():.1f} to {values.max():.1f})"
        for name, values in final.items()
    )
    search = min(SEARCHES, key=lambda name: final[name].mean())
    own = (LABELS["pes"], final["pes"])
    return judged(
        f"least validation loss, summed over an episode, mean and range over {own[1].size} seeds: {said}",
        is_above((LABELS[search], final[search]), own),
        is_above((LABELS["truncated-es"], final["truncated-es"]), own),
    )


def draw(result: Result, folder: Path) -> Sequence[Path]:
    """Draw the lowest loss so far over inner steps, and the hyperparameters that were found."""
    from meta_train.experiments.drawing import styles
    from meta_train.report.figures import picture

    path = folder / "many_hyperparameters.png"
    with picture(path, ncols=2, figsize=(11, 4.4)) as (figure, (left, right)):
        for number, (name, style) in enumerate(styles(result.methods).items()):
            outcome = result.methods[name]
            best = outcome.curve["best"]
            left.plot(outcome.curve["steps"], best.mean(axis=0), label=LABELS[name], **style)
            left.fill_between(
                outcome.curve["steps"],
                best.min(axis=0),
                best.max(axis=0),
                color=style["color"],
                alpha=0.15,
                lw=0,
            )
            blocks = 2 * (VERSIONS[result.pictured["version"]].layers + 1)
            rates = np.exp(outcome.theta[:, :blocks])
            right.semilogy(
                np.arange(blocks) + 0.12 * (number - (len(result.methods) - 1) / 2),
                rates.T,
                "o",
                ms=3.5,
                alpha=0.7,
                color=style["color"],
            )
        left.set(
            xlabel="inner steps of all particles",
            ylabel="validation loss, summed over an episode",
            yscale="log",
            title="least so far: mean and range over seeds",
        )
        left.legend()
        right.set(xlabel="tensor: biases even, kernels odd", ylabel="learning rate", title="found, by seed")
    return [path]


EXPERIMENT = Experiment(
    name="many-hyperparameters",
    summary="learning rates and momenta of every tensor of an MLP, compared with random search",
    source="Vicol, Metz, Sohl-Dickstein, ICML 2021, section 5 (many hyperparameters), and its published code",
    run=run,
    draw=draw,
    protocol=__doc__,
    seeds=tuple(range(8)),
    options=Options,
    spread=True,
)
