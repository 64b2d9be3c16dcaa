"""From logits of starts and ends to the answers to the questions of SQuAD, after BERT's run_squad.py.

The score of a span is the start logit of its first token plus the end logit of its last token. A span starts only in
the window that gives its first token the most context, so that no span counts twice; it ends in the same window and has
at most `max_answer` tokens. The best spans over all windows of a question are its answers. SQuAD 2.0 has one more
answer, "no answer": its score in a window is the start logit plus the end logit of [CLS], and the smallest score over
the windows counts.

One difference: run_squad.py considers only spans between the n best starts and the n best ends of a row. Here all spans
are considered, so the best span is never missed.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mlm_jax.files import atomic, buckets
from mlm_jax.finetuning.squad_features import Features
from mlm_jax.tasks.squad import Question

NO_SPAN_ODDS = 1e9  # the odds of "no answer" where no span is possible: JSON has no infinity


class Decoded(NamedTuple):
    """Answers, by the ids of their questions.

    Attributes:
      predictions: the answer, a part of the context; '' means "no answer".
      null_odds: the score of "no answer" minus the score of the best span; empty for SQuAD 1.1.
      n_best: the best answers with different texts, best first, each with its 'text', its 'start_logit', its
        'end_logit', and its 'probability', a softmax over these answers. For 2.0 "no answer", with the text '', is
        among them.
      answers: the best span, also where "no answer" is predicted; '' where no span is possible.
    """

    predictions: dict[str, str]
    null_odds: dict[str, float]
    n_best: dict[str, list[dict[str, str | float]]]
    answers: dict[str, str]


class _Candidate(NamedTuple):
    text: str
    start_logit: float
    end_logit: float

    @property
    def score(self) -> float:
        return self.start_logit + self.end_logit


def decode(
    features: Features,
    questions: Sequence[Question],
    start_logits: Sequence[np.ndarray],
    end_logits: Sequence[np.ndarray],
    n_best: int = 20,
    max_answer: int = 30,
    null_threshold: float = 0.0,
    version_2: bool = False,
) -> Decoded:
    """Finds the answers.

    Args:
      features: the rows of these questions, made with `for_training=False`.
      questions: all questions of the split.
      start_logits: for each row of `features` float[≥ n]; values behind its n tokens are ignored.
      end_logits: the same for the ends.
      n_best: the maximal number of answers to list for each question.
      max_answer: the maximal number of tokens in an answer.
      null_threshold: for 2.0, "no answer" is predicted where its odds are above this value.
      version_2: whether a question may have no answer, as in SQuAD 2.0.

    Raises:
      ValueError: when logits are missing or NaN, or a question has no row.
    """
    rows_of = np.split(np.arange(len(features)), np.searchsorted(features.question_W, np.arange(1, len(questions))))
    if len(start_logits) != len(features) or len(end_logits) != len(features):
        raise ValueError(f'{len(start_logits)} and {len(end_logits)} rows of logits for {len(features)} rows of tokens')
    if len(rows_of) != len(questions) or not all(map(len, rows_of)):
        raise ValueError('some questions have no row of tokens: make the features with for_training=False')
    decoded = Decoded({}, {}, {}, {})
    for question, rows in zip(questions, rows_of):
        spans = _best_spans(features, question, rows, start_logits, end_logits, n_best, max_answer)
        listed, answer = spans, spans[0].text if spans else ''
        decoded.answers[question.id] = answer
        if version_2:
            at_cls = [_Candidate('', float(start_logits[row][0]), float(end_logits[row][0])) for row in rows]
            null = min(at_cls, key=lambda candidate: candidate.score)
            odds = null.score - spans[0].start_logit - spans[0].end_logit if spans else NO_SPAN_ODDS
            decoded.null_odds[question.id] = odds
            listed, answer = _with_null(spans, null, n_best), '' if odds > null_threshold else answer
        decoded.predictions[question.id] = answer
        decoded.n_best[question.id] = _describe(listed or [_Candidate('', 0.0, 0.0)])
    return decoded


def write(decoded: Decoded, directory: str | pathlib.Path) -> None:
    """Writes predictions.json, nbest_predictions.json and, for 2.0, null_odds.json, in the format of run_squad.py."""
    directory = buckets.path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    contents = {'predictions': decoded.predictions, 'nbest_predictions': decoded.n_best, 'null_odds': decoded.null_odds}
    for name, content in contents.items():
        if content:
            atomic.write_bytes(directory / f'{name}.json', (json.dumps(content, indent=4) + '\n').encode())


def _best_spans(
    features: Features,
    question: Question,
    rows: np.ndarray,
    start_logits: Sequence[np.ndarray],
    end_logits: Sequence[np.ndarray],
    count: int,
    max_answer: int,
) -> list[_Candidate]:
    """The best spans with different texts, best first; of spans with equal scores, the earlier one is better."""
    lengths = [len(features.starts[row]) for row in rows]
    sizes, max_answer = np.cumsum([0, *lengths]), max(1, min(max_answer, max(lengths)))
    parts = [(_context_logits(features, row, start_logits), _context_logits(features, row, end_logits)) for row in rows]
    scores = np.concatenate(
        [_span_scores(*part, features.is_best_window[row], max_answer).ravel() for row, part in zip(rows, parts)]
    )
    possible = int((scores > -np.inf).sum())
    wanted = 4 * count
    while True:
        found: dict[str, _Candidate] = {}
        for index in _largest(scores, min(wanted, possible)):
            token, more = divmod(int(index), max_answer)
            window = int(np.searchsorted(sizes, token, side='right')) - 1
            first = token - int(sizes[window])
            row, (starts, ends) = rows[window], parts[window]
            text = question.context[features.starts[row][first] : features.ends[row][first + more]]
            if text and text not in found:
                found[text] = _Candidate(text, float(starts[first]), float(ends[first + more]))
                if len(found) == count:
                    return list(found.values())
        if wanted >= possible:
            return list(found.values())
        wanted *= 4


def _context_logits(features: Features, row: int, logits: Sequence[np.ndarray]) -> np.ndarray:
    """The logits of the context's tokens, float64[c]."""
    first, count = features.context_start_W[row], len(features.starts[row])
    part = np.asarray(logits[row][first : first + count], np.float64)
    if len(part) != count:
        raise ValueError(f'row {row}: {len(part)} logits for {count} tokens of context')
    if np.isnan(part).any():
        raise ValueError(f'row {row}: some logits of its {count} tokens of context are NaN')
    return part


