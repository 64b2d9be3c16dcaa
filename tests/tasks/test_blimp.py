"""Minimal pairs by pseudo-log-likelihood: against one token at a time, and what must hold whatever the model."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlm_jax.analysis import blimp_report, minimal_pairs
from mlm_jax.config import ConfigError
from mlm_jax.masking.batch import MaskedBatch
from mlm_jax.masking.vocabulary import standard_vocabulary
from mlm_jax.models.layers import EncoderConfig
from mlm_jax.objectives.exlm import ExLM, ExLMConfig
from mlm_jax.objectives.mae_lm import MAELM, MAELMConfig
from mlm_jax.objectives.mlm import MLM
from mlm_jax.objectives.registry import OBJECTIVES
from mlm_jax.parallel import parameters
from mlm_jax.parallel.mesh import make_mesh
from mlm_jax.parallel.sharding import state_shardings
from mlm_jax.pretrained.pseudo_likelihood import PseudoLikelihood
from mlm_jax.tasks import blimp

LENGTH, VOCAB = 12, 24
VOCABULARY = standard_vocabulary(VOCAB)
ENCODER = EncoderConfig(
    vocab_size=VOCAB, max_length=LENGTH, num_layers=1, width=16, num_heads=2, ffn_width=32, positions='rotary_2d',
    norm='pre', embedding_norm=False, dropout=0.0, attention_dropout=0.0,
)  # fmt: skip
RULES = [rule for spec in OBJECTIVES.values() for rule in spec.parameters] + [*parameters.ENCODER]
MODULES = {
    'mlm': MLM(ENCODER),
    'mae_lm': MAELM(ENCODER, VOCABULARY.mask_id, MAELMConfig(decoder_layers=1)),
    'exlm': ExLM(ENCODER, ExLMConfig(num_states=2)),
    'exlm without transitions': ExLM(ENCODER, ExLMConfig(num_states=2, transitions='none')),
}
SENTENCES = ['5 6 7', '9 9 9 9 20', '10 7 13 15 6 11 21 8 14 5', '6 5 7', '12 13 14 15 16 17 18', '9 11 8 6']
SHORT = [0, 1, 3, 5]  # those in rows of 8


class NumberTokenizer:
    """A text is the numbers of its pieces; the even ones begin a word."""

    vocabulary = VOCABULARY

    def encode_batch(self, texts):
        return [np.array(text.split(), np.int32) for text in texts]

    def pieces(self, ids):
        return [f'▁{i}' if i % 2 == 0 else str(i) for i in ids]


def peaked(module, seed: int = 0) -> dict:
    """Random parameters, large enough that predictions differ much."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), one_row(module, np.full(LENGTH, 5), [1]))['params']
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: (0.6 * rng.normal(size=x.shape) + (x.ndim < 2)).astype(np.float32), shapes)


def one_row(module, ids, masked, slots: int = 1) -> MaskedBatch:
    """The sentence `ids` in a row of full length, masked at the positions `masked`."""
    del module
    tokens = np.full((1, LENGTH), VOCABULARY.pad_id, np.int32)
    tokens[0, : len(ids)] = ids
    positions = np.full((1, slots), LENGTH, np.int32)
    positions[0, : len(masked)] = masked
    inputs = tokens.copy()
    inputs[0, list(masked)] = VOCABULARY.mask_id
    weights = (positions < LENGTH).astype(np.float32)
    segments = (tokens != VOCABULARY.pad_id).astype(np.int32)
    return MaskedBatch(*map(jnp.asarray, (tokens, inputs, positions, weights, segments)))


logits = jax.jit(
    lambda module, params, batch: module.apply({'params': params}, batch, method='logits'), static_argnums=0
)


