"""MAE-LM: what the encoder sees and does not see, the decoder, the slots for kept tokens, every switch."""

import dataclasses
import functools
import itertools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlm_jax.data import packing
from mlm_jax.masking import registry
from mlm_jax.masking.batch import MaskedBatch, gather_positions, positions_of
from mlm_jax.masking.masking import Masking
from mlm_jax.masking.vocabulary import standard_vocabulary
from mlm_jax.models.encoder import Encoder
from mlm_jax.models.layers import Block, Context, EncoderConfig
from mlm_jax.models.positions import positions_in_documents, rotary_turns
from mlm_jax.objectives.mae_lm import MAELM, MAELMConfig, decoder_config, hidden_slots, keep_tokens, kept_slots

VOCABULARY = standard_vocabulary(200)
LENGTH = 48
PLAIN = EncoderConfig(
    vocab_size=200, max_length=LENGTH, num_layers=2, width=32, num_heads=4, ffn_width=64, relative_buckets=32
)
MODERN = dataclasses.replace(
    PLAIN,
    relative_buckets=0,
    positions='rotary',
    norm='pre',
    mlp='geglu',
    bias=False,
    dropout=0.0,
    attention_dropout=0.0,
)
ENCODERS = {'paper': PLAIN, 'modern': MODERN}
SMALL = MAELMConfig(decoder_layers=2)


def packed_rows(seed: int, mean: float, count: int, length: int = LENGTH) -> np.ndarray:
    """Documents of log-normal lengths around `mean` tokens, packed."""
    rng = np.random.default_rng(seed)
    lengths = np.maximum(1, rng.lognormal(np.log(mean), 0.6, size=count).astype(int))
    documents = [rng.integers(5, 200, n).astype(np.int32) for n in lengths]
    return packing.pack(documents, length, VOCABULARY, 'documents')


def make_batch(packed: bool, ratio: float = 0.25, strategy: str = 'uniform', seed: int = 0) -> MaskedBatch:
    """Four rows: of several documents with padding behind, or of one document each."""
    if packed:
        tokens = packed_rows(seed, 10.0, 40)[:4]
    else:
        tokens = np.random.default_rng(seed).integers(5, 200, (4, LENGTH)).astype(np.int32)
        tokens[:, 0], tokens[:, -1] = VOCABULARY.cls_id, VOCABULARY.sep_id
    segments = packing.segment_ids(jnp.asarray(tokens), VOCABULARY)
    return mask(Masking(VOCABULARY, strategy, ratio), jax.random.key(seed), jnp.asarray(tokens), segments)


@functools.partial(jax.jit, static_argnums=0)
def mask(masking: Masking, key, tokens, segments) -> MaskedBatch:
    return masking(key, tokens, segments)


keep = jax.jit(keep_tokens, static_argnums=1)


@functools.cache
def initialised(config: EncoderConfig = PLAIN, options: MAELMConfig = SMALL, scale: float = 1.0):
    """A module and random parameters, kernels and tables `scale` times as large as usual so that everything matters."""
    module, rng = MAELM(config, VOCABULARY.mask_id, options), np.random.default_rng(1)
    shapes = jax.eval_shape(module.init, jax.random.key(1), make_batch(True))['params']

    def draw(path, leaf):
        if path[-1].key in ('scale', 'bias'):
            return jnp.full(leaf.shape, float(path[-1].key == 'scale'))
        return jnp.asarray(rng.normal(size=leaf.shape, scale=0.02 * scale), leaf.dtype)

    return module, jax.tree_util.tree_map_with_path(draw, shapes)


@functools.partial(jax.jit, static_argnames=('module', 'method'))  # once for all tests
def run(module, params, batch, method='logits'):
    return module.apply({'params': params}, batch, method=method)


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('encoder', ENCODERS)
def test_the_gathered_encoder_is_the_full_encoder_without_masked_keys(encoder, packed):
    config, batch = ENCODERS[encoder], make_batch(packed)
    module, params = initialised(config, SMALL, 5.0)

    @jax.jit
    def both(params):
        kept = keep(batch, module.options)
        gathered = module.apply({'params': params}, kept, method='encode_kept')
        apart = jnp.where(kept.masked, 0, batch.segments)  # masked positions see, and are seen by, padding alone
        positions = positions_in_documents(batch.segments)
        full = Encoder(config).apply({'params': params['encoder']}, batch.tokens, apart, positions)
        return kept, gathered, gather_positions(full, kept.index)

    kept, gathered, full = both(params)
    used = np.asarray(kept.segments > 0)
    assert used.sum() == np.sum(batch.segments > 0) - batch.weights.sum()
    assert np.abs(full[used]).max() > 0.1
    np.testing.assert_allclose(gathered[used], full[used], atol=1e-5)


