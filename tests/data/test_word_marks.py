"""Where words start: behind white space wherever a tokenizer puts it, and in scripts that have none."""

import numpy as np
import pytest

from mlm_jax import config as config_lib
from mlm_jax.data import masking_tables, tokenizers
from mlm_jax.data import word_marks as words
from mlm_jax.masking import units
from mlm_jax.masking.tables import NEXT_CONTINUES, NEXT_STARTS, STARTS, Tables, find_word_starts

hub = pytest.importorskip('tokenizers')
SPECIALS = ['<s>', '<pad>', '</s>', '<unk>', '<mask>']
PARAGRAPHS = [
    'The operators "is" and "is not" test for an object’s identity: "x is y" is true if and only if *x* and *y* are '
    'the same object.',
    'If a class that overrides "__eq__()" needs to retain the implementation of "__hash__()" from a parent class, the '
    'interpreter must be told this explicitly.',
    'For user-defined classes which do not define "__contains__()" but do define "__iter__()", x is in y if some value '
    'is found.',
] * 4


def wrapped(text: str, width: int = 40, end: str = '\n') -> str:
    """The same words on lines of at most `width` characters."""
    lines = ['']
    for word in text.split(' '):
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append('')
        lines[-1] += ' ' * bool(lines[-1]) + word
    return end.join(lines)


def of_package(model, pre_tokenizer, trainer, path):
    tokenizer = hub.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.train_from_iterator(PARAGRAPHS, trainer(special_tokens=SPECIALS, show_progress=False))
    tokenizer.save(str(path))
    return tokenizers.Tokenizer.from_file(path)


def train(kind: str, path):
    if kind in ('identity', 'nmt_nfkc'):
        config = config_lib.default_config()
        config.vocab_size = 340
        config.tokenizer.normalization = kind
        return tokenizers.train(iter(PARAGRAPHS), config.tokenizer, config.vocab_size)
    if kind == 'byte-level':
        bytes_ = hub.pre_tokenizers.ByteLevel

        def trainer(**keys):
            return hub.trainers.BpeTrainer(vocab_size=400, initial_alphabet=bytes_.alphabet(), **keys)

        return of_package(hub.models.BPE(), bytes_(add_prefix_space=False), trainer, path)

    def metaspace(**keys):
        return hub.trainers.UnigramTrainer(
            vocab_size=120, unk_token='<unk>', initial_alphabet=['\n', '\r', '\t'], **keys
        )

    return of_package(hub.models.Unigram(), hub.pre_tokenizers.Metaspace(), metaspace, path)


def count_words(tokenizer, text: str) -> int:
    """Units of `masking.unit=word` in a text by itself."""
    ids = tokenizer.encode(text)
    ordinary = ~np.isin(ids, tokenizer.vocabulary.special_ids)
    starts = find_word_starts(ids, *masking_tables.of_words(tokenizer, tokenizer.vocabulary.size))
    return int(np.sum(ordinary & (starts | ~np.append(False, ordinary[:-1]))))


def test_the_unit_is_these_words(tmp_path):
    tokenizer = train('byte-level', tmp_path / 'tokenizer.json')
    ids = tokenizer.encode(wrapped(PARAGRAPHS[0]))[None]
    starts, marks = masking_tables.of_words(tokenizer, tokenizer.vocabulary.size)
    found = units.word(None, ids, ids >= 5, Tables(word_starts=starts, word_marks=marks))
    assert found.sum() == count_words(tokenizer, PARAGRAPHS[0])


@pytest.mark.parametrize('kind', ['byte-level', 'metaspace', 'identity', 'nmt_nfkc'])
def test_line_breaks_separate_words_as_spaces_do(kind, tmp_path):
    tokenizer = train(kind, tmp_path / 'tokenizer.json')
    for text in PARAGRAPHS[:3]:
        expected = len(text.split())
        assert count_words(tokenizer, text) == expected
        for end in ('\n', '\r\n', '\n    ', '\n\n', '\t'):
            assert count_words(tokenizer, wrapped(text, end=end)) == expected, repr(end)


def test_marks_say_where_white_space_is():
    pieces = {
        b'': 0,
        b'the': 0,
        b' the': STARTS,
        b'\nthe': STARTS,
        b'the ': NEXT_STARTS,
        b' the\n': STARTS | NEXT_STARTS,
        b'of the': STARTS,
        b' ': STARTS | NEXT_CONTINUES,
        b'\n    ': STARTS | NEXT_CONTINUES,
        '\u3000'.encode(): STARTS | NEXT_CONTINUES,
        b'.': 0,
        b'\xa9': 0,
    }
    assert words.marks(pieces).tolist() == list(pieces.values())


def test_letters_of_scripts_without_spaces_start_words():
    for text in ('中', '。中国', 'ひら', 'カタ', 'ｶ', 'ไทย', 'ລາວ', 'ខ្មែរ', 'မြန်', 'བོད', '〇', '𠀀', '年a'):
        assert words.marks([text.encode()]) == [STARTS], text
    # No word starts with a sign of a vowel, of length or of repetition; Hangul and Devanagari have spaces.
    for text in ('ั', 'ー', '々', 'ๆ', '。', '한국', 'नम', 'é', '☃', '😀', '１'):
        assert words.marks([text.encode()]) == [0], text


def test_the_first_bytes_of_a_character_tell_as_far_as_they_can():
    for text in ('中', 'ひ', 'ไ', '𠀀'):
        whole = text.encode()
        assert words.marks([whole[:-1]]) == [STARTS] and words.marks([whole[1:], whole[-1:]]).tolist() == [0, 0]
    assert words.marks(['中'.encode()[:1], b'a' + '中'.encode()[:1], b'\x80' + '中'.encode()]).tolist() == [STARTS] * 3
    assert words.marks(['é'.encode()[:1], '한'.encode()[:1], '😀'.encode()[:3], b'\xff\xfe']).tolist() == [0] * 4


def test_old_tables_have_no_marks():
    starts = np.array([False, True, False])
    tokens = np.array([[1, 2, 2, 1]])
    assert find_word_starts(tokens, starts).tolist() == [[True, False, False, True]]
    assert find_word_starts(tokens, starts, np.array([0, 0, NEXT_STARTS])).tolist() == [[True, False, True, True]]
    assert find_word_starts(tokens, starts, np.array([0, 0, NEXT_CONTINUES])).tolist() == [[True, False, False, False]]


@pytest.mark.parametrize('suffix', ['</w>', '##'])
def test_bpe_that_marks_the_inside_or_the_end_of_words(suffix, tmp_path):
    keys = dict(end_of_word_suffix=suffix) if suffix == '</w>' else dict(continuing_subword_prefix=suffix)
    tokenizer = of_package(
        hub.models.BPE(unk_token='<unk>', **keys),
        hub.pre_tokenizers.WhitespaceSplit(),
        lambda **more: hub.trainers.BpeTrainer(vocab_size=300, **keys, **more),
        tmp_path / 'tokenizer.json',
    )
    for text in PARAGRAPHS[:3]:
        assert count_words(tokenizer, text) == count_words(tokenizer, wrapped(text)) == len(text.split())