def one_by_one(module, params, sentence: str, within_word: bool = False, repeats: int = 1) -> float:
    """The definition: mask a token, read its log-probability off the logits, go on to the next."""
    ids = [VOCABULARY.cls_id, *map(int, sentence.split()), VOCABULARY.sep_id]
    total = 0.0
    for place in range(1, len(ids) - 1):
        stop = place + 1
        while within_word and stop < len(ids) - 1 and ids[stop] % 2:
            stop += 1
        masked = range(repeats * place, repeats * stop)
        slots = LENGTH - 2 if within_word else repeats
        batch = one_row(module, np.repeat(ids, repeats), masked, slots)
        logits_MxV = np.asarray(logits(module, params, batch)[0], np.float64)[:repeats]
        log_p_M = logits_MxV[:, ids[place]] - np.log(np.exp(logits_MxV).sum(1))
        total += log_p_M.mean()
    return total


def score(module, params, sentences, devices: int = 1, tokens_at_once: int = 24, **options) -> np.ndarray:
    mesh = make_mesh(-1, 1, 1, devices=jax.devices()[:devices])
    with jax.set_mesh(mesh):
        scorer = PseudoLikelihood(module, NumberTokenizer(), sentences, **options)
        scorer.compile(params, mesh, tokens_at_once)
        return scorer.scores(params)


@pytest.fixture(scope='module', params=list(MODULES))
def model(request):
    """Each objective, with the scores of SENTENCES: (module, params, scores)."""
    module, params = MODULES[request.param], peaked(MODULES[request.param])
    return module, params, score(module, params, SENTENCES)


@pytest.fixture(scope='module')
def mlm():
    """(module, params)."""
    return MODULES['mlm'], peaked(MODULES['mlm'])


def test_scores_are_those_of_one_token_at_a_time(model):
    module, params, scores = model
    expected = [one_by_one(module, params, sentence) for sentence in SENTENCES]
    assert np.ptp(expected) > 5, 'sentences differ, or this tests little'
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)


def test_neither_company_nor_mesh_nor_layout_matter(model):
    """Fewer sentences in another order and larger batches, on eight devices that share the parameters."""
    module, params, scores = model
    mesh = make_mesh(1, 8, 1)
    with jax.set_mesh(mesh):
        scorer = PseudoLikelihood(module, NumberTokenizer(), [SENTENCES[i] for i in SHORT[::-1]])
        split = jax.device_put(params, state_shardings(params, 'fsdp', mesh, RULES))
        scorer.compile(split, mesh)
        found = scorer.scores(split)
    np.testing.assert_allclose(found[::-1], scores[SHORT], rtol=1e-5, atol=1e-5)


