"""Questions of SQuAD → rows of tokens: [CLS] question [SEP] [SEP] window of the context [SEP].

A context too long for a row is cut into windows that overlap, each of which makes a row with the whole question. The
pair is written as in MAE-LM's release (https://github.com/yumeng5/MAE-LM); the windows, and which of them counts for a
token, are those of BERT's run_squad.py (https://github.com/google-research/bert).
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from mlm_jax.data.tokenizer_json import JSONTokenizer
from mlm_jax.data.tokenizers import Tokenizer
from mlm_jax.files.errors import ConfigError
from mlm_jax.tasks.squad import Question

SPECIAL_TOKENS = 4  # in a row: [CLS], and three times [SEP]


@dataclasses.dataclass(frozen=True)
class Features:
    """W rows, in the order of their questions; the windows of one question in the order of its context.

    Attributes:
      ids: W rows, int32[n] each with n ≤ max_length, not padded.
      question_W: int32[W], the index of the question of each row.
      context_start_W: int32[W], where in the row its window starts: the position of the window's first token.
      starts: W times int32[c], where in the context, in characters, each token of the window starts (c = n −
        context_start − 1); equal to its end for a token that stands for no character.
      ends: W times int32[c], where it ends.
      is_best_window: W times bool[c], whether no other window gives the token more context (the smaller of those on
        its two sides). Each token of a context has one such window.
      targets_Wx2: int32[W, 2], the positions in the row of the first and the last token of the answer; 0, that of
        [CLS], where the window does not hold it all, or there is none.
      notes: what was left out or cut, in words → how often.
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
    """A tokenised context, and the windows it is cut into."""

    def __init__(self, text: str, tokenizer: Tokenizer | JSONTokenizer):
        self.ids, self.starts, self.ends = tokenizer.encode_offsets(text)
        self._windows: dict[tuple[int, int], list[tuple[slice, np.ndarray]]] = {}

    def windows(self, room: int, stride: int) -> list[tuple[slice, np.ndarray]]:
        """Parts of at most `room` tokens, each with which of its tokens have most context there."""
        if (room, stride) not in self._windows:
            bounds = window_bounds(len(self.ids), room, stride)
            self._windows[room, stride] = [(slice(*bound), best) for bound, best in zip(bounds, best_windows(bounds))]
        return self._windows[room, stride]

    def tokens_of(self, question: Question) -> tuple[int, int] | None:
        """The first and the last token of the first answer that stands in the context; None if none does."""
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
    tokenizer: Tokenizer | JSONTokenizer,
    max_length: int = 384,
    stride: int = 128,
    max_query: int = 64,
    for_training: bool = True,
) -> Features:
    """Makes rows of questions.

    Args:
      questions: as `squad.read` finds them.
      tokenizer: that of the model.
      max_length: tokens in a row at most, specials included.
      stride: tokens from the start of a window to that of the next.
      max_query: tokens of a question that are kept.
      for_training: leaves out what has nothing to learn from, and counts it: questions whose answers do not stand in
        the context, and empty contexts. Else every question has a row at least.

    Raises:
      ConfigError: when a row has no room for a context, or the stride is not positive.
    """
    if max_query < 0 or stride < 1 or max_length <= max_query + SPECIAL_TOKENS:
        raise ConfigError(
            f'max_length={max_length}, stride={stride} and max_query={max_query} leave no room for the context: '
            f'max_length must be over max_query + {SPECIAL_TOKENS}, and the stride positive'
        )
    v, notes = tokenizer.vocabulary, collections.Counter()
    contexts: dict[str, _Context] = {}
    rows = []
    for index, query in enumerate(tokenizer.encode_batch([question.question for question in questions])):
        question = questions[index]
        if question.context not in contexts:
            contexts[question.context] = _Context(question.context, tokenizer)
        context = contexts[question.context]
        answer = context.tokens_of(question)
        if for_training and not (len(context.ids) and (answer or question.impossible)):
            notes['questions with nothing to learn from (no context, or no answer that stands in it), left out'] += 1
            continue
        notes[f'questions longer than {max_query} tokens, cut'] += len(query) > max_query
        head = np.concatenate([[v.cls_id], query[:max_query], [v.sep_id, v.sep_id]]).astype(np.int32)
        for window, is_best in context.windows(max_length - len(head) - 1, stride):
            ids = np.concatenate([head, context.ids[window], np.array([v.sep_id], np.int32)])
            holds = answer and window.start <= answer[0] and answer[1] < window.stop
            target = [len(head) + token - window.start for token in answer] if holds else (0, 0)
            rows.append((ids, index, len(head), context.starts[window], context.ends[window], is_best, target))
    ids, index_W, start_W, starts, ends, is_best, targets_W = zip(*rows) if rows else ((),) * 7
    return Features(
        ids,
        np.array(index_W, np.int32),
        np.array(start_W, np.int32),
        starts,
        ends,
        is_best,
        np.array(targets_W, np.int32).reshape(-1, 2),
        {name: times for name, times in notes.items() if times},
    )


def window_bounds(length: int, room: int, stride: int) -> list[tuple[int, int]]:
    """The parts of a context of `length` tokens: (start, stop) each; one, if need be empty, at least."""
    stride = min(stride, room)  # no token falls between two windows
    starts = range(0, max(0, length - room) + stride, stride)
    return [(start, min(start + room, length)) for start in starts]


def best_windows(bounds: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """For each window bool[stop − start]: which tokens have the most context in it; among equals, in the first.

    The context of a token is the smaller of those on its two sides, plus a hundredth of the window's length.
    """
    token_C = np.arange(bounds[-1][1])
    start_W, stop_W = np.array(bounds).T
    sides_WxC = np.minimum(token_C - start_W[:, None], stop_W[:, None] - 1 - token_C)  # negative outside
    context_WxC = np.where(sides_WxC >= 0, sides_WxC + 0.01 * (stop_W - start_W)[:, None], -1.0)
    best_C = context_WxC.argmax(0)
    return [best_C[start:stop] == w for w, (start, stop) in enumerate(bounds)]
