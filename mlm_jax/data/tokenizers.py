"""SentencePiece tokenizers, which are trained on a corpus or given; they encode text to ids without special tokens.

`Tokenizer.from_file` also reads the tokenizers of Hugging Face (`tokenizer_json.py`), of protein models (`residues.py`)
and of SMILES (`smiles.py`).

The special symbols become CONTROL symbols, even if a given model declares them otherwise. SentencePiece never produces
CONTROL symbols from text, so a document that contains "[MASK]" or "<s>" is encoded as the ordinary characters of which
that consists.
"""

import collections
import dataclasses
import functools
import io
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import ml_collections
import numpy as np
import sentencepiece

from mlm_jax.data import offsets, residues, sentencepiece_proto, smiles
from mlm_jax.data.tokenizer_json import VOCABULARY_ALONE, JSONTokenizer, looks_like_json
from mlm_jax.files import buckets, git_lfs, hub
from mlm_jax.files.errors import ConfigError, unreadable
from mlm_jax.masking import vocabulary as vocabulary_lib

SENTENCEPIECE = ('unigram', 'bpe')
TRAINED = (*SENTENCEPIECE, 'smiles')  # the values of tokenizer.model for which a tokenizer is trained
LARGEST_PADDING = 1024  # maximum number of ids without a piece: embeddings are padded to a multiple of, say, 8 or 128
EXTEND = 'extend:'  # before the path of a tokenizer, it means: add pieces of this corpus to that tokenizer

_CURES = {
    'pad': '--pad_id=0 --pad_piece=[PAD]',
    'cls': '--bos_id=2 --bos_piece=[CLS]',
    'sep': '--eos_id=3 --eos_piece=[SEP]',
    'mask': '--control_symbols=[MASK]',
}
_STAND_IN = '\ue000[MASK]\ue000'  # for a mask in a text; no text contains it
_RESERVED = '\u2585'  # ▅: SentencePiece silently skips lines that contain this character; it is never learned
_SCORE_STEPS = 256  # of unigram scores, for each nat
_SENTENCE_CHARACTERS = 1000  # longer lines are split for training, because SentencePiece would drop them


