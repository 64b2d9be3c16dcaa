"""Tokenizers: fixed special ids, nothing special from text, the same bytes every time, clear errors."""

import dataclasses
import io
import types

import numpy as np
import pytest
import sentencepiece

from mlm_jax import config as config_lib
from mlm_jax.config import ConfigError
from mlm_jax.data import tokenizers
from mlm_jax.masking.vocabulary import standard_vocabulary

WORDS = [
    'the',
    'a',
    'model',
    'reads',
    'many',
    'words',
    'and',
    'learns',
    'what',
    'each',
    'of',
    'them',
    'means',
    'when',
    'it',
    'stands',
    'near',
    'others',
]


def sentences(count=400):
    rng = np.random.default_rng(0)
    return [' '.join(rng.choice(WORDS, 12)) + f' {i}.' for i in range(count)]


def settings(vocab_size=330, **keys):
    """The last arguments of `tokenizers.train`."""
    config = config_lib.default_config()
    config.tokenizer.update(keys)
    return config.tokenizer, vocab_size


def foreign_model(**keys):
    """A SentencePiece model trained without our settings."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences()),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
        **keys,
    )
    return model.getvalue()


@pytest.fixture(scope='module')
def tokenizer():
    return tokenizers.train(sentences(), *settings())


def test_special_ids_are_fixed(tokenizer):
    assert tokenizer.vocabulary == standard_vocabulary(330)
    assert tokenizer.pieces([0, 1, 2, 3, 4]) == ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']


@pytest.mark.parametrize('model', tokenizers.SENTENCEPIECE)
def test_training_is_deterministic_and_text_survives(model):
    first, second = (tokenizers.train(iter(sentences()), *settings(model=model)) for _ in range(2))
    assert first.model == second.model
    text = 'the model learns words, Ünïcödé ☃ and 漢字 too'
    ids = first.encode(text)
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert first.decode(ids) == text  # bytes stand in for unseen characters
    assert not set(ids.tolist()) & set(first.vocabulary.special_ids)


def test_without_byte_fallback_unseen_characters_are_unknown():
    tokenizer = tokenizers.train(sentences(), *settings(vocab_size=60, byte_fallback=False))
    assert tokenizer.unknown_id == 1 and 1 in tokenizer.encode('漢字')


def test_special_symbols_in_text_are_text(tokenizer):
    user_defined = tokenizers.Tokenizer(
        foreign_model(pad_id=3, user_defined_symbols=['[MASK]', '[CLS]', '[SEP]'], byte_fallback=False)
    )
    for each in (tokenizer, user_defined):
        special = set(each.vocabulary.special_ids) - {1 if each is tokenizer else 0}  # [UNK] may come from text
        for text in ('[MASK]', 'a [MASK] b', '[CLS]', '[SEP]', '[PAD]', '<s>', '</s>', '<pad>', '[UNK]'):
            assert not special & set(each.encode(text).tolist()), text
            assert not special & set(each.encode_batch([text])[0].tolist())


def test_a_given_model_keeps_its_ids(tmp_path):
    path = tmp_path / 'given.model'
    path.write_bytes(foreign_model(pad_id=3, control_symbols=['<mask>']))
    tokenizer = tokenizers.Tokenizer.from_file(path)
    v = tokenizer.vocabulary
    assert (v.cls_id, v.sep_id, v.pad_id) == (1, 2, 3)
    assert tokenizer.id_to_piece(v.mask_id) == '<mask>'
    assert tokenizer.pieces([v.size, v.size + 1023]) == ['', ''], 'ids that only pad the vocabulary'
    assert tokenizer.unknown_id == 0 and 0 in v.special_ids  # <unk>


def test_a_given_model_that_lacks_symbols_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r'no symbol for pad .*, mask .*--pad_id=0 .*--control_symbols=\[MASK\]') as e:
        tokenizers.Tokenizer(foreign_model())
    assert 'a model of transformers, use the tokenizer.json that save_pretrained of its fast tokenizer' in str(e.value)
    (tmp_path / 'text').write_text('this is no model')
    with pytest.raises(ConfigError, match=r'is not a SentencePiece model'):
        tokenizers.Tokenizer.from_file(tmp_path / 'text')
    with pytest.raises(ConfigError, match=r'cannot read the tokenizer .*unigram, bpe or smiles'):
        tokenizers.Tokenizer.from_file(tmp_path / 'nothing')
    with pytest.raises(ConfigError, match=r'Is a directory.*, such as .*/tokenizer.json$'):
        tokenizers.Tokenizer.from_file(tmp_path)


@pytest.mark.parametrize('name', ['google-bert/bert-base-uncased', 'bert-base-uncased', 'intfloat/e5-v1.5', 'a/b@v2'])
def test_a_model_of_the_hub_in_place_of_its_file_is_told_with_the_file(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f'^hf:{name} is the name of a model .*: write hf:{name}/tokenizer.json$'):
        tokenizers.Tokenizer.from_file(f'hf:{name}')
    with pytest.raises(ConfigError, match=f'cannot read the tokenizer {name}: .*write hf:{name}/tokenizer.json$'):
        tokenizers.Tokenizer.from_file(name)


def test_the_size_must_be_the_configured_one(tokenizer):
    with pytest.raises(ConfigError, match=r'vocab_size=8192, but given.model has 330 pieces; set vocab_size=330'):
        tokenizers.check_size(tokenizer, config_lib.default_config().vocab_size, 'given.model')


@pytest.mark.parametrize('model', tokenizers.SENTENCEPIECE)
def test_too_little_text_names_the_largest_size_that_works(model):
    with pytest.raises(ConfigError, match=r'too small for vocab_size=5000: the largest possible value is \d+') as error:
        tokenizers.train(sentences(), *settings(vocab_size=5000, model=model))
    largest = int(str(error.value).split('possible value is ')[1].split('.')[0])
    assert tokenizers.train(sentences(), *settings(vocab_size=largest, model=model)).vocabulary.size == largest


def test_a_vocabulary_smaller_than_the_alphabet_is_refused():
    with pytest.raises(
        ConfigError, match=r'vocab_size=100 is too small: the characters and bytes of the text alone need'
    ):
        tokenizers.train(sentences(), *settings(vocab_size=100))


def test_only_the_first_megabytes_are_read():
    read = []

    def texts():
        for i in range(10_000):
            read.append(i)
            yield 'the model reads many words and learns ' * 100 + str(i)

    tokenizers.train(texts(), *settings(training_megabytes=1, vocab_size=285))
    assert 200 < len(read) < 300


def test_lines_with_the_character_that_sentencepiece_reserves_take_part_in_training():
    texts = [f'\u2585 zqzq {text}' for text in sentences()]
    tokenizer = tokenizers.train(texts, *settings())
    assert any('zq' in piece for piece in tokenizer.pieces(range(tokenizer.vocabulary.size)))
    assert tokenizer.decode(tokenizer.encode(texts[0])) == texts[0]


def test_long_lines_take_part_in_training():
    assert next(tokenizers._sentences(['ab ' * 1000])) == ('ab ' * 333).rstrip()
    assert ''.join(tokenizers._sentences(['x' * 2500])) == 'x' * 2500


def test_identity_keeps_spaces_and_characters():
    tokenizer = tokenizers.train(sentences(), *settings(normalization='identity'))
    assert tokenizer.decode(tokenizer.encode('a  ﬁne\tday ')) == 'a  ﬁne\tday '


def new_text(count=300):
    rng = np.random.default_rng(1)
    chemistry = ['benzene', 'reacts', 'toluene', 'quickly', 'with', 'oxygen', 'yielding', 'ketones']
    return [' '.join(rng.choice(chemistry, 12)) + '.' for _ in range(count)]


@pytest.mark.parametrize('kind', tokenizers.SENTENCEPIECE)
def test_an_extended_tokenizer_keeps_its_ids_and_learns_new_words(kind):
    old = tokenizers.train(sentences(), *settings(model=kind))
    more = settings(340, model='extend:of no matter here')
    new = tokenizers.extend(old, new_text(), *more)
    assert new.vocabulary.size == 340 and tokenizers.extends(new, old) and not tokenizers.extends(old, new)
    assert new.vocabulary.special_ids == old.vocabulary.special_ids
    text = new_text(1)[0]
    assert new.decode(new.encode(text)) == text
    assert len(new.encode(text)) < 0.85 * len(old.encode(text)), 'new words take fewer pieces'
    assert max(new.encode(text)) >= 330
    again = tokenizers.extend(old, new_text(), *more)
    assert again.model == new.model


def test_what_cannot_be_extended_is_named(tokenizer):
    size = tokenizer.vocabulary.size
    with pytest.raises(ConfigError, match='already has .* pieces; set a larger vocab_size'):
        tokenizers.extend(tokenizer, new_text(), *settings(size))
    with pytest.raises(ConfigError, match=r'set vocab_size=\d+|the largest possible value is'):
        tokenizers.extend(tokenizer, new_text(), *settings(size + 60))
    last = types.SimpleNamespace(vocabulary=standard_vocabulary(400))
    last.vocabulary = dataclasses.replace(last.vocabulary, mask_id=399, special_ids=(0, 1, 2, 3, 399))
    assert not tokenizers.extends(last, tokenizer), 'special ids beyond the old ones'
    other = tokenizers.train(new_text(), *settings(290))
    assert not tokenizers.extends(other, tokenizer) and tokenizers.extends(tokenizer, tokenizer)
