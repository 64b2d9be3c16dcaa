"""Damaged files of a run: found before they do harm, named, set aside; the run goes on as if nothing had happened."""

import errno
import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest

from mlm_jax import train as train_lib
from mlm_jax.config import ConfigError
from mlm_jax.training import checkpoints, integrity, managers
from mlm_jax.training import workdir as workdir_lib
from tests.test_train import assert_same_bits, final_state, learned

pytestmark = pytest.mark.usefixtures('one_device')


@pytest.fixture(scope='module')
def config(make_tiny_config):
    config = make_tiny_config()
    config.model.num_layers = 1
    config.total_steps, config.checkpoint.every_steps, config.evaluation.every_steps = 6, 2, 3
    return config


@pytest.fixture(scope='module')
def finished(config, tmp_path_factory):
    """The workdir of a run with checkpoints of steps 2, 4 and 6."""
    workdir = tmp_path_factory.mktemp('damage') / 'run'
    train_lib.train(config, workdir)
    return workdir


@pytest.fixture
def copy(finished, tmp_path):
    return pathlib.Path(shutil.copytree(finished, tmp_path / 'run'))


def largest(checkpoint: pathlib.Path, item: str) -> pathlib.Path:
    return max((checkpoint / item).rglob('d/*'), key=lambda path: path.stat().st_size)


