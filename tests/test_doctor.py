"""The doctor finds what is in the way, names the cure, and says what a run takes."""

import pathlib
import shutil
from types import SimpleNamespace

import jax
import programs
import pytest

from mlm_jax import config as config_lib
from mlm_jax import doctor
from mlm_jax.files.buckets import BucketPath
from mlm_jax.performance import ahead_of_time, attention_parity
from mlm_jax.performance.memory import Memory

pytestmark = pytest.mark.usefixtures('one_device')

REPOSITORY = pathlib.Path(__file__).parents[1]


def findings(config, workdir) -> list[tuple[bool, str]]:
    return list(doctor.examine(config, topology=None, workdir=workdir))


def problems(config, workdir) -> str:
    return '\n'.join(text for fine, text in findings(config, workdir) if not fine)


def test_a_run_that_can_start_has_no_problem(all_devices, tiny_config, tmp_path):
    before = config_lib.to_json(tiny_config)
    found = findings(tiny_config, tmp_path / 'runs' / 'new')
    assert config_lib.to_json(tiny_config) == before, 'a configuration is examined, not changed'
    text = '\n'.join(text for _, text in found)
    assert all(fine for fine, _ in found), text
    for part in (
        'configuration: 21,408 parameters',
        ' rows in train',
        'disk: 4 checkpoints take',
        '8 × cpu',
        'memory per device: ',
    ):
        assert part in text
    assert 'all-reduce' in text  # gradients of 8 devices


def test_a_wrong_configuration_is_all_that_is_said(tiny_config, tmp_path):
    tiny_config.model.num_heads = 5
    ((fine, text),) = findings(tiny_config, tmp_path)
    assert not fine and 'model.width=32 must be a multiple of model.num_heads=5' in text


def test_each_problem_comes_with_its_cure(all_devices, tiny_config, tmp_path, monkeypatch):
    usage = SimpleNamespace(free=1000)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage)
    tiny_config.data.directory = str(tmp_path / 'nothing')
    tiny_config.mesh.fsdp = 3
    text = problems(tiny_config, tmp_path)
    assert 'python -m mlm_jax.prepare' in text
    assert 'choose another workdir, or lower checkpoint.keep_last' in text
    assert 'does not fit 8 devices' in text


@pytest.mark.parametrize(
    ('settings', 'number'),
    [
        ({'keep_last': 3}, 4),
        ({'keep_last': 1, 'every_steps': 50, 'keep_steps': 100}, 10 + 2),
        ({'keep_last': 1, 'every_steps': 200, 'keep_steps': 300}, 1 + 2),  # the one of step 600
        ({'keep_last': 1, 'every_steps': 0, 'keep_steps': 100}, 1 + 2),  # the last
    ],
)
def test_the_disk_needs_room_for_all_checkpoints_that_are_kept(tiny_config, tmp_path, monkeypatch, settings, number):
    for name, value in settings.items():
        config_lib.apply_overrides(tiny_config, {f'checkpoint.{name}': str(value)})
    config_lib.apply_overrides(tiny_config, {'total_steps': '1000'})
    config = config_lib.resolve(tiny_config)
    found = doctor._check_disk(config, tmp_path)
    assert found.startswith(f'disk: {number} checkpoints take ')
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=1000))
    cure = f'a checkpoint.keep_steps above {settings["keep_steps"]}$' if 'keep_steps' in settings else 'keep_last$'
    with pytest.raises(config_lib.ConfigError, match=cure):
        doctor._check_disk(config, tmp_path)


def test_a_bucket_is_asked_whether_it_can_be_read(tiny_config, bucket, monkeypatch):
    config = config_lib.resolve(tiny_config)
    assert 'MiB in gs://bucket/run' in doctor._check_disk(config, bucket[0] / 'run')

    def refuse(path):
        raise PermissionError(13, 'Permission denied', str(path))

    monkeypatch.setattr(BucketPath, 'exists', refuse)
    with pytest.raises(config_lib.ConfigError, match='bucket: gs://bucket/run cannot be read: Permission denied'):
        doctor._check_disk(config, bucket[0] / 'run')


def test_a_missing_shard_is_named(tiny_config, prepared, tmp_path):
    copy = shutil.copytree(prepared, tmp_path / 'copy')
    next(copy.glob('train-*')).unlink()
    tiny_config.data.directory = str(copy)
    assert 'lacks train-00000-of-00001.npy; copy' in problems(tiny_config, tmp_path)


