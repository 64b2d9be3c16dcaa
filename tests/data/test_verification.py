"""Hashes of a prepared directory: compared at once, or in the background of training, by one process or several."""

import dataclasses
import re
import shutil
import time

import numpy as np
import pytest

from mlm_jax.config import ConfigError
from mlm_jax.data import manifest as manifest_lib
from mlm_jax.data import shards, verification
from mlm_jax.data.prepared_data import PreparedData, Source
from mlm_jax.files import atomic
from mlm_jax.masking.vocabulary import standard_vocabulary


@pytest.fixture
def directory(tmp_path):
    """Four shards of 6 rows with their hashes, each row [CLS] and text; a tokenizer; no tables."""
    rng, files = np.random.default_rng(0), []
    for index in range(4):
        rows = rng.integers(5, 50, (6, 8)).astype(np.uint16)
        rows[:, 0] = 2
        name = shards.shard_name('train', index, 4)
        shards.write_rows(tmp_path / name, rows)
        files.append(manifest_lib.Shard(name, 6, atomic.sha256(tmp_path / name)))
    (tmp_path / 'tokenizer.model').write_bytes(b'pieces')
    split = manifest_lib.Split(24, 192, 168, 4, 9, 50, 1.5, {}, tuple(files))
    tokenizer_sha256 = atomic.sha256(tmp_path / 'tokenizer.model')
    manifest = manifest_lib.Manifest(
        {}, {}, standard_vocabulary(50), 'tokenizer.model', tokenizer_sha256, 8, 'documents', 'uint16',
        {'train': split}, {},
    )  # fmt: skip
    manifest_lib.save(manifest, tmp_path)
    return tmp_path


def rewrite(path, change):
    rows = np.load(path)
    np.save(path, change(rows))


def wrong(directory, content=False):
    return verification.examine(directory, manifest_lib.load(directory), content).wrong


def test_rows_are_written_as_numpy_writes_them(tmp_path):
    for rows in (np.arange(12, dtype=np.uint16).reshape(3, 4), np.zeros((0, 4), np.uint32)):
        shards.write_rows(tmp_path / 'ours.npy', rows)
        np.save(tmp_path / 'numpy.npy', rows)
        assert (tmp_path / 'ours.npy').read_bytes() == (tmp_path / 'numpy.npy').read_bytes()


def test_whole_directories_are_found_whole(directory):
    findings = verification.examine(directory, manifest_lib.load(directory), content=True)
    assert (findings.wrong, findings.verified, findings.unknown, findings.surplus) == ({}, 5, 0, ())


SHARD = 'train-00001-of-00004.npy'
SEEN_AT_ONCE = {
    'is missing': lambda path: path.unlink(),
    'is a symbolic link to .*, which is missing': lambda path: (path.unlink(), path.symlink_to('gone')),
    'cannot be read: Is a directory': lambda path: (path.unlink(), path.mkdir()),
    r'is not a file of rows: it has 0 bytes': lambda path: path.write_bytes(b''),
    r'is not a file of rows: it has 224 bytes': lambda path: path.write_bytes(bytes(224)),
    r'has 204 bytes instead of 224: it was truncated': lambda path: path.write_bytes(path.read_bytes()[:-20]),
    r'has 228 bytes instead of 224: .* something was appended': lambda path: path.write_bytes(
        path.read_bytes() + b'more'
    ),
    r'holds \(5, 8\) ids, but the manifest says \(6, 8\)': lambda path: rewrite(path, lambda rows: rows[:5]),
    r'holds numbers of type <f8, but the manifest says uint16': lambda path: rewrite(path, np.float64),
    r'holds numbers of type <u4, but the manifest says uint16': lambda path: rewrite(path, np.uint32),
    r'holds numbers of type \|O': lambda path: np.save(path, np.full((6, 8), None), allow_pickle=True),
    r'holds numbers of type <u2': lambda path: rewrite(path, np.asfortranarray),
}


@pytest.mark.parametrize('clause', SEEN_AT_ONCE)
def test_other_sizes_shapes_and_dtypes_are_seen_at_once(directory, clause):
    SEEN_AT_ONCE[clause](directory / SHARD)
    found = wrong(directory)
    assert list(found) == [SHARD]
    assert re.match(clause, found[SHARD])
    with pytest.raises(ConfigError, match=f'cannot read {directory / SHARD}: it ({clause}).* prepare again'):
        shards.Shards(directory, 'train')


def set_id(rows):
    rows[3, 5] = 50
    return rows


