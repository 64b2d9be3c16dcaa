"""Where in a text its tokens lie, though a tokenizer normalises text and may take a character apart.

A token covers every character of which it holds a part, and nothing of the white space around them. So the text from
the start of one token to the end of another is what stands there, and no character is cut: the bytes of an emoji cover
it each, and so do the f and the i that NFKC makes of ﬁ. Tokens without a character, such as a space by itself, are
empty: start and end are the start of what follows.
"""

import numpy as np

WORD_MARK = '▁'  # SentencePiece's space


def in_characters(
    normalized: str, position_of_C1: np.ndarray, sizes_N: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Offsets of tokens, given by their sizes in the normalised text.

    Args:
      normalized: C characters, of which the tokens are a division; ▁ or a space where white space was, or where
        SentencePiece puts a word's start of its own.
      position_of_C1: int[C + 1], where each normalised character comes from: the start of the characters that became
        it and perhaps others; ascending. The last is the end of them all.
      sizes_N: int[N], bytes of each token in UTF-8.
      length: characters of the original text.

    Returns:
      starts and ends in the original text: int64[N] each, both ascending.
    """
    size, end_N = len(normalized), np.cumsum(sizes_N)
    utf8 = np.frombuffer(normalized.encode(), np.uint8)
    if int(sizes_N.sum()) != len(utf8):
        raise ValueError(f'the tokens hold {int(sizes_N.sum())} bytes, but the normalised text {len(utf8)}')
    character_of = np.cumsum((utf8 & 0xC0) != 0x80) - 1  # of each byte
    first_N, last_N = character_of[end_N - sizes_N], character_of[end_N - 1]
    is_solid = np.array([c not in (WORD_MARK, ' ') for c in normalized])
    first_N, last_N = _next_true(is_solid)[first_N], _last_true(is_solid)[last_N]
    # Characters that came of the same ones end where the next others start.
    following = np.searchsorted(position_of_C1, position_of_C1, side='right')
    ends_C1 = np.append(position_of_C1, length)[following]
    starts_N = position_of_C1[first_N]
    ends_N = np.where((first_N <= last_N) & (first_N < size), ends_C1[last_N], starts_N)
    return starts_N, np.maximum.accumulate(ends_N)


def trim(text: str, starts_N: np.ndarray, ends_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Leaves out white space at both ends of each token; what is nothing else becomes empty. int32[N] each."""
    is_solid = ~np.fromiter(map(str.isspace, text), bool, len(text))
    starts_N = _next_true(is_solid)[starts_N]
    ends_N = np.maximum(np.append(-1, _last_true(is_solid))[ends_N] + 1, starts_N)
    return starts_N.astype(np.int32), ends_N.astype(np.int32)


def _next_true(values_C: np.ndarray) -> np.ndarray:
    """int64[C + 1]: the first index not before this one that is true; C if there is none."""
    size = len(values_C)
    index_C = np.where(values_C, np.arange(size), size)
    return np.append(np.minimum.accumulate(index_C[::-1])[::-1], size)


def _last_true(values_C: np.ndarray) -> np.ndarray:
    """int64[C]: the last index not behind this one that is true; -1 if there is none."""
    return np.maximum.accumulate(np.where(values_C, np.arange(len(values_C)), -1))