def _span_scores(starts_C: np.ndarray, ends_C: np.ndarray, may_start_C: np.ndarray, max_answer: int) -> np.ndarray:
    """float64[c, max_answer]: at [i, j] the score of the span of j + 1 tokens from token i; −∞ where there is none."""
    padded = np.append(ends_C, np.full(max_answer, -np.inf))
    ends_CxA = np.lib.stride_tricks.sliding_window_view(padded, max_answer)[: len(ends_C)]
    return np.where(may_start_C, starts_C, -np.inf)[:, None] + ends_CxA


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """The indices of the `count` largest values, and of all values equal to the smallest of them, largest first."""
    if not count:
        return np.array([], np.int64)
    index = np.flatnonzero(values >= np.partition(values, -count)[-count])
    return index[np.argsort(-values[index], kind='stable')]


def _with_null(spans: Sequence[_Candidate], null: _Candidate, n_best: int) -> list[_Candidate]:
    """The n best answers including "no answer", which is added at the end if it is not among the n best."""
    rank = sum(span.score >= null.score for span in spans)
    return [*spans[:rank], null, *spans[rank : n_best - 1]] if rank < n_best else [*spans, null]


def _describe(candidates: Sequence[_Candidate]) -> list[dict[str, str | float]]:
    """The candidates as in `Decoded.n_best`."""
    scores = np.array([candidate.score for candidate in candidates])
    weights = np.exp(scores - scores.max())
    return [
        {'text': text, 'probability': float(weight), 'start_logit': start, 'end_logit': end}
        for (text, start, end), weight in zip(candidates, weights / weights.sum())
    ]
