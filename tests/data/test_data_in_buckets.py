"""Corpora, tokenizers and rows in a bucket: prepare makes the same bytes as on a disk, and training reads them."""

import errno
import json
import tempfile
import threading

import fsspec
import numpy as np
import pytest
from preparations import contents_of_any_corpus, made_up_texts, make_config

from mlm_jax import doctor, prepare
from mlm_jax.config import ConfigError
from mlm_jax.data import corpora, encoding, packing, prepared_data, reading, slices, sources, verification
from mlm_jax.data import manifest as manifest_lib
from mlm_jax.data.rows import Batches
from mlm_jax.data.shards import Shards
from mlm_jax.files import buckets, text_files
from mlm_jax.files.errors import TransientError
from mlm_jax.parallel import mesh as mesh_lib


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A corpus in two files, in `corpus`, and the rows that were made of it, in `rows`."""
    folder, rng = tmp_path_factory.mktemp('on_disk'), np.random.default_rng(0)
    (folder / 'corpus').mkdir()
    for name in ('a', 'b'):
        texts = made_up_texts(rng, 150)
        (folder / 'corpus' / f'{name}.jsonl').write_text(''.join(json.dumps({'text': t}) + '\n' for t in texts))
    config = make_config(folder / 'rows', f'jsonl:{folder}/corpus/*.jsonl')
    prepare.run(config, num_workers=1)
    return folder


@pytest.fixture
def in_bucket(bucket, finished):
    """gs://bucket with `corpus`, and the configuration that makes `rows` of it."""
    root = bucket[0]
    for path in (finished / 'corpus').iterdir():
        (root / 'corpus' / path.name).write_bytes(path.read_bytes())
    return root, make_config(root / 'rows', f'jsonl:{root}/corpus/*.jsonl')


def upload(directory, root):
    for path in directory.iterdir():
        (root / path.name).write_bytes(path.read_bytes())
    return root


def test_prepare_makes_the_same_bytes(in_bucket, finished, tmp_path, monkeypatch, capsys):
    root, config = in_bucket
    monkeypatch.chdir(tmp_path)
    written, run = [], encoding.SliceJob.run

    def killed(job):
        if written:
            raise KeyboardInterrupt
        written.append(job.name)
        return run(job)

    monkeypatch.setattr(encoding.SliceJob, 'run', killed)
    monkeypatch.setattr('mlm_jax.data.slices.SLICE_BYTES', 8000)
    with pytest.raises(KeyboardInterrupt):
        prepare.run(config, num_workers=1)
    assert not (root / 'rows' / manifest_lib.FILE).exists()
    monkeypatch.setattr(encoding.SliceJob, 'run', lambda job: written.append(job.name) or run(job))
    manifest = prepare.run(config, num_workers=1)
    assert 'resuming' in capsys.readouterr().out and len(set(written)) == len(written) > 3
    here = make_config(tmp_path / 'rows', f'jsonl:{finished}/corpus/*.jsonl')
    assert prepare.run(here, num_workers=1).fingerprint == manifest.fingerprint
    assert contents_of_any_corpus(root / 'rows') == contents_of_any_corpus(tmp_path / 'rows')
    assert [path.name for path in tmp_path.iterdir()] == ['rows']  # and nothing named `gs:`


def test_tasks_share_a_bucket_and_damage_is_mended(in_bucket, finished, monkeypatch, capsys):
    root, config = in_bucket
    monkeypatch.setattr('mlm_jax.data.claim.WAIT_SECONDS', 1)
    for task in (prepare.Task(0, 2), prepare.Task(1, 2), None):
        manifest = prepare.run(config, 1, task)
    expected = contents_of_any_corpus(root / 'rows')
    assert expected == contents_of_any_corpus(finished / 'rows')
    shard = root / 'rows' / manifest.splits['train'].shards[0].file
    shard.write_bytes(shard.read_bytes()[:-2] + b'\1\1')
    (root / 'rows' / 'tables.npz').unlink()
    assert set(verification.examine(root / 'rows', manifest, content=True).wrong) == {shard.name, 'tables.npz'}
    prepare.run(config, 1)
    assert contents_of_any_corpus(root / 'rows') == expected and 'it is made again' in capsys.readouterr().out
    (root / 'corpus' / 'a.jsonl').write_bytes((root / 'corpus' / 'b.jsonl').read_bytes())
    with pytest.raises(ConfigError, match='gs://bucket/corpus/a.jsonl: '):
        prepare.run(config, 1)


