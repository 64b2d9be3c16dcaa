"""Fine-tuning: a pretrained encoder with a new head, several seeds side by side.

The seed is the first axis of all arrays: parameters, optimizer state and batches. One compiled program for each length
of rows serves all seeds, whatever the learning rate and its schedule. Batches of all seeds are padded to the longest
row among them. The random bits of dropout depend on the shape of a batch, so with dropout the numbers of a seed depend
on which other seeds run beside it.
"""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mlm_jax.files.errors import ConfigError
from mlm_jax.finetuning import inputs as inputs_lib
from mlm_jax.finetuning.inputs import Inputs
from mlm_jax.finetuning.problems import Problem
from mlm_jax.finetuning.programs import Programs, make_module, make_programs
from mlm_jax.finetuning.recipe import Recipe
from mlm_jax.finetuning.record import Record
from mlm_jax.parallel import mesh as mesh_lib
from mlm_jax.training.checkpoints import Snapshots
from mlm_jax.training.learning_rate import make_schedule

# Rows of an evaluation batch for each row of a training batch: an evaluation keeps no activations for gradients.
EVALUATION_FACTOR = 2
SNAPSHOT_SECONDS = 300.0  # an interruption loses about this much of a run at most


@dataclasses.dataclass
class Outcome:
    """The result of one seed.

    Attributes:
      seed: of the head, of the order of the rows, and of the dropout.
      metrics: split → name → value, with the parameters that were best on the validation split.
      outputs: split → the outputs that `Problem.score` takes, with the same parameters.
      best_step: the number of updates that led to these parameters.
      curve: for each evaluation: `step`, `epoch`, `train_loss` (the mean since the evaluation before), and the
        validation metrics.
      train_losses: of each update.
      seconds: the time of the training, divided by the number of seeds that ran side by side.
    """

    seed: int
    metrics: dict[str, dict[str, float]]
    outputs: dict[str, Any]
    best_step: int
    curve: list[dict[str, float]]
    train_losses: list[float]
    seconds: float


class Diverged(FloatingPointError):
    """The loss or an output of some seeds is not finite.

    Attributes:
      seeds: which ones; those beside them are not affected.
    """

    def __init__(self, what: str, seeds: Sequence[int], step: int):
        """Names `what` is not finite after `step` updates, and the cure."""
        super().__init__(
            f'{what} of seed {", ".join(map(str, seeds))} is not finite by update {step:,}: lower learning_rate, or '
            'raise warmup_percent'
        )
        self.seeds = list(seeds)


def check_batch(recipe: Recipe, mesh: Mesh) -> None:
    """Raises ConfigError when the rows of a batch cannot be divided evenly over the devices."""
    shards = mesh.shape[mesh_lib.DATA] * mesh.shape[mesh_lib.FSDP]
    if recipe.batch_size % shards:
        raise ConfigError(f'batch_size={recipe.batch_size} cannot be divided over {shards} devices')


def num_updates(problem: Problem, recipe: Recipe) -> int:
    """The number of updates of the whole recipe, when the run does not end early."""
    return recipe.epochs * math.ceil(len(problem.inputs['train'].tokens) / recipe.batch_size)


