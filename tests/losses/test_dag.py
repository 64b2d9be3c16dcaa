"""The alignment likelihood: against enumeration, float64 and the papers' own numbers; and what it promises."""

import itertools
import pathlib

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlm_jax.losses import dag

GOLDEN = pathlib.Path(__file__).parents[3] / 'shared' / 'golden'
FILES = (
    'block_sparse_k4',
    'infeasible',
    'm_close_to_s',
    'peaked',
    's316_m79',
    's84_m21',
    'tiny_ragged',
    'zero_emission',
)

log_likelihood = jax.jit(dag.dag_log_likelihood)
in_linear_space = jax.jit(lambda *row: dag._in_linear_space(*row)[0])
value_and_posterior = jax.jit(lambda *row: (dag.dag_log_likelihood(*row), *dag.dag_posterior(*row)))


def normalised(scores: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """float32[B, S, S]: log-softmax over the allowed later states, −inf elsewhere."""
    scores = np.where(allowed, scores, -1e300)
    top = scores.max(-1, keepdims=True)
    with np.errstate(divide='ignore'):
        log_prob = scores - top - np.log((np.exp(scores - top) * allowed).sum(-1, keepdims=True))
    return np.where(allowed, log_prob, -np.inf).astype(np.float32)


def dense(num_states: int) -> np.ndarray:
    """bool[S, S]: every later state."""
    return np.triu(np.ones((num_states, num_states), bool), 1)


def random_rows(rng, batch: int, num_targets: int, num_states: int, spread: float = 1.0):
    """Rows in the shape of ExLM's: emissions around −ln 8000, normalised links."""
    match = rng.normal(-9, spread, (batch, num_targets, num_states)).astype(np.float32)
    links = normalised(rng.normal(0, spread, (batch, num_states, num_states)), dense(num_states)[None])
    return match, links, np.full(batch, num_targets, np.int32), np.full(batch, num_states, np.int32)


def trained_rows(rng, batch: int, num_targets: int, num_states: int, good: float, bad: float):
    """Target i is likely under the states of its own token, and links lead to the next one."""
    token_S = np.arange(num_states) // (num_states // num_targets)
    own = token_S == np.arange(num_targets)[:, None]
    match = np.where(own, good, rng.normal(bad, 2, (batch, num_targets, num_states))).astype(np.float32)
    scores = np.maximum(-4.0 * np.abs(token_S[None] - token_S[:, None] - 1), -30.0)
    links = normalised(scores + rng.normal(0, 1, (batch, num_states, num_states)), dense(num_states)[None])
    return match, links, np.full(batch, num_targets, np.int32), np.full(batch, num_states, np.int32)


def reference(match, links, num_targets: int, num_states: int):
    """log Z and the posteriors of one row in float64, by the plain recursions in log space."""
    match = match[:num_targets, :num_states].astype(np.float64)
    links = np.where(dense(num_states), links[:num_states, :num_states].astype(np.float64), -np.inf)

    def log_sum(x, axis):
        top = np.maximum(x.max(axis, keepdims=True), -1e300)
        with np.errstate(divide='ignore'):
            return np.log(np.exp(x - top).sum(axis)) + np.squeeze(top, axis)

    alpha, beta = np.full((2, num_targets, num_states), -np.inf)
    alpha[0, 0], beta[-1, -1] = match[0, 0], 0.0
    for i in range(1, num_targets):
        alpha[i] = match[i] + log_sum(alpha[i - 1][:, None] + links, 0)
    for i in range(num_targets - 2, -1, -1):
        beta[i] = log_sum(links + match[i + 1] + beta[i + 1], 1)
    log_z = alpha[-1, -1]
    steps = np.zeros((num_states, num_states))
    for i in range(num_targets - 1):
        steps += np.exp(alpha[i][:, None] + links + match[i + 1] + beta[i + 1] - log_z)
    return log_z, np.exp(alpha + beta - log_z), steps


def check_against_reference(match, links, num_targets, num_states, atol: float):
    log_z, occupancy, steps = map(np.asarray, value_and_posterior(match, links, num_targets, num_states))
    for row, (m, n) in enumerate(zip(num_targets, num_states, strict=True)):
        expected_z, expected_occupancy, expected_steps = reference(match[row], links[row], m, n)
        assert log_z[row] == pytest.approx(expected_z, rel=1e-6, abs=1e-5)
        np.testing.assert_allclose(occupancy[row, :m, :n], expected_occupancy, rtol=0, atol=atol)
        np.testing.assert_allclose(steps[row, :n, :n], expected_steps, rtol=0, atol=atol)


@hypothesis.given(
    st.integers(0, 10_000),
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), min_size=3, max_size=3),
    st.sampled_from([0.5, 5.0]),
    st.floats(0.2, 1.0),
)
@hypothesis.settings(deadline=None, max_examples=40)
def test_it_is_the_sum_over_all_alignments(seed, sizes, spread, density):
    """Ragged rows with links missing at random, infeasible ones among them, and NaN behind their ends."""
    rng = np.random.default_rng(seed)
    match = rng.normal(-2, spread, (3, 5, 9)).astype(np.float32)
    allowed = dense(9) & (rng.random((3, 9, 9)) < density)
    links = np.where(allowed, rng.normal(-1, spread, (3, 9, 9)), -np.inf).astype(np.float32)
    num_targets, num_states = np.array(sizes, np.int32).T
    for row, (m, n) in enumerate(sizes):
        match[row, m:], match[row, :, n:] = np.nan, np.nan
        links[row, n:], links[row, :, n:] = np.nan, np.nan
    log_z, occupancy, steps = map(np.asarray, value_and_posterior(match, links, num_targets, num_states))
    viterbi = np.asarray(jax.jit(dag.dag_viterbi)(match, links, num_targets, num_states))
    for row, (m, n) in enumerate(sizes):
        paths = [
            (0, *middle, n - 1)[:m] if m > 1 else (0,)
            for middle in itertools.combinations(range(1, n - 1), max(m - 2, 0))
        ]
        paths = [p for p in paths if m and len(p) == m and p[-1] == n - 1]
        scores = [
            sum(match[row, i, u] for i, u in enumerate(p)) + sum(links[row, v, u] for v, u in itertools.pairwise(p))
            for p in paths
        ]
        if not scores or max(scores) == -np.inf:
            assert log_z[row] == -np.inf
            assert not occupancy[row].any() and not steps[row].any()
            assert np.all(viterbi[row] == -1)
            continue
        assert log_z[row] == pytest.approx(np.logaddexp.reduce(scores), abs=2e-5)
        expected = np.zeros((5, 9))
        for path, score in zip(paths, scores, strict=True):
            expected[range(m), path] += np.exp(score - np.logaddexp.reduce(scores))
        np.testing.assert_allclose(occupancy[row], expected, atol=2e-5)
        best = paths[int(np.argmax(scores))]
        assert tuple(viterbi[row, :m]) == best and np.all(viterbi[row, m:] == -1)