@pytest.mark.smoke
@pytest.mark.parametrize('packed', [False, True])
def test_ids_at_masked_positions_influence_nothing(packed):
    batch = make_batch(packed)
    module, params = initialised()
    masked = keep(batch, module.options).masked
    other = batch.replace(
        tokens=jnp.where(masked, 7, batch.tokens), inputs=jnp.where(masked, (batch.tokens + 11) % 200, batch.inputs)
    )
    assert not np.array_equal(batch.targets, other.targets)
    logits = run(module, params, batch)
    assert np.array_equal(logits, run(module, params, other))
    kept = batch.replace(tokens=jnp.where(masked | (batch.segments == 0), batch.tokens, 8))
    assert not np.array_equal(logits, run(module, params, kept)), 'the ids of kept tokens do'


def test_documents_of_a_row_do_not_see_each_other():
    batch = make_batch(True)
    module, params = initialised(PLAIN, SMALL, 5.0)
    first = batch.segments == 1
    other = batch.replace(tokens=jnp.where(first | (batch.segments == 0), batch.tokens, 9))
    in_first = np.asarray(gather_positions(first, batch.positions))
    assert in_first.any()
    a, b = run(module, params, batch), run(module, params, other)
    np.testing.assert_allclose(a[in_first], b[in_first], atol=1e-6)
    assert np.abs(a - b).max() > 0.1


def test_rows_without_masked_tokens_weigh_nothing_and_give_finite_gradients():
    batch = make_batch(True)
    module, params = initialised()
    gradient = jax.jit(jax.value_and_grad(lambda p, b: (t := module.apply({'params': p}, b)).loss_sum + t.weight_sum))

    def unmask(rows):
        return batch.replace(positions=batch.positions.at[rows].set(LENGTH), weights=batch.weights.at[rows].set(0.0))

    for rows in (slice(0, 1), slice(None)):
        value, grads = gradient(params, unmask(rows))
        assert np.isfinite(value)
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert value == 0
    assert not any(g.any() for g in jax.tree.leaves(jax.device_get(grads)))


def test_a_row_whose_tokens_are_all_masked_is_predicted_from_nothing():
    batch = make_batch(True, ratio=1.0)
    tokens = jnp.where(batch.segments > 0, 9, 0)
    positions = positions_of(batch.segments > 0, LENGTH)
    batch = batch.replace(tokens=tokens, positions=positions, weights=(positions < LENGTH).astype(jnp.float32))
    terms = run(*initialised(), batch, method='__call__')
    assert np.isfinite(terms.loss_sum)
    assert terms.weight_sum == np.sum(batch.segments > 0)


@pytest.mark.parametrize('encoder', ENCODERS)
def test_the_last_layer_at_masked_positions_is_the_whole_layer_read_there(encoder):
    batch = make_batch(True)
    module, params = initialised(ENCODERS[encoder], SMALL, 5.0)
    config = decoder_config(ENCODERS[encoder], SMALL)
    positions = positions_in_documents(batch.segments)
    turns = rotary_turns((positions,), config.head_width) if encoder == 'modern' else None

    def whole(params):
        p = params['decoder']
        x = module.apply({'params': params}, batch, method='decoder_inputs')
        x = x + p['position_embedding']['embedding'][positions]
        x = normalised(x, p['embedding_norm'])
        for layer in (jax.tree.map(lambda leaf: leaf[0], p['layers']), p['last_layer']):
            x, _ = Block(config, True).apply({'params': layer}, x, Context(batch.segments, turns))
        return gather_positions(normalised(x, p['final_norm']) if 'final_norm' in p else x, batch.positions)

    def normalised(x, p):
        x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * p['scale'] + p.get('bias', 0)

    def masked_only(params):
        return module.apply({'params': params}, batch, batch.positions, method='decode')

    used = batch.weights > 0

    def value_and_gradient(function):
        def weighted(params):
            x = jnp.where(used[..., None], function(params), 0)
            return jnp.sum(x * jnp.cos(jnp.arange(x.size).reshape(x.shape))), x

        return jax.jit(jax.grad(weighted, has_aux=True))(params)

    (grads, x), (expected_grads, expected) = value_and_gradient(masked_only), value_and_gradient(whole)
    np.testing.assert_allclose(x, expected, atol=2e-5)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-4)


