"""The picture of fine-tuned models."""

import pytest
from matplotlib.figure import Figure

from mlm_jax.finetuning import report as fine_tuning_report


def entry(metric: str, values: dict) -> dict:
    by_seed = {metric: {'median': max(values.values()), 'by_seed': values}}
    return {'metric': metric, 'splits': {'validation': by_seed}, 'trivial': {metric: 0.5}}


@pytest.mark.parametrize('tasks', [['squad/v1.1'], ['glue/sst2', 'moleculenet/esol'], [f'glue/t{i}' for i in range(9)]])
def test_all_that_is_written_lies_within_the_picture(tasks, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, 'savefig', lambda figure, path, dpi: figures.append(figure))
    metrics = {'squad/v1.1': 'f1', 'moleculenet/esol': 'rmse'}
    report = {
        task: {model: entry(metrics.get(task, 'accuracy'), {'1': 0.6, '2': 0.7}) for model in ('mlm', 'random-mlm')}
        for task in tasks
    }
    fine_tuning_report.draw(report, tmp_path / 'results.png')
    (figure,) = figures
    figure.draw_without_rendering()
    texts = [*figure.texts, *figure.legends, *(label for axes in figure.axes for label in axes.get_xticklabels())]
    texts += [axes.title for axes in figure.axes]
    for text in texts:
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1, text
