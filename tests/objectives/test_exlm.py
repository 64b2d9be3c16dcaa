"""ExLM: what states see, what a row's likelihood depends on, every switch, and the predictions for users."""

import dataclasses
import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlm_jax import config as config_lib
from mlm_jax.data import packing
from mlm_jax.masking import ratio_schedules, registry, tables
from mlm_jax.masking.batch import MaskedBatch, gather_positions, selected_of
from mlm_jax.masking.masking import Masking
from mlm_jax.masking.vocabulary import standard_vocabulary
from mlm_jax.models.layers import EncoderConfig
from mlm_jax.objectives.exlm import ExLM, ExLMConfig
from mlm_jax.training import build

VOCABULARY = standard_vocabulary(120)
LENGTH = 24
ENCODER = EncoderConfig(
    vocab_size=120,
    max_length=LENGTH,
    num_layers=2,
    width=32,
    num_heads=4,
    ffn_width=64,
    positions='rotary_2d',
    norm='pre',
    embedding_norm=False,
    dropout=0.0,
    attention_dropout=0.0,
)
PLAIN = ExLMConfig(num_states=3)


def make_batch(ratio: float = 0.2, seed: int = 0) -> MaskedBatch:
    """Two rows of several documents, with padding behind, and two of one document each."""
    rng = np.random.default_rng(seed)
    documents = [rng.integers(5, 120, n).astype(np.int32) for n in (5, 9, 3, 6, 7)]
    packed = packing.pack(documents, LENGTH, VOCABULARY, 'documents')[:2]
    full = rng.integers(5, 120, (2, LENGTH)).astype(np.int32)
    full[:, 0], full[:, -1] = VOCABULARY.cls_id, VOCABULARY.sep_id
    tokens = jnp.asarray(np.concatenate([packed, full]))
    segments = packing.segment_ids(tokens, VOCABULARY)
    return mask(Masking(VOCABULARY, 'uniform', ratio), jax.random.key(seed), tokens, segments)


@functools.partial(jax.jit, static_argnums=0)
def mask(masking: Masking, key, tokens, segments) -> MaskedBatch:
    return masking(key, tokens, segments)


@functools.cache
def initialised(config: EncoderConfig = ENCODER, options: ExLMConfig = PLAIN, scale: float = 4.0):
    """A module and random parameters, larger than usual so that everything matters."""
    module, rng = ExLM(config, options), np.random.default_rng(1)
    shapes = jax.eval_shape(module.init, jax.random.key(1), make_batch())['params']

    def draw(path, leaf):
        if path[-1].key in ('scale', 'bias'):
            return jnp.full(leaf.shape, float(path[-1].key == 'scale'))
        return jnp.asarray(rng.normal(size=leaf.shape, scale=0.02 * scale), leaf.dtype)

    return module, jax.tree_util.tree_map_with_path(draw, shapes)


# Jitted once for all tests: equal modules and shapes are compiled once.
@functools.partial(jax.jit, static_argnames=('module', 'method'))
def run(module, params, *args, method='__call__'):
    return module.apply({'params': params}, *args, method=method)


@functools.partial(jax.jit, static_argnames='module')
def train(module, params, batch):
    """LossTerms as in training."""
    return module.apply({'params': params}, batch, deterministic=False)


@functools.partial(jax.jit, static_argnames=('module', 'deterministic'))
def loss_and_gradients(module, params, batch, deterministic: bool = False):
    def loss(params):
        terms = module.apply({'params': params}, batch, deterministic)
        return terms.loss_sum / jnp.maximum(terms.weight_sum, 1e-6), terms

    (value, terms), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return value, terms, grads


def metric(terms, name: str) -> float:
    total, weight = terms.metrics[name]
    return float(total) / float(weight)


def test_untrained_it_knows_nothing_and_every_parameter_receives_a_gradient():
    module = ExLM(ENCODER, PLAIN)
    params = jax.jit(module.init)(jax.random.key(1), make_batch())['params']
    _, terms, grads = loss_and_gradients(module, params, make_batch(), deterministic=True)
    assert metric(terms, 'masked_nll') == pytest.approx(np.log(120), rel=0.02)
    assert metric(terms, 'infeasible') == 0
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.all(np.isfinite(grad)) and np.abs(grad).max() > 0, path


def test_a_batch_can_be_overfitted(overfitted_loss):
    config = dataclasses.replace(ENCODER, width=64)
    module, params = initialised(config, scale=1.0)
    assert overfitted_loss(module, params, make_batch()) < 0.5


