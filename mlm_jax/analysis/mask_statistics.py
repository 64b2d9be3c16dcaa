"""What masks look like: which positions are chosen and what replaces their tokens, counted over batches."""

import dataclasses
import pathlib

import numpy as np

from mlm_jax.files import pictures
from mlm_jax.masking.batch import MaskedBatch
from mlm_jax.masking.tables import find_word_starts
from mlm_jax.masking.vocabulary import Vocabulary

# What happens to a token. The last kind is no target: the input differs from the text there, but nothing is predicted.
KINDS = ('left alone', '[MASK]', 'random token', 'unchanged, predicted', 'replaced, not predicted')
MAX_RUN = 30  # a longer run is counted as a run of this length


def kinds(batch: MaskedBatch, vocabulary: Vocabulary) -> np.ndarray:
    """int[B, T]: what happens to each token, as an index into `KINDS`."""
    tokens, inputs = np.asarray(batch.tokens), np.asarray(batch.inputs)
    chosen = np.zeros((len(tokens), tokens.shape[1] + 1), bool)
    np.put_along_axis(chosen, np.asarray(batch.positions), True, axis=1)  # unused slots hold T
    chosen, changed = chosen[:, :-1], inputs != tokens
    return np.select([chosen & (inputs == vocabulary.mask_id), chosen & changed, chosen, changed], [1, 2, 3, 4], 0)


@dataclasses.dataclass
class MaskStatistics:
    """Counts over the rows added so far.

    Attributes:
      ratios: for each row the share of its eligible tokens that are chosen.
      kinds: int[5], the number of tokens of each of `KINDS`.
      runs: int[31], the number of runs of adjacent chosen tokens, by their length.
      words: int[2], the number of words with a chosen token, and of words whose tokens are all chosen.
      chosen: int[T], the number of rows in which a position is chosen.
      eligible: int[T], the number of rows in which a position could be chosen.
      overflow: the number of tokens that were chosen but dropped, because a row had no free slot for them.
    """

    ratios: list[float]
    kinds: np.ndarray
    runs: np.ndarray
    words: np.ndarray
    chosen: np.ndarray
    eligible: np.ndarray
    overflow: int = 0

    @classmethod
    def zeros(cls, length: int) -> 'MaskStatistics':
        """The counts over no rows, for rows of `length` tokens."""
        kinds, runs, words, chosen, eligible = (
            np.zeros(n, np.int64) for n in (len(KINDS), MAX_RUN + 1, 2, length, length)
        )
        return cls([], kinds, runs, words, chosen, eligible)

    def add(
        self,
        batch: MaskedBatch,
        overflow_B: np.ndarray,
        word_starts: np.ndarray,
        vocabulary: Vocabulary,
        word_marks: np.ndarray | None = None,
    ) -> None:
        """Adds the counts of one batch.

        Args:
          batch: from `Masking`.
          overflow_B: int[B], for each row the number of chosen tokens that were dropped for lack of a slot.
          word_starts: bool[V], as in `masking.tables.Tables`.
          vocabulary: of the tokens.
          word_marks: uint8[V], as in `masking.tables.Tables`.
        """
        tokens = np.asarray(batch.tokens)
        kinds_BxT = kinds(batch, vocabulary)
        chosen_BxT = kinds_BxT > 0
        eligible_BxT = (np.asarray(batch.segments) > 0) & ~np.isin(tokens, vocabulary.special_ids)
        self.ratios += (chosen_BxT.sum(1) / np.maximum(1, eligible_BxT.sum(1)))[eligible_BxT.any(1)].tolist()
        self.kinds += np.bincount(kinds_BxT[eligible_BxT], minlength=len(KINDS))
        self.runs += _run_lengths(chosen_BxT)
        before = np.pad(eligible_BxT[:, :-1], ((0, 0), (1, 0)))
        starts_BxT = eligible_BxT & (find_word_starts(tokens, word_starts, word_marks) | ~before)
        word_N = np.cumsum(starts_BxT)[eligible_BxT.ravel()]  # the number of the word of each eligible token
        hit_W, size_W = np.bincount(word_N, chosen_BxT[eligible_BxT]), np.bincount(word_N)
        self.words += [np.count_nonzero(hit_W), np.count_nonzero((hit_W == size_W) & (hit_W > 0))]
        self.chosen += chosen_BxT.sum(0)
        self.eligible += eligible_BxT.sum(0)
        self.overflow += int(np.sum(overflow_B))

    def summary(self) -> dict[str, float]:
        """The statistics over all rows, by a description of each."""
        chosen, predicted = int(self.kinds[1:].sum()), int(self.kinds[1:4].sum())
        lengths = np.arange(MAX_RUN + 1)
        return {
            'rows': len(self.ratios),
            'chosen share of the tokens': chosen / max(1, int(self.kinds.sum())),
            'predicted share of the tokens': predicted / max(1, int(self.kinds.sum())),
            'standard deviation of the chosen share over rows': float(np.std(self.ratios)) if self.ratios else 0.0,
            **{f'of the chosen: {name}': int(n) / max(1, chosen) for name, n in zip(KINDS[1:], self.kinds[1:])},
            'mean length of runs of chosen tokens': float(self.runs @ lengths / max(1, self.runs.sum())),
            'of the words touched: wholly chosen': float(self.words[1] / max(1, self.words[0])),
            'of the tokens chosen at first: without a slot': self.overflow / max(1, chosen + self.overflow),
        }

    def draw(self, path: pathlib.Path, title: str) -> None:
        """Draws the distributions of mask ratios, of lengths of runs, and of chosen positions, as a PNG file."""
        figure = pictures.new_figure(12, 3.6)
        ratio, run, position = figure.subplots(1, 3)
        ratio.hist(self.ratios, bins=40, color='tab:blue')
        ratio.set(xlabel='chosen share of the tokens of a row', ylabel='rows')
        longest = max(2, int(np.flatnonzero(self.runs).max(initial=2)))
        run.bar(np.arange(1, longest + 1), self.runs[1 : longest + 1] / max(1, self.runs.sum()), color='tab:orange')
        run.set(xlabel='tokens in a run of chosen ones', ylabel='share of the runs')
        marginal = self.chosen / np.maximum(1, self.eligible)
        position.plot(np.where(self.eligible > 0, marginal, np.nan), color='tab:green', linewidth=1)
        position.set(xlabel='position in the row', ylabel='share of its tokens chosen', ylim=(0, None))
        for axes in (ratio, run, position):
            axes.grid(alpha=0.3)
        figure.suptitle(pictures.plain_text(title))
        pictures.save(figure, path)


def _run_lengths(chosen_BxT: np.ndarray) -> np.ndarray:
    """int[MAX_RUN + 1]: the number of runs of True of each length."""
    padded = np.pad(chosen_BxT.astype(np.int8), ((0, 0), (1, 1))).ravel()
    edges = np.flatnonzero(np.diff(padded))
    lengths = np.minimum(edges[1::2] - edges[::2], MAX_RUN)
    return np.bincount(lengths, minlength=MAX_RUN + 1)
