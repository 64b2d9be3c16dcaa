"""Properties of masking, over every strategy and unit in the registries."""

import dataclasses
import hashlib

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import TABLES, VOCABULARY, draw, full_rows, make, mask, masked_positions, rows

from mlm_jax.data.packing import segment_ids
from mlm_jax.data.synthetic import SyntheticRows
from mlm_jax.masking import corruption, ratio_schedules, registry, selection, tables, units
from mlm_jax.masking import masking as masking_lib
from mlm_jax.masking.batch import MaskedBatch
from mlm_jax.masking.candidates import Candidates, limit, take
from mlm_jax.masking.masking import Masking
from mlm_jax.masking.vocabulary import Vocabulary, standard_vocabulary
from mlm_jax.parallel.mesh import batch_sharding, make_mesh
from mlm_jax.training.step import MASK_STREAM, frozen_masks, stream_key

STRATEGIES, UNITS = sorted(registry.STRATEGIES), sorted(registry.UNITS)
# Every strategy, every unit, and the pairs that have a path of their own.
PAIRS = [(strategy, 'token') for strategy in STRATEGIES] + [('uniform', unit) for unit in UNITS if unit != 'token']
PAIRS += [('bernoulli', 'span'), ('least_masked', 'ngram'), ('complementary', 'word'), ('fully_explored', 'span')]


@pytest.mark.smoke
@pytest.mark.parametrize(('strategy', 'unit'), PAIRS)
@hypothesis.given(st.integers(0, 10_000))
@hypothesis.settings(deadline=None, max_examples=25)
def test_a_masked_batch_keeps_its_promises(strategy, unit, seed):
    check_promises(strategy, unit, seed, 0.3, (0.8, 0.1))


@pytest.mark.parametrize('ratio', [0.0, 0.15, 1.0])
def test_nothing_or_everything_can_be_masked(ratio):
    for seed in range(5):
        check_promises('uniform', 'token', seed, ratio, (1, 0))


def check_promises(strategy, unit, seed, ratio, fractions):
    masking = make(strategy, unit, ratio, mask_fraction=float(fractions[0]), random_fraction=float(fractions[1]))
    tokens = rows(seed)
    batch, overflow = jax.tree.map(np.asarray, draw(masking, jax.random.key(seed), tokens))
    length, views = tokens.shape[1], masking.num_views
    tokens = np.repeat(tokens, views, axis=0)
    assert np.array_equal(batch.tokens, tokens), 'masks of one text lie behind each other'
    assert np.array_equal(batch.segments, segment_ids(tokens, VOCABULARY))
    assert batch.positions.shape == batch.weights.shape == (8 * views, masking.max_masked(length))
    assert overflow.shape == (8 * views,) and (masking.may_overflow or not overflow.any())
    special = np.isin(tokens, VOCABULARY.special_ids)
    for row in range(8 * views):
        positions = batch.positions[row]
        used = positions[positions < length]
        assert np.all(np.diff(used) > 0), 'ascending and unique'
        assert np.all(positions[len(used) :] == length), 'unused slots hold T, behind the others'
        assert np.array_equal(batch.weights[row] > 0, positions < length)
        assert not special[row, used].any(), 'no specials, no padding'
        untouched = np.setdiff1d(np.arange(length), used)
        assert np.array_equal(batch.inputs[row, untouched], tokens[row, untouched])
        if masking.has_fixed_count:
            expected = registry.STRATEGIES[strategy].ratio(ratio, masking) * (~special[row]).sum()
            assert expected - 1 < len(used) < expected + 1 + 1e-4
        replaced = batch.inputs[row, used]
        assert np.all((replaced == VOCABULARY.mask_id) | (replaced >= 5)), 'only [MASK] and ordinary ids'
        if fractions == (1, 0):
            assert np.all(replaced == VOCABULARY.mask_id)