def test_decoder_inputs_are_encoder_outputs_in_their_places_and_the_mask_vector_elsewhere():
    batch = make_batch(True)
    module, params = initialised()
    kept = keep(batch, module.options)
    x, encoded = run(module, params, batch, 'decoder_inputs'), run(module, params, kept, 'encode_kept')
    mask_vector = params['encoder']['token_embedding']['embedding'][VOCABULARY.mask_id]
    assert np.all(x[kept.masked] == mask_vector)
    used = np.asarray(kept.segments > 0)
    assert np.array_equal(gather_positions(x, kept.index)[used], encoded[used])


def test_the_decoder_has_no_dropout_and_no_relative_bias():
    d = decoder_config(PLAIN, MAELMConfig(decoder_width=16))
    assert (d.dropout, d.attention_dropout, d.relative_buckets, d.norm, d.positions) == (0, 0, 0, 'post', 'learned')
    assert (d.num_layers, d.width, d.ffn_width, d.num_heads) == (4, 16, 32, 4)
    with pytest.raises(ValueError, match='number of heads'):
        decoder_config(PLAIN, MAELMConfig(decoder_width=18))


@pytest.mark.parametrize('encoder', ENCODERS)
def test_untrained_loss_is_log_v_and_every_parameter_receives_a_gradient(encoder):
    batch = make_batch(True)
    module = MAELM(ENCODERS[encoder], VOCABULARY.mask_id, dataclasses.replace(SMALL, decoder_width=16))
    params = jax.jit(module.init)(jax.random.key(1), batch)['params']

    def loss(params):
        terms = module.apply({'params': params}, batch)
        return terms.loss_sum / terms.weight_sum

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    assert float(value) == pytest.approx(np.log(200), rel=0.02)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.all(np.isfinite(grad)) and np.abs(grad).max() > 0, path


def test_the_mask_vector_learns_from_the_decoder_and_the_softmax_alone():
    """The row of [MASK] has a gradient; without the softmax's and the decoder's it would have none."""
    batch = make_batch(True)
    module, params = initialised()

    def encoded(params):
        return module.apply({'params': params}, keep(batch, module.options), method='encode_kept').sum()

    def decoded(params):
        return (module.apply({'params': params}, batch, batch.positions, method='decode') ** 3).sum()

    for function, reaches in ((encoded, False), (decoded, True)):
        row = jax.jit(jax.grad(function))(params)['encoder']['token_embedding']['embedding'][VOCABULARY.mask_id]
        assert np.any(row != 0) == reaches


def test_a_batch_can_be_overfitted(overfitted_loss):
    batch = make_batch(True)
    config = dataclasses.replace(PLAIN, width=64, dropout=0.0, attention_dropout=0.0)
    module, params = initialised(config)
    assert overfitted_loss(module, params, batch) < 0.05


def test_every_switch_runs_and_makes_a_difference():
    batch = make_batch(True)
    random = batch.replace(
        inputs=jnp.where(batch.inputs == VOCABULARY.mask_id, (batch.tokens + 50) % 190 + 5, batch.inputs)
    )
    cases = {
        'MAE-LM': ({}, {}, batch),
        'depth 1': ({'decoder_layers': 1}, {}, batch),
        'narrow': ({'decoder_width': 16}, {}, batch),
        '[MASK] in the encoder': ({'masked_in_encoder': 1.0}, {}, batch),
        '[MASK] in the encoder, reset': ({'masked_in_encoder': 1.0, 'reset_masked': True}, {}, batch),
        'half of [MASK]': ({'masked_in_encoder': 0.5}, {}, batch),
        'renumbered': ({'renumber_positions': True}, {}, batch),
        'random replacement': ({'masked_in_encoder': 1.0}, {}, random),
        'no relative bias': ({}, {'relative_buckets': 0}, batch),
    }
    logits = {}
    for name, (options, encoder, rows) in cases.items():
        config, options = dataclasses.replace(PLAIN, **encoder), dataclasses.replace(SMALL, **options)
        same_shapes = (options.decoder_layers, options.decoder_width) == (2, 0)
        _, params = initialised(PLAIN, SMALL, 5.0) if same_shapes else initialised(config, options, 5.0)
        logits[name] = run(MAELM(config, VOCABULARY.mask_id, options), params, rows)[batch.weights > 0]
        assert np.isfinite(logits[name]).all()
    for a, b in itertools.combinations(logits, 2):
        assert np.abs(logits[a] - logits[b]).max() > 1e-3, (a, b)


