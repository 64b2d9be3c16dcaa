"""The benchmark: what it reports, and what it must not import."""

import json
import subprocess
import sys

import pytest

from mlm_jax import bench
from mlm_jax.config import ConfigError

SMALL = 'vocab_size=64,sequence_length=32,batch_size=8,model.num_layers=1,model.width=32,model.ffn_width=64'


def test_two_objectives_in_turn(tmp_path):
    command = [sys.executable, '-m', 'mlm_jax.bench', '--rounds=3', '--steps=1', f'--output={tmp_path}/bench.json']
    command += [f'--config=configs/{file}.py:tiny,{SMALL}' for file in ('mlm', 'mae_lm')]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    mlm, mae_lm = json.loads((tmp_path / 'bench.json').read_text())
    assert mlm['time_per_token_ratio'] == mlm['flops_per_token_ratio'] == 1.0
    assert mae_lm['flops_per_token_ratio'] > 1.0
    assert mae_lm['step_ms_quartiles'][0] <= mae_lm['step_ms'] <= mae_lm['step_ms_quartiles'][1]
    assert 0 < mlm['masking_ms'] < mlm['step_ms'] and mlm['masking_share'] < 1
    assert 'tokens/s' in result.stdout


def test_no_data_stack_is_imported():
    modules = 'tensorflow_datasets', 'sentencepiece', 'grain', 'orbax'
    code = f'import sys, mlm_jax.bench; print([m for m in {modules} if m in sys.modules])'
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == '[]'


def test_a_missing_file_is_named():
    with pytest.raises(ConfigError, match='no configuration file configs/none.py'):
        bench.prepare('configs/none.py:mini')
