"""SQuAD's metrics: the numbers of the official scripts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlm_jax.config import ConfigError
from mlm_jax.tasks import squad_metrics
from mlm_jax.tasks.squad import Question

CONTEXT = 'The tower, built by Ann Lee in 1889, is 300 metres tall. It stands in Paris!'
ANSWERS = {
    'a': ['Ann Lee'], 'b': ['1889', 'in 1889', 'built in 1889'], 'c': ['300 metres', '300 metres tall'], 'd': ['Paris'],
    'e': ['The'], 'f': ['tower tower tall'], 'g': [], 'h': [], 'i': [],
}  # fmt: skip
PREDICTIONS = {
    'a': 'ann  lee.', 'b': '1889, is 300', 'c': 'the 300 Metres', 'd': 'stands', 'e': '', 'f': 'the tower tall',
    'g': '', 'h': 'Paris', 'i': 'Ann Lee',
}  # fmt: skip
ODDS = {'a': -3.0, 'b': 0.5, 'c': 2.0, 'd': 1.5, 'e': -1.0, 'f': -2.0, 'g': 2.5, 'h': -2.5, 'i': 1.2}


def questions(names):
    return [
        Question(name, f'question {name}?', CONTEXT, tuple(ANSWERS[name]), impossible=name in 'ghi') for name in names
    ]


ALL = questions(ANSWERS)

# The golden numbers were printed by evaluate-v1.1.py and evaluate-v2.0.py for the answers above. If one changes, ours
# are no longer comparable with those of the leaderboard and of papers.


def test_the_numbers_of_1_are_those_of_the_official_script():
    assert squad_metrics.evaluate_1(questions('abcdef'), PREDICTIONS) == {'exact_match': 50.0, 'f1': 55.0}
    some = {name: text for name, text in PREDICTIONS.items() if name != 'b'}
    assert squad_metrics.evaluate_1(questions('abcdef'), some) == {'exact_match': 50.0, 'f1': 46.666666666666664}


def test_the_numbers_of_2_are_those_of_the_official_script():
    counts = {'total': 9, 'HasAns_total': 6, 'NoAns_total': 3}
    assert squad_metrics.evaluate_2(ALL, PREDICTIONS) == counts | {
        'exact': 44.44444444444444, 'f1': 58.888888888888886, 'HasAns_exact': 50.0, 'HasAns_f1': 71.66666666666667,
        'NoAns_exact': 33.333333333333336, 'NoAns_f1': 33.333333333333336,
    }  # fmt: skip
    best = {
        'best_exact': 44.44444444444444, 'best_exact_thresh': -3.0, 'best_f1': 58.888888888888886, 'best_f1_thresh': 0.5
    }  # fmt: skip
    assert squad_metrics.evaluate_2(ALL, PREDICTIONS, ODDS) == counts | best | {
        'exact': 44.44444444444444, 'f1': 58.888888888888886, 'HasAns_exact': 33.333333333333336, 'HasAns_f1': 55.0,
        'NoAns_exact': 66.66666666666667, 'NoAns_f1': 66.66666666666667,
    }  # fmt: skip
    assert squad_metrics.evaluate_2(ALL, PREDICTIONS, ODDS, threshold=0.0) == counts | best | {
        'exact': 44.44444444444444, 'f1': 53.333333333333336, 'HasAns_exact': 33.333333333333336,
        'HasAns_f1': 46.666666666666664, 'NoAns_exact': 66.66666666666667, 'NoAns_f1': 66.66666666666667,
    }  # fmt: skip
    at_odds = squad_metrics.evaluate_2(ALL, PREDICTIONS, ODDS, threshold=2.0)  # those of c, which is still answered
    assert (at_odds['HasAns_exact'], at_odds['NoAns_exact']) == (50.0, 33.333333333333336)


def test_where_every_answer_is_wrong_the_best_is_to_give_none():
    numbers = squad_metrics.evaluate_2(ALL, dict.fromkeys(ANSWERS, 'x'), ODDS)
    assert numbers['best_exact'] == numbers['best_f1'] == 33.333333333333336
    assert numbers['best_exact_thresh'] == numbers['best_f1_thresh'] == 0.0
    assert numbers['exact'] == 22.22222222222222


@settings(deadline=None)
@given(odds=st.lists(st.integers(-3, 3), min_size=9, max_size=9, unique=False))
def test_the_best_threshold_is_at_least_as_good_as_any(odds):
    odds = dict(zip(ANSWERS, map(float, odds)))
    numbers = squad_metrics.evaluate_2(ALL, PREDICTIONS, odds)
    for threshold in (-4.0, *odds.values()):
        at = squad_metrics.evaluate_2(ALL, PREDICTIONS, odds, threshold)
        assert numbers['best_exact'] >= at['exact'] - 1e-9 and numbers['best_f1'] >= at['f1'] - 1e-9


def test_what_does_not_count():
    assert squad_metrics.normalize(' The  “Theory”, of\tA.B. an an-swer ') == '“theory” of ab answer'
    assert squad_metrics.exact_match('a U.S. state', 'the us State!') == 1
    assert squad_metrics.f1('the red red car', 'red cars') == pytest.approx(2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2))
    assert squad_metrics.f1('', 'the') == 1 and squad_metrics.f1('', 'x') == 0


def test_what_cannot_be_judged_is_named():
    with pytest.raises(ConfigError, match='question g has no answers, so its data set is not SQuAD 1.1'):
        squad_metrics.evaluate_1(ALL, PREDICTIONS)
    with pytest.raises(ConfigError, match='1 of 9 questions have no prediction, such as c'):
        squad_metrics.evaluate_2(ALL, {name: text for name, text in PREDICTIONS.items() if name != 'c'})
    with pytest.raises(ConfigError, match='8 of 9 questions have no odds, such as b'):
        squad_metrics.evaluate_2(ALL, PREDICTIONS, {'a': 1.0})


def test_trivial_baselines():
    context = 'In 1889 it rose. Dr. No, aged 3.5, saw it! Did the tower fall? No'
    asked = [
        Question('1', 'When did the tower fall?', context, ('It', '1889 it'), (8, 3)),
        Question('2', 'What rose?', context, ('1889 it',), (3,)),
        Question('3', 'Who saw?', '', (), (), impossible=True),
    ]
    answers = {kind: squad_metrics.trivial_baseline(asked, kind) for kind in squad_metrics.BASELINES}
    assert set(answers['no_answer'].values()) == {''}
    assert answers['whole_context']['1'] == context
    assert answers['first_sentence'] == {'1': 'In 1889 it rose.', '2': 'In 1889 it rose.', '3': ''}
    assert answers['overlapping_sentence'] == {'1': 'Did the tower fall?', '2': 'In 1889 it rose.', '3': ''}
    assert squad_metrics.constant_span(asked) == (1, 2) and answers['constant_span']['1'] == '1889 it'
