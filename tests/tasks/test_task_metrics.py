"""Metrics of tasks, on cases that can be counted by hand."""

import numpy as np
import pytest

from mlm_jax.config import ConfigError
from mlm_jax.tasks import metrics

pytest.importorskip('sklearn')
NAN = np.nan


def score(name, targets, outputs):
    return metrics.score([name], np.array(targets, np.float32), np.array(outputs, np.float32))[name]


def test_classification():
    # Three of four are right; of class 1: one hit, one missed, none wrong.
    targets, logits = [[0], [0], [1], [1]], [[2, 1], [3, 0], [0, 1], [1, 0]]
    assert score('accuracy', targets, logits) == 0.75
    assert score('f1', targets, logits) == pytest.approx(2 / 3)
    assert score('macro_f1', targets, logits) == pytest.approx((0.8 + 2 / 3) / 2)
    assert score('matthews', targets, logits) == pytest.approx(2 / np.sqrt(12))
    assert score('matthews', targets, [[1, 0]] * 4) == 0, 'one answer for all is worth nothing'


def test_correlations():
    targets, values = [[1], [2], [3], [4]], [[1], [4], [9], [16]]
    assert score('spearman', targets, values) == pytest.approx(1)
    assert score('pearson', targets, values) == pytest.approx(np.corrcoef([1, 2, 3, 4], [1, 4, 9, 16])[0, 1])
    both = (score('pearson', targets, values) + 1) / 2
    assert score('pearson_spearman', targets, values) == pytest.approx(both)
    assert np.isnan(score('pearson_spearman', targets, [[1]] * 4))
    several = [[1, 1], [2, NAN], [3, 3], [4, 2]]
    outputs = [[1, -1], [2, 9], [3, -3], [4, -2]]
    assert score('pearson', several, outputs) == pytest.approx(0, abs=1e-6), 'the mean over targets, of what is known'
    assert np.isnan(score('pearson', [[1]], [[1]]))


def test_areas_leave_out_what_is_unknown_and_targets_of_one_class():
    targets = [[0, 1, 1], [1, NAN, 1], [1, 0, 1], [0, NAN, 1]]
    outputs = [[0.1, 5, 0], [0.9, -9, 0], [0.4, 1, 0], [0.5, 9, 0]]
    assert score('roc_auc', targets, outputs) == pytest.approx((0.75 + 1) / 2)
    assert np.isnan(score('roc_auc', [[1], [1]], [[0], [1]]))
    assert score('roc_auc', [[0], [1]], [[3, 1], [0, 2]]) == 1, 'two classes: the logit of the second over the first'


def test_errors():
    assert score('rmse', [[1], [3]], [[1], [1]]) == pytest.approx(np.sqrt(2))
    assert score('mae', [[1], [NAN]], [[3], [1]]) == 2


def test_metrics_that_do_not_fit_the_task_are_refused():
    metrics.check(('f1', 'roc_auc'), 'classification', 2)
    for names, kind, labels, message in (
        (
            ('accuarcy',),
            'classification',
            2,
            'no metric accuarcy for a classification with 2 classes; the metrics are accuracy',
        ),
        (
            ('f1',),
            'classification',
            3,
            'no metric f1 for a classification with 3 classes; the metrics are accuracy, macro_f1, ',
        ),
        (('rmse', 'accuracy'), 'multilabel', 4, 'no metric rmse, accuracy for a multilabel; the metrics are roc_auc'),
    ):
        with pytest.raises(ConfigError, match=message):
            metrics.check(names, kind, labels)
    assert {name for names in metrics.OF_KIND.values() for name in names} == metrics.METRICS.keys()


def test_which_is_better():
    assert metrics.is_better('accuracy', 0.6, 0.5) and not metrics.is_better('accuracy', 0.5, 0.5)
    assert metrics.is_better('rmse', 0.5, 0.6) and not metrics.is_better('rmse', 0.6, 0.5)
    assert metrics.is_better('rmse', 0.5, NAN) and not metrics.is_better('accuracy', NAN, 0.5)
