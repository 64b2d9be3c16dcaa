"""Files of tokenizers as strangers have them: read rightly, or refused in words; never a traceback, never a special id.

Cuts, flips and replaced values of a file end in ConfigError, or in a tokenizer that reads its own file again alike.
"""

import collections
import functools
import io
import json

import numpy as np
import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odd_text import BERT, LINES, ROBERTA, odd_lines

from mlm_jax.config import ConfigError
from mlm_jax.data import masking_tables, smiles
from mlm_jax.data.tokenizer_json import JSONTokenizer, looks_like_json
from mlm_jax.data.tokenizers import Tokenizer

hub = pytest.importorskip('tokenizers')
FUZZ = settings(
    max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def trained(model, pre_tokenizer, trainer, specials, normalizer=None, **keys):
    tokenizer = hub.Tokenizer(model)
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = hub.decoders.ByteLevel() if isinstance(pre_tokenizer, hub.pre_tokenizers.ByteLevel) else None
    tokenizer.train_from_iterator(LINES, trainer(special_tokens=specials, show_progress=False, **keys))
    return tokenizer.to_str().encode()


@functools.cache
def published() -> dict[str, bytes]:
    """Files as they are published, by their kind."""
    pre, models, trainers = hub.pre_tokenizers, hub.models, hub.trainers
    wordpiece = trained(
        models.WordPiece(unk_token='[UNK]'), pre.BertPreTokenizer(), trainers.WordPieceTrainer, BERT,
        hub.normalizers.BertNormalizer(lowercase=True), vocab_size=120,
    )  # fmt: skip
    byte_level = trained(
        models.BPE(), pre.ByteLevel(add_prefix_space=False), trainers.BpeTrainer, ROBERTA,
        vocab_size=330, initial_alphabet=pre.ByteLevel.alphabet(),
    )  # fmt: skip
    unigram = trained(
        models.Unigram(), pre.Metaspace(), trainers.UnigramTrainer, ROBERTA,
        hub.normalizers.NFKC(), vocab_size=110, unk_token='<unk>',
    )  # fmt: skip
    bpe = trained(models.BPE(unk_token='[UNK]'), pre.Metaspace(), trainers.BpeTrainer, BERT, vocab_size=140)
    return {
        'WordPiece': wordpiece,
        'byte-level': byte_level,
        'Unigram': unigram,
        'Metaspace BPE': bpe,
        'WordPiece without type': without(wordpiece, 'model', 'type'),
        'byte-level without type': without(byte_level, 'model', 'type'),
        'Unigram without type': without(unigram, 'model', 'type'),
        'byte-level, old': without(without(byte_level, 'post_processor'), 'truncation'),
        'BPE without pre_tokenizer': without(bpe, 'pre_tokenizer'),
        'byte order mark': b'\xef\xbb\xbf' + wordpiece,
        'white space': b' \r\n\t' + wordpiece,
        'UTF-16': wordpiece.decode().encode('utf-16'),
    }


KINDS = [
    'WordPiece', 'byte-level', 'Unigram', 'Metaspace BPE', 'WordPiece without type', 'byte-level without type',
    'Unigram without type', 'byte-level, old', 'BPE without pre_tokenizer', 'byte order mark', 'white space', 'UTF-16',
]  # fmt: skip


def without(content: bytes, *path: str) -> bytes:
    """A file that lacks a key."""
    stored = json.loads(content)
    inner = stored
    for key in path[:-1]:
        inner = inner[key]
    inner.pop(path[-1], None)
    return json.dumps(stored).encode()


def changed(content: bytes, **keys) -> bytes:
    return json.dumps(json.loads(content) | keys).encode()


def in_file(content: bytes, path) -> Tokenizer:
    path.write_bytes(content)
    return Tokenizer.from_file(path)


@pytest.mark.parametrize('kind', KINDS)
def test_ids_are_those_of_the_package(kind, tmp_path):
    content = published()[kind]
    ours = in_file(content, tmp_path / 'tokenizer.json')
    theirs = hub.Tokenizer.from_str(content.decode('utf-16' if kind == 'UTF-16' else 'utf-8-sig'))
    theirs.encode_special_tokens = True
    v = ours.vocabulary
    symbols = {v.pad_id, v.cls_id, v.sep_id, v.mask_id}
    assert ours.model == content and v.size == theirs.get_vocab_size()
    lines = [*LINES, *odd_lines(3000)]
    same = 0
    for line, ids in zip(lines, ours.encode_batch(lines), strict=True):
        assert not symbols & set(ids.tolist()), f'a special token from {line!r}'
        expected = theirs.encode(line, add_special_tokens=False).ids
        if not any(symbol in line for symbol in (*BERT, *ROBERTA)):  # which the package makes special in some models
            assert ids.tolist() == expected, line
            same += 1
    assert same > 1500
    ids = ours.encode(LINES[0])
    assert ours.encode_offsets(LINES[0])[0].tolist() == ids.tolist()


@pytest.mark.parametrize('kind', KINDS)
def test_symbols_in_text_are_text(kind):
    ours = JSONTokenizer(published()[kind])
    special = set(ours.vocabulary.special_ids) - {ours.unknown_id}
    for symbol in (*BERT, *ROBERTA):
        for text in (symbol, f'a {symbol} b', f'a{symbol}', f'▁{symbol}', symbol * 3):
            assert not special & set(ours.encode(text).tolist()), text
            if ours.unknown_id is None:
                assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize('kind', ['WordPiece', 'WordPiece without type', 'byte order mark'])
def test_word_starts_are_known_without_the_type(kind):
    ours = JSONTokenizer(published()[kind])
    starts = masking_tables.word_starts(ours)
    names = hub.Tokenizer.from_str(published()['WordPiece'].decode()).get_vocab()
    for piece, token in names.items():
        if token not in ours.vocabulary.special_ids:
            assert starts[token] == (not piece.startswith('##')), piece


def added(content: str, **keys) -> dict:
    return {
        'id': 0, 'content': content, 'single_word': False, 'lstrip': False, 'rstrip': False, 'normalized': False,
        'special': True,
    } | keys  # fmt: skip


def test_special_tokens_of_every_model_are_kept_out_of_text():
    """Models that would find them among their pieces: Unigram, words as a whole, and merges."""
    pieces = {name: i for i, name in enumerate([*BERT, 'a', 'b', '[', 'C', '[C'])}
    tokens = [added(name, id=i) for i, name in enumerate(BERT)]
    plain = {'version': '1.0', 'added_tokens': tokens}
    split = {'type': 'WhitespaceSplit'}
    merges = [['[', 'C'], ['[C', 'LS]'], ['[M', 'ASK]']]
    more = {name: 10 + i for i, name in enumerate(['LS]', '[M', 'ASK]'])}
    for model, pre_tokenizer in (
        ({'type': 'WordLevel', 'vocab': pieces, 'unk_token': '[UNK]'}, split),
        (
            {'vocab': pieces, 'unk_token': '[UNK]', 'continuing_subword_prefix': '##', 'max_input_chars_per_word': 9},
            split,
        ),
        ({'type': 'Unigram', 'unk_id': 1, 'vocab': [[name, 0.0] for name in pieces]}, None),
        ({'type': 'BPE', 'vocab': pieces | more, 'merges': merges, 'unk_token': '[UNK]'}, None),
        ({'type': 'BPE', 'vocab': pieces, 'merges': [], 'unk_token': '[UNK]', 'ignore_merges': True}, split),
    ):
        ours = JSONTokenizer(json.dumps(plain | {'model': model, 'pre_tokenizer': pre_tokenizer}).encode())
        for symbol in BERT:
            ids = ours.encode(f'a {symbol} [C').tolist()
            assert not {0, 2, 3, 4} & set(ids) and pieces['a'] in ids, (model, symbol)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'[1, 2]', 'it has no "model" \\(list\\)'),
        (b'"text"', 'it has no "model" \\(str\\)'),
        (b'{"the": 0, "of": 1}', "it has no \"model\" \\('the', 'of'\\).*vocab.json"),
        (b'{"model": "bert"}', 'it has no "model"'),
        (b'{"model": {"type": "WordPiece"}}', 'is not a Hugging Face tokenizer.json'),
        (b'{', 'truncated or damaged'),
        (b'[' * 100_000, 'truncated or damaged'),
        (b'{"a":' * 50_000, 'truncated or damaged'),
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n', 'Git LFS pointer'),
        (b'[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\n', 'is a vocab.txt, .* alone is not sufficient: save_pretrained'),
        (b'[PAD]\r\n[unused0]\r\nthe\r\n', 'is a vocab.txt, .* alone is not sufficient: save_pretrained'),
        (b'["the",\n"of"', 'truncated or damaged'),
        (b'[1\n', 'truncated or damaged'),
        (b'the\nof\nand\n', 'is not a SentencePiece model.*vocab.txt'),
        (b'', 'is not a SentencePiece model: it has no pieces'),
        (b'\x00\x01\x02', 'is not a SentencePiece model'),
    ],
)
def test_other_files_are_named(content, message, tmp_path):
    with pytest.raises(ConfigError, match=f'(?s)tokenizer.json .*{message}'):
        in_file(content, tmp_path / 'tokenizer.json')


