"""Fine-tuning: a pretrained encoder with a new head, several seeds side by side.

Seeds are a leading axis of everything: parameters, optimizer state and batches. One compiled program per length of rows
serves them all, whatever their learning rates and schedules. A batch is padded to the longest row of all seeds; so with
dropout, whose bits depend on the shape, the numbers of a seed depend on those beside it as those of another seed would.
"""

import dataclasses
import functools
import itertools
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mlm_jax.files.errors import ConfigError
from mlm_jax.finetuning import inputs as inputs_lib
from mlm_jax.finetuning.heads import Downstream
from mlm_jax.finetuning.inputs import Inputs
from mlm_jax.models.pooling import POOLINGS
from mlm_jax.parallel import mesh as mesh_lib
from mlm_jax.parallel.sharding import is_stacked, path_name
from mlm_jax.tasks.metrics import is_better
from mlm_jax.training.checkpoints import Snapshots
from mlm_jax.training.optimizers import decayed
from mlm_jax.training.schedules import make_schedule

# Rows of an evaluation batch for each row of a training batch: no gradients are kept.
EVALUATION_FACTOR = 2
SNAPSHOT_SECONDS = 300.0  # so much of a run is lost at most, when it is interrupted
_INIT, _DROPOUT = 0, 1  # streams of random bits


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a task is fine-tuned. The defaults are in the middle of the grids of BERT, RoBERTa and MAE-LM at base.

    Attributes:
      learning_rate: the peak; small encoders want more, 3e-4 say.
      batch_size: rows of an update.
      epochs: passes over the train split, at most.
      warmup_percent: of all updates, in which the learning rate rises; then it falls linearly to 0.
      weight_decay: of kernels and embeddings, decoupled.
      b1: of Adam.
      b2: of Adam.
      eps: of Adam.
      clip_norm: of the global gradient; 0 clips nothing.
      dropout: in the encoder, and on its attention.
      head_dropout: in the head; −1: as `dropout`.
      pooling: what the head reads of a row: 'cls', or 'mean', over its tokens. Rows packed with documents have a [CLS]
        for each document only, so short pretraining teaches it little.
      layer_decay: each layer learns so much slower than the one above it, and the embeddings slowest (ELECTRA).
      max_length: tokens of a row; 0: as many as the model was trained on.
      evaluations_per_epoch: how often the validation split is scored.
      patience: evaluations without improvement after which a run ends; 0 never ends it.
      class_weights: 'none'; 'balanced' weights classes, or the positive ones of each target, by rarity.
      target_scale: of a regression, what targets are divided by; 0 standardises them by the train split.
      max_train_examples: a random part of the train split, the same for all seeds; 0 takes all.
      max_validation_examples: likewise of the validation split.
      stride: of SQuAD, tokens from the start of a window of the text to that of the next.
      max_query: of SQuAD, tokens of a question that are kept.
      max_answer: of SQuAD, tokens of an answer at most.
      null_threshold: of SQuAD 2.0, no answer is given where its odds are above.
    """

    learning_rate: float = 5e-5
    batch_size: int = 32
    epochs: int = 3
    warmup_percent: float = 6.0
    weight_decay: float = 0.01
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-6
    clip_norm: float = 1.0
    dropout: float = 0.1
    head_dropout: float = -1.0
    pooling: str = POOLINGS[0]
    layer_decay: float = 1.0
    max_length: int = 0
    evaluations_per_epoch: int = 1
    patience: int = 0
    class_weights: str = 'none'
    target_scale: float = 0.0
    max_train_examples: int = 0
    max_validation_examples: int = 0
    stride: int = 128
    max_query: int = 64
    max_answer: int = 30
    null_threshold: float = 0.0


@dataclasses.dataclass(frozen=True)
class Problem:
    """A task made ready for one model.

    Attributes:
      loss: a key of `LOSSES`.
      num_outputs: of the head.
      inputs: split → Inputs; 'train' and 'validation' at least.
      score: (split, outputs) → metrics, none for a split without targets. Outputs are float32[N, num_outputs], or of
        the loss 'span' a list of N arrays float32[n, 2].
      write: (split, outputs, directory) → writes the predictions there.
      metric: the one that chooses.
      weights: float32[C], of classes, or of the positives of each target.
      trivial: metrics of the validation split for answers that know nothing of the inputs.
    """

    loss: str
    num_outputs: int
    inputs: Mapping[str, Inputs]
    score: Callable[[str, Any], dict[str, float]]
    write: Callable[[str, Any, pathlib.Path], None]
    metric: str
    weights: np.ndarray
    trivial: dict[str, float]


@dataclasses.dataclass
class Outcome:
    """What became of one seed.

    Attributes:
      seed: of the head, the order of the rows and the dropout.
      metrics: split → name → value, with the parameters that were best on the validation split.
      outputs: split → what `Problem.score` takes, with the same parameters.
      best_step: updates after which they were best.
      curve: of each evaluation: `step`, `epoch`, `train_loss` since the one before, and the validation metrics.
      train_losses: of each update.
      seconds: that training took, divided among the seeds beside it.
    """

    seed: int
    metrics: dict[str, dict[str, float]]
    outputs: dict
    best_step: int
    curve: list[dict[str, float]]
    train_losses: list[float]
    seconds: float


def _cross_entropy(outputs_BxC, targets_Bx1, segments_BxT, weights_C):
    known_B = ~jnp.isnan(targets_Bx1[:, 0])
    class_B = jnp.where(known_B, targets_Bx1[:, 0], 0).astype(jnp.int32)
    weight_B = known_B * weights_C[class_B]
    return optax.softmax_cross_entropy_with_integer_labels(outputs_BxC, class_B) * weight_B, weight_B


def _masked_binary_cross_entropy(outputs_BxC, targets_BxC, segments_BxT, weights_C):
    known_BxC = ~jnp.isnan(targets_BxC)
    target_BxC = jnp.where(known_BxC, targets_BxC, 0)
    weight_BxC = known_BxC * jnp.where(target_BxC > 0, weights_C, 1.0)
    return optax.sigmoid_binary_cross_entropy(outputs_BxC, target_BxC) * weight_BxC, weight_BxC


def _squared_error(outputs_BxC, targets_BxC, segments_BxT, weights_C):
    known_BxC = ~jnp.isnan(targets_BxC)
    return jnp.where(known_BxC, outputs_BxC - jnp.where(known_BxC, targets_BxC, 0), 0.0) ** 2, known_BxC


def _span(outputs_BxTx2, targets_Bx2, segments_BxT, weights_C):
    known_Bx2 = ~jnp.isnan(targets_Bx2)
    place_Bx2 = jnp.where(known_Bx2, targets_Bx2, 0).astype(jnp.int32)
    logits_Bx2xT = jnp.moveaxis(jnp.where((segments_BxT > 0)[..., None], outputs_BxTx2, -jnp.inf), -1, 1)
    return optax.softmax_cross_entropy_with_integer_labels(logits_Bx2xT, place_Bx2) * known_Bx2, known_Bx2


# (outputs, targets, segments, weights) → losses and their weights, of one shape; unknown targets weigh nothing.
LOSSES = {
    'classification': _cross_entropy,
    'multilabel': _masked_binary_cross_entropy,
    'regression': _squared_error,
    'span': _span,
}


# ---- Programs ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Programs:
    """Compiled functions; the first axis of states and batches is that of the seeds."""

    init: Callable
    train_step: Callable
    eval_step: Callable
    keep_best: Callable


@functools.lru_cache(maxsize=8)
def _programs(module: Downstream, loss: str, pad_id: int, static: Recipe, is_alone: bool) -> _Programs:
    """The programs of a model, a loss, and what of a recipe is built into them (`_static`); of one seed, or several."""
    each = _alone if is_alone else jax.vmap
    optimizer = optax.chain(
        optax.clip_by_global_norm(static.clip_norm) if static.clip_norm else optax.identity(),
        optax.scale_by_adam(static.b1, static.b2, static.eps),
        optax.add_decayed_weights(static.weight_decay, decayed),
        scale_by_depth(static.layer_decay, module.objective.config.num_layers),
    )

    def init(seed, encoder):
        params = init_params(module, seed, encoder)
        return params, optimizer.init(params)

    def train_step(params, opt_state, tokens_BxT, targets_BxC, seed, step, learning_rate, weights_C):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _DROPOUT), step)
        segments_BxT = (tokens_BxT != pad_id).astype(jnp.int32)

        def mean_loss(params):
            outputs = module.apply(
                {'params': params}, tokens_BxT, segments_BxT, deterministic=False, rngs={'dropout': key}
            )
            losses, weights = LOSSES[loss](outputs, targets_BxC, segments_BxT, weights_C)
            return losses.sum() / jnp.maximum(weights.sum(), 1e-6)

        value, grads = jax.value_and_grad(mean_loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = jax.tree.map(lambda p, u: p - learning_rate * u, params, updates)
        return params, opt_state, value

    def eval_step(params, tokens_BxT):
        return module.apply({'params': params}, tokens_BxT, (tokens_BxT != pad_id).astype(jnp.int32))

    def keep_best(best, params, better):
        return jax.tree.map(lambda b, p: jnp.where(better, p, b), best, params)

    return _Programs(
        init=jax.jit(each(init, in_axes=(0, None))),
        train_step=jax.jit(each(train_step, in_axes=(0, 0, 0, 0, 0, None, None, None)), donate_argnums=(0, 1)),
        eval_step=jax.jit(each(eval_step, in_axes=(0, None))),
        keep_best=jax.jit(each(keep_best, in_axes=0), donate_argnums=0),
    )


def _alone(function: Callable, in_axes: int | tuple) -> Callable:
    """`jax.vmap` over axes of one element: without it, products of matrices remain those that libraries are best at."""

    @functools.wraps(function)
    def with_axes(*arguments):
        axes = in_axes if isinstance(in_axes, tuple) else (in_axes,) * len(arguments)
        elements = [a if axis is None else jax.tree.map(lambda x: x[0], a) for a, axis in zip(arguments, axes)]
        return jax.tree.map(lambda x: x[None], function(*elements))

    return with_axes


def init_params(module: Downstream, seed, encoder: Mapping | None) -> dict:
    """The parameters with which a seed begins: a new head, and the encoder given, or a new one."""
    row_1xT = jnp.ones((1, 8), jnp.int32)
    params = module.init(jax.random.fold_in(jax.random.key(seed), _INIT), row_1xT, row_1xT)['params']
    if encoder is None:
        return params
    return {**params, 'objective': {**params['objective'], 'encoder': encoder}}


def _static(recipe: Recipe) -> Recipe:
    """A recipe with what programs take as arguments, or do not need, at its default: equal ones share programs."""
    built_in = ('clip_norm', 'b1', 'b2', 'eps', 'weight_decay', 'layer_decay')
    return Recipe(**{name: getattr(recipe, name) for name in built_in})


def scale_by_depth(decay: float, num_layers: int) -> optax.GradientTransformation:
    """Layer-wise learning rates (ELECTRA, arXiv 2003.10555): decay^(L − l) of layer l, decay^(L + 1) of the embeddings.

    The head, and a norm behind the last layer, learn at the full rate.
    """

    def factor(path):
        name = path_name(path)
        if is_stacked(path):
            return decay ** jnp.arange(num_layers, 0, -1, dtype=jnp.float32)
        below = 'embedding' in name or 'relative_bias' in name
        return jnp.asarray(decay ** (num_layers + 1) if below else 1.0)

    def update(updates, state, params=None):
        def one(path, u):
            f = factor(path)
            return u * f.reshape(f.shape + (1,) * (u.ndim - f.ndim))

        return jax.tree_util.tree_map_with_path(one, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


# ---- The run ----------------------------------------------------------------------------------------------------


def make_module(objective: nn.Module, problem: Problem, recipe: Recipe) -> Downstream:
    """The encoder of an objective under the head of a problem, both with the dropout of the fine-tuning."""
    config = dataclasses.replace(objective.config, dropout=recipe.dropout, attention_dropout=recipe.dropout)
    kind = 'span' if problem.loss == 'span' else 'sequence'
    head_dropout = recipe.dropout if recipe.head_dropout < 0 else recipe.head_dropout
    return Downstream(
        objective.clone(config=config, parent=None), kind, problem.num_outputs, head_dropout, recipe.pooling
    )


def check_batch(recipe: Recipe, mesh: Mesh) -> None:
    """Raises ConfigError when the rows of a batch cannot be divided over the devices."""
    shards = mesh.shape[mesh_lib.DATA] * mesh.shape[mesh_lib.FSDP]
    if recipe.batch_size % shards:
        raise ConfigError(f'batch_size={recipe.batch_size} cannot be divided over {shards} devices')


def num_updates(problem: Problem, recipe: Recipe) -> int:
    """Updates of the whole recipe, without an early end."""
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
) -> list[Outcome]:
    """Fine-tunes all seeds side by side and scores each with the parameters that were best on the validation split.

    Call it under `jax.set_mesh(mesh)`.

    Args:
      objective: the Linen module whose `encode` is used.
      encoder: its parameters `encoder`; None draws them, for each seed its own.
      pad_id: of the tokenizer.
      problem: of this model.
      recipe: how.
      seeds: those that run side by side.
      mesh: rows of a batch are divided over its devices.
      progress: called with 1 after each update; with those that are done already, or, at an early end, are spared.
      evaluated: called after each evaluation with the new point of each seed's curve.
      snapshots: of this very run, which goes on from what is there; written every `SNAPSHOT_SECONDS`.

    Raises:
      ConfigError: when the batch cannot be divided over the devices.
      FloatingPointError: when the loss of a seed is not finite.
    """
    check_batch(recipe, mesh)
    module = make_module(objective, problem, recipe)
    programs = _programs(module, problem.loss, pad_id, _static(recipe), len(seeds) == 1)

    train, total = problem.inputs['train'], num_updates(problem, recipe)
    schedule = make_schedule('linear', total, round(total * recipe.warmup_percent / 100), 0)
    lengths_N, seeds_S = train.lengths, jnp.asarray(seeds, jnp.uint32)
    per_epoch = total // recipe.epochs
    due = {round(per_epoch * (i + 1) / recipe.evaluations_per_epoch) for i in range(recipe.evaluations_per_epoch)}
    rows_divided = NamedSharding(mesh, PartitionSpec(None, mesh_lib.BATCH_AXES))

    arrays = dict(zip(('params', 'opt_state'), programs.init(seeds_S, encoder)))  # in no other name: all is donated
    arrays['best'] = jax.tree.map(jnp.copy, arrays['params'])
    record = _Record.of(problem.metric, recipe.patience, len(seeds))
    if snapshots and (found := snapshots.restore(arrays)):
        arrays, record = found[0], _Record.from_json(found[1])
        progress(record.step)
    judge, start = record.judge, time.perf_counter() - record.seconds

    def evaluate():
        since = np.array(record.losses[len(record.curves[0]) and record.curves[0][-1]['step'] :])
        _check_finite(since, seeds, record.step)
        validation = problem.inputs['validation']
        outputs_S = _outputs(programs, arrays['params'], validation, recipe.batch_size, pad_id, mesh)
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
        rate = recipe.learning_rate * schedule(record.step)
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
    outputs = {
        s: _outputs(programs, arrays['best'], problem.inputs[s], recipe.batch_size, pad_id, mesh) for s in splits
    }
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


@dataclasses.dataclass
class _Judge:
    """Keeps the best value of each seed, and who has gone without improvement for too long."""

    metric: str
    patience: int
    best: list[float]
    waited: list[int]
    best_step: list[int]

    def better(self, values: Sequence[float], step: int) -> list[bool]:
        """Which seeds are better than ever; one that is done is never."""
        result = []
        for i, value in enumerate(values):
            is_first = self.best_step[i] == 0
            result.append(not self._done(i) and (is_first or is_better(self.metric, value, self.best[i])))
            self.waited[i] = 0 if result[-1] else self.waited[i] + 1
            if result[-1]:
                self.best[i], self.best_step[i] = value, step
        return result

    def _done(self, i: int) -> bool:
        return 0 < self.patience <= self.waited[i]

    @property
    def all_done(self) -> bool:
        """Whether all have gone without improvement for too long."""
        return all(map(self._done, range(len(self.best))))


@dataclasses.dataclass
class _Record:
    """What a run under way knows besides its arrays; `losses` are float32[S] of each update."""

    judge: _Judge
    curves: list[list[dict]]
    losses: list
    seconds: float = 0.0

    @classmethod
    def of(cls, metric: str, patience: int, num_seeds: int) -> '_Record':
        """That of a run at its start."""
        judge = _Judge(metric, patience, [math.nan] * num_seeds, [0] * num_seeds, [0] * num_seeds)
        return cls(judge, [[] for _ in range(num_seeds)], [])

    @classmethod
    def from_json(cls, record: dict) -> '_Record':
        """The inverse of `as_json`."""
        losses = [np.array(loss_S, np.float32) for loss_S in record['losses']]
        return cls(_Judge(**record['judge']), record['curves'], losses, record['seconds'])

    def as_json(self) -> dict:
        """All of it in lists and numbers."""
        losses = np.array(self.losses).tolist()
        return {**vars(self), 'judge': vars(self.judge), 'losses': losses}

    @property
    def step(self) -> int:
        """Updates done."""
        return len(self.losses)


def _batches_from(step: int, lengths_N, recipe: Recipe, seeds: Sequence[int], per_epoch: int) -> Iterator[tuple]:
    """The updates from `step` on: their place in the epoch, from 1, and the rows of each seed's batch."""
    for epoch in range(step // per_epoch, recipe.epochs):
        orders = [inputs_lib.epoch_batches(lengths_N, recipe.batch_size, seed, epoch) for seed in seeds]
        updates = enumerate(zip(*orders, strict=True), start=1)
        yield from itertools.islice(updates, max(0, step - epoch * per_epoch), None)


def _outputs(programs: _Programs, params, inputs: Inputs, batch_size: int, pad_id: int, mesh: Mesh) -> list:
    """The outputs for a split, in its order, of each seed: float32[N, C], or a list of N float32[n, 2]."""
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


def _check_finite(losses_NxS: np.ndarray, seeds: Sequence[int], step: int) -> None:
    bad = [seed for seed, column in zip(seeds, losses_NxS.T, strict=True) if not np.isfinite(column).all()]
    if bad:
        raise FloatingPointError(
            f'the loss of seed {", ".join(map(str, bad))} is not finite by update {step:,}: lower learning_rate, or '
            'raise warmup_percent'
        )