@pytest.mark.parametrize('strategy', [s for s in STRATEGIES if s not in ('weighted', 'fully_explored')])
def test_count_and_positions_have_the_right_expectation(strategy):
    """20 ordinary tokens at 15 %: 3 each time; at 16 %: 3.2 on average. Every position equally often."""
    tokens = full_rows(4000)
    for ratio, expected in ((0.15, 3.0), (0.16, 3.2)):
        masking = make(strategy, ratio=ratio)
        batch = mask(masking, jax.random.key(1), tokens)
        counts = np.asarray(batch.weights.sum(1))
        if not masking.has_fixed_count:
            assert abs(counts.mean() - expected) < 4 * np.sqrt(20 * ratio * (1 - ratio) / 4000)
        else:
            assert set(counts) <= {3.0, 4.0}
            assert abs(counts.mean() - expected) < 4 * 0.5 / np.sqrt(4000)
    assert_marginals(batch, 0.16)


def assert_marginals(batch: MaskedBatch, expected: float) -> None:
    """Every position between [CLS] and [SEP] is masked equally often, to 4.5 standard deviations."""
    masked = masked_positions(batch)[:, 1:-1]
    assert np.all(np.abs(masked.mean(0) - expected) < 4.5 * np.sqrt(expected * (1 - expected) / len(masked)))


@pytest.mark.parametrize('unit', UNITS)
def test_units_leave_the_ratio_as_it_is(unit):
    """Of 126 tokens, a unit that does not fit is skipped, and a shorter one taken instead."""
    batch = mask(make('uniform', unit, 0.3), jax.random.key(2), full_rows(500, 128))
    ratio = masked_positions(batch)[:, 1:-1].mean()
    assert 0.295 < ratio < 0.3003, 'a few tokens at most are lost to the last unit'