def test_within_a_word_later_pieces_are_masked_too(model):
    module, params, scores = model
    reference = module
    if isinstance(module, MAELM):  # in rows of which few tokens are masked
        reference = module.clone(options=MAELMConfig(decoder_layers=1, kept_margin=1.0))
    sentences = [SENTENCES[i] for i in SHORT[:3]]
    expected = [one_by_one(reference, params, sentence, within_word=True) for sentence in sentences]
    found = score(module, params, sentences, within_word=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert (np.abs(found - scores[SHORT[:3]]) > 1e-3).all()


def test_repeated_tokens_are_masked_in_all_their_copies(mlm):
    sentences = ['8 7', '9 20', '6 6']
    expected = [one_by_one(*mlm, sentence, repeats=2) for sentence in sentences]
    np.testing.assert_allclose(score(*mlm, sentences, repeats=2), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match='has 7 tokens .* takes 6 at most'):
        PseudoLikelihood(mlm[0], NumberTokenizer(), ['5 6 7 8 9'], repeats=2)


def test_a_sentence_is_scored_once_however_often_it_occurs(mlm):
    once = PseudoLikelihood(mlm[0], NumberTokenizer(), SENTENCES)
    assert once.num_rows == sum(len(sentence.split()) for sentence in SENTENCES)
    again = ['5  6 7', *SENTENCES, *SENTENCES]
    assert PseudoLikelihood(mlm[0], NumberTokenizer(), again).num_rows == once.num_rows
    scores = score(*mlm, ['5  6 7', '9 8 5', '5 6 7', '9 8 5'])
    assert scores[0] == scores[2] != scores[1] == scores[3]


def test_a_model_of_frequencies_adds_them_up(mlm):
    """Without embeddings, the bias of the head decides."""
    log_p_V = np.log(np.random.default_rng(1).dirichlet(np.ones(VOCAB)))
    params = jax.tree.map(np.zeros_like, mlm[1])
    params['head']['bias'] = log_p_V.astype(np.float32)
    expected = [log_p_V[np.array(SENTENCES[i].split(), int)].sum() for i in SHORT]
    np.testing.assert_allclose(score(mlm[0], params, [SENTENCES[i] for i in SHORT]), expected, rtol=1e-5)
    likely, unlikely = (int(i) for i in (5 + np.argmax(log_p_V[5:]), 5 + np.argmin(log_p_V[5:])))
    pairs = [
        pair(f'{likely} 7', f'{unlikely} 7'),
        pair(f'{likely} {likely}', f'{unlikely} 7', 'other'),
        pair('6 7', '7 6', 'other'),  # a tie
        pair(f'{unlikely} 8', f'{likely} 8', 'other'),
    ]
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        judged = minimal_pairs.Blimp(pairs, mlm[0], NumberTokenizer())
        judged.compile(params, mesh)
        report, metrics = judged.evaluate(params), judged.metrics(params)
    assert (report['accuracy'], report['pairs'], report['ties'], report['unknown_sentences']) == (0.5, 4, 1, 0)
    assert report['terms']['other'] == {'accuracy': 1 / 3, 'pairs': 3, 'ties': 1}
    assert metrics == {'blimp': 0.5, 'blimp_syntax': 0.5}


def pair(good: str, bad: str, term: str = 'some') -> blimp.Pair:
    return blimp.Pair(good, bad, field='syntax', term=term, paradigm=f'{term}_1')


def test_pieces_that_are_unknown_are_context_and_counted(mlm):
    scorer = PseudoLikelihood(mlm[0], NumberTokenizer(), ['5 1 7', '5 6 7'])
    assert (scorer.num_rows, scorer.num_unknown) == (5, 1)
    with pytest.raises(ConfigError, match="'1' holds no text that the tokenizer knows"):
        PseudoLikelihood(mlm[0], NumberTokenizer(), ['1'])


def test_sentences_and_models_that_cannot_be_scored_are_refused(mlm, monkeypatch):
    longest = ' '.join(['5'] * (LENGTH - 2))
    assert PseudoLikelihood(mlm[0], NumberTokenizer(), [longest]).num_rows == LENGTH - 2
    with pytest.raises(ConfigError, match=f"'{longest} 6' has 13 tokens .* this model takes 12 at most"):
        PseudoLikelihood(mlm[0], NumberTokenizer(), [longest, longest + ' 6'])
    with pytest.raises(ConfigError, match='a row with one masked token then has no alignment'):
        PseudoLikelihood(ExLM(ENCODER, ExLMConfig(num_states=2, anchors=False)), NumberTokenizer(), ['5'])
    with pytest.raises(FloatingPointError, match='2 of 2 sentences'):
        score(mlm[0], jax.tree.map(lambda x: x * np.nan, mlm[1]), ['5', '6'])
    monkeypatch.setattr(NumberTokenizer, 'pieces', lambda self, ids: ['x'] * len(ids))
    with pytest.raises(ConfigError, match='does not mark where words start'):
        PseudoLikelihood(mlm[0], NumberTokenizer(), ['5'], within_word=True)


def write_file(path, **changes) -> None:
    """Ten pairs in the published format; `changes` of the first line, None takes a key away."""
    lines = [
        {
            'sentence_good': f'good {i}', 'sentence_bad': f'bad {i}', 'field': 'syntax/semantics',
            'linguistics_term': 'binding', 'UID': path.stem, 'simple_LM_method': True, 'pairID': str(i),
        }
        for i in range(10)
    ]  # fmt: skip
    lines[0].update(changes)
    lines[0] = {key: value for key, value in lines[0].items() if value is not None}
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines), encoding='utf-8')


