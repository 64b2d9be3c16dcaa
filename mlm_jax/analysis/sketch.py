"""Random sketches of gradients: a few thousand numbers whose inner products estimate those of the whole gradients.

The flattened gradient is cut into chunks of k entries. Each entry is multiplied by a random sign, each chunk is rotated
by a random shift, and the chunks are added. This is a sparse Rademacher projection R (a count sketch, Charikar et al.
2002), which reads each entry once. Over the random signs, E⟨Rg, Rh⟩ = ⟨g, h⟩ for any rotations; the variance is at most
(‖g‖²‖h‖² + ⟨g, h⟩²) / k, and 0 for gradients with at most k entries.

R depends only on the key and on the position of an entry. The signs are generated for one block of chunks at a time,
just before the block is added, so they need the memory of one block, however large the model is.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

SIZE = 4096
BLOCK_CHUNKS = 256  # chunks in a block


def sketch(tree: Any, key: jax.Array, size: int = SIZE) -> jax.Array:
    """The sketch of all arrays in a pytree.

    Args:
      tree: a pytree of at least one float array.
      key: the same key for all sketches between which inner products are computed.
      size: k, a multiple of 32.

    Returns:
      float32[k].
    """
    leaves = [x.astype(jnp.float32).reshape(-1) for x in jax.tree.leaves(tree)]
    small = [x for x in leaves if x.size < BLOCK_CHUNKS * size]
    flat = [x for x in leaves if x.size >= BLOCK_CHUNKS * size] + ([jnp.concatenate(small)] if small else [])
    sketches = [_sketch_array(x, jax.random.fold_in(key, i), size) for i, x in enumerate(flat)]
    return functools.reduce(jnp.add, sketches)


def _sketch_array(x_N: jax.Array, key: jax.Array, size: int) -> jax.Array:
    num_chunks = -(-x_N.size // size)
    block = min(num_chunks, BLOCK_CHUNKS)
    num_blocks = -(-num_chunks // block)
    padded = jnp.pad(x_N, (0, num_blocks * block * size - x_N.size))

    def add(total_k, numbered_block):
        number, chunks_CxK = numbered_block
        sign_key, shift_key = jax.random.split(jax.random.fold_in(key, number))
        signed_CxK = jnp.where(_random_bits(sign_key, block, size), chunks_CxK, -chunks_CxK)
        shift_C = jax.random.randint(shift_key, (block,), 0, size)
        index_CxK = (jnp.arange(size) - shift_C[:, None]) % size
        return total_k + jnp.take_along_axis(signed_CxK, index_CxK, axis=1).sum(0), None

    blocks = jnp.arange(num_blocks), padded.reshape(num_blocks, block, size)
    return jax.lax.scan(add, jnp.zeros(size), blocks)[0]


def _random_bits(key: jax.Array, rows: int, columns: int) -> jax.Array:
    """bool[rows, columns]; each random word of 32 bits gives 32 of them."""
    words = jax.random.bits(key, (rows, columns // 32, 1), jnp.uint32)
    return ((words >> jnp.arange(32, dtype=jnp.uint32)) & 1).astype(bool).reshape(rows, columns)