@pytest.mark.parametrize(
    ('strategy', 'unit'),
    [
        ('uniform', 'word'),
        ('uniform', 'span'),
        ('uniform', 'pmi'),
        *((s, 'word') for s in STRATEGIES if s != 'uniform'),
    ],
)
def test_whole_words_are_never_split(strategy, unit):
    tokens = rows(5, batch=64)
    masked = masked_positions(mask(make(strategy, unit, 0.4), jax.random.key(0), tokens))
    tokens = np.repeat(tokens, len(masked) // 64, axis=0)
    eligible = tokens >= 5
    inside = eligible[:, 1:] & eligible[:, :-1] & ~TABLES.word_starts[tokens[:, 1:]]
    assert np.array_equal(masked[:, 1:][inside], masked[:, :-1][inside])
    assert masked.any() and inside.sum() > 100


def test_long_units_are_chosen_in_order_and_skipped_where_they_do_not_fit():
    """Against the loop that says what is meant."""

    rng = np.random.default_rng(0)
    starts, eligible = rng.random((200, 60)) < 0.4, np.ones((200, 60), bool)
    starts[:, 0] = True
    score, count = rng.random((200, 60)).astype(np.float32), rng.integers(0, 40, 200).astype(np.int32)
    candidates = Candidates(None, *map(jnp.asarray, (eligible, starts)), None, None, None)
    actual = np.asarray(jax.jit(take)(score, candidates, count))
    different = 0
    for row in range(200):
        first = np.flatnonzero(starts[row])
        ends, left, expected = np.append(first[1:], 60), count[row], np.zeros(60, bool)
        for u in np.argsort(score[row, first]):
            if ends[u] - first[u] <= left:
                expected[first[u] : ends[u]] = True
                left -= ends[u] - first[u]
        assert actual[row].sum() <= count[row] and not (actual[row] & ~expected).any()
        different += not np.array_equal(actual[row], expected)
    assert different <= 2, 'the number of rounds is bounded; they hardly ever run out'


def test_span_lengths_follow_the_truncated_geometric():
    """ℓ words with probability ∝ 0.8^(ℓ − 1), 1 … 10: of mean 3.80. Spans near the end of a document are cut."""
    tokens = full_rows(400, 402)
    eligible = jnp.asarray(tokens >= 5)
    noise = jax.random.uniform(jax.random.key(0), tokens.shape)
    find = jax.jit(lambda *a: (units.word(*a, TABLES), units.span(*a, TABLES)))
    words, spans = map(np.asarray, find(noise, tokens, eligible))
    lengths = []
    for word_row, span_row in zip(words, spans, strict=True):
        index = np.cumsum(word_row) - 1  # of the word that a span starts with
        first = index[span_row]
        lengths += np.diff(first)[first[:-1] < index.max() - 20].tolist()
    lengths, expected = np.array(lengths), units.span_distribution()
    assert abs(np.arange(1, 11) @ expected - 3.80) < 0.005
    assert abs(lengths.mean() - 3.797) < 4 * lengths.std() / np.sqrt(len(lengths))
    frequency = np.bincount(lengths, minlength=11)[1:] / len(lengths)
    assert np.all(np.abs(frequency - expected) < 4.5 * np.sqrt(expected / len(lengths)))


def test_ngrams_have_one_to_three_tokens():
    tokens = jnp.asarray(full_rows(200, 128))
    find = jax.jit(lambda noise, tokens: units.ngram(noise, tokens, tokens >= 5, None))
    starts = np.asarray(find(jax.random.uniform(jax.random.key(0), tokens.shape), tokens))
    lengths = np.concatenate([np.diff(np.flatnonzero(row)) for row in starts])
    assert set(lengths) == {1, 2, 3}
    assert np.all(np.abs(np.bincount(lengths)[1:] / len(lengths) - 1 / 3) < 0.02)


def test_collocations_are_the_longest_matches_from_left_to_right():
    starts_word = np.arange(50) < 40  # 40 … 49 go on with a word
    text = np.array([[2, 5, 6, 40, 7, 8, 9, 5, 6, 3, 2, 7, 8, 3]], np.int32)
    spans = {(1, 4): (5, 6, 40), (3, 6): None, (1, 5): (5, 6, 40, 7), (4, 7): (7, 8, 9), (5, 8): (8, 9, 5)}
    hashes = tables.span_hashes(text)
    listed = [hashes(np.array([a]), np.array([b]))[0, 0] for (a, b), kept in spans.items() if kept]
    table = tables.Tables(word_starts=starts_word, collocations=np.sort(np.array(listed, np.uint32)))
    starts = jax.jit(lambda text: units.pmi(None, text, text >= 5, table))(text)[0]
    #                        [C] 5 6 40 7 | 8 9 5 | 6 [S] [C] 7 | 8 [S]: 5–7 beats 5–6, and 7 8 9 comes too late
    assert np.flatnonzero(starts).tolist() == [1, 5, 8, 11, 12]


def test_hashes_are_the_same_in_numpy_and_jax():
    tokens = rows(1)
    starts, ends = np.arange(40), np.arange(40) + 5
    expected = tables.span_hashes(tokens)(starts, ends)
    assert np.array_equal(expected, tables.span_hashes(jnp.asarray(tokens))(jnp.asarray(starts), jnp.asarray(ends)))
    assert np.array_equal(tables.row_hash(tokens), tables.row_hash(jnp.asarray(tokens)))
    assert len(np.unique(tables.row_hash(rows(2, batch=500)))) == 500
    shifted = np.roll(tokens, 3, axis=1)
    assert np.array_equal(tables.span_hashes(shifted)(starts + 3, ends + 3), expected), 'wherever they stand'


def test_weights_say_how_gladly_an_id_is_chosen():
    tokens = np.tile(np.arange(4, 26, dtype=np.int32), (4000, 1))  # ids 5 … 24 between [CLS] and [SEP]
    tokens[:, 0], tokens[:, -1] = VOCABULARY.cls_id, VOCABULARY.sep_id
    weights = np.where(np.arange(50) < 15, 1.0, 3.0).astype(np.float32)
    weights[24] = 0
    masking = Masking(VOCABULARY, 'weighted', 1 / 20, tables=tables.Tables(token_weights=weights))
    masked = masked_positions(mask(masking, jax.random.key(0), tokens))[:, 1:-1].mean(0)
    total = 10 * 1 + 9 * 3
    assert masked[-1] == 0
    assert np.all(np.abs(masked[:10] - 1 / total) < 0.012) and np.all(np.abs(masked[10:19] - 3 / total) < 0.02)


def test_bernoulli_masks_what_finds_a_slot_and_counts_the_rest():
    masking = make('bernoulli', ratio=0.15)
    _, overflow = draw(masking, jax.random.key(0), full_rows(4000, 128))
    assert masking.max_masked(128) < 40 and overflow.sum() < 20
    crowded = jax.jit(lambda *a: _limited_draw(*a, 10))(jax.random.key(0), full_rows(500, 128))
    assert np.all(np.asarray(crowded[0]).sum(1) <= 10)
    assert np.array_equal(crowded[0].sum(1) + crowded[1], crowded[2].sum(1))


def _limited_draw(key, tokens, slots):

    candidates, _ = make('bernoulli', 'word')._candidates(key, tokens, segment_ids(tokens, VOCABULARY), 0, None)
    chosen = selection.bernoulli(key, candidates)
    return *limit(chosen, candidates, slots), chosen


@pytest.mark.parametrize('unit', ['token', 'word'])
def test_complementary_masks_are_disjoint_and_at_one_half_cover_all(unit):
    tokens = rows(9, batch=200)
    for ratio in (0.15, 0.5):
        batch = mask(make('complementary', unit, ratio), jax.random.key(0), tokens)
        pairs = masked_positions(batch).reshape(200, 2, -1)
        assert not (pairs[:, 0] & pairs[:, 1]).any()
        if ratio == 0.5 and unit == 'token':
            assert np.array_equal(pairs.any(1), tokens >= 5)


@pytest.mark.parametrize('unit', ['token', 'ngram'])
def test_least_masked_tokens_come_first(unit):
    """At 15 % of 100 tokens, 7 visits mask every token once, and 5 of them twice; the next cycle starts afresh."""
    masking, tokens = make('least_masked', unit, num_rows=20), full_rows(20, 102)
    for cycle in (0, 7):
        times = np.zeros((20, 100), int)
        for visit in range(cycle, cycle + 7):
            times += masked_positions(mask(masking, jax.random.key(visit), tokens, visit))[:, 1:-1]
            if unit == 'token':
                assert times.max() - times.min() <= 1 if visit < cycle + 6 else times.min() == 1
        # By chance, 1 − 0.85⁷ = 68 % of the tokens would be masked. Units that do not fit are waited for.
        assert (times > 0).mean() > 0.95 and times.max() == 2


# ---- Chance ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('strategy', 'unit'), [*((s, 'token') for s in STRATEGIES), ('uniform', 'pmi'), ('uniform', 'span')]
)
def test_masks_have_the_same_bits_on_one_and_on_eight_devices(strategy, unit):
    # Those without memory draw as in check_promises: compiled already.
    has_memory = strategy == 'fully_explored' or make(strategy).cycle > 1
    more, step = (dict(num_rows=8), (2,)) if has_memory else ({}, ())
    masking = make(strategy, unit, 0.3, mask_fraction=0.8, random_fraction=0.1, **more)
    tokens, key = rows(3), jax.random.key(5)
    expected = draw(masking, key, tokens, *step)
    shape = (8, 1, 1) if strategy == 'uniform' else (2, 2, 2)
    sharded = jax.device_put(tokens, batch_sharding(make_mesh(*shape)))
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(draw(masking, key, sharded, *step)), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize('strategy', STRATEGIES)
def test_another_key_gives_another_mask_and_the_same_key_the_same(strategy):
    settings = dict(ratio=0.3, mask_fraction=0.8, random_fraction=0.1)  # of check_promises: compiled already
    masking, tokens = make(strategy, **settings), rows(3)
    a, b, c = (mask(masking, jax.random.key(k), tokens).positions for k in (1, 1, 2))
    assert np.array_equal(a, b)
    if masking.by_visit:  # of the row and its visit alone
        assert np.array_equal(a, c)
        c = mask(make(strategy, **settings, seed=1), jax.random.key(1), tokens).positions
    assert not np.array_equal(a, c)