def test_a_row_is_scored_alike_alone_and_among_others_to_the_bit():
    """The released code fills shorter rows with copies of their last token: there, the longest row changes others."""
    batch = make_batch()
    module, params = initialised()
    everywhere = train(module, params, batch)
    shorter = batch.replace(segments=batch.segments.at[1:].set(jnp.arange(LENGTH) < 5))
    heavy = batch.replace(positions=batch.positions.at[1:].set(jnp.arange(1, 1 + batch.positions.shape[1])))
    weight = jnp.zeros_like(batch.weights).at[0].set(batch.weights[0])  # the others weigh nothing
    losses = [train(module, params, b.replace(weights=weight)).loss_sum for b in (batch, shorter, heavy)]
    assert losses[0] == losses[1] == losses[2]
    assert losses[0] != everywhere.loss_sum


def test_padding_behind_a_row_changes_nothing():
    batch = make_batch()
    module, params = initialised()
    longer = ExLM(dataclasses.replace(ENCODER, max_length=LENGTH), PLAIN)
    pad = ((0, 0), (0, 5))
    padded = MaskedBatch(
        tokens=jnp.pad(batch.tokens, pad),
        inputs=jnp.pad(batch.inputs, pad),
        positions=jnp.where(batch.positions == LENGTH, LENGTH + 5, batch.positions),
        weights=batch.weights,
        segments=jnp.pad(batch.segments, pad),
    )
    a, b = run(module, params, batch), run(longer, params, padded)
    np.testing.assert_allclose(a.loss_sum, b.loss_sum, rtol=1e-5)
    np.testing.assert_allclose(metric(a, 'masked_nll'), metric(b, 'masked_nll'), rtol=1e-5)


def test_documents_of_a_row_do_not_see_each_other_in_the_encoder():
    batch = make_batch(0.3)
    module, params = initialised()
    assert batch.segments[0].max() > 1
    other = jnp.where((batch.segments == 2) & (batch.inputs >= 5), (batch.inputs + 7) % 115 + 5, batch.inputs)
    x, segments, _ = run(module, params, batch, method='encode_masked')
    y, _, _ = run(module, params, batch.replace(inputs=other), method='encode_masked')
    changed = np.asarray(segments == 2)
    assert np.array_equal(x[~changed], y[~changed])
    assert not np.array_equal(x[changed], y[changed])


def packed_batch(ratio: float = 0.3) -> MaskedBatch:
    """One row of three documents, with padding behind, in which tokens of each are masked."""
    rng = np.random.default_rng(4)
    documents = [rng.integers(5, 120, n).astype(np.int32) for n in (7, 4, 5)]
    tokens = jnp.asarray(packing.pack(documents, LENGTH, VOCABULARY, 'documents'))
    segments = packing.segment_ids(tokens, VOCABULARY)
    assert int(segments.max()) == 3
    batch = mask(Masking(VOCABULARY, 'bernoulli', ratio), jax.random.key(3), tokens, segments)
    assert set(np.asarray(gather_positions(batch.segments, batch.positions))[0]) == {0, 1, 2, 3}
    return batch


def part_of(batch: MaskedBatch, first: int, last: int) -> tuple[MaskedBatch, np.ndarray]:
    """The documents `first` to `last` of a row as a row of their own, and which masked positions are theirs."""
    segments, positions = np.asarray(batch.segments)[0], np.asarray(batch.positions)[0]
    start, stop = np.flatnonzero((segments >= first) & (segments <= last))[[0, -1]] + (0, 1)
    theirs = (positions >= start) & (positions < stop)
    pad = ((0, 0), (0, LENGTH - (stop - start)))
    unused = positions.size - theirs.sum()
    part = MaskedBatch(
        tokens=jnp.pad(batch.tokens[:, start:stop], pad),
        inputs=jnp.pad(batch.inputs[:, start:stop], pad),
        positions=jnp.asarray([[*(positions[theirs] - start), *[LENGTH] * unused]]),
        weights=jnp.asarray([[1.0] * theirs.sum() + [0.0] * unused]),
        segments=jnp.pad(batch.segments[:, start:stop] - first + 1, pad),
    )
    return part, theirs


def log_z(module, params, batch: MaskedBatch) -> float:
    """log Z of the only row."""
    terms = train(module, params, batch)
    return -float(terms.loss_sum) * int(run(module, params, batch, method='_expand').num_targets[0])


