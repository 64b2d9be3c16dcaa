"""Seeds that were run apart: their joined report is that of all of them."""

import dataclasses
import itertools
import re
import types

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlm_jax import compare
from mlm_jax.comparing import comparison, experiment, joining, report
from mlm_jax.config import ConfigError

LABELS = ('mlm', 'training')  # the second is also the name of a column of costs


def of_seeds(losses, seeds, **changes):
    """The experiment of some of the seeds, (label, seed) → loss, with a judge that finds nothing in uneven seeds."""
    entries = {
        label: comparison.Entry(
            f'{label}.py', 10, 1000, 1e6, 2.0,
            {seed: [{'step': step, 'eval/loss': losses[label, seed]} for step in (0, 10)] for seed in seeds},
            {seed: 3.0 + seed for seed in seeds},
        )
        for label in LABELS
    }  # fmt: skip
    found = {
        label: {seed: {f'x{seed % 2}': losses[label, seed]} if label == 'mlm' or seed % 2 else {} for seed in seeds}
        for label in LABELS
    }
    made = experiment.Experiment(
        'runs', 'Which?', (f'compare --seeds={",".join(map(str, seeds))}',), settings={'rows': '5 (abc)'},
        commit=f'c{seeds[0] % 2}', date=f'2026-01-0{1 + seeds[0]}', hardware='1 × cpu', versions={'jax': '1'},
        seeds=tuple(seeds), curves=tuple(comparison.curves(entries)),
        figure=tuple(comparison.panels(entries, 'flops', 'eval/loss', ())),
        tables=(
            comparison.held_out_table(entries, 'flops'),
            comparison.judged_table('probe', 'a number', '%', '.2f', found),
        ),
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


@settings(max_examples=30, deadline=None)
@given(
    order=st.permutations(range(5)),
    cuts=st.sets(st.integers(1, 4), min_size=1, max_size=3),
    losses=st.lists(st.integers(-50, 50), min_size=10, max_size=10),
)
def test_joined_parts_are_the_comparison_of_all_seeds(order, cuts, losses):
    by_run = {(label, seed): losses[5 * i + seed] / 8 for i, label in enumerate(LABELS) for seed in range(5)}
    places = [0, *sorted(cuts), 5]
    parts = [order[a:b] for a, b in itertools.pairwise(places)]
    joined = joining.join({f'runs/{i}': of_seeds(by_run, seeds) for i, seeds in enumerate(parts)})
    whole = of_seeds(by_run, order)
    assert joined.seeds == whole.seeds and joined.figure == whole.figure
    assert sorted(map(str, joined.curves)) == sorted(map(str, whole.curves))
    assert [(t.name, t.title, t.columns) for t in joined.tables] == [(t.name, t.title, t.columns) for t in whole.tables]
    for table, of_all in zip(joined.tables, whole.tables, strict=True):
        assert {row.name for row in table.rows} == {row.name for row in of_all.rows}
        for row in table.rows:
            for column in table.columns:
                cell, expected = table.cell(row.name, column.name)[0], of_all.cell(row.name, column.name)[0]
                if isinstance(expected, dict):
                    assert cell.pop('by_seed') == expected.pop('by_seed')
                assert cell == (expected if expected is None else pytest.approx(expected))


def test_the_program_writes_the_joined_report(tmp_path):
    losses = {(label, seed): seed + (label == 'mlm') for label in LABELS for seed in range(3)}
    for name, seeds in (('a', [0]), ('b', [1, 2])):
        (tmp_path / name).mkdir()
        report.write(of_seeds(losses, seeds, title=name, notes=f'Notes of {name}.'), tmp_path / name)
    values = types.SimpleNamespace(
        config=None, set=[], label=[], then=[], data=[], output=str(tmp_path / 'all'),
        join=[str(tmp_path / name) for name in 'ab'],
    )  # fmt: skip
    compare.compare(values)
    made = experiment.read(tmp_path / 'all')
    assert made.title == 'all' and made.notes == 'Notes of a.' and made.seeds == (0, 1, 2)
    assert made.commit == 'c0 and c1' and made.date == '2026-01-02' and len(made.commands) == 2
    assert made.table('held_out').cell('mlm', 'eval/loss')[0]['value'] == 2.0
    assert made.table('held_out').cell('mlm', 'training')[0] == 4.0
    text = (tmp_path / 'all' / 'report.md').read_text()
    assert '2.0000 ± 0.5774' in text and 'single seed' not in text and (tmp_path / 'all' / 'figure.png').exists()
    again = joining.join({'all': made, 'c': of_seeds({(label, 3): 1 for label in LABELS}, [3])})
    assert again.commit == 'c0 and c1' and again.seeds == (0, 1, 2, 3)

    values.set = ['batch_size=2']
    with pytest.raises(ConfigError, match='takes --output only, not --set'):
        compare.compare(values)
    values.set, values.join = [], []
    with pytest.raises(ConfigError, match='say what to compare'):
        compare.compare(values)


@pytest.mark.parametrize(
    ('seeds', 'changes', 'message'),
    [
        ([0, 1], {}, 'a and b both have seed 0: run each seed in one of them only'),
        ([1], {'settings': {'rows': '5 (abd)'}}, r'rows: 5 \(abc\) in a, 5 \(abd\) in b'),
        ([1], {'settings': {'rows': '5 (abc)', 'all': '`x=1`'}}, 'all: None in a, `x=1` in b'),
        ([1], {'settings': {'rows': '5 (abc)', 'mlm': '`mlm.py` (01)'}}, r'mlm: None in a, `mlm.py` \(01\) in b'),
        ([1], {'tables': ()}, 'a has held_out, and b does not: run the command of b with the same --then'),
    ],
)
def test_what_are_no_parts_of_one_comparison_are_refused(seeds, changes, message):
    losses = {(label, seed): 1.0 for label in LABELS for seed in range(2)}
    parts = {'a': of_seeds(losses, [0]), 'b': of_seeds(losses, seeds, **changes)}
    with pytest.raises(ConfigError, match=message):
        joining.join(parts)
    with pytest.raises(ConfigError, match='give two directories or more'):
        joining.join({'a': parts['a']})


def test_runs_of_other_lengths_are_not_joined():
    losses = {(label, seed): 1.0 for label in LABELS for seed in range(2)}
    first, second = of_seeds(losses, [0]), of_seeds(losses, [1])
    held_out = second.tables[0]
    rows = [dataclasses.replace(row, values=(*row.values[:2], 11, *row.values[3:])) for row in held_out.rows]
    second = dataclasses.replace(second, tables=(dataclasses.replace(held_out, rows=tuple(rows)), second.tables[1]))
    with pytest.raises(ConfigError, match=re.escape('held_out, mlm, steps: 10 in a, 11 in b')):
        joining.join({'a': first, 'b': second})
