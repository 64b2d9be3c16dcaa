"""The likelihood of targets under a directed acyclic graph of states, summed over all alignments (ExLM).

Zheng et al., ExLM, ICML 2025, arXiv 2501.13397; the recursion is that of directed acyclic transformers (arXiv
2205.07459). M targets are emitted by an ascending sequence of states, 0 = a_0 < a_1 < … < a_{M−1} = S − 1:

    log Z = log Σ_a exp( Σ_i match[i, a_i] + Σ_{i≥1} links[a_{i−1}, a_i] )

    forward:   α_i(u) = exp(match[i, u]) Σ_v α_{i−1}(v) exp(links[v, u]),  from α_0(0) = exp(match[0, 0])
    backward:  ω_i(v) = exp(match[i, v]) Σ_u exp(links[v, u]) ω_{i+1}(u),  from ω_{M−1}(S−1) = exp(match[M−1, S−1])

so that α_i(u) ω_i(u) / exp(match[i, u]) / Z is the posterior probability that state u emits target i, and
α_i(v) exp(links[v, u]) ω_{i+1}(u) / Z is the posterior probability that v emits target i and u emits target i + 1 (ω is
the usual β times the emission of its own state).

A state is reached only from earlier states, so the states are computed in blocks, each for all targets: the inflow into
a block from all earlier blocks is one matrix product, and `links` are read once. Only the transitions within a block
need the recursion over targets. The backward recursion runs through blocks and targets in reverse, in the same loop.

The numbers lie far outside the range of float32. All numbers of one block and one target share a scale, a power of two,
which costs no precision. A single scale for all states would let states underflow that lie more than 87 nats below the
best one, although every path to the end may pass through them. The inflow into a block is summed at the largest scale
of the earlier blocks. A sum that is still so small that underflow may have changed it is raised by more than underflow
can have taken from it, which makes α and ω upper bounds, and is marked as unsure. If the unsure states together have a
negligible posterior, the result is exact; otherwise the row is computed again in log space. Which of the two methods a
row takes depends on that row alone, and so do the bits of its results.
"""

import flax.struct
import jax
import jax.numpy as jnp

IMPOSSIBLE = -1e30  # stands for log 0; finite, so that a difference of two of them is not NaN
BLOCK = 80  # the largest number of states that share a scale
LN2 = 0.6931471805599453
NOTHING = -1e6  # the power of two of a block of zeros; finite for the same reason
# Relative to its scale, a sum of S terms loses at most 3·S·exp(−87) to underflow. LOST is above that; sums below UNSURE
# are marked as unsure; possible emissions are at least FAINTEST, so that 0 always means impossible.
UNSURE, LOST, FAINTEST = 1e-27, 1e-34, 1e-37
NEGLIGIBLE = 1e-7  # the total posterior of unsure states below which a row counts as exact
# If a pair of states of two blocks reaches this power of two relative to Z, float32 may overflow.
LARGEST_POWER = 86.0


def dag_log_likelihood(
    match_BxMxS: jax.Array, links_BxSxS: jax.Array, num_targets_B: jax.Array, num_states_B: jax.Array
) -> jax.Array:
    """log Z of each row, differentiable in `match_BxMxS` and `links_BxSxS`.

    The gradients are posteriors: the gradient of `match_BxMxS` is the probability that state u emits target i, and the
    gradient of `links_BxSxS` is the expected number of transitions from v to u. Memory is O(M·S + S²) per row, forward
    and backward.

    Args:
      match_BxMxS: float, the log-probability of target i under state u. Entries beyond a row's number of targets or
        states have no effect.
      links_BxSxS: float, the log-probability of the transition from v to u; only entries with u > v are read; −inf
        forbids the transition.
      num_targets_B: int32, the number of targets of each row.
      num_states_B: int32, the number of states of each row.

    Returns:
      f32[B]; −inf, with zero gradients, for rows without a possible alignment.
    """
    return dag_forward_backward(match_BxMxS, links_BxSxS, num_targets_B, num_states_B)[0]


