"""SentencePiece models as a `tokenizer.json`, with the same ids for every text.

Three things differ by their nature. The name of a special token in a text, such as [MASK], becomes that token, as users
of `transformers` expect. The noncharacters U+FDD0 and U+FDD1 are lost. And SentencePiece adds up the scores of unigram
pieces in float32, the package tokenizers in float64, so of two divisions of a text with almost the same score, the
other one may win: with the rounded scores of tokenizers that are trained here (`tokenizers.train`), not within 8,000
tokens.
"""

import collections
import re
from typing import Any

import numpy as np

from mlm_jax.data import charsmap, sentencepiece_proto
from mlm_jax.data.tokenizer_parts import added_token, replace, split
from mlm_jax.files.errors import ConfigError

_SPACE = '▁'  # how SentencePiece writes a space
# What patterns of normalizers begin with: the one that drops the space with which a text begins, and the one that then
# puts a space in front of the text.
_FIRST_SPACE, _START = r'\A |', r'\A(?!'


def convert(model: bytes, mask_id: int) -> dict:
    """The `tokenizer.json` of a serialized `ModelProto`, without a post-processor.

    Raises:
      ConfigError: if no tokenizer.json gives the same ids.
    """
    proto = sentencepiece_proto.ModelProto.FromString(model)
    kind = sentencepiece_proto.KINDS.get(proto.trainer_spec.model_type)
    if kind not in ('unigram', 'bpe'):
        raise _impossible(f'it is a model of kind {kind}; only unigram and bpe can be written')
    if proto.trainer_spec.treat_whitespace_as_suffix or not proto.normalizer_spec.escape_whitespaces:
        raise _impossible('it does not write the space before a word as ▁')
    names = {
        i: piece.piece
        for i, piece in enumerate(proto.pieces)
        if piece.type in (sentencepiece_proto.CONTROL, sentencepiece_proto.UNKNOWN)
    }
    may_split = not any(_SPACE in piece.piece[1:] for piece in proto.pieces) and _has(proto, _SPACE)
    metaspace = {'type': 'Metaspace', 'replacement': _SPACE, 'prepend_scheme': 'never', 'split': may_split}
    pre_tokenizers = [metaspace]
    if kind == 'unigram' and (cut := _cut_in_bytes(proto)):
        pre_tokenizers.append(split(cut, 'MergedWithPrevious'))
    return {
        'version': '1.0',
        'truncation': None,
        'padding': None,
        'added_tokens': [added_token(i, name, lstrip=i == mask_id, normalized=True) for i, name in names.items()],
        'normalizer': {'type': 'Sequence', 'normalizers': _normalizers(proto, list(names.values()))},
        'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': pre_tokenizers},
        'post_processor': None,
        'decoder': _decoder(proto),
        'model': (_unigram if kind == 'unigram' else _bpe)(proto),
    }


def unigram_scores(model: bytes) -> dict[int, float]:
    """The scores of the pieces of a unigram model; none for other models."""
    proto = sentencepiece_proto.ModelProto.FromString(model)
    if sentencepiece_proto.KINDS.get(proto.trainer_spec.model_type) != 'unigram':
        return {}
    return {i: piece.score for i, piece in enumerate(proto.pieces) if piece.type == sentencepiece_proto.NORMAL}


def within_text(stored: dict) -> dict | None:
    """A tokenizer.json that treats a text as what follows a special token, without a space in front of it.

    Args:
      stored: a tokenizer.json, of `convert` or from elsewhere.

    Returns:
      `stored` with other normalizers and pre-tokenizers; None where it puts no space in front of a text, or puts one
      behind special tokens, too.
    """
    normalizers, pre_tokenizers = (
        _steps(stored.get(part), f'{part.replace("_", "")}s') for part in ('normalizer', 'pre_tokenizer')
    )
    within = []
    for step in normalizers:
        pattern = str((step.get('pattern') or {}).get('Regex', ''))
        if pattern.startswith(_FIRST_SPACE):
            within.append(replace(pattern.removeprefix(_FIRST_SPACE), ''))
        elif not pattern.startswith(_START) or step.get('content') != ' ':
            within.append(step)
    pieces = [
        step | {'prepend_scheme': 'never'} if step.get('prepend_scheme') == 'first' else step for step in pre_tokenizers
    ]
    if len(within) == len(normalizers) and pieces == pre_tokenizers:
        return None
    return stored | {
        'normalizer': {'type': 'Sequence', 'normalizers': within},
        'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': pieces},
    }


def _steps(component: dict | None, name: str) -> list[dict]:
    """A normalizer or pre-tokenizer as a list, which is `name` in a sequence of them."""
    return component.get(name, [component]) if component else []


def _impossible(reason: str) -> ConfigError:
    return ConfigError(
        f'this SentencePiece model cannot be written as a tokenizer.json with the same ids: {reason}. Use it with the '
        'package sentencepiece'
    )


