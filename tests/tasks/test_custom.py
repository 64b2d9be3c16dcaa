"""Tasks of one's own."""

import math

import pytest

from mlm_jax.config import ConfigError
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
    assert data.notes['examples of train without text, left out'] == 1
    assert data.notes['examples of train without a target, left out'] == 1
    test.write_text('text\tlabel\nagain\teggs\n')
    with pytest.raises(
        ConfigError, match="line 2 of .*: the label 'eggs' is not in the train split, which has ham, spam"
    ):
        custom.read(files(table, test=str(test)))


def test_numbers_are_classes_in_their_order(tmp_path):
    path = tmp_path / 'numbers.tsv'
    path.write_text('text\tlabel\n' + ''.join(f'a {i}\t{10 - i}\n' for i in range(10)))
    assert custom.read(files(path)).task.labels == tuple(map(str, range(1, 11)))


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
        ({'texts': ()}, 'give one, or the two of a pair'),
        ({'kind': 'regression'}, "'ham' is no number"),
        ({'train': 'nowhere.csv'}, 'cannot read nowhere.csv'),
        ({'train': 'table.xlsx'}, r'of no known kind: name it \*\.tsv'),
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


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / 'rows.tsv'
    path.write_text('text\tlabel\na\t1\nb\n')
    with pytest.raises(ConfigError, match=r'line 3 of .* has 1 fields, and not 2: text, label'):
        custom.read(files(path))
    path = tmp_path / 'rows.jsonl'
    path.write_text('{"text": "a", "label": 1}\n[1]\n')
    with pytest.raises(ConfigError, match='line 2 of .* is no JSON object'):
        custom.read(files(path))
    path.write_bytes(b'\xff\xfe')
    with pytest.raises(ConfigError, match='is not UTF-8'):
        custom.read(files(path))