@pytest.mark.parametrize('strategy', [s for s in STRATEGIES if not make(s).by_visit])  # which are refused
def test_static_masks_depend_on_the_row_and_the_turn_alone(strategy):
    masking, tokens = make(strategy, ratio=0.3, static_masks=2, num_rows=8), rows(3)
    masks = [np.asarray(mask(masking, jax.random.key(v), tokens, v).inputs) for v in range(4)]
    assert np.array_equal(masks[0], masks[2]) and np.array_equal(masks[1], masks[3])
    assert not np.array_equal(masks[0], masks[1])
    order = np.array([5, 2, 7, 0, 1, 3, 4, 6])
    shuffled = np.asarray(mask(masking, jax.random.key(9), tokens[order]).inputs)
    views = masking.num_views
    assert np.array_equal(shuffled.reshape(8, views, -1), masks[0].reshape(8, views, -1)[order])


def test_frozen_masks_depend_on_the_row_and_not_on_its_batch():
    masking, tokens = Masking(VOCABULARY, ratio=0.3), rows(3)
    segments = segment_ids(tokens, VOCABULARY)
    frozen = jax.jit(frozen_masks, static_argnums=0)
    whole = frozen(masking, tokens, segments, jnp.arange(8))
    part = frozen(masking, tokens[4:6], segments[4:6], jnp.arange(4, 6))
    assert np.array_equal(whole.inputs[4:6], part.inputs)
    assert np.array_equal(whole.positions[4:6], part.positions)


