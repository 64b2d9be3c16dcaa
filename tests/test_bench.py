"""The benchmark: what it reports, and what it must not import."""

import json
import subprocess
import sys

import programs
import pytest

from mlm_jax import bench
from mlm_jax import config as config_lib
from mlm_jax.config import ConfigError, step_flops
from mlm_jax.performance import speed
from tests.test_train import environment

pytestmark = pytest.mark.usefixtures('one_device')

SMALL = (
    'vocab_size=64,sequence_length=32,batch_size=8,model.num_layers=1,model.width=32,model.ffn_width=64,'
    'optimizer.name=adamw'
)


def test_two_objectives_in_turn(tmp_path):
    configurations = [f'--config=configs/{file}.py:tiny,{SMALL},mae_lm.decoder_layers=1' for file in ('mlm', 'mae_lm')]
    result = programs.run('bench', '--rounds=3', '--steps=1', f'--output={tmp_path}/bench.json', *configurations)
    assert result.returncode == 0, result.stderr
    mlm, mae_lm = json.loads((tmp_path / 'bench.json').read_text())
    assert mlm['time_per_token_ratio'] == mlm['flops_per_token_ratio'] == 1.0
    assert mae_lm['flops_per_token_ratio'] > 1.0
    assert mae_lm['step_ms_quartiles'][0] <= mae_lm['step_ms'] <= mae_lm['step_ms_quartiles'][1]
    for line in (mlm, mae_lm):
        for part in ('masking', 'optimizer'):
            assert line[f'{part}_ms'] > 0 and line[f'{part}_share'] > 0
        assert line['cpu_ms'] > 0
        assert line['memory_bytes'] > 3 * 4 * 64 * 32, 'the embedding, and its two moments'
        assert line['matmul_share'] > 0 and 'mfu' not in line, 'nothing is published for a CPU'
        attained = line['tflops_per_second'] / line['matmul_tflops_per_second'] / line['matmul_share']
        assert 0.1 < attained < 10  # medians of the same ratios
    assert 'tokens/s' in result.stdout and 'of matmul' in result.stdout and 'stall' not in result.stdout
    assert 'compiling configs/mae_lm.py' in result.stderr and 'round 3/3' in result.stderr


def test_no_data_stack_is_imported_for_synthetic_rows():
    modules = 'tensorflow_datasets', 'sentencepiece', 'grain', 'orbax', 'torch', 'transformers'
    code = (
        f'import sys; from mlm_jax import bench; contestant = bench.prepare("configs/mlm.py:tiny,{SMALL}")\n'
        f'bench.measure([contestant], 1, 1, parts=True); print([m for m in {modules} if m in sys.modules])'
    )
    result = subprocess.run(
        [sys.executable, '-c', code], env=environment(1), capture_output=True, text=True, timeout=120, check=True
    )
    assert result.stdout.strip() == '[]'


def test_real_rows_show_what_reading_them_costs(tiny_config, prepared):
    tiny_config.model.num_layers = 1
    contestant = speed.prepare('tiny', tiny_config, rows=prepared)
    bench.measure([contestant], 3, 2, parts=True)
    (line,) = bench.report([contestant])
    assert line['input_tokens_per_second'] > 0 and 0 <= line['stall_share'] <= 1
    assert {key: len(times) for key, times in contestant.parts.items()} == dict.fromkeys(
        ('masking', 'optimizer', 'input', 'fed', 'stall'), 3
    )
    assert 'input tokens/s' in bench.table([line]) and 'MFU' not in bench.table([line])
    # Rows of several documents: attention within them would need less.
    assert contestant.flops_per_step == step_flops.step_flops(tiny_config)
    assert 0 < line['flops_within_documents'] < contestant.flops_per_step


def test_rows_of_another_preparation_are_refused(tiny_config, prepared):
    tiny_config.sequence_length = 64
    with pytest.raises(ConfigError, match='sequence_length: 64 in the configuration, 32 in the data'):
        speed.prepare('tiny', tiny_config, rows=prepared)


def test_several_masks_of_a_text_are_one_step():
    config = config_lib.load(f'configs/masking.py:fully_explored,size=tiny,{SMALL}')
    config.masking.fully_explored.segments = 2
    contestant = speed.prepare('fully explored', config)
    assert contestant.tokens_per_step == 8 * 32
    assert contestant.masked_batch().tokens.shape == (16, 32)
    assert contestant.run(1) > 0


def test_a_missing_file_is_named():
    with pytest.raises(ConfigError, match='no configuration file configs/none.py'):
        bench.prepare('configs/none.py:mini')


def test_help_has_examples():
    text = programs.run('bench', '--help').stdout
    for part in ('--peer=huggingface', '--topology=v5e-16', '--profile=', '--rows=', 'PREDICTION', 'medians'):
        assert part in text
