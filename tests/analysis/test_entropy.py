"""Entropy in bits: against enumeration, and what it must satisfy whatever the model."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlm_jax.analysis import entropy
from mlm_jax.masking.batch import MaskedBatch
from mlm_jax.models.layers import EncoderConfig
from mlm_jax.objectives.exlm import ExLM, ExLMConfig
from mlm_jax.objectives.exlm_spec import COMPARABLE, DISTRIBUTIONS
from mlm_jax.objectives.mae_lm import MAELM, MAELMConfig, keep_tokens
from mlm_jax.objectives.mlm import MLM
from mlm_jax.objectives.spec import PREDICTION
from mlm_jax.pretrained import batches

LENGTH, VOCAB, MASK = 12, 16, 4
token_bits = jax.jit(entropy.token_bits, static_argnums=0)
row_sums = jax.jit(entropy.row_sums, static_argnums=0)
run = jax.jit(
    lambda module, params, batch, method: module.apply({'params': params}, batch, method=method), static_argnums=(0, 3)
)
ENCODER = EncoderConfig(
    vocab_size=VOCAB, max_length=LENGTH, num_layers=1, width=16, num_heads=2, ffn_width=32, positions='rotary_2d',
    norm='pre', embedding_norm=False, dropout=0.0, attention_dropout=0.0,
)  # fmt: skip
POSITIONS = [[2, 3, 8], [1, 5, LENGTH], [4, 9, 10]]


def make_batch(tokens_BxT: np.ndarray, positions_BxM) -> MaskedBatch:
    tokens_BxT, positions_BxM = jnp.asarray(tokens_BxT, jnp.int32), jnp.asarray(positions_BxM, jnp.int32)
    masked_BxT = (positions_BxM[:, :, None] == jnp.arange(tokens_BxT.shape[1])).any(1)
    return MaskedBatch(
        tokens=tokens_BxT,
        inputs=jnp.where(masked_BxT, MASK, tokens_BxT),
        positions=positions_BxM,
        weights=(positions_BxM < tokens_BxT.shape[1]).astype(jnp.float32),
        segments=jnp.ones_like(tokens_BxT),
    )


@pytest.fixture(scope='module')
def batch() -> MaskedBatch:
    """3 rows; the second has 2 masked tokens, the others 3."""
    return make_batch(np.random.default_rng(0).integers(5, VOCAB, (3, LENGTH)), POSITIONS)


def peaked(module, batch, seed: int = 0) -> dict:
    """Random parameters, large enough that states, predictions and transitions differ much."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), batch)['params']
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: (0.6 * rng.normal(size=x.shape) + (x.ndim < 2)).astype(np.float32), shapes)


@pytest.fixture(scope='module')
def exlm(batch):
    """ExLM with 2 states: (module, params)."""
    module = ExLM(ENCODER, ExLMConfig(num_states=2))
    return module, peaked(module, batch)


def enumerated(match_MxS: np.ndarray, links_SxS: np.ndarray) -> np.ndarray:
    """float64[M, S]: the posterior of the states, over all ascending paths from the first state to the last."""
    num_targets, num_states = match_MxS.shape
    weight_MxS = np.zeros((num_targets, num_states))
    for middle in itertools.combinations(range(1, num_states - 1), num_targets - 2):
        path = [0, *middle, num_states - 1]
        score = match_MxS[np.arange(num_targets), path].sum() + links_SxS[path[:-1], path[1:]].sum()
        weight_MxS[np.arange(num_targets), path] += np.exp(score)
    return weight_MxS / weight_MxS[0].sum()


