"""Finds the positions of tokens in a text, although a tokenizer normalizes text and may split a character.

A token covers every character of which it holds a part, but not the whitespace around them. So the text from the start
of one token to the end of another never contains a partial character: each byte token of an emoji covers the whole
emoji, and the f and the i into which NFKC decomposes ﬁ each cover the ﬁ. A token without characters, such as a single
space, is empty: its start and its end are the start of the following token.
"""

import numpy as np

WORD_MARK = '▁'  # how SentencePiece writes a space


def in_characters(
    normalized: str, position_of_C1: np.ndarray, sizes_N: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Offsets of tokens in the original text, from their sizes in the normalized text.

    Args:
      normalized: the normalized text of C characters, which the tokens divide. It has ▁ or a space in place of
        whitespace, and where SentencePiece inserts the start of a word.
      position_of_C1: int[C + 1], ascending: the position in the original text of the first character from which each
        normalized character was made. The last value is the end of the text.
      sizes_N: int[N], the size of each token in bytes of UTF-8.
      length: the number of characters of the original text.

    Returns:
      The starts and ends in the original text: int64[N] each, both ascending.

    Raises:
      ValueError: if the sizes do not add up to the size of the normalized text.
    """
    size, end_N = len(normalized), np.cumsum(sizes_N)
    utf8 = np.frombuffer(normalized.encode(), np.uint8)
    if int(sizes_N.sum()) != len(utf8):
        raise ValueError(f'the tokens hold {int(sizes_N.sum())} bytes, but the normalized text has {len(utf8)}')
    character_of = np.cumsum((utf8 & 0xC0) != 0x80) - 1  # the character index of each byte
    first_N, last_N = character_of[end_N - sizes_N], character_of[end_N - 1]
    is_solid = np.array([c not in (WORD_MARK, ' ') for c in normalized])
    first_N, last_N = _next_true(is_solid)[first_N], _last_true(is_solid)[last_N]
    # Normalized characters made from the same original characters all end where the next original characters start.
    following = np.searchsorted(position_of_C1, position_of_C1, side='right')
    ends_C1 = np.append(position_of_C1, length)[following]
    starts_N = position_of_C1[first_N]
    ends_N = np.where((first_N <= last_N) & (first_N < size), ends_C1[last_N], starts_N)
    return starts_N, np.maximum.accumulate(ends_N)


def trim(text: str, starts_N: np.ndarray, ends_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Excludes whitespace at both ends of each token; tokens of whitespace alone become empty. int32[N] each."""
    is_solid = ~np.fromiter(map(str.isspace, text), bool, len(text))
    starts_N = _next_true(is_solid)[starts_N]
    ends_N = np.maximum(np.append(-1, _last_true(is_solid))[ends_N] + 1, starts_N)
    return starts_N.astype(np.int32), ends_N.astype(np.int32)


def _next_true(values_C: np.ndarray) -> np.ndarray:
    """int64[C + 1]: for each index, the first true index at or after it; C if there is none."""
    size = len(values_C)
    index_C = np.where(values_C, np.arange(size), size)
    return np.append(np.minimum.accumulate(index_C[::-1])[::-1], size)


def _last_true(values_C: np.ndarray) -> np.ndarray:
    """int64[C]: for each index, the last true index at or before it; -1 if there is none."""
    return np.maximum.accumulate(np.where(values_C, np.arange(len(values_C)), -1))