def test_uniform_masks_are_those_of_earlier_versions():
    """Held-out losses can be compared across versions only while these bits stay: where they must change, say so."""
    vocabulary = standard_vocabulary(1000)
    tokens = SyntheticRows(64, 128, vocabulary).read(np.arange(64))
    tokens[3, 50:], tokens[5, 70] = vocabulary.pad_id, vocabulary.cls_id
    segments = segment_ids(tokens, vocabulary)
    freeze = jax.jit(frozen_masks, static_argnums=0)
    frozen = freeze(Masking(vocabulary, ratio=0.15), tokens, segments, jnp.arange(64))
    training = mask(Masking(vocabulary, 'uniform', 0.15, 0.8, 0.1), stream_key(0, MASK_STREAM, 7), tokens)
    for batch, expected in ((frozen, '04b16e9c8e228343'), (training, '7afaf391a0239c09')):
        content = b''.join(np.asarray(x).tobytes() for x in (batch.inputs, batch.positions, batch.weights))
        assert hashlib.sha256(content).hexdigest()[:16] == expected


# ---- Ratios and visits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('linear', [0.3, 0.3, 0.225, 0.15, 0.15]),
        ('cosine', [0.3, 0.3, 0.225, 0.15, 0.15]),
        ('staged', [0.3, 0.15, 0.15, 0.15, 0.15]),
        ('constant', [0.3] * 5),
    ],
)
def test_the_ratio_moves_without_compiling_again(name, expected):
    masking = make(ratio=0.3, schedule=ratio_schedules.RatioSchedule(name, 0.3, 0.15, 100, 200))
    traced = []

    @jax.jit
    def ratio_at(step, tokens):
        traced.append(step)
        batch = masking(jax.random.key(0), tokens, segment_ids(tokens, VOCABULARY), step)
        return (batch.weights > 0).sum() / (tokens >= 5).sum()

    actual = [float(ratio_at(jnp.int32(step), full_rows(400, 102))) for step in (0, 100, 150, 200, 999)]
    np.testing.assert_allclose(actual, expected, atol=0.002)
    assert len(traced) == 1


def test_diffusion_ratios_are_stratified_and_weighted_so_that_all_rows_count_alike():
    schedule = ratio_schedules.RatioSchedule('diffusion', 1.0, 0.01)
    ratio, weight = schedule(jax.random.key(0), 0, 1000)
    assert np.all(np.abs(ratio - (0.01 + 0.99 * (np.arange(1000) + 0.5) / 1000)) < 1e-3)
    np.testing.assert_allclose(ratio * weight, 1, rtol=1e-5)
    masking = make(ratio=1.0, schedule=schedule)
    batch = mask(masking, jax.random.key(1), full_rows(1000, 102))
    assert masking.max_masked(102) == 102
    assert abs(float(batch.weights.sum()) / (1000 * 100) - 1) < 0.01


def test_fewer_tokens_can_be_predicted_than_are_corrupted():
    masking, tokens = make(ratio=0.4, predicted_fraction=0.5), full_rows(300, 102)
    batch = mask(masking, jax.random.key(0), tokens)
    corrupted, predicted = np.asarray(batch.inputs) == VOCABULARY.mask_id, masked_positions(batch)
    assert np.all(corrupted.sum(1) == 40) and np.all(predicted.sum(1) == 20)
    assert masking.max_masked(102) == 21
    assert not (predicted & ~corrupted).any()


