"""Tasks made ready for a model: what is scored, what is weighted, and what an answer without knowledge reaches."""

import json

import numpy as np
import pytest

from mlm_jax.config import ConfigError
from mlm_jax.finetuning import problems
from mlm_jax.finetuning.recipe import Recipe
from mlm_jax.masking.vocabulary import standard_vocabulary
from mlm_jax.tasks import squad
from mlm_jax.tasks.examples import Example, Task, TaskData
from mlm_jax.tasks.squad import Question

pytest.importorskip('sklearn')


class Words:
    """A tokenizer: a token for each word."""

    vocabulary = standard_vocabulary(64)

    def encode_batch(self, texts):
        return [self.encode_offsets(text)[0] for text in texts]

    def encode_offsets(self, text):
        words = text.split()
        starts = np.cumsum([0] + [len(word) + 1 for word in words])[:-1].astype(int)
        ids = np.array([5 + hash(word) % 50 for word in words], np.int32)
        return ids, starts, starts + [len(word) for word in words]


def make(task: Task, train, validation, **recipe):
    data = TaskData(task, {'train': train, 'validation': validation, 'test': [Example('t', ('a',), (np.nan,))]})
    return problems.make_problem(data, Words(), Recipe(**recipe), 16)


def examples(*targets):
    return [Example(str(i), (f'word {i}',), target if isinstance(target, tuple) else (target,))
            for i, target in enumerate(targets)]  # fmt: skip


def test_classes_have_weights_by_rarity_and_the_frequent_one_is_trivial(tmp_path):
    task = Task('mine', 'classification', ('ham', 'spam'), ('accuracy', 'matthews'))
    problem, notes = make(task, examples(0, 0, 0, 1), examples(0, 1, 0), class_weights='balanced')
    assert problem.weights.tolist() == pytest.approx([4 / 6, 4 / 2]) and notes == {}
    assert problem.trivial == {'accuracy': pytest.approx(2 / 3), 'matthews': 0}
    perfect = np.array([[1, 0], [0, 1], [1, 0]], np.float32)
    assert problem.score('validation', perfect) == {'accuracy': 1, 'matthews': 1}
    assert problem.score('test', np.zeros((1, 2))) == {}, 'no targets, no metrics'
    problem.write('validation', perfect, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / 'predictions_validation.jsonl').read_text().splitlines()]
    assert lines[1] == {'id': '1', 'prediction': 'spam', 'probability': pytest.approx(0.731059), 'target': 'spam'}


@pytest.mark.parametrize('scale', [0.0, 5.0])
def test_values_are_scaled_for_the_model_and_scaled_back_for_the_score(scale, tmp_path):
    task = Task('mine', 'regression', ('score',), ('rmse',))
    problem, _ = make(task, examples(1.0, 3.0, 5.0), examples(2.0, 4.0), target_scale=scale)
    targets = problem.inputs['train'].targets[:, 0]
    if scale:
        np.testing.assert_allclose(targets, [0.2, 0.6, 1.0])
    else:
        assert targets.mean() == pytest.approx(0, abs=1e-6) and targets.std() == pytest.approx(1)
    outputs = problem.inputs['validation'].targets
    assert problem.score('validation', outputs) == {'rmse': pytest.approx(0, abs=1e-6)}
    assert problem.trivial == {'rmse': pytest.approx(1)}, 'the mean of the train split'
    problem.write('validation', outputs, tmp_path)
    assert '"prediction": {"score": 2.0}' in (tmp_path / 'predictions_validation.jsonl').read_text()


def test_rare_positives_weigh_more():
    task = Task('mine', 'multilabel', ('x', 'y'), ('roc_auc',))
    rows = examples((1.0, np.nan), (0.0, 1.0), (0.0, 0.0), (0.0, np.nan))
    problem, _ = make(task, rows, rows, class_weights='balanced')
    assert problem.weights.tolist() == [3, 1] and problem.trivial == {'roc_auc': 0.5}


def test_what_is_not_known_does_not_count():
    task = Task('mine', 'classification', ('ham', 'spam'), ('accuracy',))
    validation = [*examples(0, 1), Example('?', ('hidden',), (np.nan,))]
    problem, _ = make(task, examples(0, 1), validation)
    assert problem.score('validation', np.array([[1, 0], [0, 1], [0, 1]], np.float32)) == {'accuracy': 1}
    task = Task('mine', 'multilabel', ('x', 'y'), ('roc_auc',))
    problem, notes = make(task, examples((1.0, np.nan), (0.0, np.nan)), examples((1.0, 1.0), (0.0, 0.0)))
    assert notes == {'targets without a known value in the train split': 1} and problem.trivial == {'roc_auc': 0.5}
    with pytest.raises(ConfigError, match='roc_auc is undefined on the validation split of mine'):
        make(task, examples((1.0, 1.0), (0.0, 0.0)), examples((1.0, 1.0)))


def test_a_metric_that_could_choose_nothing_is_refused():
    classes = Task('mine', 'classification', ('ham', 'spam'), ('roc_auc',))
    values = Task('mine', 'regression', ('score',), ('pearson_spearman',))
    for task, validation, message in (
        (classes, examples(1, 1, 1), 'roc_auc is undefined .* no target has both positive and negative examples there'),
        (values, examples(2.5, 2.5), 'no target has two different values there. The split needs more examples$'),
        (values, examples(1.5, 2.5), 'needs more examples than max_validation_examples=1$'),
    ):
        with pytest.raises(ConfigError, match=message):
            make(task, examples(0, 1), validation, max_validation_examples=1 if '=1' in message else 0)


