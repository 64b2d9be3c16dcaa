"""The whole chain in a bucket: prepare, train, die, resume, evaluate; and what other programs read and write there."""

import json
import pathlib
import re

import jax
import numpy as np
import programs
import pytest

import mlm_jax
from mlm_jax import config as config_lib
from mlm_jax import prepare, train
from mlm_jax.config import ConfigError
from mlm_jax.data import prepared_data
from mlm_jax.files import buckets, directory_lock, lease
from mlm_jax.pretrained import warm_start
from mlm_jax.training import checkpoints, loss_curve, transfers
from mlm_jax.training import workdir as workdir_lib
from tests.test_train import assert_same_bits, final_state, learned

pytestmark = pytest.mark.usefixtures('one_device')


@pytest.fixture(autouse=True)
def nothing_on_the_disk(tmp_path, monkeypatch):
    """No directory named `gs:` is made, whatever a test does."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(':')]


def make_config(root):
    config = config_lib.default_config()
    keys = {
        'data.directory': f'{root}/rows', 'data.corpus': f'lines:{root}/corpus.txt', 'data.block_kib': '1',
        'vocab_size': '64', 'tokenizer.byte_fallback': 'False', 'sequence_length': '16', 'batch_size': '8',
        'data.validation_percent': '10.0', 'total_steps': '6', 'model.num_layers': '1', 'model.width': '16',
        'model.num_heads': '2', 'model.ffn_width': '32', 'evaluation.rows': '8', 'evaluation.every_steps': '3',
        'checkpoint.every_steps': '2', 'checkpoint.keep_last': '2', 'logging.every_steps': '1',
        'compilation_cache': '', 'accelerator': 'any', 'profile.start_step': '1', 'profile.num_steps': '1',
    }  # fmt: skip
    config_lib.apply_overrides(config, keys)
    return config


def write_corpus(root) -> None:
    rng = np.random.default_rng(0)
    lines = [' '.join(f'{chr(97 + n % 26)}{n}' for n in rng.integers(0, 60, 12)) for _ in range(150)]
    (root / 'corpus.txt').write_text('\n'.join(lines))


def trace(directory: str) -> None:
    """In place of JAX's profiler, which takes long."""
    pathlib.Path(directory).mkdir(exist_ok=True)
    (pathlib.Path(directory) / 'trace').touch()


def moments(changes) -> list[int]:
    """How many changes of a run had been made at its most delicate moments."""
    names = [name.removeprefix('bucket/run/') for name, _ in changes]
    whole = [i for i, name in enumerate(names) if re.fullmatch(rf'checkpoints/\d+/{transfers.MARKER}', name)]
    return [whole[1] + 1, whole[0]]


@pytest.fixture
def impatient(monkeypatch):
    """Leases of killed runs expire at once."""
    monkeypatch.setattr(lease, 'PATIENCE_SECONDS', 0.0)
    monkeypatch.setattr(lease, '_SETTLE_SECONDS', 0.0)


@pytest.mark.parametrize('scheme', ['gs', 's3'])
def test_the_chain_from_text_to_figures_with_deaths_between(scheme, cloud, tmp_path, monkeypatch, impatient):
    monkeypatch.setattr(jax.profiler, 'start_trace', trace)
    monkeypatch.setattr(jax.profiler, 'stop_trace', lambda: None)
    root = buckets.path(f'{scheme}://bucket')
    write_corpus(root)
    config, run = make_config(root), root / 'run'
    prepare.run(config, num_workers=1)
    expected = train.train(config, run)
    for name in ('config.json', 'environment.json', 'tokenizer.model', 'loss_curve.png', 'profile/trace'):
        assert (run / name).is_file()
    assert not (run / directory_lock.LOCK_FILE).exists()
    monkeypatch.setattr(loss_curve, 'draw_loss_curve', lambda *args: None)
    history, metrics, state = list(cloud.changes), learned(run), final_state(config, run)
    if scheme == 'gs':
        assert train.train(config, tmp_path / 'run') == expected
        assert_same_bits(state, final_state(config, tmp_path / 'run'))
        assert metrics == learned(tmp_path / 'run')
    for count in moments(history) if scheme == 'gs' else moments(history)[:1]:
        cloud.rewind(history[:count])
        assert train.train(config, run) == expected
        assert learned(run) == metrics
        assert_same_bits(state, final_state(config, run))
    if scheme == 'gs':
        shown = programs.run('evaluate', f'--model={run}')
        assert json.loads(shown.stdout)['loss'] == pytest.approx(expected['loss']), shown.stderr


@pytest.fixture
def in_bucket(trained, bucket):
    """A trained run in a bucket, copied there from a disk."""
    workdir = trained[0]
    for path in workdir.rglob('*'):
        if path.is_file():
            (bucket[0] / 'run' / path.relative_to(workdir).as_posix()).write_bytes(path.read_bytes())
    return bucket[0] / 'run'


def test_a_model_is_that_of_the_disk(in_bucket, trained):
    run = in_bucket
    step = max(checkpoints.Checkpoints(run / 'checkpoints', read_only=True).all_steps())
    for name in (f'{run}', f'{run}@{step}', f'average:{run}@{step}:1,{run}:3'):
        model = mlm_jax.load(name, trained[1])
        assert_same_bits(model.params, trained[2].params)
    assert mlm_jax.load(run, trained[1]).step == step
    with pytest.raises(ConfigError, match='gs://bucket/none is not the workdir of a run: it has no config.json'):
        mlm_jax.load('gs://bucket/none')
    config = workdir_lib.read_config(run)
    config.init_from = f'{run}@{step}'
    warm_start.check_source(config, prepared_data.load(config.data).manifest)


def test_programs_write_where_they_are_told(in_bucket, impatient):
    run, root = in_bucket, in_bucket.parent
    examples = ''.join(f'{text},{label}\n' for text, label in (('the cat', 'yes'), ('the dog', 'no')) * 12)
    (root / 'mine.csv').write_text(f'text,label\n{examples}')
    recipe = [f'--set={key}' for key in ('epochs=1', 'batch_size=8', 'evaluations_per_epoch=1', 'max_length=8')]
    task = [f'--train_file={root}/mine.csv', f'--validation_file={root}/mine.csv', '--seeds=1', *recipe]
    for name, arguments in (('export', []), ('finetune', task)):
        done = programs.run(name, f'--model={run}', f'--output={root}/{name}', *arguments)
        assert done.returncode == 0, done.stderr
    made = sorted(path.relative_to(root).as_posix() for path in root.rglob('*') if 'run/' not in str(path))
    assert {'export/config.json', 'export/model.safetensors', 'finetune/results.md', 'finetune/results.png'} <= {*made}
    assert not [name for name in made if 'unfinished' in name or name.endswith('.lock')]
    again = programs.run('export', f'--model={run}', f'--output={root}/export')
    assert again.returncode == 1 and 'gs://bucket/export is not empty' in again.stderr
    assert mlm_jax.load(f'hf:{root}/export').max_length == mlm_jax.load(run).max_length
