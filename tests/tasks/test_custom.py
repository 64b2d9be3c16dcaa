"""Tasks of one's own."""

import json
import math

import numpy as np
import pytest

from mlm_jax.config import ConfigError
from mlm_jax.finetuning import problems
from mlm_jax.finetuning.recipe import Recipe
from mlm_jax.masking.vocabulary import standard_vocabulary
from mlm_jax.tasks import custom


def files(path, **changes) -> custom.Files:
    defaults = dict(
        name='mine', kind='classification', train=str(path), validation='', test='', texts=('text',),
        targets=('label',), held_out_percent=30.0,
    )  # fmt: skip
    return custom.Files(**{**defaults, **changes})


@pytest.fixture
def table(tmp_path):
    path = tmp_path / 'mine.csv'
    lines = [f'"one, {i}",b {i},{("ham", "spam")[i % 2]},{i / 10},{i % 2},{"" if i % 3 else 1}' for i in range(40)]
    path.write_text('\n'.join(['text,other,label,value,x,y', *lines, ',,ham,1,0,0', 'no label,,,1,0,']) + '\n')
    return path


def test_classes_are_those_of_the_train_split(table, tmp_path):
    test = tmp_path / 'test.tsv'
    test.write_text('text\tlabel\nagain\tspam\n')
    data = custom.read(files(table, test=str(test)))
    assert data.task.labels == ('ham', 'spam') and data.task.metrics == ('accuracy', 'macro_f1')
    assert len(data.splits['train']) + len(data.splits['validation']) == 40
    assert data.splits['train'][0].texts[0].startswith('one, '), 'a quoted field keeps its comma'
    assert data.splits['test'][0].targets == (1.0,)
    assert data.notes['examples of train without text, skipped'] == 1
    assert data.notes['examples of train without a target, skipped'] == 1
    test.write_text('text\tlabel\nagain\teggs\n')
    with pytest.raises(
        ConfigError, match="line 2 of .*: the label 'eggs' is not in the train split, which has ham, spam"
    ):
        custom.read(files(table, test=str(test)))


def test_numbers_are_classes_in_their_order(tmp_path):
    path = tmp_path / 'numbers.tsv'
    path.write_text('text\tlabel\n' + ''.join(f'a {i}\t{10 - i}\n' for i in range(10)))
    assert custom.read(files(path)).task.labels == tuple(map(str, range(1, 11)))


def test_whole_numbers_are_in_numerical_order_and_the_second_of_two_is_positive(tmp_path):
    path = tmp_path / 'signs.csv'
    for labels, order in ((('1', '-1'), ('-1', '1')), (('10.0', '2.0', 'x', '-3.0'), ('-3.0', '2.0', '10.0', 'x'))):
        path.write_text('text,label\n' + ''.join(f'a {i},{labels[i % len(labels)]}\n' for i in range(40)))
        assert custom.read(files(path)).task.labels == order
    path.write_text('text,label\n' + ''.join(f'a {i},{(1, -1)[i % 2]}\n' for i in range(40)))
    task = custom.read(files(path, metrics=('f1', 'roc_auc', 'average_precision'))).task
    words = "mine: the positive class of f1 and average_precision is '1', the other one '-1'"
    assert custom.describe_positive_class(task) == words
    assert custom.describe_positive_class(custom.read(files(path)).task) == ''


def test_white_space_makes_no_columns_and_no_classes(tmp_path):
    path = tmp_path / 'blanks.csv'
    cells = ('spam', 'spam ', ' ham', 'ham', ' ')
    lines = [f'a {i},{cells[i % 5]}, {i % 2}.5' for i in range(40)]
    path.write_text('\n'.join(['text, label ,value', *lines, 'b,spam, ']) + '\n')
    data = custom.read(files(path))
    assert data.task.labels == ('ham', 'spam')
    assert data.notes['column names of train with white space around them, which is left out'] == 1
    assert data.notes['examples of train with white space around a target, which is left out'] == 24
    assert data.notes['examples of train without a target, skipped'] == 8
    values = custom.read(files(path, kind='regression', targets=('value',)))
    assert values.notes['examples of train without a target, skipped'] == 1
    path.write_text('text,label, label\na,1,1\n')
    with pytest.raises(ConfigError, match="has columns whose names differ in white space only: 'label'; rename one"):
        custom.read(files(path))


