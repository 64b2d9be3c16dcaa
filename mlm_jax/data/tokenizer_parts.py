"""Parts of a `tokenizer.json` that is written here."""

from collections.abc import Iterable


def added_token(token: int, name: str, lstrip: bool = False, normalized: bool = False) -> dict:
    """A special token.

    Args:
      token: its id.
      name: how it is written in a text.
      lstrip: whether it takes the white space before it.
      normalized: whether it is looked for in the normalized text, which is normalized as a whole, or before.
    """
    return {
        'id': token, 'content': name, 'single_word': False, 'lstrip': lstrip, 'rstrip': False,
        'normalized': normalized, 'special': True,
    }  # fmt: skip


def around_texts(cls: tuple[str, int], sep: tuple[str, int]) -> dict:
    """The post-processor that puts special tokens (name, id) around one text or two, as `sequences.join` does."""
    start, end = ({'SpecialToken': {'id': name, 'type_id': 0}} for name, _ in (cls, sep))
    first, second = ({'Sequence': {'id': text, 'type_id': 0}} for text in ('A', 'B'))
    return {
        'type': 'TemplateProcessing',
        'single': [start, first, end],
        'pair': [start, first, end, end, second, end],
        'special_tokens': {name: {'id': name, 'ids': [token], 'tokens': [name]} for name, token in (cls, sep)},
    }


def replace(pattern: str, content: str) -> dict:
    """A normalizer that replaces the matches of a regular expression (Oniguruma's syntax)."""
    return {'type': 'Replace', 'pattern': {'Regex': pattern}, 'content': content}


def split(pattern: str, behavior: str) -> dict:
    """A pre-tokenizer that splits at the matches of a regular expression (Oniguruma's syntax)."""
    return {'type': 'Split', 'pattern': {'Regex': pattern}, 'behavior': behavior, 'invert': False}


def character_class(characters: Iterable[str]) -> str:
    """The inside of the brackets of a character class, with ranges."""
    ranges: list[list[int]] = []
    for point in sorted(map(ord, characters)):
        if ranges and point == ranges[-1][1] + 1:
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    return ''.join(rf'\x{{{first:x}}}' + rf'-\x{{{last:x}}}' * (last > first) for first, last in ranges)
