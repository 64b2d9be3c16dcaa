"""SQuAD: what is read, what it becomes, and what is made of a model's logits, against slow and simple forms of each."""

import collections
import json
import lzma
import pathlib
import tarfile
import types

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st

from mlm_jax import config as config_lib
from mlm_jax.config import ConfigError
from mlm_jax.data import tfds_sets, tokenizers
from mlm_jax.finetuning import squad_answers, squad_features
from mlm_jax.tasks import squad, squad_metrics
from mlm_jax.tasks.squad import Question

REAL_DATA = pathlib.Path(__file__).parents[3] / 'shared' / 'data' / 'squad.tar.xz'
WORDS = [
    'the',
    'model',
    'reads',
    'ﬁne',
    'words,',
    '½',
    'of',
    'text.',
    'Émile',
    '漢字',
    '😀',
    '(1889)',
    'and',
    'learns',
    'xyzzy',
]


@pytest.fixture(scope='module')
def tokenizer():
    return train_tokenizer([' '.join(np.random.default_rng(i).choice(WORDS[:-1], 12)) for i in range(200)], 340)


def train_tokenizer(texts, size):
    config = config_lib.default_config()
    config.vocab_size, config.tokenizer.model = size, 'bpe'
    return tokenizers.train(texts, config.tokenizer, config.vocab_size)


def make_questions(seed=0, count=40, longest=60, cut=0):
    """Questions whose answers are words of their contexts, less the first `cut` characters; and impossible ones."""
    rng, questions = np.random.default_rng(seed), []
    for i in range(count):
        if i % 3 == 0:
            words = rng.choice(WORDS, rng.integers(1, longest)).tolist()
            starts, context = [], ' ' * int(rng.integers(2))
            for word in words:
                starts.append(len(context))
                context += word + ' ' * int(rng.integers(1, 3))
        asked = ' '.join(rng.choice(WORDS, rng.integers(1, 9)))
        first = int(rng.integers(len(words)))
        last = min(first + int(rng.integers(4)), len(words) - 1)
        start = starts[first] + min(cut, len(words[first]) - 1)
        text = context[start : starts[last] + len(words[last])]
        if rng.random() < 0.2:
            questions.append(Question(str(i), asked, context, impossible=True))
        else:
            questions.append(Question(str(i), asked, context, (text,), (start,)))
    return questions


# ---- Reading --------------------------------------------------------------------------------------------------------


def official(*contexts, version='1.1'):
    """The content of a file; of each context its text and its questions."""
    paragraphs = [{'context': context, 'qas': list(qas)} for context, *qas in contexts]
    return {'version': version, 'data': [{'title': 'a title', 'paragraphs': paragraphs}]}


def asked(id, *answers, **more):
    return {
        'id': id, 'question': f'What is {id}?', 'answers': [{'text': t, 'answer_start': s} for t, s in answers], **more
    }  # fmt: skip


def read(tmp_path, content):
    (tmp_path / 'file.json').write_text(json.dumps(content), encoding='utf-8')
    return squad.read(tmp_path / 'file.json')


def test_a_file_is_read_in_its_order(tmp_path):
    content = official(
        ('Ann saw Bob.', asked('q1', ('Ann', 0), ('Bob', 8)), asked('q0', ('saw', 4))),
        ('Émile ran', asked('q2', ('ran', 6))),
    )
    found = read(tmp_path, content)
    assert found.questions[0] == Question('q1', 'What is q1?', 'Ann saw Bob.', ('Ann', 'Bob'), (0, 8))
    assert [question.id for question in found.questions] == ['q1', 'q0', 'q2']
    assert not found.version_2 and found.notes == {}
    second = asked('q9', is_impossible=True, plausible_answers=[{'text': 'Ann', 'answer_start': 0}])
    found = read(tmp_path, official(('Ann saw Bob.', asked('q1', ('Ann', 0), is_impossible=False), second)))
    assert found.version_2 and found.questions[1].impossible and found.questions[1].texts == ()
    # A file of 1.1 may say of each question that it is possible.
    assert not read(tmp_path, official(('Ann.', asked('q1', ('Ann', 0), is_impossible=False)))).version_2


