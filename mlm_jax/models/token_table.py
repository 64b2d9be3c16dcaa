"""Embeddings with a row for each token, as the matrix that a model multiplies by to predict tokens."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mlm_jax.models.products import product
from mlm_jax.parallel.sharding import gather_width


def token_table(embedding: nn.Embed) -> jax.Array:
    """f32[V, d]: the rows of an embedding of tokens, gathered along the width."""
    (table_Vxd,) = jax.tree.leaves(
        gather_width({'token_embedding': {'embedding': embedding.embedding}}, embedding.features)
    )
    return table_Vxd


def products_with_tokens(x: jax.Array, table_Vxd: jax.Array) -> jax.Array:
    """f32[…, V]: products of x, [..., d], with the rows of a table, accumulated in float32."""
    rows = 'abc'[: x.ndim - 1]
    return product(f'{rows}d,vd->{rows}v', x, table_Vxd.astype(x.dtype), jnp.float32)
