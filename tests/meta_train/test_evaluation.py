"""The comparison: its runs against a plain training loop, its tuning against the rates it should find."""

from __future__ import annotations

import dataclasses
import io
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

import learned_opt
from inner_tasks import OBJECTIVES, Task, TaskSettings, Training, find_task
from meta_train.report import evaluation
from meta_train.report.baselines import (
    BASELINES,
    DEFAULT_BASELINES,
    RULES,
    SCHEDULES,
    baseline,
    find_baseline,
)
from meta_train.report.comparison import REFERENCE, Comparison, compare, learning_rates
from meta_train.report.costs import Cost
from meta_train.report.evaluation import (
    CRITERIA,
    FIRST_TUNING_SEED,
    LEARNING_RATES,
    MEAN_LOSS,
    Contestant,
    Criterion,
    Result,
    Runs,
    evaluation_key,
    find_criterion,
    metrics_of,
    run,
)
from meta_train.report.tables import card, print_comparison, rows, standard_error, summary
from tests.marks import slow

STEPS = 30


def quadratic(scale: float = 1.0) -> Task:
    """``0.5 * scale * |x|^2``, where only the initialisation is random."""
    return Task(
        init=lambda key: jax.random.normal(key, (5,)),
        sample=lambda data, key: None,
        loss=lambda params, batch: 0.5 * scale * jnp.sum(params**2),
        metrics=lambda params, data: {"distance": jnp.linalg.norm(params)},
        load=lambda data_dir: (),
        horizon=STEPS,
    )


def on_quadratic(scale: float = 1.0) -> Training:
    return Training((), quadratic(scale), learned_opt.get_architecture("mlp"), STEPS)


@pytest.fixture(scope="module")
def digits() -> Training:
    task = find_task("digits-mlp").build(TaskSettings(hidden=(32,), batch_size=64, horizon=STEPS))
    return Training(task.load(None), task, learned_opt.get_architecture("mlp"), STEPS)


def test_losses_of_16_bits_are_averaged_in_32():
    task = dataclasses.replace(quadratic(), init=lambda key: jnp.full(5, 20, jnp.bfloat16))
    training = Training((), task, baseline("sgdm", 2000).optimizer, 2000)
    runs = run(training, Contestant(training.optimizer, jnp.float32(0)), seeds=1, devices=1).runs
    assert runs.losses.dtype == np.float32
    np.testing.assert_allclose(runs.mean_loss, 1000)


@pytest.mark.parametrize("compiled", ["briefly", slow("as users compile")])
@pytest.mark.parametrize("devices", [slow(1), 2])
def test_exported_optimizer_in_a_plain_loop_gives_the_same_losses_to_the_bit(
    digits, devices, compiled, tmp_path, request
):
    if compiled == "as users compile":
        request.getfixturevalue("optimized")
    theta = digits.init_theta(jax.random.key(3))
    learned_opt.save(tmp_path / "optimizer.safetensors", "mlp", theta, {})
    runs = run(digits, Contestant(digits.optimizer, theta), 2, devices=devices).runs

    tx = learned_opt.load(tmp_path / "optimizer.safetensors")

    @jax.jit
    def step(params, state, batch):
        loss, gradients = jax.value_and_grad(digits.task.loss)(params, batch)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    for seed in range(2):
        init_key, data_key = jax.random.split(evaluation_key(seed))
        params = digits.task.init(init_key)
        state, losses = tx.init(params), []
        for key in jax.random.split(data_key, STEPS):
            batch = digits.task.sample(digits.data, key)
            params, state, loss = step(params, state, batch)
            losses.append(loss)
        np.testing.assert_array_equal(np.array(losses), runs.losses[seed])
        metrics = digits.task.metrics(params, digits.data)
        np.testing.assert_allclose(metrics["validation_accuracy"], runs.metrics["validation_accuracy"][seed])
    assert (runs.losses[0] != runs.losses[1]).all()


