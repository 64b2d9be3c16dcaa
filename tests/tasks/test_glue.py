"""GLUE from the files of its download, from JSON lines and from TFDS; files of another task are refused."""

import json
import math
import types

import numpy as np
import pytest

from mlm_jax.config import ConfigError
from mlm_jax.tasks import glue, suites

# Task → the first lines of its files as they are in the download; made-up text.
DOWNLOAD = {
    'CoLA': {
        'train.tsv': 'gj04\t1\t\tThey "read".\ngj04\t0\t*\tThem reads.\n',
        'dev.tsv': 'gj04\t1\t\tWe read.\n',
        'test.tsv': 'index\tsentence\n0\tBill reads.\n1\tReads Bill?\n',
    },
    'SST-2': {
        'train.tsv': 'sentence\tlabel\na "fine film \t1\ndull \t0\n',
        'dev.tsv': 'sentence\tlabel\nfine \t1\n',
        'test.tsv': 'index\tsentence\n0\tslow\n',
    },
    'MRPC': {
        'train.tsv': 'Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tHe said so .\tSo he said .\n',
        'dev.tsv': 'Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t7\t8\tHe said .\tShe ran .\n',
        'test.tsv': 'index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t7\t8\ta\tb\n',
    },
    'STS-B': {
        'train.tsv': 'index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n'
        '0\tx\ty\t2012\t1\tn\tn\tA plane.\tA plane takes off.\t3.200\n',
        'dev.tsv': 'index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n'
        '0\tx\ty\t2012\t1\tn\tn\tA cat.\tA dog.\t0.000\n',
    },
    'QQP': {
        'train.tsv': 'id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\tWhy?\tWhy so?\t1\nbroken line\n',
        'dev.tsv': 'id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\tWhy?\tWho?\t0\n',
    },
    'MNLI': {
        'train.tsv': 'index\tsentence1\tsentence2\tlabel1\tgold_label\n0\tIt rains.\tIt is wet.\tneutral\tentailment\n',
        'dev_matched.tsv': 'index\tsentence1\tsentence2\tlabel1\tgold_label\n0\ta\tb\tneutral\tneutral\n',
        'dev_mismatched.tsv': 'index\tsentence1\tsentence2\tlabel1\tgold_label\n0\ta\tb\tneutral\tcontradiction\n',
        'test_matched.tsv': 'index\tsentence1\tsentence2\n0\ta\tb\n',
        'test_mismatched.tsv': 'index\tsentence1\tsentence2\n0\ta\tb\n',
    },
    'QNLI': {
        'train.tsv': 'index\tquestion\tsentence\tlabel\n0\tWho?\tHe did.\tentailment\n',
        'dev.tsv': 'index\tquestion\tsentence\tlabel\n0\tWho?\tIt is.\tnot_entailment\n',
    },
    'RTE': {
        'train.tsv': 'index\tsentence1\tsentence2\tlabel\n0\ta\tb\tnot_entailment\n',
        'dev.tsv': 'index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n',
    },
    'WNLI': {
        'train.tsv': 'index\tsentence1\tsentence2\tlabel\n0\ta\tb\t1\n',
        'dev.tsv': 'index\tsentence1\tsentence2\tlabel\n0\ta\tb\t0\n',
    },
}
TRAIN_TARGETS = {
    'cola': [1, 0], 'sst2': [1, 0], 'mrpc': [1], 'stsb': [pytest.approx(3.2)], 'qqp': [1], 'mnli': [0], 'qnli': [0],
    'rte': [1], 'wnli': [1],
}  # fmt: skip


@pytest.fixture(scope='module')
def download(tmp_path_factory):
    root = tmp_path_factory.mktemp('glue')
    for task, files in DOWNLOAD.items():
        (root / task).mkdir()
        for name, text in files.items():
            (root / task / name).write_text(text)
    return root


@pytest.mark.parametrize('name', glue.SOURCES)
def test_the_download(download, name):
    data = glue.read(name, str(download))
    assert [example.targets[0] for example in data.splits['train']] == TRAIN_TARGETS[name]
    assert all(len(e.texts) == (1 if name in ('cola', 'sst2') else 2) for rows in data.splits.values() for e in rows)
    assert all(math.isnan(e.targets[0]) for split in data.splits if 'test' in split for e in data.splits[split])


def test_quotation_marks_mean_nothing_and_broken_lines_are_counted(download):
    assert glue.read('cola', str(download)).splits['train'][0].texts == ('They "read".',)
    assert glue.read('sst2', str(download)).splits['train'][0].texts == ('a "fine film ',)
    assert glue.read('qqp', str(download)).notes == {'lines of train.tsv without 6 fields, skipped': 1}