def _has(proto: Any, name: str) -> bool:
    return any(piece.piece == name and piece.type == sentencepiece_proto.NORMAL for piece in proto.pieces)


def _normalizers(proto: Any, names: list[str]) -> list[dict]:
    """What SentencePiece does to a text, in this order; the names of special tokens alone get no space in front."""
    spec = proto.normalizer_spec
    steps: list[dict] = []
    if spec.precompiled_charsmap:
        steps += charsmap.normalizers(spec.precompiled_charsmap)
    if spec.remove_extra_whitespaces:
        blank = f'[ {_SPACE}]'
        steps += [replace(' {2,}', ' '), replace(rf'{_FIRST_SPACE}(?<!{blank})(?>{blank}+)\z', '')]  # in linear time
    if spec.add_dummy_prefix:
        alone = '|'.join(map(re.escape, names))
        steps.append(replace(rf'{_START}(?:{alone})\z)(?=[\s\S])', ' '))
    return steps


def _decoder(proto: Any) -> dict:
    parts: list[dict] = [{'type': 'Replace', 'pattern': {'String': _SPACE}, 'content': ' '}]
    if proto.trainer_spec.byte_fallback:
        parts.append({'type': 'ByteFallback'})
    parts.append({'type': 'Fuse'})
    if proto.normalizer_spec.add_dummy_prefix:
        parts.append({'type': 'Strip', 'content': ' ', 'start': 1, 'stop': 0})
    return {'type': 'Sequence', 'decoders': parts}


def _unigram(proto: Any) -> dict:
    normal = [np.float32(piece.score) for piece in proto.pieces if piece.type == sentencepiece_proto.NORMAL]
    lowest, highest = min(normal), max(normal)
    vocab: list[list] = []
    for i, piece in enumerate(proto.pieces):
        name, score = piece.piece, highest  # the lowest score decides that of unknown characters
        if piece.type == sentencepiece_proto.NORMAL:
            score = np.float32(piece.score)
        elif piece.type == sentencepiece_proto.USER_DEFINED:
            score = np.float32(len(name.encode()) * highest - 0.1)  # as SentencePiece prefers them
            if score < lowest:
                raise _impossible(f'the score of the user-defined symbol {name!r} would change that of unknown text')
        elif piece.type == sentencepiece_proto.UNUSED:
            name = f'{name} [unused{i}]'  # no text has a space where pieces are looked up
        vocab.append([name, float(score)])
    return {
        'type': 'Unigram', 'unk_id': _unknown(proto), 'vocab': vocab,
        'byte_fallback': bool(proto.trainer_spec.byte_fallback),
    }  # fmt: skip


def _cut_in_bytes(proto: Any) -> str:
    """A pattern that keeps text such as <0x41> from becoming the piece of a byte; '' if there is no need."""
    if not any(piece.type == sentencepiece_proto.BYTE for piece in proto.pieces):
        return ''
    others = [piece.piece for piece in proto.pieces if piece.type != sentencepiece_proto.BYTE]
    for before, after in (('<', '0x'), ('<0', 'x')):
        crossing = before[-1] + after[0]
        if not any(crossing in piece for piece in others):
            return rf'{before}(?={after}[0-9A-F]{{2}}>)'
    raise _impossible('its pieces can write the names of bytes, such as <0x41>')


def _bpe(proto: Any) -> dict:
    for piece in proto.pieces:
        if piece.type in (sentencepiece_proto.USER_DEFINED, sentencepiece_proto.UNUSED):
            raise _impossible(f'{piece.piece!r} is user-defined or unused, for which merges have no equal')
    vocab = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == sentencepiece_proto.NORMAL}
    for name in scores:
        if missing := [c for c in name if c not in scores]:
            raise _impossible(f'it has the piece {name!r}, but no piece for its character {missing[0]!r}')
    merges = []
    for name in sorted(scores, key=lambda name: (-scores[name], vocab[name])):
        pairs = [(name[:i], name[i:]) for i in range(1, len(name))]
        merges += sorted((vocab[a], vocab[b], a, b) for a, b in pairs if a in scores and b in scores)
    unknown = proto.pieces[_unknown(proto)].piece
    return {
        'type': 'BPE', 'dropout': None, 'unk_token': unknown, 'continuing_subword_prefix': None,
        'end_of_word_suffix': None, 'fuse_unk': True, 'byte_fallback': bool(proto.trainer_spec.byte_fallback),
        'ignore_merges': False, 'vocab': vocab, 'merges': [[a, b] for _, _, a, b in merges],
    }  # fmt: skip


def _unknown(proto: Any) -> int:
    kinds = collections.Counter(piece.type for piece in proto.pieces)
    if kinds[sentencepiece_proto.UNKNOWN] != 1:
        raise _impossible('it has no unknown piece')
    return next(i for i, piece in enumerate(proto.pieces) if piece.type == sentencepiece_proto.UNKNOWN)
