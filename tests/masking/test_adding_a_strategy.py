"""The how-to for a new strategy in docs/extend.md, followed to the letter."""

import dataclasses
import pathlib
import re

import jax
import numpy as np
import pytest
from draws import TABLES, VOCABULARY, full_rows, make, mask, masked_positions
from test_masking import check_promises

from mlm_jax import config as config_lib
from mlm_jax.masking import registry, selection, units
from mlm_jax.masking.masking import Masking
from mlm_jax.masking.vocabulary import standard_vocabulary
from mlm_jax.training import build

PAGE = pathlib.Path(__file__).parents[2] / 'docs' / 'extend.md'


MODULES = {f'mlm_jax/masking/{module.__name__.split(".")[-1]}.py': module for module in (selection, units, registry)}


def follow(title):
    """The section of the page, whose blocks are executed in the modules that it names."""
    section = PAGE.read_text(encoding='utf-8').split(f'## {title}\n')[1].split('\n## ')[0]
    for file, code in re.findall(r'<!-- in: (\S+) -->\n```python\n(.*?)```', section, re.DOTALL):
        exec(code, vars(MODULES[file]))
    return section


@pytest.fixture
def added(monkeypatch):
    monkeypatch.setitem(registry.STRATEGIES, 'repeated', None)  # what the page sets is removed at the end
    yield follow('Add a masking strategy')
    del selection.repeated


def test_a_unit_is_one_function_and_one_value(monkeypatch):
    monkeypatch.setitem(registry.UNITS, 'pair', None)
    follow('Add a unit')
    for strategy in ('uniform', 'bernoulli', 'fully_explored'):
        check_promises(strategy, 'pair', 0, 0.3, (0.8, 0.1))
    masked = masked_positions(mask(make(unit='pair', ratio=0.3), jax.random.key(0), full_rows(50, 42)))[:, 1:-1]
    assert np.array_equal(masked[:, ::2], masked[:, 1::2]) and masked.mean() == pytest.approx(0.3, abs=0.01)
    del units.pair


def test_a_strategy_is_one_function_and_one_value(added, tiny_config):
    assert len(added.splitlines()) <= 50
    for unit in ('token', 'word'):
        check_promises('repeated', unit, 0, 0.3, (0.8, 0.1))
    tokens = np.arange(5, 37, dtype=np.int32).reshape(1, 32)
    tokens[0, [0, 10, 20, 31]] = VOCABULARY.cls_id, 40, 40, VOCABULARY.sep_id
    masked = masked_positions(mask(make('repeated', ratio=2 / 30), jax.random.key(0), tokens))
    assert np.flatnonzero(masked).tolist() == [10, 20]

    tiny_config.masking.strategy = 'repeated'
    config_lib.check(tiny_config)
    run = build.make_run(config_lib.resolve(tiny_config), standard_vocabulary(64), num_rows=160)
    rows = full_rows(16, 32)
    _, metrics = jax.jit(run.train_step)(jax.jit(run.init)(), rows)
    assert float(metrics['masked_ratio'][0] / metrics['masked_ratio'][1]) == pytest.approx(0.15, abs=0.01)


def copies(key, candidates):
    """`num_masks` times the same mask of each row: the ids that have a weight."""
    weights_V = jax.numpy.asarray(candidates.settings.tables.token_weights)
    masked_BxT = candidates.eligible & (weights_V[candidates.tokens] > 0)
    return masked_BxT[:, None].repeat(candidates.settings.num_masks, 1)


class Copies(registry.Strategy):
    """Masks whose number is a setting."""

    def num_views(self, settings):
        return settings.num_masks

    def has_fixed_count(self, settings):
        return False


@dataclasses.dataclass(frozen=True)
class MaskingWithSetting(Masking):
    """With what the page says of a setting: a field."""

    num_masks: int = 3


@pytest.mark.parametrize('num_rows', [7, 8])
def test_a_setting_decides_the_number_of_masks_and_a_table_which_tokens(monkeypatch, num_rows):
    """Also where there are as many rows as ids: a table is none of the arrays that are repeated for each mask."""
    monkeypatch.setitem(registry.STRATEGIES, 'copies', Copies(copies, tables=('token_weights',)))
    weights = (np.arange(8) % 2).astype(np.float32)
    vocabulary = dataclasses.replace(VOCABULARY, size=8)
    tables = dataclasses.replace(TABLES, token_weights=weights)
    masking = MaskingWithSetting(vocabulary, 'copies', 1.0, tables=tables, num_masks=2)
    tokens = np.random.default_rng(0).integers(5, 8, (num_rows, 12), np.int32)
    tokens[:, 0], tokens[:, -1] = vocabulary.cls_id, vocabulary.sep_id
    batch = mask(masking, jax.random.key(0), tokens)
    assert batch.tokens.shape == (2 * num_rows, 12) and masking.num_views == 2
    expected = (weights[tokens] > 0) & (tokens >= 5)
    assert np.array_equal(masked_positions(batch), np.repeat(expected, 2, axis=0))
