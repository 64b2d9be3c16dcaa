"""prepare: the same bytes however it got there; refusals with both values; the numbers of the manifest."""

import errno
import fcntl
import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from preparations import contents

from mlm_jax import config as config_lib
from mlm_jax import prepare
from mlm_jax.config import ConfigError
from mlm_jax.data import claim, corpora, demo_corpus, encoding, packing, slices, tokenizer_making, tokenizers, totals
from mlm_jax.data import manifest as manifest_lib
from mlm_jax.data.shards import Shards
from mlm_jax.files import text_files
from mlm_jax.files.errors import TransientError

REPOSITORY = pathlib.Path(__file__).parents[1]
WIKIPEDIA = REPOSITORY.parent / 'shared' / 'data' / 'wiki' / 'enwiki_valid.jsonl.xz'


def write_corpus(path, count=400):
    rng = np.random.default_rng(0)
    words = np.array(
        [
            'north',
            'south',
            'east',
            'west',
            'river',
            'mountain',
            'old',
            'town',
            'small',
            'people',
            'lived',
            'there',
            'for',
            'many',
            'years',
        ]
    )
    texts = [' '.join(rng.choice(words, rng.integers(3, 200))) + f' {i}' for i in range(count)]
    path.write_text(''.join(json.dumps({'text': t}) + '\n' for t in [*texts, '', 'nul\0character', texts[0]]))
    return texts


