"""Finds where words start, from the text of the pieces of a tokenizer.

`masking.tables` defines the marks. Whitespace separates words, wherever a tokenizer puts it: before a piece (▁the),
after it (the▁), inside it, or in a piece of its own, as is common for line breaks. Scripts without spaces between words
have no such separator: a piece that contains a letter of such a script starts a word, as every Chinese character does
for BERT.
"""

import re
import unicodedata
from collections.abc import Iterable

import numpy as np

from mlm_jax.masking.tables import NEXT_CONTINUES, NEXT_STARTS, STARTS

# Letters between which UAX #14 of Unicode allows a line break or leaves it to a dictionary: classes ID, CJ and SA.
_RANGES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x0FFF),  # Tibetan, which separates syllables
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19FF),  # Tai Le, New Tai Lue, Khmer symbols
    (0x1A20, 0x1AAF),  # Tai Tham
    (0x2E80, 0x2FDF),  # CJK radicals
    (0x3005, 0x3007),
    (0x3021, 0x3029),
    (0x3040, 0x312F),  # Hiragana, Katakana, Bopomofo
    (0x31A0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xA000, 0xA4CF),  # Yi
    (0xA9E0, 0xA9FF),
    (0xAA60, 0xAADF),  # Myanmar, Tai Viet
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),  # halfwidth Katakana
    (0x1B000, 0x1B16F),
    (0x20000, 0x323AF),
)
_CANDIDATE = re.compile('[' + ''.join(f'{chr(first)}-{chr(last)}' for first, last in _RANGES) + ']')
# Matches an incomplete character at the end of bytes in UTF-8.
_CUT_OFF = re.compile(rb'(?:[\xc2-\xdf]|[\xe0-\xef][\x80-\xbf]?|[\xf0-\xf4][\x80-\xbf]{0,2})$')


def marks(pieces: Iterable[bytes]) -> np.ndarray:
    """The word marks of pieces, as `masking.tables` defines them.

    Args:
      pieces: the text of each piece in UTF-8, which may begin or end within a character; b'' has no marks.

    Returns:
      uint8[N], a mark for each piece.
    """
    return np.array([_mark(piece) for piece in pieces], np.uint8)


def _mark(piece: bytes) -> int:
    text = piece.decode('utf-8', 'surrogateescape')
    if not text:
        return 0
    if text.isspace():
        return STARTS | NEXT_CONTINUES
    starts = any(map(str.isspace, text.rstrip())) or _has_spaceless_letter(text) or _begins_spaceless(piece)
    return STARTS * starts | NEXT_STARTS * text[-1].isspace()


def _has_spaceless_letter(text: str) -> bool:
    """Whether `text` has such a letter that can start a word, unlike vowel signs and marks of length or repetition."""
    return any(unicodedata.category(c) in ('Lo', 'Nl') for c in _CANDIDATE.findall(text))


def _begins_spaceless(piece: bytes) -> bool:
    """Whether the piece ends within a character, and at least half of its possible completions are such letters."""
    found = _CUT_OFF.search(piece)
    if not found:
        return False
    start = found[0]
    missing = (2 if start[0] < 0xE0 else 3 if start[0] < 0xF0 else 4) - len(start)
    first, last = (_code_point(start + bytes([filling]) * missing) for filling in (0x80, 0xBF))
    covered = sum(max(0, min(last, b) - max(first, a) + 1) for a, b in _RANGES)
    return 2 * covered >= last - first + 1


def _code_point(character: bytes) -> int:
    """The code point that bytes in UTF-8 encode, even if there is no such character."""
    value = character[0] & (0x7F >> len(character))
    for byte in character[1:]:
        value = value << 6 | byte & 0x3F
    return value
