"""The likelihood of targets under a directed acyclic graph of states, summed over all alignments (ExLM).

Zheng et al., ExLM, ICML 2025, arXiv 2501.13397; the recursion is that of directed acyclic transformers (arXiv
2205.07459). M targets are emitted by an ascending sequence of states, 0 = a_0 < a_1 < … < a_{M−1} = S − 1:

    log Z = log Σ_a exp( Σ_i match[i, a_i] + Σ_{i≥1} links[a_{i−1}, a_i] )

    forward:   α_i(u) = match[i, u] + log Σ_v exp(α_{i−1}(v) + links[v, u]),  from α_0(0) = match[0, 0]
    backward:  ω_i(v) = match[i, v] + log Σ_u exp(links[v, u] + ω_{i+1}(u)),  from ω_{M−1}(S−1) = match[M−1, S−1]

so that exp(α_i(u) + ω_i(u) − match[i, u] − log Z) is the probability that state u emits target i (ω is β with the
emission of its own state). The backward recursion is the forward one of the row read from its end.

A step is a product of a vector and a matrix in linear space, many times faster than a logsumexp over S × S numbers.
One scale for all states would lose those that lie further below the best than float32 reaches, 87 nats, though the only
way to the end may pass them. So states are cut into blocks; each block has a scale of its own as source, and as
destination the largest of the blocks up to it. Sums that are still too small to be sure of are raised by more than what
can be lost, which makes α and ω upper bounds, and are marked. If the marked states have no posterior worth mentioning,
nothing was lost; if they have, the row is computed again in log space. Which way a row takes depends on the row alone,
and so do its results, to the bit.
"""

import flax.struct
import jax
import jax.numpy as jnp

IMPOSSIBLE = -1e30  # log 0: finite, so that differences are no NaN
BLOCK = 32  # states with a common scale, at most
# In units of its scale, a sum of S terms loses at most 3·S·exp(−87): smaller float32 numbers become 0.
UNSURE, LOST = 1e-27, 1e-34
NEGLIGIBLE = 1e-7  # posterior of all states that are unsure
LARGEST_EXPONENT = 60.0  # of the best pair of states of two blocks, above log Z


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
    return _forward(match_BxMxS, links_BxSxS, num_targets_B, num_states_B)[0]


