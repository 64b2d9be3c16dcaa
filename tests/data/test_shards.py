"""Rows come back from disk as they were written, in any order; damage is reported."""

import errno
import os
import pickle
import resource
import shutil

import numpy as np
import pytest

from mlm_jax.config import ConfigError
from mlm_jax.data import manifest as manifest_lib
from mlm_jax.data import shards
from mlm_jax.files import maps
from mlm_jax.masking.vocabulary import standard_vocabulary


def write(directory, *counts):
    """Shards of so many rows each."""
    total = sum(counts)
    rows, files = np.arange(total * 8, dtype=np.uint16).reshape(total, 8) % 300, []
    for index, count in enumerate(counts):
        name, start = shards.shard_name('train', index, len(counts)), sum(counts[:index])
        shards.write_rows(directory / name, rows[start : start + count])
        files.append(manifest_lib.Shard(name, count, ''))
    split = manifest_lib.Split(total, 8 * total, 96, 3, 9, 50, 1.5, {'empty documents, dropped': 2}, tuple(files))
    manifest_lib.save(
        manifest_lib.Manifest(
            {'vocab_size': 300}, {}, standard_vocabulary(300), 'tokenizer.model', '', 8, 'documents', 'uint16',
            {'train': split}, {},
        ),
        directory,
    )  # fmt: skip
    return directory


@pytest.fixture
def directory(tmp_path):
    return write(tmp_path, 5, 0, 7)


def test_random_access_across_shards(directory):
    reader = shards.Shards(directory, 'train')
    assert len(reader) == 12
    indices = np.array([11, 0, 5, 4, 4, 7])
    rows = reader.read(indices)
    assert rows.dtype == np.int32
    np.testing.assert_array_equal(rows, np.arange(96).reshape(12, 8)[indices])
    assert reader.read(np.array([], np.int64)).shape == (0, 8)
    with pytest.raises(IndexError, match=r'outside 0 … 11'):
        reader.read(np.array([12]))


def test_readers_travel_without_their_maps(directory):
    reader = shards.Shards(directory, 'train')
    reader.read(np.arange(12))
    pickled = pickle.dumps(reader)
    assert len(pickled) < 2000
    np.testing.assert_array_equal(pickle.loads(pickled).read(np.arange(12)), reader.read(np.arange(12)))


def test_more_shards_are_read_than_files_may_be_open(tmp_path, monkeypatch):
    """Of two readers, which share what there is; also in order, and by blocks."""
    monkeypatch.setattr(maps, 'open_files_limit', lambda: 20)
    monkeypatch.setattr(shards, '_MAPS', maps.RecentMaps())
    write(tmp_path, *[1] * 40)
    expected = np.arange(320).reshape(40, 8) % 300
    readers = [shards.Shards(tmp_path, 'train') for _ in range(2)]
    before = len(os.listdir('/dev/fd'))
    for order in (np.arange(40), np.random.default_rng(0).permutation(40)):
        for reader in readers:
            np.testing.assert_array_equal(reader.read(order), expected[order])
            assert len(os.listdir('/dev/fd')) - before <= 10
    np.testing.assert_array_equal(np.concatenate(list(readers[0].blocks())), expected)
    np.testing.assert_array_equal(readers[1].read_span(3, 37), expected[3:37])
    del readers, reader
    assert len(os.listdir('/dev/fd')) <= before, 'readers that are gone hold nothing open'


def test_too_many_open_files_are_no_damage(directory, monkeypatch):
    def refuse(*args):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(np, 'memmap', refuse)
    with pytest.raises(ConfigError, match=r'Too many open files. This process may have [\d,]+ .* `ulimit -n 16384`'):
        shards.Shards(directory, 'train').read(np.arange(12))


@pytest.mark.parametrize(
    ('soft', 'hard', 'expected'), [(256, 4096, 4096), (1024, resource.RLIM_INFINITY, 16_384), (20_000, 20_000, 20_000)]
)
def test_the_system_is_asked_for_more_open_files_if_it_allows_few(soft, hard, expected, monkeypatch):
    now = [(soft, hard)]
    monkeypatch.setattr(resource, 'getrlimit', lambda kind: now[-1])
    monkeypatch.setattr(resource, 'setrlimit', lambda kind, limits: now.append(limits))
    assert maps.open_files_limit() == expected == now[-1][0]


def test_the_manifest_round_trips(directory):
    manifest = manifest_lib.load(directory)
    before = (directory / manifest_lib.FILE).read_bytes()
    manifest_lib.save(manifest, directory)
    assert (directory / manifest_lib.FILE).read_bytes() == before
    assert manifest.vocabulary == standard_vocabulary(300)
    assert manifest.splits['train'].shards[2].rows == 7


def test_row_dtype():
    assert shards.row_dtype(1 << 16) == np.uint16
    assert shards.row_dtype((1 << 16) + 1) == np.uint32


def test_what_is_missing_is_named(directory, tmp_path):
    with pytest.raises(ConfigError, match=r'python -m mlm_jax.prepare --config='):
        shards.Shards(tmp_path / 'nothing', 'train')
    with pytest.raises(ConfigError, match=r"no split 'test'; the splits are train"):
        shards.Shards(directory, 'test')
    name = shards.shard_name('train', 0, 3)
    shutil.copy(directory / shards.shard_name('train', 2, 3), directory / name)
    with pytest.raises(ConfigError, match=r'holds \(7, 8\) ids, but the manifest says \(5, 8\)'):
        shards.Shards(directory, 'train').read(np.array([0]))
    (directory / name).unlink()
    with pytest.raises(ConfigError, match=r'cannot read .*train-00000-of-00003.npy'):
        shards.Shards(directory, 'train').read(np.array([0]))


@pytest.mark.parametrize('content', ['{', '{"settings": {}}'])
def test_a_damaged_manifest_is_reported(directory, content):
    (directory / manifest_lib.FILE).write_text(content)
    with pytest.raises(ConfigError, match=r'delete .* and prepare it again'):
        manifest_lib.load(directory)