@pytest.mark.parametrize(
    ('transitions', 'num_alignments', 'parts'),
    [
        ('dense', 3, [(1, 1), (2, 2), (3, 3)]),
        ('dense', 2, [(1, 1), (2, 3)]),
        ('sparse', 9, [(1, 1), (2, 2), (3, 3)]),
    ],
)
def test_a_row_is_scored_as_its_documents_are_alone(transitions, num_alignments, parts):
    """Where there are more documents than alignments, the last ones are scored as a row of theirs."""
    batch = packed_batch()
    options = dataclasses.replace(PLAIN, transitions=transitions)
    module, params = initialised(options=dataclasses.replace(options, alignments=num_alignments))
    alone = initialised(options=options)[0]
    found = np.asarray(run(module, params, batch, method='log_likelihood'))[0]
    expected, total = np.zeros_like(found), 0.0
    for first, last in parts:
        part, theirs = part_of(batch, first, last)
        values = np.asarray(run(alone, params, part, method='log_likelihood'))[0]
        expected[theirs] = values[: theirs.sum()]
        total += log_z(alone, params, part)
    used = np.asarray(batch.positions)[0] < LENGTH
    np.testing.assert_allclose(found[used], expected[used], rtol=2e-5)
    assert log_z(module, params, batch) == pytest.approx(total, rel=2e-5)
    shares = metric(train(module, params, batch), 'shared_alignment')
    assert shares == float(num_alignments < 3)


def test_a_document_has_no_influence_on_another_one_with_an_alignment_of_its_own():
    batch = packed_batch()
    other = batch.replace(inputs=jnp.where((batch.segments == 2) & (batch.inputs >= 5), 9, batch.inputs))
    positions = np.asarray(batch.positions)[0]
    elsewhere = (positions < LENGTH) & (np.asarray(gather_positions(batch.segments, batch.positions))[0] != 2)
    changes = []
    for num_alignments in (1, 3):
        module, params = initialised(options=dataclasses.replace(PLAIN, alignments=num_alignments))
        a, b = (np.asarray(run(module, params, x, method='log_likelihood'))[0, elsewhere] for x in (batch, other))
        changes.append(np.abs(a - b).max())
    assert changes[0] > 0.01 and changes[1] < 1e-5


def test_rows_without_masked_tokens_weigh_nothing_and_give_finite_gradients():
    module, params = initialised()
    none = make_batch().replace(
        positions=jnp.full((4, 5), LENGTH), weights=jnp.zeros((4, 5)), segments=make_batch().segments.at[3].set(0)
    )
    _, terms, grads = loss_and_gradients(module, params, none)
    assert float(terms.weight_sum) == float(terms.loss_sum) == 0
    assert not any(g.any() for g in jax.tree.leaves(jax.device_get(grads)))


def test_rows_without_an_alignment_are_counted_and_weigh_nothing():
    """Without anchors, a row with a single masked token has one target and several states."""
    batch = make_batch()
    positions = batch.positions.at[1, 1:].set(LENGTH)
    batch = batch.replace(positions=positions, weights=(positions < LENGTH).astype(jnp.float32))
    module, params = initialised(options=dataclasses.replace(PLAIN, anchors=False))
    _, terms, grads = loss_and_gradients(module, params, batch)
    assert metric(terms, 'infeasible') == 0.25
    assert float(terms.weight_sum) == 3
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))
    anchored, params = initialised()
    assert metric(train(anchored, params, batch), 'infeasible') == 0


def test_parameters_that_are_not_finite_show_in_the_loss():
    """And do not read as rows without an alignment, which weigh nothing."""
    module, params = initialised()
    terms = train(module, jax.tree.map(lambda x: x * jnp.nan, params), make_batch())
    assert np.isnan(terms.loss_sum) and float(terms.weight_sum) > 0


def test_a_row_weighs_what_its_masked_positions_do():
    batch = make_batch()
    module, params = initialised()
    rows = [
        train(module, params, batch.replace(weights=batch.weights * (jnp.arange(4) == r)[:, None])) for r in range(4)
    ]
    weighted = train(module, params, batch.replace(weights=batch.weights * jnp.array([1.0, 2, 3, 4])[:, None]))
    assert float(weighted.weight_sum) == 10
    expected = sum((r + 1) * float(terms.loss_sum) for r, terms in enumerate(rows))
    assert float(weighted.loss_sum) == pytest.approx(expected, rel=1e-5)


