"""Pseudo-log-likelihood of sentences: the sum over their tokens of log p(token | the rest of the sentence).

Salazar et al., Masked Language Model Scoring, ACL 2020, arXiv 1910.14659: each ordinary token of `[CLS] sentence [SEP]`
is masked by itself, in a copy of the sentence, and predicted. The sum is not divided by the length.

Of a word of several pieces, the others give each away, and rare words look likely. Kauf & Ivanova, A Better Way to Do
Masked Language Model Scoring, ACL 2023, arXiv 2305.10588, mask the later pieces of the word as well ("PLL-word-l2r").

All objectives are asked by `log_likelihood`, and answer each in its own way: MLM reads one [MASK] in the row, MAE-LM's
encoder does not see the token, ExLM predicts it by all its states, weighted by the transitions.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mlm_jax.data.masking_tables import word_marks, word_starts
from mlm_jax.data.sequences import join, pad, padded_length
from mlm_jax.files.errors import ConfigError
from mlm_jax.files.progress import bar
from mlm_jax.masking.batch import MaskedBatch, selected_of
from mlm_jax.masking.tables import NEXT_STARTS, STARTS, find_word_starts
from mlm_jax.parallel import mesh as mesh_lib
from mlm_jax.pretrained import batches

SMALLEST_STEP = 4  # between the lengths of rows


@dataclasses.dataclass(frozen=True)
class Copies:
    """Copies of sentences in rows of one length, in each of which one token is to be predicted.

    Attributes:
      tokens: int32[N, T], the sentences.
      number: int32[N], which ones they are.
      sentence: int32[C], the row of `tokens` that a copy is of.
      start: int32[C], the token to predict, the first that is masked.
      stop: int32[C], where the masked tokens end.
    """

    tokens: np.ndarray
    number: np.ndarray
    sentence: np.ndarray
    start: np.ndarray
    stop: np.ndarray


class PseudoLikelihood:
    """Scores the same sentences again and again, by the parameters of the time.

    Attributes:
      num_unknown: sentences with pieces that the tokenizer does not know; these are context, and not predicted.
      num_rows: masked copies, of all different sentences.
    """

    def __init__(self, objective, tokenizer, sentences: Sequence[str], *, repeats: int = 1, within_word: bool = False):
        """Prepares the copies; no device is touched.

        Args:
          objective: any, with MLM's `log_likelihood`.
          tokenizer: of the model.
          sentences: those with the same tokens are scored once.
          repeats: how often each token stands in a row (repeated MLM). All copies of a token are masked together, and
            its log-probability is their mean.
          within_word: masks the later pieces of the same word as well.

        Raises:
          ConfigError: when a sentence is longer than the rows of the model, or holds no text; or the model gives single
            tokens no probability.
        """
        if reason := objective.refuses_single_tokens():
            raise ConfigError(reason)
        self._vocabulary, self._repeats = tokenizer.vocabulary, repeats
        # Rows are short: what other backends need of their lengths, and gain, does not matter here.
        config = dataclasses.replace(objective.config, attention_backend='xla')
        self._objective = objective.clone(config=config).at_any_ratio()
        words = _words(tokenizer) if within_word else None
        encoded = _encode(tokenizer, sentences, config.max_length // repeats)
        numbers: dict[bytes, int] = {}  # of different sentences, by their tokens
        self._number_of = np.array([numbers.setdefault(ids.tobytes(), len(numbers)) for ids in encoded])
        different = list({ids.tobytes(): ids for ids in encoded}.values())
        self.num_unknown = sum(_is_special(ids[1:-1], self._vocabulary).any() for ids in encoded)
        self._num_different = len(different)
        self._copies = _make_copies(different, self._vocabulary, repeats, words, config.max_length)
        self._num_masked = max(int((c.stop - c.start).max()) for c in self._copies)
        self.num_rows = sum(len(c.start) for c in self._copies)
        self._batch_sizes: dict[int, int] = {}
        self._compiled: dict = {}
        self._mesh: jax.sharding.Mesh | None = None

    def compile(self, params, mesh: jax.sharding.Mesh, tokens_at_once: int = 0) -> None:
        """Compiles a program for each length of rows.

        Args:
          params: laid out on `mesh` as those to come.
          mesh: rows are split over it.
          tokens_at_once: the most tokens of a batch on each device; 0 chooses by its kind.
        """
        self._mesh, v = mesh, self._vocabulary
        score = _make_score(self._objective, self._num_masked, self._repeats, v.mask_id, v.pad_id, mesh)
        for copies in self._copies:
            length = copies.tokens.shape[1]
            most = batches.rows_at_once(self._objective, length, self._num_masked, v.size)
            self._batch_sizes[length] = batches.batch_size(mesh, length, len(copies.start), tokens_at_once, most)
            self._compiled[length] = score.lower(params, *self._place(copies, 0)).compile()

    def scores(self, params, progress: str = '') -> np.ndarray:
        """float64[N]: the pseudo-log-likelihood of each sentence, in nats.

        Args:
          params: of the objective.
          progress: the name of a bar; '' shows none.

        Raises:
          FloatingPointError: when one is not finite.
        """
        scores, pending = np.zeros(self._num_different), []
        total = sum(c.tokens.shape[1] * len(c.start) for c in self._copies)
        quiet = not progress or jax.process_index() > 0
        with bar(desc=progress, total=total, unit='token', unit_scale=True, leave=False, disable=quiet) as shown:
            for copies in self._copies:
                length = copies.tokens.shape[1]
                size = self._batch_sizes[length]
                for first in range(0, len(copies.start), size):
                    part = copies.number[copies.sentence[first : first + size]]
                    pending.append((part, self._compiled[length](params, *self._place(copies, first)), length))
                    if len(pending) > 1:  # the device works on one batch while the other is fetched
                        shown.update(_collect(scores, *pending.pop(0)))
            for entry in pending:
                shown.update(_collect(scores, *entry))
        if not np.isfinite(scores).all():
            raise FloatingPointError(
                f'{(~np.isfinite(scores)).sum():,} of {len(scores):,} sentences have a pseudo-log-likelihood that is '
                'not finite: the parameters of the model have diverged'
            )
        return scores[self._number_of]

    def _place(self, copies: Copies, first: int) -> list[jax.Array]:
        """A batch on the mesh: int32[B, T], int32[B], int32[B]. Behind the last copy, rows of padding."""
        assert self._mesh is not None, 'compile comes first'
        size = self._batch_sizes[copies.tokens.shape[1]]
        few = slice(first, first + size)
        missing = size - len(copies.start[few])
        arrays = copies.tokens[copies.sentence[few]], copies.start[few], copies.stop[few]
        fillings = self._vocabulary.pad_id, 0, 0
        padded = [
            np.pad(array, ((0, missing), *((0, 0),) * (array.ndim - 1)), constant_values=filling)
            for array, filling in zip(arrays, fillings, strict=True)
        ]
        return [batches.place(array, self._mesh) for array in padded]


@functools.lru_cache(maxsize=32)
def _make_score(
    objective, num_masked: int, repeats: int, mask_id: int, pad_id: int, mesh: jax.sharding.Mesh
) -> Callable:
    """(params, tokens, starts, stops) → f32[B]: log-probability of the token at a start, all up to its stop masked."""

    def score(params, tokens_BxT, start_B, stop_B):
        length = tokens_BxT.shape[1]
        slot_BxM = start_B[:, None] + jnp.arange(num_masked)
        positions_BxM = jnp.where(slot_BxM < stop_B[:, None], slot_BxM, length)
        batch = MaskedBatch(
            tokens=tokens_BxT,
            inputs=jnp.where(selected_of(positions_BxM, length), mask_id, tokens_BxT),
            positions=positions_BxM,
            weights=(positions_BxM < length).astype(jnp.float32),
            segments=(tokens_BxT != pad_id).astype(jnp.int32),
        )
        log_p_BxM = objective.apply({'params': params}, batch, method='log_likelihood')
        return log_p_BxM[:, :repeats].mean(1)

    return jax.jit(score, out_shardings=mesh_lib.replicated(mesh))


def _collect(scores: np.ndarray, number_C: np.ndarray, log_p_B: jax.Array, length: int) -> int:
    """Adds a batch to the scores of its sentences; returns how many tokens it had."""
    np.add.at(scores, number_C, np.asarray(log_p_B, np.float64)[: len(number_C)])
    return len(number_C) * length


def _encode(tokenizer, sentences: Sequence[str], max_length: int) -> list[np.ndarray]:
    """int32[n] each: [CLS] sentence [SEP]."""
    v, encoded = tokenizer.vocabulary, []
    for sentence, ids in zip(sentences, tokenizer.encode_batch(sentences), strict=True):
        if len(ids) + 2 > max_length:
            raise ConfigError(
                f'{sentence!r} has {len(ids) + 2} tokens with [CLS] and [SEP]; this model takes {max_length} at most'
            )
        if _is_special(ids, v).all():
            raise ConfigError(f'{sentence!r} holds no text that the tokenizer knows, and nothing to predict')
        encoded.append(join([ids], v))
    return encoded


def _is_special(ids: np.ndarray, vocabulary) -> np.ndarray:
    return np.isin(ids, vocabulary.special_ids)


def _words(tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Two tables of the tokenizer: bool[V] and uint8[V]."""
    starts_V, marks_V = word_starts(tokenizer), word_marks(tokenizer)
    if not starts_V.any() and not (marks_V & (STARTS | NEXT_STARTS)).any():
        raise ConfigError(
            'this tokenizer does not mark where words start: its pieces can be masked one by one only, not within words'
        )
    return starts_V, marks_V