def test_a_full_disk_on_the_way_to_a_bucket_is_named(in_bucket, tmp_path, monkeypatch):
    root, config = in_bucket
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, 'No space left on device')

    with monkeypatch.context() as patch, pytest.raises(ConfigError, match=rf'the disk of {tmp_path} is full.*TMPDIR'):
        patch.setattr(packing, 'pack', full)
        prepare.run(config, 1)
    prepare.run(config, 1)
    assert (root / 'rows' / manifest_lib.FILE).exists() and list(tmp_path.iterdir()) == []


@pytest.fixture
def asked(bucket, monkeypatch):
    """The name and the path of each request."""
    found, storage = [], fsspec.get_filesystem_class('gs')
    for name in ('info', 'ls', 'cat_file'):
        original = getattr(storage, name)

        def recorded(self, path, *args, name=name, original=original, **kwargs):
            found.append((name, self._strip_protocol(path)))
            return original(self, path, *args, **kwargs)

        monkeypatch.setattr(storage, name, recorded)
    return found


@pytest.mark.parametrize('is_listed', [True, False])
def test_the_objects_of_a_corpus_are_not_asked_one_by_one(bucket, asked, tmp_path, is_listed):
    root, counts = bucket[0], []
    for count in (3, 30):
        names = [f'{root}/corpus/{number}.jsonl' for number in range(count)]
        for name in names:
            buckets.path(name).write_text('{"text": "text"}\n')
        spec = f'jsonl:{root}/corpus/*.jsonl' if is_listed else f'jsonl:{";".join(names)}'
        asked.clear()
        data = make_config('', '', **{'data.corpus': spec}).data
        assert sources.describe(spec, corpora.files_of(data)['corpus']) == {name: {'bytes': 17} for name in names}
        corpus = corpora.open_corpus(data, tmp_path)
        assert len(corpus.train[0].parts) == count
        counts.append(len(asked))
    # What is named without a glob is looked for by its name, in each of the two steps.
    assert counts[1] == (counts[0] if is_listed else 2 * 30)


def test_large_objects_are_asked_at_the_same_time(bucket, monkeypatch):
    for number in range(4):
        (bucket[0] / f'{number}.txt').write_text('text\n' * 100)
    together, num_parts = threading.Barrier(4, timeout=30), text_files.num_parts

    def waiting(*args, **kwargs):
        together.wait()
        return num_parts(*args, **kwargs)

    monkeypatch.setattr(text_files, 'num_parts', waiting)
    assert len(slices.divide_files('lines', text_files.names('gs://bucket/*.txt'), '', 100)) == 4 * 5


def test_an_object_that_has_grown_since_it_was_listed_is_noticed(bucket):
    path = bucket[0] / 'a.txt'
    path.write_text('text\n')
    files = text_files.names('gs://bucket/*.txt')
    path.write_text('text\n' * 2)
    (divided,) = slices.divide_files('lines', files, '')
    with pytest.raises(ConfigError, match=r'gs://bucket/a\.txt has changed since this preparation'):
        reading.Reading(divided, 0)


def test_a_corpus_that_changes_meanwhile_is_noticed(in_bucket, monkeypatch):
    root, config = in_bucket
    run = encoding.SliceJob.run

    def changing(job):
        content = (root / 'corpus' / 'a.jsonl').read_bytes()
        (root / 'corpus' / 'a.jsonl').write_bytes(content.swapcase())
        return run(job)

    monkeypatch.setattr(encoding.SliceJob, 'run', changing)
    with pytest.raises(ConfigError, match='gs://bucket/corpus/a.jsonl has changed since this preparation'):
        prepare.run(config, 1)