def test_exlm_equals_enumeration(exlm, batch):
    module, params = exlm
    bits, masked_BxE = token_bits(module, params, batch)
    states = run(module, params, batch, 'states')
    np.testing.assert_array_equal(masked_BxE.sum(1), [3, 2, 3])
    spread = []
    for row, positions in enumerate(POSITIONS):
        targets = sorted({0, LENGTH - 1, *(p for p in positions if p < LENGTH)})
        count = len(targets)
        logits_SxV = np.asarray(states.logits[row, : 2 * count], np.float64)
        probability_SxV = np.exp(logits_SxV - logits_SxV.max(1, keepdims=True))
        probability_SxV /= probability_SxV.sum(1, keepdims=True)
        links_SxS = np.asarray(states.links[row, : 2 * count, : 2 * count], np.float64)
        match_MxS = np.log(probability_SxV[:, np.asarray(batch.tokens[row])[targets]]).T
        state_entropy_S = -(probability_SxV * np.log2(probability_SxV)).sum(1)
        for name, evidence_MxS in {'prior': np.zeros_like(match_MxS), 'posterior': match_MxS}.items():
            weight_MxS = enumerated(evidence_MxS, links_SxS)
            mixture_MxV = weight_MxS @ probability_SxV
            expected = {
                f'{name}, states': (weight_MxS @ state_entropy_S, -(weight_MxS * match_MxS).sum(1) / np.log(2)),
                f'{name}, mixture': (
                    -(mixture_MxV * np.log2(mixture_MxV)).sum(1),
                    -np.log2((weight_MxS * np.exp(match_MxS)).sum(1)),
                ),
            }
            for definition, pair in expected.items():
                for found, value in zip(bits[definition], pair, strict=True):
                    np.testing.assert_allclose(found[row, :count], value, rtol=1e-5, atol=1e-5)
        spread.append(state_entropy_S)
        np.testing.assert_array_equal(masked_BxE[row, :count], [p in positions for p in targets])
    assert np.ptp(np.concatenate(spread)) > 0.5, 'states differ, or this tests little'


def test_a_mixture_has_no_less_entropy_than_its_states_on_average(exlm, batch):
    bits, masked_BxE = token_bits(*exlm, batch)
    for weight in ('prior', 'posterior'):
        mixture, states = (np.asarray(bits[f'{weight}, {of}'][0])[masked_BxE] for of in ('mixture', 'states'))
        assert (mixture >= states - 1e-5).all() and (mixture > states + 0.01).any()


def test_nll_by_the_prior_is_what_training_reports(exlm, batch):
    sums = row_sums(*exlm, batch)
    total, count = run(*exlm, batch, '__call__').metrics['masked_nll']
    assert float(sums['tokens'].sum()) == float(count) == 8
    assert float(sums['bits'][COMPARABLE][:, 1].sum() * np.log(2)) == pytest.approx(float(total), rel=1e-5)


@pytest.fixture(scope='module')
def all_texts() -> MaskedBatch:
    """A short row with all values of its 3 masked tokens."""
    texts = np.array(list(itertools.product(range(6), repeat=3)))
    rows = np.tile([5, 0, 0, 5, 0, 5], (len(texts), 1))
    rows[:, [1, 2, 4]] = texts
    return make_batch(rows, np.tile([1, 2, 4], (len(texts), 1)))


def without_anchors(transitions: str, batch: MaskedBatch):
    config = dataclasses.replace(ENCODER, vocab_size=6, max_length=6)
    module = ExLM(config, ExLMConfig(num_states=2, transitions=transitions, anchors=False))
    return module, peaked(module, batch)


@pytest.mark.parametrize('transitions', ['dense', 'none'])
def test_entropy_and_nll_agree_on_text_that_the_model_has_made(transitions, all_texts):
    """Over all texts, weighted by their likelihood: of the mixture by the prior, and of the states by the posterior."""
    module, params = without_anchors(transitions, all_texts)
    bits, _ = token_bits(module, params, all_texts)
    states, match_BxExS, _ = run(module, params, all_texts, 'alignment')
    match_BxExS = np.asarray(match_BxExS, np.float64)
    paths = {'dense': [(0, u, 5) for u in range(1, 5)], 'none': itertools.product((0, 1), (2, 3), (4, 5))}[transitions]
    likelihood_B = 0.0
    for path in paths:
        steps = 0.0 if states.links is None else sum(states.links[0, v, u] for v, u in itertools.pairwise(path))
        likelihood_B += np.exp(sum(match_BxExS[:, i, u] for i, u in enumerate(path)) + float(steps))
    share_Bx1 = (likelihood_B / likelihood_B.sum())[:, None]
    gap = {name: float((share_Bx1 * np.asarray(nll - h)).sum()) for name, (h, nll) in bits.items()}
    assert gap['prior, mixture'] == pytest.approx(0, abs=1e-4)
    assert gap['posterior, states'] == pytest.approx(0, abs=1e-4)
    assert gap['prior, states'] > 0.01


def test_rows_without_an_alignment_are_left_out(all_texts):
    """Two states of one token, and no anchors: an alignment would have to start and end with it."""
    module, params = without_anchors('dense', all_texts)
    one = dataclasses.replace(all_texts, positions=all_texts.positions.at[1, 1:].set(6))
    sums = row_sums(module, params, one)
    np.testing.assert_array_equal(sums['tokens'][:3], [3, 0, 3])
    np.testing.assert_array_equal(sums['left_out'][:3], [0, 1, 0])
    assert all(np.isfinite(x).all() for x in sums['bits'].values())