def test_rows_of_diffusion_ratios_count_alike():
    """Weighed by 1/t, the mean of a row would leave 7 to 17 effective rows of 64: the few with the smallest ratios."""
    tokens = jnp.asarray(np.random.default_rng(0).integers(5, 120, (64, LENGTH)), jnp.int32)
    tokens = tokens.at[:, 0].set(VOCABULARY.cls_id).at[:, -1].set(VOCABULARY.sep_id)
    schedule = ratio_schedules.RatioSchedule('diffusion', 1.0, 0.001)
    masking = Masking(VOCABULARY, ratio=1.0, schedule=schedule)
    batch = mask(masking, jax.random.key(0), tokens, packing.segment_ids(tokens, VOCABULARY))

    def effective_rows(options):
        module, params = initialised(options=options)
        weigh = jax.jit(lambda w_BxM: run(module, params, batch.replace(weights=w_BxM)).weight_sum)
        weight_B = np.asarray((jax.grad(weigh)(batch.weights) * batch.weights).sum(1))  # it is linear in the weights
        return weight_B.sum() ** 2 / (weight_B**2).sum()

    plain = dataclasses.replace(PLAIN, num_states=1, transitions='none')  # every row has an alignment
    assert effective_rows(plain) < 25
    assert effective_rows(dataclasses.replace(plain, weigh_by_count=True)) > 55


def test_a_run_with_diffusion_ratios_weighs_rows_by_their_masked_positions():
    for name, expected in (('diffusion', True), ('constant', False)):
        config = config_lib.default_config()
        config.update(objective='exlm', vocab_size=64)
        config.model.positions, config.masking.ratio_schedule = 'rotary_2d', name
        assert build.make_objective(config, VOCABULARY).options.weigh_by_count == expected


def test_states_without_transitions_are_equally_likely():
    batch = make_batch()
    module, params = initialised(options=dataclasses.replace(PLAIN, transitions='none'))
    assert 'transitions' not in params
    states = run(module, params, batch, method='states')
    log_prob = np.asarray(jax.nn.log_softmax(states.logits), np.float64)
    expected = 0.0
    for row, expanded in enumerate(np.asarray(states.rows.expanded)):
        used = expanded[expanded < LENGTH]
        own = [log_prob[row, 3 * i : 3 * i + 3, batch.tokens[row, t]] for i, t in enumerate(used)]
        expected -= np.mean([np.log(np.mean(np.exp(x))) for x in own])
    terms = train(module, params, batch)
    assert float(terms.loss_sum) == pytest.approx(expected, rel=1e-5)
    assert float(terms.weight_sum) == 4


def test_sparse_transitions_tie_targets_to_their_own_states_and_dense_ones_do_not():
    batch = make_batch()
    for transitions, tied in (('sparse', True), ('dense', False)):
        module, params = initialised(options=dataclasses.replace(PLAIN, transitions=transitions))
        _, _, posterior = run(module, params, batch, method='alignment')
        num_targets = posterior.shape[1]
        own = np.arange(3 * num_targets) // 3 == np.arange(num_targets)[:, None]
        assert bool(np.all(np.asarray(posterior)[:, ~own] == 0)) == tied
        expanded = run(module, params, batch, method='states').rows.expanded
        masked = np.asarray(gather_positions(selected_of(batch.positions, LENGTH), expanded))
        share = np.asarray(posterior * own).sum(2)[masked].mean()
        assert metric(train(module, params, batch), 'own_states') == pytest.approx(share, rel=1e-4)
        assert share == pytest.approx(1, rel=1e-4) if tied else share < 0.9


def test_dense_transitions_are_sparse_in_the_first_steps_and_where_nothing_is_trained_never():
    batch, (_, params) = make_batch(), initialised()
    options = {name: dataclasses.replace(PLAIN, transitions=name) for name in ('sparse', 'dense')}
    sparse, dense = (run(initialised(options=o)[0], params, batch, method='states').links for o in options.values())
    curriculum = initialised(options=dataclasses.replace(PLAIN, sparse_steps=10))[0]
    links = run(curriculum, params, batch.replace(step=jnp.array([9, 10, 0, 2**31 - 1])), method='states').links
    np.testing.assert_array_equal(links, np.where(np.array([1, 0, 1, 0])[:, None, None], sparse, dense))
    np.testing.assert_array_equal(run(curriculum, params, batch, method='states').links, dense)

    config = config_lib.load('configs/exlm.py:tiny,exlm.sparse_percent=12.5,total_steps=80')
    assert build.make_objective(config_lib.resolve(config), VOCABULARY).options.sparse_steps == 10


def test_copies_differ_by_their_second_coordinate_alone():
    batch = make_batch()
    for positions, alike in (('rotary', True), ('rotary_2d', False)):
        module, params = initialised(dataclasses.replace(ENCODER, positions=positions))
        logits = run(module, params, batch, method='states').logits
        copies = np.asarray(logits).reshape(4, -1, 3, 120)[:, :4]
        assert np.allclose(copies[:, :, 0], copies[:, :, 1], atol=1e-4) == alike