@pytest.mark.parametrize("steps", [200, 30, 1])
def test_schedules_are_their_formulas(steps):
    """Against NumPy, at every step, including the first, the last of the warm-up and the very last."""
    rate, t = 0.3, np.arange(steps)
    warm_up = max(1, round(0.02 * steps))
    falling = (t - (warm_up - 1)) / (steps - (warm_up - 1))
    cosine = np.where(t < warm_up, rate * (t + 1) / warm_up, rate * (1 + np.cos(np.pi * falling)) / 2)
    expected = {"": np.full(steps, rate), "-cosine": cosine, "-linear": rate * (1 - t / steps)}
    assert expected.keys() == SCHEDULES.keys()
    for ending, values in expected.items():

        @jax.jit
        def at(rate, step, make=SCHEDULES[ending].make):  # the rate is traced, as when many are tried
            made = make(rate, steps)
            return made(step) if callable(made) else made

        found = [at(rate, step) for step in t]
        np.testing.assert_allclose(found, values, rtol=1e-5, atol=1e-6)
    if steps == 200:
        assert cosine[0] == rate / 4 and cosine[3] == rate and 0 < cosine[-1] < 1e-4 * rate
        np.testing.assert_allclose(cosine[3 + 197 // 2], rate / 2, rtol=0.02)


@pytest.mark.parametrize("name", [*RULES, "adamw-cosine", "nadam-linear", "lion-cosine"])
def test_baseline_is_the_optax_optimizer(name):
    training = on_quadratic()
    tuned = run(training, baseline(name, STEPS), seeds=2, rates=[1e-2, 1e-1, 1.0], devices=1)
    rule, schedule = find_baseline(name)
    tx = rule.make(schedule.make(np.float32(tuned.learning_rate), STEPS))
    params = training.task.init(jax.random.split(evaluation_key(1))[0])
    state, losses = tx.init(params), []
    for _ in range(STEPS):
        loss, gradient = jax.value_and_grad(training.task.loss)(params, None)
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        losses.append(loss)
    np.testing.assert_allclose(tuned.runs.losses[1], losses, rtol=1e-4, atol=1e-7)


def test_every_comparison_has_scheduled_optimizers():
    assert set(DEFAULT_BASELINES) <= BASELINES.keys() and REFERENCE in DEFAULT_BASELINES
    scheduled = {name.partition("-")[0] for name in DEFAULT_BASELINES if "-" in name}
    assert scheduled == {"adamw", "nadam", "sgdm", "muon"}
    for rule in ("adamw", "nadam", "sgdm", "muon"):
        assert {f"{rule}-cosine", f"{rule}-linear"} <= BASELINES.keys()


def test_only_scheduled_optimizers_know_the_number_of_steps():
    """The losses of all others are the same in the first half of a run twice as long."""
    short, long = on_quadratic(), dataclasses.replace(on_quadratic(), horizon=2 * STEPS)
    learned = Contestant(short.optimizer, short.init_theta(jax.random.key(0)))

    def losses(training: Training, contestant: Contestant) -> np.ndarray:
        return run(training, contestant, seeds=1, rates=[0.1], devices=1).runs.losses[0, :STEPS]

    def fixed(name: str, steps: int) -> Contestant:
        return baseline(name, steps)._replace(theta=np.float32(0.1))

    np.testing.assert_array_equal(losses(short, learned), losses(long, learned))
    for name in ("adam", "adamw-cosine", "nadam-linear"):
        same = np.array_equal(losses(short, fixed(name, STEPS)), losses(long, fixed(name, 2 * STEPS)))
        assert same == ("-" not in name)


def by_seed() -> Training:
    """A quadratic with a random curvature between 0.01 and 100, so that the best rate depends on the seed."""

    def init(key: jax.Array) -> dict[str, jax.Array]:
        return {"x": jnp.ones(()), "curvature": 10 ** jax.random.uniform(key, minval=-2, maxval=2)}

    def loss(params: dict[str, jax.Array], batch: None) -> jax.Array:
        return 0.5 * jax.lax.stop_gradient(params["curvature"]) * params["x"] ** 2

    task = Task(init, lambda data, key: None, loss, lambda params, data: {}, lambda data_dir: (), STEPS)
    return Training((), task, learned_opt.get_architecture("mlp"), STEPS)


def test_rates_are_tuned_on_seeds_that_are_not_reported():
    """The best rate on the tuning seed is used, although another one is better on the reported seed."""
    training, rates = by_seed(), [1e-3, 1e-2, 1e-1, 1.0, 10.0]
    tuned = run(training, baseline("sgdm", STEPS), seeds=1, rates=rates, devices=1)

    def of_seed(seed: int, rate: float) -> float:
        params = training.task.init(jax.random.split(evaluation_key(seed))[0])
        x, velocity, losses = 1.0, 0.0, []
        for _ in range(STEPS):
            losses.append(0.5 * float(params["curvature"]) * x**2)
            velocity = 0.9 * velocity + float(params["curvature"]) * x
            x -= rate * velocity
        return float(np.mean(losses))

    on_tuning = {rate: of_seed(FIRST_TUNING_SEED, rate) for rate in tuned.tried}
    reported = {rate: of_seed(0, rate) for rate in tuned.tried}
    finite = {rate: loss for rate, loss in tuned.tried.items() if loss < 1e6}
    np.testing.assert_allclose(list(finite.values()), [on_tuning[rate] for rate in finite], rtol=1e-3)
    assert min(reported, key=reported.get) != min(on_tuning, key=on_tuning.get)
    assert tuned.learning_rate == min(on_tuning, key=on_tuning.get)
    assert tuned.runs.mean_loss[0] == pytest.approx(reported[tuned.learning_rate], rel=1e-3)


def test_tuning_and_reporting_seeds_are_disjoint(monkeypatch):
    """The last seeds that a tuned run trains with are the reported ones; no rate is tried on any of them."""
    seen = []
    runner = evaluation.runner

    def recording(*args, **kwargs):
        run_seeds = runner(*args, **kwargs)
        return lambda thetas, seeds: seen.append(set(seeds)) or run_seeds(thetas, seeds)

    monkeypatch.setattr(evaluation, "runner", recording)
    run(on_quadratic(), baseline("sgdm", STEPS), seeds=3, rates=[1e-2, 1e-1], devices=1)
    *tuning, reporting = seen
    assert reporting == {0, 1, 2}
    assert all(len(seeds) == 3 and seeds.isdisjoint(reporting) for seeds in tuning)
    assert not np.array_equal(*(jax.random.key_data(evaluation_key(seed)) for seed in (0, FIRST_TUNING_SEED)))


@pytest.mark.parametrize("rates", [[1e-5, 1e-4], [10.0, 30.0, 90.0], [1e-3]])
def test_tuning_goes_on_beyond_an_end_point(rates):
    """SGD with momentum 0.9 on curvature 1 is best near the critical (1 - sqrt(0.9))^2 = 2.6e-3 to 0.1."""
    tuned = run(on_quadratic(), baseline("sgdm", STEPS), seeds=2, rates=rates, devices=1)
    assert min(tuned.tried) < tuned.learning_rate < max(tuned.tried)
    assert list(tuned.tried) == sorted(tuned.tried)
    assert tuned.tried[tuned.learning_rate] == min(tuned.tried.values())
    assert np.isfinite(tuned.runs.mean_loss).all()


def test_rates_that_diverge_lose():
    training, rates = on_quadratic(scale=1e4), [1e-6, 1e-4, 1e18]
    tuned = run(training, baseline("sgdm", STEPS), seeds=2, rates=rates, devices=1)
    assert tuned.tried[1e18] == np.inf
    assert tuned.learning_rate < 1e-2
    # Even if the criterion is finite.
    blind = Criterion("constant", "", lambda runs: np.where(np.isfinite(runs.losses[:, -1]), 1.0, 0.0))
    tuned = run(training, baseline("sgdm", STEPS), seeds=2, rates=rates, criterion=blind, devices=1)
    assert tuned.tried[1e18] == np.inf
    assert tuned.learning_rate < 1e-2


def test_a_coarse_grid_is_said():
    def result(*scores: float) -> Result:
        tried = dict(zip([0.01, 0.1, 1.0], scores, strict=True))
        return Result(Runs(np.ones((1, 2)), {}), min(tried, key=tried.get), tried)

    assert result(1.2, 1.0, 3.0).coarse is None
    assert result(1.3, 1.0, np.inf).coarse == "the better neighbour of 1.0e-01 gives 1.3 instead of 1"
    assert result(np.inf, 1.0, np.inf).coarse == "the better neighbour of 1.0e-01 gives inf instead of 1"
    assert result(1.0, 1.1, 1.2).coarse == "the best rate, 1.0e-02, is at the end of those tried"
    assert result(np.inf, np.inf, np.inf).coarse == "no rate gave runs that stayed finite"
    assert Result(Runs(np.ones((1, 2)), {})).coarse is None
    said = []
    for scores in ((1.2, 1.0, 3.0), (1.3, 1.0, 3.0)):
        console = Console(file=io.StringIO(), width=400)
        print_comparison(compared({"adam": result(*scores)}), console)
        said.append(console.file.getvalue())
    assert "too few or too far apart" not in said[0]
    assert (
        "The learning rates tried are too few or too far apart for Adam (the better neighbour of 1.0e-01 "
        "gives 1.3 instead of 1)." in said[1]
    )


def test_devices_and_seeds_do_not_change_a_run():
    training = on_quadratic()
    learned = Contestant(training.optimizer, training.init_theta(jax.random.key(0)))
    one = run(training, learned, seeds=3, devices=1).runs
    two = run(training, learned, seeds=5, devices=2).runs
    np.testing.assert_array_equal(one.losses, two.losses[:3])
    np.testing.assert_array_equal(one.metrics["distance"], two.metrics["distance"][:3])


def test_grid_of_learning_rates():
    np.testing.assert_allclose(learning_rates(15), np.logspace(-4, 0, 15))
    np.testing.assert_allclose(learning_rates(3), [1e-4, 1e-2, 1])
    np.testing.assert_array_equal(LEARNING_RATES, learning_rates(15))


def test_mean_and_final_loss():
    losses = np.arange(40.0, dtype=np.float32).reshape(2, 20)
    losses[1, 3] = np.nan
    runs = Runs(
        losses, {"validation_loss": np.array([2.0, 3.0]), "validation_accuracy": np.array([0.9, 0.8])}
    )
    np.testing.assert_array_equal(runs.mean_loss, [9.5, np.inf])
    np.testing.assert_array_equal(runs.final_loss, [18.5, 38.5])
    # A run with a non-finite loss has lost, whatever its final loss.
    for objective, value in {
        "training-loss": 9.5,
        "later-training-loss": 9.5,
        "final-loss": 18.5,
        "mean-and-end": 14.0,
        "mean-and-validation-end": 5.75,
        "validation-loss": 2.0,
        "validation-accuracy": 0.1,
    }.items():
        np.testing.assert_allclose(CRITERIA[objective].of(runs), [value, np.inf])


def test_standard_errors():
    values = np.array([1.0, 2.0, 4.0, 9.0])
    by_hand = np.sqrt(sum((x - 4.0) ** 2 for x in values) / 3) / 2
    assert standard_error(values) == pytest.approx(by_hand)
    assert np.isnan(standard_error(values[:1])) and np.isnan(standard_error(np.array([1.0, np.inf])))


def test_the_criterion_follows_the_objective(digits):
    assert CRITERIA.keys() == OBJECTIVES.keys()
    metrics = metrics_of(digits)
    assert {"validation_loss", "validation_accuracy"} < set(metrics)
    for objective, criterion in CRITERIA.items():
        assert find_criterion([objective, objective], [metrics]) is criterion
    assert find_criterion(["validation-loss", "training-loss"], [metrics]) is MEAN_LOSS
    assert find_criterion([], [metrics]) is MEAN_LOSS
    # This task has neither a validation loss nor an accuracy.
    assert find_criterion(["validation-loss"], [metrics, metrics_of(on_quadratic())]) is MEAN_LOSS


def compared(results: dict[str, Result], criterion: Criterion = MEAN_LOSS) -> Comparison:
    """A comparison with these results and arbitrary costs."""
    steps = next(iter(results.values())).runs.losses.shape[1]
    return Comparison("made up", steps, results, {n: Cost(1e-3, 8) for n in results}, 2e-3, criterion)


def test_the_ranking_follows_the_criterion():
    """An optimizer that trains fast and overfits is the best by training loss and the worst by validation."""

    def result(loss: float, validation: float, accuracy: float, rate: float | None) -> Result:
        metrics = {"validation_loss": np.full(2, validation), "validation_accuracy": np.full(2, accuracy)}
        return Result(Runs(np.full((2, 20), loss), metrics), rate, {rate: loss} if rate else {})

    results = {
        "learned": result(0.5, 3.0, 0.7, None),
        "adam": result(1.0, 2.0, 0.8, 1e-3),
        "adamw-cosine": result(0.8, 1.0, 0.9, 1e-3),
    }
    by_training = compared(results)
    assert by_training.ranking == ["learned", "adamw-cosine", "adam"]
    assert by_training.best == "adamw-cosine"
    assert by_training.ratio_to_best("learned") == pytest.approx(0.5 / 0.8)
    assert by_training.ratio_to_adam("learned") == pytest.approx(0.5)
    for objective, to_best, to_adam in (
        ("validation-loss", 3.0 / 1.0, 3.0 / 2.0),
        ("validation-accuracy", 0.3 / 0.1, 0.3 / 0.2),
    ):
        by_validation = compared(results, CRITERIA[objective])
        assert by_validation.ranking == ["adamw-cosine", "adam", "learned"]
        assert by_validation.ratio_to_best("learned") == pytest.approx(to_best)
        assert by_validation.ratio_to_adam("learned") == pytest.approx(to_adam)
        found = summary(by_validation)
        key = found["ranked_by"]
        assert found["best"] == "adamw-cosine"
        assert found["optimizers"]["learned"][key] == pytest.approx(
            to_adam * found["optimizers"]["adam"][key]
        )
        assert found["optimizers"]["learned"]["ratio_to_best"] == pytest.approx(to_best)
        assert card(by_validation, "learned")["tuned"]["adam"][key] == found["optimizers"]["adam"][key]
        assert [row["optimizer"] for row in rows(by_validation)] == ["AdamW, cosine", "Adam", "learned"]


def test_a_rival_that_diverged_gives_no_ratio():
    broken = Result(Runs(np.full((1, 20), np.nan), {}), 1e-3, {1e-3: np.inf})
    own = Result(Runs(np.ones((1, 20)), {}))
    found = compared({"own": own, "adam": broken})
    assert np.isnan(found.ratio_to_adam("own")) and found.speed_up("own") is None


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    training = on_quadratic()
    learned = Contestant(training.optimizer, training.init_theta(jax.random.key(0)))
    contestants = {"learned": learned} | {name: baseline(name, STEPS) for name in DEFAULT_BASELINES}
    advances: dict[str, list[tuple[int, int]]] = {}

    def watch(name: str):
        return nullcontext(lambda *advance: advances.setdefault(name, []).append(advance))

    rates = [1e-2, 1e-1, 1.0]
    found = compare(
        "quadratic",
        training,
        contestants,
        seeds=2,
        rates=rates,
        criterion=MEAN_LOSS,
        devices=1,
        chunk=1,
        watch=watch,
    )
    assert advances["learned"] == [(1, 2), (2, 2)]
    for name in DEFAULT_BASELINES:
        runs = [done for done, planned in advances[name]]
        assert runs == list(range(1, 2 * (len(found.results[name].tried) + 1) + 1))
        assert advances[name][0][1] == 8 and advances[name][-1][0] == advances[name][-1][1]
    return found


def test_summary(comparison):
    found = summary(comparison)
    assert (found["task"], found["steps"], found["seeds"]) == ("quadratic", STEPS, 2)
    assert found["optimizers"].keys() == {"learned", *DEFAULT_BASELINES}
    learned, adam = found["optimizers"]["learned"], found["optimizers"]["adam"]
    assert learned["mean_loss"] == pytest.approx(comparison.results["learned"].runs.losses.mean(), rel=1e-6)
    assert learned["ratio_to_adam"] == pytest.approx(learned["mean_loss"] / adam["mean_loss"], rel=1e-6)
    losses = comparison.results["learned"].runs.losses.mean(axis=1)
    assert learned["mean_loss_se"] == pytest.approx(abs(losses[0] - losses[1]) / 2, rel=1e-5)
    assert adam["ratio_to_adam"] == 1 and adam["speed_up"] == 1
    assert found["ranked_by"] == "mean_loss"
    tuned = {name: found["optimizers"][name]["mean_loss"] for name in DEFAULT_BASELINES}
    assert found["best"] == min(tuned, key=tuned.get)
    assert learned["ratio_to_best"] == pytest.approx(learned["mean_loss"] / min(tuned.values()), rel=1e-6)
    assert found["optimizers"][found["best"]]["ratio_to_best"] == 1
    for values in found["optimizers"].values():
        assert 0 < values["update_seconds"] < values["step_seconds"]
    assert adam["learning_rate"] in [entry["learning_rate"] for entry in adam["tried"]]
    assert learned["learning_rate"] is None and "tried" not in learned


def test_non_finite_learned_optimizer_is_null_in_the_summary(comparison):
    broken = Runs(np.full((2, STEPS), np.nan, np.float32), {"distance": np.full(2, np.nan)})
    broken_too = comparison._replace(results=comparison.results | {"learned": Result(broken)})
    found = summary(broken_too)["optimizers"]["learned"]
    assert found["ratio_to_adam"] is found["mean_loss"] is found["distance"] is found["steps_to_adam"] is None
    assert broken_too.failed("learned") and not broken_too.failed("adam")


def test_speed_up_and_failure():
    """For curves from which both can be read off."""
    adam = np.tile(np.linspace(10, 1, 20, dtype=np.float32), (2, 1))

    def with_curve(curve: np.ndarray) -> Comparison:
        return compared({"own": Result(Runs(curve, {})), "adam": Result(Runs(adam, {}), 1e-3, {1e-3: 1.0})})

    assert with_curve(adam).steps_to_adam("own") == with_curve(adam).steps_to_adam("adam") == 20
    assert with_curve(adam).speed_up("own") == 1
    fast = np.full((2, 20), 0.5, np.float32)
    fast[:, :5] = 10
    # The mean of Adam's last two steps is 1.24; the mean of two steps is below that once both are 0.5.
    assert with_curve(fast).steps_to_adam("own") == 7
    assert with_curve(fast).speed_up("own") == 20 / 7
    assert with_curve(adam + 0.1).steps_to_adam("own") is None
    assert with_curve(adam + 0.1).speed_up("own") is None
    assert not with_curve(fast).failed("own")
    worse = fast.copy()
    worse[1, -2:] = 11
    assert with_curve(worse).failed("own")


def test_adam_is_as_fast_as_adam():
    """Exactly, even if it reaches its final loss before the end, as with noisy losses."""
    rng, steps = np.random.default_rng(0), []
    for _ in range(50):
        losses = np.maximum(np.linspace(2, -1, 40), 0.5) + 0.1 * rng.standard_normal((3, 40))
        adam = Result(Runs(losses.astype(np.float32), {}), 1e-3, {1e-3: 1.0})
        found = compared({"own": adam, "adam": adam})
        assert found.speed_up("adam") == found.speed_up("own") == 1
        steps.append(found.steps_to_adam("adam"))
    assert min(steps) < 30


def test_card_has_its_own_figures_and_those_of_the_tuned(comparison):
    found = card(comparison, "learned")
    assert (found["task"], found["steps"], found["seeds"]) == ("quadratic", STEPS, 2)
    assert found["tuned"].keys() == set(DEFAULT_BASELINES)
    whole = summary(comparison)["optimizers"]
    assert found["own"]["mean_loss"] == whole["learned"]["mean_loss"]
    # Nothing that depends on the machine or the day.
    assert not any("seconds" in key for key in found["own"] | found["tuned"]["adam"])
    assert found["tuned"]["adam"]["learning_rate"] == whole["adam"]["learning_rate"]


def test_rows_are_ranked(comparison):
    losses = [row["mean_loss"] for row in rows(comparison)]
    assert losses == sorted(losses)
    assert len(losses) == 6


def test_training_step_is_loss_before_update():
    training = on_quadratic()
    theta = training.init_theta(jax.random.key(0))
    state = training.init(jax.random.key(1))
    after, loss = training.step(theta, state, jax.random.key(2))
    assert float(loss) == pytest.approx(float(0.5 * jnp.sum(state.params**2)))
    assert (after.params != state.params).all()
    assert dataclasses.replace(training, horizon=7).horizon == 7