def flip(path: pathlib.Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def empty(checkpoint: pathlib.Path) -> None:
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


DAMAGES = {
    'an empty directory': (empty, 'its directory is empty'),
    'an array cut': (lambda c: os.truncate(largest(c, 'params'), 100), 'has 100 bytes instead of'),
    'an array emptied': (lambda c: os.truncate(largest(c, 'opt_state'), 0), 'has 0 bytes instead of'),
    'an array missing': (lambda c: largest(c, 'params').unlink(), 'is missing'),
    'a byte of the parameters': (lambda c: flip(largest(c, 'params')), 'has other content than was written'),
    'a byte of the optimizer': (lambda c: flip(largest(c, 'opt_state')), 'has other content than was written'),
    'no position': (lambda c: shutil.rmtree(c / 'position'), 'position is missing'),
    'a cut position': (lambda c: os.truncate(c / 'position' / 'metadata', 9), 'position/metadata has 9 bytes instead'),
    'no metadata': (lambda c: (c / '_CHECKPOINT_METADATA').unlink(), '_CHECKPOINT_METADATA cannot be read'),
    'cut metadata': (lambda c: os.truncate(c / '_CHECKPOINT_METADATA', 9), '_CHECKPOINT_METADATA cannot be read'),
    'cut checksums': (
        lambda c: os.truncate(c / integrity.CHECKSUMS_FILE, 9),
        'checksums.json is not a file of checksums',
    ),
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_taken(copy, damage):
    do, said = DAMAGES[damage]
    do(copy / 'checkpoints' / '6')
    there = sorted(path.relative_to(copy / 'checkpoints' / '6') for path in (copy / 'checkpoints' / '6').rglob('*'))
    notes = []
    saver = checkpoints.Checkpoints(copy / 'checkpoints', note=notes.append)
    assert saver.latest_step() == 4 and saver.restore_position().examples == 4 * 16
    saver.close()
    aside = copy / 'checkpoints_damaged' / '6'
    assert sorted(path.relative_to(aside) for path in aside.rglob('*')) == there, 'nothing is deleted'
    assert len(notes) == 1 and said in notes[0] and str(aside) in notes[0] and 'repeats 2 steps' in notes[0]


@pytest.mark.parametrize(
    ('damage', 'said'),
    [
        ('an array cut', 'params cannot be read'),
        ('an array missing', 'params cannot be read'),
        ('an empty directory', 'its directory is empty'),
        ('a cut position', 'position cannot be read'),
    ],
)
def test_a_checkpoint_without_checksums_is_read_through(copy, damage, said):
    """Those of older versions have none."""
    for path in (copy / 'checkpoints').glob(f'*/{integrity.CHECKSUMS_FILE}'):
        path.unlink()
    checkpoint, items = copy / 'checkpoints' / '6', ('params', 'opt_state', 'position')
    assert integrity.damage(checkpoint, items) is None
    DAMAGES[damage][0](checkpoint)
    assert said in integrity.damage(checkpoint, items)


def test_values_that_are_not_finite_are_damage_where_there_are_no_checksums(copy, monkeypatch):
    (copy / 'checkpoints' / '6' / integrity.CHECKSUMS_FILE).unlink()
    monkeypatch.setattr(integrity.np, 'isfinite', lambda values: np.zeros(np.shape(values), bool))
    assert 'is not finite' in integrity.damage(copy / 'checkpoints' / '6', ('params',))
    assert integrity.damage(copy / 'checkpoints' / '6', ('opt_state',)) is None


def test_a_run_goes_on_from_before_the_damage_to_the_same_curve_and_state(config, finished, copy, capsys):
    """Two damaged checkpoints, bad lines in the log, cut files, and what interrupted writes leave behind."""
    flip(largest(copy / 'checkpoints' / '6', 'opt_state'))
    empty(copy / 'checkpoints' / '4')
    log = (copy / 'metrics.jsonl').read_bytes().splitlines(keepends=True)
    (copy / 'metrics.jsonl').write_bytes(b''.join([*log[:1], b'\n', b'\0' * 9 + b'\n', *log[1:], b'{"step": 6, "tr']))
    os.truncate(copy / 'config.json', 40)
    os.truncate(copy / 'environment.json', 7)
    leftovers = [copy / 'metrics.jsonl.7.tmp', copy / 'config.json.7.tmp']
    for path in leftovers:
        path.write_bytes(b'{')
    leftovers.append(copy / 'checkpoints' / '5.orbax-checkpoint-tmp')
    leftovers[-1].mkdir()
    train_lib.train(config, copy)
    said = capsys.readouterr().err
    assert 'resuming at step 2 of 6' in said and 'metrics.jsonl: 2 damaged lines dropped' in said
    assert said.count(' is damaged: ') == 2
    assert learned(copy) == learned(finished)
    assert not any(path.exists() for path in leftovers)
    assert json.loads((copy / 'environment.json').read_bytes()) and workdir_lib.read_config(copy).total_steps == 6
    assert_same_bits(final_state(config, copy), final_state(config, finished))
    assert {path.name for path in (copy / 'checkpoints_damaged').iterdir()} == {'4', '6'}


def test_a_checkpoint_from_before_there_were_mixtures_is_whole(config, copy):
    for step in (2, 4, 6):
        path = copy / 'checkpoints' / str(step) / 'position' / 'metadata'
        position = json.loads(path.read_text())
        del position['data']
        path.write_text(json.dumps(position))
        (copy / 'checkpoints' / str(step) / integrity.CHECKSUMS_FILE).unlink()
    step, position = checkpoints.newest_position(copy / 'checkpoints')
    assert (step, position.data) == (6, {})
    train_lib.train(config, copy)  # finds that all is done
    assert not (copy / 'checkpoints_damaged').exists()


def test_without_a_whole_checkpoint_a_run_is_refused_and_nothing_touched(config, copy):
    for step in (2, 4, 6):
        flip(largest(copy / 'checkpoints' / str(step), 'params'))
    with pytest.raises(ConfigError, match=r'are damaged \(step 6: .*; step 4: .*; step 2: .*\)\. Copy them again'):
        train_lib.train(config, copy)
    assert sorted(path.name for path in (copy / 'checkpoints').iterdir()) == ['2', '4', '6']


def test_readers_pass_over_damage_say_so_and_change_nothing(copy, capsys):
    flip(largest(copy / 'checkpoints' / '6', 'params'))
    flip(largest(copy / 'checkpoints' / '4', 'opt_state'))  # which they do not read
    saver = checkpoints.Checkpoints(copy / 'checkpoints', read_only=True)
    assert saver.checked() == 4
    said = capsys.readouterr().err
    assert 'the checkpoint of step 6 in' in said and 'is damaged and skipped' in said and said.count('\n') == 1
    with pytest.raises(ConfigError, match=r'the checkpoint of step 6 in .* is damaged: params/.*are \[2, 4, 6\]'):
        saver.checked(6)
    assert saver.checked(items=['position']) == 6
    saver.close()
    assert sorted(path.name for path in (copy / 'checkpoints').iterdir()) == ['2', '4', '6']


def test_a_cut_configuration_is_taken_from_the_checkpoint(copy, capsys):
    whole = workdir_lib.read_config(copy)
    os.truncate(copy / 'config.json', 100)
    assert workdir_lib.read_config(copy) == whole
    assert 'config.json is damaged: the configuration is taken from the checkpoint of step 6' in capsys.readouterr().err
    shutil.rmtree(copy / 'checkpoints')
    with pytest.raises(ConfigError, match='config.json is damaged: .*Start the training of that run again'):
        workdir_lib.read_config(copy)


def test_a_damaged_snapshot_is_set_aside_and_its_work_done_again(tmp_path):
    notes, arrays = [], {'params': np.arange(64, dtype=np.float32)}
    snapshots = checkpoints.Snapshots(tmp_path / 'unfinished', notes.append)
    snapshots.save(3, jax_arrays(arrays), {'losses': [1.0]})
    snapshots.close()
    restored, record = checkpoints.Snapshots(tmp_path / 'unfinished').restore(jax_arrays(arrays))
    assert np.array_equal(restored['params'], arrays['params']) and record == {'losses': [1.0]}
    flip(largest(tmp_path / 'unfinished' / '3', 'arrays'))
    assert checkpoints.Snapshots(tmp_path / 'unfinished', notes.append).restore(jax_arrays(arrays)) is None
    assert len(notes) == 1 and (tmp_path / 'unfinished_damaged' / '3').is_dir()


def jax_arrays(arrays):
    return jax.tree.map(jax.numpy.asarray, arrays)


# ---- Disks that are full ---------------------------------------------------------------------------------------------


def full(*_, **__):
    raise OSError(errno.ENOSPC, 'No space left on device', '/some/file')


def test_a_checkpoint_that_cannot_be_written_ends_the_run_and_the_same_command_goes_on(
    config, finished, tmp_path, monkeypatch
):
    write, steps = integrity.write_checksums, []

    def second_fails(directory):
        steps.append(directory.name)
        return full() if len(steps) == 2 else write(directory)

    monkeypatch.setattr(integrity, 'write_checksums', second_fails)
    with pytest.raises(OSError, match='No space left on device') as raised:
        train_lib.train(config, tmp_path / 'run')
    assert raised.value.errno == errno.ENOSPC
    assert raised.value.__notes__ == [
        'The last complete checkpoint is that of step 2: the same command resumes from it.'
    ]
    train_lib.train(config, tmp_path / 'run')
    assert learned(tmp_path / 'run') == learned(finished)
    assert sorted(path.name for path in (tmp_path / 'run' / 'checkpoints').iterdir()) == ['2', '4', '6']


def test_an_error_in_the_part_of_orbax_that_is_written_in_c_is_one_of_the_disk(tmp_path):
    for words in ("Failed to write: No space left on device [os_error_code='28']", 'x [OS error 28: No space left]'):
        with pytest.raises(OSError, match='No space left on device') as raised, managers.write_errors(tmp_path):
            raise ValueError(words)
        assert raised.value.errno == errno.ENOSPC
    with pytest.raises(ValueError, match='another'), managers.write_errors(tmp_path):
        raise ValueError('another')
