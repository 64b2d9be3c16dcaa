"""Experiments as data: what is written is read again, what is not of the form is refused, pages hold the numbers."""

import dataclasses
import json
import math

import pytest

from mlm_jax.comparing import experiment, figures, measured, results_page
from mlm_jax.comparing.experiment import Column, Experiment, Row, Table
from mlm_jax.config import ConfigError

TABLE = Table(
    'loss',
    'Held-out loss.',
    (Column('place'), Column('mean', 'nats', '+.2f'), Column('by seed'), Column('range', 'ms', x=4.0)),
    (
        Row(
            'a|b', ('here', {'value': -1.5, 'error': 0.25, 'by_seed': {'0': 1.0}}, [1, 2], {'low': 1000, 'high': 2000})
        ),
        Row('c', (None, 3, None, {'value': 0.5, 'low': 0.25, 'high': 1})),
    ),
)
MADE = Experiment(
    title='A title',
    question='What?',
    commands=('python -m mlm_jax.train \\\n    --workdir=runs/a', 'ls'),
    needs='a download',
    settings={'size': '`tiny`'},
    commit='abc1234',
    date='2026-11-29',
    hardware='1 × cpu',
    versions={'jax': '0.10.2'},
    seeds=(0, 1),
    notes='It is {loss|c|mean} nats.',
    not_run='the rest.',
    figure=(
        {'curves': {'eval/loss': 'held out'}, 'x': 'step', 'x_from': 1, 'levels': {'nothing': 3}},
        {'lines': 'loss'},
        {'bars': 'loss', 'columns': ['mean'], 'rows': ['c'], 'title': 'bars'},
    ),
    alternative_text='A figure',
    tables=(TABLE,),
    curves=tuple(
        {'run': 'a', 'seed': seed, 'step': step, 'eval/loss': 9.0 - step} for seed in (0, 1) for step in (0, 1)
    ),
)


def test_what_is_written_is_read_again(tmp_path):
    experiment.write(MADE, tmp_path)
    assert experiment.read(tmp_path) == MADE
    assert len((tmp_path / 'metrics.json').read_text().splitlines()) < 20, 'a line for each row'


def test_a_section_holds_all_of_it(tmp_path):
    text = results_page.section(MADE, 'results/a/', 2)
    assert text.startswith('## A title\n\nWhat?\n\n<!-- needs: a download -->\n```bash\npython')
    assert '*commit abc1234; 2026-11-29; 1 × cpu; jax 0.10.2; seeds 0, 1*' in text
    assert 'It is +3.00 nats.' in text and '**Not run:** the rest.' in text
    assert '![A figure](results/a/figure.png)' in text
    rows = [[cell.strip() for cell in line.strip('|').split(' | ')] for line in text.splitlines() if line[:1] == '|']
    assert rows[0] == ['', 'place', 'mean, nats', 'by seed', 'range, ms'] and rows[1][1] == '---' != rows[1][2]
    assert rows[2] == [r'a\|b', 'here', '−1.50 ± 0.25', '1 / 2', '1,000 … 2,000']
    assert rows[3] == ['c', '', '+3.00', '', '0.5 (0.25 … 1)']
    empty = Experiment('A title', 'What?')
    assert results_page.section(empty, '', 1) == '# A title\n\nWhat?\n'


def test_figures_are_drawn_from_the_data(tmp_path):
    figures.draw(MADE, tmp_path / 'figure.png')
    assert (tmp_path / 'figure.png').stat().st_size > 5000
    for panel, message in (
        ({'pie': 'loss'}, 'has one of curves, lines, bars'),
        ({'lines': 'loss', 'colour': 'red'}, "has no 'colour'"),
        ({'lines': 'gain'}, "there is no table 'gain'; there are loss"),
        ({'lines': 'loss', 'rows': ['d']}, "has no row 'd'"),
        ({'curves': {'eval/accuracy': ''}}, 'has nothing of eval/accuracy'),
    ):
        with pytest.raises(ConfigError, match=message):
            figures.draw(dataclasses.replace(MADE, figure=(panel,)), tmp_path / 'figure.png')


def test_a_legend_of_many_lines_is_whole(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures.pictures, 'save', lambda figure, path: drawn.append(figure))
    names = [f'width {256 * i:,}, learning rate {i}e-3' for i in range(1, 12)]
    table = Table('loss', '', tuple(Column(f'{x}', x=x) for x in (0.0, 1.0)), tuple(Row(n, (1, 2)) for n in names))
    figures.draw(dataclasses.replace(MADE, tables=(table,), figure=({'lines': 'loss'},) * 2), tmp_path / 'figure.png')
    (figure,) = drawn
    figure.draw_without_rendering()
    (legend,) = figure.legends
    place = legend.get_window_extent().get_points() / figure.bbox.size
    assert place.min() >= 0 and place.max() <= 1 and len(legend.get_texts()) == 11