def test_damage_is_mended_and_counted(tmp_path):
    found = read(
        tmp_path,
        official(
            ('one two one two', asked('moved', ('two', 11)), asked('exact', ('two', 12)), asked('far', ('one', 99))),
            (
                'one two',
                asked('absent', ('three', 0), ('two', 4)),
                asked('gone', ('three', 3)),
                asked('exact', ('one', 0)),
            ),
            ('  ', asked('empty', ('', 0)), asked('none')),
            ('x \ud83d y', asked('half', ('\ud83d y', 2))),
        ),
    )
    starts = {question.id: question.starts for question in found.questions}
    assert starts == {
        'moved': (12,), 'exact': (12,), 'far': (8,), 'absent': (-1, 4), 'gone': (-1,), 'empty': (-1,), 'none': (),
        'half': (2,),
    }  # fmt: skip
    assert found.questions[-1].context == 'x � y' and found.questions[-1].texts == ('� y',)
    assert found.notes == {
        'answers at a wrong position, moved to the nearest occurrence': 2,
        'answers that are not in the context': 2,
        'answers that are empty': 1,
        'questions with the id of an earlier question, dropped': 1,
        'questions about an empty context': 2,
        'questions without answers that are not marked as impossible': 1,
        'questions with a lone surrogate, replaced by �': 1,
    }


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('{"data": [', r'file.json is not SQuAD: it is not JSON'),
        ('[]', r"file.json has no 'data': it is a list. A file of SQuAD is \{\"data\""),
        ('{"text": 1}', "has no 'data': its fields are text"),
        ('{"data": []}', 'holds no questions'),
        ('{"data": [{"paragraphs": []}]}', 'holds no questions'),
        ('{"data": {}}', "'data' of .*file.json is a dict, not a list"),
        ('{"data": [{}]}', r"data\[0\] has no 'paragraphs'"),
        ('{"data": [{"paragraphs": [{"qas": []}]}]}', r"data\[0\].paragraphs\[0\] has no 'context'"),
        (official(('x', {'id': 'a', 'answers': []})), r"qas\[0\] has no 'question': its fields are id, answers"),
        (official(('x', asked(3))), r"'id' of .*qas\[0\] is a int, not text"),
        (official(('x', {'id': 'a', 'question': '?'})), r"qas\[0\] has no 'answers'"),
        (official(('x', {**asked('a'), 'answers': [{'text': 'x'}]})), r"answers\[0\] has no 'answer_start'"),
        (official(('x', asked('a', is_impossible='no'))), "'is_impossible' of .* is a str, not true or false"),
    ],
)
def test_what_is_not_squad_is_refused(tmp_path, content, message):
    (tmp_path / 'file.json').write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ConfigError, match=message):
        squad.read(tmp_path / 'file.json')


def test_a_missing_file_is_named_with_the_cure(tmp_path):
    with pytest.raises(ConfigError, match=r'cannot read .*nothing.json: No such file.*tfds:squad/v1.1'):
        squad.read(tmp_path / 'nothing.json')