def test_rows_are_read_in_ranges(bucket, finished):
    root, requests = bucket
    rows = upload(finished / 'rows', root / 'rows')
    ours, theirs = Shards(rows, 'train'), Shards(finished / 'rows', 'train')
    count = len(theirs)
    requests.clear()
    assert np.array_equal(ours.read_span(3, 40), theirs.read_span(3, 40))
    assert [stop - start for _, start, stop in requests[-1:]] == [37 * 32 * 2]
    requests.clear()
    mixed = np.array([7, 5, 6, 20, 5, count - 1])
    assert np.array_equal(ours.read(mixed), theirs.read(mixed))
    assert [stop - start for _, start, stop in requests] == [3 * 64, 64, 64]
    assert np.array_equal(np.concatenate(list(ours.blocks(9))), np.concatenate(list(theirs.blocks(9))))
    assert ours.read(np.zeros(0, int)).shape == (0, 32)
    with pytest.raises(IndexError):
        ours.read_span(0, count + 1)
    Shards(rows, 'train', verify=True).read(mixed)


def test_damaged_and_missing_objects_are_named(bucket, finished):
    root, _ = bucket
    rows = upload(finished / 'rows', root / 'rows')
    name = manifest_lib.load(rows).splits['train'].shards[0].file
    shards, content = Shards(rows, 'train'), (rows / name).read_bytes()
    shards.read(np.arange(2))
    (rows / name).write_bytes(content[:1000])
    with pytest.raises(ConfigError, match=f'cannot read gs://bucket/rows/{name}: it has 1,000 bytes instead of'):
        Shards(rows, 'train')
    with pytest.raises(ConfigError, match=f'rows/{name}: it cannot be read: it has become shorter while'):
        shards.read(np.array([len(shards) - 1]))
    (rows / name).write_bytes(content[:-2] + b'\1\0')
    with pytest.raises(ConfigError, match='has changed since prepare wrote it'):
        Shards(rows, 'train', verify=True).read(np.arange(2))
    (rows / name).unlink()
    with pytest.raises(ConfigError, match=f'gs://bucket/rows/{name}: it is missing'):
        Shards(rows, 'train')
    with pytest.raises(ConfigError, match='gs://bucket/other holds no prepared data'):
        manifest_lib.load('gs://bucket/other')


def test_a_bucket_that_cannot_be_reached_is_not_called_damaged(bucket, finished, monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError('503 Service Unavailable')

    rows = upload(finished / 'rows', bucket[0] / 'rows')
    shards, name = Shards(rows, 'train'), manifest_lib.load(rows).splits['train'].shards[0].file
    monkeypatch.setattr(fsspec.get_filesystem_class('gs'), 'cat_file', refuse)
    with pytest.raises(
        TransientError, match=f'rows/{name}: the bucket could not be reached.*same command then resumes'
    ):
        shards.read_span(0, 2)


def test_batches_of_a_bucket_are_those_of_a_disk(bucket, finished):
    root, _ = bucket
    upload(finished / 'rows', root / 'rows')
    batches = []
    for directory in (finished / 'rows', root / 'rows'):
        config = make_config(directory, 'jsonl:a', batch_size='8', **{'data.block_kib': '1'})
        config.data.window_blocks = 2
        config, data = prepared_data.resolve(config)
        data.tables(config.masking)
        source = Batches(data.training_rows(), data.order(config), 8, mesh_lib.batch_sharding(mesh_lib.make_mesh()))
        batches.append([np.asarray(source(step)) for step in range(4)])
        assert data.held_out_rows().read(np.arange(2)).shape == (2, 32)
        source.close()
    assert np.array_equal(*batches)
    config.data.block_kib = 0
    with pytest.raises(ConfigError, match=r'gs://bucket/rows lies in a bucket.*data\.block_kib=256'):
        prepared_data.resolve(config)
    assert any('data.block_kib=256' in text for fine, text in doctor._check_prepared(config, False) if not fine)
    config.data.block_kib = 1
    config.data.directory = f'{root}/rows:0.5,{finished}/rows:0.5'
    assert prepared_data.resolve(config)[1].is_mixture


def test_a_tokenizer_in_a_bucket_is_used(bucket, finished, tmp_path):
    root, _ = bucket
    upload(finished / 'rows', root / 'rows')
    model = root / 'rows' / 'tokenizer.model'
    config = make_config(tmp_path / 'rows', f'jsonl:{finished}/corpus/*.jsonl', **{'tokenizer.model': str(model)})
    prepare.run(config, num_workers=1)
    assert (tmp_path / 'rows' / 'tokenizer.model').read_bytes() == model.read_bytes()
