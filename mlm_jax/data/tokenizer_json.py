"""Hugging Face tokenizers from a given `tokenizer.json`; they encode text to ids without special tokens.

As in `tokenizers.py`, text never produces special tokens: a document that contains "[MASK]" or "<s>" is encoded as the
ordinary characters of which that consists. Needs the package tokenizers (extra `huggingface`).
"""

import collections
import contextlib
import functools
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mlm_jax.data import offsets, sentencepiece_json, sequences
from mlm_jax.files.errors import ConfigError
from mlm_jax.masking.vocabulary import SYMBOL_NAMES, Vocabulary

_MAX_GAPS = 1 << 20  # number of ids without a piece; a larger number is due to a damaged id
# For files that hold the names of pieces only, as vocab.txt of BERT does.
VOCABULARY_ALONE = (
    'A vocab.txt or merges.txt alone is not sufficient: save_pretrained of a fast tokenizer of transformers writes the '
    'tokenizer.json that is needed'
)
_NEEDS_WORDS = ('WordPiece', 'WordLevel')  # models that need text already split into words


def looks_like_json(content: bytes) -> bool:
    """Whether a file is JSON, possibly with a byte order mark; SentencePiece models never start like JSON."""
    return decoded(content[:1000])[:1] in ('{', '[', '"')


