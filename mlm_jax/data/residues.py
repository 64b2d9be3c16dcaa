"""The vocabulary of a protein model, a `vocab.txt` as ESM-2 has it, as a `tokenizer.json`.

The file has a token a line: the letters of amino acids, and special tokens in angle brackets. Every letter of a
sequence is a token; anything between white space and letters that is none is one unknown token.
"""

import json
import re

from mlm_jax.data.tokenizer_parts import added_token, around_texts, character_class, split

_SPECIAL = re.compile('<[^<>]+>')
_NAMES = {'cls': '<cls>', 'sep': '<eos>', 'unknown': '<unk>'}
_AMINO_ACIDS = frozenset('ACDEFGHIKLMNPQRSTVWY')


def is_vocabulary(content: bytes) -> bool:
    """Whether a file is such a vocabulary: all amino acids, and otherwise only single characters and special tokens."""
    tokens = set(_tokens(content))
    are_short = all(len(token) == 1 or _SPECIAL.fullmatch(token) for token in tokens)
    return are_short and tokens >= _AMINO_ACIDS | {'<pad>', '<mask>', *_NAMES.values()}


def to_json(content: bytes) -> bytes:
    """The vocabulary as a `tokenizer.json`, which puts sequences between <cls> and <eos>."""
    tokens = _tokens(content)
    ids = {token: i for i, token in enumerate(tokens)}
    cls, sep = ((_NAMES[symbol], ids[_NAMES[symbol]]) for symbol in ('cls', 'sep'))
    letter = split(f'[{character_class(token for token in tokens if len(token) == 1)}]', 'Isolated')
    stored = {
        'version': '1.0',
        'truncation': None,
        'padding': None,
        'added_tokens': [added_token(i, token) for token, i in ids.items() if len(token) > 1],
        'normalizer': None,
        'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': [{'type': 'WhitespaceSplit'}, letter]},
        'post_processor': around_texts(cls, sep),
        'decoder': {'type': 'Fuse'},
        'model': {'type': 'WordLevel', 'vocab': ids, 'unk_token': _NAMES['unknown']},
    }
    return json.dumps(stored, ensure_ascii=False, indent=1).encode()


def _tokens(content: bytes) -> list[str]:
    return content.decode(errors='replace').split()