@pytest.mark.parametrize(
    'change, message',
    [
        (set_id, 'holds the id 50 in row 3, but there are only 50 ids'),
        (np.zeros_like, r'holds only padding in row \d'),
    ],
)
def test_ids_out_of_range_and_empty_rows_are_refused_as_they_are_read(directory, change, message):
    rewrite(directory / SHARD, change)
    rows = shards.Shards(directory, 'train')
    rows.read(np.arange(6))
    with pytest.raises(ConfigError, match=rf'{SHARD}: it {message}'):
        rows.read(np.array([20, 9, 6]))
    with pytest.raises(ConfigError, match=message):
        list(rows.blocks())


def test_flipped_bytes_are_found_by_their_hash(directory):
    rewrite(directory / SHARD, lambda rows: rows ^ 1)
    assert not wrong(directory)
    assert wrong(directory, content=True) == {SHARD: verification.CHANGED}
    shards.Shards(directory, 'train').read(np.array([7]))
    with pytest.raises(ConfigError, match=rf'{SHARD}: it has changed since prepare wrote it'):
        shards.Shards(directory, 'train', verify=True).read(np.array([7]))
    (directory / 'tokenizer.model').write_bytes(b'other pieces')
    with pytest.raises(ConfigError, match=r'(?s)is damaged:.*tokenizer.model has changed'):
        verification.check_tokenizer(directory, manifest_lib.load(directory))


def test_many_damaged_files_are_named_in_part():
    text = verification.describe('data', {f'f{i}': 'is missing' for i in range(30)})
    assert text.startswith('data lacks f0, ') and 'f19 … and 10 more; copy them there again' in text
    assert '\n    … and 10 more\n' in verification.describe('data', {f'f{i}': 'is odd' for i in range(30)})


# ---- In the background ----------------------------------------------------------------------------------------------


def files(directory):
    return PreparedData((Source('', directory, manifest_lib.load(directory)),)).checksums()


def started(directory, process=0, num_processes=1, **arguments):
    background = verification.Background(files(directory), process, num_processes, share_of_core=1, **arguments)
    while not background.is_done:
        time.sleep(0.001)
    background.close()
    return background


def test_the_background_says_nothing_of_whole_shards(directory):
    started(directory).raise_if_damaged()
    manifest = manifest_lib.load(directory)
    split = manifest.splits['train']
    unknown = tuple(dataclasses.replace(shard, sha256='') for shard in split.shards)
    splits = {'train': dataclasses.replace(split, shards=unknown)}
    manifest_lib.save(dataclasses.replace(manifest, splits=splits), directory)
    rewrite(directory / SHARD, lambda rows: rows ^ 1)
    started(directory).raise_if_damaged()  # nobody knows what it was


@pytest.mark.parametrize('damage', [lambda path: rewrite(path, lambda rows: rows ^ 1), lambda path: path.unlink()])
def test_the_background_names_a_damaged_shard(directory, damage):
    background_before = started(directory)
    damage(directory / SHARD)
    background_before.raise_if_damaged()
    with pytest.raises(ConfigError, match=rf'(?s){SHARD}.*run the same prepare again.*delete the checkpoints'):
        started(directory).raise_if_damaged()


def test_a_damaged_shard_of_a_mixture_is_named_with_its_directory(directory, tmp_path):
    other = shutil.copytree(directory, tmp_path / 'other')
    rewrite(other / SHARD, lambda rows: rows ^ 1)
    sources = [Source(path.name, path, manifest_lib.load(path)) for path in (directory, other)]
    background = verification.Background(PreparedData(tuple(sources)).checksums(), share_of_core=1)
    while not background.is_done:
        time.sleep(0.001)
    background.close()
    with pytest.raises(ConfigError, match=rf'(?s)^{re.escape(str(other))} is damaged.*{SHARD}'):
        background.raise_if_damaged()


def test_processes_share_the_shards_and_end_at_the_same_step(directory):
    rewrite(directory / SHARD, lambda rows: rows ^ 1)
    processes = [started(directory, process, 2) for process in range(2)]
    for process in processes:
        process.raise_if_damaged()  # alone, none of them ends

    said = []
    for process in processes:
        with pytest.raises(ConfigError, match=rf'{SHARD} has changed'):
            process.raise_if_damaged(lambda mine: said.append(mine) or np.array([[-2], [1]], np.int32))
    assert [mine.tolist() for mine in said] == [[-2], [1]]

    shards.write_rows(directory / SHARD, np.load(directory / SHARD) ^ 1)
    process, calls = started(directory, 0, 2), []
    for states in ([-2, -1], [-2, -2], [-2, -2]):
        process.raise_if_damaged(lambda mine, states=states: calls.append(mine) or np.array(states, np.int32))
    assert len(calls) == 2, 'once all are done, nobody asks'


def test_the_background_can_be_stopped(directory):
    background = verification.Background(files(directory), share_of_core=1e-9)  # rests for minutes
    start = time.monotonic()
    background.close()
    assert time.monotonic() - start < 5 and not background.is_done
    background.raise_if_damaged()