def test_a_missing_pre_tokenizer_is_named_where_words_are_needed(tmp_path):
    with pytest.raises(ConfigError, match='has no pre_tokenizer.*BertPreTokenizer'):
        in_file(without(published()['WordPiece'], 'pre_tokenizer'), tmp_path / 'tokenizer.json')


def test_odd_values_are_refused():
    wordpiece, unigram, bpe = (published()[kind] for kind in ('WordPiece', 'Unigram', 'Metaspace BPE'))
    model, tokens = json.loads(wordpiece)['model'], json.loads(wordpiece)['added_tokens']
    for content, message in [
        (changed(wordpiece, model=model | {'unk_token': '[GONE]'}), r"no piece '\[GONE\]'"),
        (changed(wordpiece, model=model | {'unk_token': '[CLS]'}), r'unknown characters as \[CLS\]'),
        (changed(unigram, model=json.loads(unigram)['model'] | {'unk_id': 1}), 'unknown characters as <pad>'),
        (
            changed(unigram, model=json.loads(unigram)['model'] | {'unk_id': 10**6}),
            'is not a Hugging Face tokenizer.json',
        ),
        (changed(wordpiece, model=model | {'vocab': {name: 0 for name in model['vocab']}}), 'one id for several'),
        (changed(wordpiece, model=model | {'vocab': model['vocab'] | {'x': 4_000_000_000}}), 'ids up to 4,000,000,000'),
        (changed(wordpiece, model=model | {'vocab': {name: i for i, name in enumerate(BERT)}}), 'no pieces for text'),
        (changed(wordpiece, added_tokens='none'), 'is not a Hugging Face tokenizer.json'),
        (changed(wordpiece, added_tokens=[added('[CLS]', id='2')]), 'is not a Hugging Face tokenizer.json'),
        (changed(wordpiece, added_tokens=[{'content': '[CLS]'}]), 'is not a Hugging Face tokenizer.json'),
        (changed(wordpiece, pre_tokenizer={'type': 'Unheard'}), 'is not a Hugging Face tokenizer.json'),
        (changed(bpe, model=json.loads(bpe)['model'] | {'continuing_subword_prefix': 'xxxxx'}), 'merges'),
        (changed(bpe, model=json.loads(bpe)['model'] | {'vocab': [1]}), 'is not a Hugging Face tokenizer.json'),
    ]:
        with pytest.raises(ConfigError, match=message):
            JSONTokenizer(content)
    assert JSONTokenizer(changed(wordpiece, added_tokens=tokens + tokens)).vocabulary.size == len(model['vocab'])
    with pytest.raises(ConfigError, match='cannot encode a text: .*unk_id'):
        JSONTokenizer(changed(unigram, model=json.loads(unigram)['model'] | {'unk_id': None})).encode('Ж')


