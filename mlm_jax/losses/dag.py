"""The likelihood of targets under a directed acyclic graph of states, summed over all alignments (ExLM).

Zheng et al., ExLM, ICML 2025, arXiv 2501.13397; the recursion is that of directed acyclic transformers (arXiv
2205.07459). M targets are emitted by an ascending sequence of states, 0 = a_0 < a_1 < … < a_{M−1} = S − 1:

    log Z = log Σ_a exp( Σ_i match[i, a_i] + Σ_{i≥1} links[a_{i−1}, a_i] )

    forward:   α_i(u) = exp(match[i, u]) Σ_v α_{i−1}(v) exp(links[v, u]),  from α_0(0) = exp(match[0, 0])
    backward:  ω_i(v) = exp(match[i, v]) Σ_u exp(links[v, u]) ω_{i+1}(u),  from ω_{M−1}(S−1) = exp(match[M−1, S−1])

so that α_i(u) ω_i(u) / exp(match[i, u]) / Z is the probability that state u emits target i, and α_i(v) exp(links[v, u])
ω_{i+1}(u) / Z that of the step from v to u after it (ω is β with the emission of its own state).

A state is reached from earlier ones only, so states are computed in blocks, each for all targets: what flows into it
from the blocks before is one product of matrices, and `links` are read once. The recursion over targets is left to the
steps within a block. The backward recursion goes through blocks and targets from the end, in the same loop.

The numbers are far outside of float32. Those of a block and target have a power of two as their common scale, which
takes no digits from them. One scale for all states would lose those that lie further below the best than float32
reaches, 87 nats, though the only way to the end may pass them. What flows into a block is summed in the largest of the
scales up to it. Sums that are still too small to be sure of are raised by more than what can be lost, which makes α and
ω upper bounds, and count as unsure. If the unsure states have no posterior worth mentioning, nothing was lost; if they
have, the row is computed again in log space. Which way a row takes depends on the row alone, and so do its results, to
the bit.
"""

import flax.struct
import jax
import jax.numpy as jnp

IMPOSSIBLE = -1e30  # log 0: finite, so that differences are no NaN
BLOCK = 80  # states with a common scale, at most
LN2 = 0.6931471805599453
NOTHING = -1e6  # the power of two of a block of zeros: finite too
# In units of its scale, a sum of S terms loses at most 3·S·exp(−87): smaller float32 numbers become 0.
UNSURE, LOST, FAINTEST = 1e-27, 1e-34, 1e-37
NEGLIGIBLE = 1e-7  # posterior of all states that are unsure
LARGEST_POWER = 86.0  # of two, of the best pair of states of two blocks, relative to Z


def dag_log_likelihood(
    match_BxMxS: jax.Array, links_BxSxS: jax.Array, num_targets_B: jax.Array, num_states_B: jax.Array
) -> jax.Array:
    """log Z of each row, differentiable in `match_BxMxS` and `links_BxSxS`.

    The gradients are posteriors: that of `match_BxMxS` is the probability that state u emits target i, that of
    `links_BxSxS` the expected number of transitions from v to u. Memory is O(M·S + S²) per row, forward and backward.

    Args:
      match_BxMxS: float, log-probability of target i under state u. What lies behind the numbers of targets and states
        has no influence.
      links_BxSxS: float, log-probability of the transition from v to u; read for u > v only; −inf forbids it.
      num_targets_B: int32, M of each row.
      num_states_B: int32, S of each row.

    Returns:
      f32[B]; −inf, with zero gradients, for rows without an alignment.
    """
    return dag_forward_backward(match_BxMxS, links_BxSxS, num_targets_B, num_states_B)[0]


