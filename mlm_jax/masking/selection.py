"""Which positions are predicted: one function per strategy, and the registry that configurations name them by."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mlm_jax.masking.vocabulary import Vocabulary


def is_special(tokens: jax.Array, vocabulary: Vocabulary) -> jax.Array:
    """bool[…]: where `tokens` holds a special id."""
    return jnp.isin(tokens, jnp.asarray(vocabulary.special_ids, tokens.dtype))


def eligible_positions(tokens_BxT: jax.Array, segments_BxT: jax.Array, vocabulary: Vocabulary) -> jax.Array:
    """bool[B, T]: the positions that may be masked: no padding, no special tokens."""
    return (segments_BxT > 0) & ~is_special(tokens_BxT, vocabulary)


def fixed_count(key: jax.Array, eligible_BxT: jax.Array, ratio: float | jax.Array) -> jax.Array:
    """int32[B]: ⌊ratio·N + U[0, 1)⌋ of the N eligible positions of each row.

    Stochastic rounding keeps the expectation at ratio·N, with less variance than a draw per position.
    """
    num_eligible_B = eligible_BxT.sum(1)
    count_B = jnp.floor(ratio * num_eligible_B + jax.random.uniform(key, num_eligible_B.shape)).astype(jnp.int32)
    return jnp.minimum(count_B, num_eligible_B)  # U + a float error could round up past N


def max_count(ratio: float, length: int) -> int:
    """The most positions that `fixed_count` can ask for in a row of `length` tokens: the static M."""
    return min(length, int(ratio * length) + 1) if ratio > 0 else 1


def uniform(key: jax.Array, eligible_BxT: jax.Array, ratio: float | jax.Array) -> jax.Array:
    """A fixed count of positions, uniformly without replacement (RoBERTa, MAE-LM, ExLM).

    Args:
      key: a random key for the global batch.
      eligible_BxT: bool[B, T], where masking is allowed.
      ratio: the share of the eligible positions to choose.

    Returns:
      bool[B, T], the chosen positions.
    """
    count_key, order_key = jax.random.split(key)
    count_B = fixed_count(count_key, eligible_BxT, ratio)
    # The rank of a random number among the eligible ones is uniform; ranks, unlike thresholds, cannot tie.
    score_BxT = jnp.where(eligible_BxT, jax.random.uniform(order_key, eligible_BxT.shape), 2.0)
    rank_BxT = jnp.argsort(jnp.argsort(score_BxT, axis=1), axis=1)
    return rank_BxT < count_B[:, None]


STRATEGIES: dict[str, Callable[[jax.Array, jax.Array, float | jax.Array], jax.Array]] = {
    'uniform': uniform,
}
