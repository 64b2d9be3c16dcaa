"""Tokenizers of Hugging Face give the ids that their own package gives, and never a special one."""

import json
import pathlib
import sys

import numpy as np
import pytest

from mlm_jax import config as config_lib
from mlm_jax import prepare
from mlm_jax.config import ConfigError
from mlm_jax.data import masking_tables
from mlm_jax.data.shards import Shards
from mlm_jax.data.tokenizer_json import JSONTokenizer
from mlm_jax.data.tokenizers import Tokenizer
from mlm_jax.pretrained.model import tokens_with_masks

hub = pytest.importorskip('tokenizers')
TEXTS = [f'the model reads {word} words, and learns what each of them means.' for word in ('many', 'few', 'long')] * 20
BERT = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
ROBERTA = ['<s>', '<pad>', '</s>', '<unk>']


def train_wordpiece():
    tokenizer = hub.Tokenizer(hub.models.WordPiece(unk_token='[UNK]'))
    tokenizer.normalizer = hub.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = hub.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = hub.decoders.WordPiece()
    trainer = hub.trainers.WordPieceTrainer(vocab_size=90, special_tokens=BERT, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = hub.processors.BertProcessing(('[SEP]', 3), ('[CLS]', 2))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding()
    return tokenizer


def train_byte_level():
    """RoBERTa's, with <mask> behind the ordinary ids."""
    tokenizer = hub.Tokenizer(hub.models.BPE())
    tokenizer.pre_tokenizer = hub.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = hub.decoders.ByteLevel()
    alphabet = hub.pre_tokenizers.ByteLevel.alphabet()
    trainer = hub.trainers.BpeTrainer(
        vocab_size=300, special_tokens=ROBERTA, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens([hub.AddedToken('<mask>', lstrip=True)])
    return tokenizer


@pytest.fixture(scope='module')
def wordpiece(tmp_path_factory):
    return saved(train_wordpiece(), tmp_path_factory.mktemp('wordpiece') / 'tokenizer.json')


@pytest.fixture(scope='module')
def byte_level(tmp_path_factory):
    return saved(train_byte_level(), tmp_path_factory.mktemp('byte_level') / 'tokenizer.json')


def saved(tokenizer, path):
    """(path, a tokenizer of the package that neither cuts nor pads, ours)."""
    tokenizer.save(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return path, tokenizer, Tokenizer.from_file(path)


def test_special_ids_are_found_by_name(wordpiece, byte_level):
    v = wordpiece[2].vocabulary
    assert (v.size, v.pad_id, v.cls_id, v.sep_id, v.mask_id) == (wordpiece[1].get_vocab_size(), 0, 2, 3, 4)
    assert wordpiece[2].unknown_id == 1 and byte_level[2].unknown_id is None
    assert v.special_ids == (0, 1, 2, 3, 4)
    v = byte_level[2].vocabulary
    last = byte_level[1].get_vocab_size() - 1
    assert (v.size, v.cls_id, v.pad_id, v.sep_id, v.mask_id) == (last + 1, 0, 1, 2, last)
    assert v.special_ids == (0, 1, 2, 3, last)


@pytest.mark.parametrize(
    ('processor', 'separators'),
    [
        (hub.processors.BertProcessing(('</s>', 2), ('<s>', 0)), 1),
        (hub.processors.RobertaProcessing(('</s>', 2), ('<s>', 0)), 2),
        (hub.processors.TemplateProcessing('<s> $A', '<s> $A $B', [('<s>', 0)]), 2),
        (None, 2),
    ],
)
def test_a_file_tells_how_pairs_are_separated(byte_level, processor, separators):
    """Where it does not, they are separated as in the models that are trained here."""
    other = hub.Tokenizer.from_str(byte_level[1].to_str())
    if processor:
        other.post_processor = processor
    tokenizer = JSONTokenizer(other.to_str().encode())
    assert tokenizer.separators == separators and tokenizer.vocabulary.sep_id == 2


def test_ids_are_those_of_the_package(wordpiece, byte_level):
    texts = [*TEXTS[:3], 'Reading MODELS,  learn-ed\n\nmeans', 'Ünïcödé ☃ 漢字', '']
    for _, theirs, ours in (wordpiece, byte_level):
        batch = ours.encode_batch([text.encode() for text in texts])
        for text, ids in zip(texts, batch, strict=True):
            assert ids.dtype == np.int32 and ids.ndim == 1
            assert ids.tolist() == theirs.encode(text, add_special_tokens=False).ids == ours.encode(text).tolist()
    assert byte_level[2].decode(byte_level[2].encode(texts[3])) == texts[3]
    assert wordpiece[2].decode([2, *wordpiece[2].encode('the model'), 3, 0]) == 'the model'


def test_special_symbols_in_text_are_text(wordpiece, byte_level):
    for _, _, ours in (wordpiece, byte_level):
        unknown = ours.vocabulary.special_ids[1 if ours is wordpiece[2] else 3]  # may come from text
        for symbol in (*BERT, *ROBERTA, '<mask>'):
            for text in (symbol, f'a {symbol} b', f'a{symbol}'):
                assert not set(ours.encode(text).tolist()) & set(ours.vocabulary.special_ids) - {unknown}, text


def test_pieces_show_the_space_before_a_word(wordpiece, byte_level):
    ours = wordpiece[2]
    assert ours.pieces(ours.encode('the models')) == ['▁the', '▁model', 's']
    assert ours.id_to_piece(ours.vocabulary.mask_id) == '[MASK]'
    ours = byte_level[2]
    assert ours.pieces(ours.encode('the model é')) == ['the', '▁model', '▁', 'Ã', '©']
    for _, theirs, ours in (wordpiece, byte_level):
        starts = masking_tables.word_starts(ours)
        assert starts.any() and not starts[list(ours.vocabulary.special_ids)].any()
        for piece, token in theirs.get_vocab().items():
            if token not in ours.vocabulary.special_ids:
                assert starts[token] == (piece.startswith('Ġ') if ours is byte_level[2] else piece[:2] != '##'), piece


def test_a_mask_takes_the_place_of_a_word_and_its_space(wordpiece, byte_level):
    for _, theirs, ours in (wordpiece, byte_level):
        v = ours.vocabulary
        ids = tokens_with_masks(ours, 'the [MASK] reads[MASK].').tolist()
        named = 'the <mask> reads<mask>.'.replace('<mask>', theirs.id_to_token(v.mask_id))
        assert ids == [v.cls_id, *theirs.encode(named, add_special_tokens=False).ids, v.sep_id]


def test_what_cannot_be_used_is_refused(wordpiece, tmp_path):
    path = tmp_path / 'tokenizer.json'
    path.write_text('{"model": {}}')
    with pytest.raises(ConfigError, match='is not a Hugging Face tokenizer.json'):
        Tokenizer.from_file(path)
    stored = json.loads(wordpiece[0].read_text())
    stored['added_tokens'].pop()
    del stored['model']['vocab']['[MASK]']
    path.write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match=r'no symbol for mask \(\[MASK\] or <mask> or '):
        Tokenizer.from_file(path)
    vocab = {name: i for i, name in enumerate([*BERT, 'a'])}
    words = {'type': 'WordLevel', 'vocab': vocab | {'b': 2}, 'unk_token': '[UNK]'}
    path.write_text(json.dumps({'version': '1.0', 'model': words, 'pre_tokenizer': {'type': 'WhitespaceSplit'}}))
    with pytest.raises(ConfigError, match='several pieces have the id 2 of a special token'):
        Tokenizer.from_file(path)


def test_prepare_takes_more_ids_than_pieces(wordpiece, tmp_path):
    """As an embedding that is padded to a multiple of 64 has them: the ids without a piece are special."""
    (tmp_path / 'text.txt').write_text('\n\n'.join(TEXTS))
    config, size = config_lib.default_config(), wordpiece[2].vocabulary.size
    overrides = {
        'tokenizer.model': str(wordpiece[0]), 'sequence_length': '32', 'data.directory': str(tmp_path / 'rows'),
        'data.corpus': f'text:{tmp_path}/text.txt', 'data.validation_percent': '40', 'masking.unit': 'word',
        'vocab_size': str(size + 38),
    }  # fmt: skip
    config_lib.apply_overrides(config, overrides)
    manifest = prepare.run(config, num_workers=1)
    assert manifest.vocabulary == wordpiece[2].vocabulary.padded(size + 38)
    assert manifest.vocabulary.num_ordinary == wordpiece[2].vocabulary.num_ordinary
    assert manifest.vocabulary.special_ids[-38:] == tuple(range(size, size + 38))
    loaded = masking_tables.load(config.masking, [(pathlib.Path(config.data.directory), manifest)], [1.0])
    assert len(loaded.word_starts) == len(loaded.word_marks) == size + 38
    config.update(vocab_size=size + 1025)
    config.data.directory = str(tmp_path / 'more')
    with pytest.raises(ConfigError, match=f'set vocab_size={size}, or up to {size + 1024} if'):
        prepare.run(config, num_workers=1)
    config.update(vocab_size=size - 1)
    with pytest.raises(ConfigError, match=f'set vocab_size={size}'):
        prepare.run(config, num_workers=1)


def test_without_the_extra_the_error_says_how_to_install_it(wordpiece, monkeypatch):
    monkeypatch.setitem(sys.modules, 'tokenizers', None)
    with pytest.raises(ImportError, match=r"pip install 'mlm_jax\[huggingface\]'"):
        Tokenizer.from_file(wordpiece[0])


def test_prepare_encodes_with_it(wordpiece, tmp_path):
    (tmp_path / 'text.txt').write_text('\n\n'.join(TEXTS))
    config = config_lib.default_config()
    overrides = {
        'tokenizer.model': str(wordpiece[0]), 'sequence_length': '32', 'data.directory': str(tmp_path / 'rows'),
        'data.corpus': f'text:{tmp_path}/text.txt', 'data.validation_percent': '40', 'masking.unit': 'word',
    }  # fmt: skip
    config_lib.apply_overrides(config, overrides)
    with pytest.raises(ConfigError, match=r'set vocab_size=\d+'):
        prepare.run(config, num_workers=1)
    config.vocab_size = wordpiece[2].vocabulary.size
    manifest = prepare.run(config, num_workers=1)
    stored = tmp_path / 'rows' / manifest.tokenizer
    assert stored.read_bytes() == wordpiece[0].read_bytes()
    assert manifest.versions['tokenizers'] and manifest.vocabulary == wordpiece[2].vocabulary
    text = Tokenizer.from_file(stored).decode(Shards(tmp_path / 'rows', 'train').read(np.arange(1))[0])
    assert {f'{sentence}.' for sentence in text.rstrip('.').split('. ')} <= set(TEXTS)
    assert masking_tables.load(
        config.masking, [(pathlib.Path(config.data.directory), manifest)], [1.0]
    ).word_starts.any()