# ---- Damage ----------------------------------------------------------------------------------------------------------


@st.composite
def damaged(draw, content: bytes) -> bytes:
    """Cut off, with bits flipped, or with a run of bytes replaced."""
    place = draw(st.integers(0, len(content) - 1))
    kind = draw(st.sampled_from(['cut', 'flip', 'flips', 'run', 'random']))
    if kind == 'cut':
        return content[:place]
    if kind == 'random':
        return draw(st.binary(max_size=200))
    if kind == 'run':
        return content[:place] + draw(st.binary(min_size=1, max_size=8)) + content[place + 8 :]
    result = bytearray(content)
    for position in [place] if kind == 'flip' else draw(st.lists(st.integers(0, len(content) - 1), max_size=20)):
        result[position] ^= 1 << draw(st.integers(0, 7))
    return bytes(result)


@st.composite
def with_another_value(draw, content: bytes) -> bytes:
    """JSON in which a value is another one, or gone."""
    stored = json.loads(content)
    node = stored
    while True:
        keys = sorted(node) if isinstance(node, dict) else list(range(len(node)))
        key = draw(st.sampled_from(keys))
        if isinstance(node[key], dict | list) and node[key] and draw(st.integers(0, 3)):
            node = node[key]
            continue
        values = [None, True, -1, 0, 3, 10**12, 1e308, '', 'x', [], {}, '<s>', '[CLS]', [1], '▁', 'ByteLevel']
        node[key] = draw(st.sampled_from(values))
        if isinstance(node, dict) and draw(st.booleans()):
            del node[key]
        return json.dumps(stored).encode()


