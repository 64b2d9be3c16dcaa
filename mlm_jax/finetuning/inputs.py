"""Examples → token rows of many lengths → batches of few shapes."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from mlm_jax.data.sequences import join, pad, padded_length
from mlm_jax.files.errors import ConfigError
from mlm_jax.tasks.examples import Example

# The order of batches mixes lengths over this many of them; within, neighbours in length share a batch.
BATCHES_PER_WINDOW = 32
SMALLEST_STEP = 16  # between the lengths that batches are padded to


@dataclasses.dataclass(frozen=True)
class Inputs:
    """A split, tokenised.

    Attributes:
      tokens: N rows, int32[n] each, specials included.
      targets: float32[N, C]: the class, values, or starts and ends of answers; NaN where unknown.
      max_length: the longest row that the model can read.
    """

    tokens: Sequence[np.ndarray]
    targets: np.ndarray
    max_length: int

    @property
    def lengths(self) -> np.ndarray:
        """int64[N]: tokens of each row."""
        return np.array([len(row) for row in self.tokens], np.int64)


def encode(examples: Sequence[Example], tokenizer, max_length: int, notes: Counter) -> Inputs:
    """Tokenises examples: `[CLS] A [SEP]`, or of a pair `[CLS] A [SEP] [SEP] B [SEP]`.

    What is too long is cut at its end: of a pair, the longer text first, token by token.

    Args:
      examples: all of one text, or all of two.
      tokenizer: of the model.
      max_length: tokens of the longest row.
      notes: counts the rows that were cut.

    Raises:
      ConfigError: when `max_length` leaves no room, or examples mix one and two texts.
    """
    counts = {len(example.texts) for example in examples}
    if not counts <= {1} and not counts <= {2}:
        raise ConfigError(
            f'examples have {" and ".join(map(str, sorted(counts)))} texts; all must have one, or all two'
        )
    v, columns = tokenizer.vocabulary, list(zip(*(example.texts for example in examples), strict=True))
    parts = [tokenizer.encode_batch(column) for column in columns]
    num_special = 2 * len(parts)
    room = max_length - num_special
    if room < len(parts):
        raise ConfigError(f'max_length={max_length} leaves no room for text beside {num_special} special tokens')
    rows = []
    for pieces in zip(*parts, strict=True):
        kept = _lengths_that_fit([len(piece) for piece in pieces], room)
        notes['rows cut at max_length'] += kept != [len(piece) for piece in pieces]
        rows.append(join([piece[:n] for piece, n in zip(pieces, kept, strict=True)], v))
    return Inputs(rows, np.array([example.targets for example in examples], np.float32), max_length)


def _lengths_that_fit(lengths: list[int], room: int) -> list[int]:
    if sum(lengths) <= room or len(lengths) == 1:
        return [min(n, room) for n in lengths]
    short = min(min(lengths), room // 2)
    rest = min(max(lengths), room - short)
    return [short, rest] if lengths[0] <= lengths[1] else [rest, short]


def batch_length(inputs: Inputs, longest: int) -> int:
    """T of a batch of `inputs` whose longest row has `longest` tokens."""
    return padded_length(int(longest), SMALLEST_STEP, inputs.max_length)


def epoch_batches(lengths_N: np.ndarray, batch_size: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """The rows of each batch of one epoch, int64[≤ batch_size]; every row once, in an order of its own each epoch.

    Neighbours in length share a batch, within windows of `BATCHES_PER_WINDOW`. When their batches come is the same for
    all seeds, so that runs side by side are padded alike; the rows in them are not.
    """
    order_N = np.random.default_rng([seed, epoch]).permutation(len(lengths_N))
    turns = np.random.default_rng(epoch)
    for start in range(0, len(order_N), batch_size * BATCHES_PER_WINDOW):
        window = order_N[start : start + batch_size * BATCHES_PER_WINDOW]
        window = window[np.argsort(lengths_N[window], kind='stable')]
        batches = [window[i : i + batch_size] for i in range(0, len(window), batch_size)]
        yield from (batches[i] for i in turns.permutation(len(batches)))


def pad_rows(inputs: Inputs, rows: np.ndarray, batch_size: int, length: int, pad_id: int):
    """Arrays of one batch.

    Args:
      inputs: of a split.
      rows: int[≤ batch_size].
      batch_size: B; places without a row are padding, with targets NaN.
      length: T, at least that of the longest row.
      pad_id: for the rest of each row.

    Returns:
      int32[B, T] and float32[B, C].
    """
    targets_BxC = np.full((batch_size, inputs.targets.shape[1]), np.nan, np.float32)
    targets_BxC[: len(rows)] = inputs.targets[rows]
    return pad([inputs.tokens[row] for row in rows], batch_size, length, pad_id), targets_BxC
