"""From examples to rows of tokens, which differ in length, and to batches, which have few different shapes."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from mlm_jax.data.sequences import SEPARATORS, join, pad, padded_length
from mlm_jax.files.errors import ConfigError
from mlm_jax.masking.vocabulary import Vocabulary
from mlm_jax.tasks.examples import Example

# A random window of this many batches is sorted by length, so that rows of similar length share a batch.
BATCHES_PER_WINDOW = 32
SMALLEST_STEP = 16  # the smallest difference between two lengths that batches are padded to


class BatchTokenizer(Protocol):
    """What fine-tuning needs of a tokenizer of `mlm_jax/data`."""

    vocabulary: Vocabulary

    def encode_batch(self, texts: Sequence[str | bytes]) -> list[np.ndarray]:
        """The ids of each text, int32[n], without special tokens."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """A tokenized split.

    Attributes:
      tokens: N rows, int32[n] each, including the special tokens.
      targets: float32[N, C]: the class, the values, or the start and the end of an answer; NaN where unknown.
      max_length: the length of the longest row that the model can read.
    """

    tokens: Sequence[np.ndarray]
    targets: np.ndarray
    max_length: int

    @property
    def lengths(self) -> np.ndarray:
        """int64[N]: the number of tokens in each row."""
        return np.array([len(row) for row in self.tokens], np.int64)


def encode(
    examples: Sequence[Example],
    tokenizer: BatchTokenizer,
    max_length: int,
    notes: Counter[str],
    separators: int = SEPARATORS,
) -> Inputs:
    """Tokenizes examples: `[CLS] A [SEP]`, and pairs of texts as `[CLS] A [SEP] [SEP] B [SEP]`.

    A text that is too long loses tokens at its end. In a pair, the longer text loses tokens first, one at a time.

    Args:
      examples: all with one text, or all with two.
      tokenizer: of the model.
      max_length: the maximal number of tokens in a row.
      notes: receives the number of rows that were cut.
      separators: how many [SEP] stand between the texts of a pair.

    Raises:
      ConfigError: when `max_length` leaves no room for text, or only some of the examples have two texts.
    """
    counts = {len(example.texts) for example in examples}
    if not counts <= {1} and not counts <= {2}:
        raise ConfigError(
            f'examples have {" and ".join(map(str, sorted(counts)))} texts; all must have one, or all must have two'
        )
    v, columns = tokenizer.vocabulary, list(zip(*(example.texts for example in examples), strict=True))
    parts = [tokenizer.encode_batch(column) for column in columns]
    room = room_for_text(len(parts), max_length, separators)
    rows = []
    for pieces in zip(*parts, strict=True):
        kept = _lengths_that_fit([len(piece) for piece in pieces], room)
        notes['rows cut at max_length'] += kept != [len(piece) for piece in pieces]
        rows.append(join([piece[:n] for piece, n in zip(pieces, kept, strict=True)], v, separators))
    return Inputs(rows, np.array([example.targets for example in examples], np.float32), max_length)


def room_for_text(num_texts: int, max_length: int, separators: int = SEPARATORS) -> int:
    """How many tokens of one text or two a row has room for; ConfigError when these are less than one for each."""
    num_special = 2 + separators * (num_texts - 1)
    if max_length < num_special + num_texts:
        raise ConfigError(f'max_length={max_length} leaves no room for text beside {num_special} special tokens')
    return max_length - num_special


def _lengths_that_fit(lengths: list[int], room: int) -> list[int]:
    if sum(lengths) <= room or len(lengths) == 1:
        return [min(n, room) for n in lengths]
    short = min(min(lengths), room // 2)
    rest = min(max(lengths), room - short)
    return [short, rest] if lengths[0] <= lengths[1] else [rest, short]


def batch_length(inputs: Inputs, longest: int) -> int:
    """The length T of a batch of `inputs` whose longest row has `longest` tokens."""
    return padded_length(int(longest), SMALLEST_STEP, inputs.max_length)


def epoch_batches(lengths_N: np.ndarray, batch_size: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """The rows of each batch of one epoch, int64[≤ batch_size]; every epoch has each row once, in another order.

    Within a window of `BATCHES_PER_WINDOW` batches, rows of similar length share a batch. The rows of a batch depend on
    the seed, but the places of short and long batches in a window do not, so that the batches of seeds that run side by
    side have similar lengths and need little padding.
    """
    order_N = np.random.default_rng([seed, epoch]).permutation(len(lengths_N))
    turns = np.random.default_rng(epoch)
    for start in range(0, len(order_N), batch_size * BATCHES_PER_WINDOW):
        window = order_N[start : start + batch_size * BATCHES_PER_WINDOW]
        window = window[np.argsort(lengths_N[window], kind='stable')]
        batches = [window[i : i + batch_size] for i in range(0, len(window), batch_size)]
        yield from (batches[i] for i in turns.permutation(len(batches)))


def pad_rows(
    inputs: Inputs, rows: np.ndarray, batch_size: int, length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """The arrays of one batch.

    Args:
      inputs: a split.
      rows: int[≤ batch_size], the indices of the rows in the split.
      batch_size: B; the rows that are missing are filled with padding, and their targets with NaN.
      length: T, at least the length of the longest row.
      pad_id: fills the end of each row.

    Returns:
      The tokens, int32[B, T], and the targets, float32[B, C].
    """
    targets_BxC = np.full((batch_size, inputs.targets.shape[1]), np.nan, np.float32)
    targets_BxC[: len(rows)] = inputs.targets[rows]
    return pad([inputs.tokens[row] for row in rows], batch_size, length, pad_id), targets_BxC