@pytest.mark.parametrize('file', FILES)
def test_the_numbers_of_the_papers_code(file):
    """What changes these has changed the likelihood: the numbers come from a float64 run of another implementation."""
    if not GOLDEN.exists():
        pytest.skip(f'the golden numbers are not at {GOLDEN}')
    with np.load(GOLDEN / f'dag_loss_{file}.npz') as arrays:
        golden = dict(arrays)
    row = [golden[name] for name in ('match_all', 'links')]
    row += [golden[name].astype(np.int32) for name in ('target_length', 'output_length')]
    log_z, occupancy, steps = value_and_posterior(*row)
    feasible = golden['feasible']
    np.testing.assert_allclose(np.asarray(log_z)[feasible], golden['logZ'][feasible], rtol=1e-6, atol=1e-4)
    assert np.all(np.asarray(log_z)[~feasible] == -np.inf)
    # The largest case of plain float32 differs from float64 by 7e-5.
    np.testing.assert_allclose(occupancy, golden['grad_match_all'], rtol=0, atol=1e-5)
    np.testing.assert_allclose(steps, golden['grad_links'], rtol=0, atol=1e-5)
    path = np.full(golden['best_path'].shape, -1)
    for b, states in enumerate(np.asarray(jax.jit(dag.dag_viterbi)(*row))):
        path[b, states[states >= 0]] = np.flatnonzero(states >= 0)
    assert np.array_equal(path[feasible], golden['best_path'][feasible])


@pytest.mark.parametrize('spread', [0.5, 3.0])
def test_ragged_rows_of_the_full_size(spread):
    match, links, *_ = random_rows(np.random.default_rng(0), 3, 79, 316, spread)
    check_against_reference(match, links, np.array([79, 21, 2], np.int32), np.array([316, 84, 316], np.int32), 5e-5)


def far_below(rng):
    """The last states, which every alignment needs, lie 150 nats below those before them."""
    match, links, *sizes = random_rows(rng, 2, 40, 160)
    match[:, 20:, 80:] -= 150.0
    return match, links, *sizes


def forced(rng):
    """As many targets as states: one alignment, which early steps make look hopeless."""
    match, links, *sizes = random_rows(rng, 2, 60, 60, 8.0)
    return match, links, *sizes


