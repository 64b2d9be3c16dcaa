"""Tokenizers of Hugging Face: a given `tokenizer.json`; text in, ids without specials out.

Special tokens are never made from text, as in `tokenizers.py`: a document that contains "[MASK]" or "<s>" is encoded as
the ordinary characters it consists of. Needs the package tokenizers (extra `huggingface`).
"""

import collections
import json
import os
from collections.abc import Sequence

import numpy as np

from mlm_jax.config import ConfigError
from mlm_jax.data import offsets
from mlm_jax.masking.vocabulary import SYMBOL_NAMES, Vocabulary


class JSONTokenizer:
    """A `tokenizer.json` whose special ids are known, with the interface of `tokenizers.Tokenizer`.

    Attributes:
      vocabulary: the special ids: of the four symbols, of the unknown token, and of all that the file calls special.
        BERT's [unused…] are not among them.
      model: the file, as `from_file` reads it.
      package: what reads it.
      unknown_id: the id of what the pieces cannot express; None where there is nothing like that.
    """

    package = 'tokenizers'

    def __init__(self, model: bytes, name: str = 'the tokenizer.json'):
        """Reads the content of a file; `name` stands for it in errors.

        Raises:
          ConfigError: when it is no tokenizer.json, lacks a special symbol, or makes one from text.
          ImportError: without the extra `huggingface`.
        """
        try:
            import tokenizers
        except ImportError:
            raise ImportError(f"{name} needs the package tokenizers: pip install 'mlm_jax[huggingface]'") from None
        # One thread: whoever wants more runs several processes, which scale better.
        os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(model.decode())
            parts = json.loads(model)
        except Exception as error:  # the package raises nothing more specific
            raise ConfigError(f'{name} is no tokenizer.json of Hugging Face: {error}') from error
        self.model = model
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True  # as text, where text contains them
        self.vocabulary = _vocabulary(self._tokenizer, parts, name)
        self.unknown_id = _unknown_id(self._tokenizer, parts['model'])
        self._special_ids = frozenset(self.vocabulary.special_ids)
        self._continuation = parts['model'].get('continuing_subword_prefix') or ''
        self._is_wordpiece = parts['model'].get('type') == 'WordPiece'
        self._byte_decoder = tokenizers.decoders.ByteLevel() if _has_byte_level(parts['pre_tokenizer']) else None
        self._check_specials_are_never_text(name)

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, int32[n], without [CLS] or [SEP]."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str | bytes]) -> list[np.ndarray]:
        """The ids of several texts (or their UTF-8), int32[n] each."""
        texts = [text.decode() if isinstance(text, bytes) else text for text in texts]
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def encode_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The ids of a text, and where in it each of them starts and ends: as `tokenizers.Tokenizer.encode_offsets`."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        ids = np.array(encoding.ids, np.int32)
        starts, ends = np.array(encoding.offsets, np.int64).reshape(-1, 2).T
        # Whoever searches in them relies on their order, which nothing in a tokenizer.json promises.
        starts, ends = np.maximum.accumulate(starts), np.maximum.accumulate(ends)
        return ids, *offsets.trim(text, starts, ends)

    def encode_masked(self, text: str, marker: str) -> np.ndarray:
        """The ids of a text in which every `marker` becomes [MASK], int32[n], without [CLS] or [SEP].

        The space before a mask belongs to what is masked, as in RoBERTa.
        """
        *before, last = self.encode_batch([part.rstrip() for part in text.split(marker)])
        masked = [np.append(part, np.int32(self.vocabulary.mask_id)) for part in before]
        return np.concatenate([*masked, last])

    def readable(self, texts: Sequence[bytes], repairs: collections.Counter) -> Sequence[bytes]:
        """The texts that can be encoded: all. Others would be counted in `repairs`."""
        return texts

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of ids; special ones are left out."""
        ids = [i for i in np.asarray(ids).tolist() if i not in self._special_ids]
        return self._tokenizer.decode(ids)

    def id_to_piece(self, token: int) -> str:
        """The piece of one id, as SentencePiece would write it: ▁ is the space before a word.

        WordPiece marks the pieces that go on with a word instead, and a word is there what stands between spaces or
        punctuation; bytes that are no character by themselves stay as the file writes them.
        """
        token = int(token)
        piece = self._tokenizer.id_to_token(token)
        if piece is None:  # a gap between the ids
            return ''
        if token in self._special_ids:
            return piece
        if self._is_wordpiece:
            goes_on = self._continuation and piece.startswith(self._continuation)
            return piece.removeprefix(self._continuation) if goes_on else f'▁{piece}'
        if self._byte_decoder is not None:
            text = self._byte_decoder.decode([piece])
            return piece.replace('Ġ', '▁') if '\ufffd' in text else text.replace(' ', '▁')
        return piece

    def pieces(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """The pieces of ids."""
        return [self.id_to_piece(i) for i in np.asarray(ids).tolist()]

    def _check_specials_are_never_text(self, name: str) -> None:
        """A [CLS] from text would start a document (data/packing.py)."""
        v = self.vocabulary
        for special in (v.pad_id, v.cls_id, v.sep_id, v.mask_id):
            symbol = self._tokenizer.id_to_token(special)
            if special in self.encode(symbol):
                raise ConfigError(
                    f'{name} makes the special token {symbol} from text that contains it. Declare it among its '
                    'added_tokens with "special": true, and split punctuation or bytes off words'
                )


def _vocabulary(tokenizer, parts: dict, name: str) -> Vocabulary:
    ids, missing = {}, []
    for symbol, names in SYMBOL_NAMES.items():
        found = [i for n in names if (i := tokenizer.token_to_id(n)) is not None]
        if found:
            ids[f'{symbol}_id'] = found[0]
        else:
            missing.append(f'{symbol} ({" or ".join(names)})')
    if missing:
        raise ConfigError(
            f'{name} has no symbol for {", ".join(missing)}: take the tokenizer of a masked language model'
        )
    unknown = {parts['model'].get('unk_id')} | {
        tokenizer.token_to_id(n) for n in (parts['model'].get('unk_token'), '[UNK]', '<unk>') if n
    }
    by_id = set(tokenizer.get_vocab(with_added_tokens=True).values())
    size = max(by_id) + 1
    declared = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    gaps = set(range(size)) - by_id
    special = declared | gaps | set(ids.values()) | (unknown - {None})
    return Vocabulary(size=size, special_ids=tuple(sorted(special)), **ids)


def _unknown_id(tokenizer, model: dict) -> int | None:
    if model.get('unk_id') is not None:  # of Unigram; the other models name the token
        return model['unk_id']
    return tokenizer.token_to_id(model['unk_token']) if model.get('unk_token') else None


def _has_byte_level(pre_tokenizer: dict | None) -> bool:
    if not pre_tokenizer:
        return False
    inner = pre_tokenizer.get('pretokenizers', [])  # of a Sequence
    return pre_tokenizer['type'] == 'ByteLevel' or any(map(_has_byte_level, inner))
