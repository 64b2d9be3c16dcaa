"""Text that no one expects: every kind of white space, marks, signs, scripts, noncharacters, and names of symbols."""

import numpy as np
from hypothesis import strategies as st

BERT = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
ROBERTA = ['<s>', '<pad>', '</s>', '<unk>', '<mask>']
TEXT = 'the model reads many words and learns what each of them means naïve straße 日本 語 ไทย ☃ don’t 3.14'
WORDS = TEXT.split()
LINES = [' '.join(np.random.default_rng(i).choice(WORDS, 12)) for i in range(60)]
ODD = [
    *'aZ0 .,;!?\t\n\r\v\f\x00\x1f\x7f\x85\xa0\u1680\u2028\u2029\u202f\u3000\u200b\u200d\ufeff\ufffd\uffff▁Ġ#</[]',
    *(
        '\U0010ffff',
        'é',
        'e\u0301',
        '\u0301',
        'ﬁ',
        '①',
        'Ａ',
        'İ',
        'ß',
        'Σς',
        '한국',
        'ひら',
        'ไทย',
        '漢字',
        '𠀀',
        '😀',
    ),
    *('👩\u200d👧', 'ar\u200fع'),
    *WORDS,
]
# What is composed with the characters before it, or must not be.
_JOINING = [
    *'\u0300\u0301\u0302\u0307\u0308\u030a\u0323\u0327\u0328\u0338\u0345\u05b4\u064b\u0651\u093c\u0e33\u3099\u309a',
    *'한가ﾞ\ufe0f\u20e3\u200c\u200d🏽\U000e0041',
]
_JOINED = [*'aeEoOuÅêﬁⅧ①ＡﾊカはΑωשعक가ㅎ<=½\r\n\x01\xad', '<0x41>', '##']


def odd_lines(count: int, names: tuple[str, ...] = (*BERT, *ROBERTA)) -> list[str]:
    """Lines of odd parts; every fourth one may contain names of special tokens."""
    rng = np.random.default_rng(0)
    return [''.join(rng.choice(ODD if i % 4 else [*ODD, *names], rng.integers(1, 25))) for i in range(count)]


def texts() -> st.SearchStrategy[str]:
    """Any text without surrogates, and more often one with marks and letters that are composed."""
    parts = st.sampled_from(_JOINING) | st.sampled_from(_JOINED) | st.sampled_from(ODD)
    return st.lists(parts | st.characters(exclude_categories=('Cs',)), max_size=20).map(''.join)