def _make_copies(
    sentences: Sequence[np.ndarray], vocabulary, repeats: int, words: tuple | None, max_length: int
) -> list[Copies]:
    """The copies of all sentences by the length of their rows, the longest first: a lack of memory shows at once."""
    by_length: dict[int, list[int]] = {}
    for number, ids in enumerate(sentences):
        by_length.setdefault(padded_length(repeats * len(ids), SMALLEST_STEP, max_length), []).append(number)
    groups = []
    for length, numbers in sorted(by_length.items(), reverse=True):
        rows = [np.repeat(sentences[number], repeats) for number in numbers]
        parts = []
        for row, number in enumerate(numbers):
            start, stop = _masked_ranges(sentences[number], vocabulary, words)
            parts.append((np.full(len(start), row), repeats * start, repeats * stop))
        sentence, start, stop = (np.concatenate(arrays).astype(np.int32) for arrays in zip(*parts, strict=True))
        groups.append(
            Copies(pad(rows, len(rows), length, vocabulary.pad_id), np.array(numbers, np.int32), sentence, start, stop)
        )
    return groups


def _masked_ranges(ids: np.ndarray, vocabulary, words: tuple | None) -> tuple[np.ndarray, np.ndarray]:
    """For each ordinary token its place, and where masking ends: behind it, or behind the last piece of its word."""
    special = _is_special(ids, vocabulary)
    start = np.flatnonzero(~special)
    if words is None:
        return start, start + 1
    boundaries = np.flatnonzero(special | find_word_starts(ids, *words))  # the last is [SEP]
    return start, boundaries[np.searchsorted(boundaries, start, side='right')]
