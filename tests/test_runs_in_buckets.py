"""The whole chain in a bucket, without a disk: prepare, train, die, resume, evaluate; and what other programs do there."""

import json
import re

import numpy as np
import programs
import pytest

from mlm_jax import config as config_lib
from mlm_jax import prepare, train
from mlm_jax.files import buckets, directory_lock, lease
from mlm_jax.training import transfers
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


def moments(changes) -> list[int]:
    """How many changes of a run had been made at its most delicate moments."""
    names = [name.removeprefix('bucket/run/') for name, made in changes]
    whole = [i for i, name in enumerate(names) if re.fullmatch(rf'checkpoints/\d+/{transfers.MARKER}', name)]
    deleted = [i for i, (_, made) in enumerate(changes) if made is None]
    return [names.index('config.json') + 1, whole[0], whole[1] + 1, deleted[len(deleted) // 2], len(changes) - 1]


@pytest.mark.parametrize('scheme', ['gs', 's3'])
def test_the_chain_from_text_to_figures_with_deaths_between(scheme, cloud, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lease, 'PATIENCE_SECONDS', 0.0)
    monkeypatch.setattr(lease, '_SETTLE_SECONDS', 0.0)
    root = buckets.path(f'{scheme}://bucket')
    write_corpus(root)
    config, run = make_config(root), root / 'run'
    prepare.run(config, num_workers=1)
    begin = list(cloud.changes)
    expected = train.train(config, run)
    history, metrics, state = list(cloud.changes), learned(run), final_state(config, run)
    assert train.train(config, tmp_path / 'run') == expected
    assert_same_bits(state, final_state(config, tmp_path / 'run'))
    assert metrics == learned(tmp_path / 'run')
    assert not (run / directory_lock.LOCK_FILE).exists()
    for name in ('config.json', 'environment.json', 'tokenizer.model', 'loss_curve.png'):
        assert (run / name).is_file()
    assert list(run.rglob('*.xplane.pb')), 'the profile'
    for count in moments(history) if scheme == 'gs' else moments(history)[1:2]:
        assert count > len(begin)
        cloud.rewind(history[:count])
        assert train.train(config, run) in ({}, expected)
        assert learned(run) == metrics
        assert_same_bits(state, final_state(config, run))
    capsys.readouterr()
    shown = [programs.run('evaluate', f'--model={workdir}') for workdir in (run, tmp_path / 'run')]
    assert shown[0].stdout == shown[1].stdout and json.loads(shown[0].stdout)['step'] == 6