def make_config(directory, corpus, **overrides):
    config = config_lib.default_config()
    config.data.directory, config.data.corpus = str(directory), f'jsonl:{corpus}'
    keys = {'vocab_size': '320', 'sequence_length': '32', 'data.validation_percent': '10.0'}
    config_lib.apply_overrides(config, keys | {k: str(v) for k, v in overrides.items()})
    return config


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A corpus file, and the directory made of it."""
    folder = tmp_path_factory.mktemp('prepare')
    write_corpus(folder / 'corpus.jsonl')
    prepare.run(make_config(folder / 'rows', folder / 'corpus.jsonl'), num_workers=1)
    return folder


def test_the_manifest_says_what_is_there(finished):
    manifest = manifest_lib.load(finished / 'rows')
    tokenizer = tokenizers.Tokenizer.from_file(finished / 'rows' / manifest.tokenizer)
    assert manifest.vocabulary == tokenizer.vocabulary
    documents = 0
    for name, split in manifest.splits.items():
        rows = Shards(finished / 'rows', name).read(np.arange(split.rows))
        assert rows.shape == (split.rows, 32)
        assert split.real_tokens == np.count_nonzero(rows != 0)
        text = rows[rows > 4]
        assert split.text_tokens == len(text)
        share = np.bincount(text) / len(text)
        entropy = -sum(p * np.log(p) for p in share[share > 0])
        assert split.unigram_entropy_nats == pytest.approx(entropy, abs=1e-12)
        documents += split.documents
    assert documents == 402
    repairs = [r for s in manifest.splits.values() for r in s.repairs]
    assert sorted(repairs) == [
        'documents with NUL characters, replaced by spaces',
        'empty documents, dropped',
    ]
    assert manifest.splits['train'].real_tokens / (manifest.splits['train'].rows * 32) > 0.97


def test_rows_hold_the_text_of_the_corpus(finished):
    manifest = manifest_lib.load(finished / 'rows')
    tokenizer = tokenizers.Tokenizer.from_file(finished / 'rows' / manifest.tokenizer)
    found = []
    for name, split in manifest.splits.items():
        rows = Shards(finished / 'rows', name).read(np.arange(split.rows))
        segments = packing.segment_ids(rows, manifest.vocabulary)
        found += [row[ids == s] for row, ids in zip(rows, segments) for s in range(1, ids.max() + 1)]
    lines = (finished / 'corpus.jsonl').read_text().splitlines()
    expected = []
    for line in lines:
        ids = tokenizer.encode(json.loads(line)['text'].replace('\0', ' ')).tolist()
        expected += [[2, *ids[i : i + 30], 3] for i in range(0, len(ids), 30)]
    assert sorted(map(list, found)) == sorted(expected)


def test_a_finished_directory_is_up_to_date(finished, capsys):
    before = contents(finished / 'rows')
    prepare.run(make_config(finished / 'rows', finished / 'corpus.jsonl'))
    assert 'is up to date' in capsys.readouterr().out
    assert contents(finished / 'rows') == before


@pytest.mark.parametrize('mode', ['full_sentences', 'one_per_row'])
def test_other_packings(finished, tmp_path, mode):
    manifest = prepare.run(
        make_config(tmp_path / 'rows', finished / 'corpus.jsonl', **{'data.packing': mode}), num_workers=1
    )
    assert manifest.packing == mode
    reference = manifest_lib.load(finished / 'rows')
    assert manifest.splits['train'].text_tokens == reference.splits['train'].text_tokens


def test_changed_settings_are_refused_with_both_values(finished, tmp_path):
    corpus = finished / 'corpus.jsonl'
    with pytest.raises(ConfigError, match=r'vocab_size: 320 there, 310 now\n.*another value, or delete'):
        prepare.run(make_config(finished / 'rows', corpus, vocab_size=310))
    with pytest.raises(ConfigError, match=r"tokenizer.model: 'unigram' there, 'bpe' now"):
        prepare.run(make_config(finished / 'rows', corpus, **{'tokenizer.model': 'bpe'}))
    with pytest.raises(ConfigError, match=r"data.corpus: 'jsonl:.*' there, 'demo' now, which is the default"):
        prepare.run(make_config(finished / 'rows', corpus, **{'data.corpus': 'demo'}))
    copy = tmp_path / 'corpus.jsonl'
    copy.write_text(corpus.read_text())
    prepare.run(make_config(tmp_path / 'rows', copy), num_workers=1)
    copy.write_text(corpus.read_text() + '{"text": "more"}\n')
    with pytest.raises(ConfigError, match=r'corpus.jsonl: \d+ bytes then, \d+ now'):
        prepare.run(make_config(tmp_path / 'rows', copy))


def test_a_corpus_changed_at_the_same_size_is_refused(finished, tmp_path):
    copy, rows = tmp_path / 'corpus.jsonl', tmp_path / 'rows'
    shutil.copytree(finished / 'rows', rows)
    text = (finished / 'corpus.jsonl').read_text()
    copy.write_text(text)
    manifest = json.loads((rows / 'manifest.json').read_text().replace(str(finished), str(tmp_path)))
    (rows / 'manifest.json').write_text(json.dumps(manifest))
    prepare.run(make_config(rows, copy))
    copy.write_text(text.replace('river', 'ocean', 1))
    with pytest.raises(
        ConfigError, match=r'corpus.jsonl: the same size as then, \d+ bytes, but different content\nGive data.direc'
    ):
        prepare.run(make_config(rows, copy))
    manifest['sources'] = {
        spec: {f: s['bytes'] for f, s in files.items()} for spec, files in manifest['sources'].items()
    }
    (rows / 'manifest.json').write_text(json.dumps(manifest))
    prepare.run(make_config(rows, copy))  # made by an earlier version, which knew no more


def test_names_that_are_no_utf_8_and_repairs_of_most_documents(tmp_path):
    path = tmp_path / b'corpus\xe9.jsonl'.decode(errors='surrogateescape')
    write_corpus(path, 60)
    prepare.run(make_config(tmp_path / 'rows', path, vocab_size=300), num_workers=1)
    assert str(path) in next(iter(manifest_lib.load(tmp_path / 'rows').sources.values()))
    path.write_bytes(b''.join(b'{"text": "caf\xe9 %d"}\n' % i for i in range(60)))
    with pytest.raises(ConfigError, match='60 of 60 documents with invalid UTF-8'):
        prepare.run(make_config(tmp_path / 'latin', path), num_workers=1)
    assert not (tmp_path / 'latin' / '.prepare').exists()


def test_a_directory_of_somebody_else_is_left_alone(finished, tmp_path):
    (tmp_path / 'thesis.tex').write_text('precious')
    with pytest.raises(ConfigError, match=r'holds thesis.tex but no prepared data'):
        prepare.run(make_config(tmp_path, finished / 'corpus.jsonl'))
    assert [p.name for p in tmp_path.iterdir()] == ['thesis.tex']


def test_two_at_once_are_refused(finished, tmp_path):
    (tmp_path / 'rows').mkdir()
    with claim.locked(tmp_path / 'rows'), pytest.raises(ConfigError, match=r'another prepare is running'):
        prepare.run(make_config(tmp_path / 'rows', finished / 'corpus.jsonl'))


def without_locks(monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, 'flock', unsupported)


def test_temporary_files_of_others_stay_without_locks(copied, monkeypatch):
    directory, config = copied
    leftover = directory / 'manifest.json.8.tmp'
    leftover.write_text('half')
    with monkeypatch.context() as patch:
        without_locks(patch)
        prepare.run(config)
    assert leftover.exists()
    prepare.run(config)
    assert not leftover.exists()


def test_another_that_finishes_the_directory_first_is_named(finished, tmp_path, monkeypatch):
    config, of_texts = make_config(tmp_path / 'rows', finished / 'corpus.jsonl'), totals.of_texts
    without_locks(monkeypatch)

    def late(jobs):
        monkeypatch.setattr(totals, 'of_texts', of_texts)
        prepare.run(config, num_workers=1)
        return of_texts(jobs)

    monkeypatch.setattr(totals, 'of_texts', late)
    with pytest.raises(ConfigError, match=r'another prepare has finished .*rows in the meantime: the same command ver'):
        prepare.run(config, num_workers=1)
    prepare.run(config, num_workers=1)
    assert contents(tmp_path / 'rows') == contents(finished / 'rows')


def test_a_corpus_of_blanks_is_refused(tmp_path):
    (tmp_path / 'a.jsonl').write_text(''.join(json.dumps({'text': ' ' * i}) + '\n' for i in range(99)))
    with pytest.raises(ConfigError, match=r'the training text is empty'):
        prepare.run(make_config(tmp_path / 'rows', tmp_path / 'a.jsonl'), num_workers=1)
    (tmp_path / 'a.jsonl').write_text('{"text": "the same"}\n' * 50)
    with pytest.raises(ConfigError, match=r'no document fell into'):
        prepare.run(
            make_config(tmp_path / 'same', tmp_path / 'a.jsonl', **{'data.validation_percent': 1}),
            num_workers=1,
        )


def test_words_are_counted_as_split_counts_them():
    for text in ('', ' ', 'a', ' a  b\n\tc ', 'one two'):
        assert encoding.count_words(text.encode()) == len(text.split())


# ---- Tasks and slices -----------------------------------------------------------------------------------------------


@pytest.fixture
def small_slices(monkeypatch):
    """Many shards, also of held-out rows."""
    monkeypatch.setattr(slices, 'SLICE_BYTES', 20_000)
    monkeypatch.setattr(encoding, 'PIECE_BYTES', 8_000)


@pytest.fixture
def divided(finished, tmp_path, small_slices):
    """A configuration of many slices, and the directory that one process made."""
    config = make_config(tmp_path / 'rows', finished / 'corpus.jsonl')
    prepare.run(config, num_workers=1)
    return config


def test_slices_hold_the_same_text(finished, divided):
    manifest, whole = (manifest_lib.load(d) for d in (divided.data.directory, finished / 'rows'))
    assert len(manifest.splits['train'].shards) > 5 and len(manifest.splits['validation'].shards) > 1
    for name in ('train', 'validation'):
        for key in ('documents', 'words', 'bytes', 'repairs'):
            assert getattr(manifest.splits[name], key) == getattr(whole.splits[name], key)
    ((states,),) = (files.values() for files in manifest.sources.values())
    assert len(states['parts']) == len(manifest.splits['train'].shards)
    counts = np.load(pathlib.Path(divided.data.directory) / 'tables.npz')['counts']
    np.testing.assert_array_equal(counts, sum(np.bincount(block.ravel(), minlength=320) for block in
                                              Shards(divided.data.directory, 'train').blocks()))  # fmt: skip


def test_tasks_in_any_order_give_the_same_bytes(finished, divided, tmp_path, capsys):
    config = make_config(tmp_path / 'tasks', finished / 'corpus.jsonl')
    assert prepare.run(config, 1, prepare.Task(0, 3)) is None
    assert prepare.run(config, 1, prepare.Task(2, 3)) is None
    with claim.locked(tmp_path / 'tasks', shared=True):  # task 1 is running
        with pytest.raises(ConfigError, match='another prepare is running'):
            prepare.run(config, 1)
        assert prepare.run(config, 1, prepare.Task(2, 3)) is None
    prepare.run(config, 1)  # also what task 1 did not do
    assert contents(tmp_path / 'tasks') == contents(pathlib.Path(divided.data.directory))
    capsys.readouterr()
    assert prepare.run(config, 1, prepare.Task(1, 3)) == manifest_lib.load(tmp_path / 'tasks')
    assert 'is finished' in capsys.readouterr().out
    with pytest.raises(ConfigError, match='vocab_size: 320 there, 310 now'):
        prepare.run(make_config(tmp_path / 'tasks', finished / 'corpus.jsonl', vocab_size=310), 1, prepare.Task(1, 3))


@pytest.mark.parametrize('index, count', [(3, 3), (0, None), (None, 2)])
def test_numbers_of_tasks_are_checked(monkeypatch, index, count):
    monkeypatch.setattr(prepare, 'flags', types.SimpleNamespace(FLAGS=types.SimpleNamespace(task=index, of=count)))
    with pytest.raises(ConfigError, match=rf'--task={index} --of={count}: give both'):
        prepare._task()


def test_a_task_waits_for_task_0_and_not_forever(finished, tmp_path, monkeypatch):
    config = make_config(tmp_path / 'rows', finished / 'corpus.jsonl')
    calls = []
    with monkeypatch.context() as patch:
        patch.setattr(time, 'sleep', lambda seconds: calls.append(prepare.run(config, 1, prepare.Task(0, 2))))
        assert prepare.run(config, 1, prepare.Task(1, 2)) is None
    assert calls == [None]
    wait = claim.wait_for
    monkeypatch.setattr(claim, 'wait_for', lambda is_there, what: wait(is_there, what, seconds=0))
    with pytest.raises(ConfigError, match='task 0 has not made the claim of the directory within 0 hours: start it'):
        prepare.run(make_config(tmp_path / 'nobody', finished / 'corpus.jsonl'), 1, prepare.Task(1, 2))


def test_damaged_shards_of_many_slices_are_made_again(divided, capsys):
    directory = pathlib.Path(divided.data.directory)
    before = contents(directory)
    for name in ('train-00002', 'validation-00001'):
        (path,) = directory.glob(f'{name}-of-*.npy')
        flip(path)
        prepare.run(divided, num_workers=1)
        assert f'damaged    {path.name} has changed' in capsys.readouterr().out
        assert contents(directory) == before


def test_shards_of_held_out_rows_are_made_without_the_records_of_slices(divided, monkeypatch):
    directory = pathlib.Path(divided.data.directory)
    before, read = contents(directory), []
    run, read_bytes = encoding.HeldOutJob.run, pathlib.Path.read_bytes

    def watched(job):
        with monkeypatch.context() as patch:
            patch.setattr(pathlib.Path, 'read_bytes', lambda path: read.append(path.name) or read_bytes(path))
            return run(job)

    monkeypatch.setattr(encoding.HeldOutJob, 'run', watched)
    held_out = sorted(directory.glob('validation-*.npy'))
    for path in held_out:  # made again in a finished directory, and then in a new one
        flip(path)
    prepare.run(divided, num_workers=1)
    assert contents(directory) == before and read == ['held_out_runs.json'] * len(held_out) and len(held_out) > 1
    shutil.rmtree(directory)
    prepare.run(divided, num_workers=1)
    assert contents(directory) == before and read == ['held_out_runs.json'] * 2 * len(held_out)


def test_a_file_that_changed_after_it_was_read_is_refused(finished, tmp_path, small_slices, monkeypatch):
    copy = tmp_path / 'corpus.jsonl'
    shutil.copy(finished / 'corpus.jsonl', copy)
    config = make_config(tmp_path / 'rows', copy)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(totals, 'of_texts', lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        prepare.run(config, num_workers=1)
    text = copy.read_text()
    copy.write_text(text.replace('river', 'ocean'))
    with pytest.raises(ConfigError, match='corpus.jsonl has changed since this preparation first read it'):
        prepare.run(config, num_workers=1)
    copy.write_text(text)
    prepare.run(config, num_workers=1)


def test_what_an_earlier_version_prepared_is_read_but_not_made_again(copied, capsys):
    directory, config = copied
    stored = json.loads((directory / 'manifest.json').read_text())
    del stored['preparation']
    (directory / 'manifest.json').write_text(json.dumps(stored))
    prepare.run(config)
    assert 'is up to date' in capsys.readouterr().out
    flip(directory / 'train-00000-of-00001.npy')
    with pytest.raises(ConfigError, match=r'train-00000-of-00001.npy cannot be made again: an earlier version'):
        prepare.run(config)
    shutil.rmtree(directory)
    (directory / '.prepare').mkdir(parents=True)
    mark = {key: stored[key] for key in ('settings', 'sources')}
    (directory / '.prepare' / 'settings.json').write_text(json.dumps(mark))
    with pytest.raises(ConfigError, match='holds an unfinished preparation of another version of mlm_jax: delete it'):
        prepare.run(config)


def test_texts_in_a_column_give_the_same_rows(finished, tmp_path):
    parquet = pytest.importorskip('pyarrow.parquet')
    records = [json.loads(line) for line in (finished / 'corpus.jsonl').read_text().splitlines()]
    parquet.write_table(parquet.core.pa.table({'meta': records}), tmp_path / 'a.parquet', row_group_size=50)
    keys = {'data.corpus': f'parquet:{tmp_path}/*.parquet', 'data.text_key': 'meta.text'}
    manifest = prepare.run(make_config(tmp_path / 'rows', '', **keys), 1)
    assert 'pyarrow' in manifest.versions
    assert manifest.splits == manifest_lib.load(finished / 'rows').splits


def test_a_given_tokenizer_and_a_wrong_key_may_be_followed_by_the_right_key(finished, tmp_path):
    given = {'tokenizer.model': finished / 'rows' / 'tokenizer.model'}
    config = make_config(tmp_path / 'rows', finished / 'corpus.jsonl', **given, **{'data.text_key': 'txt'})
    with pytest.raises(ConfigError, match="line 1 of .* has no 'txt'"):
        prepare.run(config, 1)
    config.data.text_key = 'text'
    prepare.run(config, 1)


@pytest.mark.parametrize(
    'model, settings, refused',
    [
        (
            'given',
            {'normalization': 'nfkc', 'training_megabytes': 5},
            'normalization=nfkc, tokenizer.training_megabytes=5',
        ),
        ('smiles', {'byte_fallback': False, 'training_megabytes': 5}, 'byte_fallback=False'),
        ('smiles', {'character_coverage': 0.9}, 'character_coverage=0.9'),
        ('extend:given', {'normalization': 'identity', 'byte_fallback': False}, 'normalization=identity'),
    ],
)
def test_settings_without_effect_are_refused(finished, tmp_path, model, settings, refused):
    name = model.replace('given', str(finished / 'rows' / 'tokenizer.model'))
    keys = {f'tokenizer.{key}': value for key, value in settings.items()} | {'tokenizer.model': name}
    with pytest.raises(ConfigError, match=f'^tokenizer.{refused} would have no effect.*the default'):
        prepare.run(make_config(tmp_path / 'rows', finished / 'corpus.jsonl', **keys))
    assert not (tmp_path / 'rows').exists()


def test_a_key_of_text_without_fields_is_refused(finished, tmp_path, capsys):
    corpus = finished / 'corpus.jsonl'
    for kind in ('text', 'lines', 'files', 'smi'):
        keys = {'data.corpus': f'{kind}:{corpus}', 'data.text_key': 'body'}
        with pytest.raises(ConfigError, match=f'^data.text_key=body would have no effect, because data.corpus={kind}:'):
            prepare.run(make_config(tmp_path / 'rows', '', **keys))
        said = 'plain text 1 of the 1 files of data.corpus are JSON lines or tables by their names'
        assert (said in capsys.readouterr().out) == (kind != 'smi') and not (tmp_path / 'rows').exists()
    one_has_fields = make_config(tmp_path / 'rows', corpus, **{'data.text_key': 'body'})
    one_has_fields.data.validation_corpus = f'text:{corpus}'
    corpora.refuse_unread(one_has_fields.data)


def test_recorded_settings_without_effect_stay(finished, tmp_path, monkeypatch, capsys):
    """Earlier versions took them, and what they recorded must not change."""
    keys = {'tokenizer.model': finished / 'rows' / 'tokenizer.model', 'tokenizer.byte_fallback': False}
    config = make_config(tmp_path / 'rows', finished / 'corpus.jsonl', **keys)
    with monkeypatch.context() as patch:
        patch.setattr(tokenizer_making, 'refuse_unread', lambda settings: None)
        prepare.run(config, num_workers=1)
    prepare.run(config, num_workers=1)
    assert 'is up to date' in capsys.readouterr().out


@pytest.mark.parametrize('number, is_kept', [(errno.EIO, True), (errno.ETIMEDOUT, True), (errno.ENOENT, False)])
def test_samples_outlive_errors_of_the_surroundings(finished, tmp_path, small_slices, monkeypatch, number, is_kept):
    config, read, begun = make_config(tmp_path / 'rows', finished / 'corpus.jsonl'), text_files.READERS['jsonl'], []

    def failing(*args):
        begun.append(args)
        if len(begun) == 2:
            raise OSError(number, os.strerror(number))
        return read(*args)

    monkeypatch.setitem(text_files.READERS, 'jsonl', failing)
    with pytest.raises(ConfigError, match=f'cannot read .*corpus.jsonl: {os.strerror(number)}'):
        prepare.run(config, num_workers=1)
    assert (tmp_path / 'rows' / '.prepare' / 'sample-00000.json').exists() == is_kept


def test_a_given_tokenizer_and_rows_outlive_errors_of_the_surroundings(finished, tmp_path, monkeypatch):
    given = finished / 'rows' / 'tokenizer.model'
    config = make_config(tmp_path / 'rows', finished / 'corpus.jsonl', **{'tokenizer.model': given})
    with monkeypatch.context() as patch, pytest.raises(TransientError):
        patch.setattr(encoding.SliceJob, 'run', lambda job: (_ for _ in ()).throw(TransientError('no network')))
        prepare.run(config, num_workers=1)
    assert (tmp_path / 'rows' / '.prepare').exists() and (tmp_path / 'rows' / 'tokenizer.model').exists()
    assert prepare.run(config, num_workers=1).splits == manifest_lib.load(finished / 'rows').splits


def test_the_first_rows_of_held_out_text_are_from_everywhere(tmp_path, small_slices):
    lines = [f'{i:04d} ' * 9 for i in range(3000)]
    (tmp_path / 'a.txt').write_text('\n'.join(lines))
    config = make_config(tmp_path / 'rows', '', **{'data.corpus': f'lines:{tmp_path}/a.txt', 'vocab_size': 300})
    manifest = prepare.run(config, 1)
    tokenizer = tokenizers.Tokenizer.from_file(tmp_path / 'rows' / 'tokenizer.model')
    rows = Shards(tmp_path / 'rows', 'validation').read(np.arange(40))
    found = [int(text[:4]) for text in map(tokenizer.decode, rows) if text[:4].isdigit()]
    assert len(manifest.splits['validation'].shards) > 1
    assert 1000 < np.mean(found) < 2000 and min(found) < 600 and max(found) > 2400


# ---- Killed ---------------------------------------------------------------------------------------------------------

# Small shards, so that there are many moments to be killed at; the same in the workers, which import this module.
PROGRAM = """
import sys, time
from mlm_jax.data import slices
slices.SLICE_BYTES = 20_000
from mlm_jax import prepare
from tests.test_prepare import make_config
if __name__ == '__main__':
    with prepare.ending_at_interrupts():
        prepare.run(make_config(sys.argv[1], sys.argv[2]), num_workers=int(sys.argv[3]))