class JSONTokenizer:
    """A `tokenizer.json` whose special ids are known, with the interface of `tokenizers.Tokenizer`.

    Attributes:
      vocabulary: the special ids: those of the four symbols, of the unknown token, and of all tokens that the file
        declares as special. BERT's [unused…] tokens are not special.
      model: the content of the file, as `from_file` reads it.
      package: the Python package that reads the file.
      unknown_id: the id for text that the pieces cannot express; None if there is no such id.
      separators: how many [SEP] the file puts between the texts of a pair: 1 in BERT's, 2 in RoBERTa's.
    """

    package = 'tokenizers'

    def __init__(self, model: bytes, name: str = 'the tokenizer.json'):
        """Reads the content of a file; error messages call it `name`.

        Raises:
          ConfigError: if it is not a tokenizer.json, is damaged, or lacks a special symbol.
          ImportError: without the extra `huggingface`.
        """
        # One thread, because several processes scale better than several threads.
        os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
        self.model, self._name = model, name
        self._tokenizer, parts = _read(model, name)
        reader = self._tokenizer.model
        kind = type(reader).__name__  # files of versions before 0.9 do not name it
        normalizer, pre_tokenizer = (_described(getattr(self._tokenizer, n)) for n in ('normalizer', 'pre_tokenizer'))
        if kind in _NEEDS_WORDS and not pre_tokenizer:
            raise ConfigError(
                f'{name} has no pre_tokenizer, so its {kind} model would treat every text as one word. Add the '
                'pre_tokenizer with which it was trained; for BERT, "pre_tokenizer": {"type": "BertPreTokenizer"}'
            )
        self.vocabulary = _vocabulary(self._tokenizer, parts['model'], name)
        self.unknown_id = _unknown_id(self._tokenizer, parts['model'])
        self.separators = _separators(self._tokenizer, self.vocabulary, name)
        self._special_ids = frozenset(self.vocabulary.special_ids)
        self._added = {i for i, token in self._tokenizer.get_added_tokens_decoder().items() if not token.special}
        self._continuation = getattr(reader, 'continuing_subword_prefix', None) or ''
        self._word_end = getattr(reader, 'end_of_word_suffix', None) or ''
        joins = (parts.get('decoder') or {}).get('type') == 'Fuse'  # pieces without spaces between them
        self._begins_words = (kind in _NEEDS_WORDS and not joins) or bool(self._continuation)
        self._space = _metaspace(pre_tokenizer) or '▁'
        self._is_byte_level = _has(normalizer, 'ByteLevel') or _has(pre_tokenizer, 'ByteLevel')
        self._has_bytes = parts['model'].get('byte_fallback') is True
        self._encoder = self._tokenizer
        if self._made_from_text(self._special_ids - {self.unknown_id}):
            self._encoder = _without_names(self._tokenizer, parts, self._special_ids)

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, int32[n], without [CLS] or [SEP]."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str | bytes]) -> list[np.ndarray]:
        """The ids of several texts (or their UTF-8), int32[n] each."""
        return self._encode_all(self._encoder, [text.decode() if isinstance(text, bytes) else text for text in texts])

    @functools.cached_property
    def _encoder_within(self) -> Any:
        """Encodes what follows a special token; None where that is as at the start of a text."""
        within = sentencepiece_json.within_text(json.loads(decoded(self.model)))
        return within and _without_names(self._tokenizer, within, self._special_ids)

    def _encode_all(self, encoder: Any, texts: Sequence[str]) -> list[np.ndarray]:
        with _errors_in_words(f'{self._name} cannot encode a text'):
            encodings = encoder.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def encode_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The ids of a text and their starts and ends in it, as in `tokenizers.Tokenizer.encode_offsets`."""
        with _errors_in_words(f'{self._name} cannot encode a text'):
            encoding = self._encoder.encode(text, add_special_tokens=False)
        ids = np.array(encoding.ids, np.int32)
        starts, ends = np.array(encoding.offsets, np.int64).reshape(-1, 2).T
        # Callers search in the offsets and need them to ascend, which a tokenizer.json does not guarantee.
        starts, ends = np.maximum.accumulate(starts), np.maximum.accumulate(ends)
        return ids, *offsets.trim(text, starts, ends)

    def encode_masked(self, text: str, marker: str) -> np.ndarray:
        """The ids of a text in which every `marker` becomes [MASK], int32[n], without [CLS] or [SEP].

        The space before a mask belongs to what is masked, as in RoBERTa. What stands behind a mask begins no text: an
        encoder that puts a space in front of a text, and not in front of what follows a token, puts none there.
        """
        mask = np.array([self.vocabulary.mask_id], np.int32)
        if self._encoder_within is None:
            *before, last = self.encode_batch([part.rstrip() for part in text.split(marker)])
            return np.concatenate([np.append(part, mask) for part in before] + [last])
        first, *rest = text.split(marker)
        parts = [re.sub(r'[ ▁]\Z', '', part) for part in (first, *rest[:-1])] + rest[-1:]
        encoded = self.encode_batch(parts[:1]) + self._encode_all(self._encoder_within, parts[1:])
        return np.concatenate([encoded[0], *(np.append(mask, part) for part in encoded[1:])])

    def readable(self, texts: Sequence[bytes], repairs: collections.Counter[str]) -> Sequence[bytes]:
        """Returns the texts that can be encoded, which are all texts; others would be counted in `repairs`."""
        return texts

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of ids; special ids are omitted."""
        return self._tokenizer.decode([i for i in np.asarray(ids).tolist() if i not in self._special_ids])

    def id_to_piece(self, token: int) -> str:
        """The piece of an id, as SentencePiece would write it: ▁ is the space before a word.

        WordPiece instead marks the pieces that continue a word, where a word is the text between spaces or punctuation.
        Bytes that are only a part of a character remain as the file writes them.
        """
        token = int(token)
        piece = self._tokenizer.id_to_token(token)
        if piece is None:  # a gap between the ids
            return ''
        if token in self._special_ids or token in self._added:
            return piece
        if self._begins_words:
            continues = self._continuation and piece.startswith(self._continuation)
            return piece.removeprefix(self._continuation) if continues else f'▁{piece}'
        if self._is_byte_level:
            text = _bytes_of(piece).decode(errors='replace')
            return piece.replace('Ġ', '▁') if '\ufffd' in text else text.replace(' ', '▁')
        return piece.replace(self._space, '▁')

    def text_of(self, token: int) -> bytes:
        """The text of an id in UTF-8, which may be a partial character; b'' for a special id."""
        token = int(token)
        piece = self._tokenizer.id_to_token(token)
        if piece is None or token in self._special_ids:
            return b''
        if token in self._added:
            return piece.encode()
        if self._is_byte_level and not self._begins_words:
            return _bytes_of(piece)
        if self._has_bytes and (byte := re.fullmatch(r'<0x([0-9A-F]{2})>', piece)):
            return bytes([int(byte[1], 16)])
        text = self.id_to_piece(token).replace('▁', ' ')
        ends = self._word_end and text.endswith(self._word_end)
        return (text.removesuffix(self._word_end) + ' ' if ends else text).encode()

    def pieces(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """The pieces of ids."""
        return [self.id_to_piece(i) for i in np.asarray(ids).tolist()]

    def _made_from_text(self, special_ids: Iterable[int]) -> list[str]:
        """Those of the special tokens that a text containing their names produces."""
        symbols = {i: self._tokenizer.id_to_token(i) for i in sorted(special_ids)}
        return [symbol for i, symbol in symbols.items() if symbol is not None and i in self.encode(symbol)]


def decoded(content: bytes) -> str:
    """Decodes JSON in any Unicode encoding, without a byte order mark and leading whitespace."""
    encoding = json.detect_encoding(content)
    return content.decode(encoding, 'replace').lstrip('\ufeff \t\r\n')


def _read(model: bytes, name: str) -> tuple[Any, dict]:
    """The `tokenizers.Tokenizer`, without truncation, padding or special tokens, and the parsed JSON of the file."""
    try:
        import tokenizers
    except ImportError:
        raise ImportError(f"{name} needs the package tokenizers: pip install 'mlm_jax[huggingface]'") from None
    text = decoded(model)
    try:
        stored = json.loads(text)
    except (ValueError, RecursionError) as error:
        if re.match(r'\[[^"\',{}\[\]\r\n]+\][ \t]*[\r\n]', text):  # [PAD], the first line of BERT's
            raise ConfigError(f'{name} is a vocab.txt, not a tokenizer.json. {VOCABULARY_ALONE}') from None
        raise ConfigError(
            f'{name} is not a Hugging Face tokenizer.json, or is truncated or damaged: {error}'
        ) from error
    if not isinstance(stored, dict) or not isinstance(stored.get('model'), dict):
        keys = ', '.join(map(repr, list(stored)[:5])) if isinstance(stored, dict) else type(stored).__name__
        raise ConfigError(
            f'{name} is not a Hugging Face tokenizer.json: it has no "model" ({keys}). Use the file tokenizer.json of '
            'a tokenizer; vocab.json, tokenizer_config.json and other files do not describe it completely'
        )
    if _breaks_prefix(stored['model']):
        raise ConfigError(f'{name} is damaged: in its merges, a second part lacks the "continuing_subword_prefix"')
    with _errors_in_words(f'{name} is not a Hugging Face tokenizer.json'):
        tokenizer = tokenizers.Tokenizer.from_str(text)
        tokenizer.no_padding()
        tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True  # if text contains the name of a special token, encode it as text
    return tokenizer, stored


def _breaks_prefix(model: dict) -> bool:
    """Whether the second part of a merge lacks the prefix of pieces within words, which makes the package panic."""
    prefix, merges = model.get('continuing_subword_prefix'), model.get('merges')
    if not isinstance(prefix, str) or not prefix or not isinstance(merges, list):
        return False
    pairs = [merge.split(' ') if isinstance(merge, str) else merge for merge in merges]
    return any(isinstance(pair, list) and len(pair) == 2 and not str(pair[1]).startswith(prefix) for pair in pairs)


@contextlib.contextmanager
def _errors_in_words(what: str) -> Iterator[None]:
    """Converts exceptions of the package, which have no specific type, and panics of its Rust code to ConfigError."""
    try:
        yield
    except Exception as error:
        raise ConfigError(f'{what}: {error}') from error
    except BaseException as error:
        if type(error).__name__ != 'PanicException':  # a type that is not public
            raise
        raise ConfigError(f'{what}: {error}') from error


def _without_names(tokenizer: Any, parts: dict, special_ids: Iterable[int]) -> Any:
    """A copy of the tokenizer in which the special tokens have names that no text contains.

    Even if special tokens are not searched for in text, a model may find them among its pieces, as Unigram does with
    <s>, and files need not declare them. The unknown token of a model that refers to it by its name keeps the name.
    """
    import tokenizers

    secret, model = secrets.token_hex(16), parts['model']
    known = {tokenizer.id_to_token(i): f'{i} {secret}' for i in special_ids}
    names = {n: new for n, new in known.items() if n not in (None, getattr(tokenizer.model, 'unk_token', None))}
    vocab: list | dict
    if isinstance(model['vocab'], list):  # the format of Unigram
        vocab = [[names.get(piece, piece), score] for piece, score in model['vocab']]
    else:
        vocab = {names.get(piece, piece): i for piece, i in model['vocab'].items()}
    if 'merges' in model:
        pairs = [merge.split(' ') if isinstance(merge, str) else merge for merge in model['merges']]
        model = model | {'merges': [pair for pair in pairs if names.keys().isdisjoint([*pair, ''.join(pair)])]}
    added = [
        token | {'content': names.get(token['content'], token['content'])} for token in parts.get('added_tokens', [])
    ]
    renamed = parts | {'model': model | {'vocab': vocab}, 'added_tokens': added, 'post_processor': None}
    with _errors_in_words('the special tokens of a tokenizer.json cannot be distinguished from its text'):
        encoder = tokenizers.Tokenizer.from_str(json.dumps(renamed))
        encoder.no_padding()
        encoder.no_truncation()
    encoder.encode_special_tokens = True
    return encoder


def _vocabulary(tokenizer: Any, model: dict, name: str) -> Vocabulary:
    declared = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    ids, missing = _around_texts(tokenizer, name), []
    for symbol, names in SYMBOL_NAMES.items():
        if f'{symbol}_id' in ids:
            continue
        found = [i for n in names if (i := tokenizer.token_to_id(n)) is not None]
        if found:  # MPNet's has BERT's names too, but does not declare them
            ids[f'{symbol}_id'] = next((i for i in found if i in declared), found[0])
        else:
            missing.append(f'{symbol} ({" or ".join(names)})')
    if missing:
        raise ConfigError(
            f'{name} has no symbol for {", ".join(missing)}: use the tokenizer of a masked language model'
        )
    if len(set(ids.values())) < len(ids):
        raise ConfigError(f'{name} uses one id for several of {ids}; they must differ')
    unknown_id = _unknown_id(tokenizer, model)
    if unknown_id in ids.values():
        raise ConfigError(f'{name} writes unknown characters as {tokenizer.id_to_token(unknown_id)}, a special token')
    if type(tokenizer.model).__name__ in _NEEDS_WORDS and unknown_id is None:
        raise ConfigError(f'{name} has no piece {tokenizer.model.unk_token!r}, which its model needs for unknown words')
    by_id = collections.Counter(tokenizer.get_vocab(with_added_tokens=True).values())
    size = max(by_id) + 1
    if size - len(by_id) > _MAX_GAPS:
        raise ConfigError(f'{name} is damaged: its {len(by_id):,} pieces have ids up to {size - 1:,}')
    unknown = {unknown_id} | {tokenizer.token_to_id(n) for n in ('[UNK]', '<unk>')}
    gaps = set(range(size)) - by_id.keys()
    special = declared | gaps | set(ids.values()) | {i for i in unknown if i is not None}
    if shared := [i for i in sorted(special) if by_id[i] > 1]:  # a [CLS] from text would start a document
        raise ConfigError(f'{name} is damaged: several pieces have the id {shared[0]} of a special token')
    if len(special) == size:
        raise ConfigError(f'{name} has no pieces for text, only special tokens')
    return Vocabulary(size=size, special_ids=tuple(sorted(special)), **ids)


def _around_texts(tokenizer: Any, name: str) -> dict[str, int]:
    """[CLS] and [SEP], if the file itself puts one token before a text and another one after it."""
    with _errors_in_words(f'{name} cannot encode a text'):
        ids = tokenizer.encode('').ids
    are_two = len(ids) == len(set(ids)) == 2 and None not in map(tokenizer.id_to_token, ids)
    return dict(zip(('cls_id', 'sep_id'), ids)) if are_two else {}


def _separators(tokenizer: Any, vocabulary: Vocabulary, name: str) -> int:
    """As the attribute; `sequences.SEPARATORS`, if the file puts no or other tokens around texts."""
    with _errors_in_words(f'{name} cannot encode a pair of texts'):
        cls, *seps = tokenizer.encode('', '').ids or [None]
    are_known = cls == vocabulary.cls_id and set(seps) == {vocabulary.sep_id} and len(seps) > 1
    return len(seps) - 1 if are_known else sequences.SEPARATORS


def _unknown_id(tokenizer: Any, model: dict) -> int | None:
    if type(tokenizer.model).__name__ == 'Unigram':
        return model.get('unk_id')
    name = getattr(tokenizer.model, 'unk_token', None)  # the other models give its name
    return tokenizer.token_to_id(name) if name else None


def _described(component: Any) -> dict | None:
    """The JSON of a normalizer or pre_tokenizer as the package writes it; in the file, its type may be missing."""
    return json.loads(component.__getstate__()) if component else None


def _parts_of(component: dict | None) -> list[dict]:
    """A normalizer or pre_tokenizer and all of its parts."""
    if not component:
        return []
    inner = component.get('pretokenizers') or component.get('normalizers') or []  # if it is a Sequence
    return [component, *(part for one in inner for part in _parts_of(one))]


def _has(component: dict | None, kind: str) -> bool:
    return any(part['type'] == kind for part in _parts_of(component))


def _metaspace(pre_tokenizer: dict | None) -> str | None:
    """The character that represents a space in pieces."""
    return next((part['replacement'] for part in _parts_of(pre_tokenizer) if part['type'] == 'Metaspace'), None)


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """Maps the visible character by which byte-level pieces write a byte to that byte (the table of GPT-2)."""
    seen = [*range(ord('!'), ord('~') + 1), *range(ord('¡'), ord('¬') + 1), *range(ord('®'), ord('ÿ') + 1)]
    others = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _bytes_of(piece: str) -> bytes:
    """The bytes of a byte-level piece; characters that are not in the table are encoded in UTF-8."""
    table = _byte_of_character()
    return b''.join(bytes([table[c]]) if c in table else c.encode() for c in piece)