def test_files_are_read_whole_or_in_an_even_part(tmp_path):
    for name in ('b', 'a'):
        write_file(tmp_path / f'{name}.jsonl')
    pairs = blimp.read(tmp_path)
    assert len(pairs) == 20
    assert pairs[0] == blimp.Pair('good 0', 'bad 0', 'syntax_semantics', 'binding', 'a')
    assert [p.good for p in blimp.read(tmp_path, 30)] == ['good 0', 'good 3', 'good 6'] * 2
    assert [p.paradigm for p in blimp.read(tmp_path, 0.1)] == ['a', 'b'], 'one of each at least'


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'sentence_bad': None}, r'a.jsonl, line 1: no text in sentence_bad; each line of BLiMP has sentence_good'),
        ({'UID': ' ', 'field': 3}, 'line 1: no text in field, UID'),
    ],
)
def test_files_that_are_none_of_blimp_are_refused(tmp_path, change, message):
    write_file(tmp_path / 'a.jsonl', **change)
    with pytest.raises(ConfigError, match=message):
        blimp.read(tmp_path)


def test_a_byte_order_mark_and_other_ends_of_lines_do_not_matter(tmp_path):
    write_file(tmp_path / 'a.jsonl', sentence_good='A dog\u2028barks\x85.')
    path = tmp_path / 'a.jsonl'
    lines = [json.dumps(json.loads(line), ensure_ascii=False) for line in path.read_bytes().split(b'\n') if line]
    path.write_text('\ufeff' + '\r\n'.join(lines), encoding='utf-8')
    pairs = blimp.read(tmp_path)
    assert len(pairs) == 10 and pairs[0].good == 'A dog\u2028barks\x85.'
    write_file(tmp_path / 'a.jsonl', sentence_bad='half \ud83d')
    with pytest.raises(ConfigError, match='a.jsonl, line 1: it holds a lone surrogate'):
        blimp.read(tmp_path)


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match='nowhere is not a directory: give the directory'):
        blimp.read(tmp_path / 'nowhere')
    with pytest.raises(ConfigError, match=r'holds no \*.jsonl files'):
        blimp.read(tmp_path)
    (tmp_path / 'a.jsonl').write_text('\n')
    with pytest.raises(ConfigError, match='a.jsonl is empty'):
        blimp.read(tmp_path)
    (tmp_path / 'a.jsonl').write_text('{"sentence_good"\n')
    with pytest.raises(ConfigError, match='a.jsonl, line 1: not JSON'):
        blimp.read(tmp_path)
    with pytest.raises(ConfigError, match='0 % of BLiMP'):
        blimp.read(tmp_path, 0)


def test_the_published_numbers_add_up():
    """A wrong digit shows: 61.24029851 % is what the authors report for all 67 paradigms together."""
    assert len(blimp_report.FIVE_GRAM) == blimp.NUM_PARADIGMS
    pairs = [blimp.Pair('', '', 'field', 'term', paradigm) for paradigm in blimp_report.FIVE_GRAM]
    assert blimp_report.five_gram(pairs)['accuracy'] == pytest.approx(0.6124029851)
    strange = [blimp.Pair('', '', 'field', 'mine', 'mine'), blimp.Pair('', '', 'field', 'ellipsis', 'ellipsis_n_bar_1')]
    found = blimp_report.five_gram(strange)
    assert found == {
        'fields': {}, 'terms': {'ellipsis': {'accuracy': 0.234}}, 'paradigms': {'ellipsis_n_bar_1': {'accuracy': 0.234}}
    }  # fmt: skip
