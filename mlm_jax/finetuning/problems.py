"""A task prepared for fine-tuning one model: tokenized inputs, scoring, predictions and a trivial baseline."""

import dataclasses
import json
import math
import pathlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

from mlm_jax.data.sequences import SEPARATORS
from mlm_jax.files import atomic
from mlm_jax.files.errors import ConfigError
from mlm_jax.finetuning import inputs as inputs_lib
from mlm_jax.finetuning import squad_answers, squad_features
from mlm_jax.finetuning.inputs import Inputs
from mlm_jax.finetuning.recipe import Recipe
from mlm_jax.tasks import metrics, squad_metrics
from mlm_jax.tasks.examples import Example, Task, TaskData
from mlm_jax.tasks.squad import Question

CLASS_WEIGHTS = ('none', 'balanced')
_SUBSET_SEED = 0


@dataclasses.dataclass(frozen=True)
class Problem:
    """A task prepared for one model.

    Attributes:
      loss: a key of `finetuning.losses.LOSSES`.
      num_outputs: of the head.
      inputs: split → Inputs; at least 'train' and 'validation'.
      score: (split, outputs) → metrics; empty for a split without targets. Outputs are float32[N, num_outputs], or for
        the loss 'span' a list of N arrays float32[n, 2].
      write: (split, outputs, directory) → None; writes the predictions into the directory.
      metric: the name of the metric that chooses the best parameters.
      weights: float32[C], the weights in the loss of the classes, or of the positive examples of each target.
      trivial: validation metrics of the best of the simple answers that do not depend on the input.
    """

    loss: str
    num_outputs: int
    inputs: Mapping[str, Inputs]
    score: Callable[[str, Any], dict[str, float]]
    write: Callable[[str, Any, pathlib.Path], None]
    metric: str
    weights: np.ndarray
    trivial: dict[str, float]


def make_problem(
    data: TaskData,
    tokenizer: inputs_lib.BatchTokenizer,
    recipe: Recipe,
    max_length: int,
    separators: int = SEPARATORS,
) -> tuple[Problem, dict[str, int]]:
    """Tokenizes a task.

    Args:
      data: the task and its examples.
      tokenizer: of the model; for SQuAD it must be a `squad_features.OffsetTokenizer`.
      recipe: its class weights, target scale, subset sizes and settings for SQuAD are used.
      max_length: the maximal number of tokens in a row.
      separators: how many [SEP] stand between the texts of a pair.

    Returns:
      The problem, and notes: a description of what was cut or left out → how often.

    Raises:
      ConfigError: for a setting or a tokenizer that does not fit the task, and for a train or validation split that is
        too small.
    """
    check(data, tokenizer, recipe, max_length, separators)
    limits = {'train': recipe.max_train_examples, 'validation': recipe.max_validation_examples}
    splits = {split: subset(examples, limits.get(split, 0)) for split, examples in data.splits.items()}
    notes: Counter[str] = Counter()
    for split in [split for split, examples in splits.items() if not examples]:
        del splits[split]
        notes[f'{split} split left out, because it has no examples'] += 1
    if isinstance(tokenizer, squad_features.OffsetTokenizer) and data.task.kind == 'span':
        problem = _span_problem(data.task, splits, tokenizer, recipe, max_length, separators, notes)
    else:
        problem = _text_problem(data.task, splits, tokenizer, recipe, max_length, separators, notes)
    return problem, {note: count for note, count in notes.items() if count}


def check(
    data: TaskData,
    tokenizer: inputs_lib.BatchTokenizer,
    recipe: Recipe,
    max_length: int,
    separators: int = SEPARATORS,
) -> None:
    """Raises the errors of `make_problem`, whose arguments these are, before anything is tokenized."""
    task = data.task
    for split in ('train', 'validation'):
        if not data.splits[split]:
            raise ConfigError(f'the {split} split of {task.name} has no examples: fine-tuning needs some')
    if task.kind == 'span':
        if not isinstance(tokenizer, squad_features.OffsetTokenizer):
            raise ConfigError(
                f'{task.name} asks for spans of a text, and the tokenizer of this model does not tell where in a text '
                'its tokens are: use a model that was pretrained on text'
            )
        squad_features.check_room(max_length, recipe.stride, _max_query(recipe, max_length, separators), separators)
        return
    inputs_lib.room_for_text(len(data.splits['train'][0].texts), max_length, separators)
    most = recipe.max_validation_examples
    validation = subset(data.splits['validation'], most)
    targets_NxC = np.array([example.targets for example in validation], np.float32)
    if reason := metrics.undefined(task.metrics[0], targets_NxC):
        raise ConfigError(
            f'{task.metrics[0]} is undefined on the validation split of {task.name}: {reason} there. The split needs '
            f'more examples{f" than max_validation_examples={most}" if most else ""}'
        )


