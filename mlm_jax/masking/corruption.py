"""What stands in the input at the positions to predict."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mlm_jax.masking.vocabulary import Vocabulary


def random_ordinary_tokens(key: jax.Array, shape: tuple[int, ...], vocabulary: Vocabulary) -> jax.Array:
    """int32[shape]: ids drawn uniformly from the ordinary ones; special ids never occur."""
    token = jax.random.randint(key, shape, 0, vocabulary.num_ordinary, jnp.int32)
    for special in vocabulary.special_ids:  # ascending: each one passed shifts the draw by one
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
    """Replaces chosen tokens by [MASK], by random ordinary tokens, or not at all (BERT's 80/10/10).

    Args:
      key: a random key for the global batch.
      tokens_BxT: int32[B, T].
      selected_BxT: bool[B, T], the positions to predict.
      vocabulary: the ids.
      mask_fraction: probability of [MASK] at a chosen position.
      random_fraction: probability of a random ordinary token; what remains is left unchanged.
      spread: gives all positions of a unit the number drawn at its start, so that a unit is replaced as one (SpanBERT);
        each token of a random replacement is still drawn by itself. None draws for every token.

    Returns:
      int32[B, T].
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