def fine_tune(
    objective: nn.Module,
    encoder: Mapping | None,
    pad_id: int,
    problem: Problem,
    recipe: Recipe,
    seeds: Sequence[int],
    mesh: Mesh,
    progress: Callable[[int], None] = lambda updates: None,
    evaluated: Callable[[list[dict]], None] = lambda points_S: None,
    snapshots: Snapshots | None = None,
    repeats: int = 1,
) -> list[Outcome]:
    """Fine-tunes all seeds side by side and scores each with the parameters that were best on the validation split.

    Call it under `jax.set_mesh(mesh)`.

    Args:
      objective: the Linen module whose `encode` is used.
      encoder: the parameters under `encoder` of the objective; None initializes new ones for each seed.
      pad_id: of the tokenizer.
      problem: the task, prepared for this model.
      recipe: the settings.
      seeds: the seeds that run side by side.
      mesh: the rows of a batch are divided over its devices.
      progress: called with 1 after each update; also called with the number of updates that were done before the run
        was interrupted, and with the number that an early end leaves out.
      evaluated: called after each evaluation with the new point of each seed's curve.
      snapshots: of the same run; where a snapshot exists, the run continues from it. One is written every
        `SNAPSHOT_SECONDS`.
      repeats: how often the encoder reads each token.

    Raises:
      ConfigError: when the batch cannot be divided evenly over the devices.
      Diverged: when the loss or an output of a seed is not finite.
    """
    check_batch(recipe, mesh)
    module = make_module(objective, problem, recipe, repeats)
    programs = make_programs(module, problem.loss, pad_id, recipe, is_alone=len(seeds) == 1)

    train, total = problem.inputs['train'], num_updates(problem, recipe)
    schedule = make_schedule('linear', total, round(total * recipe.warmup_percent / 100), 0)
    lengths_N, seeds_S = train.lengths, jnp.asarray(seeds, jnp.uint32)
    per_epoch = total // recipe.epochs
    due = {round(per_epoch * (i + 1) / recipe.evaluations_per_epoch) for i in range(recipe.evaluations_per_epoch)}
    rows_divided = NamedSharding(mesh, PartitionSpec(None, mesh_lib.BATCH_AXES))

    # No other variable may refer to these arrays: the programs donate them.
    arrays = dict(zip(('params', 'opt_state'), programs.init(seeds_S, encoder)))
    arrays['best'] = jax.tree.map(jnp.copy, arrays['params'])
    record = Record.of(problem.metric, recipe.patience, len(seeds))
    if snapshots and (found := snapshots.restore(arrays)):
        arrays, record = found[0], Record.from_json(found[1])
        progress(record.step)
    judge, start = record.judge, time.perf_counter() - record.seconds

    def outputs_of(split: str, params: Any) -> list:
        outputs_S = _outputs(programs, params, problem.inputs[split], recipe.batch_size, pad_id, mesh)
        _check_finite(f'an output for the {split} split', map(np.concatenate, outputs_S), seeds, record.step)
        return outputs_S

    def evaluate() -> None:
        evaluated_at = int(record.curves[0][-1]['step']) if record.curves[0] else 0
        since = np.array(record.losses[evaluated_at:])
        _check_finite('the loss', since.T, seeds, record.step)
        outputs_S = outputs_of('validation', arrays['params'])
        metrics_S = [problem.score('validation', outputs) for outputs in outputs_S]
        better_S = judge.better([metrics[problem.metric] for metrics in metrics_S], record.step)
        arrays['best'] = programs.keep_best(arrays['best'], arrays['params'], jnp.asarray(better_S))
        for curve, loss, metrics in zip(record.curves, since.mean(0), metrics_S, strict=True):
            point = {'step': record.step, 'epoch': record.step / per_epoch, 'train_loss': float(loss)}
            curve.append({**point, **metrics})
        evaluated([curve[-1] for curve in record.curves])

    saved = time.perf_counter()
    for place, rows_S in _batches_from(record.step, lengths_N, recipe, seeds, per_epoch):
        if judge.all_done:
            break
        length = inputs_lib.batch_length(train, max(lengths_N[rows].max() for rows in rows_S))
        batches = [inputs_lib.pad_rows(train, rows, recipe.batch_size, length, pad_id) for rows in rows_S]
        tokens_SxBxT, targets_SxBxC = (jax.device_put(np.stack(x), rows_divided) for x in zip(*batches, strict=True))
        rate = recipe.learning_rate * schedule(jnp.asarray(record.step))
        arrays['params'], arrays['opt_state'], loss_S = programs.train_step(
            arrays['params'], arrays['opt_state'], tokens_SxBxT, targets_SxBxC, seeds_S, record.step, rate,
            problem.weights,
        )  # fmt: skip
        record.losses.append(loss_S)
        progress(1)
        if place in due:
            evaluate()
        if snapshots and time.perf_counter() - saved > SNAPSHOT_SECONDS:
            saved = time.perf_counter()
            record.seconds = saved - start
            snapshots.save(record.step, arrays, record.as_json())
    if judge.all_done:
        progress(total - record.step)
    seconds = (time.perf_counter() - start) / len(seeds)

    splits = [split for split in problem.inputs if split != 'train']
    outputs = {split: outputs_of(split, arrays['best']) for split in splits}
    losses_SxN = np.array(record.losses).T
    return [
        Outcome(
            seed=seed,
            metrics={split: problem.score(split, outputs[split][i]) for split in splits},
            outputs={split: outputs[split][i] for split in splits},
            best_step=judge.best_step[i],
            curve=record.curves[i],
            train_losses=losses_SxN[i].tolist(),
            seconds=seconds,
        )
        for i, seed in enumerate(seeds)
    ]


def _batches_from(
    step: int, lengths_N: np.ndarray, recipe: Recipe, seeds: Sequence[int], per_epoch: int
) -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
    """For each update from `step` on: its number in the epoch, counted from 1, and the rows of each seed's batch."""
    for epoch in range(step // per_epoch, recipe.epochs):
        orders = [inputs_lib.epoch_batches(lengths_N, recipe.batch_size, seed, epoch) for seed in seeds]
        updates = enumerate(zip(*orders, strict=True), start=1)
        yield from itertools.islice(updates, max(0, step - epoch * per_epoch), None)


def _outputs(programs: Programs, params: Any, inputs: Inputs, batch_size: int, pad_id: int, mesh: Mesh) -> list:
    """For each seed the outputs of a split, in the order of its rows: float32[N, C], or a list of N float32[n, 2]."""
    lengths_N, size = inputs.lengths, batch_size * EVALUATION_FACTOR
    order_N = np.argsort(lengths_N, kind='stable')
    rows_of_seed: list[list] = [[None] * len(order_N) for _ in range(jax.tree.leaves(params)[0].shape[0])]
    for start in range(0, len(order_N), size):
        rows = order_N[start : start + size]
        length = inputs_lib.batch_length(inputs, lengths_N[rows].max())
        tokens_BxT, _ = inputs_lib.pad_rows(inputs, rows, size, length, pad_id)
        outputs_SxB = programs.eval_step(params, jax.device_put(tokens_BxT, mesh_lib.batch_sharding(mesh)))
        for found, outputs_B in zip(rows_of_seed, np.asarray(outputs_SxB), strict=True):
            for row, output in zip(rows, outputs_B, strict=False):
                found[row] = output if output.ndim == 1 else output[: lengths_N[row]]
    return [found if found[0].ndim == 2 else np.stack(found) for found in rows_of_seed]


def _check_finite(what: str, values_S: Iterable[np.ndarray], seeds: Sequence[int], step: int) -> None:
    """Raises Diverged for the seeds whose values are not all finite."""
    if bad := [seed for seed, values in zip(seeds, values_S, strict=True) if not np.isfinite(values).all()]:
        raise Diverged(what, bad, step)
