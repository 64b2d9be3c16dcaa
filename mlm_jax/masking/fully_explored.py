"""Fully-explored masking: the positions of a text are divided into disjoint segments, each of which is masked once.

Zheng et al., Improving Self-supervised Pre-training via a Fully-Explored Masked Language Model, arXiv 2010.06040: the
covariance of the gradients of two masks of a text falls with their Hamming distance, so the mean over disjoint masks
has a smaller variance than the mean over independent masks. Settings that the paper's abstract leaves open are options
here (`registry.FullyExplored`).
"""

import jax
import jax.numpy as jnp

from mlm_jax.masking.candidates import Candidates, ranks, row_uniform
from mlm_jax.masking.registry import FullyExplored


def fully_explored(key: jax.Array, candidates: Candidates) -> jax.Array:
    """bool[B, J, T]: J of the K segments of each row, as masks; bool[B, T], one segment, for the schedule `successive`.

    Every position belongs to each segment with probability exactly 1/K. The schedule `successive` does not use `key`.
    """
    options = candidates.settings.fully_explored
    length = candidates.eligible.shape[1]
    if options.schedule == 'successive':
        keys = jax.vmap(lambda key: jax.random.split(key, 2))(candidates.row_key)
        turn_B = jax.vmap(lambda key: jax.random.randint(key, (), 0, 2**30))(keys[:, 1])
        segment_BxT = segments_of(row_uniform(keys[:, 0], length), turn_B, candidates, options)
        return (segment_BxT == candidates.turn[:, None] % options.segments) & candidates.eligible
    noise_key, turn_key = jax.random.split(key)
    turn_B = jax.random.randint(turn_key, candidates.eligible.shape[:1], 0, 2**30)
    noise_BxT = jax.random.uniform(noise_key, candidates.eligible.shape)
    segment_BxT = segments_of(noise_BxT, turn_B, candidates, options)
    view_Jx1 = jnp.arange(candidates.settings.num_views)[:, None]
    return (segment_BxT[:, None] == view_Jx1) & candidates.eligible[:, None]


def segments_of(noise_BxT: jax.Array, turn_B: jax.Array, candidates: Candidates, options: FullyExplored) -> jax.Array:
    """int32[B, T]: the segment, 0 … K − 1, of each eligible position; undefined elsewhere.

    If units are single tokens, the sizes of the segments differ by at most 1. Longer units are laid out on a line of
    tokens, the line is cut into K equal parts, and a unit belongs to the part that contains its middle.

    Args:
      noise_BxT: float32[B, T], random numbers in [0, 1).
      turn_B: int32[B], large random numbers, which decide which segment gets the number 0 and where a contiguous
        partition starts.
      candidates: the units.
      options: the kind of partition and K.
    """
    num_segments, starts_BxT = options.segments, candidates.starts
    total_Bx1 = jnp.maximum(candidates.eligible.sum(1, keepdims=True), 1)
    if options.partition == 'stratified':
        block_BxT = (jnp.cumsum(starts_BxT, axis=1) - 1) // num_segments
        # Sorts by block, and at random within a block. Integers keep the order exact; float sums could tie.
        order_BxT = block_BxT * starts_BxT.shape[1] + ranks(noise_BxT, starts_BxT)
        big = jnp.iinfo(jnp.int32).max
        rank_BxT = jnp.argsort(jnp.argsort(jnp.where(starts_BxT, order_BxT, big), axis=1), axis=1)
        segment_BxT = rank_BxT % num_segments
    else:
        if options.partition == 'contiguous':
            before_BxT = jnp.cumsum(candidates.eligible, axis=1) - 1 + turn_B[:, None] % total_Bx1
        else:
            before_BxT = _tokens_before(noise_BxT, candidates)
        middle_BxT = (2 * before_BxT + candidates.sizes) % (2 * total_Bx1)
        segment_BxT = middle_BxT * num_segments // (2 * total_Bx1)
    # If K does not divide the number of tokens, some segments are larger; without the turn, always the same ones.
    return candidates.spread((segment_BxT + turn_B[:, None] // total_Bx1) % num_segments)


def _tokens_before(noise_BxT: jax.Array, candidates: Candidates) -> jax.Array:
    """int32[B, T]: at the start of each unit, the number of tokens in the units that precede it in a random order."""
    if candidates.single:
        return ranks(noise_BxT, candidates.starts)
    order_BxT = jnp.argsort(jnp.where(candidates.starts, noise_BxT, jnp.inf), axis=1)
    size_BxT = jnp.take_along_axis(candidates.sizes, order_BxT, axis=1)
    before_BxT = jnp.cumsum(size_BxT, axis=1) - size_BxT
    return jnp.take_along_axis(before_BxT, jnp.argsort(order_BxT, axis=1), axis=1)
