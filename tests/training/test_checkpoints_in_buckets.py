"""Checkpoints in buckets: whole or not there, whenever a process dies; with checksums, and readable from anywhere."""

import contextlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlm_jax.config import ConfigError
from mlm_jax.files import buckets
from mlm_jax.training import checkpoints, integrity, managers, transfers
from mlm_jax.training.checkpoints import Checkpoints, Position
from mlm_jax.training.state import TrainState

pytestmark = pytest.mark.usefixtures('one_device')
PARTS = (checkpoints.PARAMS, checkpoints.OPTIMIZER, checkpoints.POSITION)
SCHEMES = pytest.mark.parametrize('scheme', ['gs', 's3'])


def state_of(step: int) -> TrainState:
    values = jnp.arange(2000, dtype=jnp.float32) * (step + 0.5)
    return TrainState(jnp.int32(step), {'w': values, 'b': values[:3]}, {'mu': -values})


def position_of(step: int) -> Position:
    return Position(16 * step, 0.0, [], {'step': step})


def save(saver: Checkpoints, step: int) -> None:
    saver.save(step, state_of(step), position_of(step))
    saver.wait()


def assert_restores(saver: Checkpoints, step: int) -> None:
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state_of(0))
    found = saver.restore(like, step)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(state_of(step)), strict=True):
        assert np.array_equal(x, y)
    assert saver.restore_position(step) == position_of(step)


def fail(text: str) -> None:
    raise AssertionError(text)


@SCHEMES
def test_a_process_may_die_after_any_request(scheme, cloud):
    """And the next one begins at the newest checkpoint that was complete then, with the same bits."""
    directory, complete = buckets.path(f'{scheme}://bucket/run/checkpoints'), {0: 0}
    saver = Checkpoints(directory, keep_last=1, keep_every_steps=2)
    for step in (1, 2, 3):
        save(saver, step)
        complete[len(cloud.changes)] = step
    assert saver.all_steps() == [2, 3]
    saver.close()
    history, restored = list(cloud.changes), set()
    for count in range(len(history) + 1):
        cloud.rewind(history[:count])
        latest = max(step for changes, step in complete.items() if changes <= count)
        try:
            reader = Checkpoints(directory, read_only=True, note=fail)
            read = reader.checked(items=PARTS)
        except FileNotFoundError:
            read = 0
        assert read in (latest, latest + 1)
        content = frozenset(item for item in cloud.objects.items() if f'checkpoints/{read}/' in item[0])
        if content in restored:
            continue
        restored.add(content)
        if read:
            assert_restores(reader, read)
        writer = Checkpoints(directory, keep_last=1, note=fail)
        assert (writer.latest_step() or 0) == read
        if read:
            assert_restores(writer, read)
        save(writer, read + 1)
        assert writer.latest_step() == read + 1 and len(writer.all_steps()) <= 2
        assert_restores(writer, read + 1)
        writer.close()
    assert len(restored) < 30, 'only the markers and what is newest make a difference'


@pytest.fixture(scope='module')
def on_disk(tmp_path_factory, one_device):
    """A directory with the checkpoints of steps 1 and 2, as a run on a disk leaves it."""
    directory = tmp_path_factory.mktemp('on_disk') / 'checkpoints'
    saver = Checkpoints(directory)
    for step in (1, 2):
        save(saver, step)
    saver.close()
    return directory


def copy(source, target, but=()) -> None:
    for path in source.rglob('*'):
        if path.is_file() and (name := path.relative_to(source).as_posix()) not in but:
            (target / name).write_bytes(path.read_bytes())


@SCHEMES
def test_a_run_can_move_to_a_bucket_and_back(scheme, cloud, on_disk, tmp_path):
    directory = buckets.path(f'{scheme}://bucket/run/checkpoints')
    copy(on_disk, directory)
    reader = Checkpoints(directory, read_only=True, note=fail)
    assert reader.all_steps() == [1, 2] and reader.checked() == 2
    assert_restores(reader, 1)
    saver = Checkpoints(directory, keep_last=2, note=fail)
    assert saver.all_steps() == [1, 2], 'they were not taken for the remains of interrupted writes'
    assert_restores(saver, 2)
    save(saver, 3)
    assert saver.all_steps() == [2, 3]
    saver.close()
    buckets.download(directory, tmp_path / 'checkpoints', directory.listing())
    saver = Checkpoints(tmp_path / 'checkpoints', note=fail)
    assert_restores(saver, 3)
    saver.close()


