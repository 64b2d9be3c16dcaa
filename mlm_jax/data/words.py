"""Where words start, told by what the pieces of a tokenizer stand for in text.

`masking.tables` defines the marks. White space separates words, wherever a tokenizer puts it: before a piece (▁the),
behind it (the▁), in it, or into a piece of its own, as line breaks often are. Scripts without spaces between words have
no such sign: there a piece that holds one of their letters starts a word, as every Chinese character does for BERT.
"""

import re
import unicodedata
from collections.abc import Iterable

import numpy as np

from mlm_jax.masking.tables import NEXT_CONTINUES, NEXT_STARTS, STARTS

# The letters between which Unicode's UAX #14 lets lines break, or leaves that to a dictionary: classes ID, CJ and SA.
_RANGES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x0FFF),  # Tibetan, which marks syllables
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19FF),  # Tai Le, New Tai Lue, signs of Khmer
    (0x1A20, 0x1AAF),  # Tai Tham
    (0x2E80, 0x2FDF),  # radicals
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
    (0xFF66, 0xFF9F),  # Katakana of half width
    (0x1B000, 0x1B16F),
    (0x20000, 0x323AF),
)
_CANDIDATE = re.compile('[' + ''.join(f'{chr(first)}-{chr(last)}' for first, last in _RANGES) + ']')
# Of the last character of bytes in UTF-8: all that is there where it is cut off.
_CUT_OFF = re.compile(rb'(?:[\xc2-\xdf]|[\xe0-\xef][\x80-\xbf]?|[\xf0-\xf4][\x80-\xbf]{0,2})$')


def marks(pieces: Iterable[bytes]) -> np.ndarray:
    """What pieces say of words, as `masking.tables` has it.

    Args:
      pieces: what each stands for in text: UTF-8, though not whole characters perhaps; b'' says nothing.

    Returns:
      uint8[N].
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
    """Whether one is there that can start a word: no vowel sign, no sign of length or repetition."""
    return any(unicodedata.category(c) in ('Lo', 'Nl') for c in _CANDIDATE.findall(text))


def _begins_spaceless(piece: bytes) -> bool:
    """Whether a character is cut off at the end, and at least half of those that it may be are such letters."""
    found = _CUT_OFF.search(piece)
    if not found:
        return False
    start = found[0]
    missing = (2 if start[0] < 0xE0 else 3 if start[0] < 0xF0 else 4) - len(start)
    first, last = (_code_point(start + bytes([filling]) * missing) for filling in (0x80, 0xBF))
    covered = sum(max(0, min(last, b) - max(first, a) + 1) for a, b in _RANGES)
    return 2 * covered >= last - first + 1


def _code_point(character: bytes) -> int:
    """Of UTF-8 that need not be a valid character."""
    value = character[0] & (0x7F >> len(character))
    for byte in character[1:]:
        value = value << 6 | byte & 0x3F
    return value