@jax.custom_vjp
def dag_forward_backward(
    match_BxMxS: jax.Array, links_BxSxS: jax.Array, num_targets_B: jax.Array, num_states_B: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """log Z, and the posterior of which state emits which target; arguments as for `dag_log_likelihood`.

    Returns:
      f32[B], log Z, and f32[B, M, S], the probability, given all targets, that state u emits target i; zeros in rows
      without a possible alignment. No gradient flows through the posterior.
    """
    return _posterior(match_BxMxS, links_BxSxS, num_targets_B, num_states_B)[:2]


def dag_posterior(
    match_BxMxS: jax.Array, links_BxSxS: jax.Array, num_targets_B: jax.Array, num_states_B: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The gradients of `dag_log_likelihood`: the posteriors of states and of transitions; arguments as there.

    Returns:
      f32[B, M, S], the probability that state u emits target i, and f32[B, S, S], the probability that the alignment
      goes from v directly to u.
    """
    return _posterior(match_BxMxS, links_BxSxS, num_targets_B, num_states_B)[1:]


def dag_viterbi(
    match_BxMxS: jax.Array, links_BxSxS: jax.Array, num_targets_B: jax.Array, num_states_B: jax.Array
) -> jax.Array:
    """The most likely alignment; arguments as for `dag_log_likelihood`.

    Returns:
      int32[B, M], the state of each target; −1 beyond the last target and in rows without a possible alignment.
    """
    match_BxMxS, links_BxSxS = _allowed(match_BxMxS, links_BxSxS, num_targets_B, num_states_B)
    match_MxBxS = jnp.moveaxis(match_BxMxS, 1, 0)
    index_M = jnp.arange(len(match_MxBxS))

    def step(best_BxS, xs):
        i, match_BxS = xs
        score_BxSxS = best_BxS[:, :, None] + links_BxSxS
        new_BxS = jnp.maximum(match_BxS + score_BxSxS.max(1), IMPOSSIBLE)
        best_BxS = jnp.where((i < num_targets_B)[:, None], new_BxS, best_BxS)  # no change after the last target
        return best_BxS, score_BxSxS.argmax(1).astype(jnp.int32)

    best_BxS, source_MxBxS = jax.lax.scan(step, match_MxBxS[0], (index_M[1:], match_MxBxS[1:]))
    end_Bx1 = (num_states_B - 1)[:, None]

    def back(state_Bx1, xs):
        i, source_BxS = xs
        inside_Bx1 = i < num_targets_B[:, None]
        before_Bx1 = jnp.where(inside_Bx1, jnp.take_along_axis(source_BxS, state_Bx1, axis=1), state_Bx1)
        return before_Bx1, jnp.where(inside_Bx1, state_Bx1, -1)[:, 0]

    first_Bx1, path_MxB = jax.lax.scan(back, end_Bx1, (index_M[1:], source_MxBxS), reverse=True)
    path_BxM = jnp.concatenate([first_Bx1, path_MxB.T], axis=1).astype(jnp.int32)
    feasible_Bx1 = _is_possible(jnp.take_along_axis(best_BxS, end_Bx1, axis=1))
    return jnp.where(feasible_Bx1 & (num_targets_B > 0)[:, None], path_BxM, -1)


def _posterior(match_BxMxS, links_BxSxS, num_targets_B, num_states_B):
    """f32[B], log Z; f32[B, M, S], the posterior of states; f32[B, S, S], the posterior of transitions."""
    row = match_BxMxS, links_BxSxS, num_targets_B, num_states_B
    exact_B, fast = _in_linear_space(*row)

    def repaired():
        return [
            jnp.where(exact_B.reshape(-1, *[1] * (fast.ndim - 1)), fast, slow)
            for fast, slow in zip(fast, _in_log_space(*row), strict=True)
        ]

    return tuple(jax.lax.cond(exact_B.all(), lambda: list(fast), repaired))


def _forward(match_BxMxS, links_BxSxS, num_targets_B, num_states_B):
    log_z_B, states_BxMxS, steps_BxSxS = _posterior(match_BxMxS, links_BxSxS, num_targets_B, num_states_B)
    gradients = states_BxMxS.astype(match_BxMxS.dtype), steps_BxSxS.astype(links_BxSxS.dtype)
    return (log_z_B, states_BxMxS), gradients


def _backward(gradients, grads):
    # A row without a possible alignment has zero gradients, even if the gradient of the loss by its log Z is infinite:
    # 0 · inf would be NaN.
    return (*(jnp.where(x == 0, 0, x * grads[0][:, None, None].astype(x.dtype)) for x in gradients), None, None)


dag_forward_backward.defvjp(_forward, _backward)


def _allowed(match_BxMxS, links_BxSxS, num_targets_B, num_states_B):
    """`match_BxMxS` and `links_BxSxS` in float32, with `IMPOSSIBLE` where no alignment can pass."""
    index_Mx1, index_S = jnp.arange(match_BxMxS.shape[1])[:, None], jnp.arange(match_BxMxS.shape[2])
    # The numbers of targets and of states that follow. Each later target needs a later state of its own.
    targets_left_BxMx1 = num_targets_B[:, None, None] - 1 - index_Mx1
    states_left_Bx1xS = num_states_B[:, None, None] - 1 - index_S
    inside_BxMxS = (targets_left_BxMx1 >= 0) & (states_left_Bx1xS >= targets_left_BxMx1) & (index_S >= index_Mx1)
    # Only the first state emits the first target, and only the last state the last target.
    ends_BxMxS = ((index_Mx1 == 0) <= (index_S == 0)) & ((targets_left_BxMx1 == 0) <= (states_left_Bx1xS == 0))
    later_BxSxS = (index_S[:, None] < index_S) & (states_left_Bx1xS >= 0)
    return _where_possible(inside_BxMxS & ends_BxMxS, match_BxMxS), _where_possible(later_BxSxS, links_BxSxS)


def _where_possible(possible, log_value):
    return jnp.where(possible, jnp.maximum(log_value.astype(jnp.float32), IMPOSSIBLE), IMPOSSIBLE)


def _is_possible(log_value):
    return ~(log_value <= IMPOSSIBLE / 2)  # NaN is possible, and stays NaN


@flax.struct.dataclass
class _Blocks:
    """The numbers `mantissa` · 2^`power`, for all G blocks of K states or for one block.

    Attributes:
      mantissa: f32[…, M, (G,) K], at most about 1.
      power: f32[…, M, (G)], integers.
      least: f32[…, M, (G)]; mantissas below it are unsure, that is, only upper bounds.
    """

    mantissa: jax.Array
    power: jax.Array
    least: jax.Array

    def is_unsure(self):
        return self.mantissa < self.least[..., None]

    def without_unsure(self) -> '_Blocks':
        return self.replace(mantissa=jnp.where(self.is_unsure(), 0.0, self.mantissa))

    def at_scale(self, power):
        """The numbers divided by 2^`power`."""
        return self.mantissa * _power_of_two(self.power - power)[..., None]


def _power_of_two(power):
    """2^`power` for integers, exactly; 0 below the range of normal float32 numbers."""
    biased = jnp.clip(power, -127, 127).astype(jnp.int32) + 127
    return jax.lax.bitcast_convert_type(biased << 23, jnp.float32)


def _power_above(x):
    """The exponent of the smallest power of two above `x`, which must be positive."""
    return ((jax.lax.bitcast_convert_type(x, jnp.int32) >> 23) - 126).astype(jnp.float32)


def _emissions(match_BxMxS) -> _Blocks:
    """exp(match) in blocks; a mantissa is 0 exactly where the match is impossible."""
    num_states = match_BxMxS.shape[2]
    num_blocks = -(-num_states // BLOCK)
    size = -(-num_states // num_blocks // 8) * 8  # a multiple of 8, for vector instructions
    padding = ((0, 0), (0, 0), (0, num_blocks * size - num_states))
    match_BxMxS = jnp.pad(match_BxMxS, padding, constant_values=IMPOSSIBLE)
    match_BxMxGxK = match_BxMxS.reshape(*match_BxMxS.shape[:2], num_blocks, size)
    best_BxMxG = match_BxMxGxK.max(-1)
    power_BxMxG = jnp.where(_is_possible(best_BxMxG), jnp.ceil(best_BxMxG / LN2), 0.0)
    mantissa_BxMxGxK = jnp.maximum(jnp.exp(match_BxMxGxK - (LN2 * power_BxMxG)[..., None]), FAINTEST)
    mantissa_BxMxGxK = jnp.where(_is_possible(match_BxMxGxK), mantissa_BxMxGxK, 0.0)
    return _Blocks(mantissa_BxMxGxK, power_BxMxG, jnp.zeros_like(power_BxMxG))


def _both_ways(emit: _Blocks, weight, num_targets_B) -> tuple[_Blocks, _Blocks]:
    """α and ω; `weight(a, b)` returns exp(links) from the blocks of slice a to the blocks of slice b."""
    batch, num_targets, num_blocks, _ = emit.mantissa.shape
    index_M = jnp.arange(num_targets)
    # W = 2 directions: index 0 is α; index 1 is ω, with targets and blocks in reverse order.
    start_BxM = index_M == (num_targets - num_targets_B)[:, None]
    start_BxWxM = jnp.stack([jnp.broadcast_to(index_M == 0, start_BxM.shape), start_BxM], axis=1)
    emit = jax.tree.map(lambda x: jnp.stack([x, x[:, ::-1, ::-1]], axis=1), emit)
    done = _Blocks(jnp.zeros_like(emit.mantissa), jnp.full_like(emit.power, NOTHING), emit.least)
    for i in range(num_blocks):
        j = num_blocks - 1 - i
        here, there, before, behind = slice(i, i + 1), slice(j, j + 1), slice(i), slice(j + 1, None)
        source = jax.tree.map(lambda x, before=before: x[:, :, :, before], done)
        top_BxWxM = source.power.max(3, initial=NOTHING)
        source_BxWxMxGxK = source.at_scale(top_BxWxM[..., None])
        alpha_BxMxV = source_BxWxMxGxK[:, 0].reshape(batch, num_targets, -1)
        omega_BxMxU = source_BxWxMxGxK[:, 1, :, ::-1].reshape(batch, num_targets, -1)
        into_alpha_BxMxK = jnp.einsum('bmv,bvk->bmk', alpha_BxMxV, weight(before, here), precision='highest')
        into_omega_BxMxK = jnp.einsum('bmu,bku->bmk', omega_BxMxU, weight(there, behind), precision='highest')
        inflow_BxWxMxK = jnp.stack([into_alpha_BxMxK, into_omega_BxMxK], axis=1)
        within_BxWxKxK = jnp.stack([weight(here, here), jnp.swapaxes(weight(there, there), 1, 2)], axis=1)
        done = _with_block(done, i, inflow_BxWxMxK, top_BxWxM, within_BxWxKxK, emit, start_BxWxM)
    return jax.tree.map(lambda x: x[:, 0], done), jax.tree.map(lambda x: x[:, 1, ::-1, ::-1], done)


def _with_block(
    done: _Blocks, block: int, inflow_BxWxMxK, scale_BxWxM, within_BxWxKxK, emit: _Blocks, start_BxWxM
) -> _Blocks:
    """`done` with one more block filled in, by the recursion over targets.

    Args:
      done: the blocks computed so far.
      block: the index of the block to compute.
      inflow_BxWxMxK: at index i, the sum over transitions from states of earlier blocks, which emit target i, to the
        states of this block, which emit target i + 1; divided by 2^`scale_BxWxM`.
      scale_BxWxM: the power of two that `inflow_BxWxMxK` is divided by.
      within_BxWxKxK: exp(links) between the states of this block.
      emit: the emissions of all blocks.
      start_BxWxM: whether the recursion of a row starts at a target.
    """

    def step(i, carry):
        now, done = carry

        def at(x, i):  # index −1 reads index 0, which is harmless: at i = 0 a row starts, or all its numbers are 0
            return jax.lax.dynamic_index_in_dim(x, i, axis=2, keepdims=False, allow_negative_indices=False)

        start_BxW, scale_BxW, emit_BxWxK = at(start_BxWxM, i), at(scale_BxWxM, i - 1), at(emit.mantissa, i)[:, :, block]
        power_BxW = jnp.maximum(scale_BxW, now.power)
        within_BxWxK = jnp.einsum('bwv,bwvk->bwk', now.mantissa, within_BxWxKxK, precision='highest')
        sum_BxWxK = within_BxWxK * _power_of_two(now.power - power_BxW)[..., None] + LOST
        sum_BxWxK += at(inflow_BxWxMxK, i - 1) * _power_of_two(scale_BxW - power_BxW)[..., None]
        sum_BxWxK = jnp.where(start_BxW[..., None], 1.0, sum_BxWxK)
        power_BxW = jnp.where(start_BxW, 0.0, power_BxW) + at(emit.power, i)[:, :, block]
        number_BxWxK = jnp.where(emit_BxWxK == 0, 0.0, emit_BxWxK * sum_BxWxK + LOST)
        best_BxW = number_BxWxK.max(2)
        more_BxW = _power_above(best_BxW)
        now = _Blocks(
            mantissa=number_BxWxK * _power_of_two(-more_BxW)[..., None],
            power=jnp.where(best_BxW > 0, power_BxW + more_BxW, NOTHING),
            least=UNSURE * _power_of_two(-more_BxW),
        )

        def put(x, now):
            place = 0, 0, i, block, *[0] * (x.ndim - 4)
            return jax.lax.dynamic_update_slice(x, now[:, :, None, None], place, allow_negative_indices=False)

        return now, jax.tree.map(put, done, now)

    nothing = jax.tree.map(lambda x: x[:, :, 0, block], done)
    return jax.lax.fori_loop(0, start_BxWxM.shape[2], step, (nothing, done))[1]


def _in_linear_space(match_BxMxS, links_BxSxS, num_targets_B, num_states_B):
    """bool[B], whether the result for a row is exact; and what `_posterior` returns, valid for the exact rows."""
    match_BxMxS, links_BxSxS = _allowed(match_BxMxS, links_BxSxS, num_targets_B, num_states_B)
    emit = _emissions(match_BxMxS)
    (num_blocks, size), num_states = emit.mantissa.shape[2:], match_BxMxS.shape[2]

    padding = 0, num_blocks * size - num_states
    links_BxSxS = jnp.pad(links_BxSxS, ((0, 0), padding, padding), constant_values=IMPOSSIBLE)
    # Without the barrier, the compiler would compute the exponentials again at each use of a part of them.
    weight_BxVxU = jax.lax.optimization_barrier(jnp.exp(links_BxSxS))

    def weight(*blocks: slice):
        ranges = [range(*block.indices(num_blocks)) for block in blocks]
        return weight_BxVxU[:, *(slice(r.start * size, r.stop * size) for r in ranges)]

    alpha, omega = _both_ways(emit, weight, num_targets_B)
    # Every alignment starts with the first state, which emits the first target.
    z_B, z_power_B = omega.mantissa[:, 0, 0, 0], omega.power[:, 0, 0]
    feasible_B = z_B != 0
    log_z_B = jnp.where(feasible_B, jnp.log(z_B) + LN2 * z_power_B, -jnp.inf)
    one_over_z_B = jnp.where(feasible_B, 1 / z_B, 0.0)
    unsure_BxMxGxK = alpha.is_unsure() | omega.is_unsure()

    power_BxMxG = alpha.power + omega.power - emit.power - z_power_B[:, None, None]
    after_BxMxGxK = jnp.where(emit.mantissa == 0, 0.0, omega.mantissa / emit.mantissa)
    scale_BxMxG = _power_of_two(power_BxMxG) * one_over_z_B[:, None, None]
    states_BxMxGxK = alpha.mantissa * after_BxMxGxK * scale_BxMxG[..., None]
    lost_B = jnp.where(unsure_BxMxGxK, states_BxMxGxK, 0.0).sum((1, 2, 3))
    states_BxMxGxK = jnp.where(unsure_BxMxGxK, 0.0, states_BxMxGxK)
    states_BxMxS = states_BxMxGxK.reshape(*match_BxMxS.shape[:2], num_blocks * size)[..., :num_states]

    alpha, omega = alpha.without_unsure(), omega.without_unsure()
    omega = omega.replace(mantissa=omega.mantissa * one_over_z_B[:, None, None, None])
    omega = omega.replace(power=omega.power - z_power_B[:, None, None])
    steps_BxSxS, steps_power_B = _steps(alpha, omega, weight, num_states)
    largest_power_B = jnp.maximum(power_BxMxG.max((1, 2)), steps_power_B)
    exact_B = (lost_B < NEGLIGIBLE) & (largest_power_B < LARGEST_POWER) & (z_B < 1)  # False for NaN
    return exact_B, (log_z_B, states_BxMxS, steps_BxSxS)


def _steps(alpha: _Blocks, omega: _Blocks, weight, num_states: int):
    """f32[B, S, S], Σ_i α_i(v) weight(v, u) ω_{i+1}(u); and f32[B], the largest power of two of a pair of blocks."""
    alpha, omega = jax.tree.map(lambda x: x[:, :-1], alpha), jax.tree.map(lambda x: x[:, 1:], omega)
    batch, num_targets, num_blocks, size = alpha.mantissa.shape
    strips, largest_B = [], jnp.full(batch, NOTHING)
    for i in range(num_blocks):
        before = jax.tree.map(lambda x, i=i: x[:, :, : i + 1], alpha)
        power_BxMx1 = omega.power[:, :, i, None]
        largest_B = jnp.maximum(largest_B, (before.power + power_BxMx1).max((1, 2), initial=NOTHING))
        alpha_BxMxV = before.at_scale(-power_BxMx1).reshape(batch, num_targets, (i + 1) * size)
        pairs_BxVxK = jnp.einsum('bmv,bmu->bvu', alpha_BxMxV, omega.mantissa[:, :, i], precision='highest')
        here = slice(i, i + 1)
        strip_BxVxK = pairs_BxVxK * jnp.concatenate([weight(slice(i), here), weight(here, here)], axis=1)
        strip_BxVxK = strip_BxVxK[:, :num_states, : num_states - i * size]
        strips.append(jnp.pad(strip_BxVxK, ((0, 0), (0, num_states - strip_BxVxK.shape[1]), (0, 0))))
    return jnp.concatenate(strips, axis=2), largest_B


def _in_log_space(match_BxMxS, links_BxSxS, num_targets_B, num_states_B):
    """What `_posterior` returns, for any row, but slowly: ω, and then forward the Markov chain that ω defines."""
    match_BxMxS, links_BxSxS = _allowed(match_BxMxS, links_BxSxS, num_targets_B, num_states_B)
    match_MxBxS = jnp.moveaxis(match_BxMxS, 1, 0)
    is_last_MxBx1 = (jnp.arange(len(match_MxBxS))[:, None] == num_targets_B - 1)[..., None]

    def back(omega_BxS, xs):
        match_BxS, is_last_Bx1 = xs
        flow_BxS = jax.nn.logsumexp(links_BxSxS + omega_BxS[:, None, :], axis=2)
        score_BxS = match_BxS + jnp.where(is_last_Bx1, 0.0, flow_BxS)
        best_Bx1 = score_BxS.max(1, keepdims=True)
        offset_Bx1 = jnp.where(_is_possible(best_Bx1), best_Bx1, 0.0)  # taken out of ω, as large numbers cost precision
        omega_BxS = jnp.where(_is_possible(score_BxS), score_BxS - offset_Bx1, IMPOSSIBLE)
        return omega_BxS, (omega_BxS, offset_Bx1[:, 0])

    none_BxS = jnp.full_like(match_MxBxS[0], IMPOSSIBLE)
    _, (omega_MxBxS, offset_MxB) = jax.lax.scan(back, none_BxS, (match_MxBxS, is_last_MxBx1), reverse=True)
    start_B = omega_MxBxS[0, :, 0]
    feasible_B = _is_possible(start_B)
    log_z_B = jnp.where(feasible_B, start_B + offset_MxB.sum(0), -jnp.inf)

    def forward(carry, omega_BxS):
        steps_BxSxS, state_BxS = carry
        score_BxSxS = links_BxSxS + omega_BxS[:, None, :]
        step_BxSxS = state_BxS[:, :, None] * jax.nn.softmax(score_BxSxS, axis=2) * _is_possible(score_BxSxS)
        state_BxS = step_BxSxS.sum(1)
        return (steps_BxSxS + step_BxSxS, state_BxS), state_BxS

    first_BxS = (jnp.arange(none_BxS.shape[1]) == 0) * feasible_B[:, None].astype(jnp.float32)
    carry = jnp.zeros_like(links_BxSxS), first_BxS
    (steps_BxSxS, _), state_MxBxS = jax.lax.scan(forward, carry, omega_MxBxS[1:])
    return log_z_B, jnp.moveaxis(jnp.concatenate([first_BxS[None], state_MxBxS]), 0, 1), steps_BxSxS
