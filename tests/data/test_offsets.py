"""Offsets: whatever a tokenizer makes of a text, its tokens lie on whole characters of it, and on all of them."""

import io

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from mlm_jax import config as config_lib
from mlm_jax.data import tokenizers

SENTENCES = [f'the model reads many words and learns what each of them means, {i} times. ﬁne' for i in range(300)]
# What normalisation joins, takes apart, drops or turns into a space; what the pieces do not know; ▁ itself.
STRANGE = 'ﬁ½㍿ﷺ…ｶﾞé\u0301가각漢😀👩🏽\u200d\u200b\u3000\ufeff\x00\x01\t\n ¨▁�Å'
TEXTS = st.text(st.one_of(st.sampled_from('the model,.  '), st.sampled_from(STRANGE), st.characters(codec='utf-8')))


def train(**keys):
    config = config_lib.default_config()
    config.vocab_size = keys.pop('vocab_size', 325)
    config.tokenizer.update(keys)
    return tokenizers.train(SENTENCES, config.tokenizer, config.vocab_size)


def foreign(**keys):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=model, vocab_size=80, hard_vocab_limit=False, minloglevel=2,
        pad_id=3, control_symbols=['[MASK]'], **keys,
    )  # fmt: skip
    return tokenizers.Tokenizer(model.getvalue())


def hub_tokenizer(kind):
    hub = pytest.importorskip('tokenizers')
    symbols = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
    if kind == 'wordpiece':
        made = hub.Tokenizer(hub.models.WordPiece(unk_token='[UNK]'))
        made.normalizer, made.pre_tokenizer = hub.normalizers.BertNormalizer(), hub.pre_tokenizers.BertPreTokenizer()
        trainer = hub.trainers.WordPieceTrainer(vocab_size=120, special_tokens=symbols, show_progress=False)
    elif kind == 'bytes':
        made = hub.Tokenizer(hub.models.BPE())
        made.pre_tokenizer = hub.pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = hub.pre_tokenizers.ByteLevel.alphabet()
        trainer = hub.trainers.BpeTrainer(
            vocab_size=320, special_tokens=symbols, initial_alphabet=alphabet, show_progress=False
        )
    else:
        made = hub.Tokenizer(hub.models.Unigram())
        made.normalizer = hub.normalizers.NFKC()
        made.pre_tokenizer = hub.pre_tokenizers.Sequence(
            [hub.pre_tokenizers.Metaspace(), hub.pre_tokenizers.Punctuation()]
        )
        trainer = hub.trainers.UnigramTrainer(
            vocab_size=120, special_tokens=symbols, unk_token='[UNK]', show_progress=False
        )
    made.train_from_iterator(SENTENCES, trainer)
    return tokenizers.JSONTokenizer(made.to_str().encode())


MAKERS = {
    'unigram': train,
    'bpe': lambda: train(model='bpe'),
    'unknown': lambda: train(vocab_size=60, byte_fallback=False),
    'identity': lambda: train(normalization='identity'),
    'suffix': lambda: foreign(treat_whitespace_as_suffix=True),
    'user-defined': lambda: foreign(user_defined_symbols=['model', 'e😀']),
    'phrases': lambda: foreign(split_by_whitespace=False),
    'hub wordpiece': lambda: hub_tokenizer('wordpiece'),
    'hub bytes': lambda: hub_tokenizer('bytes'),
    'hub unigram': lambda: hub_tokenizer('unigram'),
}


@pytest.fixture(scope='module', params=MAKERS)
def tokenizer(request):
    return MAKERS[request.param]()


def covered(starts, ends, length):
    """bool[length]: which characters belong to a token."""
    change = np.zeros(length + 1, int)
    np.add.at(change, starts, 1)
    np.add.at(change, ends, -1)
    return change[:-1].cumsum() > 0


@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_tokens_lie_on_the_characters_of_a_text(tokenizer, text):
    ids, starts, ends = tokenizer.encode_offsets(text)
    assert ids.tolist() == tokenizer.encode(text).tolist()
    assert ids.dtype == starts.dtype == ends.dtype == np.int32 and ids.shape == starts.shape == ends.shape
    assert (np.diff(starts) >= 0).all() and (np.diff(ends) >= 0).all()
    assert (starts >= 0).all() and (starts <= ends).all() and (ends <= len(text)).all()
    for start, end in zip(starts, ends):
        assert text[start:end] == text[start:end].strip()
    is_covered = covered(starts, ends, len(text))
    for i, character in enumerate(text):
        # Some characters mean nothing by themselves to a tokenizer, or a space.
        if not character.isspace() and character != '▁' and stands_for_something(tokenizer, character):
            assert is_covered[i], (character, i)


def stands_for_something(tokenizer, character):
    alone, between = (''.join(tokenizer.pieces(tokenizer.encode(c))) for c in (character, f'a{character}a'))
    return alone.strip('▁') and between.strip('▁') not in ('aa', 'a▁a')


@pytest.mark.parametrize('tokenizer', [name for name in MAKERS if name != 'phrases'], indirect=True)
@settings(max_examples=50, deadline=None)
@given(words=st.lists(st.sampled_from(['the', 'model', 'ﬁne', '½', '😀', 'reads,', 'é', '漢字']), min_size=1))
def test_the_tokens_of_a_word_are_the_word(tokenizer, words):
    text = '  '.join(words)
    ids, starts, ends = tokenizer.encode_offsets(text)
    for piece, start, end in zip(tokenizer.pieces(ids), starts, ends):
        assert start < end or piece == '▁'
        # To the space that it puts before a text, the other package gives the first character.
        assert start == end or piece != '▁' or isinstance(tokenizer, tokenizers.JSONTokenizer)
    at = 0
    for word in words:
        inside = (starts < at + len(word)) & (ends > at)
        first, last = inside.argmax(), len(inside) - 1 - inside[::-1].argmax()
        assert text[starts[first] : ends[last]] == word
        at += len(word) + 2


def test_what_is_taken_apart_is_covered_by_each_part(tokenizer):
    for text in ('😀', '㍿', 'ﷺ', '½'):
        ids, starts, ends = tokenizer.encode_offsets(text)
        full = ends > starts
        assert full.any() and (starts[full] == 0).all() and (ends[full] == 1).all()
        assert (np.diff(ends) >= 0).all()
        assert full[-1] or tokenizer.pieces(ids)[-1] == '▁'  # a space behind the word