def test_both_test_sets_of_mnli_and_their_submissions(download, tmp_path):
    data = glue.read('mnli', str(download))
    assert set(data.splits) == {'train', 'validation', 'validation_mismatched', 'test', 'test_mismatched'}
    path = glue.write_submission('mnli', 'test_mismatched', ['neutral', 'entailment'], tmp_path)
    assert path.name == 'MNLI-mm.tsv' and path.read_text() == 'index\tprediction\n0\tneutral\n1\tentailment\n'
    assert glue.write_submission('cola', 'test', ['acceptable'], tmp_path).read_text().endswith('\n0\t1\n')
    assert glue.write_submission('stsb', 'test', [5.2, -0.1, 2.0], tmp_path).read_text().split()[3::2] == [
        '5.000', '0.000', '2.000',
    ]  # fmt: skip
    assert glue.write_submission('cola', 'validation', ['acceptable'], tmp_path) is None


def write_json_lines(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))


def test_json_lines_and_a_part_held_out(tmp_path):
    rows = [{'a': f'text {i}', 'b': 'other', 'label': i % 2} for i in range(200)]
    write_json_lines(tmp_path / 'mrpc' / 'train.jsonl', *rows)
    data = glue.read('mrpc', str(tmp_path))
    held = len(data.splits['validation'])
    assert 5 < held < 40 and len(data.splits['train']) == 200 - held
    assert data.notes == {'examples of train held out, because there is no validation set': held}
    assert glue.read('mrpc', str(tmp_path / 'mrpc')).splits.keys() == data.splits.keys(), 'the directory itself'


@pytest.mark.parametrize(
    'line, message',
    [
        (
            {'a': 'x', 'b': 'y', 'label': 1},
            "line 1 of .* does not belong to glue/sst2, whose texts are in 'sentence'; its fields are a, b",
        ),
        ({'text': 'x', 'label': 3}, '3 is not a label; the labels are negative, positive, or 0 … 1'),
        ({'text': 'x', 'label': 'entailment'}, "'entailment' is not a label"),
        ({'text': 'x', 'score': 2.5}, '2.5 is not a label'),
        ({'text': 'x'}, "has no 'label'; its fields are text"),
        ({'text': 7, 'label': 1}, "'text' is 7, not text"),
        ({'text': 'x', 'label': -1}, '1 examples of the train split have no label'),
    ],
)
def test_a_file_of_another_task_is_refused(tmp_path, line, message):
    write_json_lines(tmp_path / 'sst2' / 'train.jsonl', line)
    with pytest.raises(ConfigError, match=message):
        glue.read('sst2', str(tmp_path))


def test_scores_out_of_range_and_missing_files(tmp_path):
    write_json_lines(tmp_path / 'STS-B' / 'train.jsonl', {'a': 'x', 'b': 'y', 'score': 7})
    with pytest.raises(ConfigError, match='the score 7 is not between 0 and 5'):
        glue.read('stsb', str(tmp_path))
    with pytest.raises(ConfigError, match='has neither RTE/ nor rte/.*it holds STS-B'):
        glue.read('rte', str(tmp_path))
    with pytest.raises(ConfigError, match='the directory .* does not exist'):
        glue.read('rte', str(tmp_path / 'nowhere'))
    (tmp_path / 'RTE').mkdir()
    with pytest.raises(ConfigError, match='has no train split'):
        glue.read('rte', str(tmp_path))


def test_names_of_tasks_and_where_they_lie(download):
    assert suites.split_names(['glue/rte', 'glue/rte']) == ['glue/rte']
    assert len(suites.split_names(['glue'])) == 9
    with pytest.raises(
        ConfigError, match='there is no task glue/sst; the tasks are glue/{cola, sst2.*moleculenet/{bbbp'
    ):
        suites.split_names(['glue/sst'])
    where = suites.directories([f'glue={download}', f'glue/rte={download}/RTE', '/a=b'])
    assert where == {'glue': str(download), 'glue/rte': f'{download}/RTE', '': '/a=b'}
    assert suites.read('glue/rte', where).task.name == 'glue/rte'
    with pytest.raises(ConfigError, match='no directory is given for glue/rte'):
        suites.read('glue/rte', {})


def rte_of_tfds(monkeypatch, numbers):
    """The examples of test as TFDS holds them: in the order of a hash of their numbers."""
    rows = [
        {'idx': np.int32(i), 'sentence1': f'text {i}'.encode(), 'sentence2': b'b', 'label': np.int64(-1)}
        for i in numbers
    ]
    builder = types.SimpleNamespace(info=types.SimpleNamespace(splits=['test']), as_data_source=lambda split: rows)
    monkeypatch.setattr(glue.tfds_sets, 'prepared_builder', lambda name: builder)
    return glue._read_tfds(glue.SOURCES['rte'], 'rte', ['test'])


def test_tests_of_tfds_have_the_numbers_of_the_benchmark(monkeypatch):
    examples = rte_of_tfds(monkeypatch, [2, 0, 3, 1])
    assert [(e.id, e.texts[0]) for e in examples] == [(str(i), f'text {i}') for i in range(4)]
    with pytest.raises(ConfigError, match='glue/rte, test: the 3 examples that TFDS holds are not numbered from 0 on'):
        rte_of_tfds(monkeypatch, [2, 0, 3])