"""


def start(folder, name, num_workers, **arguments):
    (folder / 'program.py').write_text(PROGRAM)
    return subprocess.Popen(
        [sys.executable, folder / 'program.py', folder / name, folder / 'corpus.jsonl', str(num_workers)],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / 'tests')))},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **arguments,
    )  # fmt: skip


def finish(process):
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors


def kill_when(process, condition):
    """Kills as soon as the condition holds; whether it came to that."""
    while process.poll() is None:
        if condition():
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stderr.close()
            return True
        time.sleep(0.001)
    process.communicate()
    return False


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp('kill')
    write_corpus(folder / 'corpus.jsonl', 600)
    finish(start(folder, 'rows', 1))
    assert len(manifest_lib.load(folder / 'rows').splits['train'].shards) > 10
    return folder


@pytest.mark.parametrize('num_workers', [1, 2])
def test_killed_at_every_phase_and_run_again_gives_the_same_bytes(uninterrupted, num_workers):
    folder, name = uninterrupted, f'killed{num_workers}'
    rows = folder / name
    moments = [
        lambda: (rows / '.prepare').exists(),
        lambda: any(rows.glob('.prepare/sample-00003.jsonl')),
        lambda: any(rows.glob('.prepare/tokenizer.model.sha256')),
        lambda: (rows / 'tokenizer.model').exists(),
        lambda: len(list(rows.glob('train-*.npy'))) >= 2,
        lambda: len(list(rows.glob('train-*.npy'))) >= 8,
        lambda: any(rows.glob('validation-*.npy')),
        lambda: (rows / 'manifest.json').exists(),
    ]
    kills = sum(kill_when(start(folder, name, num_workers), moment) for moment in moments)
    assert kills >= 4
    finish(start(folder, name, num_workers))
    assert contents(rows) == contents(folder / 'rows')


def test_the_program_prints_errors_without_a_traceback(tmp_path):
    overrides = ['--set=data.corpus=jsonl:nothing/*', f'--set=data.directory={tmp_path}/rows']
    result = subprocess.run(
        [sys.executable, '-m', 'mlm_jax.prepare', '--config=configs/mlm.py:tiny', *overrides],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.strip().startswith("error: no file matches 'nothing/*'")
    assert 'Traceback' not in result.stderr


# ---- Real text ------------------------------------------------------------------------------------------------------


def test_wikipedia(tmp_path):
    if not WIKIPEDIA.exists():
        pytest.skip(f'{WIKIPEDIA} is not here')
    config = make_config(tmp_path / 'rows', WIKIPEDIA, vocab_size=2000, sequence_length=128)
    manifest = prepare.run(config, num_workers=1)
    train = manifest.splits['train']
    assert train.documents + manifest.splits['validation'].documents == 150
    assert train.real_tokens >= 0.97 * train.rows * 128
    assert 1.2 < train.text_tokens / train.words < 2.5
    assert 5 < train.unigram_entropy_nats < np.log(2000)


def test_the_demo_corpus_is_large_and_english():
    documents = list(itertools.islice(demo_corpus.documents(), 1501))
    assert len(documents) == 1501, 'and there are more'
    assert sum(len(d.split()) for d in documents) > 500_000
    assert len({*documents}) == len(documents)
    words = ' '.join(documents).lower().split()
    assert 0.04 < words.count('the') / len(words) < 0.09  # as in English


# ---- Damaged, interrupted, without room -----------------------------------------------------------------------------


@pytest.fixture
def copied(finished, tmp_path):
    """The finished directory in a place of its own, and its configuration."""
    shutil.copytree(finished / 'rows', tmp_path / 'rows')
    return tmp_path / 'rows', make_config(tmp_path / 'rows', finished / 'corpus.jsonl')


def flip(path, at=-1):
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def test_up_to_date_is_said_of_whole_directories_and_others_are_mended(finished, copied, capsys):
    directory, config = copied
    flip(directory / 'train-00000-of-00001.npy')
    (directory / 'validation-00000-of-00001.npy').unlink()
    (directory / 'tokenizer.model').write_bytes((directory / 'tokenizer.model').read_bytes()[:1000])
    (directory / 'tables.npz').write_bytes(b'')
    (directory / 'train-00007-of-00009.npy').write_bytes(b'of another preparation')
    (directory / 'manifest.json.123.tmp').write_bytes(b'{')
    prepare.run(config, num_workers=1)
    said = capsys.readouterr().out
    for line in (
        'train-00000-of-00001.npy has changed since prepare wrote it (its SHA-256 differs); it is made again',
        'validation-00000-of-00001.npy is missing; it is made again',
        'tokenizer.model has changed',
        'tables.npz has changed',
    ):
        assert f'damaged    {line}' in said
    assert 'surplus    train-00007-of-00009.npy' in said and 'is up to date' in said
    (directory / 'train-00007-of-00009.npy').unlink()
    assert contents(directory) == contents(finished / 'rows')


def test_what_cannot_be_made_again_is_refused(finished, copied, monkeypatch):
    directory, config = copied
    flip(directory / 'train-00000-of-00001.npy')
    pack = packing.pack
    monkeypatch.setattr(packing, 'pack', lambda *args: pack(*args)[::-1])  # as of a library that changed
    with pytest.raises(ConfigError, match=r'train-00000-of-00001.npy cannot be made again .*\n*Delete .*rows'):
        prepare.run(config, num_workers=1)


def test_the_cure_of_a_damaged_manifest_works(finished, copied):
    directory, config = copied
    (directory / 'manifest.json').write_bytes(b'')
    with pytest.raises(ConfigError, match=rf'manifest.json is damaged .*; delete {directory} and prepare it again'):
        prepare.run(config)
    shutil.rmtree(directory)
    prepare.run(config, num_workers=1)
    assert contents(directory) == contents(finished / 'rows')


def test_a_directory_without_the_newer_hashes_stays_up_to_date(copied, capsys):
    directory, config = copied
    stored = json.loads((directory / 'manifest.json').read_text())
    del stored['seal'], stored['tables_sha256']
    (directory / 'manifest.json').write_text(json.dumps(stored))
    before = contents(directory)
    prepare.run(config)
    assert 'is up to date' in capsys.readouterr().out and contents(directory) == before


def test_a_tokenizer_replaced_between_two_calls_is_refused(finished, tmp_path):
    corpus, given = finished / 'corpus.jsonl', tmp_path / 'given.model'
    shutil.copy(finished / 'rows' / 'tokenizer.model', given)
    config = make_config(tmp_path / 'rows', corpus, **{'tokenizer.model': given})
    prepare.run(config, num_workers=1)
    prepare.run(make_config(tmp_path / 'other', corpus, **{'tokenizer.model': 'bpe'}), num_workers=1)
    shutil.copy(tmp_path / 'other' / 'tokenizer.model', given)
    with pytest.raises(ConfigError, match=r'prepared with another tokenizer than the one that is now in .*given'):
        prepare.run(config)
    given.unlink()
    prepare.run(config)  # the copy in the directory is all that is needed


def test_a_tokenizer_replaced_while_rows_are_made_costs_those_rows(finished, tmp_path, monkeypatch, capsys):
    config = make_config(tmp_path / 'rows', finished / 'corpus.jsonl')
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(totals, 'of_texts', lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        prepare.run(config, num_workers=1)
    other = make_config(tmp_path / 'other', finished / 'corpus.jsonl', **{'tokenizer.model': 'bpe'})
    prepare.run(other, num_workers=1)
    shutil.copy(tmp_path / 'other' / 'tokenizer.model', tmp_path / 'rows' / 'tokenizer.model')
    prepare.run(config, num_workers=1)
    assert 'tokenizer.model is not the tokenizer that was made here' in capsys.readouterr().out
    assert contents(tmp_path / 'rows') == contents(finished / 'rows')


@pytest.mark.parametrize('where', ['tokenizer.model', 'train-00000-of-00001.npy', 'train-slice-00000-of-00001.json'])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(finished, tmp_path, monkeypatch, where):
    config = make_config(tmp_path / 'rows', finished / 'corpus.jsonl')
    real = os.replace

    def full(source, target):
        if pathlib.Path(target).name == where:
            raise OSError(errno.ENOSPC, 'No space left on device')
        real(source, target)

    with monkeypatch.context() as patch, pytest.raises(ConfigError, match=r'disk of .*rows is full.*resumes from here'):
        patch.setattr(os, 'replace', full)
        prepare.run(config, num_workers=1)
    prepare.run(config, num_workers=1)
    assert contents(tmp_path / 'rows') == contents(finished / 'rows')


def test_a_full_disk_that_only_words_tell(finished, tmp_path, monkeypatch):
    def full(*args):
        raise RuntimeError('UNKNOWN: write() failed: No space left on device')

    monkeypatch.setattr(corpora, 'open_corpus', full)  # as libraries in C++ say it
    with pytest.raises(ConfigError, match=r'disk of .*rows is full. .*text of the corpus \(0 MB'):
        prepare.run(make_config(tmp_path / 'rows', finished / 'corpus.jsonl'))


def test_a_place_that_cannot_be_written_is_one_line(finished, tmp_path, monkeypatch):
    def forbidden(*args, **kwargs):
        raise PermissionError(errno.EACCES, 'Permission denied', str(tmp_path / 'rows'))

    monkeypatch.setattr(pathlib.Path, 'mkdir', forbidden)
    with pytest.raises(ConfigError, match=r'cannot use .*rows: Permission denied'):
        prepare.run(make_config(tmp_path / 'rows', finished / 'corpus.jsonl'))


def test_damaged_settings_are_refused_with_a_cure(finished, tmp_path):
    (tmp_path / 'rows' / '.prepare').mkdir(parents=True)
    for damage in ('', '{"settings": {', '[1]', '{"settings": [], "sources": {}}', '{"sources": {"a": 3}}'):
        (tmp_path / 'rows' / '.prepare' / 'settings.json').write_text(damage)
        with pytest.raises(ConfigError, match=rf'settings.json is damaged .*: delete {tmp_path}/rows, and run this'):
            prepare.run(make_config(tmp_path / 'rows', finished / 'corpus.jsonl'))


@pytest.mark.parametrize('moment, seconds', [('.prepare', 0), ('tokenizer.model', 0.02)])
def test_an_interrupt_of_the_whole_group_is_one_line(uninterrupted, moment, seconds):
    """Ctrl-C reaches the workers too, which may not be ready to catch it."""
    rows = uninterrupted / f'interrupted_at_{moment}'
    process = start(uninterrupted, rows.name, 2, start_new_session=True)
    while process.poll() is None and not (rows / moment).exists():
        time.sleep(0.001)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=100)  # comes to an end when no worker holds the pipe any more
    assert process.returncode == 130, errors
    assert errors.strip().splitlines()[-1] == 'interrupted; the same command resumes from here'
    assert 'Traceback' not in errors
    finish(start(uninterrupted, rows.name, 1))
    assert contents(rows) == contents(uninterrupted / 'rows')