def check(read, content: bytes) -> None:
    """Refused, or of use: ids within the vocabulary, no symbols from text, and the same once more."""
    try:
        ours = read(content)
        v = ours.vocabulary
        symbols = {v.pad_id, v.cls_id, v.sep_id, v.mask_id}
        for text in ('the model reads <s> words\nnaïve ☃ [MASK]', '日本', ''):
            ids = ours.encode(text)
            assert not len(ids) or 0 <= ids.min() <= ids.max() < v.size
            assert not symbols & set(ids.tolist())
            assert isinstance(ours.decode(ids), str)
            if hasattr(ours, 'encode_offsets'):
                assert len(ours.encode_offsets(text)[1]) == len(ids)
        assert len(masking_tables.of_words(ours, v.size)[1]) == v.size
        assert all(isinstance(piece, str) for piece in ours.pieces(range(v.size)))
        again = read(ours.model)
        assert again.vocabulary == v and np.array_equal(again.encode(LINES[0]), ours.encode(LINES[0]))
    except ConfigError as error:
        assert str(error)


@pytest.mark.parametrize('kind', ['WordPiece', 'byte-level', 'Unigram', 'Metaspace BPE'])
def test_damaged_json_is_refused_or_read(kind):
    content = published()[kind]

    @FUZZ
    @given(damaged(content) | with_another_value(content))
    def read(damage):
        check(JSONTokenizer, damage)
        looks_like_json(damage)

    read()


@functools.cache
def sentencepiece_model(kind: str) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=model, model_type=kind, vocab_size=330, byte_fallback=True,
        hard_vocab_limit=False, pad_id=0, unk_id=1, bos_id=2, eos_id=3, pad_piece='[PAD]', unk_piece='[UNK]',
        bos_piece='[CLS]', eos_piece='[SEP]', control_symbols=['[MASK]'], minloglevel=2, num_threads=1,
        normalization_rule_name='identity',
    )  # fmt: skip
    return model.getvalue()


@pytest.mark.parametrize('kind', ['unigram', 'bpe'])
def test_damaged_sentencepiece_models_are_refused_or_read(kind):
    @FUZZ
    @given(damaged(sentencepiece_model(kind)))
    def read(damage):
        check(Tokenizer, damage)

    read()


def test_damaged_vocabularies_of_smiles_are_refused_or_read():
    content = smiles.train(['CCO', 'c1ccccc1', 'C[C@H](N)C(=O)O'], 40).model

    @FUZZ
    @given(damaged(content) | with_another_value(content))
    def read(damage):
        check(smiles.SmilesTokenizer, damage)
        smiles.is_model(damage)

    read()


def test_any_bytes_are_refused_in_words(tmp_path):
    path, outcomes = tmp_path / 'file', collections.Counter()

    @FUZZ
    @given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
    def read(content):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match='file'):
            Tokenizer.from_file(path)
        outcomes['refused'] += 1

    read()
    assert outcomes['refused'] >= 100
