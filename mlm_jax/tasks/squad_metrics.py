"""The metrics of SQuAD, exact match and F1, as the official scripts of SQuAD 1.1 and 2.0 compute them.

Answers are compared in lower case, without punctuation, articles and repeated whitespace. F1 is the harmonic mean of
precision and recall over the words of the two answers, counted with multiplicity. The score of a question is the best
score over its correct answers. SQuAD 2.0 differs from 1.1 in three ways: the correct answer to a question without
answers is the empty string, correct answers that consist of only punctuation and articles are ignored, and there must
be a prediction for every question.

Rajpurkar et al., SQuAD: 100,000+ Questions for Machine Comprehension of Text (2016); Know What You Don't Know (2018).
"""

import collections
import re
import string
from collections.abc import Mapping, Sequence

import numpy as np

from mlm_jax.files.errors import ConfigError
from mlm_jax.tasks.squad import Question

BASELINES = ('no_answer', 'whole_context', 'first_sentence', 'overlapping_sentence', 'constant_span')

_PUNCTUATION = str.maketrans('', '', string.punctuation)
_ARTICLES = re.compile(r'\b(?:a|an|the)\b')
_SENTENCE = re.compile(r'\S.*?(?:[.!?](?=\s)|$)', re.DOTALL)


def normalize(text: str) -> str:
    """Removes differences that do not count: case, ASCII punctuation, articles, and the amount of whitespace."""
    return ' '.join(_ARTICLES.sub(' ', text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answer: str) -> int:
    """1 if the two are equal after `normalize`, else 0."""
    return int(normalize(prediction) == normalize(answer))


def f1(prediction: str, answer: str) -> float:
    """The F1 of the words of a prediction as in 2.0: if a text has no words, 1 if neither has any, else 0."""
    return _f1(normalize(prediction).split(), normalize(answer).split())


def evaluate_1(questions: Sequence[Question], predictions: Mapping[str, str]) -> dict[str, float]:
    """The metrics of evaluate-v1.1.py, 'exact_match' and 'f1', in percent; a question without a prediction counts as 0.

    Raises:
      ConfigError: if a question has no correct answer, which does not happen in SQuAD 1.1.
    """
    exact_sum, f1_sum = 0, 0.0
    for question in questions:
        if not question.texts:
            raise ConfigError(
                f'question {question.id} has no answers, so its data set is not SQuAD 1.1: evaluate it as SQuAD 2.0'
            )
        if question.id not in predictions:
            continue
        predicted = normalize(predictions[question.id])
        answers = [normalize(text) for text in question.texts]
        exact_sum += any(predicted == answer for answer in answers)
        # Unlike in 2.0, an empty prediction and an empty answer score 0.
        f1_sum += max(_f1(predicted.split(), answer.split()) if predicted else 0 for answer in answers)
    return {'exact_match': 100.0 * exact_sum / len(questions), 'f1': 100.0 * f1_sum / len(questions)}


def evaluate_2(
    questions: Sequence[Question],
    predictions: Mapping[str, str],
    null_odds: Mapping[str, float] | None = None,
    threshold: float = 1.0,
) -> dict[str, float]:
    """The metrics of evaluate-v2.0.py, in percent and under the names that it uses.

    Args:
      questions: questions with and without answers.
      predictions: id of a question → predicted answer; '' means no answer.
      null_odds: id of a question → how likely it has no answer, on any scale (`squad_answers.py`).
      threshold: if the odds of a question exceed it, its prediction counts as no answer. The default is that of the
        official script.

    Returns:
      'exact', 'f1' and 'total' for all questions, and with the prefixes 'HasAns_' and 'NoAns_' for the questions with
      and without answers, if there are any. With `null_odds` also 'best_exact' and 'best_f1', the scores at the best
      threshold, and these thresholds, 'best_exact_thresh' and 'best_f1_thresh'. The best thresholds are found on the
      same questions, so these scores are optimistic.

    Raises:
      ConfigError: if predictions or odds are missing.
    """
    odds = dict.fromkeys((question.id for question in questions), 0.0) if null_odds is None else null_odds
    _check_complete(questions, predictions, 'prediction')
    _check_complete(questions, odds, 'odds')
    has_answer = {question.id: bool(question.texts) for question in questions}
    numbers: dict[str, float] = {}
    best: dict[str, float] = {}
    for name, scores in zip(('exact', 'f1'), _scores_2(questions, predictions)):
        kept = {i: float(not has_answer[i]) if odds[i] > threshold else score for i, score in scores.items()}
        for prefix, wanted in (('', (False, True)), ('HasAns_', (True,)), ('NoAns_', (False,))):
            values = [score for i, score in kept.items() if has_answer[i] in wanted]
            if values:
                numbers[f'{prefix}{name}'] = 100.0 * sum(values) / len(values)
                numbers[f'{prefix}total'] = len(values)
        if null_odds is not None:
            best[f'best_{name}'], best[f'best_{name}_thresh'] = best_threshold(
                predictions, scores, null_odds, has_answer
            )
    return numbers | best


def best_threshold(
    predictions: Mapping[str, str],
    scores: Mapping[str, float],
    null_odds: Mapping[str, float],
    has_answer: Mapping[str, bool],
) -> tuple[float, float]:
    """Finds the threshold of the odds that gives the best score, as evaluate-v2.0.py does.

    Args:
      predictions: id of a question → predicted answer; '' means no answer.
      scores: id of a question → exact match or F1 of that prediction.
      null_odds: id of a question → how likely it has no answer.
      has_answer: id of a question → whether it has an answer.

    Returns:
      The best score in percent, and the threshold: the largest odds at which a question is still answered. If several
      thresholds are equally good, it is the lowest one; it is 0 if answering no question is best.
    """
    order = sorted((i for i in null_odds if i in scores), key=lambda i: null_odds[i])
    unanswerable = sum(not has for has in has_answer.values())
    gains = [scores[i] if has_answer[i] else -bool(predictions[i]) for i in order]
    totals = np.cumsum([unanswerable, *gains])
    best = int(totals.argmax())
    return 100.0 * float(totals[best]) / len(scores), null_odds[order[best - 1]] if best else 0.0


def trivial_baseline(questions: Sequence[Question], kind: str) -> dict[str, str]:
    """Answers without a model, as baselines for trained models.

    Args:
      questions: the questions to answer.
      kind: one of `BASELINES`: no answer; the whole context; its first sentence; the sentence that shares the most
        words with the question; or the words at the same position in every context, where the position is the best one
        for these questions (`constant_span`).

    Returns:
      id of a question → answer.
    """
    if kind == 'constant_span':
        first, count = constant_span(questions)
        return {question.id: _words(question.context, first, count) for question in questions}
    answer = {
        'no_answer': lambda question: '',
        'whole_context': lambda question: question.context,
        'first_sentence': lambda question: (_sentences(question.context) or [''])[0],
        'overlapping_sentence': _overlapping_sentence,
    }
    return {question.id: answer[kind](question) for question in questions}


def constant_span(questions: Sequence[Question], max_first: int = 8, max_count: int = 6) -> tuple[int, int]:
    """The span of words, as the index of its first word and its length, that has the best mean F1 over all contexts."""
    spans = [(first, count) for first in range(max_first) for count in range(1, max_count + 1)]
    totals = np.zeros(len(spans))
    for question in questions:
        answers = [normalize(text).split() for text in question.texts]
        for at, (first, count) in enumerate(spans if answers else ()):
            words = normalize(_words(question.context, first, count)).split()
            totals[at] += max(_f1(words, answer) for answer in answers)
    return spans[int(totals.argmax())]


def _scores_2(questions: Sequence[Question], predictions: Mapping[str, str]) -> tuple[dict, dict]:
    """Exact match and F1 of each question, as in 2.0."""
    exact, overlap = {}, {}
    for question in questions:
        predicted = normalize(predictions[question.id])
        answers = [answer for text in question.texts if (answer := normalize(text))] or ['']
        exact[question.id] = int(predicted in answers)
        overlap[question.id] = max(_f1(predicted.split(), answer.split()) for answer in answers)
    return exact, overlap


def _f1(predicted: Sequence[str], answer: Sequence[str]) -> float:
    if not predicted or not answer:
        return float(predicted == answer)
    shared = (collections.Counter(predicted) & collections.Counter(answer)).total()
    if not shared:
        return 0.0
    precision, recall = shared / len(predicted), shared / len(answer)
    return 2 * precision * recall / (precision + recall)


def _check_complete(questions: Sequence[Question], values: Mapping, name: str) -> None:
    missing = [question.id for question in questions if question.id not in values]
    if missing:
        raise ConfigError(
            f'{len(missing):,} of {len(questions):,} questions have no {name}, such as {missing[0]}: the metrics of '
            'SQuAD 2.0 need all of them'
        )


def _words(context: str, first: int, count: int) -> str:
    return ' '.join(context.split()[first : first + count])


def _sentences(context: str) -> list[str]:
    return _SENTENCE.findall(context)


def _overlapping_sentence(question: Question) -> str:
    asked = set(normalize(question.question).split())
    sentences = _sentences(question.context) or ['']
    return max(sentences, key=lambda sentence: len(asked & set(normalize(sentence).split())))
