"""Means with errors, computed and printed."""

import pytest

from mlm_jax.files.statistics import mean_and_error, plus_minus


def test_the_error_of_a_mean():
    assert mean_and_error([1.0, 3.0]) == (2.0, pytest.approx(1.0))
    assert mean_and_error([5.0]) == (5.0, None)


def test_values_are_printed_with_their_errors():
    assert plus_minus(1.234, 0.057, '.2f') == '1.23 ± 0.06'
    assert plus_minus(1.234, 0.057, '+.2f') == '+1.23 ± 0.06'
    assert plus_minus(1234.5, 0.0571, '.4g', '.2g') == '1234 ± 0.057'
    assert plus_minus(1.234, None, '+.1f') == '+1.2'
