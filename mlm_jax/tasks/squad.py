"""Reads SQuAD 1.1 and 2.0, questions about paragraphs whose answers are spans of a paragraph.

SQuAD 2.0 also has questions without an answer. The questions come from files in the official format (`train-v1.1.json`,
…) or from TFDS. `squad_features.py` converts them to model inputs, `squad_answers.py` converts logits to answers, and
`squad_metrics.py` scores the answers.
"""

import collections
import dataclasses
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlm_jax.data import tfds_sets
from mlm_jax.files import buckets, json_lines, streams
from mlm_jax.files.errors import ConfigError
from mlm_jax.tasks.examples import Task, TaskData

SUITE = 'squad'
VERSIONS = ('v1.1', 'v2.0')


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about a text.

    Attributes:
      id: the name of the question in files of predictions; unique within its data set.
      question: the text of the question.
      context: the text that contains the answer.
      texts: the correct answers; empty if there is no answer or none is known.
      starts: the position of each answer in the context, in characters; −1 if the context does not contain it.
      impossible: whether the context does not answer the question (2.0 only).
    """

    id: str
    question: str
    context: str
    texts: tuple[str, ...] = ()
    starts: tuple[int, ...] = ()
    impossible: bool = False


@dataclasses.dataclass(frozen=True)
class QuestionSet:
    """The questions of a file or of a split.

    Attributes:
      questions: the questions in the order of the file.
      version_2: whether some questions are impossible, as in SQuAD 2.0.
      notes: what was dropped or repaired while reading → how often; empty if nothing was.
    """

    questions: Sequence[Question]
    version_2: bool
    notes: Mapping[str, int]


def read(source: str | pathlib.Path, split: str = 'validation') -> QuestionSet:
    """Reads questions.

    Args:
      source: the path of a file in the official format, or 'tfds:squad/v1.1', 'tfds:squad/v2.0', or another TFDS data
        set with the same features.
      split: the split of a TFDS data set; ignored for a file.

    Raises:
      ConfigError: if the source is missing, is not SQuAD, or is empty.
    """
    questions: dict[str, Question] = {}
    notes: collections.Counter[str] = collections.Counter()
    if str(source).startswith('tfds:'):
        found = _tfds_questions(str(source).removeprefix('tfds:'), split, notes)
    else:
        found = _file_questions(buckets.path(source).expanduser(), notes)
    for question in found:
        if question.id in questions:
            notes['questions with the id of an earlier question, dropped'] += 1
        else:
            questions[question.id] = question
    if not questions:
        raise ConfigError(f'{source} holds no questions')
    version_2 = any(question.impossible for question in questions.values())
    return QuestionSet(tuple(questions.values()), version_2, dict(notes))


def read_task(version: str, directory: str) -> TaskData[Question]:
    """Reads a version of SQuAD for fine-tuning.

    Args:
      version: one of `VERSIONS`.
      directory: a directory that holds, for example, train-v1.1.json and dev-v1.1.json; or 'tfds'.

    Raises:
      ConfigError: if a file is missing, is not SQuAD, or belongs to the other version.
    """
    splits: dict[str, Sequence[Question]] = {}
    notes: collections.Counter[str] = collections.Counter()
    for split, name in (('train', 'train'), ('validation', 'dev')):
        source: str | pathlib.Path = f'tfds:{SUITE}/{version}'
        if directory != 'tfds':
            source = buckets.path(directory).expanduser() / f'{name}-{version}.json'
        found = read(source, split)
        if found.version_2 != (version == 'v2.0'):
            has = 'has questions without an answer' if found.version_2 else 'has an answer to every question'
            raise ConfigError(f'{source} is not SQuAD {version}: it {has}')
        splits[split] = found.questions
        notes += collections.Counter({f'{note} ({split})': times for note, times in found.notes.items()})
    task = Task(f'{SUITE}/{version}', 'span', ('start', 'end'), ('f1', 'exact_match'), {'epochs': 2})
    return TaskData(task, splits, dict(notes))


def _question(
    fields: Mapping[str, str], answers: Sequence[tuple[str, int]], impossible: bool, notes: collections.Counter[str]
) -> Question:
    """Builds a question and corrects the positions of its answers; `fields` has the keys id, question and context."""
    if any(map(json_lines.LONE_SURROGATE.search, [*fields.values(), *(text for text, _ in answers)])):
        notes['questions with a lone surrogate, replaced by �'] += 1
        fields = {name: json_lines.LONE_SURROGATE.sub('�', text) for name, text in fields.items()}
        answers = [(json_lines.LONE_SURROGATE.sub('�', text), start) for text, start in answers]
    if not fields['context'].strip():
        notes['questions about an empty context'] += 1
    if not answers and not impossible:
        notes['questions without answers that are not marked as impossible'] += 1
    return Question(
        **fields,
        texts=tuple(text for text, _ in answers),
        starts=tuple(_locate(text, start, fields['context'], notes) for text, start in answers),
        impossible=impossible,
    )


def _locate(text: str, start: int, context: str, notes: collections.Counter[str]) -> int:
    """The position of an answer: `start`, or the nearest position where the context has it; −1 if there is none."""
    if not text.strip():
        notes['answers that are empty'] += 1
        return -1
    if start >= 0 and context.startswith(text, start):
        return start
    places = [found.start() for found in re.finditer(f'(?={re.escape(text)})', context)]
    if not places:
        notes['answers that are not in the context'] += 1
        return -1
    notes['answers at a wrong position, moved to the nearest occurrence'] += 1
    return min(places, key=lambda place: abs(place - start))


# ---- Files ----------------------------------------------------------------------------------------------------------


def _file_questions(path: pathlib.Path, notes: collections.Counter[str]) -> Iterator[Question]:
    try:
        with streams.open_text(path) as file:
            text = file.read()
    except OSError as error:
        raise ConfigError(
            f'cannot read {path}: {error.strerror}. The files of SQuAD are train-v1.1.json, dev-v1.1.json, '
            'train-v2.0.json and dev-v2.0.json; or name a TFDS data set, such as tfds:squad/v1.1'
        ) from error
    try:
        content = json_lines.parse(text, 'the file')
    except ConfigError as error:
        raise ConfigError(f'{path} is not SQuAD: it is not JSON: {error}') from None
    for i, article in enumerate(_field(content, 'data', list, str(path))):
        where = f'{path}, data[{i}]'
        for j, paragraph in enumerate(_field(article, 'paragraphs', list, where)):
            place = f'{where}.paragraphs[{j}]'
            context = _field(paragraph, 'context', str, place)
            for k, entry in enumerate(_field(paragraph, 'qas', list, place)):
                yield _entry_question(entry, context, f'{place}.qas[{k}]', notes)


def _entry_question(entry: Any, context: str, where: str, notes: collections.Counter[str]) -> Question:
    fields = {name: _field(entry, name, str, where) for name in ('id', 'question')}
    answers = []
    for i, answer in enumerate(_field(entry, 'answers', list, where)):
        place = f'{where}.answers[{i}]'
        answers.append((_field(answer, 'text', str, place), _field(answer, 'answer_start', int, place)))
    impossible = 'is_impossible' in entry and _field(entry, 'is_impossible', bool, where)
    return _question({**fields, 'context': context}, answers, impossible, notes)


def _field(node: Any, name: str, kind: type, where: str) -> Any:
    """A field of a JSON object; raises ConfigError if it is missing or has the wrong type."""
    names = {list: 'a list', str: 'text', int: 'an integer', bool: 'true or false'}
    if not isinstance(node, dict) or name not in node:
        found = f'its fields are {", ".join(node)}' if isinstance(node, dict) else f'it is a {type(node).__name__}'
        raise ConfigError(
            f'{where} has no {name!r}: {found}. A file of SQuAD is {{"data": [{{"paragraphs": [{{"context": …, "qas": '
            '[{"id": …, "question": …, "answers": [{"text": …, "answer_start": …}]}]}]}]}; in 2.0, each question also '
            'has "is_impossible"'
        )
    if not isinstance(node[name], kind):
        raise ConfigError(f'{name!r} of {where} is a {type(node[name]).__name__}, not {names[kind]}')
    return node[name]


# ---- TFDS -----------------------------------------------------------------------------------------------------------


def _tfds_questions(name: str, split: str, notes: collections.Counter[str]) -> Iterator[Question]:
    builder = tfds_sets.prepared_builder(name)
    features, splits = builder.info.features, builder.info.splits
    missing = [wanted for wanted in ('id', 'question', 'context', 'answers') if wanted not in features]
    if missing:
        raise ConfigError(
            f'the data set {name} is not SQuAD: it has no feature {", ".join(missing)}; its features are '
            f'{", ".join(features)}'
        )
    if split not in splits:
        raise ConfigError(f'the data set {name} has no split {split}; its splits are {", ".join(splits)}')
    for example in builder.as_data_source(split):
        fields = {field: example[field].decode() for field in ('id', 'question', 'context')}
        texts, starts = example['answers']['text'], example['answers']['answer_start']
        answers = [(text.decode(), int(start)) for text, start in zip(texts, starts)]
        yield _question(fields, answers, bool(example.get('is_impossible', False)), notes)