def test_damage_is_found_by_its_size_or_by_its_hash(animals_config, tmp_path, monkeypatch):
    config = config_lib.from_json(config_lib.to_json(animals_config))
    config.data.directory = str(shutil.copytree(animals_config.data.directory, tmp_path / 'copy'))
    monkeypatch.setattr(doctor, '_check_step', lambda *args: iter(()))
    (tmp_path / 'copy' / 'train-00001-of-00002.npy').write_bytes(b'')

    def said(verify):
        return '\n'.join(text for _, text in doctor.examine(config, None, tmp_path, verify))

    assert 'files: 4 have the sizes that prepare recorded; ' in said(False)
    assert 'these files are not part of the prepared data, and are ignored: train-00001-of' in said(False)
    assert 'files: 4 have the SHA-256 checksums that prepare recorded' in said(True)
    shard = tmp_path / 'copy' / 'train-00000-of-00001.npy'
    shard.write_bytes(shard.read_bytes()[:-2] + b'!!')
    assert 'is damaged' not in said(False)
    assert 'train-00000-of-00001.npy has changed since prepare wrote it' in said(True)
    shard.write_bytes(shard.read_bytes()[:-2])
    assert 'train-00000-of-00001.npy has ' in said(False) and 'it was truncated' in said(False)


def test_too_little_memory_is_a_problem(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, '_memory_limit', lambda devices: 2**10)
    assert 'raise num_microbatches' in problems(tiny_config, tmp_path)

    def exhausted(*args, **kwargs):
        raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Ran out of memory on HBM')

    monkeypatch.setattr(ahead_of_time, 'compile_train_step', exhausted)
    assert 'Ran out of memory on HBM\nraise num_microbatches' in problems(tiny_config, tmp_path)


def test_of_several_slices_it_says_what_crosses_and_for_how_long(tiny_config, monkeypatch):
    sent = {'all-reduce': (3, 50_000_000)}
    needs = ahead_of_time.Requirements(Memory(0, 0, 0, 0), 0, 0, {}, sent)
    monkeypatch.setattr(ahead_of_time, 'examine_train_step', lambda *args: needs)
    devices = [SimpleNamespace(device_kind='TPU v5 lite', platform='tpu', slice_index=i) for i in (0, 1)]
    assert doctor._describe(devices) == '2 × TPU v5 lite in 2 slices'
    (_, text) = list(doctor._check_step(tiny_config, devices, None))[-1]
    assert text.startswith('over the data-center network between slices, per device:\nall-reduce')
    assert text.endswith('predicted, not measured: 16.0 ms at the published bandwidth'), '25 Gbit/s for each chip'


def test_a_kernel_runs_beside_the_reference(tiny_config, tmp_path, monkeypatch):
    tiny_config.model.attention_backend = 'cudnn'
    tiny_config.model.update(attention_dropout=0.0, dtype='bfloat16')
    assert 'the cudnn attention backend needs a gpu, not a cpu; use xla' in problems(tiny_config, tmp_path)
    monkeypatch.setattr(doctor, '_check_step', lambda *args: iter([(True, 'a GPU')]))
    found = {'output': (0.003, 0.003)}
    monkeypatch.setattr(attention_parity, 'errors', lambda *args: found)
    assert findings(tiny_config, tmp_path)[-1] == (
        True, 'attention: relative errors of cudnn, and of xla in bfloat16 (in parentheses): output 3.0e-03 (3.0e-03)',
    )  # fmt: skip
    found['d key'] = (0.05, 0.003)
    assert 'the errors of cudnn are too large: use model.attention_backend=xla' in problems(tiny_config, tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(doctor, '_check_step', lambda *args: iter([(True, 'a CPU that claims to be a GPU')]))
    assert 'attention: cudnn does not run on this machine: use model.attention_backend=xla' in problems(
        tiny_config, tmp_path
    )


@pytest.mark.smoke
def test_the_program_ends_with_the_verdict(prepared, tmp_path):
    config = (
        f'--config=configs/mlm.py:tiny,vocab_size=64,sequence_length=32,batch_size=8,compilation_cache=,'
        f'model.num_layers=1,optimizer.name=adamw,data.directory={prepared}'
    )
    good = programs.run('doctor', config, f'--workdir={tmp_path}')
    assert good.returncode == 0, good.stderr
    assert good.stdout.startswith('✓ configuration: ') and '✗' not in good.stdout
    bad = programs.run('doctor', config, f'--workdir={tmp_path}', '--set=sequence_length=64')
    assert bad.returncode == 1
    assert '✗ the data in' in bad.stdout and 'sequence_length: 64 in the configuration, 32 in the data' in bad.stdout


def test_an_unknown_topology_is_an_error_in_one_line():
    result = programs.run('doctor', '--config=configs/mlm.py:tiny', '--topology=v5e-17')
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    assert "error: unknown topology 'v5e-17'" in result.stderr
