"""One optimizer step and one evaluation step, as pure functions to be jitted on a mesh."""

from collections.abc import Callable

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
from mlm_jax.training.state import TrainState

# Streams of random bits that never meet: key = fold_in(fold_in(seed, stream), step).
MASK_STREAM, DROPOUT_STREAM = 0, 1
# The masks of the evaluation are the same in every run, whatever its seed.
EVALUATION_SEED = 15

Metrics = dict[str, tuple[jax.Array, jax.Array]]


def stream_key(seed: int, stream: int, step: jax.Array) -> jax.Array:
    """The key of one stream at one step."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), step)


def make_train_step(
    objective, masking: Masking, optimizer: optax.GradientTransformation, seed: int, num_microbatches: int
) -> Callable[[TrainState, jax.Array], tuple[TrainState, Metrics]]:
    """The update `(state, tokens int32[B, T]) → (state, metrics)`.

    Masking may make several rows of one; microbatches are parts of these.

    The loss is Σ loss / Σ weight over the global batch: sums are accumulated over microbatches and divided once. Where
    loss, gradient or the updated parameters are not finite, parameters and optimizer state stay as they were, and the
    metric `nonfinite` is 1. The learning rate goes by the step of the run, which counts such updates too.
    """

    def train_step(state: TrainState, tokens_BxT: jax.Array) -> tuple[TrainState, Metrics]:
        with jax.named_scope('masking'):
            segments_BxT = segment_ids(tokens_BxT, masking.vocabulary)
            mask_key = stream_key(seed, MASK_STREAM, state.step)
            batch, overflow_B = masking.draw(mask_key, tokens_BxT, segments_BxT, state.step)
        dropout_key = stream_key(seed, DROPOUT_STREAM, state.step)

        grads, terms = accumulate_gradients(objective, state.params, batch, dropout_key, num_microbatches)
        with jax.named_scope('optimizer'):
            params, opt_state, grad_norm, finite = apply_gradients(
                optimizer, state, grads, terms.loss_sum, terms.weight_sum
            )

        one = jnp.ones([])
        metrics = {
            'loss': (terms.loss_sum, terms.weight_sum),
            **terms.metrics,
            'grad_norm': (grad_norm, one),
            'nonfinite': (1.0 - finite, one),
            **batch_statistics(batch, masking, overflow_B),
        }
        return TrainState(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return train_step


def apply_gradients(
    optimizer: optax.GradientTransformation, state: TrainState, grads, loss_sum: jax.Array, weight_sum: jax.Array
) -> tuple[dict, optax.OptState, jax.Array, jax.Array]:
    """Parameters and optimizer state after an update, unless it is not finite.

    Args:
      optimizer: of the run.
      state: before the update.
      grads: of the sum of the loss over the global batch.
      loss_sum: f32[].
      weight_sum: f32[], by which gradients are divided.

    Returns:
      Parameters, optimizer state, the norm of the mean gradient, and whether loss, gradient and new parameters were
      finite: else parameters and optimizer state are the old ones.
    """
    grads = jax.tree.map(lambda g: g / jnp.maximum(weight_sum, 1e-6), grads)
    grad_norm = optax.tree.norm(grads)
    update = optax.with_extra_args_support(optimizer).update
    updates, opt_state = update(grads, state.opt_state, state.params, step=state.step)
    new = (optax.apply_updates(state.params, updates), opt_state)
    # Moments are finite where the norm is: both square the gradient.
    finite = jnp.isfinite(loss_sum) & jnp.isfinite(grad_norm) & _all_finite(new[0])
    old = (state.params, state.opt_state)
    params, opt_state = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
    return params, opt_state, grad_norm, finite


def _all_finite(tree) -> jax.Array:
    """bool[]: whether every number of every leaf is finite."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def jit_train_step(train_step: Callable, state: TrainState, mesh: Mesh):
    """`train_step`, jitted: the old state is donated, and the new one lies on `mesh` just like it.

    Args:
      train_step: from `make_train_step`.
      state: arrays, or ShapeDtypeStructs with shardings.
      mesh: where the metrics are replicated.
    """
    layout = (jax.tree.map(lambda x: x.sharding, state), replicated(mesh))
    return jax.jit(train_step, donate_argnums=0, out_shardings=layout)


def accumulate_gradients(
    objective, params, batch: MaskedBatch, dropout_key: jax.Array, num_microbatches: int
) -> tuple[dict, LossTerms]:
    """Gradients of loss_sum and the LossTerms, both summed over microbatches.

    Microbatch j holds rows j, j + n, j + 2n, …, so that each device keeps its own rows.
    """

    def loss(params, batch, key) -> tuple[jax.Array, LossTerms]:
        terms = objective.apply({'params': params}, batch, deterministic=False, rngs={'dropout': key})
        return terms.loss_sum, terms

    gradient = jax.grad(loss, has_aux=True)
    if num_microbatches == 1:
        return gradient(params, batch, dropout_key)

    def split(x):
        return jnp.moveaxis(x.reshape(x.shape[0] // num_microbatches, num_microbatches, *x.shape[1:]), 1, 0)

    def body(sums, xs):
        index, microbatch = xs
        part = gradient(params, microbatch, jax.random.fold_in(dropout_key, index))
        return jax.tree.map(jnp.add, sums, part), None

    microbatches = jax.tree.map(split, batch)
    first = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], microbatches), dropout_key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)
    sums, _ = jax.lax.scan(body, zeros, (jnp.arange(num_microbatches), microbatches))
    return sums


def batch_statistics(batch: MaskedBatch, masking: Masking, overflow_B: jax.Array) -> Metrics:
    """Share of the eligible tokens that are predicted, and of the row positions that hold real tokens.

    Where masking repeats tokens: `corrupted_ratio`, the share of them of which no copy is left to read. Where it bounds
    a random count: `masked_overflow`, the share of the chosen tokens that found no slot.
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


def make_eval_step(objective, masking: Masking) -> Callable[[dict, jax.Array, jax.Array], Metrics]:
    """The evaluation `(params, tokens int32[B, T], first row's index) → metrics`, without dropout.

    A row's mask depends on its index among the held-out rows alone: not on the batch, the run or the step.
    """

    def eval_step(params, tokens_BxT: jax.Array, first_row: jax.Array) -> Metrics:
        segments_BxT = segment_ids(tokens_BxT, masking.vocabulary)
        batch = frozen_masks(masking, tokens_BxT, segments_BxT, first_row + jnp.arange(tokens_BxT.shape[0]))
        terms = objective.apply({'params': params}, batch, deterministic=True)
        return {'loss': (terms.loss_sum, terms.weight_sum), **terms.metrics}

    return eval_step


def frozen_masks(masking: Masking, tokens_BxT, segments_BxT, row_B: jax.Array) -> MaskedBatch:
    """A MaskedBatch in which the mask of a row is a function of its number in `row_B` and of its tokens."""
    key_B = jax.vmap(lambda row: stream_key(EVALUATION_SEED, MASK_STREAM, row))(row_B)
    batch_Bx1 = jax.vmap(masking)(key_B, tokens_BxT[:, None], segments_BxT[:, None])
    return jax.tree.map(lambda x: x[:, 0], batch_Bx1)