class Tokenizer:
    """A SentencePiece model whose special ids are known.

    Attributes:
      vocabulary: the special ids.
      model: the serialized model, as `from_file` reads it.
      package: the Python package that reads the model.
      unknown_id: the id for text that the pieces cannot express.
    """

    package = 'sentencepiece'

    def __init__(self, model: bytes, name: str = 'the SentencePiece model'):
        """Reads a serialized model; error messages call it `name`.

        Raises:
          ConfigError: if it is not a SentencePiece model, is damaged, or lacks a special symbol.
        """
        proto = _parse(model, name)
        ids = _special_ids(proto, name)
        for special in ids.values():
            proto.pieces[special].type = sentencepiece_proto.CONTROL
        # UNUSED pieces count as special: text never produces them, so a random replacement must not either.
        apart = (sentencepiece_proto.CONTROL, sentencepiece_proto.UNKNOWN, sentencepiece_proto.UNUSED)
        special_ids = tuple(i for i, piece in enumerate(proto.pieces) if piece.type in apart)
        if len(special_ids) == len(proto.pieces):
            raise ConfigError(f'{name} has no pieces for text, only special symbols')
        self.vocabulary = vocabulary_lib.Vocabulary(
            size=len(proto.pieces),
            special_ids=special_ids,
            **{f'{symbol}_id': i for symbol, i in ids.items()},
        )
        self._special_ids = frozenset(special_ids)
        self._byte_ids = frozenset(i for i, piece in enumerate(proto.pieces) if piece.type == sentencepiece_proto.BYTE)
        self.model = proto.SerializeToString(deterministic=True)
        # One thread, because several processes scale better than several threads.
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=self.model, num_threads=1)
        except (RuntimeError, OSError, ValueError) as error:
            raise ConfigError(f'{name} is a damaged SentencePiece model: {error}') from error
        self.unknown_id: int | None = self._processor.unk_id()

    @classmethod
    def from_file(cls, path: str | pathlib.Path) -> 'AnyTokenizer':
        """Reads a SentencePiece model, a Hugging Face tokenizer.json, ESM's vocab.txt, or a SMILES vocabulary.

        The content decides, not the name of the file. `hf:NAME/FILE` is a file of a model on the Hugging Face Hub
        (`files/hub.py`).

        Raises:
          ConfigError: if the file is missing, is none of these, or lacks a special symbol.
          ImportError: for a tokenizer.json or vocab.txt without the extra `huggingface`.
        """
        if isinstance(path, str) and path.startswith(hub.PREFIX):
            path = hub.model_file(path.removeprefix(hub.PREFIX))
        try:
            model = buckets.path(path).expanduser().read_bytes()
        except OSError as error:
            raise unreadable(f'the tokenizer {path}', error, _cure_of_name(path, error)) from error
        if git_lfs.is_pointer(model):
            raise ConfigError(f'{path} is not a tokenizer: {git_lfs.REASON}')
        if looks_like_json(model):
            return (smiles.SmilesTokenizer if smiles.is_model(model) else JSONTokenizer)(model, str(path))
        if residues.is_vocabulary(model):
            return JSONTokenizer(residues.to_json(model), str(path))
        return cls(model, str(path))

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, int32[n], without [CLS] or [SEP]."""
        return self._processor.encode(text, return_type='numpy')

    def encode_batch(self, texts: Sequence[str | bytes]) -> list[np.ndarray]:
        """The ids of several texts (or their UTF-8), int32[n] each; faster than encoding them one by one."""
        batch: list[Any] = list(texts)  # SentencePiece is annotated for lists of one type
        return self._processor.encode(batch, return_type='numpy')

    def encode_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The ids of a text, as `encode` returns them, and the position in the text where each token starts and ends.

        Returns:
          ids, starts and ends: int32[n] each. `text[starts[i] : ends[j]]` is the text of the tokens i … j. Starts and
          ends ascend, never split a character, and exclude whitespace at both ends (data/offsets.py).
        """
        encoded = self._processor.encode(text, return_type='offset_mapping')
        ids = np.array(encoded['ids'], np.int32)
        if not len(ids):
            return ids, ids, ids
        # SentencePiece's own offsets assign a character that is split into several pieces to the last of them only.
        normalized, positions = self._processor.Normalize(text, with_offsets=True)
        byte_ids, pieces = self._byte_ids, zip(encoded['ids'], encoded['pieces'])
        sizes = np.array([1 if i in byte_ids else len(piece.encode()) for i, piece in pieces])
        starts, ends = offsets.in_characters(normalized, np.array(positions), sizes, len(text))
        return ids, *offsets.trim(text, starts, ends)

    def encode_masked(self, text: str, marker: str) -> np.ndarray:
        """The ids of a text in which every `marker` becomes [MASK], int32[n], without [CLS] or [SEP].

        A word in place of the marker would be tokenized together with the space before it, but not with the text after
        it. So the marker becomes a piece of its own, and the space before it is left out.
        """
        space, ids = self._processor.piece_to_id('▁'), []
        for token in self._masking_processor.encode(text.replace(marker, _STAND_IN)):
            if token < self.vocabulary.size:
                ids.append(token)
                continue
            if ids and ids[-1] == space != self.unknown_id:
                ids.pop()
            ids.append(self.vocabulary.mask_id)
        return np.array(ids, np.int32)

    @functools.cached_property
    def _masking_processor(self) -> Any:
        """The model with a further piece, `_STAND_IN`, which is never divided, and never a part of another."""
        proto = sentencepiece_proto.ModelProto.FromString(self.model)
        proto.pieces.add(piece=_STAND_IN, type=sentencepiece_proto.USER_DEFINED)
        return sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString(), num_threads=1)

    def readable(self, texts: Sequence[bytes], repairs: collections.Counter[str]) -> Sequence[bytes]:
        """Returns the texts that can be encoded, which are all texts; others would be counted in `repairs`."""
        return texts

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of ids; special ids are omitted."""
        return self._processor.decode(np.asarray(ids).tolist())

    def id_to_piece(self, token: int) -> str:
        """The piece of an id, as the model writes it; ▁ is a space. '' for an id that only pads the vocabulary."""
        return self._processor.id_to_piece(int(token)) if token < self.vocabulary.size else ''

    def text_of(self, token: int) -> bytes:
        """The text of an id in UTF-8, which may be a partial character; b'' for a special id."""
        token = int(token)
        if token in self._special_ids:
            return b''
        piece = self.id_to_piece(token)
        return bytes([int(piece[3:5], 16)]) if token in self._byte_ids else piece.replace('▁', ' ').encode()

    def pieces(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """The pieces of ids."""
        return [self.id_to_piece(i) for i in np.asarray(ids).tolist()]


AnyTokenizer = Tokenizer | JSONTokenizer | smiles.SmilesTokenizer


def train(
    texts: Iterable[str], settings: ml_collections.ConfigDict, vocab_size: int, exact_size: bool = True
) -> Tokenizer | smiles.SmilesTokenizer:
    """Trains a tokenizer; the result is the same to the byte on any number of cores.

    Args:
      texts: the text to learn from; only the first `settings.training_megabytes` are consumed.
      settings: the part `tokenizer` of a configuration.
      vocab_size: the number of pieces.
      exact_size: if False, a unigram tokenizer may have fewer pieces than `vocab_size` if the text has too few.

    Raises:
      ConfigError: if the text is too small, or the vocabulary is too small for the characters of the text.
    """
    model = io.BytesIO()
    texts = _limited(texts, settings.training_megabytes * 1_000_000)
    if settings.model == 'smiles':
        return smiles.train(texts, vocab_size)
    sentences = _sentences(texts)
    identity = settings.normalization == 'identity'
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences,
            model_writer=model,
            model_type=settings.model,
            vocab_size=vocab_size,
            character_coverage=settings.character_coverage,
            byte_fallback=settings.byte_fallback,
            normalization_rule_name=settings.normalization,
            remove_extra_whitespaces=not identity,
            pad_id=0, unk_id=1, bos_id=2, eos_id=3,
            pad_piece='[PAD]', unk_piece='[UNK]', bos_piece='[CLS]', eos_piece='[SEP]',
            control_symbols=['[MASK]'],
            max_sentence_length=8 * _SENTENCE_CHARACTERS,  # in bytes
            train_extremely_large_corpus=settings.training_megabytes > 1000,  # 64-bit positions
            num_threads=16,  # fixed, because floating-point sums depend on it
            hard_vocab_limit=exact_size or settings.model == 'bpe',  # BPE has no soft limit
            minloglevel=2,
        )  # fmt: skip
    except (RuntimeError, OSError) as error:
        raise ConfigError(_explain(str(error), settings, vocab_size)) from error
    tokenizer = Tokenizer(_with_exact_scores(model.getvalue()))
    if exact_size:
        check_size(tokenizer, vocab_size, 'the trained tokenizer')
    return tokenizer


def _with_exact_scores(model: bytes) -> bytes:
    """A model in which the scores of pieces are multiples of 1/256.

    Sums of such scores are exact in float32 down to −65,536, that of about 8,000 tokens. Otherwise rounding decides
    between divisions of a text with equal scores, and differently in another place, or in a program that adds up in
    float64. A step of 1/256 nat is far below what the scores of a finite corpus are worth.
    """
    proto = sentencepiece_proto.ModelProto.FromString(model)
    for piece in proto.pieces:
        piece.score = round(piece.score * _SCORE_STEPS) / _SCORE_STEPS
    return proto.SerializeToString(deterministic=True)


def extend(old: AnyTokenizer, texts: Iterable[str], settings: ml_collections.ConfigDict, vocab_size: int) -> Tokenizer:
    """Adds pieces from other texts to a tokenizer, up to `vocab_size` pieces; old pieces keep their ids.

    The new pieces are the best pieces of a tokenizer of the same kind that is trained on `texts`. New unigram pieces
    have the scores of that tokenizer; new BPE merges come after all old merges, in the order of that tokenizer.

    Args:
      old: a SentencePiece tokenizer, unigram or BPE.
      texts: as for `train`.
      settings: as for `train`, except that the kind and the normalization are those of `old`.
      vocab_size: the number of pieces, old and new.

    Raises:
      ConfigError: if `old` is of another kind, or the texts do not have enough new pieces.
    """
    if not isinstance(old, Tokenizer):
        raise ConfigError('only SentencePiece tokenizers can be extended; use this tokenizer without extend:')
    proto = sentencepiece_proto.ModelProto.FromString(old.model)
    kind = sentencepiece_proto.KINDS.get(proto.trainer_spec.model_type)
    if kind not in SENTENCEPIECE:
        raise ConfigError('only unigram and BPE tokenizers can be extended')
    num_new = vocab_size - len(proto.pieces)
    if num_new <= 0:
        raise ConfigError(
            f'vocab_size={vocab_size}, but the tokenizer to extend already has {len(proto.pieces)} pieces; '
            'set a larger vocab_size'
        )
    settings = settings.copy_and_resolve_references()
    settings.update(model=kind, normalization=proto.normalizer_spec.name or 'identity')
    trained = sentencepiece_proto.ModelProto.FromString(train(texts, settings, vocab_size, exact_size=False).model)
    known = {piece.piece for piece in proto.pieces}
    new = [(p.piece, p.score) for p in trained.pieces if p.type == sentencepiece_proto.NORMAL and p.piece not in known]
    found = (new if kind == 'unigram' else _with_characters(new, known, num_new))[:num_new]
    if len(found) < num_new:
        raise ConfigError(
            f'the corpus has only {len(found):,} frequent pieces that the tokenizer lacks, not {num_new:,}: set '
            f'vocab_size={len(proto.pieces) + len(found)}'
        )
    lowest = min(piece.score for piece in proto.pieces)
    for rank, (piece, score) in enumerate(found, start=1):
        proto.pieces.add(piece=piece, score=score if kind == 'unigram' else lowest - rank)
    return Tokenizer(proto.SerializeToString(deterministic=True))


def _with_characters(pieces: list[tuple[str, float]], known: set[str], limit: int) -> list[tuple[str, float]]:
    """At most `limit` of the pieces, each after those of its characters that are not known: merges start from them."""
    chosen: dict[str, float] = {}
    for piece, score in pieces:
        needed = [c for c in dict.fromkeys((*piece, piece)) if c not in known and c not in chosen]
        if len(chosen) + len(needed) <= limit:
            chosen.update(dict.fromkeys(needed, score))
    return list(chosen.items())


def extends(new: AnyTokenizer, old: AnyTokenizer) -> bool:
    """Whether all pieces of `old` have the same ids in `new`, which may have more pieces."""
    size = old.vocabulary.size
    if size > new.vocabulary.size or dataclasses.replace(old.vocabulary, size=new.vocabulary.size) != new.vocabulary:
        return False
    return new.pieces(range(size)) == old.pieces(range(size))


def check_size(tokenizer: AnyTokenizer, vocab_size: int, name: str, padding: int = 0) -> vocabulary_lib.Vocabulary:
    """The vocabulary of `vocab_size` ids: those of the tokenizer, and at most `padding` ids without a piece.

    Raises:
      ConfigError: if `vocab_size` is smaller than the tokenizer or too large.
    """
    size = tokenizer.vocabulary.size
    if not size <= vocab_size <= size + padding:
        more = f', or up to {size + padding} if the embedding has rows that no piece uses' if padding else ''
        raise ConfigError(f'vocab_size={vocab_size}, but {name} has {size} pieces; set vocab_size={size}{more}')
    return tokenizer.vocabulary.padded(vocab_size)


def _cure_of_name(path: str | pathlib.Path, error: OSError) -> str:
    """What to do where no file of a tokenizer can be read."""
    cure = (
        f'Set tokenizer.model to {", ".join(TRAINED[:-1])} or {TRAINED[-1]} to train a tokenizer on the corpus, or to '
        'the path of a SentencePiece model or of a Hugging Face tokenizer.json'
    )
    if isinstance(error, IsADirectoryError):
        return f'{cure}, such as {path}/tokenizer.json'
    if hub.can_be_model(str(path)):
        return f'{cure}. For a model of the Hugging Face Hub, write {hub.PREFIX}{path}/tokenizer.json'
    return cure


def _parse(model: bytes, name: str) -> Any:
    """Parses a serialized `ModelProto`; raises ConfigError if it is not one or its pieces are not valid text."""
    proto = sentencepiece_proto.ModelProto()
    try:
        proto.ParseFromString(model)
        _ = [piece.piece.encode() for piece in proto.pieces]
    except Exception as error:  # DecodeError of protobuf is not public
        raise ConfigError(f'{name} is not a SentencePiece model: {error}. {VOCABULARY_ALONE}') from error
    if not proto.pieces:
        raise ConfigError(f'{name} is not a SentencePiece model: it has no pieces')
    return proto


def _special_ids(proto: Any, name: str) -> dict[str, int]:
    declared = {
        'pad': proto.trainer_spec.pad_id,
        'cls': proto.trainer_spec.bos_id,
        'sep': proto.trainer_spec.eos_id,
    }
    by_piece = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    ids, missing = {}, []
    for symbol, names in vocabulary_lib.SYMBOL_NAMES.items():
        candidates = [by_piece[n] for n in names if n in by_piece]
        if 0 <= declared.get(symbol, -1) < len(proto.pieces):
            candidates.append(declared[symbol])
        if candidates:
            ids[symbol] = candidates[0]
        else:
            missing.append(symbol)
    if missing:
        listed = ', '.join(f'{symbol} ({" or ".join(vocabulary_lib.SYMBOL_NAMES[symbol])})' for symbol in missing)
        cure = ' '.join(_CURES[symbol] for symbol in missing)
        raise ConfigError(
            f'{name} has no symbol for {listed}. Train the model with {cure}, or set tokenizer.model=unigram to '
            'train one here. If it belongs to a model of transformers, use the tokenizer.json that save_pretrained of '
            'its fast tokenizer writes'
        )
    if len(set(ids.values())) < len(ids):
        raise ConfigError(f'{name} uses one id for several of {ids}; they must differ')
    return ids


def _limited(texts: Iterable[str], limit: int) -> Iterator[str]:
    """Yields the first texts, until they reach `limit` bytes."""
    size = 0
    for text in texts:
        if size >= limit:
            return
        size += len(text.encode())
        yield text


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """Yields the lines of texts; long lines are split, at a space if possible."""
    for text in texts:
        for line in text.replace(_RESERVED, ' ').splitlines():
            start = 0
            while len(line) - start > _SENTENCE_CHARACTERS:
                space = line.rfind(' ', start + 1, start + _SENTENCE_CHARACTERS)
                end = space if space > 0 else start + _SENTENCE_CHARACTERS
                yield line[start:end]
                start = end
            if line[start:].strip():
                yield line[start:]


def _explain(error: str, settings: ml_collections.ConfigDict, size: int) -> str:
    """Expresses an error of SentencePiece in terms of the configuration."""
    if 'sentences_.empty()' in error or 'required_chars_.empty()' in error:
        return 'the training text is empty: there is nothing to learn a tokenizer from'
    if found := re.search(r'too high.*?<= ?(\d+)', error):
        return (
            f'the training text is too small for vocab_size={size}: the largest possible value is {found[1]}. Use '
            f'more text, or set vocab_size={found[1]} or less'
        )
    if found := re.search(r'smaller than required_chars[^\d]*(\d+) vs (\d+)', error):
        return (
            f'vocab_size={size} is too small: the characters{" and bytes" * settings.byte_fallback} of the '
            f'text alone need {found[2]} pieces. Set a larger vocab_size, or a smaller tokenizer.character_coverage '
            f'(now {settings.character_coverage})'
        )
    return f'SentencePiece could not train a {settings.model} tokenizer of {size} pieces: {error}'
