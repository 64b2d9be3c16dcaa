"""One optimizer step and one evaluation step, as pure functions to be jitted on a mesh."""

from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mlm_jax.data.packing import segment_ids
from mlm_jax.losses.terms import LossTerms
from mlm_jax.masking.batch import MaskedBatch, selected_of
from mlm_jax.masking.masking import Masking
from mlm_jax.masking.selection import eligible_positions
from mlm_jax.parallel.mesh import replicated
from mlm_jax.training import moving_average
from mlm_jax.training.gradients import GradientSums, gradients
from mlm_jax.training.state import TrainState

# Independent streams of random bits: key = fold_in(fold_in(seed, stream), step).
MASK_STREAM, DROPOUT_STREAM = 0, 1
# The masks of evaluations are the same in every run, whatever its seed.
EVALUATION_SEED = 15

Metrics = dict[str, tuple[jax.Array, jax.Array]]


def stream_key(seed: int, stream: int, step: jax.Array) -> jax.Array:
    """The random key of a stream at a step."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), step)


def draw_masks(masking: Masking, seed: int, step: jax.Array, tokens_BxT: jax.Array) -> tuple[MaskedBatch, jax.Array]:
    """The masks with which a run trains on the batch of a step, and what `Masking.draw` returns beside them."""
    key = stream_key(seed, MASK_STREAM, step)
    return masking.draw(key, tokens_BxT, segment_ids(tokens_BxT, masking.vocabulary), step)


def make_train_step(
    objective: nn.Module,
    masking: Masking,
    optimizer: optax.GradientTransformation,
    seed: int,
    num_microbatches: int,
    ema_decay: float = 0.0,
    sums: GradientSums | None = None,
) -> Callable[[TrainState, jax.Array], tuple[TrainState, Metrics]]:
    """The update `(state, tokens int32[B, T]) → (state, metrics)`.

    Masking may turn one row into several; the batch is split into microbatches after masking.

    The loss is Σ loss / Σ weight over the global batch: sums are accumulated over microbatches and divided only once.
    If the loss, the gradient or the updated parameters are not finite, parameters, their average and optimizer state do
    not change, and the metric `nonfinite` is 1. The learning rate depends on the step of the run, which counts such
    updates, too. With `ema_decay`, the state holds a moving average of the parameters, which follows them. `sums` says
    how gradients are summed over devices (training/gradients.py).
    """

    def train_step(state: TrainState, tokens_BxT: jax.Array) -> tuple[TrainState, Metrics]:
        with jax.named_scope('masking'):
            batch, overflow_B = draw_masks(masking, seed, state.step, tokens_BxT)
            batch = batch.replace(step=jnp.full(len(batch.tokens), state.step))
        dropout_key = stream_key(seed, DROPOUT_STREAM, state.step)

        grads, terms = gradients(objective, state.params, batch, dropout_key, num_microbatches, sums)
        with jax.named_scope('optimizer'):
            params, opt_state, grad_norm, finite = apply_gradients(
                optimizer, state, grads, terms.loss_sum, terms.weight_sum
            )
            ema = moving_average.updated(state.ema, params, finite, state.step, ema_decay) if ema_decay else None

        one = jnp.ones([])
        metrics = {
            'loss': (terms.loss_sum, terms.weight_sum),
            **terms.metrics,
            'grad_norm': (grad_norm, one),
            'nonfinite': (1.0 - finite, one),
            **batch_statistics(batch, masking, overflow_B),
        }
        return TrainState(step=state.step + 1, params=params, opt_state=opt_state, ema=ema), metrics

    return train_step


def apply_gradients(
    optimizer: optax.GradientTransformation, state: TrainState, grads: Any, loss_sum: jax.Array, weight_sum: jax.Array
) -> tuple[dict, optax.OptState, jax.Array, jax.Array]:
    """Applies an update to parameters and optimizer state, if it is finite.

    Args:
      optimizer: the optimizer of the run.
      state: the state before the update.
      grads: the gradients of `loss_sum`.
      loss_sum: f32[], the sum of the loss over the global batch.
      weight_sum: f32[], by which the gradients are divided.

    Returns:
      The parameters; the optimizer state; f32[], the norm of the mean gradient; bool[], whether loss, gradient and new
      parameters are finite. If they are not, parameters and optimizer state are those of `state`.
    """
    grads = jax.tree.map(lambda g: g / jnp.maximum(weight_sum, 1e-6), grads)
    grad_norm = optax.tree.norm(grads)
    update = optax.with_extra_args_support(optimizer).update
    updates, opt_state = update(grads, state.opt_state, state.params, step=state.step)
    new = (optax.apply_updates(state.params, updates), opt_state)
    # If the norm of the gradient is finite, so are the moments: both square the gradient. New parameters are judged by
    # their norm, too: a check of each leaf is a chain of scalars, which XLA repeats in the update of every leaf.
    finite = jnp.isfinite(loss_sum) & jnp.isfinite(grad_norm) & jnp.isfinite(optax.tree.norm(new[0]))
    old = (state.params, state.opt_state)
    params, opt_state = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
    return params, opt_state, grad_norm, finite


def jit_train_step(train_step: Callable, state: TrainState, mesh: Mesh) -> jax.stages.Wrapped:
    """`train_step` under `jax.jit`: the old state is donated, and the new state has the same sharding.

    Args:
      train_step: a function from `make_train_step`.
      state: a state of arrays, or of ShapeDtypeStructs with shardings.
      mesh: the mesh, on which the metrics are replicated.
    """
    layout = (jax.tree.map(lambda x: x.sharding, state), replicated(mesh))
    return jax.jit(train_step, donate_argnums=0, out_shardings=layout)


def batch_statistics(batch: MaskedBatch, masking: Masking, overflow_B: jax.Array) -> Metrics:
    """Metrics of a batch: `masked_ratio`, the share of the eligible tokens that are predicted, and `real_tokens`, the
    share of the positions that are not padding.

    If masking repeats tokens, there is also `corrupted_ratio`, the share of the tokens all copies of which are masked.
    If the number of masked tokens is random but bounded, there is also `masked_overflow`, the share of the chosen
    tokens for which there was no slot.
    """
    used = jnp.sum(batch.positions < batch.tokens.shape[1]).astype(jnp.float32)
    eligible = jnp.sum(eligible_positions(batch.tokens, batch.segments, masking.vocabulary)).astype(jnp.float32)
    real = jnp.sum(batch.segments > 0).astype(jnp.float32)
    statistics = {'masked_ratio': (used, eligible), 'real_tokens': (real, jnp.asarray(batch.tokens.size, jnp.float32))}
    if masking.repeats > 1:
        chosen_BxT = selected_of(batch.positions, batch.tokens.shape[1]).reshape(len(batch.tokens), -1, masking.repeats)
        lost = jnp.sum(chosen_BxT.all(-1)).astype(jnp.float32)
        statistics['corrupted_ratio'] = (lost, eligible / masking.repeats)
    if masking.may_overflow:
        overflow = jnp.sum(overflow_B).astype(jnp.float32)
        statistics['masked_overflow'] = (overflow, used + overflow)
    return statistics


def make_eval_step(objective: nn.Module, masking: Masking) -> Callable[[dict, jax.Array, jax.Array], Metrics]:
    """The evaluation `(params, tokens int32[B, T], index of the first row) → metrics`, without dropout.

    The mask of a row depends only on its index among the held-out rows: not on the batch, the run or the step.
    """

    def eval_step(params, tokens_BxT: jax.Array, first_row: jax.Array) -> Metrics:
        segments_BxT = segment_ids(tokens_BxT, masking.vocabulary)
        batch = frozen_masks(masking, tokens_BxT, segments_BxT, first_row + jnp.arange(tokens_BxT.shape[0]))
        terms = cast(LossTerms, objective.apply({'params': params}, batch, deterministic=True))
        return {'loss': (terms.loss_sum, terms.weight_sum), **terms.metrics}

    return eval_step


def frozen_masks(masking: Masking, tokens_BxT: jax.Array, segments_BxT: jax.Array, row_B: jax.Array) -> MaskedBatch:
    """A MaskedBatch in which the mask of a row depends only on its index in `row_B` and on its tokens."""
    key_B = jax.vmap(lambda row: stream_key(EVALUATION_SEED, MASK_STREAM, row))(row_B)
    batch_Bx1 = jax.vmap(masking)(key_B, tokens_BxT[:, None], segments_BxT[:, None])
    return jax.tree.map(lambda x: x[:, 0], batch_Bx1)