def test_a_hidden_label_of_a_test_set_is_unknown(tmp_path):
    """As the data sets of Hugging Face export it; elsewhere, and where −1 is a class, it is what it says."""
    path, test = tmp_path / 'mine.csv', tmp_path / 'test.csv'
    path.write_text('text,label\n' + ''.join(f'a {i},{i % 2}\n' for i in range(40)))
    test.write_text('text,label\nb,-1\nc,1\n')
    data = custom.read(files(path, test=str(test)))
    assert math.isnan(data.splits['test'][0].targets[0]) and data.splits['test'][1].targets == (1.0,)
    assert data.notes['examples of test with the label −1, which is no class: taken as unknown'] == 1
    with pytest.raises(ConfigError, match="the label '-1' is not in the train split"):
        custom.read(files(path, validation=str(test)))
    path.write_text(path.read_text().replace(',0', ',-1'))
    assert custom.read(files(path, test=str(test))).splits['test'][0].targets == (0.0,)


def test_values_and_several_targets(table):
    data = custom.read(files(table, kind='regression', targets=('value',), texts=('text', 'other')))
    assert all(len(e.texts) == 2 for e in data.splits['train'])
    data = custom.read(files(table, kind='multilabel', targets=('x', 'y'), metrics=('roc_auc',)))
    targets = [e.targets for split in data.splits.values() for e in split]
    assert any(math.isnan(y) for _, y in targets) and {x for x, _ in targets} == {0.0, 1.0}
    with pytest.raises(ConfigError, match='must be 0, 1, or empty'):
        custom.read(files(table, kind='multilabel', targets=('x', 'value')))


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'texts': ('body',)}, "line 2 of .* has no 'body'; its fields are text, other, label"),
        ({'targets': ('class',)}, "has no 'class'"),
        ({'targets': ('label', 'x')}, 'a classification has one target column'),
        ({'texts': ()}, 'give one column, or two columns for pairs'),
        ({'kind': 'regression'}, "'ham' is not a finite number"),
        ({'train': 'nowhere.csv'}, 'cannot read nowhere.csv'),
        ({'train': 'table.xlsx'}, r'has an unknown suffix; use one of \.tsv'),
        ({'targets': ('text',), 'kind': 'classification', 'train': 'many'}, 'has 1,500 classes'),
    ],
)
def test_what_does_not_fit_is_refused(table, tmp_path, changes, message):
    if changes.get('train') == 'many':
        path = tmp_path / 'many.csv'
        path.write_text('text\n' + '\n'.join(f't{i}' for i in range(1500)) + '\n')
        changes = changes | {'train': str(path)}
    with pytest.raises(ConfigError, match=message):
        custom.read(files(table, **changes))


def test_none_is_a_class_and_null_is_none(tmp_path):
    path = tmp_path / 'stance.csv'
    path.write_text('text,label\n' + ''.join(f'a {i},{("None", "favor", "")[i % 3]}\n' for i in range(30)))
    data = custom.read(files(path))
    assert data.task.labels == ('None', 'favor')
    assert data.notes['examples of train without a target, skipped'] == 10
    path = tmp_path / 'stance.jsonl'
    labels = ('None', 'favor', None)
    path.write_text(''.join(json.dumps({'text': f'a {i}', 'label': labels[i % 3]}) + '\n' for i in range(30)))
    data = custom.read(files(path))
    assert data.task.labels == ('None', 'favor')
    assert data.notes['examples of train without a target, skipped'] == 10


@pytest.mark.parametrize('kind', ['classification', 'multilabel', 'regression'])
def test_nan_is_missing_as_null_is(tmp_path, kind):
    path, labels = tmp_path / 'nan.jsonl', (1, 0, math.nan, None)
    path.write_text(''.join(json.dumps({'text': f'a {i}', 'label': labels[i % 4]}) + '\n' for i in range(40)))
    assert 'NaN' in path.read_text()
    data = custom.read(files(path, kind=kind, test=str(path)))
    assert kind != 'classification' or data.task.labels == ('0', '1')
    assert data.notes['examples of train without a target, skipped'] == 20
    assert sum(math.isnan(*example.targets) for example in data.splits['test']) == 20