@jax.custom_vjp
def dag_forward_backward(
    match_BxMxS: jax.Array, links_BxSxS: jax.Array, num_targets_B: jax.Array, num_states_B: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`dag_log_likelihood`, and which state emitted which target; arguments as there.

    Returns:
      f32[B], log Z, and f32[B, M, S], the probability that target i is emitted by state u given all targets: zeros in
      rows without an alignment. No gradient flows through the latter.
    """
    return _posterior(match_BxMxS, links_BxSxS, num_targets_B, num_states_B)[:2]


def dag_posterior(
    match_BxMxS: jax.Array, links_BxSxS: jax.Array, num_targets_B: jax.Array, num_states_B: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The gradients of `dag_log_likelihood`: posteriors of states and transitions; arguments as there.

    Returns:
      f32[B, M, S], the probability that target i is emitted by state u, and f32[B, S, S], that the alignment steps from
      v to u.
    """
    return _posterior(match_BxMxS, links_BxSxS, num_targets_B, num_states_B)[1:]


def dag_viterbi(
    match_BxMxS: jax.Array, links_BxSxS: jax.Array, num_targets_B: jax.Array, num_states_B: jax.Array
) -> jax.Array:
    """The most likely alignment; arguments as for `dag_log_likelihood`.

    Returns:
      int32[B, M], the state of each target; −1 behind the last target, and for rows without an alignment.
    """
    match_BxMxS, links_BxSxS = _allowed(match_BxMxS, links_BxSxS, num_targets_B, num_states_B)
    match_MxBxS = jnp.moveaxis(match_BxMxS, 1, 0)
    index_M = jnp.arange(len(match_MxBxS))

    def step(best_BxS, xs):
        i, match_BxS = xs
        score_BxSxS = best_BxS[:, :, None] + links_BxSxS
        new_BxS = jnp.maximum(match_BxS + score_BxSxS.max(1), IMPOSSIBLE)
        best_BxS = jnp.where((i < num_targets_B)[:, None], new_BxS, best_BxS)  # rows that have ended stay
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
    """log Z f32[B], the posterior of states f32[B, M, S] and of transitions f32[B, S, S]."""
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
    # An infeasible row has no gradient, whatever the loss makes of its log Z: zeros, and no 0 · inf.
    return (*(jnp.where(x == 0, 0, x * grads[0][:, None, None].astype(x.dtype)) for x in gradients), None, None)


dag_forward_backward.defvjp(_forward, _backward)


def _allowed(match_BxMxS, links_BxSxS, num_targets_B, num_states_B):
    """The first two arguments in float32, `IMPOSSIBLE` where no alignment passes."""
    index_Mx1, index_S = jnp.arange(match_BxMxS.shape[1])[:, None], jnp.arange(match_BxMxS.shape[2])
    # As many targets are left, and as many states.
    targets_left_BxMx1 = num_targets_B[:, None, None] - 1 - index_Mx1
    states_left_Bx1xS = num_states_B[:, None, None] - 1 - index_S
    inside_BxMxS = (targets_left_BxMx1 >= 0) & (states_left_Bx1xS >= targets_left_BxMx1) & (index_S >= index_Mx1)
    # The first and the last target belong to the first and the last state.
    ends_BxMxS = ((index_Mx1 == 0) <= (index_S == 0)) & ((targets_left_BxMx1 == 0) <= (states_left_Bx1xS == 0))
    later_BxSxS = (index_S[:, None] < index_S) & (states_left_Bx1xS >= 0)
    return _where_possible(inside_BxMxS & ends_BxMxS, match_BxMxS), _where_possible(later_BxSxS, links_BxSxS)


def _where_possible(possible, log_value):
    return jnp.where(possible, jnp.maximum(log_value.astype(jnp.float32), IMPOSSIBLE), IMPOSSIBLE)


def _is_possible(log_value):
    return ~(log_value <= IMPOSSIBLE / 2)  # NaN is possible, and stays NaN


@flax.struct.dataclass
class _Blocks:
    """Numbers `mantissa` · 2^`power` of G blocks of K states, or of one of them.

    Attributes:
      mantissa: f32[…, M, (G,) K], at most about 1.
      power: f32[…, M, (G)], whole.
      least: f32[…, M, (G)]. Mantissas below are unsure: upper bounds.
    """

    mantissa: jax.Array
    power: jax.Array
    least: jax.Array

    def is_unsure(self):
        return self.mantissa < self.least[..., None]

    def without_unsure(self) -> '_Blocks':
        return self.replace(mantissa=jnp.where(self.is_unsure(), 0.0, self.mantissa))

    def at_scale(self, power):
        """The numbers / 2^`power`."""
        return self.mantissa * _power_of_two(self.power - power)[..., None]


def _power_of_two(power):
    """2^`power` for whole numbers, exactly; 0 below float32's normal numbers."""
    biased = jnp.clip(power, -127, 127).astype(jnp.int32) + 127
    return jax.lax.bitcast_convert_type(biased << 23, jnp.float32)


def _power_above(x):
    """The smallest power of two above positive `x`."""
    return ((jax.lax.bitcast_convert_type(x, jnp.int32) >> 23) - 126).astype(jnp.float32)


def _emissions(match_BxMxS) -> _Blocks:
    """exp(match) in blocks; 0 is impossible, and nothing else is."""
    num_states = match_BxMxS.shape[2]
    num_blocks = -(-num_states // BLOCK)
    size = -(-num_states // num_blocks // 8) * 8  # whole vectors
    padding = ((0, 0), (0, 0), (0, num_blocks * size - num_states))
    match_BxMxS = jnp.pad(match_BxMxS, padding, constant_values=IMPOSSIBLE)
    match_BxMxGxK = match_BxMxS.reshape(*match_BxMxS.shape[:2], num_blocks, size)
    best_BxMxG = match_BxMxGxK.max(-1)
    power_BxMxG = jnp.where(_is_possible(best_BxMxG), jnp.ceil(best_BxMxG / LN2), 0.0)
    mantissa_BxMxGxK = jnp.maximum(jnp.exp(match_BxMxGxK - (LN2 * power_BxMxG)[..., None]), FAINTEST)
    mantissa_BxMxGxK = jnp.where(_is_possible(match_BxMxGxK), mantissa_BxMxGxK, 0.0)
    return _Blocks(mantissa_BxMxGxK, power_BxMxG, jnp.zeros_like(power_BxMxG))


def _both_ways(emit: _Blocks, weight, num_targets_B) -> tuple[_Blocks, _Blocks]:
    """α and ω; `weight` gives exp(links) from some blocks to others."""
    batch, num_targets, num_blocks, _ = emit.mantissa.shape
    index_M = jnp.arange(num_targets)
    # W = 2 ways: that of α, and that of ω with targets and blocks in reverse.
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
    """`done` and a block more, by the recursion over targets.

    `inflow_BxWxMxK`, over 2^`scale_BxWxM`, is what flows from the blocks before into target i + 1 of this one;
    `within_BxWxKxK` are the steps inside.
    """

    def step(i, carry):
        now, done = carry

        def at(x, i):  # what is at −1 is at 0: of no influence, for there a row starts, or has nothing yet
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
    """Whether a row is exact, bool[B], and what `_posterior` returns, right where it is."""
    match_BxMxS, links_BxSxS = _allowed(match_BxMxS, links_BxSxS, num_targets_B, num_states_B)
    emit = _emissions(match_BxMxS)
    (num_blocks, size), num_states = emit.mantissa.shape[2:], match_BxMxS.shape[2]

    padding = 0, num_blocks * size - num_states
    links_BxSxS = jnp.pad(links_BxSxS, ((0, 0), padding, padding), constant_values=IMPOSSIBLE)
    # The barrier has them computed once, and not again for each use of a part.
    weight_BxVxU = jax.lax.optimization_barrier(jnp.exp(links_BxSxS))

    def weight(*blocks: slice):
        ranges = [range(*block.indices(num_blocks)) for block in blocks]
        return weight_BxVxU[:, *(slice(r.start * size, r.stop * size) for r in ranges)]

    alpha, omega = _both_ways(emit, weight, num_targets_B)
    # All alignments go through the first state at the first target.
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
    exact_B = (lost_B < NEGLIGIBLE) & (largest_power_B < LARGEST_POWER) & (z_B < 1)  # which NaN is not
    return exact_B, (log_z_B, states_BxMxS, steps_BxSxS)


def _steps(alpha: _Blocks, omega: _Blocks, weight, num_states: int):
    """Σ_i α_i(v) weight(v, u) ω_{i+1}(u), f32[B, S, S], and the largest power of two of a pair of blocks, f32[B]."""
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
    """What `_posterior` returns, for all rows, but slowly: ω, and forward the Markov chain that it makes of states."""
    match_BxMxS, links_BxSxS = _allowed(match_BxMxS, links_BxSxS, num_targets_B, num_states_B)
    match_MxBxS = jnp.moveaxis(match_BxMxS, 1, 0)
    is_last_MxBx1 = (jnp.arange(len(match_MxBxS))[:, None] == num_targets_B - 1)[..., None]

    def back(omega_BxS, xs):
        match_BxS, is_last_Bx1 = xs
        flow_BxS = jax.nn.logsumexp(links_BxSxS + omega_BxS[:, None, :], axis=2)
        score_BxS = match_BxS + jnp.where(is_last_Bx1, 0.0, flow_BxS)
        best_Bx1 = score_BxS.max(1, keepdims=True)
        offset_Bx1 = jnp.where(_is_possible(best_Bx1), best_Bx1, 0.0)  # to keep would cost digits
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
