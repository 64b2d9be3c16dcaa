"""Which positions are masked: one function for each strategy. `registry.py` lists the strategies."""

import jax
import jax.numpy as jnp

from mlm_jax.masking.candidates import Candidates, fixed_count, rounded_count, row_uniform, take
from mlm_jax.masking.vocabulary import Vocabulary


def is_special(tokens: jax.Array, vocabulary: Vocabulary) -> jax.Array:
    """bool[…]: where `tokens` holds a special id."""
    return jnp.isin(tokens, jnp.asarray(vocabulary.special_ids, tokens.dtype))


def eligible_positions(tokens_BxT: jax.Array, segments_BxT: jax.Array, vocabulary: Vocabulary) -> jax.Array:
    """bool[B, T]: the positions that may be masked: neither padding nor special tokens."""
    return (segments_BxT > 0) & ~is_special(tokens_BxT, vocabulary)


# ---- Strategies ------------------------------------------------------------------------------------------------------


def uniform(key: jax.Array, candidates: Candidates) -> jax.Array:
    """Chooses a fixed count of tokens, uniformly without replacement (RoBERTa, MAE-LM, ExLM).

    If units are longer than a token, whole units are chosen in random order until the count is met, and units that do
    not fit are skipped (whole-word masking, SpanBERT).

    Args:
      key: a random key for the global batch.
      candidates: the units to choose from.

    Returns:
      bool[B, T], the chosen positions; or bool[B, K, T], K masks of each row, which become K rows of the MaskedBatch.
    """
    count_key, order_key = jax.random.split(key)
    count_B = fixed_count(count_key, candidates.eligible, candidates.ratio)
    return take(jax.random.uniform(order_key, candidates.eligible.shape), candidates, count_B)


def bernoulli(key: jax.Array, candidates: Candidates) -> jax.Array:
    """Chooses each unit independently with probability `ratio`, so that the count is random (BERT, as its paper says).

    The number of slots is fixed: the metric `masked_overflow` counts the few chosen tokens that get no slot.
    """
    chosen_BxT = jax.random.uniform(key, candidates.eligible.shape) < candidates.ratio[:, None]
    return candidates.spread(chosen_BxT)


def weighted(key: jax.Array, candidates: Candidates) -> jax.Array:
    """Chooses a fixed count without replacement; each draw picks a unit with probability proportional to its weight.

    The weight of a unit is the mean of the sampling weights of its ids (InforMask, arXiv 2210.11771; or by frequency);
    units of weight 0 are never chosen. Sorting by Exponential(1) / weight is equivalent to drawing the units one by one
    (Efraimidis and Spirakis).
    """
    tables = candidates.settings.tables
    if tables is None or tables.token_weights is None:
        raise ValueError("the strategy 'weighted' needs the table 'token_weights', which the Masking does not have")
    count_key, order_key = jax.random.split(key)
    count_B = fixed_count(count_key, candidates.eligible, candidates.ratio)
    weight_BxT = candidates.mean(jnp.asarray(tables.token_weights)[candidates.tokens])
    waiting_BxT = jax.random.exponential(order_key, candidates.eligible.shape) / jnp.maximum(weight_BxT, 1e-30)
    return take(waiting_BxT, candidates, count_B, weight_BxT > 0)


def least_masked(key: jax.Array, candidates: Candidates) -> jax.Array:
    """Chooses the units masked least often in earlier visits of the row; ties at random (GPT-BERT, arXiv 2410.24159).

    No counts are stored: the masks of earlier visits are drawn again from the row's key, at the ratios of those visits.
    Counting starts again after a cycle of 1/ratio visits (1/largest ratio if the ratio changes), when every token has
    been masked about once. `key` is not used.
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
    """Two disjoint masks of each row, each with a fixed count; at ratio 1/2, a mask and its complement.

    The masks are antithetic: the second takes the units in the opposite order, and rounds its count the opposite way
    (MIRROR, arXiv 2511.18159).
    """
    count_key, order_key = jax.random.split(key)
    noise_B = jax.random.uniform(count_key, candidates.eligible.shape[:1])
    score_BxT = jax.random.uniform(order_key, candidates.eligible.shape)
    counts = (rounded_count(noise, candidates.eligible, candidates.ratio) for noise in (noise_B, 1 - noise_B))
    first_BxT = take(score_BxT, candidates, next(counts))
    second_BxT = take(-score_BxT, candidates, next(counts), ~first_BxT)
    return jnp.stack([first_BxT, second_BxT], axis=1)
