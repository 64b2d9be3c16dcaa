"""From the questions of SQuAD to rows of tokens: [CLS] question [SEP] [SEP] window of the context [SEP].

A context that is too long for a row is cut into overlapping windows, and each window makes a row with the whole
question. The special tokens are those of MAE-LM's release (https://github.com/yumeng5/MAE-LM), or as in BERT with one
[SEP] between the two. The windows, and the choice of one window for each token of the context, follow BERT's
run_squad.py (https://github.com/google-research/bert).
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from mlm_jax.data.sequences import SEPARATORS
from mlm_jax.files.errors import ConfigError
from mlm_jax.finetuning.inputs import BatchTokenizer
from mlm_jax.tasks.squad import Question


@runtime_checkable
class OffsetTokenizer(BatchTokenizer, Protocol):
    """What SQuAD needs of a tokenizer of `mlm_jax/data`."""

    def encode_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The ids of a text, and where each token starts and ends in the text, in characters: int32[n] each."""


@dataclasses.dataclass(frozen=True)
class Features:
    """W rows in the order of their questions; the windows of one question are in the order of its context.

    Attributes:
      ids: W rows, int32[n] each with n ≤ max_length, not padded.
      question_W: int32[W], the index of the question of each row.
      context_start_W: int32[W], the position in the row of the first token of the window.
      starts: for each row int32[c], the character of the context at which each token of the window starts, where c =
        n − context_start − 1. A token that stands for no character starts where it ends.
      ends: for each row int32[c], the character of the context at which each token ends.
      is_best_window: for each row bool[c], whether this is the window that gives the token the most context, as
        `best_windows` defines it. Each token of a context has exactly one such window.
      targets_Wx2: int32[W, 2], the positions in the row of the first and the last token of the answer; 0, the position
        of [CLS], where the window does not hold the whole answer or there is no answer.
      notes: a description of what was left out or cut → how often.
    """

    ids: Sequence[np.ndarray]
    question_W: np.ndarray
    context_start_W: np.ndarray
    starts: Sequence[np.ndarray]
    ends: Sequence[np.ndarray]
    is_best_window: Sequence[np.ndarray]
    targets_Wx2: np.ndarray
    notes: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.ids)


class _Context:
    """A tokenized context, and the windows that it is cut into."""

    def __init__(self, text: str, tokenizer: OffsetTokenizer):
        self.ids, self.starts, self.ends = tokenizer.encode_offsets(text)
        self._windows: dict[tuple[int, int], list[tuple[slice, np.ndarray]]] = {}

    def windows(self, room: int, stride: int) -> list[tuple[slice, np.ndarray]]:
        """Parts of at most `room` tokens, each with bool[c]: whether a token has the most context in this window."""
        if (room, stride) not in self._windows:
            bounds = window_bounds(len(self.ids), room, stride)
            self._windows[room, stride] = [(slice(*bound), best) for bound, best in zip(bounds, best_windows(bounds))]
        return self._windows[room, stride]

    def tokens_of(self, question: Question) -> tuple[int, int] | None:
        """The first and the last token of the first answer that occurs in the context; None if none occurs."""
        if question.impossible:
            return None
        for text, start in zip(question.texts, question.starts):
            if start >= 0:
                first = int(np.searchsorted(self.ends, start, side='right'))
                last = int(np.searchsorted(self.starts, start + len(text), side='left')) - 1
                if first <= last:
                    return first, last
        return None