@pytest.mark.parametrize(
    'module',
    [MLM(ENCODER), MAELM(ENCODER, MASK, MAELMConfig(decoder_layers=1)), ExLM(ENCODER, ExLMConfig(num_states=2))],
)
def test_a_model_that_knows_nothing_leaves_all_bits_open(module, batch):
    shapes = jax.eval_shape(module.init, jax.random.key(0), batch)['params']
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes)
    summary = entropy.summarize(jax.device_get(row_sums(module, zeros, batch)))
    assert (summary['tokens'], summary['left_out']) == (8, 0)
    assert set(summary['bits']) == set(DISTRIBUTIONS if isinstance(module, ExLM) else [PREDICTION])
    for values in summary['bits'].values():
        assert values['entropy'][0] == pytest.approx(np.log2(VOCAB), rel=1e-5)
        assert values['nll'][0] == pytest.approx(np.log2(VOCAB), rel=1e-5)
        assert values['gap'] == pytest.approx([0, 0], abs=1e-5)


def test_one_distribution(batch):
    module = MLM(ENCODER)
    params = peaked(module, batch)
    bits, masked_BxM = token_bits(module, params, batch)
    logits = np.asarray(run(module, params, batch, 'logits'), np.float64)[masked_BxM]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = [np.asarray(x)[masked_BxM] for x in bits[PREDICTION]]
    np.testing.assert_allclose(found[0], -(p * np.log2(p)).sum(1), rtol=1e-5)
    np.testing.assert_allclose(found[1], -np.log2(p[np.arange(8), np.asarray(batch.targets)[masked_BxM]]), rtol=1e-5)


def test_rows_of_padding_count_for_nothing(exlm, batch):
    padding = MaskedBatch(
        tokens=batch.tokens * 0, inputs=batch.tokens * 0, positions=batch.positions * 0 + LENGTH,
        weights=batch.weights * 0, segments=batch.segments * 0,
    )  # fmt: skip
    whole = row_sums(*exlm, batch)
    padded = row_sums(*exlm, jax.tree.map(lambda x, y: x.at[2].set(y[2]), batch, padding))
    for x, y in zip(jax.tree.leaves(whole), jax.tree.leaves(padded), strict=True):
        np.testing.assert_allclose(y[:2], x[:2], rtol=1e-5)
        np.testing.assert_array_equal(y[2], np.zeros_like(y[2]))


def test_mae_lm_takes_any_ratio_and_is_the_same_function():
    module = MAELM(ENCODER, MASK, MAELMConfig(decoder_layers=1))
    rng = np.random.default_rng(1)
    batch = make_batch(rng.integers(5, VOCAB, (2, LENGTH)), np.stack([np.arange(1, 10), np.arange(2, 11)]))
    params = peaked(module, batch)
    found = [token_bits(m, params, batch)[0][PREDICTION] for m in (module, module.at_any_ratio())]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)
    few = dataclasses.replace(batch, positions=batch.positions.at[:, 1:].set(LENGTH))  # fewer than M promises
    keep = jax.jit(keep_tokens, static_argnums=1)
    assert keep(few, module.options).overflow.any()
    assert not keep(few, module.at_any_ratio().options).overflow.any()


def test_the_standard_error_is_over_rows():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 20, 500)
    level = rng.normal(size=500)  # shared by the tokens of a row
    mean, error = entropy.mean_and_error(level * tokens + 3 * tokens, tokens)
    assert mean == pytest.approx(3 + (level * tokens).sum() / tokens.sum())
    assert error == pytest.approx(np.sqrt((tokens**2).sum()) / tokens.sum(), rel=0.15)
    same, error = entropy.mean_and_error(2.0 * tokens, tokens)
    assert (same, error) == (2.0, pytest.approx(0.0, abs=1e-9))


def test_batches_shrink_as_logits_grow():
    exlm, mlm = ExLM(ENCODER, ExLMConfig(num_states=4)), MLM(ENCODER)
    few, many = (batches.rows_at_once(exlm, 512, masked, 32768) for masked in (77, 257))
    assert many < few < batches.rows_at_once(mlm, 512, 77, 32768)
    assert batches.rows_at_once(exlm, 512, 512, 1 << 20) == 1