def test_empty_splits():
    task = Task('mine', 'classification', ('ham', 'spam'), ('accuracy',))
    with pytest.raises(ConfigError, match='the validation split of mine has no examples'):
        make(task, examples(0, 1), [])
    data = TaskData(task, {'train': examples(0, 1), 'validation': examples(0, 1), 'test': []})
    problem, notes = problems.make_problem(data, Words(), Recipe(), 16)
    assert 'test' not in problem.inputs and notes == {'test split left out, because it has no examples': 1}


def test_parts_of_splits_are_the_same_every_time():
    rows = examples(*range(50))
    part = problems.subset(rows, 10)
    assert len(part) == 10 and part == problems.subset(rows, 10) and part != rows[:10]
    assert problems.subset(rows, 0) is rows and problems.subset(rows, 99) is rows


def questions(count):
    contexts = [f'alpha {i} beta gamma delta {i} epsilon.' for i in range(count)]
    return [Question(f'q{i}', f'what {i}', c, ('gamma delta',), (c.index('gamma'),)) for i, c in enumerate(contexts)]


def perfect_logits(inputs):
    logits = []
    for row, target in zip(inputs.tokens, inputs.targets.astype(int)):
        logits.append(np.full((len(row), 2), -9.0, np.float32))
        logits[-1][target[0], 0] = logits[-1][target[1], 1] = 9
    return logits


def test_answers_in_a_text(tmp_path):
    task = Task('squad/v1.1', 'span', ('start', 'end'), ('f1', 'exact_match'))
    data = TaskData(task, {'train': questions(6), 'validation': questions(4)})
    problem, notes = problems.make_problem(data, Words(), Recipe(stride=4), 16)
    assert problem.loss == 'span' and not notes
    assert problem.score('validation', perfect_logits(problem.inputs['validation'])) == {'f1': 1, 'exact_match': 1}
    assert 0 < problem.trivial['f1'] <= 1
    problem.write('validation', perfect_logits(problem.inputs['validation']), tmp_path)
    assert json.loads((tmp_path / 'predictions.json').read_text())['q1'] == 'gamma delta'


@pytest.mark.parametrize('separators', [1, 2])
def test_a_question_is_separated_from_its_context_as_a_pair(separators):
    task = Task('squad/v1.1', 'span', ('start', 'end'), ('f1', 'exact_match'))
    data = TaskData(task, {'train': questions(6), 'validation': questions(4)})
    problem, _ = problems.make_problem(data, Words(), Recipe(stride=4), 16, separators)
    row, sep = problem.inputs['validation'].tokens[0].tolist(), Words.vocabulary.sep_id
    assert row[3 : 3 + separators] == [sep] * separators and row.count(sep) == separators + 1
    assert problem.score('validation', perfect_logits(problem.inputs['validation'])) == {'f1': 1, 'exact_match': 1}


def test_questions_without_an_answer():
    task = Task('squad/v2.0', 'span', ('start', 'end'), ('f1', 'exact_match'))
    without = [Question(q.id + 'x', q.question, q.context, impossible=True) for q in questions(4)]
    data = TaskData(task, {'train': questions(6), 'validation': [*questions(4), *without]})
    problem, _ = problems.make_problem(data, Words(), Recipe(stride=4), 16)
    found = problem.score('validation', perfect_logits(problem.inputs['validation']))
    assert found['f1'] == 1 and found['HasAns_f1'] == 1 and found['NoAns_exact'] == 1
    assert problem.trivial['f1'] == 0.5 and 'total' not in found and 'best_f1_thresh' not in found


def test_the_best_threshold_may_lie_above_that_of_the_recipe():
    """All odds of "no answer" are 2, and all answers would be right."""
    task = Task('squad/v2.0', 'span', ('start', 'end'), ('f1', 'exact_match'))
    data = TaskData(task, {'train': questions(6), 'validation': questions(4)})
    problem, _ = problems.make_problem(data, Words(), Recipe(stride=4), 16)
    logits = perfect_logits(problem.inputs['validation'])
    for row in logits:
        row[0] = 10.0
    found = problem.score('validation', logits)
    assert found['f1'] == found['exact_match'] == 0 and found['best_f1'] == found['best_exact'] == 1


def test_a_file_of_the_other_version_is_refused(tmp_path):
    for name in ('train', 'dev'):
        content = {'data': [{'paragraphs': [{'context': 'a b c', 'qas': [
            {'id': '1', 'question': 'b?', 'answers': [{'text': 'b', 'answer_start': 2}]}]}]}]}  # fmt: skip
        (tmp_path / f'{name}-v2.0.json').write_text(json.dumps(content))
        (tmp_path / f'{name}-v1.1.json').write_text(json.dumps(content))
    data = squad.read_task('v1.1', str(tmp_path))
    assert data.task.kind == 'span' and len(data.splits['train']) == 1
    with pytest.raises(ConfigError, match='is not SQuAD v2.0: it has an answer to every question'):
        squad.read_task('v2.0', str(tmp_path))
    with pytest.raises(ConfigError, match='cannot read .*train-v1.1.json'):
        squad.read_task('v1.1', str(tmp_path / 'nowhere'))


def test_spans_need_a_tokenizer_that_knows_places():
    class WithoutOffsets:
        vocabulary = standard_vocabulary(64)
        encode_batch = Words.encode_batch

    task = Task('squad/v1.1', 'span', ('start', 'end'), ('f1', 'exact_match'))
    data = TaskData(task, {'train': questions(6), 'validation': questions(4)})
    with pytest.raises(ConfigError, match='squad/v1.1 asks for spans of a text'):
        problems.make_problem(data, WithoutOffsets(), Recipe(), 16)
