"""Every architecture as a plain formula in float64 NumPy, independent of the package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Theta = Any
Rule = Callable[[Theta, list[np.ndarray], np.ndarray, int], np.ndarray]

MLP_DECAYS = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
TIME_SCALES = (1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5)


def ema(gradients: list[np.ndarray], decay: float, power: int = 1) -> np.ndarray:
    """Moving average of powers of the gradients, starting from zero."""
    average = np.zeros_like(gradients[0])
    for gradient in gradients:
        average = decay * average + (1 - decay) * gradient**power
    return average


def network(theta: Theta, columns: list[np.ndarray], epsilon: float, constants: np.ndarray) -> np.ndarray:
    """The outputs for one row of inputs per parameter: ``[n, outputs]``."""
    x = np.stack([c.reshape(-1) / np.sqrt(epsilon + np.mean(c**2)) for c in columns], axis=1)
    x = np.concatenate([x, np.broadcast_to(constants, (len(x), len(constants)))], axis=1)
    for number in range(len(theta)):
        x = x @ theta[f"Dense_{number}"]["kernel"] + theta[f"Dense_{number}"]["bias"]
        if number < len(theta) - 1:
            x = np.maximum(x, 0)
    return x


def time(count: int, scales: tuple[float, ...] = TIME_SCALES) -> np.ndarray:
    return np.tanh(count / np.array(scales) - 1)


def small_step(outputs: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return (-0.001 * outputs[:, 0] * np.exp(0.001 * outputs[:, 1])).reshape(shape)


def mlp(theta: Theta, gradients: list[np.ndarray], param: np.ndarray, count: int) -> np.ndarray:
    columns = [gradients[-1], param, *(ema(gradients, d) for d in MLP_DECAYS)]
    return small_step(network(theta, columns, 1e-5, time(count)), param.shape)


def metz2019(theta: Theta, gradients: list[np.ndarray], param: np.ndarray, count: int) -> np.ndarray:
    """The released network with all of its 31 inputs; theta has weights for the 21 that are not constant."""
    live = theta["Dense_0"]["kernel"]
    first = np.random.RandomState(0).normal(size=(31, 32))
    first[:12], first[22:] = live[:12], live[12:]
    constant = 1e3 / np.sqrt(1e-5 + 1e6)
    whole = theta | {
        "Dense_0": {"kernel": first, "bias": theta["Dense_0"]["bias"] - constant * first[17:22].sum(0)}
    }
    momenta = [ema(gradients, d) for d in (0.5, 0.9, 0.99, 0.999, 0.9999)]
    moments = [np.zeros_like(param)] * 5  # the release does not update them
    roots = [1 / np.sqrt(v + 1e-6) for v in moments]
    scaled = [m * r for m, r in zip(momenta, roots, strict=True)]
    columns = [gradients[-1], *scaled, param, *momenta, *moments, *roots]
    outputs = network(whole, columns, 1e-5, time(count, (3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e5)))
    return small_step(outputs, param.shape)


def factored(gradients: list[np.ndarray], decay: float) -> tuple[np.ndarray, ...]:
    """Rows, columns, and ``1 / sqrt`` of their product for gradients and for momenta, in one shape."""
    squares = [g**2 + 1e-30 for g in gradients]
    shape = squares[0].shape
    if len(shape) < 2:
        full = ema(squares, decay)
        return full, full, 1 / np.sqrt(np.maximum(full + 1e-9, 1e-9)), 1 / np.sqrt(full + 1e-6)
    second, largest = np.argsort(shape, kind="stable")[-2:]
    rows = ema([np.mean(s, largest, keepdims=True) for s in squares], decay)
    columns = ema([np.mean(s, second, keepdims=True) for s in squares], decay)
    ratio = rows / (rows.mean(second, keepdims=True) + 1e-9)
    root = 1 / np.sqrt(np.maximum(ratio, 1e-9)) / np.sqrt(np.maximum(columns, 1e-9))
    return *(np.broadcast_to(x, shape) for x in (rows, columns)), root, root


def factored_columns(gradients: list[np.ndarray], momenta: list[np.ndarray]) -> list[list[np.ndarray]]:
    each = [factored(gradients, d) for d in (0.9, 0.99, 0.999)]
    scaled = [m * of_momentum for m, (*_, of_momentum) in zip(momenta, each, strict=True)]
    rows, columns, roots, _ = (list(group) for group in zip(*each, strict=True))
    inverse = [[1 / np.sqrt(x + 1e-8) for x in group] for group in (rows, columns)]
    return [[gradients[-1] * r for r in roots], rows, columns, *inverse, scaled]


def small_fc(theta: Theta, gradients: list[np.ndarray], param: np.ndarray, count: int) -> np.ndarray:
    """With the initial decays (theta is zero for them)."""
    momenta = [ema(gradients, d) for d in (0.9, 0.99, 0.999)]
    moment = ema(gradients, 0.999, 2)
    root = 1 / np.sqrt(moment + 1e-6)
    columns = [gradients[-1], param, *momenta, moment, *(m * root for m in momenta), root]
    columns += sum(factored_columns(gradients, momenta), [])
    return small_step(network(theta["network"], columns, 1e-5, time(count)), param.shape)


def celo2_style(theta: Theta, gradients: list[np.ndarray], param: np.ndarray, count: int) -> np.ndarray:
    momenta = [ema(gradients, d) for d in (0.9, 0.99, 0.999)]
    moment = ema(gradients, 0.95, 2)
    root = 1 / np.sqrt(moment + 1e-8)
    columns = [gradients[-1], np.clip(gradients[-1], -0.1, 0.1), param, *momenta, moment]
    columns += [*(m * root for m in momenta), root]
    scaled, *others = factored_columns(gradients, momenta)
    columns += [*scaled, gradients[-1] * root]
    weights = dict(theta["network"])
    if param.ndim >= 2:
        columns += sum(others, [])
    else:
        weights["Dense_0"] = weights["Dense_0"] | {"kernel": weights["Dense_0"]["kernel"][:15]}
    direction = network(weights, columns, 1e-9, np.zeros(0))[:, 0].reshape(param.shape)
    return -np.exp(theta["log_learning_rate"]) * direction / np.sqrt(1e-9 + np.mean(direction**2))


def rms(x: np.ndarray) -> float:
    return np.sqrt(np.mean(x**2))


def relative_mlp(theta: Theta, gradients: list[np.ndarray], param: np.ndarray, count: int) -> np.ndarray:
    decays = (0.5, 0.9, 0.99, 0.999)
    momenta, moment = [ema(gradients, d) for d in decays], ema(gradients, 0.99, 2)
    root = 1 / np.sqrt(moment + 1e-4 * moment.mean())
    columns = [gradients[-1], param, *momenta, gradients[-1] * root, *(m * root for m in momenta), root]
    expected = moment.mean() / (1 - 0.99 ** (count + 1))
    steady = [
        np.log10(rms(m / (1 - d ** (count + 1))) / np.sqrt(expected))
        for m, d in zip(momenta, decays, strict=True)
    ]
    context = np.concatenate([steady, [float(param.ndim < 2)], time(count)])
    correction = network(theta["direction"], columns, 1e-20, context)[:, 0].reshape(param.shape)
    nominal = momenta[1] * root
    direction = nominal / rms(nominal) + 0.3 * correction
    hidden = np.maximum(context @ theta["step"]["Dense_0"]["kernel"] + theta["step"]["Dense_0"]["bias"], 0)
    step = hidden @ theta["step"]["Dense_1"]["kernel"][:, 0] + theta["step"]["Dense_1"]["bias"][0]
    wide = param.reshape(-1, param.shape[-1]) if param.ndim else param.reshape(1, 1)
    share = min(1, sum(1 / np.sqrt(n) for n in wide.shape))
    return -0.03 * np.exp(step) * share * np.sqrt(np.mean(param**2) + 1e-4) * direction / rms(direction)


class Corrected(NamedTuple):
    """The common part of nadam_mlp and muon_mlp."""

    direction: np.ndarray
    sizes: np.ndarray  # schedules times powers of the shrinkage times exp of the step network's outputs
    scale: float
    wide: tuple[int, int]  # rows and columns


def corrected_nadam(
    theta: Theta,
    gradients: list[np.ndarray],
    param: np.ndarray,
    count: int,
    num_steps: float,
    *others: np.ndarray,
) -> Corrected:
    decays = (0.5, 0.9, 0.99)
    momenta, moment = [ema(gradients, d) for d in decays], ema(gradients, 0.99, 2)
    root = 1 / np.sqrt(moment + 1e-4 * moment.mean())
    columns = [param, root, gradients[-1] * root, *(m * root for m in momenta), *others]
    expected = moment.mean() / (1 - 0.99 ** (count + 1))
    steady = [
        np.log10(rms(m / (1 - d ** (count + 1))) / np.sqrt(expected))
        for m, d in zip(momenta, decays, strict=True)
    ]
    squares = [ema(gradients[: t + 1], 0.99, 2).mean() / (1 - 0.99 ** (t + 1)) for t in range(count + 1)]
    level = ema(squares, 0.999) / (1 - 0.999 ** (count + 1))
    shrinkage = max(0.03, min(1, np.sqrt(expected / level)))
    known, progress = np.isfinite(num_steps), min(1, count / num_steps)
    seen = min(count * min(1, 2000 / num_steps) if known else count, 2000)
    early, late = np.tanh(seen / 10 - 1), np.log10(1 + seen) / 2 - 0.5
    length = np.log10(min(num_steps, 2000)) / 2 - 1.25 if known else 0
    context = np.array(
        [
            *steady,
            param.ndim < 2,
            np.log10(shrinkage),
            progress,
            2 * progress**2 - 1,
            known,
            length,
            late,
            early,
        ]
    )
    correction = network(theta["direction"], columns, 1e-20, context)[:, 0].reshape(param.shape)
    mean = 0.9 * momenta[1] / (1 - 0.9 ** (count + 2)) + 0.1 * gradients[-1] / (1 - 0.9 ** (count + 1))
    nominal = mean * root * np.sqrt(1 - 0.99 ** (count + 1))
    hidden = np.maximum(context @ theta["step"]["Dense_0"]["kernel"] + theta["step"]["Dense_0"]["bias"], 0)
    steps = hidden @ theta["step"]["Dense_1"]["kernel"] + theta["step"]["Dense_1"]["bias"]
    direction = nominal + 0.3 * rms(nominal) * correction
    return Corrected(
        direction=rms(nominal) * direction / rms(direction),
        sizes=learned_schedules(theta["schedule"], count, num_steps)
        * shrinkage ** np.exp(3 * theta["shrinkage"])
        * np.exp(steps),
        scale=np.sqrt(np.mean(param**2) + 1e-4),
        wide=param.reshape(-1, param.shape[-1]).shape if param.ndim else (1, 1),
    )


def learned_schedules(theta: Theta, count: int, num_steps: float) -> np.ndarray:
    w = {name: np.exp(3 * value) for name, value in theta.items()}
    if np.isinf(num_steps):
        warm_up = np.maximum(1, 3 * w["warm_up"])
        return np.minimum(1, (count + 1) / warm_up) * (1 + count / 100) ** (-0.75 * w["decay"])
    warm_up, left = np.maximum(1, 0.003 * num_steps * w["warm_up"]), max(0, 1 - count / num_steps)
    annealed = left ** w["power"] / (1 + w["fade"] * (1 - left))
    return min(1, 2000 / num_steps) ** 0.5 * np.minimum(1, (count + 1) / warm_up) * annealed


def nadam_mlp(
    theta: Theta, gradients: list[np.ndarray], param: np.ndarray, count: int, num_steps: float = np.inf
) -> np.ndarray:
    found = corrected_nadam(theta, gradients, param, count, num_steps)
    share = min(1, sum(1 / np.sqrt(n) for n in found.wide))
    return -0.5 * found.sizes[0] * share * found.scale * found.direction


def muon_mlp(
    theta: Theta, gradients: list[np.ndarray], param: np.ndarray, count: int, num_steps: float = np.inf
) -> np.ndarray:
    rows, columns = param.reshape(-1, param.shape[-1]).shape if param.ndim else (1, 1)
    matrix = np.zeros_like(param)
    if param.ndim > 1 and min(rows, columns) > 1:
        average = 0.9 * ema(gradients, 0.9) + 0.1 * gradients[-1]
        left, values, right = np.linalg.svd(average.reshape(rows, columns), full_matrices=False)
        values /= np.sqrt(np.sum(values**2))
        for _ in range(5):
            values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
        matrix = ((left * values) @ right).reshape(param.shape) * (np.sqrt(rows) + np.sqrt(columns))
    found = corrected_nadam(theta, gradients, param, count, num_steps, matrix)
    share = min(1, sum(1 / np.sqrt(n) for n in found.wide))
    nadam, muon = 0.13 * share * found.direction, 0.0104 * matrix
    return -found.scale * (found.sizes[0] * nadam + found.sizes[1] * muon)


def schedule(theta: Theta, count: int) -> float:
    return np.exp(theta["log_learning_rate"][0]) * (1 + count / 100) ** -np.exp(theta["log_power"][0])


def sigmoid(x: float) -> float:
    return 1 / (1 + np.exp(-x))


def sgdm(theta: Theta, gradients: list[np.ndarray], param: np.ndarray, count: int) -> np.ndarray:
    decay = sigmoid(theta["momentum"][0])
    total = sum(decay**age * g for age, g in enumerate(reversed(gradients)))
    return -schedule(theta, count) * total


def adam(theta: Theta, gradients: list[np.ndarray], param: np.ndarray, count: int) -> np.ndarray:
    first, second = sigmoid(theta["first_decay"][0]), sigmoid(theta["second_decay"][0])
    mean = ema(gradients, first) / (1 - first ** (count + 1))
    square = ema(gradients, second, 2) / (1 - second ** (count + 1))
    return -schedule(theta, count) * mean / (np.sqrt(square) + np.exp(theta["log_epsilon"][0]))


def waiting(rule: Rule) -> Rule:
    """The rule, with zero steps for entries that have had no gradient so far."""

    def update(theta: Theta, gradients: list[np.ndarray], param: np.ndarray, count: int) -> np.ndarray:
        return np.where(np.any(gradients, axis=0), rule(theta, gradients, param, count), 0)

    return update


RULES: dict[str, Rule] = {
    "mlp": waiting(mlp),
    "metz2019": waiting(metz2019),
    "small-fc": waiting(small_fc),
    "celo2-style": waiting(celo2_style),
    "relative-mlp": waiting(relative_mlp),
    "nadam-mlp": waiting(nadam_mlp),
    "muon-mlp": waiting(muon_mlp),
    "sgdm": sgdm,
    "adam": adam,
}
