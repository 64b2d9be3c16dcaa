"""The files of a fast tokenizer give our ids: for SentencePiece, SMILES, and a given tokenizer.json."""

import functools
import io
import json
import lzma

import numpy as np
import pytest
import sentencepiece
from odd_text import BERT, LINES, odd_lines
from test_package import PACKAGE

from mlm_jax import config as config_lib
from mlm_jax.config import ConfigError
from mlm_jax.data import fast_tokenizer, sentencepiece_proto, sequences, smiles, tokenizers

hub = pytest.importorskip('tokenizers')
WIKIPEDIA = PACKAGE.parent.parent / 'shared' / 'data' / 'wiki' / 'enwiki_valid.jsonl.xz'
MOLECULES = ['CCO', 'c1ccccc1', 'C[C@H](N)C(=O)O', 'CC(=O)Oc1ccccc1C(=O)O', '[Na+].[Cl-]', 'C1CC1/C=C/Br']
FILES = ('tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json')


def settings(**keys):
    config = config_lib.default_config()
    config.tokenizer.update(keys)
    return config.tokenizer


@functools.cache
def trained(model='unigram', size=400, **keys):
    return tokenizers.train([*LINES, *odd_lines(300, ())], settings(model=model, **keys), size, exact_size=False)


@functools.cache
def foreign(model_type='unigram', **keys):
    """A SentencePiece model trained without our settings."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*LINES, *odd_lines(300, ())]), model_writer=model, model_type=model_type,
        hard_vocab_limit=model_type != 'unigram', pad_id=0, unk_id=1, bos_id=2, eos_id=3, pad_piece='[PAD]',
        unk_piece='[UNK]', bos_piece='[CLS]', eos_piece='[SEP]', control_symbols=['[MASK]', '<more>'], minloglevel=2,
        num_threads=1, **{'vocab_size': 150, **keys},
    )  # fmt: skip
    return tokenizers.Tokenizer(model.getvalue())


def with_piece(tokenizer, name, change):
    """A model with one changed piece."""
    proto = sentencepiece_proto.ModelProto.FromString(tokenizer.model)
    change(next(piece for piece in proto.pieces if piece.piece == name))
    return tokenizers.Tokenizer(proto.SerializeToString())


def check(tokenizer, directory, texts):
    """Writes and compares; how many texts were compared."""
    fast_tokenizer.write_fast_tokenizer(tokenizer, directory, 64)
    assert sorted(path.name for path in directory.iterdir()) == sorted(FILES)
    return fast_tokenizer.check_fast_tokenizer(tokenizer, directory, texts)


@pytest.mark.parametrize('model', tokenizers.SENTENCEPIECE)
@pytest.mark.parametrize('normalization', ['nmt_nfkc', 'identity'])
@pytest.mark.parametrize('byte_fallback', [True, False])
def test_trained_tokenizers(model, normalization, byte_fallback, tmp_path):
    tokenizer = trained(model, normalization=normalization, byte_fallback=byte_fallback)
    assert check(tokenizer, tmp_path, odd_lines(600)) > 400


@pytest.mark.parametrize('model', tokenizers.SENTENCEPIECE)
def test_extended_tokenizers(model, tmp_path):
    old = trained(model, byte_fallback=False)
    lines = ['новые слова 世界 と 言葉 の CC(=O)O', 'слова новые 言葉 の 世界'] * 20
    texts = [*LINES, *odd_lines(300, ()), *lines]
    new = tokenizers.extend(old, texts, settings(byte_fallback=False), old.vocabulary.size + 12)
    assert check(new, tmp_path, [*lines, *odd_lines(300)]) > 200
    assert set(new.encode(lines[0]).tolist()) & set(range(old.vocabulary.size, new.vocabulary.size))


@pytest.mark.parametrize(
    'keys',
    [
        {'add_dummy_prefix': False},
        {'split_by_whitespace': False},  # pieces of several words
        {'remove_extra_whitespaces': False, 'allow_whitespace_only_pieces': True},
        {'normalization_rule_name': 'identity', 'byte_fallback': True, 'vocab_size': 400},
        {'user_defined_symbols': '#'},
    ],
)  # fmt: skip
def test_given_models(keys, tmp_path):
    lines = [f'a{line}' for line in odd_lines(600)]
    assert check(foreign(**keys), tmp_path / 'unigram', lines) > 400
    if 'user_defined_symbols' not in keys:
        assert check(foreign('bpe', **keys), tmp_path / 'bpe', lines) > 400


def test_unused_pieces_are_never_found(tmp_path):
    unused = sentencepiece_proto.UNUSED
    tokenizer = with_piece(foreign(), '▁the', lambda piece: setattr(piece, 'type', unused))
    assert check(tokenizer, tmp_path, [*LINES, *odd_lines(100)]) > 100


def test_names_of_bytes_in_a_text_are_text(tmp_path):
    assert check(trained(byte_fallback=True), tmp_path, ['<0x41>', 'a <0x41><0xE6> <0x', '<<0xFF>>']) == 3


@pytest.mark.parametrize(
    ('tokenizer', 'message'),
    [
        (lambda: foreign(treat_whitespace_as_suffix=True), 'does not write the space before a word'),
        (lambda: foreign('char'), 'of kind char'),
        (lambda: foreign('bpe', user_defined_symbols='#'), "'#' is user-defined or unused"),
        (lambda: foreign(user_defined_symbols='a long user-defined symbol'), 'would change that of unknown text'),
        (
            lambda: with_piece(foreign('bpe', add_dummy_prefix=False), 'h', lambda piece: setattr(piece, 'piece', 'Q')),
            "no piece for its character 'h'",
        ),
    ],
)
def test_what_cannot_be_written_is_refused(tokenizer, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        fast_tokenizer.write_fast_tokenizer(tokenizer(), tmp_path / 'new', 64)
    assert not (tmp_path / 'new').exists()


def test_smiles(tmp_path):
    tokenizer = smiles.train(MOLECULES, 60)  # with unused ids
    texts = [*MOLECULES, '  CCO\u3000\n', 'C\nC', '[U]', '%(123)C', 'C٣', '[unused40]', 'OCC%12>', *odd_lines(300)]
    assert check(tokenizer, tmp_path, texts) > 200


def test_differences_are_found(tmp_path):
    fast_tokenizer.write_fast_tokenizer(trained(), tmp_path, 64)
    path = tmp_path / 'tokenizer.json'
    stored = json.loads(path.read_text())
    pieces = [piece for piece, _ in stored['model']['vocab']]
    stored['model']['vocab'][pieces.index('▁reads')][0] = 'gone'
    path.write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match="other ids than this one: of 'it reads'.* instead of .*'▁reads'"):
        fast_tokenizer.check_fast_tokenizer(trained(), tmp_path, ['the model', 'it reads'])


def test_divisions_that_are_as_likely_are_no_difference():
    """Which of them the float32 sums of SentencePiece prefer depends on the place in the text."""
    equal, scores = fast_tokenizer._are_equally_likely, {7: -3.25, 8: -4.0, 9: -3.625}
    assert equal([2, 7, 8, 3], [2, 8, 7, 3], scores) and equal([2, 7, 8, 3], [2, 9, 9, 3], scores)
    assert not equal([2, 7, 8, 3], [2, 8, 9, 3], scores)
    assert not equal([2, 7, 3], [2, 1, 3], scores), 'the unknown piece has no score'
    assert not equal([2, 7, 8, 3], [2, 9, 9, 3], {}), 'merges have none'


def test_real_text(tmp_path):
    if not WIKIPEDIA.exists():
        pytest.skip('no real text beside the repository')
    with lzma.open(WIKIPEDIA, 'rt', encoding='utf-8') as file:
        lines = [line for _ in range(12) for line in json.loads(next(file))['text'].splitlines() if line.strip()]
    tokenizer = tokenizers.train(lines, settings(byte_fallback=True), 2000)
    assert check(tokenizer, tmp_path, lines) == len(lines)


def test_sums_of_scores_are_exact():
    """Float32, in which SentencePiece adds up, gives what float64 gives, in any order."""
    proto = sentencepiece_proto.ModelProto.FromString(trained(byte_fallback=False).model)
    scores = np.array([piece.score for piece in proto.pieces], np.float32)
    drawn = np.random.default_rng(0).choice(scores, 6000)
    assert drawn.sum(dtype=np.float64) > -65536
    assert np.cumsum(drawn)[-1] == np.cumsum(drawn[::-1])[-1] == drawn.sum(dtype=np.float64)


def test_autotokenizer(tmp_path):
    transformers = pytest.importorskip('transformers')
    tokenizer = trained(byte_fallback=True)
    v = tokenizer.vocabulary
    fast_tokenizer.write_fast_tokenizer(tokenizer, tmp_path, 64)
    for kind in ('bert', 'modernbert', 'esm'):  # whose own tokenizers are others
        (tmp_path / 'config.json').write_text(json.dumps({'model_type': kind}))
        loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
        ids = [getattr(loaded, f'{symbol}_token_id') for symbol in ('pad', 'unk', 'cls', 'sep', 'mask')]
        assert ids == [v.pad_id, tokenizer.unknown_id, v.cls_id, v.sep_id, v.mask_id]
        assert loaded.model_max_length == 64 and len(loaded) == v.size
        for one, two in zip(LINES, odd_lines(40), strict=False):
            if not any(name in two for name in BERT):
                pieces = [tokenizer.encode(text) for text in (one, two)]
                assert loaded(one, two)['input_ids'] == sequences.join(pieces, v).tolist()
        assert loaded.decode(loaded('the model reads naïve words ☃').input_ids, skip_special_tokens=True) == (
            'the model reads naïve words ☃'
        )
    for text in ('the [MASK] reads', '[MASK] reads', 'a[MASK]b [MASK].', '[MASK]'):
        ids = [v.cls_id, *tokenizer.encode_masked(text, '[MASK]').tolist(), v.sep_id]
        assert loaded(text)['input_ids'] == ids


@pytest.mark.parametrize('model', tokenizers.SENTENCEPIECE)
@pytest.mark.parametrize('normalization', ['nmt_nfkc', 'identity'])
@pytest.mark.parametrize('byte_fallback', [True, False])
def test_masks_in_texts_are_those_of_the_original(model, normalization, byte_fallback):
    """What follows a mask directly is no beginning of a word, in the file as in the SentencePiece model."""
    original = trained(model, normalization=normalization, byte_fallback=byte_fallback)
    written = tokenizers.JSONTokenizer(json.dumps(fast_tokenizer._stored(original)).encode())
    for line in [*LINES[:5], *odd_lines(60, ()), 'a [MASK] ', '']:
        for at in (0, len(line) // 3, len(line) // 2, len(line)):
            for mask in ('[MASK]', ' [MASK]', '[MASK] ', ' [MASK] [MASK]'):
                text = line[:at] + mask + line[at:]
                if normalization == 'identity' and text.startswith((' [MASK]', '▁[MASK]')):
                    continue  # of the two spaces before the mask, the original keeps one
                ids = original.encode_masked(text, '[MASK]').tolist()
                assert written.encode_masked(text, '[MASK]').tolist() == ids, text


def test_only_its_own_tokenizer_has_written_a_file(tmp_path):
    tokenizer = trained()
    fast_tokenizer.write_fast_tokenizer(tokenizer, tmp_path, 64)
    assert fast_tokenizer.is_export(tokenizer, tmp_path / 'tokenizer.json')
    again = tokenizers.Tokenizer.from_file(tmp_path / 'tokenizer.json')
    assert fast_tokenizer.is_export(again, tmp_path / 'tokenizer.json')
    assert not fast_tokenizer.is_export(trained('bpe'), tmp_path / 'tokenizer.json')
    refused = foreign('unigram', treat_whitespace_as_suffix=True)
    assert not fast_tokenizer.is_export(refused, tmp_path / 'tokenizer.json')
    (tmp_path / 'tokenizer.json').write_text('{')
    assert not fast_tokenizer.is_export(tokenizer, tmp_path / 'tokenizer.json')
