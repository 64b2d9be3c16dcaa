"""The how-to for a new strategy in docs/extend.md, followed to the letter."""

import pathlib
import re

import jax
import numpy as np
import pytest
from draws import VOCABULARY, full_rows, make, mask, masked_positions
from test_masking import check_promises

from mlm_jax import config as config_lib
from mlm_jax.masking import registry, selection, units
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