def test_visits_are_those_of_the_order_of_rows():
    for step, batch_size, num_rows in ((0, 4, 10), (7, 4, 10), (123, 7, 5), (2_000_000, 2048, 1_000_003)):
        expected = [(step * batch_size + j) // num_rows for j in range(batch_size)]
        assert np.array_equal(ratio_schedules.visits(step, batch_size, num_rows), expected)
    assert not ratio_schedules.visits(5, 4, 0).any()


# ---- Corruption ------------------------------------------------------------------------------------------------------


def test_corruption_follows_its_fractions():
    tokens = jnp.full((400, 100), 7)
    out = np.asarray(corruption.corrupt(jax.random.key(0), tokens, jnp.ones_like(tokens, bool), VOCABULARY, 0.8, 0.1))
    masked, random = (out == VOCABULARY.mask_id).mean(), ((out != VOCABULARY.mask_id) & (out != 7)).mean()
    assert abs(masked - 0.8) < 0.01
    assert abs(random - 0.1 * 44 / 45) < 0.01  # one draw in 45 hits the token itself


def test_a_unit_can_be_corrupted_as_one():
    masking = make('uniform', 'span', 0.3, mask_fraction=0.5, corruption_unit='unit')
    tokens = full_rows(200, 128)
    batch = mask(masking, jax.random.key(0), tokens)
    kind, chosen = np.asarray(batch.inputs) == VOCABULARY.mask_id, masked_positions(batch)
    assert abs(kind[chosen].mean() - 0.5) < 0.05
    find = jax.jit(lambda key, tokens: masking._candidates(key, tokens, segment_ids(tokens, VOCABULARY), 0, None)[0])
    candidates = find(jax.random.split(jax.random.key(0))[0], tokens)
    inside = chosen[:, 1:] & chosen[:, :-1] & ~np.asarray(candidates.starts)[:, 1:]
    assert inside.sum() > 1000 and np.array_equal(kind[:, 1:][inside], kind[:, :-1][inside])


def test_random_replacement_draws_every_ordinary_id_equally_and_no_special():
    vocabulary = Vocabulary(size=12, pad_id=1, cls_id=0, sep_id=2, mask_id=11, special_ids=(0, 1, 2, 5, 11))
    drawn = np.asarray(corruption.random_ordinary_tokens(jax.random.key(0), (70_000,), vocabulary))
    counts = np.bincount(drawn, minlength=12)
    ordinary = [3, 4, 6, 7, 8, 9, 10]
    assert counts.sum() == counts[ordinary].sum()
    assert np.all(np.abs(counts[ordinary] - 10_000) < 500)


# ---- Registries and refusals -----------------------------------------------------------------------------------------


def test_the_registries_hold_functions_that_are_there():
    for entry in (*registry.STRATEGIES.values(), *registry.UNITS.values()):
        assert callable(registry.function_of(entry))


def test_without_collocations_each_word_is_a_unit():
    none = dataclasses.replace(TABLES, collocations=np.zeros(0, np.uint32))
    words, listed = (
        mask(Masking(VOCABULARY, ratio=0.3, unit=unit, tables=none), jax.random.key(0), rows(0))
        for unit in ('word', 'pmi')
    )
    jax.tree.map(np.testing.assert_array_equal, words, listed)


@pytest.mark.parametrize(('name', 'expected'), [('linear', 0.2), ('staged', 0.1), ('constant', 0.3)])
def test_the_masks_of_one_step_can_be_drawn_at_any(name, expected):
    schedule = ratio_schedules.RatioSchedule(name, 0.3, 0.1, 0, 100)
    masking = make(ratio=0.3, schedule=schedule)
    for step in (0, 77):
        masked = masked_positions(mask(masking.at_step(50), jax.random.key(1), full_rows(200, 102), step))[:, 1:-1]
        assert masked.mean() == pytest.approx(expected, abs=0.005)
    random = make(ratio=1.0, schedule=ratio_schedules.RatioSchedule('diffusion', 1.0, 0.01))
    assert random.at_step(50).ratio_schedule is random.ratio_schedule


def test_masks_by_visit_are_known_as_such():
    assert make('least_masked', ratio=0.9).by_visit and make(static_masks=1).by_visit and not make().by_visit
    explored = [registry.FullyExplored(schedule=schedule) for schedule in registry.SCHEDULES]
    assert [make('fully_explored', fully_explored=options).by_visit for options in explored] == [False, True, False]


@pytest.mark.parametrize(
    ('strategy', 'unit', 'name'),
    [('weighted', 'token', 'token_weights'), ('uniform', 'span', 'word_starts'), ('uniform', 'pmi', 'word_starts')],
)
def test_a_missing_table_is_named(strategy, unit, name):
    with pytest.raises(ValueError, match=f'needs the table .{name}'):
        mask(Masking(VOCABULARY, strategy, unit=unit), jax.random.key(0), rows(0))


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        (dict(special_ids=(0, 2, 3)), 'mask_id = 4 is missing'),
        (dict(special_ids=(0, 3, 2, 4)), 'ascending'),
        (dict(size=4), 'outside'),
    ],
)
def test_impossible_vocabularies_are_refused(fields, message):
    valid = dict(size=10, pad_id=0, cls_id=2, sep_id=3, mask_id=4, special_ids=(0, 2, 3, 4))
    with pytest.raises(ValueError, match=message):
        Vocabulary(**{**valid, **fields})


