"""Corruption: what the input holds at the chosen positions instead of the original token."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mlm_jax.masking.vocabulary import Vocabulary


def random_ordinary_tokens(key: jax.Array, shape: tuple[int, ...], vocabulary: Vocabulary) -> jax.Array:
    """int32[shape]: ids drawn uniformly from the ordinary ids; special ids never occur."""
    token = jax.random.randint(key, shape, 0, vocabulary.num_ordinary, jnp.int32)
    for special in vocabulary.special_ids:  # ascending: the draw moves up by one for each special id at or below it
        token += token >= special
    return token


def corrupt(
    key: jax.Array,
    tokens_BxT: jax.Array,
    selected_BxT: jax.Array,
    vocabulary: Vocabulary,
    mask_fraction: float,
    random_fraction: float,
    spread: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Replaces chosen tokens by [MASK] or by random ordinary tokens, or leaves them unchanged (BERT's 80/10/10).

    Args:
      key: a random key for the global batch.
      tokens_BxT: int32[B, T].
      selected_BxT: bool[B, T], the chosen positions.
      vocabulary: the special ids and the number of ids.
      mask_fraction: the probability that a chosen token becomes [MASK].
      random_fraction: the probability that a chosen token becomes a random ordinary token; the remaining chosen tokens
        stay unchanged.
      spread: copies the random number at the start of each unit to all positions of the unit, so that all tokens of a
        unit meet the same fate (SpanBERT); random replacements are still drawn token by token. With None, the fate of
        each token is drawn independently.

    Returns:
      int32[B, T], the corrupted rows.
    """
    mask = jnp.int32(vocabulary.mask_id)
    if mask_fraction == 1:
        return jnp.where(selected_BxT, mask, tokens_BxT)
    kind_key, token_key = jax.random.split(key)
    kind_BxT = jax.random.uniform(kind_key, tokens_BxT.shape)
    if spread is not None:
        kind_BxT = spread(kind_BxT)
    random_BxT = random_ordinary_tokens(token_key, tokens_BxT.shape, vocabulary)
    replaced_BxT = jnp.where(kind_BxT < mask_fraction + random_fraction, random_BxT, tokens_BxT)
    replaced_BxT = jnp.where(kind_BxT < mask_fraction, mask, replaced_BxT)
    return jnp.where(selected_BxT, replaced_BxT, tokens_BxT)
