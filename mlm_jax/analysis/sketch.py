"""Random sketches of gradients: a few thousand numbers whose inner products estimate those of the whole gradients.

The flattened gradient is cut into chunks of k entries. Each entry gets a random sign, each chunk a random rotation, and
the chunks are added up: a sparse Rademacher projection (count sketch, Charikar et al. 2002), which touches each
entry once. E⟨Rg, Rh⟩ = ⟨g, h⟩ over the signs, whatever the rotations; the variance is at most
(‖g‖²‖h‖² + ⟨g, h⟩²) / k, and 0 for gradients of up to k entries.

R is a function of the key and of the place of an entry alone. Its signs are made a block at a time, while the block is
being added: no more memory than a block, however large the model.
"""

import jax
import jax.numpy as jnp

SIZE = 4096
BLOCK_CHUNKS = 256


def sketch(tree, key: jax.Array, size: int = SIZE) -> jax.Array:
    """The sketch of all arrays in a pytree.

    Args:
      tree: of float arrays.
      key: the same for all sketches whose inner products are taken.
      size: k, a multiple of 32.

    Returns:
      float32[k].
    """
    leaves = [x.astype(jnp.float32).reshape(-1) for x in jax.tree.leaves(tree)]
    small = [x for x in leaves if x.size < BLOCK_CHUNKS * size]
    flat = [x for x in leaves if x.size >= BLOCK_CHUNKS * size] + ([jnp.concatenate(small)] if small else [])
    return sum(_sketch_array(x, jax.random.fold_in(key, i), size) for i, x in enumerate(flat))


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
    """bool[rows, columns]; each random word gives 32."""
    words = jax.random.bits(key, (rows, columns // 32, 1), jnp.uint32)
    return ((words >> jnp.arange(32, dtype=jnp.uint32)) & 1).astype(bool).reshape(rows, columns)
