"""Means over seeds and paired differences."""

import numpy as np
import pytest

from mlm_jax.comparing import comparison
from mlm_jax.config import ConfigError


def entry(final_by_seed, metric='eval/loss', step_cost=2.0):
    """Runs of 10 steps, evaluated at steps 0, 5 and 10."""
    runs = {
        seed: [{'step': 0, metric: 9.0}, {'step': 5, metric: final + 1}, {'step': 10, 'train/loss': 3.0, metric: final}]
        for seed, final in final_by_seed.items()
    }
    seconds = dict.fromkeys(final_by_seed, 3.0)
    return comparison.Entry(
        'file.py', 10, tokens=1000, flops=1e6, step_cost=step_cost, runs=runs, train_seconds=seconds
    )


def test_differences_are_paired_by_seed():
    """What a seed does to both configurations alike does not count."""
    losses = {0: 1.0, 1: 4.0, 2: 2.5}
    better = {seed: loss - 0.25 for seed, loss in reversed(losses.items())}
    summary = comparison.summarize({'a': entry(losses), 'b': entry(better, step_cost=1.0)})
    assert summary['b']['difference'] == pytest.approx(-0.25)
    assert summary['b']['difference_standard_error'] == pytest.approx(0, abs=1e-12)
    assert summary['b']['standard_error'] == pytest.approx(np.std([1.0, 4.0, 2.5], ddof=1) / np.sqrt(3))
    assert summary['a']['difference'] == summary['a']['difference_standard_error'] == 0
    assert summary['a']['curve']['step'] == [0, 5, 10]
    assert summary['a']['curve']['spent'] == [0, 10, 20] and summary['b']['curve']['spent'] == [0, 5, 10]
    assert summary['a']['curve']['mean'] == pytest.approx([9, 3.5, 2.5])


def test_one_seed_has_no_standard_error(tmp_path):
    summary = comparison.summarize({'a': entry({0: 1.0}), 'b': entry({0: 2.0})})
    assert summary['b']['standard_error'] is summary['b']['difference_standard_error'] is None
    assert '±' not in comparison.markdown_table(summary) and '+1.0000' in comparison.markdown_table(summary)
    comparison.draw(summary, 'steps', tmp_path / 'picture.png')
    assert (tmp_path / 'picture.png').stat().st_size > 5000


def test_the_metric_that_compares_objectives_goes_first():
    both = entry({0: 1.0})
    both.runs[0].append({'step': 10, 'eval/masked_nll': 0.5})
    assert comparison.choose_metric(both) == 'eval/masked_nll'
    assert comparison.choose_metric(entry({0: 1.0})) == 'eval/loss'
    assert comparison.choose_metric(both, 'loss') == 'eval/loss'
    with pytest.raises(ConfigError, match='accuracy: the runs of file.py have eval/loss'):
        comparison.choose_metric(entry({0: 1.0}), 'accuracy')


def test_a_log_that_lacks_its_end_is_named():
    """A damaged line is left out of what is read."""
    cut = entry({0: 1.0, 1: 2.0})
    cut.runs[1].pop()
    with pytest.raises(ConfigError, match='the log of b, seed 1, lacks the evaluation at its end, step 10'):
        comparison.summarize({'a': entry({0: 1.0, 1: 2.0}), 'b': cut})