def _max_query(recipe: Recipe, max_length: int, separators: int) -> int:
    """The question takes at most half of a row, so that the context has room in short rows too."""
    return min(recipe.max_query, (max_length - squad_features.special_tokens(separators)) // 2)


def _text_problem(
    task: Task,
    splits: Mapping[str, Sequence[Example]],
    tokenizer: inputs_lib.BatchTokenizer,
    recipe: Recipe,
    max_length: int,
    separators: int,
    notes: Counter[str],
) -> Problem:
    inputs = {
        split: inputs_lib.encode(rows, tokenizer, max_length, notes, separators) for split, rows in splits.items()
    }
    raw = {split: x.targets for split, x in inputs.items()}
    shift_C, scale_C = np.zeros(1, np.float32), np.ones(1, np.float32)
    if task.kind == 'regression':
        shift_C, scale_C = _scaling(raw['train'], recipe.target_scale)
        inputs = {split: dataclasses.replace(x, targets=(x.targets - shift_C) / scale_C) for split, x in inputs.items()}

    def score(split: str, outputs_NxC: np.ndarray) -> dict[str, float]:
        known_N = ~np.isnan(raw[split]).all(axis=1)
        if not known_N.any():
            return {}
        return metrics.score(task.metrics, raw[split][known_N], (outputs_NxC * scale_C + shift_C)[known_N])

    def write(split: str, outputs_NxC: np.ndarray, directory: pathlib.Path) -> None:
        lines = describe_predictions(task, splits[split], outputs_NxC * scale_C + shift_C)
        text = ''.join(f'{json.dumps(line, ensure_ascii=False)}\n' for line in lines)
        # JSON allows half of a surrogate pair in the name of a class. UTF-8 does not: write the escape of JSON.
        atomic.write_bytes(directory / f'predictions_{split}.jsonl', text.encode(errors='backslashreplace'))

    num_outputs = len(task.labels)
    weights = _class_weights(task.kind, raw['train'], num_outputs) if recipe.class_weights == 'balanced' else None
    constant_C = (_constant(task.kind, raw['train'], num_outputs) - shift_C) / scale_C
    trivial = score('validation', np.tile(constant_C, (len(raw['validation']), 1)))
    if task.kind == 'multilabel':
        notes['targets without a known value in the train split'] += int(np.isnan(raw['train']).all(axis=0).sum())
    return Problem(
        loss=task.kind,
        num_outputs=num_outputs,
        inputs=inputs,
        score=score,
        write=write,
        metric=task.metrics[0],
        weights=np.ones(num_outputs, np.float32) if weights is None else weights,
        trivial=trivial,
    )


def _span_problem(
    task: Task,
    splits: Mapping[str, Sequence[Question]],
    tokenizer: squad_features.OffsetTokenizer,
    recipe: Recipe,
    max_length: int,
    separators: int,
    notes: Counter[str],
) -> Problem:
    max_query = _max_query(recipe, max_length, separators)
    version_2 = task.name.endswith('v2.0')
    features = {}
    for split, questions in splits.items():
        features[split] = squad_features.features(
            questions, tokenizer, max_length, recipe.stride, max_query, split == 'train', separators
        )
        notes.update({f'{note} ({split})': count for note, count in features[split].notes.items()})

    def decode(split: str, outputs: Sequence[np.ndarray]) -> squad_answers.Decoded:
        starts, ends = ([output[:, i] for output in outputs] for i in range(2))
        return squad_answers.decode(
            features[split], splits[split], starts, ends, max_answer=recipe.max_answer,
            null_threshold=recipe.null_threshold, version_2=version_2,
        )  # fmt: skip

    def judge(split: str, predictions: Mapping[str, str]) -> dict[str, float]:
        if not version_2:
            return _fractions(squad_metrics.evaluate_1(splits[split], predictions))
        found = squad_metrics.evaluate_2(splits[split], predictions)
        return _fractions({'exact_match': found.pop('exact'), **found})

    def score(split: str, outputs: Sequence[np.ndarray]) -> dict[str, float]:
        decoded = decode(split, outputs)
        found = judge(split, decoded.predictions)
        if version_2:  # the best thresholds may lie above the recipe's, so they are looked for among all answers
            at_any = squad_metrics.evaluate_2(splits[split], decoded.answers, decoded.null_odds)
            found |= _fractions({name: value for name, value in at_any.items() if name.startswith('best_')})
        return found

    baselines = (judge('validation', squad_metrics.trivial_baseline(splits['validation'], k)) for k in _BASELINES)
    return Problem(
        loss='span',
        num_outputs=2,
        inputs={
            split: inputs_lib.Inputs(f.ids, f.targets_Wx2.astype(np.float32), max_length)
            for split, f in features.items()
        },
        score=score,
        write=lambda split, outputs, directory: squad_answers.write(decode(split, outputs), directory),
        metric=task.metrics[0],
        weights=np.ones(2, np.float32),
        trivial=max(baselines, key=lambda found: found[task.metrics[0]]),
    )


# Those of `squad_metrics.BASELINES` that do not depend on the question.
_BASELINES = ('no_answer', 'first_sentence', 'constant_span')


def _fractions(percents: dict[str, float]) -> dict[str, float]:
    """The metrics as fractions; counts and thresholds are left out."""
    return {name: value / 100 for name, value in percents.items() if not name.endswith(('total', 'thresh'))}


def describe_predictions(task: Task, examples: Sequence[Example], outputs_NxC: np.ndarray) -> Iterator[dict]:
    """For each example its id, the prediction, and the target where it is known.

    Args:
      task: its kind tells whether outputs are logits of classes, logits of yes-or-no targets, or values.
      examples: of the split.
      outputs_NxC: the model's outputs; values of a regression are on the scale of the targets.
    """
    for example, output_C in zip(examples, outputs_NxC.astype(float), strict=True):
        if task.kind == 'classification':
            label, (target,) = int(output_C.argmax()), example.targets
            yield {
                'id': example.id,
                'prediction': task.labels[label],
                'probability': round(special.softmax(output_C)[label], 6),
                'target': None if math.isnan(target) else task.labels[int(target)],
            }
            continue
        values_C = special.expit(output_C) if task.kind == 'multilabel' else output_C
        yield {
            'id': example.id,
            'prediction': {name: round(value, 6) for name, value in zip(task.labels, values_C, strict=True)},
            'target': {
                name: value for name, value in zip(task.labels, example.targets, strict=True) if not math.isnan(value)
            },
        }


def subset(rows: Sequence, size: int) -> Sequence:
    """A random subset of the rows in their original order, the same in every call; all rows where `size` is 0."""
    if not 0 < size < len(rows):
        return rows
    return [rows[i] for i in np.sort(np.random.default_rng(_SUBSET_SEED).permutation(len(rows))[:size])]


def _scaling(targets_NxC: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """The shift and the scale of the targets, float32[1] or float32[C]: given, or those of the train split."""
    if scale:
        return np.zeros(1, np.float32), np.array([scale], np.float32)
    mean_C = _means(targets_NxC)
    deviation_C = np.sqrt(_means((targets_NxC - mean_C) ** 2))
    return mean_C, np.where(deviation_C > 0, deviation_C, 1).astype(np.float32)


def _means(values_NxC: np.ndarray) -> np.ndarray:
    """float32[C]: the mean of the known values of each target; 0 where none is known."""
    known_C = (~np.isnan(values_NxC)).sum(axis=0)
    return (np.nansum(values_NxC, axis=0) / np.maximum(known_C, 1)).astype(np.float32)


def _constant(kind: str, targets_NxC: np.ndarray, num_outputs: int) -> np.ndarray:
    """The constant output, float32[C], that fits the train split best: class counts as logits, or mean values."""
    if kind == 'classification':
        return np.bincount(targets_NxC[:, 0].astype(int), minlength=num_outputs).astype(np.float32)
    return _means(targets_NxC)


def _class_weights(kind: str, targets_NxC: np.ndarray, num_outputs: int) -> np.ndarray | None:
    """float32[C]: for classes N / (C · N_c), as scikit-learn's 'balanced'; for yes-or-no targets negatives / positives.

    None for a regression.
    """
    if kind == 'classification':
        counts_C = np.bincount(targets_NxC[:, 0].astype(int), minlength=num_outputs)
        return (len(targets_NxC) / (num_outputs * np.maximum(counts_C, 1))).astype(np.float32)
    if kind == 'multilabel':
        positives_C, known_C = np.nansum(targets_NxC, axis=0), (~np.isnan(targets_NxC)).sum(0)
        return ((known_C - positives_C) / np.maximum(positives_C, 1)).astype(np.float32)
    return None
