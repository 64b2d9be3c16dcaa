"""SentencePiece's table of character replacements, as normalizers of the package tokenizers that do exactly the same.

SentencePiece replaces, from left to right, the longest string that its table knows, such as a letter and the accents
after it. The normalizer `Precompiled` of the package reads the same table, but differently: it looks up whole grapheme
clusters of at most five bytes, takes the shortest entry with which the cluster starts, and drops the rest of the
cluster; longer clusters are replaced character by character. So ế, written as e and two accents, becomes ê, and
Hangul written as single letters stays so. Here text is cut first, such that `Precompiled` sees single characters only;
the composition of the strings that the table knows is left to NFC, which cannot reach across a cut.
"""

import base64
import functools
import unicodedata
from collections.abc import Iterable

import numpy as np

from mlm_jax.data.tokenizer_parts import character_class, replace
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
_LONGEST, _LARGEST = 128, 1 << 21  # the bytes of what is replaced, and the nodes of one depth of the trie
_NODES = 4096  # of the trie, looked at together


def rules(charsmap: bytes) -> dict[str, str]:
    """The replacements of a `precompiled_charsmap`: what is replaced → by what.

    The table is a double-array trie (Darts-clone) of UTF-8 whose values are positions in a list of strings.

    Raises:
      ConfigError: if the table is damaged.
    """
    try:
        return _walk(charsmap)
    except (ValueError, IndexError, KeyError) as error:
        raise ConfigError(f'the normalization of the SentencePiece model is damaged: {error}') from error


@functools.lru_cache(maxsize=4)
def normalizers(charsmap: bytes) -> tuple[dict, ...]:
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
    follows = f'[{_CONTINUES}{character_class({source[1] for source in strings})}]'
    unit = rf'(?>{_alternatives(strings)}|[\s\S])' if strings else r'[\s\S]'
    steps = [replace(rf'(?=[\s\S]{follows}){unit}\K', _BETWEEN)]
    if removed := [source for source, target in table.items() if not target]:
        steps.append(replace(f'[{character_class(removed)}]', ''))  # `Precompiled` fails where one starts a text
    if not strings:
        return (*steps, precompiled, replace(_BETWEEN, ''))
    # Never at the start of a text, which `Precompiled` cannot bear.
    inside = replace(rf'(?<=[^{_BETWEEN}])(?={follows})', _INSIDE)
    return (*steps, inside, precompiled, replace(_INSIDE, ''), {'type': 'NFC'}, replace(_BETWEEN, ''))


def _walk(charsmap: bytes) -> dict[str, str]:
    size = int.from_bytes(charsmap[:4], 'little')
    if not 4 <= size <= len(charsmap) - 4:
        raise ValueError('it is cut off')
    units, strings = np.frombuffer(charsmap[4 : 4 + size], '<u4'), charsmap[4 + size :]
    targets = _by_position(strings)
    found: dict[str, str] = {}
    steps: list[tuple[np.ndarray, np.ndarray]] = []  # for each depth of the trie, the parent and the byte of its nodes
    at_N = _offset(units[:1])
    while len(at_N):
        if len(at_N) > _LARGEST or len(steps) > _LONGEST:
            raise ValueError('its trie has circles')
        parents_N, bytes_N, nodes_N = _children(units, at_N)
        steps.append((parents_N, bytes_N))
        at_N = nodes_N ^ _offset(units[nodes_N])
        ends_M = np.flatnonzero(units[nodes_N] >> 8 & 1)
        sources = _sources(steps, ends_M)
        found |= zip(sources, [targets[position] for position in (units[at_N[ends_M]] & _VALUE).tolist()])
    return found


def _by_position(strings: bytes) -> dict[int, str]:
    """Strings that end in NUL, by their positions."""
    found, position = {}, 0
    for string in strings.split(b'\0'):
        found[position] = string.decode()
        position += len(string) + 1
    return found


def _children(units: np.ndarray, at_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The nodes below nodes of one depth: their parents' index, their bytes, and where they are in the trie."""
    labels, parts = np.arange(1, 256), []
    for start in range(0, len(at_N), _NODES):
        places_Nx255 = at_N[start : start + _NODES, None] ^ labels
        places_Nx255[places_Nx255 >= len(units)] = 0
        is_child_Nx255 = (units[places_Nx255] & 0x800000FF) == labels
        parents, columns = np.nonzero(is_child_Nx255)
        parts.append((parents + start, columns + 1, places_Nx255[is_child_Nx255]))
    parents_N, bytes_N, nodes_N = (np.concatenate(part) for part in zip(*parts))
    return parents_N, bytes_N, nodes_N


def _sources(steps: list[tuple[np.ndarray, np.ndarray]], nodes_M: np.ndarray) -> list[str]:
    """The strings that lead to nodes of the last depth."""
    depth = len(steps)
    bytes_MxL = np.empty((len(nodes_M), depth), np.uint8)
    for column in reversed(range(depth)):
        parents_N, bytes_N = steps[column]
        bytes_MxL[:, column], nodes_M = bytes_N[nodes_M], parents_N[nodes_M]
    joined = bytes_MxL.tobytes()
    return [joined[i : i + depth].decode() for i in range(0, len(joined), depth)]


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
    branches = [f'[{character_class(characters)}]{rest}' for rest, characters in by_rest.items()]
    if not branches:
        return ''
    return f'(?:{"|".join(branches)}){"?" * ("" in tree)}'