def features(
    questions: Sequence[Question],
    tokenizer: OffsetTokenizer,
    max_length: int = 384,
    stride: int = 128,
    max_query: int = 64,
    for_training: bool = True,
    separators: int = SEPARATORS,
) -> Features:
    """Makes the rows of questions.

    Args:
      questions: as `tasks.squad.read` returns them.
      tokenizer: of the model.
      max_length: the maximal number of tokens in a row, including special tokens.
      stride: tokens from the start of one window to the start of the next.
      max_query: the maximal number of tokens of a question.
      for_training: leaves out questions whose answers do not occur in the context and questions with an empty context,
        and counts them in the notes. Where False, every question has at least one row.
      separators: how many [SEP] stand between the question and the context.

    Raises:
      ConfigError: when a row has no room for a context, or the stride is not positive.
    """
    check_room(max_length, stride, max_query, separators)
    v = tokenizer.vocabulary
    notes: collections.Counter[str] = collections.Counter()
    contexts: dict[str, _Context] = {}
    rows: list[tuple] = []  # one tuple for each row, with what the columns of `Features` hold
    for index, query in enumerate(tokenizer.encode_batch([question.question for question in questions])):
        question = questions[index]
        if question.context not in contexts:
            contexts[question.context] = _Context(question.context, tokenizer)
        context = contexts[question.context]
        answer = context.tokens_of(question)
        if for_training and not (len(context.ids) and (answer or question.impossible)):
            notes['questions left out, because their context is empty or does not contain any of their answers'] += 1
            continue
        notes[f'questions cut to {max_query} tokens'] += len(query) > max_query
        head = np.concatenate([[v.cls_id], query[:max_query], [v.sep_id] * separators]).astype(np.int32)
        for window, is_best in context.windows(max_length - len(head) - 1, stride):
            ids = np.concatenate([head, context.ids[window], np.array([v.sep_id], np.int32)])
            target = (0, 0)
            if answer and window.start <= answer[0] and answer[1] < window.stop:
                target = (len(head) + answer[0] - window.start, len(head) + answer[1] - window.start)
            rows.append((ids, index, len(head), context.starts[window], context.ends[window], is_best, target))
    ids_W, index_W, start_W, starts_W, ends_W, is_best_W, targets_W = zip(*rows) if rows else ((),) * 7
    return Features(
        ids_W,
        np.array(index_W, np.int32),
        np.array(start_W, np.int32),
        starts_W,
        ends_W,
        is_best_W,
        np.array(targets_W, np.int32).reshape(-1, 2),
        {name: times for name, times in notes.items() if times},
    )


def special_tokens(separators: int = SEPARATORS) -> int:
    """How many special tokens a row has: [CLS], those between the question and the context, and [SEP] at the end."""
    return 2 + separators


def check_room(max_length: int, stride: int, max_query: int, separators: int = SEPARATORS) -> None:
    """Raises ConfigError as `features`."""
    if max_query < 0 or stride < 1 or max_length <= max_query + special_tokens(separators):
        raise ConfigError(
            f'max_length={max_length}, stride={stride} and max_query={max_query} leave no room for the context: '
            f'max_length must be greater than max_query + {special_tokens(separators)}, and stride must be at least 1'
        )


def window_bounds(length: int, room: int, stride: int) -> list[tuple[int, int]]:
    """The windows of a context of `length` tokens, as pairs (start, stop); an empty context has one empty window."""
    stride = min(stride, max(1, room // 2))  # a larger one would cut answers at the borders of windows
    starts = range(0, max(0, length - room) + stride, stride)
    return [(start, min(start + room, length)) for start in starts]


def best_windows(bounds: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """For each window bool[stop − start]: whether a token has the most context there; of equal windows, the first.

    The context of a token in a window is the smaller number of the tokens to its left and to its right, plus a
    hundredth of the length of the window.
    """
    token_C = np.arange(bounds[-1][1])
    start_W, stop_W = np.array(bounds).T
    sides_WxC = np.minimum(token_C - start_W[:, None], stop_W[:, None] - 1 - token_C)  # negative outside
    context_WxC = np.where(sides_WxC >= 0, sides_WxC + 0.01 * (stop_W - start_W)[:, None], -1.0)
    best_C = context_WxC.argmax(0)
    return [best_C[start:stop] == w for w, (start, stop) in enumerate(bounds)]
