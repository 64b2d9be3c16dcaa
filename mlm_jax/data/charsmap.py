"""SentencePiece's table of character replacements, as normalizers of the package tokenizers that do exactly the same.

SentencePiece replaces, from left to right, the longest string that its table knows, such as a letter and the accents
after it. The normalizer `Precompiled` of the package reads the same table, but differently: it looks up whole grapheme
clusters of at most five bytes, takes the shortest entry with which the cluster starts, and drops the rest of the
cluster; longer clusters are replaced character by character. So ế, written as e and two accents, becomes ê, and
Hangul written as single letters stays so. Here text is cut first, such that `Precompiled` sees single characters only;
the composition of the strings that the table knows is left to NFC, which cannot reach across a cut.
"""

import base64
import unicodedata
from collections.abc import Iterable

import numpy as np

from mlm_jax.files.errors import ConfigError

# Noncharacters, which Unicode reserves for use within a program, so no text contains them.
_BETWEEN, _INSIDE = '\ufdd0', '\ufdd1'  # a cut between two strings to replace, and one inside such a string
# What may continue a grapheme cluster: marks, joiners, modifiers and tags of emoji, a line feed; and what NFC may join
# to the character before it, which apart from marks are vowels and finals of Hangul.
_CONTINUES = (
    r'\p{M}\p{Cn}\n\x{200c}\x{200d}\x{e33}\x{eb3}\x{ff9e}\x{ff9f}\x{1f3fb}-\x{1f3ff}\x{e0020}-\x{e007f}'
    r'\x{1161}-\x{1175}\x{11a8}-\x{11c2}'
)
_VALUE = 0x7FFFFFFF


def rules(charsmap: bytes) -> dict[str, str]:
    """The replacements of a `precompiled_charsmap`: what is replaced → by what.

    The table is a double-array trie (Darts-clone) of UTF-8 whose values are positions in a list of strings.

    Raises:
      ConfigError: if the table is damaged.
    """
    try:
        return _walk(charsmap)
    except (ValueError, IndexError) as error:
        raise ConfigError(f'the normalization of the SentencePiece model is damaged: {error}') from error


def normalizers(charsmap: bytes) -> list[dict]:
    """Normalizers of the package tokenizers, as JSON, that replace what a `precompiled_charsmap` replaces.

    Raises:
      ConfigError: if the table is damaged, or replaces a string by something other than its composition.
    """
    table = rules(charsmap)
    strings = sorted(source for source in table if len(source) > 1)
    for source in strings:
        composed = unicodedata.normalize('NFC', ''.join(table.get(c, c) for c in source))
        # What is newer than the Unicode of this Python cannot be compared.
        if composed != table[source] and all(unicodedata.category(c) != 'Cn' for c in source):
            raise ConfigError(
                f'the SentencePiece model replaces {source!r} by {table[source]!r}, which no tokenizer.json can express'
            )
    precompiled = {'type': 'Precompiled', 'precompiled_charsmap': base64.b64encode(charsmap).decode()}
    follows = f'[{_CONTINUES}{_class({source[1] for source in strings})}]'
    unit = rf'(?>{_alternatives(strings)}|[\s\S])' if strings else r'[\s\S]'
    steps = [replace(rf'(?=[\s\S]{follows}){unit}\K', _BETWEEN)]
    if removed := [source for source, target in table.items() if not target]:
        steps.append(replace(f'[{_class(removed)}]', ''))  # `Precompiled` fails where one starts a text
    if not strings:
        return [*steps, precompiled, replace(_BETWEEN, '')]
    inside = replace(
        rf'(?<=[^{_BETWEEN}])(?={follows})', _INSIDE
    )  # never at the start, which `Precompiled` cannot bear
    return [*steps, inside, precompiled, replace(_INSIDE, ''), {'type': 'NFC'}, replace(_BETWEEN, '')]


def replace(pattern: str, content: str) -> dict:
    """A normalizer that replaces the matches of a regular expression."""
    return {'type': 'Replace', 'pattern': {'Regex': pattern}, 'content': content}


def _walk(charsmap: bytes) -> dict[str, str]:
    size = int.from_bytes(charsmap[:4], 'little')
    units, strings = np.frombuffer(charsmap[4 : 4 + size], '<u4'), charsmap[4 + size :]
    found: dict[str, str] = {}
    keys, at_N = [b''], _offset(units[:1])
    while keys:  # all nodes of one depth at a time
        labels = np.arange(1, 256)
        children_Nx255 = at_N[:, None] ^ labels
        children_Nx255[children_Nx255 >= len(units)] = 0
        is_child_Nx255 = (units[children_Nx255] & 0x800000FF) == labels
        parents, columns = np.nonzero(is_child_Nx255)
        keys = [keys[parent] + bytes([column + 1]) for parent, column in zip(parents.tolist(), columns.tolist())]
        nodes_N = children_Nx255[is_child_Nx255]
        at_N = nodes_N ^ _offset(units[nodes_N])
        for i in np.flatnonzero(units[nodes_N] >> 8 & 1).tolist():
            start = int(units[at_N[i]]) & _VALUE
            found[keys[i].decode()] = strings[start : strings.index(b'\0', start)].decode()
    return found


def _offset(units_N: np.ndarray) -> np.ndarray:
    units_N = units_N.astype(np.int64)
    return (units_N >> 10) << ((units_N & 0x200) >> 6)


def _alternatives(strings: Iterable[str]) -> str:
    """A regular expression that matches the longest of some strings."""
    tree: dict = {}
    for string in strings:
        node = tree
        for character in string:
            node = node.setdefault(character, {})
        node[''] = {}  # a string ends here
    return _expression(tree)


def _expression(tree: dict) -> str:
    by_rest: dict[str, list[str]] = {}
    for character, below in tree.items():
        if character:
            by_rest.setdefault(_expression(below), []).append(character)
    branches = [f'[{_class(characters)}]{rest}' for rest, characters in by_rest.items()]
    if not branches:
        return ''
    return f'(?:{"|".join(branches)}){"?" * ("" in tree)}'


def _class(characters: Iterable[str]) -> str:
    """The inside of a character class, with ranges."""
    ranges: list[list[int]] = []
    for point in sorted(map(ord, characters)):
        if ranges and point == ranges[-1][1] + 1:
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    return ''.join(rf'\x{{{first:x}}}' + (rf'-\x{{{last:x}}}' if last > first else '') for first, last in ranges)