def test_a_step_holds_no_logits_of_positions_and_no_transitions_for_each_target():
    module, params = initialised()
    batch = make_batch()
    rows = run(module, params, batch, method='states').rows
    num_rows, num_targets = rows.expanded.shape
    num_states, length = PLAIN.num_states * num_targets, LENGTH + (PLAIN.num_states - 1) * num_targets
    loss = jax.grad(lambda p, b: module.apply({'params': p}, b, deterministic=False).loss_sum)
    text = jax.jit(loss).lower(params, batch).as_text()
    shapes = {tuple(map(int, dims.split('x')[:-1])) for dims in re.findall(r'tensor<((?:\d+x)+)', text)}
    assert (num_rows, num_states, 120) in shapes and num_states < length
    logits = [shape for shape in shapes if shape[-1] == 120 and len(shape) > 1]
    assert max(map(math.prod, logits)) == num_rows * num_states * 120
    assert (num_rows, num_states, num_states) in shapes
    assert not [shape for shape in shapes if shape.count(num_states) > 1 and num_targets in shape]


def test_every_switch_runs_and_makes_a_difference():
    batch = make_batch()
    seen = {}
    for name, value in (
        ('num_states', 3),
        ('num_states', 1),
        ('num_states', 2),
        ('transitions', 'sparse'),
        ('transitions', 'none'),
        ('transition_heads', 1),
        ('transition_heads', 2),
        ('anchors', False),
        ('alignments', 2),
    ):
        module, params = initialised(options=dataclasses.replace(PLAIN, **{name: value}))
        assert ('gate' in params.get('transitions', {})) == ((name, value) not in (
            ('transitions', 'none'), ('transition_heads', 1)
        ))  # fmt: skip
        terms = train(module, params, batch)
        seen[name, value] = float(terms.loss_sum / terms.weight_sum)
        assert np.isfinite(seen[name, value])
    for a, b in itertools.combinations(seen.values(), 2):
        assert abs(a - b) > 1e-4


@pytest.mark.parametrize('strategy', sorted(registry.STRATEGIES))
@pytest.mark.parametrize('ratio', [0.0, 1.0])
def test_any_share_of_a_row_can_be_masked(strategy, ratio):
    tokens = make_batch().tokens
    segments = packing.segment_ids(tokens, VOCABULARY)
    masking = Masking(VOCABULARY, strategy, ratio, tables=tables.stand_in(VOCABULARY))
    batch = mask(masking, jax.random.key(0), tokens, segments)
    module, params = initialised()
    terms = train(module, params, batch)
    assert np.isfinite(float(terms.loss_sum))
    masked_rows = int((batch.weights > 0).any(1).sum())
    assert int(terms.weight_sum) == masked_rows
    if masked_rows:
        assert metric(terms, 'infeasible') == 0


def test_predictions_from_the_context_are_distributions_and_give_the_metric():
    batch = make_batch()
    module, params = initialised()
    logits = run(module, params, batch, method='logits')
    used = np.asarray(batch.weights > 0)
    np.testing.assert_allclose(np.exp(logits).sum(-1)[used], 1.0, atol=1e-4)
    nll = -np.take_along_axis(np.asarray(logits), np.asarray(batch.targets)[..., None], axis=-1)[..., 0][used]
    assert metric(run(module, params, batch), 'masked_nll') == pytest.approx(nll.mean(), rel=1e-4)
    # Targets have no influence; they have on the prediction given the alignment.
    other = batch.replace(tokens=jnp.where(batch.inputs == VOCABULARY.mask_id, 7, batch.tokens))
    np.testing.assert_array_equal(run(module, params, other, method='logits')[used], logits[used])


def test_whole_rows_are_aligned_with_their_tokens():
    batch = make_batch()
    module, params = initialised()
    x = run(module, params, batch.tokens, batch.segments, method='encode')
    assert x.shape == (4, LENGTH, 32)
    nothing = batch.replace(inputs=batch.tokens, positions=jnp.full((4, 1), LENGTH), weights=jnp.zeros((4, 1)))
    slots, _, masked = run(module, params, nothing, method='encode_masked')
    assert not masked.any()
    rows = run(module, params, nothing, method='states').rows
    real = np.asarray(batch.segments > 0)
    np.testing.assert_allclose(x[real], gather_positions(slots, rows.first_slot)[real], atol=1e-5)
    assert np.array_equal(gather_positions(rows.tokens, rows.first_slot)[real], batch.tokens[real])
