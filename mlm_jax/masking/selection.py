"""Which positions are masked: one function per strategy. `registry.py` names them."""

import jax
import jax.numpy as jnp

from mlm_jax.masking.candidates import Candidates, fixed_count, rounded_count, row_uniform, take
from mlm_jax.masking.vocabulary import Vocabulary


def is_special(tokens: jax.Array, vocabulary: Vocabulary) -> jax.Array:
    """bool[…]: where `tokens` holds a special id."""
    return jnp.isin(tokens, jnp.asarray(vocabulary.special_ids, tokens.dtype))


def eligible_positions(tokens_BxT: jax.Array, segments_BxT: jax.Array, vocabulary: Vocabulary) -> jax.Array:
    """bool[B, T]: the positions that may be masked: no padding, no special tokens."""
    return (segments_BxT > 0) & ~is_special(tokens_BxT, vocabulary)


# ---- Strategies ------------------------------------------------------------------------------------------------------


def uniform(key: jax.Array, candidates: Candidates) -> jax.Array:
    """A fixed count of tokens, uniformly without replacement (RoBERTa, MAE-LM, ExLM).

    Of longer units, whole ones in random order until the count is met; one that does not fit is skipped (whole-word
    masking, SpanBERT).

    Args:
      key: a random key for the global batch.
      candidates: what there is to choose from.

    Returns:
      bool[B, T], the chosen positions; or bool[B, K, T], K masks of each row, which become K rows of the MaskedBatch.
    """
    count_key, order_key = jax.random.split(key)
    count_B = fixed_count(count_key, candidates.eligible, candidates.ratio)
    return take(jax.random.uniform(order_key, candidates.eligible.shape), candidates, count_B)


def bernoulli(key: jax.Array, candidates: Candidates) -> jax.Array:
    """Each unit by itself with probability `ratio` (BERT as described, and its random counts).

    The slots are bounded: `masked_overflow` counts the few tokens that find none.
    """
    chosen_BxT = jax.random.uniform(key, candidates.eligible.shape) < candidates.ratio[:, None]
    return candidates.spread(chosen_BxT)


def weighted(key: jax.Array, candidates: Candidates) -> jax.Array:
    """A fixed count without replacement, units one after the other with probability in proportion to their weight.

    The weight of a unit is the mean of a table over its ids (InforMask, arXiv 2210.11771; by frequency); where it is 0,
    the unit is never chosen. The order of Exponential(1) / weight is that of drawing one by one (Efraimidis, Spirakis).
    """
    if candidates.token_weights is None:
        raise ValueError("the strategy 'weighted' needs the table 'token_weights', which this Masking was not given")
    count_key, order_key = jax.random.split(key)
    count_B = fixed_count(count_key, candidates.eligible, candidates.ratio)
    weight_BxT = candidates.mean(candidates.token_weights[candidates.tokens])
    waiting_BxT = jax.random.exponential(order_key, candidates.eligible.shape) / jnp.maximum(weight_BxT, 1e-30)
    return take(waiting_BxT, candidates, count_B, weight_BxT > 0)


def least_masked(key: jax.Array, candidates: Candidates) -> jax.Array:
    """The units masked least often so far in the visits of this row, ties at random (after GPT-BERT, 2410.24159).

    No counts are stored: the masks of the earlier visits are drawn once more from the row's key, at the ratios that
    held then. After a cycle of 1/ratio visits (the largest ratio, where it moves), when every token has been masked
    about once, counting starts afresh. So `key` is not used.
    """
    del key
    eligible_BxT = candidates.eligible

    def mask_of(visit_B, times_BxT):
        count_key_B, order_key_B = (
            jax.vmap(jax.random.fold_in)(candidates.row_key, 2 * visit_B + use) for use in (0, 1)
        )
        count_B = rounded_count(row_uniform(count_key_B, 1)[:, 0], eligible_BxT, candidates.ratio_at(visit_B))
        score_BxT = candidates.mean(times_BxT) + row_uniform(order_key_B, eligible_BxT.shape[1])
        return take(score_BxT, candidates, count_B)

    def pass_visit(visit, times_BxT):
        masked_BxT = mask_of(jnp.full_like(candidates.turn, visit), times_BxT)
        return times_BxT + (masked_BxT & (visit < candidates.turn)[:, None])

    times_BxT = jnp.zeros(eligible_BxT.shape, jnp.float32)
    times_BxT = jax.lax.fori_loop(0, candidates.turn.max(), pass_visit, times_BxT)
    return mask_of(candidates.turn, times_BxT)


def complementary(key: jax.Array, candidates: Candidates) -> jax.Array:
    """Two disjoint masks of each row, each of a fixed count: at 1/2, a mask and its complement (MIRROR, 2511.18159).

    They are antithetic: the second takes the units in the opposite order, and rounds its count the opposite way.
    """
    count_key, order_key = jax.random.split(key)
    noise_B = jax.random.uniform(count_key, candidates.eligible.shape[:1])
    score_BxT = jax.random.uniform(order_key, candidates.eligible.shape)
    counts = (rounded_count(noise, candidates.eligible, candidates.ratio) for noise in (noise_B, 1 - noise_B))
    first_BxT = take(score_BxT, candidates, next(counts))
    second_BxT = take(-score_BxT, candidates, next(counts), ~first_BxT)
    return jnp.stack([first_BxT, second_BxT], axis=1)