@pytest.mark.parametrize(
    ('name', 'ratios'), [('linear', [0.4, 0.3, 0.2]), ('staged', [0.4, 0.1, 0.1]), ('constant', [0.4, 0.4, 0.4])]
)
def test_least_masked_knows_at_which_ratio_earlier_visits_were_masked(name, ratios):
    """Where an epoch is one batch, visit v is at step v; no token is masked twice while one has not been at all."""
    schedule = ratio_schedules.RatioSchedule(name, 0.4, 0.1, 1 if name == 'staged' else 0, 3)
    masking, tokens = make('least_masked', ratio=0.4, schedule=schedule, num_rows=20), full_rows(20, 102)
    cycle = masking.cycle
    times = np.zeros((20, 100), int)
    for step, ratio in enumerate(ratios):
        if step % cycle == 0:
            times[:] = 0
        now = masked_positions(mask(masking, jax.random.key(step), tokens, step))[:, 1:-1]
        assert np.all(np.abs(now.sum(1) - 100 * ratio) <= 1)
        for row in range(20):
            assert times[row][now[row]].max() <= times[row][~now[row]].min()
        times += now


@pytest.mark.parametrize('name', ['linear', 'cosine', 'diffusion'])
def test_the_mask_of_a_visit_is_the_same_wherever_in_its_epoch_the_row_comes(name):
    """Five batches in an epoch: what a later visit draws again must not depend on where the earlier one was."""
    schedule = ratio_schedules.RatioSchedule(name, 0.3, 0.1, 0, 40)
    masking, tokens = make('least_masked', ratio=0.3, schedule=schedule, num_rows=40), full_rows(8, 102)
    masks = [masked_positions(mask(masking, jax.random.key(step), tokens, step)) for step in range(12)]
    for step in range(12):
        assert np.array_equal(masks[step], masks[step // 5 * 5])
    before, now = (masks[step][:, 1:-1] for step in (0, 5))
    assert not (before & now).any(), 'the second of three masks holds what the first has left'
    if name == 'linear':
        assert 100 * 0.3 - before.sum(1).mean() == pytest.approx(100 * 0.2 * 2 / 40, abs=0.4), 'the middle of the epoch'


def test_units_and_counts_of_earlier_visits_have_different_random_bits():
    """A key that is used twice would tie the division into units to the number of tokens of one visit."""
    row_key = jax.random.key(0)
    streams = [2 * visit + use for visit in range(1000) for use in (0, 1)]
    for stream in (masking_lib._ROW_UNIT_STREAM, masking_lib._ROW_RATIO_STREAM):
        assert stream not in streams
    bits = {jax.random.key_data(jax.random.fold_in(row_key, s)).tobytes() for s in (0, 1, 2, 3)}
    own = jax.random.key_data(jax.random.fold_in(row_key, masking_lib._ROW_UNIT_STREAM)).tobytes()
    assert own not in bits
