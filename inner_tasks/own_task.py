"""Tasks from models and examples that a user has."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from inner_tasks.datasets.in_memory import Examples, in_memory
from inner_tasks.models.kinds import pure_model
from inner_tasks.task import Params, Task, Variables
from learned_opt._src.errors import UserError

# ``max_loss`` in units of the loss of a new model.
MAX_LOSS = 1.5


class Splits(NamedTuple):
    """The examples on the device."""

    train: Examples
    validation: Examples  # None if there are none


class Minibatch(NamedTuple):
    """Some examples, for a step of training or for evaluation."""

    examples: Examples  # each array [batch_size, ...]
    key: jax.Array | None  # randomness of the step, such as that of dropout; None in evaluation


def make_task(
    model: Any,
    loss: Callable[..., Any],
    train: Any,
    validation: Any = None,
    *,
    accuracy: Callable[..., Any] | None = None,
    batch_size: int = 64,
    horizon: int = 200,
    weight_decay: float = 0.0,
    max_loss: float | Literal["auto"] = "auto",
    batched: bool = False,
    max_examples: int = 100_000,
) -> Task:
    """Make a task from a model, a loss and examples.

    Args:
      model: what is trained, in one of four forms:

        - a Flax Linen module;
        - a function ``rngs -> module`` for Flax NNX, such as a class whose only argument is `rngs`;
        - a function ``key -> module`` for Equinox;
        - a function ``key -> params``, where the parameters are any pytree of arrays of floats.
      loss: ``(model, batch) -> scalar``, the mean loss of a minibatch. A batch has the form of the examples,
        each array with a leading axis ``[batch_size]``. The model is the NNX or Equinox module, the
        parameters, or for Linen a function that applies the module with its variables. A loss may take more
        arguments, by name: `train`, which is False in evaluation; `key`, the randomness of the step, None in
        evaluation; and `state`, see below.
      train: the training examples: an array, or a dictionary or tuple of arrays ``[n, ...]``; or an iterable
        of examples, such as a data set of TFDS, Hugging Face or PyTorch, which is read once, into memory.
      validation: held-out examples, in one of these forms. Without them there are no validation metrics, and
        no objective that needs them can be used.
      accuracy: ``(model, batch) -> scalar``, the share of correct predictions; called like the loss, in
        evaluation.
      batch_size: examples per inner step; they are drawn with replacement.
      horizon: T, inner steps per episode.
      weight_decay: w, which adds ``w / 2`` times the sum of the squares of all parameters with two or more
        axes to the training loss; biases and the scales of norms do not decay.
      max_loss: the value at which a step's loss is clipped during meta-training. By default, 1.5 times the
        training loss of one new model on the first examples. None does not clip.
      batched: whether iterables give batches instead of examples. They may differ in size.
      max_examples: the number of examples to read at most from each iterable.

    Returns:
      The task. Its metrics are ``validation_loss`` and, if there is an accuracy, ``validation_accuracy``,
      both means over all validation examples.

    Raises:
      UserError: the model, the loss or the examples are not as described.

    Training steps update the mutable state of a Linen or NNX module, such as batch statistics, and evaluation
    leaves it as it is. The random numbers of these modules, such as those of dropout, come from the key of
    the step. NNX and Equinox modules are put in training or inference mode; a Linen module has to be told,
    with `train`.

    Plain functions and Equinox modules have mutable state if the loss takes `state`. Then the function of a
    key returns ``(params, state)``, or for Equinox the result of ``eqx.nn.make_with_state``, and the loss
    returns ``(scalar, state)``.

    Example::

        network = nn.Sequential([nn.Dense(32), nn.relu, nn.Dense(10)])

        def loss(network, batch):
            images, labels = batch
            return optax.softmax_cross_entropy_with_integer_labels(network(images), labels).mean()

        task = make_task(network, loss, train=(images, labels))
    """
    for setting, value in {
        "batch_size": batch_size,
        "horizon": horizon,
        "max_examples": max_examples,
    }.items():
        if value < 1:
            raise UserError(f"{setting} is {value}; it must be at least 1")
    if not callable(loss):
        raise UserError(
            f"the loss is of the type {type(loss).__name__}; give a function (model, batch) -> scalar"
        )
    read = {
        name: None if source is None else in_memory(source, name, batched=batched, max_examples=max_examples)
        for name, source in {"training": train, "validation": validation}.items()
    }
    splits = Splits(read["training"], read["validation"])
    _check_same_form(splits)
    example = jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype), splits.train)
    pure = pure_model(model, loss, example)

    def variables(params: Params | Variables) -> Variables:
        return params if isinstance(params, Variables) else Variables(params, None)

    def init(key: jax.Array) -> Params | Variables:
        made = pure.init(key)
        return made.params if made.state is None else made

    def loss_and_state(params: Params | Variables, batch: Minibatch) -> tuple[jax.Array, Any]:
        own = variables(params)
        value, state = pure.measure(loss, own, batch.examples, batch.key)
        if weight_decay and batch.key is not None:
            value = value + weight_decay / 2 * _sum_of_squares(own.params)
        return value, state

    def accuracy_of(params: Params | Variables, batch: Minibatch) -> jax.Array:
        assert accuracy is not None
        return pure.measure(accuracy, variables(params), batch.examples, None)[0]

    def drawn(examples: Examples, key: jax.Array) -> Examples:
        chosen = jax.random.randint(key, (batch_size,), 0, len(jax.tree.leaves(examples)[0]))
        return jax.tree.map(lambda x: x[chosen], examples)

    def sample(data: Splits, key: jax.Array) -> Minibatch:
        examples_key, step_key = jax.random.split(key)
        return Minibatch(drawn(data.train, examples_key), step_key)

    def metrics(params: Params | Variables, data: Splits) -> dict[str, jax.Array]:
        measures = {"validation_loss": lambda batch: loss_and_state(params, batch)[0]}
        if accuracy is not None:
            measures["validation_accuracy"] = lambda batch: accuracy_of(params, batch)
        if data.validation is None:
            return {}
        return _means(measures, data.validation, batch_size)

    _check_scalar(loss_and_state, init, example)
    if max_loss == "auto":
        first = jax.tree.map(lambda x: jnp.asarray(x[:batch_size]), splits.train)
        max_loss = _clearly_failed(lambda key: loss_and_state(init(key), Minibatch(first, key))[0])
    has_state = isinstance(jax.eval_shape(init, jax.random.key(0)), Variables)
    return Task(
        init=init,
        sample=sample,
        loss=lambda params, batch: loss_and_state(params, batch)[0],
        metrics=metrics,
        load=lambda data_dir: jax.device_put(splits),
        horizon=horizon,
        max_loss=max_loss,
        sample_validation=None
        if validation is None
        else lambda data, key: Minibatch(drawn(data.validation, key), None),
        accuracy=None if accuracy is None else accuracy_of,
        loss_and_state=loss_and_state if has_state else None,
    )


def _sum_of_squares(params: Params) -> jax.Array:
    return sum((jnp.sum(jnp.square(x)) for x in jax.tree.leaves(params) if x.ndim > 1), jnp.zeros(()))


def _means(
    measures: dict[str, Callable[[Minibatch], jax.Array]], examples: Examples, size: int
) -> dict[str, jax.Array]:
    """Means over all examples, which are gone through in batches of the given size and a smaller last one."""
    count = len(jax.tree.leaves(examples)[0])
    whole, rest = divmod(count, size)

    def measured(start: jax.Array | int, length: int) -> dict[str, jax.Array]:
        batch = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, length), examples)
        return {name: length / count * of(Minibatch(batch, None)) for name, of in measures.items()}

    parts = []
    if whole:
        each = jax.lax.map(lambda number: measured(number * size, size), jnp.arange(whole))
        parts.append(jax.tree.map(lambda x: x.sum(), each))
    if rest:
        parts.append(measured(whole * size, rest))
    return {name: sum((part[name] for part in parts), jnp.zeros(())) for name in measures}


def _check_same_form(splits: Splits) -> None:
    if splits.validation is None:
        return
    forms = [jax.tree.map(lambda x: f"{x.dtype}{list(x.shape[1:])}", each) for each in splits]
    if forms[0] != forms[1]:
        raise UserError(
            f"a training example has the form {forms[0]}, but a validation example {forms[1]}; they must "
            "have the same"
        )


def _check_scalar(
    loss_and_state: Callable[..., Any], init: Callable[[jax.Array], Any], example: Examples
) -> None:
    def of_new(key: jax.Array, batch: Examples) -> jax.Array:
        return loss_and_state(init(key), Minibatch(batch, key))[0]

    found = jax.eval_shape(of_new, jax.random.key(0), example)
    if getattr(found, "shape", None) != () or not jnp.issubdtype(found.dtype, jnp.floating):
        raise UserError(
            f"the loss returns {found}, and must return a scalar of floats, such as a mean over the batch"
        )


def _clearly_failed(loss_of_new: Callable[[jax.Array], jax.Array]) -> float:
    loss = float(jax.jit(loss_of_new)(jax.random.key(0)))
    if not 0 < loss < math.inf:
        raise UserError(
            f"the loss of a new model is {loss}; if that is right, give max_loss, a loss at which training "
            "has clearly failed"
        )
    # Rounded, so that it is the same in every environment, where the last bits of the loss may differ.
    return float(f"{MAX_LOSS * loss:.3g}")