@pytest.fixture
def tfds_directory(tmp_path, monkeypatch):
    """TFDS's own builders, whose downloads are here."""
    contents = {
        'train-v1.1.json': official(('Ann saw Bob.', asked('a', ('Bob', 8)), asked('b', ('Émile', 0)))),
        'dev-v1.1.json': official(('Ann saw Émile.', asked('c', ('Émile', 8), ('Ann', 0)))),
        'train-v2.0.json': official(('Ann.', asked('d', ('Ann', 0), is_impossible=False))),
        'dev-v2.0.json': official(
            ('Ann.', asked('e', is_impossible=True), asked('f', ('Ann', 0), is_impossible=False))
        ),
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(json.dumps(content))

    def download(_, urls):
        return {key: tmp_path / pathlib.PurePosixPath(url).name for key, url in urls.items()}

    monkeypatch.setattr(tfds.download.DownloadManager, 'download_and_extract', download)
    monkeypatch.setattr(tfds_sets, '_builder', lambda name: tfds.builder(name, data_dir=tmp_path / 'tfds'))
    monkeypatch.setattr(tfds_sets, '_check_reachable', lambda *_: None)
    tfds.disable_progress_bar()
    yield tmp_path
    tfds.enable_progress_bar()


def test_tfds_gives_the_same_questions_as_the_files(tfds_directory):
    for version, version_2 in (('v1.1', False), ('v2.0', True)):
        for split, name in (('train', 'train'), ('validation', 'dev')):
            from_file = squad.read(tfds_directory / f'{name}-{version}.json')
            found = squad.read(f'tfds:squad/{version}', split)
            assert sorted(found.questions, key=lambda question: question.id) == list(from_file.questions)
            assert found.notes == from_file.notes
        assert found.version_2 == version_2
    with pytest.raises(ConfigError, match='squad/v1.1 has no split test; its splits are train, validation'):
        squad.read('tfds:squad/v1.1', 'test')


def test_another_tfds_data_set_is_refused(monkeypatch):
    info = types.SimpleNamespace(features={'text': None}, splits={'train': None})
    monkeypatch.setattr(tfds_sets, 'prepared_builder', lambda name: types.SimpleNamespace(info=info))
    with pytest.raises(ConfigError, match='texts is not SQuAD: it has no feature id, question, context, answers'):
        squad.read('tfds:texts')


# ---- Features -------------------------------------------------------------------------------------------------------


def simple_features(question, tokenizer, max_length, stride, max_query):
    """The rows of one question, token by token: (ids, starts, ends, is_best_window, target)."""
    v = tokenizer.vocabulary
    head = [v.cls_id, *tokenizer.encode(question.question).tolist()[:max_query], v.sep_id, v.sep_id]
    ids, starts, ends = (values.tolist() for values in tokenizer.encode_offsets(question.context))
    windows, start = [], 0
    while True:
        size = min(max_length - len(head) - 1, len(ids) - start)
        windows.append((start, start + size))
        if start + size == len(ids):
            break
        start += min(stride, max(1, size // 2))

    def context_in(window, token):
        start, stop = window
        return min(token - start, stop - 1 - token) + 0.01 * (stop - start) if start <= token < stop else -1

    held = [t for t in range(len(ids)) if question.texts and not question.impossible and starts[t] < ends[t]
            and starts[t] < question.starts[0] + len(question.texts[0]) and ends[t] > question.starts[0]]  # fmt: skip
    for start, stop in windows:
        best = [
            max(range(len(windows)), key=lambda w: context_in(windows[w], t)) == windows.index((start, stop))
            for t in range(start, stop)
        ]
        inside = held and start <= held[0] and held[-1] < stop
        target = [len(head) + held[0] - start, len(head) + held[-1] - start] if inside else [0, 0]
        yield [*head, *ids[start:stop], v.sep_id], starts[start:stop], ends[start:stop], best, target


@pytest.mark.parametrize(('max_length', 'stride', 'max_query'), [(384, 128, 64), (40, 9, 12), (30, 50, 5), (26, 1, 0)])
def test_features_are_those_of_the_simple_form(tokenizer, max_length, stride, max_query):
    questions = [*make_questions(), *make_questions(1, cut=2)]
    made = squad_features.features(questions, tokenizer, max_length, stride, max_query, for_training=False)
    rows = [
        (index, *row)
        for index, question in enumerate(questions)
        for row in simple_features(question, tokenizer, max_length, stride, max_query)
    ]
    assert len(made) == len(rows) == len(made.question_W) and max(map(len, made.ids)) <= max_length
    assert (
        made.question_W.dtype == made.context_start_W.dtype == made.targets_Wx2.dtype == made.ids[0].dtype == np.int32
    )
    for w, (index, ids, starts, ends, best, target) in enumerate(rows):
        assert made.question_W[w] == index and made.ids[w].tolist() == ids
        assert made.starts[w].tolist() == starts and made.ends[w].tolist() == ends
        assert made.is_best_window[w].tolist() == best and made.targets_Wx2[w].tolist() == target
        assert made.context_start_W[w] == len(ids) - 1 - len(starts)
    if max_length == 40:
        assert (made.targets_Wx2 > 0).any() and len(rows) > 2 * len(questions)


@settings(deadline=None)
@given(length=st.integers(0, 60), room=st.integers(1, 30), stride=st.integers(1, 40))
def test_each_token_has_one_best_window(length, room, stride):
    bounds = squad_features.window_bounds(length, room, stride)
    times = np.zeros(length, int)
    for (start, stop), best in zip(bounds, squad_features.best_windows(bounds), strict=True):
        assert stop - start <= room and len(best) == stop - start
        times[start:stop] += best
    assert (times == 1).all() and bounds[-1][1] == length
    short = max(1, room - max(1, room // 2))  # an answer of so many tokens lies whole in a window
    assert all(any(b <= s and s + short <= e for b, e in bounds) for s in range(length - short + 1))


def test_a_longer_window_gives_more_context():
    """Token 275 has 24 tokens on its smaller side in a window of 300, and 25 in one of 151: 24 + 3 > 25 + 1.51."""
    first, second = squad_features.best_windows([(0, 300), (250, 401)])
    assert first[275] and not second[25] and not first[276] and second[26]


def test_what_teaches_nothing_is_left_out_of_training(tokenizer):
    questions = [
        Question('right', 'the model', 'the model reads', ('reads',), (10,)),
        Question('gone', 'the model', 'the model reads', ('text',), (-1,)),
        Question('second', 'the model', 'the model reads', ('text', 'model'), (-1, 4)),
        Question('unknown', 'the model', 'the model reads'),
        Question('impossible', 'the model', 'the model reads', impossible=True),
        Question('empty', 'the model', '  ', impossible=True),
    ]
    made = squad_features.features(questions, tokenizer, max_length=100, max_query=2)
    assert made.question_W.tolist() == [0, 2, 4] and (made.targets_Wx2.all(1) == [True, True, False]).all()
    assert made.notes == {
        'questions left out, because their context is empty or does not contain any of their answers': 3
    } | {note: 3 for note in made.notes if 'longer than 2 tokens' in note}
    made = squad_features.features(questions, tokenizer, for_training=False)
    assert made.question_W.tolist() == [0, 1, 2, 3, 4, 5] and made.targets_Wx2[1].tolist() == [0, 0]
    assert len(squad_features.features(questions[1:2], tokenizer)) == 0


def test_a_row_without_room_is_refused(tokenizer):
    for keys in ({'max_length': 68}, {'stride': 0}):
        with pytest.raises(ConfigError, match='no room for the context: max_length must be greater than max_query'):
            squad_features.features(make_questions(count=1), tokenizer, **keys)


# ---- Answers --------------------------------------------------------------------------------------------------------


def brute_force(made, questions, start_logits, end_logits, n_best, max_answer, version_2):
    """All spans of all windows of each question, sorted: id → [(text, start_logit, end_logit)], and the odds."""
    answers, odds = collections.defaultdict(list), {}
    for index, question in enumerate(questions):
        spans, nulls = [], []
        for w in np.flatnonzero(made.question_W == index):
            nulls.append((start_logits[w][0] + end_logits[w][0], '', start_logits[w][0], end_logits[w][0]))
            for i in range(len(made.starts[w])):
                for j in range(i, min(i + max_answer, len(made.starts[w]))):
                    start, end = (
                        logits[w][made.context_start_W[w] + at] for logits, at in ((start_logits, i), (end_logits, j))
                    )
                    text = question.context[made.starts[w][i] : made.ends[w][j]]
                    if made.is_best_window[w][i] and text:
                        spans.append((start + end, text, start, end))
        spans.sort(key=lambda span: -span[0])
        best, null = spans[0][0] if spans else -1e9, min(nulls)
        odds[question.id] = null[0] - best
        if version_2:
            spans = sorted([*spans, null], key=lambda span: -span[0])
        for _, *entry in spans:
            if len(answers[question.id]) < n_best and entry[0] not in [text for text, *_ in answers[question.id]]:
                answers[question.id].append(tuple(entry))
        if version_2 and not any(text == '' for text, *_ in answers[question.id]):
            answers[question.id].append(null[1:])
    return answers, odds


def assert_best_of_all(questions, tokenizer, draw, n_best, max_answer, in_order=True):
    made = squad_features.features(questions, tokenizer, 40, 10, 12, for_training=False)
    logits = [[draw(sign) for _ in made.ids] for sign in (1, -1)]
    for version_2 in (False, True):
        found = squad_answers.decode(made, questions, *logits, n_best, max_answer, 0.25, version_2)
        wanted, odds = brute_force(made, questions, *logits, n_best, max_answer, version_2)
        for question in questions:
            listed = found.n_best[question.id]
            scores = [entry['start_logit'] + entry['end_logit'] for entry in listed]
            np.testing.assert_allclose(scores, [start + end for _, start, end in wanted[question.id]])
            probabilities = [entry['probability'] for entry in listed]
            np.testing.assert_allclose(probabilities, np.exp(scores) / np.exp(scores).sum())
            if in_order:
                assert [entry['text'] for entry in listed] == [text for text, *_ in wanted[question.id]]
            assert found.predictions[question.id] in question.context
            if version_2:
                assert found.null_odds[question.id] == pytest.approx(odds[question.id])
                assert (found.predictions[question.id] == '') == (odds[question.id] > 0.25)
            else:
                assert found.predictions[question.id] == listed[0]['text'] and not found.null_odds


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), n_best=st.integers(1, 8), max_answer=st.integers(1, 12))
def test_answers_are_the_best_of_all_spans(tokenizer, seed, n_best, max_answer):
    questions, rng = make_questions(seed, count=4, longest=30), np.random.default_rng(seed)
    assert_best_of_all(questions, tokenizer, lambda _: rng.normal(size=40), n_best, max_answer)
    # Among equal scores, None may stand elsewhere.
    assert_best_of_all(
        questions, tokenizer, lambda _: rng.integers(-1, 2, 40) * 1.0, n_best, max_answer, in_order=False
    )


def test_equal_texts_do_not_crowd_out_others(tokenizer):
    questions, rng = [Question('a', 'the model', 'the ' * 150)], np.random.default_rng(0)
    # The longer a span, the lower its score: those of one word, all equal, come first.
    assert_best_of_all(questions, tokenizer, lambda sign: rng.normal(size=40) * 0.1 + sign * np.arange(40), 9, 9)


def perfect_logits(made):
    """Logits that point at the targets."""
    rng = np.random.default_rng(0)
    logits = [[rng.uniform(0, 1, len(ids)).astype(np.float32) for ids in made.ids] for _ in range(2)]
    for w, (first, last) in enumerate(made.targets_Wx2):
        logits[0][w][first], logits[1][w][last] = (9, 9) if first else (4, 4)
    return logits


def test_perfect_logits_answer_perfectly(tokenizer):
    questions = make_questions(count=200)
    made = squad_features.features(questions, tokenizer, 50, 16, 12, for_training=False)
    held = set(made.question_W[made.targets_Wx2[:, 0] > 0]) | {i for i, q in enumerate(questions) if q.impossible}
    found = squad_answers.decode(made, questions, *perfect_logits(made), max_answer=50, version_2=True)
    reached = [question for i, question in enumerate(questions) if i in held]
    assert len(reached) > 190
    assert squad_metrics.evaluate_2(reached, found.predictions)['exact'] == 100.0
    for question in reached:
        assert question.impossible or found.predictions[question.id] == question.texts[0]


def test_what_has_no_span_has_no_answer(tokenizer):
    questions = [Question('a', 'the model', '  '), Question('b', 'the model', 'reads words')]
    made = squad_features.features(questions, tokenizer, for_training=False)
    logits = [np.zeros(384)] * 2
    found = squad_answers.decode(made, questions, logits, logits, version_2=True)
    assert found.predictions['a'] == '' and 'reads'.startswith(found.predictions['b']) and found.predictions['b']
    assert found.null_odds == {'a': squad_answers.NO_SPAN_ODDS, 'b': 0.0}
    found = squad_answers.decode(made, questions, logits, logits)
    assert found.predictions['a'] == '' and found.n_best['a'] == [
        {'text': '', 'probability': 1.0, 'start_logit': 0.0, 'end_logit': 0.0}
    ]


def test_logits_that_do_not_fit_are_refused(tokenizer):
    questions = make_questions(count=3)
    made = squad_features.features(questions, tokenizer, for_training=False)
    right = [np.zeros(len(ids)) for ids in made.ids]
    with pytest.raises(ValueError, match='2 and 3 rows of logits for 3 rows'):
        squad_answers.decode(made, questions, right[:2], right)
    with pytest.raises(ValueError, match='row 1: some logits of its .* tokens of context are NaN'):
        squad_answers.decode(made, questions, right, [right[0], right[1] * np.nan, right[2]])
    with pytest.raises(ValueError, match='some questions have no row'):
        squad_answers.decode(made, [*questions, questions[0]], right, right)


def test_files_are_written_in_the_official_form(tokenizer, tmp_path):
    questions = make_questions(count=5)
    made = squad_features.features(questions, tokenizer, for_training=False)
    logits = [np.random.default_rng(i).normal(size=(2, len(ids))) for i, ids in enumerate(made.ids)]
    for version_2, names in (
        (False, {'predictions', 'nbest_predictions'}),
        (True, {'predictions', 'nbest_predictions', 'null_odds'}),
    ):
        found = squad_answers.decode(made, questions, *zip(*logits), version_2=version_2)
        squad_answers.write(found, tmp_path / str(version_2))
        written = {path.stem: json.loads(path.read_text()) for path in (tmp_path / str(version_2)).iterdir()}
        assert set(written) == names
        assert written['predictions'] == found.predictions and written['nbest_predictions'] == found.n_best
        assert written.get('null_odds', {}) == found.null_odds


@pytest.mark.skipif(not REAL_DATA.exists(), reason='no SQuAD beside the repository')
def test_real_answers_lie_on_tokens(tmp_path):
    with lzma.open(REAL_DATA) as file, tarfile.open(fileobj=file, mode='r|') as archive:
        member = next(member for member in archive if member.name.endswith('dev-v1.1.json'))
        (tmp_path / 'dev-v1.1.json').write_bytes(archive.extractfile(member).read())
    found = squad.read(tmp_path / 'dev-v1.1.json')
    assert len(found.questions) == 10_570 and not found.version_2 and not found.notes
    questions = found.questions[::25]
    tokenizer = train_tokenizer((question.context for question in questions), 2000)
    made = squad_features.features(questions, tokenizer, for_training=False)
    answers = squad_answers.decode(made, questions, *perfect_logits(made), max_answer=200)
    numbers = squad_metrics.evaluate_1(questions, answers.predictions)
    assert numbers['exact_match'] >= 98 and numbers['f1'] >= 98
    for question in questions:
        assert answers.predictions[question.id] in question.context