def dag_posterior(
    match_BxMxS: jax.Array, links_BxSxS: jax.Array, num_targets_B: jax.Array, num_states_B: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The gradients of `dag_log_likelihood`: posteriors of states and transitions; arguments as there.

    Returns:
      f32[B, M, S], the probability that target i is emitted by state u, and f32[B, S, S], that the alignment steps from
      v to u.
    """
    (log_z_B, _), residuals = _forward(match_BxMxS, links_BxSxS, num_targets_B, num_states_B)
    return _backward(residuals, (jnp.ones_like(log_z_B),))[:2]


def dag_viterbi(
    match_BxMxS: jax.Array, links_BxSxS: jax.Array, num_targets_B: jax.Array, num_states_B: jax.Array
) -> jax.Array:
    """The most likely alignment; arguments as for `dag_log_likelihood`.

    Returns:
      int32[B, M], the state of each target; −1 behind the last target, and for rows without an alignment.
    """
    row = _Row.of(match_BxMxS, links_BxSxS, num_targets_B, num_states_B)
    match_MxBxS, links_BxSxS = row.match_MxBxS, row.links_BxSxS
    index_M = jnp.arange(len(match_MxBxS))
    first_BxS = jnp.where(jnp.arange(links_BxSxS.shape[1]) == 0, match_MxBxS[0], IMPOSSIBLE)

    def step(best_BxS, xs):
        i, match_BxS = xs
        score_BxSxS = best_BxS[:, :, None] + links_BxSxS
        new_BxS = jnp.maximum(match_BxS + score_BxSxS.max(1), IMPOSSIBLE)
        best_BxS = jnp.where((i < num_targets_B)[:, None], new_BxS, best_BxS)  # rows that have ended stay
        return best_BxS, score_BxSxS.argmax(1).astype(jnp.int32)

    best_BxS, source_MxBxS = jax.lax.scan(step, first_BxS, (index_M[1:], match_MxBxS[1:]))
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


def _forward(match_BxMxS, links_BxSxS, num_targets_B, num_states_B):
    row = _Row.of(match_BxMxS, links_BxSxS, num_targets_B, num_states_B)
    alpha, omega = ways = _both_ways(row, _linear_space)
    exact_B = _nothing_is_lost(row, alpha, omega)
    alpha, omega = _repaired(exact_B, [way.without_unsure() for way in ways], lambda: _both_ways(row, _log_space))
    start_B = omega.score_MxBxS[0, :, 0]
    feasible_B = _is_possible(start_B)
    log_z_B = jnp.where(feasible_B, start_B + omega.offset_MxB.sum(0), -jnp.inf)
    occupancy_BxMxS = jnp.moveaxis(_occupancy(row, alpha, omega), 0, 1)
    arguments = (match_BxMxS, links_BxSxS, num_targets_B, num_states_B)
    return (log_z_B, occupancy_BxMxS), (arguments, alpha, omega, exact_B, feasible_B, occupancy_BxMxS)


def _backward(residuals, grads):
    arguments, alpha, omega, exact_B, feasible_B, occupancy_BxMxS = residuals
    match_BxMxS, links_BxSxS = arguments[:2]
    parts = (_Row.of(*arguments), alpha, omega)
    steps_BxSxS = _repaired(exact_B, _blocked_transitions(*parts), lambda: _transitions(*parts), axis=0)
    grad_B = jnp.where(feasible_B, grads[0], 0.0)[:, None, None]
    grad_match_BxMxS, grad_links_BxSxS = occupancy_BxMxS * grad_B, steps_BxSxS * grad_B
    return grad_match_BxMxS.astype(match_BxMxS.dtype), grad_links_BxSxS.astype(links_BxSxS.dtype), None, None


dag_forward_backward.defvjp(_forward, _backward)


@flax.struct.dataclass
class _Row:
    """The arguments, `IMPOSSIBLE` outside the targets, states and transitions of each row."""

    match_MxBxS: jax.Array
    links_BxSxS: jax.Array
    num_targets_B: jax.Array
    num_states_B: jax.Array

    @classmethod
    def of(cls, match_BxMxS, links_BxSxS, num_targets_B, num_states_B):
        index_M, index_S = jnp.arange(match_BxMxS.shape[1]), jnp.arange(match_BxMxS.shape[2])
        state_BxS = index_S < num_states_B[:, None]
        used_BxMxS = (index_M < num_targets_B[:, None])[:, :, None] & state_BxS[:, None, :]
        match_BxMxS = jnp.where(used_BxMxS, jnp.maximum(match_BxMxS.astype(jnp.float32), IMPOSSIBLE), IMPOSSIBLE)
        later_BxSxS = (index_S[:, None] < index_S) & state_BxS[:, None, :]
        links_BxSxS = jnp.where(later_BxSxS, jnp.maximum(links_BxSxS.astype(jnp.float32), IMPOSSIBLE), IMPOSSIBLE)
        return cls(jnp.moveaxis(match_BxMxS, 1, 0), links_BxSxS, num_targets_B, num_states_B)


@flax.struct.dataclass
class _Scores:
    """α or ω. Each target has the score 0 at its best state: what `offset` took off would cost digits.

    Attributes:
      score_MxBxS: f32, less the offsets of this target and of those before it.
      offset_MxB: f32.
      unsure_MxBxS: bool, where the score is an upper bound.
    """

    score_MxBxS: jax.Array
    offset_MxB: jax.Array
    unsure_MxBxS: jax.Array

    def without_unsure(self) -> '_Scores':
        return self.replace(score_MxBxS=jnp.where(self.unsure_MxBxS, IMPOSSIBLE, self.score_MxBxS))


def _is_possible(log_value):
    return log_value > IMPOSSIBLE / 2


def _both_ways(row: _Row, space) -> list[_Scores]:
    """α and ω; `space` is `_linear_space` or `_log_space`."""
    zero_B, num_states = jnp.zeros_like(row.num_targets_B), row.links_BxSxS.shape[1]
    alpha = _scores(row.match_MxBxS, space(row.links_BxSxS), zero_B, zero_B, reverse=False)
    reversed_links_BxSxS = jnp.swapaxes(row.links_BxSxS, 1, 2)[:, ::-1, ::-1]
    omega = _scores(
        row.match_MxBxS[..., ::-1],
        space(reversed_links_BxSxS),
        row.num_targets_B - 1,
        num_states - row.num_states_B,
        reverse=True,
    )
    return [alpha, jax.tree.map(lambda x: x[..., ::-1] if x.ndim == 3 else x, omega)]


def _scores(match_MxBxS, inflow, start_target_B, start_state_B, reverse: bool) -> _Scores:
    """The recursion, from `start_state_B` at `start_target_B` on."""
    state_BxS = jnp.arange(match_MxBxS.shape[2]) - start_state_B[:, None]

    def step(score_BxS, xs):
        i, match_BxS = xs
        target_Bx1 = jnp.abs(i - start_target_B)[:, None]
        inflow_BxS, unsure_BxS = inflow(score_BxS)
        inflow_BxS = jnp.where(target_Bx1 == 0, jnp.where(state_BxS == 0, 0.0, IMPOSSIBLE), inflow_BxS)
        score_BxS = match_BxS + inflow_BxS
        possible_BxS = _is_possible(score_BxS) & (state_BxS >= target_Bx1)  # at least a state for each target
        score_BxS = jnp.where(possible_BxS, score_BxS, IMPOSSIBLE)
        best_Bx1 = score_BxS.max(1, keepdims=True)
        offset_Bx1 = jnp.where(_is_possible(best_Bx1), best_Bx1, 0.0)
        score_BxS = jnp.where(possible_BxS, score_BxS - offset_Bx1, IMPOSSIBLE)
        return score_BxS, _Scores(score_BxS, offset_Bx1[:, 0], unsure_BxS & possible_BxS & (target_Bx1 > 0))

    none_BxS = jnp.full(state_BxS.shape, IMPOSSIBLE)
    return jax.lax.scan(step, none_BxS, (jnp.arange(len(match_MxBxS)), match_MxBxS), reverse=reverse)[1]


def _log_space(links_BxSxS):
    """A function from scores f32[B, S] to log Σ_v exp(score(v) + links(v, u)), and where that is unsure: nowhere."""

    def inflow(score_BxS):
        inflow_BxS = jax.nn.logsumexp(score_BxS[:, :, None] + links_BxSxS, axis=1)
        return inflow_BxS, jnp.zeros(score_BxS.shape, bool)

    return inflow


def _linear_space(links_BxSxS):
    """As `_log_space`, by products; an upper bound where it is unsure."""
    batch, num_states = links_BxSxS.shape[:2]
    blocks, size = _block_shape(num_states)
    pad = blocks * size - num_states
    weight_BxSxS = jnp.pad(jnp.exp(links_BxSxS), ((0, 0), (0, pad), (0, pad)))
    weight_BxGxKxS = weight_BxSxS.reshape(batch, blocks, size, blocks * size)

    def inflow(score_BxS):
        score_BxGxK = _in_blocks(score_BxS)
        top_BxG = score_BxGxK.max(2)
        part_BxGxS = jnp.einsum(
            'bgk,bgks->bgs', jnp.exp(score_BxGxK - top_BxG[..., None]), weight_BxGxKxS, precision='highest'
        )
        scale_BxH = jax.lax.cummax(top_BxG, axis=1)  # nothing flows into a block from later ones
        factor_BxGxH = jnp.exp(jnp.minimum(top_BxG[:, :, None] - scale_BxH[:, None, :], 0.0))
        sum_BxHxK = (part_BxGxS.reshape(batch, blocks, blocks, size) * factor_BxGxH[..., None]).sum(1)
        unsure_BxHxK = sum_BxHxK < UNSURE
        inflow_BxHxK = jnp.log(sum_BxHxK + unsure_BxHxK * LOST) + scale_BxH[..., None]
        return _out_of_blocks(inflow_BxHxK, num_states), _out_of_blocks(unsure_BxHxK, num_states)

    return inflow


def _log_posterior(row: _Row, alpha: _Scores, omega: _Scores):
    """f32[M, B, S]: of state u emitting target i, but for a constant of each target."""
    return alpha.score_MxBxS + omega.score_MxBxS - row.match_MxBxS


def _log_z(row: _Row, alpha: _Scores, omega: _Scores):
    """The constants of `_log_posterior`, f32[M, B]."""
    return jax.nn.logsumexp(_log_posterior(row, alpha, omega), axis=2)


def _occupancy(row: _Row, alpha: _Scores, omega: _Scores):
    """f32[M, B, S]: the probability that state u emits target i; 0 where there is no alignment."""
    log_posterior_MxBxS = _log_posterior(row, alpha, omega)
    return jax.nn.softmax(log_posterior_MxBxS, axis=2) * _is_possible(log_posterior_MxBxS)


def _nothing_is_lost(row: _Row, alpha: _Scores, omega: _Scores):
    """bool[B]: whether linear space has computed a row exactly."""
    unsure_MxBxS = alpha.unsure_MxBxS | omega.unsure_MxBxS
    lost_B = jnp.where(unsure_MxBxS, _occupancy(row, alpha, omega), 0.0).sum((0, 2))
    return (lost_B < NEGLIGIBLE) & (_exponents(row, alpha, omega) < LARGEST_EXPONENT).all((0, 2, 3))


def _repaired(exact_B, fast, in_log_space, axis: int = 1):
    """Takes the rows of `fast` that are not exact from `in_log_space()`, which runs only if there are any.

    `axis` is that of the rows in every array.
    """

    def select(fast, slow):
        return jnp.where(exact_B.reshape([-1 if i == axis else 1 for i in range(fast.ndim)]), fast, slow)

    return jax.lax.cond(exact_B.all(), lambda: fast, lambda: jax.tree.map(select, fast, in_log_space()))


def _block_shape(num_states: int) -> tuple[int, int]:
    """The number of blocks and the states in each."""
    blocks = -(-num_states // BLOCK)
    return blocks, -(-num_states // blocks)


def _in_blocks(score):
    """[…, S] → […, G, K]."""
    blocks, size = _block_shape(score.shape[-1])
    padding = [(0, 0)] * (score.ndim - 1) + [(0, blocks * size - score.shape[-1])]
    return jnp.pad(score, padding, constant_values=IMPOSSIBLE).reshape(*score.shape[:-1], blocks, size)


def _out_of_blocks(x, num_states: int):
    """[…, G, K] → […, S]."""
    return x.reshape(*x.shape[:-2], -1)[..., :num_states]


def _exponents(row: _Row, alpha: _Scores, omega: _Scores):
    """The best of a pair of blocks, max α_i + max ω_{i+1}, relative to all pairs: f32[M − 1, B, G, G]."""
    # log Σ_{v,u} exp(α_i(v) + links(v, u) + ω_{i+1}(u)): ω_i is that sum over u, with its own emission and offset.
    log_z_MxB = (_log_z(row, alpha, omega) + omega.offset_MxB)[:-1]
    alpha_top, omega_top = (_in_blocks(x).max(-1) for x in (alpha.score_MxBxS[:-1], omega.score_MxBxS[1:]))
    exponent = alpha_top[..., :, None] + omega_top[..., None, :] - log_z_MxB[..., None, None]
    index = jnp.arange(exponent.shape[-1])
    return jnp.where((index[:, None] <= index) & _is_possible(log_z_MxB)[..., None, None], exponent, IMPOSSIBLE)


def _blocked_transitions(row: _Row, alpha: _Scores, omega: _Scores):
    """The expected number of steps from v to u, f32[B, S, S], for rows that are exact in linear space."""
    num_states = row.links_BxSxS.shape[1]
    alpha_MxBxGxK, omega_MxBxHxJ = (_in_blocks(x) for x in (alpha.score_MxBxS[:-1], omega.score_MxBxS[1:]))
    exponent_MxBxGxH = jnp.minimum(_exponents(row, alpha, omega), LARGEST_EXPONENT)
    left_MxBxGxK = jnp.exp(alpha_MxBxGxK - alpha_MxBxGxK.max(-1, keepdims=True))
    left_MxBxGxKxH = left_MxBxGxK[..., None] * jnp.exp(exponent_MxBxGxH)[..., None, :]
    right_MxBxHxJ = jnp.exp(omega_MxBxHxJ - omega_MxBxHxJ.max(-1, keepdims=True))
    pairs_BxGxKxHxJ = jnp.einsum('mbgkh,mbhj->bgkhj', left_MxBxGxKxH, right_MxBxHxJ, precision='highest')
    pairs_BxSxJ = pairs_BxGxKxHxJ.reshape(len(row.links_BxSxS), -1, *pairs_BxGxKxHxJ.shape[3:])[:, :num_states]
    return _out_of_blocks(pairs_BxSxJ, num_states) * jnp.exp(row.links_BxSxS)


def _transitions(row: _Row, alpha: _Scores, omega: _Scores):
    """The same sum in log space."""

    def add(sum_BxSxS, xs):
        occupancy_BxS, omega_BxS = xs
        next_BxSxS = jax.nn.softmax(row.links_BxSxS + omega_BxS[:, None, :], axis=2)  # given that i is emitted by v
        return sum_BxSxS + occupancy_BxS[:, :, None] * next_BxSxS, None

    xs = (_occupancy(row, alpha, omega)[:-1], omega.score_MxBxS[1:])
    return jax.lax.scan(add, jnp.zeros_like(row.links_BxSxS), xs)[0] * _is_possible(row.links_BxSxS)