def nearly_forced(rng):
    match, links, *sizes = random_rows(rng, 2, 58, 60, 8.0)
    return match, links, *sizes


def thin_links(rng):
    """The only way on goes through links of e⁻¹²⁰."""
    match, links, *sizes = random_rows(rng, 2, 12, 48)
    links[:, :24, 24:] = -120.0
    return match, links, *sizes


def loud(rng):
    """Emissions and links spread over hundreds of nats."""
    return random_rows(rng, 2, 30, 120, 40.0)


@pytest.mark.parametrize('make', [far_below, forced, nearly_forced, thin_links, loud])
def test_what_linear_space_would_lose_is_not_lost(make):
    check_against_reference(*make(np.random.default_rng(1)), atol=1e-4)


def takes_linear_space(row) -> np.ndarray:
    return np.asarray(in_linear_space(*row))


def test_rows_are_sent_to_log_space_when_they_need_it_and_not_otherwise():
    rng = np.random.default_rng(0)
    for num_targets, num_states in ((21, 84), (79, 316)):
        for spread in (0.0, 1.0, 2.0):
            assert takes_linear_space(random_rows(rng, 2, num_targets, num_states, spread)).all()
        for good, bad in ((-1, -9), (-0.1, -14), (-3, -8)):
            assert takes_linear_space(trained_rows(rng, 2, num_targets, num_states, good, bad)).all()
    assert takes_linear_space(far_below(rng)).all()  # one scale for all states would not do
    for make in (thin_links, loud):
        assert not takes_linear_space(make(rng)).any()


@pytest.mark.parametrize('num_states', [12, 40])
def test_gradients_are_those_of_autodiff_and_of_finite_differences(num_states):
    match, links, num_targets, sizes = random_rows(np.random.default_rng(2), 2, 6, num_states, 2.0)
    links = np.where(np.isfinite(links), links, -1e30).astype(np.float32)

    def plain(match, links):
        score = jnp.where(jnp.arange(num_states) == 0, match[:, 0], -1e30)
        for i in range(1, 6):
            score = match[:, i] + jax.nn.logsumexp(score[:, :, None] + links, axis=1)
        return score[:, -1]

    weight = jnp.array([1.0, -2.0])
    gradient = jax.grad(lambda m, x: dag.dag_log_likelihood(m, x, num_targets, sizes) @ weight, (0, 1))
    actual = jax.jit(gradient)(match, links)
    expected = jax.jit(jax.grad(lambda m, x: plain(m, x) @ weight, (0, 1)))(match, links)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)

    rng, step = np.random.default_rng(3), 1e-4
    for _ in range(5):
        i, u, v = rng.integers(1, 5), rng.integers(1, num_states - 1), 0
        for array, place in ((match, (0, i, u)), (links, (0, v, u))):
            up, down = array.astype(np.float64), array.astype(np.float64)
            up[place] += step
            down[place] -= step
            ends = [
                reference((x if array is match else match)[0], (links if array is match else x)[0], 6, num_states)[0]
                for x in (up, down)
            ]
            slope = (ends[0] - ends[1]) / (2 * step)
            assert actual[0 if array is match else 1][place] == pytest.approx(slope, abs=1e-5)


def test_every_target_is_emitted_once_and_left_once():
    row = random_rows(np.random.default_rng(4), 3, 21, 84, 2.0)
    _, occupancy, steps = value_and_posterior(*row)
    np.testing.assert_allclose(occupancy.sum(2), 1.0, atol=1e-5)
    np.testing.assert_allclose(steps.sum((1, 2)), 20.0, atol=1e-4)
    # What flows out of a state has been emitted there, the last target apart.
    np.testing.assert_allclose(steps.sum(2), occupancy[:, :-1].sum(1), atol=1e-5)


def test_with_nothing_to_emit_the_lengths_of_alignments_are_a_distribution():
    num_states = 12
    _, links, *_ = random_rows(np.random.default_rng(5), 1, 2, num_states)
    lengths = np.arange(2, num_states + 1, dtype=np.int32)
    batch = len(lengths)
    log_z = log_likelihood(
        np.zeros((batch, num_states, num_states), np.float32),
        np.repeat(links, batch, 0),
        lengths,
        np.full(batch, num_states, np.int32),
    )
    assert np.exp(log_z).sum() == pytest.approx(1.0, abs=1e-5)