@SCHEMES
def test_damage_is_found_and_set_aside(scheme, cloud, on_disk):
    directory, notes = buckets.path(f'{scheme}://bucket/run/checkpoints'), []
    missing = next(path.relative_to(on_disk).as_posix() for path in on_disk.glob('2/params/d/*'))
    copy(on_disk, directory, but=[missing])
    reader = Checkpoints(directory, read_only=True, note=notes.append)
    assert reader.checked() == 1 and f'{missing.removeprefix("2/")} is missing' in notes.pop()
    with pytest.raises(ConfigError, match='the checkpoint of step 2 in .* is damaged'):
        reader.checked(2)
    saver = Checkpoints(directory, note=notes.append)
    assert saver.all_steps() == [1] and f'{directory}_damaged/2' in notes.pop()
    assert not list(directory.glob('2/**')) and (directory.parent / 'checkpoints_damaged' / '2' / 'params').is_dir()
    save(saver, 2)
    saver.close()
    array = next(path for path in directory.glob('2/**/d/*') if path.stat().st_size > 1000)
    array.write_bytes(array.read_bytes()[:-1] + b'!')
    assert 'has other content than was written' in (integrity.damage(directory / '2', PARTS) or '')
    transfers.remove(directory, 1)
    with pytest.raises(ConfigError, match='all checkpoints in .* are damaged'):
        Checkpoints(directory, note=fail)


def test_what_a_bucket_tells_of_contents_is_not_believed_where_it_differs(cloud, on_disk, monkeypatch):
    """S3 tells something else than an MD5 of encrypted objects and of large ones."""
    directory = buckets.path('s3://bucket/run/checkpoints')
    copy(on_disk, directory)
    integrity.write_checksums(directory / '2')
    assert {*map(len, json.loads((directory / '2' / integrity.CHECKSUMS_FILE).read_bytes()).values())} == {2}
    for told in ('', '0' * 32):
        monkeypatch.setattr(buckets, '_md5', lambda info, told=told: told)
        assert integrity.damage(directory / '2', PARTS) is None
    monkeypatch.setattr(buckets, '_md5', lambda info: '')
    integrity.write_checksums(directory / '1')
    assert integrity.damage(directory / '1', PARTS) is None
    (directory / '1' / integrity.CHECKSUMS_FILE).unlink()
    transfers.mark(directory, 1)
    assert integrity.damage(directory / '1', PARTS) is None, 'it is read through'


def test_several_processes_need_google_cloud_storage(cloud, monkeypatch):
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    with pytest.raises(ConfigError, match=r's3://bucket/a: only one process .* use a bucket of Google Cloud Storage'):
        managers.open_manager(buckets.path('s3://bucket/a'), lambda: None)


def test_what_is_kept_is_what_orbax_keeps():
    assert transfers.superfluous(range(1, 8), 2, None) == [1, 2, 3, 4, 5]
    assert transfers.superfluous(range(1, 8), 2, 2) == [1, 3, 5]
    assert transfers.superfluous(range(1, 8), None, 2) == []


def test_what_the_packages_raise_becomes_an_error_of_the_disk(cloud):
    directory = buckets.path('gs://bucket/run/checkpoints')
    saver = Checkpoints(directory)
    save(saver, 1)
    cloud.is_closed = True
    for act in (assert_restores, lambda saver, _: save(saver, 2)):
        with pytest.raises(OSError, match='denied') as raised:
            act(saver, 1)
        assert raised.value.filename == str(directory) and 'tensorstore_spec' not in raised.value.strerror
    cloud.is_closed = False
    with contextlib.suppress(OSError):  # other threads still write
        saver.close()


@SCHEMES
def test_the_state_of_a_task_may_lose_its_process_after_any_request(scheme, cloud):
    directory, arrays = buckets.path(f'{scheme}://bucket/unfinished'), {'x': jnp.arange(3.0)}
    snapshots = checkpoints.Snapshots(directory, note=fail)
    for step in (1, 2):
        snapshots.save(step, arrays, {'step': step})
    snapshots.close()
    history = list(cloud.changes)
    names = [name for name, _ in history]
    whole = names.index(f'bucket/unfinished/2/{integrity.CHECKSUMS_FILE}')  # from then on, nothing is missing
    for count, step in ((whole, 1), (whole + 1, 2), (whole + 5, 2), (len(history), 2)):
        cloud.rewind(history[:count])
        snapshots = checkpoints.Snapshots(directory, note=fail)
        found, record = snapshots.restore(arrays)
        assert record == {'step': step} and np.array_equal(found['x'], arrays['x'])
        snapshots.close()
    snapshots.delete()
    assert not cloud.objects
