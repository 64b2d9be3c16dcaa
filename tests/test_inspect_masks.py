"""What inspect_masks shows is what training sees."""

import json

import jax
import numpy as np
import programs
import pytest

from mlm_jax import config as config_lib
from mlm_jax import inspect_masks
from mlm_jax.analysis.mask_statistics import MAX_RUN, MaskStatistics, kinds
from mlm_jax.data import prepared_data, rows, shards
from mlm_jax.data.packing import segment_ids
from mlm_jax.masking.batch import MaskedBatch
from mlm_jax.masking.masking import Masking
from mlm_jax.masking.vocabulary import standard_vocabulary
from mlm_jax.parallel.mesh import batch_sharding, make_mesh
from mlm_jax.training.step import MASK_STREAM, stream_key

pytestmark = pytest.mark.usefixtures('one_device')


@pytest.mark.smoke
def test_the_program_writes_text_page_picture_and_figures(animals_config, tmp_path):
    config = config_lib.from_json(config_lib.to_json(animals_config))
    config.masking.update(unit='word', ratio=0.3)
    default = config_lib.default_config()
    changed = {key: new for key, (_, new) in config_lib.differences(default, config).items() if new is not None}
    text = ','.join(f'{key}={value}' for key, value in changed.items())
    config = f'--config=configs/mlm.py:mini,{text}'
    result = programs.run(
        'inspect_masks', config, f'--output={tmp_path}/masks', '--texts=64', '--rows=3', '--colour=always'
    )
    assert result.returncode == 0, result.stderr
    assert '\033[41;97m' in result.stdout and 'unit=word' in result.stdout
    figures = json.loads((tmp_path / 'masks' / 'statistics.json').read_text())
    assert figures['rows'] == 64
    assert figures['chosen share of the tokens'] == pytest.approx(0.3, abs=0.02)
    assert figures['of the words touched: wholly chosen'] == 1.0
    page = (tmp_path / 'masks' / 'masks.html').read_text()
    assert page.count('class="k1"') > 5 and 'masks.png' in page
    assert (tmp_path / 'masks' / 'masks.png').stat().st_size > 10_000


def test_masks_are_those_of_training(animals_config):
    data = prepared_data.load(animals_config.data)
    ((batch, _),) = inspect_masks.masked_batches(animals_config, data, 7, 1)
    source = shards.Shards(animals_config.data.directory, 'train')
    tokens = rows.Batches(source, data.order(animals_config), 16, batch_sharding(make_mesh()))(7)
    masking = Masking(data.vocabulary, 'uniform', 0.15, 0.8, 0.1)
    expected = jax.jit(masking)(
        stream_key(animals_config.seed, MASK_STREAM, 7), tokens, segment_ids(tokens, data.vocabulary)
    )
    assert np.array_equal(batch.inputs, expected.inputs)


def test_statistics_count_what_there_is():
    v = standard_vocabulary(50)
    tokens = np.array([[2, 10, 11, 12, 13, 14, 15, 3]])
    inputs = np.array([[2, 4, 4, 12, 30, 14, 4, 3]])
    batch = MaskedBatch(tokens, inputs, np.array([[1, 2, 3, 8]]), np.ones((1, 4)), np.ones((1, 8), int))
    assert kinds(batch, v).tolist() == [[0, 1, 1, 3, 4, 0, 4, 0]]
    starts = np.ones(50, bool)
    starts[[11, 13]] = False  # words: 10·11, 12·13, 14, 15
    statistics = MaskStatistics.zeros(8)
    statistics.add(batch, np.array([1]), starts, v)
    assert statistics.runs.tolist() == [0, 1, 0, 0, 1] + [0] * (MAX_RUN - 4)
    assert statistics.words.tolist() == [3, 3]
    summary = statistics.summary()
    assert summary['chosen share of the tokens'] == pytest.approx(4 / 6 + 1 / 6)
    assert summary['predicted share of the tokens'] == pytest.approx(3 / 6), 'one was replaced and is no target'
    assert summary['of the tokens chosen at first: without a slot'] == pytest.approx(1 / 6)


def test_text_is_escaped_and_replacements_are_named(animals_config):
    tokenizer = inspect_masks.Tokenizer.from_file(prepared_data.load(animals_config.data).tokenizer)
    tokens = tokenizer.encode('the cat is red.')
    other = tokenizer.encode('dog')[-1]
    inputs, kinds_T = tokens.copy(), np.zeros(len(tokens), int)
    inputs[0], kinds_T[0] = other, 2
    plain = inspect_masks.text_of(tokenizer, tokens, inputs, kinds_T, inspect_masks.paint_plain)
    assert '→' in plain and plain.replace(' ', '').endswith('.')
    assert inspect_masks.paint_html('<b>', 1) == '<mark class="k1" title="[MASK]">&lt;b&gt;</mark>'