def test_transitions_to_later_tokens_alone_tie_targets_to_their_own_states():
    rng, token_S = np.random.default_rng(6), np.arange(24) // 4
    links = normalised(rng.normal(0, 2, (2, 24, 24)), (token_S[:, None] < token_S)[None])
    match = rng.normal(-9, 3, (2, 6, 24)).astype(np.float32)
    _, occupancy, _ = value_and_posterior(match, links, np.full(2, 6, np.int32), np.full(2, 24, np.int32))
    own = token_S == np.arange(6)[:, None]
    assert not np.asarray(occupancy)[:, ~own].any()
    np.testing.assert_allclose(np.asarray(occupancy)[:, own].sum(1), 6.0, atol=1e-5)


def test_one_state_per_target_leaves_one_alignment():
    match, links, *sizes = random_rows(np.random.default_rng(7), 2, 8, 8)
    expected = match[:, range(8), range(8)].sum(1) + links[:, range(7), range(1, 8)].sum(1)
    np.testing.assert_allclose(log_likelihood(match, links, *sizes), expected, rtol=1e-6)


@pytest.mark.parametrize(('num_targets', 'expected'), [(21, 11.83), (79, 13.0)])
def test_the_loss_before_training(num_targets, expected):
    """Uniform emissions over 50,265 ids and uniform links, four states per target: nats per target."""
    num_states = 4 * num_targets
    links = normalised(np.zeros((1, num_states, num_states)), dense(num_states)[None])
    match = np.full((1, num_targets, num_states), -np.log(50_265), np.float32)
    log_z = log_likelihood(match, links, np.array([num_targets]), np.array([num_states]))
    assert -log_z[0] / num_targets == pytest.approx(expected, abs=0.01)


def test_batch_mates_change_nothing_to_the_bit():
    """Neither their number, nor that they are infeasible, nor that they need log space."""
    rng = np.random.default_rng(8)
    match, links, num_targets, num_states = random_rows(rng, 4, 21, 84, 2.0)
    mates = loud(rng)
    expected = [np.asarray(x) for x in value_and_posterior(match, links, num_targets, num_states)]
    match[1], links[1] = mates[0][0, :21, :84], mates[1][0, :84, :84]
    num_targets[2], num_states[2] = 9, 5
    assert not takes_linear_space((match, links, num_targets, num_states))[1]
    among = [np.asarray(x) for x in value_and_posterior(match, links, num_targets, num_states)]
    alone = [np.asarray(x) for x in value_and_posterior(*(x[:1] for x in (match, links, num_targets, num_states)))]
    assert among[0][2] == -np.inf
    for a, b, c in zip(expected, among, alone, strict=True):
        assert np.array_equal(a[[0, 3]], b[[0, 3]])
        np.testing.assert_allclose(c[0], a[0], atol=1e-6)  # another batch size is another program
    assert alone[0][0] == expected[0][0]


def test_infeasible_rows_give_no_gradient_even_where_their_loss_is_used():
    match, links, num_targets, num_states = random_rows(np.random.default_rng(9), 3, 5, 12)
    num_targets[1], num_states[1] = 5, 4  # more targets than states
    num_targets[2] = 1  # the only target cannot be at both ends
    gradient = jax.grad(lambda *x: dag.dag_log_likelihood(*x, num_targets, num_states).sum(), (0, 1))
    gradients = jax.jit(gradient)(match, links)
    for gradient in gradients:
        assert np.all(np.isfinite(gradient))
        assert np.any(gradient[0]) and not np.any(gradient[1:])


def test_nan_is_neither_hidden_nor_spread():
    """A diverged model shows: NaN is no impossible emission or transition. Other rows are what they were."""
    rng = np.random.default_rng(10)
    match, links, *sizes = random_rows(rng, 3, 5, 12)
    expected = [np.asarray(x) for x in value_and_posterior(match, links, *sizes)]
    match[1, 2, 4], links[2, 3, 5] = np.nan, np.nan
    actual = [np.asarray(x) for x in value_and_posterior(match, links, *sizes)]
    for a, b in zip(actual, expected, strict=True):
        assert np.array_equal(a[0], b[0])
        assert np.isnan(a[1]).any() and np.isnan(a[2]).any()


def test_memory_does_not_grow_with_targets_times_states_squared():
    batch, num_targets, num_states = 8, 79, 316
    row = random_rows(np.random.default_rng(0), batch, num_targets, num_states)
    gradient = jax.jit(jax.grad(lambda m, x: dag.dag_log_likelihood(m, x, *row[2:]).sum(), (0, 1)))
    needed = gradient.lower(*row[:2]).compile().memory_analysis().temp_size_in_bytes
    states_squared = 4 * batch * num_states**2
    assert needed < 12 * states_squared < num_targets * states_squared