def test_masked_positions_in_the_encoder_and_their_reset():
    batch = make_batch(True)
    for reset in (False, True):
        options = MAELMConfig(decoder_layers=1, masked_in_encoder=1.0, reset_masked=reset)
        module, params = initialised(PLAIN, options)
        masked, real = keep(batch, options).masked, np.asarray(batch.segments > 0)
        x = run(module, params, batch, 'decoder_inputs')
        whole = jax.jit(Encoder(PLAIN).apply)({'params': params['encoder']}, batch.inputs, batch.segments)
        mask_vector = params['encoder']['token_embedding']['embedding'][VOCABULARY.mask_id]
        expected = jnp.where(masked[..., None], mask_vector, whole) if reset else whole
        np.testing.assert_allclose(x[real], expected[real], atol=1e-5)


@hypothesis.given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 200))
@hypothesis.settings(deadline=None)
def test_any_first_few_masked_positions_are_hidden_in_their_share(smaller, larger, count):
    smaller, larger = sorted((smaller, larger))
    hidden, fewer = hidden_slots(count, smaller), hidden_slots(count, larger)
    assert np.all(hidden | ~fewer), 'a larger share of [MASK] in the encoder only adds to it'
    few = np.arange(1, count + 1)
    assert np.all(np.abs(np.cumsum(hidden) - (1 - smaller) * few) < 2 + 0.25 * np.log(few))
    assert hidden_slots(count, 0.0).all() and not hidden_slots(count, 1.0).any()


@hypothesis.given(
    st.integers(0, 1000),
    st.sampled_from([0.0, 0.15, 0.4, 1.0]),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.booleans(),
    st.sampled_from([0.0, 0.125, 1.0]),
)
@hypothesis.settings(deadline=None, max_examples=25)
def test_kept_tokens_by_their_definition(seed, ratio, share, renumber, margin):
    options = MAELMConfig(masked_in_encoder=share, renumber_positions=renumber, kept_margin=margin)
    batch = make_batch(True, ratio, seed=seed)
    kept = jax.tree.map(np.asarray, keep(batch, options))
    num_slots = kept_slots(LENGTH, batch.positions.shape[1], options)
    assert kept.tokens.shape == (4, num_slots)
    for b in range(4):
        tokens, inputs, segments, positions = (
            np.asarray(x[b]) for x in (batch.tokens, batch.inputs, batch.segments, batch.positions)
        )
        used = positions[positions < LENGTH]
        hidden = used[hidden_slots(len(positions), share)[: len(used)]]
        seen = np.setdiff1d(np.flatnonzero(segments), hidden)
        fitting = seen[:num_slots]
        assert kept.overflow[b] == len(seen) - len(fitting)
        assert np.array_equal(np.flatnonzero(kept.masked[b]), used)
        rest = num_slots - len(fitting)
        assert np.array_equal(kept.index[b], np.pad(fitting, (0, rest), constant_values=LENGTH))
        ids = np.where(np.isin(fitting, used), inputs[fitting], tokens[fitting])
        assert np.array_equal(kept.tokens[b, : len(fitting)], ids)
        assert np.array_equal(kept.segments[b], np.pad(segments[fitting], (0, rest)))
        starts = {
            d: np.flatnonzero((segments if not renumber else segments[fitting]) == d)[0] for d in segments[fitting]
        }
        place = np.arange(len(fitting)) if renumber else fitting
        expected = place - np.array([starts[d] for d in segments[fitting]], int)
        assert np.array_equal(kept.positions[b, : len(fitting)], expected)
        slots = np.full(LENGTH, num_slots)
        slots[fitting] = np.arange(len(fitting))
        assert np.array_equal(kept.slot[b], slots)


