"""Metrics of predictions, by name, from scikit-learn and SciPy (extra `finetune`)."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mlm_jax.files.errors import ConfigError

# Metrics for which lower values are better.
DECREASING = ('rmse', 'mae')
# Kind of task → the metrics that apply to it.
OF_KIND = {
    'classification': ('accuracy', 'macro_f1', 'matthews', 'f1', 'roc_auc', 'average_precision'),
    'multilabel': ('roc_auc', 'average_precision'),
    'regression': ('pearson_spearman', 'pearson', 'spearman', 'rmse', 'mae'),
}
OF_POSITIVE_CLASS = ('f1', 'average_precision')  # of two classes, the second; the others treat both alike
_TWO_CLASSES = ('f1', 'roc_auc', 'average_precision')


def check(names: Sequence[str], kind: str, num_labels: int) -> None:
    """Raises ConfigError for metrics that do not exist for this kind of task and number of classes."""
    possible = [
        name for name in OF_KIND[kind] if kind != 'classification' or num_labels == 2 or name not in _TWO_CLASSES
    ]
    wrong = [name for name in names if name not in possible]
    if wrong:
        task = f'{kind} with {num_labels} classes' if kind == 'classification' else kind
        raise ConfigError(f'there is no metric {", ".join(wrong)} for a {task}; the metrics are {", ".join(possible)}')


def score(names: Sequence[str], targets_NxC: np.ndarray, outputs_NxC: np.ndarray) -> dict[str, float]:
    """Computes metrics of predictions, as fractions (not percent); NaN for a metric that is undefined.

    Args:
      names: keys of `METRICS` that `check` accepts.
      targets_NxC: float; class numbers or values [N, 1], or binary targets [N, C], which are 0, 1 or NaN for unknown.
      outputs_NxC: float; one logit for each class of a classification, else one logit or value for each target.

    Returns:
      The value of each metric.

    Raises:
      ImportError: without the extra `finetune`.
    """
    return {name: float(METRICS[name](targets_NxC, outputs_NxC)) for name in names}


def undefined(name: str, targets_NxC: np.ndarray) -> str:
    """Why a metric of these targets is NaN whatever is predicted, in words; '' where it is not.

    Args:
      name: a key of `METRICS`.
      targets_NxC: as for `score`.
    """
    known = [target_N[~np.isnan(target_N)] for target_N in targets_NxC.T]
    differ = [len(np.unique(values)) > 1 for values in known]
    if name in ('roc_auc', 'average_precision') and not any(differ):
        return 'no target has both positive and negative examples'
    if name in ('pearson', 'spearman', 'pearson_spearman'):
        if not any(differ):
            return 'no target has two different values'
        if any(len(values) > 1 and not d for values, d in zip(known, differ, strict=True)):
            return 'a target has one value only'
    return ''


def require() -> None:
    """Raises ImportError without the extra `finetune`, which a long run would miss at its end only."""
    _sklearn()


def is_better(name: str, value: float, than: float) -> bool:
    """Whether `value` of a metric is better than `than`; NaN is worse than every number."""
    if np.isnan(value):
        return False
    return bool(np.isnan(than) or (value < than if name in DECREASING else value > than))


def _sklearn() -> Any:
    try:
        import sklearn.metrics
    except ModuleNotFoundError:
        raise ImportError("metrics need scikit-learn: pip install 'mlm_jax[finetune]'") from None
    return sklearn.metrics


def _classes(targets_NxC, outputs_NxC):
    return targets_NxC[:, 0].astype(int), outputs_NxC.argmax(axis=1)


def _accuracy(targets_NxC, outputs_NxC):
    return _sklearn().accuracy_score(*_classes(targets_NxC, outputs_NxC))


def _f1(targets_NxC, outputs_NxC):
    """The F1 of class 1, as GLUE defines it for its two-class tasks."""
    return _sklearn().f1_score(*_classes(targets_NxC, outputs_NxC), zero_division=0.0)


def _macro_f1(targets_NxC, outputs_NxC):
    return _sklearn().f1_score(*_classes(targets_NxC, outputs_NxC), average='macro', zero_division=0.0)


def _matthews(targets_NxC, outputs_NxC):
    return _sklearn().matthews_corrcoef(*_classes(targets_NxC, outputs_NxC))


def _correlation(name: str) -> Callable:
    """A metric: the mean correlation over targets; targets with fewer than two known values are left out."""

    def correlation(targets_NxC: np.ndarray, outputs_NxC: np.ndarray) -> float:
        from scipy import stats

        values = []
        for target_N, output_N in zip(targets_NxC.T, outputs_NxC.T, strict=True):
            known = ~np.isnan(target_N)
            if known.sum() < 2:
                continue
            with warnings.catch_warnings():
                warnings.simplefilter('ignore', stats.ConstantInputWarning)  # the result is NaN
                values.append(getattr(stats, name)(target_N[known], output_N[known]).statistic)
        return float(np.mean(values)) if values else math.nan

    return correlation


_pearson, _spearman = _correlation('pearsonr'), _correlation('spearmanr')


def _pearson_spearman(targets_NxC, outputs_NxC):
    return (_pearson(targets_NxC, outputs_NxC) + _spearman(targets_NxC, outputs_NxC)) / 2


def _per_target(name: str) -> Callable:
    """A metric: the mean over the targets with both classes; with one class, the curve is undefined."""

    def mean(targets_NxC: np.ndarray, outputs_NxC: np.ndarray) -> float:
        if outputs_NxC.shape[1] == 2 and targets_NxC.shape[1] == 1:  # of two classes, the second is the positive class
            outputs_NxC = outputs_NxC[:, 1:] - outputs_NxC[:, :1]
        metric, values = getattr(_sklearn(), name), []
        for target_N, output_N in zip(targets_NxC.T, outputs_NxC.T, strict=True):
            known = ~np.isnan(target_N)
            if len(np.unique(target_N[known])) == 2:
                values.append(metric(target_N[known], output_N[known]))
        return float(np.mean(values)) if values else math.nan

    return mean


def _rmse(targets_NxC, outputs_NxC):
    return np.sqrt(np.nanmean((targets_NxC - outputs_NxC) ** 2))


def _mae(targets_NxC, outputs_NxC):
    return np.nanmean(np.abs(targets_NxC - outputs_NxC))


METRICS: dict[str, Callable] = {
    'accuracy': _accuracy,
    'f1': _f1,
    'macro_f1': _macro_f1,
    'matthews': _matthews,
    'pearson': _pearson,
    'spearman': _spearman,
    'pearson_spearman': _pearson_spearman,
    'roc_auc': _per_target('roc_auc_score'),
    'average_precision': _per_target('average_precision_score'),
    'rmse': _rmse,
    'mae': _mae,
}
