"""Means over seeds and paired differences."""

import dataclasses
import math

import numpy as np
import pytest

from mlm_jax.comparing import comparison, experiment
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
    table = comparison.held_out_table({'a': entry(losses), 'b': entry(better, step_cost=1.0)}, 'flops')
    difference, _ = table.cell('b', '− a')
    assert difference['value'] == pytest.approx(-0.25) and difference['error'] == pytest.approx(0, abs=1e-12)
    loss, _ = table.cell('b', 'eval/loss')
    assert loss['error'] == pytest.approx(np.std([1.0, 4.0, 2.5], ddof=1) / np.sqrt(3))
    assert loss['by_seed'] == {str(seed): value for seed, value in better.items()}
    assert table.cell('a', '− a')[0] is None and table.cell('b', 'steps')[0] == 10


def test_one_seed_has_no_standard_error():
    table = comparison.held_out_table({'a': entry({0: 1.0}), 'b': entry({0: 2.0})}, 'time')
    assert table.cell('b', '− a')[0] == {'value': 1.0, 'by_seed': {'0': 1.0}}
    assert table.cell('b', 'seconds of training steps')[0] == 20.0
    judged = comparison.judged_table('probe', 'a number', '%', '.2f', {'a': {0: {'x': 1.0}}, 'b': {0: {}}})
    assert all('alues of a single seed' in made.title and '±' not in made.title for made in (table, judged))


def test_losses_of_copies_have_no_difference_to_others():
    """A masked token that can be read from its copy is no achievement."""
    entries = {
        'mlm': entry({0: 1.0}),
        'other': entry({0: 2.0}),
        'twice': dataclasses.replace(entry({0: 0.1}), repeats=2),
    }
    table = comparison.held_out_table(entries, 'steps')
    assert table.cell('other', '− mlm')[0]['value'] == 1.0 and table.cell('twice', '− mlm')[0] is None
    assert table.cell('twice', 'eval/loss')[0]['value'] == 0.1 and 'their losses do not compare' in table.title
    alike = comparison.held_out_table({'mlm': entries['mlm'], 'other': entries['other']}, 'steps')
    assert 'do not compare' not in alike.title


def test_curves_are_the_evaluations_by_what_is_spent():
    lines = comparison.curves({'a': entry({0: 1.0, 3: math.nan}), 'b': entry({0: 1.0}, step_cost=1.0)})
    assert [line['spent'] for line in lines] == [0, 10, 20, 0, 10, 20, 0, 5, 10]
    assert lines[2] == {'run': 'a', 'seed': 0, 'step': 10, 'spent': 20, 'eval/loss': 1.0}
    assert lines[5]['eval/loss'] is None, 'JSON has no NaN'


def test_judged_numbers_are_paired_where_both_have_them():
    """A seed whose fine-tuning diverged is missing, and a number that a model does not have leaves its cell empty."""
    found = {'a': {0: {'x': 1.0, 'y': 5.0}, 1: {'x': 3.0}}, 'b': {0: {'x': 2.0}, 1: {}, 2: {'x': 9.0}}}
    table = comparison.judged_table('probe', 'a number', '%', '.2f', found)
    assert [c.name for c in table.columns] == ['a', 'b', 'b − a'] and [r.name for r in table.rows] == ['x', 'y']
    assert table.cell('x', 'b')[0]['value'] == 5.5 and table.cell('x', 'b − a')[0] == {
        'value': 1.0,
        'of': 3,
        'by_seed': {'0': 1.0},
    }
    shown = experiment.format_cell(table.cell('x', 'b')[0], '.2f')
    assert shown == '5.50 ± 3.50 (2 of 3 seeds)', 'a mean over the seeds that came to their end says so'
    assert table.cell('y', 'b')[0] is None and table.cell('y', 'b − a')[0] is None


def test_the_metric_that_compares_objectives_goes_first():
    both = entry({0: 1.0})
    both.runs[0].append({'step': 10, 'eval/masked_nll': 0.5})
    assert comparison.choose_metric(both) == 'eval/masked_nll'
    assert comparison.choose_metric(entry({0: 1.0})) == 'eval/loss'
    assert comparison.choose_metric(both, 'loss') == 'eval/loss'
    with pytest.raises(ConfigError, match='accuracy: the runs of file.py have eval/loss'):
        comparison.choose_metric(entry({0: 1.0}), 'accuracy')


def test_different_metrics_are_not_subtracted():
    """An objective that predicts no masked tokens has no nats per masked token."""
    masked, other = entry({0: 1.0, 1: 1.5}), entry({0: 8.0, 1: 8.5})
    for run in masked.runs.values():
        run[-1]['eval/masked_nll'] = 0.5
    table = comparison.held_out_table({'mlm': masked, 'detection': other}, 'flops')
    title, difference = (column.name for column in table.columns[:2])
    assert table.cell('detection', title)[0]['value'] == 8.25 and table.cell('detection', difference)[0] is None
    assert 'these do not compare: eval/masked_nll of mlm; eval/loss of detection' in table.title
    same = comparison.held_out_table({'mlm': masked, 'detection': other}, 'flops', 'loss')
    assert same.cell('detection', difference)[0]['value'] == 7.0 and 'compare' not in same.title


def test_metrics_that_runs_will_not_have_are_refused_before():
    for wanted in ('loss', 'eval/loss', 'eval/books/loss', 'eval/blimp_syntax', 'eval_ema/loss'):
        comparison.check_metric(wanted, ['blimp', 'loss'], has_average=True)
    for wanted, has_average in (('los', True), ('train/loss', True), ('books/loss', True), ('eval_ema/loss', False)):
        with pytest.raises(ConfigError, match=f'--metric={wanted}: the runs will have eval/blimp, eval/loss'):
            comparison.check_metric(wanted, ['blimp', 'loss'], has_average)


def test_a_log_that_lacks_its_end_is_named():
    """A damaged line is left out of what is read."""
    cut = entry({0: 1.0, 1: 2.0})
    cut.runs[1].pop()
    with pytest.raises(ConfigError, match='the log of b, seed 1, lacks the evaluation at its end, step 10'):
        comparison.held_out_table({'a': entry({0: 1.0, 1: 2.0}), 'b': cut}, 'flops')