@pytest.mark.parametrize('ratio', [0.15, 0.3, 0.4, 0.9])
def test_there_are_enough_slots_for_every_row_within_the_margin(ratio):
    """The bound, by counting: n tokens with S specials, of which ⌊ratio·(n − S)⌋ are masked, or one more."""
    for length in (32, 48, 100, 128, 512):
        for margin in (0.0, 0.125, 0.5, 1.0):
            options = MAELMConfig(kept_margin=margin)
            num_slots = kept_slots(length, registry.max_count(ratio, length), options)
            specials = math.floor(margin * length)
            assert num_slots % 8 == 0 or num_slots == length
            for n in range(specials, length + 1):
                assert n - math.floor(ratio * (n - specials) + 1e-9) <= num_slots
    assert kept_slots(512, registry.max_count(0.15, 512), MAELMConfig()) == 448
    assert kept_slots(128, registry.max_count(0.15, 128), MAELMConfig()) == 112
    assert kept_slots(128, registry.max_count(0.15, 128), MAELMConfig(masked_in_encoder=1.0)) == 128


@pytest.mark.parametrize(
    'strategy', [s for s, value in registry.STRATEGIES.items() if value.has_fixed_count(Masking(VOCABULARY, s))]
)
@pytest.mark.parametrize('ratio', [0.15, 0.4])
def test_packed_rows_of_sentences_and_paragraphs_do_not_overflow(strategy, ratio):
    """A document every 20 to 200 tokens; where one fails, the strategy needs a `kept_margin` of its own."""
    masking = Masking(VOCABULARY, strategy, ratio)
    count = jax.jit(
        lambda key, rows: keep_tokens(masking(key, rows, packing.segment_ids(rows, VOCABULARY)), SMALL).overflow
    )
    for length in (128, 512):
        for mean in (20.0, 60.0, 200.0):
            rows = packed_rows(int(mean), mean, 64 * length // int(mean), length)
            assert not count(jax.random.key(0), jnp.asarray(rows[:48])).any()


def test_kept_tokens_without_a_slot_are_masked_positions_that_nobody_predicts():
    tokens = packed_rows(0, 2.0, 60)[:4]  # a document of two tokens has two specials
    segments = packing.segment_ids(jnp.asarray(tokens), VOCABULARY)
    batch = mask(Masking(VOCABULARY, ratio=0.5), jax.random.key(0), jnp.asarray(tokens), segments)
    narrow, wide = dataclasses.replace(SMALL, kept_margin=0.0), dataclasses.replace(SMALL, kept_margin=1.0)
    module, params = initialised(PLAIN, narrow, 5.0)
    kept = keep(batch, narrow)
    assert kept.overflow.min() > 0
    terms = run(module, params, batch, '__call__')
    assert terms.metrics['kept_overflow'] == (kept.overflow.sum(), (segments > 0).sum())

    unseen = (kept.slot == kept.tokens.shape[1]) & (segments > 0)
    positions = positions_of(unseen, LENGTH)
    predicted = (positions[:, :, None] == batch.positions[:, None, :]).any(-1) & (positions < LENGTH)
    more = batch.replace(positions=positions, weights=predicted.astype(jnp.float32))
    expected = run(MAELM(PLAIN, VOCABULARY.mask_id, wide), params, more, '__call__')
    assert expected.metrics['kept_overflow'][0] == 0
    assert expected.weight_sum == terms.weight_sum
    np.testing.assert_allclose(terms.loss_sum, expected.loss_sum, rtol=1e-5)


def test_whole_rows_are_encoded_as_by_the_encoder_alone():
    batch = make_batch(True)
    module, params = initialised()
    encode = jax.jit(lambda p: module.apply({'params': p}, batch.tokens, batch.segments, method='encode'))
    alone = jax.jit(lambda p: Encoder(PLAIN).apply({'params': p}, batch.tokens, batch.segments))
    x, expected = encode(params), alone(params['encoder'])
    assert np.array_equal(x, expected)