@pytest.mark.parametrize(
    ('first', 'second'), [('1', '1.0'), ('1', '+1'), ('-0', '0'), ('0.50', '.5'), ('1e2', '100'), ('7', '07')]
)
def test_classes_that_are_the_same_number_are_refused(tmp_path, first, second):
    path = tmp_path / 'joined.csv'
    path.write_text('text,label\n' + ''.join(f'a {i},{(first, second, "5", "nan")[i % 4]}\n' for i in range(40)))
    with pytest.raises(ConfigError, match="'label' of .* has the classes .*, which are the same number: write it") as e:
        custom.read(files(path))
    assert repr(first) in str(e.value) and repr(second) in str(e.value)
    path.write_text(path.read_text().replace(f',{second}\n', f',{second}a\n'))
    assert len(custom.read(files(path)).task.labels) == 4


@pytest.mark.parametrize('label', [[0], ['a', 'b'], {'name': 'a'}, []])
def test_several_labels_of_an_example_are_refused(tmp_path, label):
    path = tmp_path / 'several.jsonl'
    path.write_text('{"text": "a", "label": 1}\n' + json.dumps({'text': 'b', 'label': label}) + '\n')
    with pytest.raises(ConfigError, match=r'line 2 of .*: the label is a (list|dict), .*--kind=multilabel'):
        custom.read(files(path))


def test_half_a_character_is_mended_in_texts_and_kept_in_names_of_classes(tmp_path):
    path = tmp_path / 'half.jsonl'
    lines = [{'text': f'half \ud83d {i}', 'label': ('a\ud83d', 'b')[i % 2]} for i in range(40)]
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    data = custom.read(files(path, test=str(path)))
    assert data.splits['test'][0].texts == ('half � 0',) and data.task.labels == ('a\ud83d', 'b')
    assert data.notes['examples of test with a lone surrogate, replaced by �'] == 40
    problem, _ = problems.make_problem(data, Characters(), Recipe(), 16)
    problem.write('test', np.zeros((40, 2), np.float32), tmp_path)
    written = [json.loads(line) for line in (tmp_path / 'predictions_test.jsonl').read_text().split('\n') if line]
    assert [line['target'] for line in written] == ['a\ud83d', 'b'] * 20


class Characters:
    """A tokenizer of one id for each character; like SentencePiece, it takes what can be UTF-8."""

    vocabulary = standard_vocabulary(200)

    def encode_batch(self, texts):
        return [np.frombuffer(text.encode(), np.uint8) % 100 + 5 for text in texts]


def test_nested_columns_and_numbers_of_any_size(tmp_path):
    path = tmp_path / 'nested.jsonl'
    lines = [{'data': {'text': f'a {i}', 'label': 1 + i % 2}} for i in range(40)]
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    nested = {'texts': ('data.text',), 'targets': ('data.label',)}
    assert custom.read(files(path, **nested)).task.labels == ('1', '2')
    digits = '9' * 5000
    path.write_text(path.read_text().replace('"label": 2', f'"label": {digits}'))
    assert custom.read(files(path, **nested)).task.labels == ('1', digits)
    with pytest.raises(ConfigError, match='is not a finite number'):
        custom.read(files(path, kind='regression', **nested))


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('', 'a.csv has no examples: it is empty'),
        ('text,label\n', 'a.csv has no examples'),
        ('text,label\na,\n', 'has 0 classes'),
        ('text,label\na,1\nb,1\n', 'has 1 classes'),
        ('text,label,label\na,1,2\n', "2 columns named 'label'"),
        ('text,label\na,1\nb, c,2\n', 'line 3 of .* has 3 fields instead of 2'),
        ('text,label\na,1\n"b,2\n', 'line 3 of .* opens a quotation mark that is never closed'),
    ],
)
def test_files_that_hold_no_task_are_refused(tmp_path, content, message):
    (tmp_path / 'a.csv').write_text(content)
    with pytest.raises(ConfigError, match=message):
        custom.read(files(tmp_path / 'a.csv'))


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / 'rows.tsv'
    path.write_text('text\tlabel\na\t1\nb\n')
    with pytest.raises(ConfigError, match=r'line 3 of .* has 1 fields instead of 2 \(text, label\)'):
        custom.read(files(path))
    path = tmp_path / 'rows.jsonl'
    path.write_text('{"text": "a", "label": 1}\n[1]\n')
    with pytest.raises(ConfigError, match='line 2 of .* is not a JSON object'):
        custom.read(files(path))
    path.write_bytes(b'\xff\xfe')
    with pytest.raises(ConfigError, match='is not UTF-8'):
        custom.read(files(path))
