"""Rows come back from disk as they were written, in any order; damage is reported."""

import pickle
import shutil

import numpy as np
import pytest

from mlm_jax.config import ConfigError
from mlm_jax.data import manifest as manifest_lib
from mlm_jax.data import shards
from mlm_jax.masking.vocabulary import standard_vocabulary


@pytest.fixture
def directory(tmp_path):
    """Three shards of 5, 0 and 7 rows."""
    rows, files = np.arange(12 * 8, dtype=np.uint16).reshape(12, 8), []
    for index, (start, stop) in enumerate([(0, 5), (5, 5), (5, 12)]):
        name = shards.shard_name('train', index, 3)
        shards.write_rows(tmp_path / name, rows[start:stop])
        files.append(manifest_lib.Shard(name, stop - start, ''))
    split = manifest_lib.Split(12, 96, 96, 3, 9, 50, 1.5, {'empty documents, dropped': 2}, tuple(files))
    manifest_lib.save(
        manifest_lib.Manifest(
            {'vocab_size': 300}, {}, standard_vocabulary(300), 'tokenizer.model', '', 8, 'documents', 'uint16',
            {'train': split}, {},
        ),
        tmp_path,
    )  # fmt: skip
    return tmp_path


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
