"""The picture of entropies: a color for each checkpoint, and a line style for each prediction of its objective."""

import pytest

from mlm_jax.analysis import entropy_report
from mlm_jax.files import pictures
from mlm_jax.objectives.exlm_spec import DISTRIBUTIONS


def entry(objective: str, *names: str) -> dict:
    """What the program has of a checkpoint, at two mask ratios."""
    bits = {name: {key: [float(i), 0.1] for key in ('entropy', 'nll', 'gap')} for i, name in enumerate(names)}
    return {'objective': objective, 'ratios': {'0.15': {'bits': bits}, '0.5': {'bits': bits}}}


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """report → (the colors and styles of the lines of a panel in their order, legend: label → style)."""

    def draw(report: dict) -> tuple[list, dict]:
        figures = []
        monkeypatch.setattr(pictures, 'save', lambda figure, path: figures.append(figure))
        entropy_report.draw(report, tmp_path / 'entropy.png')
        (figure,) = figures
        figure.draw_without_rendering()
        lines = [(bars[0].get_color(), bars[0].get_linestyle()) for bars in figure.axes[0].containers]
        (legend,) = figure.legends
        handles = zip(legend.get_texts(), legend.get_lines(), strict=True)
        return lines, {text.get_text(): line.get_linestyle() for text, line in handles}

    return draw


def test_predictions_of_any_objective_have_styles_and_names(drawn):
    names, styles = ['forward', 'backward', 'both'], ['-', '--', '-.']
    lines, legend = drawn({'a': entry('mlm', 'prediction'), 'b': entry('mine', *names), 'c': entry('mine', *names)})
    assert lines == [('C0', '-'), *(('C1', style) for style in styles), *(('C2', style) for style in styles)]
    assert list(legend) == ['a', 'b', 'c', *(f'mine: {name}' for name in names)]
    assert [legend[f'mine: {name}'] for name in names] == styles


def test_no_two_of_many_predictions_look_the_same(drawn):
    assert len({entropy_report.line_style(i) for i in range(9)}) == 9
    lines, legend = drawn({'a': entry('mine', *map(str, range(9)))})
    assert (len(lines), len(legend)) == (9, 1 + 9)


def test_objectives_keep_their_predictions_apart(drawn):
    _, legend = drawn({'x': entry('exlm', *DISTRIBUTIONS), 'y': entry('mine', 'prior, states', 'other')})
    assert list(legend)[2:] == [*(f'exlm: {name}' for name in DISTRIBUTIONS), 'mine: prior, states', 'mine: other']
    assert legend['mine: prior, states'] == legend['exlm: prior, mixture'] == legend['x']


def test_one_prediction_needs_no_name(drawn):
    _, legend = drawn({'a$b$': entry('mlm', 'prediction'), 'c': entry('mae_lm', 'prediction')})
    assert len(legend) == 2