@pytest.mark.parametrize(
    ('file', 'old', 'new', 'message'),
    [
        ('experiment.json', '"title"', '"titel"', "there is no key 'titel'; there are title, question"),
        ('experiment.json', '"2026-11-29"', '"today"', "date='today' must have the form YYYY-MM-DD"),
        ('experiment.json', '"abc1234"', '5', 'commit must be a text, or null'),
        ('experiment.json', '"What?"', '3', 'question must be a text'),
        ('experiment.json', '{', '', 'is not JSON'),
        ('metrics.json', '"name": "c"', '"name": "a|b"', "two rows are named 'a|b'"),
        ('metrics.json', '[null, 3, null, ', '[null, 3, ', "row 'c': 3 values for 4 columns"),
        ('metrics.json', '[null, 3, null, ', '[null, true, null, ', "column 'mean': True is no cell"),
        ('metrics.json', '"error"', '"eror"', "is no cell"),
        ('metrics.json', '"low": 1000, ', '', 'is no cell'),
        ('metrics.json', '"unit"', '"units"', "a column: there is no key 'units'"),
        ('metrics.json', '"title": "Held-out loss.",', '', 'table loss: title is missing'),
        ('curves.jsonl', '"step"', '"stop"', 'line 1: expected an object with the number "step"'),
    ],
)  # fmt: skip
def test_what_is_not_of_the_form_is_refused(tmp_path, file, old, new, message):
    experiment.write(MADE, tmp_path)
    text = (tmp_path / file).read_text()
    assert old in text
    (tmp_path / file).write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message):
        experiment.read(tmp_path)


def test_what_is_not_of_the_form_is_not_written(tmp_path):
    wrong = dataclasses.replace(TABLE, rows=(Row('a', ('', math.nan, None, None)),))
    with pytest.raises(ConfigError, match="row 'a', column 'mean': nan is no cell"):
        experiment.write(dataclasses.replace(MADE, tables=(wrong,)), tmp_path)


def test_references_lead_somewhere():
    for notes, message in (
        ('{loss|c}', 'is not TABLE|ROW|COLUMN'),
        ('{loss|c|median}', "no row 'c' with a column 'median'"),
    ):
        with pytest.raises(ConfigError, match=message):
            results_page.section(dataclasses.replace(MADE, notes=notes), '', 2)


def test_a_page_is_its_experiments_in_their_order(tmp_path):
    for name in ('a', 'b', 'c'):
        (tmp_path / name).mkdir()
        experiment.write(dataclasses.replace(MADE, title=name), tmp_path / name)
    row = {'what': 'Loss', 'result': '{b|loss|c|mean} nats', 'compared': '', 'experiment': 'b'}
    page = {'title': 'P', 'introduction': 'I', 'experiments': ['b'], 'highlights': [row], 'figure': 'a', 'caption': 'C'}
    (tmp_path / 'page.json').write_text(json.dumps(page))
    read, found = results_page.read_page(tmp_path)
    assert list(found) == ['b', 'a', 'c'], 'those that the page does not name come last'
    assert results_page.make_page(read, found, 'results').count('\n## ') == 3
    made = results_page.make_highlights(read, found, 'docs/results')
    assert (
        '| Loss | +3.00 nats |                 | abc1234, 1 × cpu |' in made and '(docs/results/a/figure.png)' in made
    )
    text = f'x\n{results_page.BEGIN}\nold\n{results_page.END}\ny'
    once = results_page.replace_between(text, made)
    assert results_page.replace_between(once, made) == once and 'old' not in once and once.endswith('y')
    with pytest.raises(ConfigError, match='must have the lines'):
        results_page.replace_between('x\ny', made)
    (tmp_path / 'page.json').write_text(json.dumps({**page, 'experiments': ['d']}))
    with pytest.raises(ConfigError, match="names the experiment 'd', and there is no directory"):
        results_page.read_page(tmp_path)


def test_a_page_says_what_was_seen_of_claims(tmp_path):
    (tmp_path / 'a').mkdir()
    experiment.write(dataclasses.replace(MADE, title='The 2 runs, again'), tmp_path / 'a')
    claim = {
        'claim': 'Better.',
        'verdict': 'in part',
        'evidence': '{a|loss|c|mean} nats',
        'size': '2×128',
        'experiments': ['a'],
    }
    untried = {'claim': 'Faster.', 'verdict': 'open', 'evidence': 'not tried.'}
    page = {'title': 'P', 'introduction': 'I', 'experiments': ['a'], 'claims': [claim, untried]}
    (tmp_path / 'page.json').write_text(json.dumps(page))
    made = results_page.make_page(*results_page.read_page(tmp_path), 'results')
    assert '* **Better.** In part (2×128): +3.00 nats ([The 2 runs, again](#the-2-runs-again))\n' in made
    assert '* **Faster.** Open: not tried.\n' in made
    assert made.index('## What the papers promise') < made.index('## The 2 runs, again')
    (tmp_path / 'page.json').write_text(json.dumps({**page, 'claims': [{**claim, 'verdict': 'true'}]}))
    with pytest.raises(ConfigError, match="the verdict 'true' of a claim must be one of seen, in part"):
        results_page.read_page(tmp_path)


def test_a_measurement_says_with_what_and_leaves_the_words_of_a_person(tmp_path):
    facts = measured.of_this_process(['pytest'])
    assert facts['versions'].keys() == {'jax', 'jaxlib', 'flax', 'optax', 'pytest'} and facts['hardware']
    experiment.write(dataclasses.replace(MADE, **facts, notes='Mine.'), tmp_path)
    again = experiment.with_words_of(dataclasses.replace(MADE, hardware='another'), tmp_path)
    assert (again.notes, again.hardware, again.commit) == ('Mine.', 'another', MADE.commit)
