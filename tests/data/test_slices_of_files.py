"""Every document belongs to one slice; slices depend on the input alone; samples of them do not depend on workers."""

import collections
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlm_jax import config as config_lib
from mlm_jax.config import ConfigError
from mlm_jax.data import corpora, held_out, reading, sampling, slices, workers

LARGEST = 2**64 - 1
CASES = settings(max_examples=60, deadline=None, database=None)


def documents(part):
    return [text for piece in part.parts for text in part.documents(piece)]


def write(path, texts):
    path.write_text(''.join(json.dumps({'text': text}) + '\n' for text in texts))
    return path


@pytest.mark.parametrize('slice_bytes', [1, 30, 100, 1000, 10**6])
def test_each_document_is_in_one_slice(tmp_path, slice_bytes):
    texts = [[f'{name} {i} ' + 'x' * (i % 5) for i in range(count)] for name, count in (('a', 30), ('b', 0), ('c', 3))]
    files = [write(tmp_path / f'{i}.jsonl', some) for i, some in enumerate(texts)]
    found = slices.divide_files('jsonl', files, 'text', slice_bytes)
    assert sorted(text.decode() for part in found for text in documents(part)) == sorted(itertools.chain(*texts))
    assert all(part.num_bytes <= slice_bytes for part in found if len(part.parts) > 1)
    sizes = sum(file.stat().st_size for file in files)
    assert sum(part.num_bytes for part in found) == sizes and len(found) <= 2 * sizes // slice_bytes + 1
    assert found == slices.divide_files('jsonl', files, 'text', slice_bytes)


def test_the_first_slices_are_from_everywhere(tmp_path):
    path = write(tmp_path / 'a.jsonl', [str(i) for i in range(2000)])
    found = slices.divide_files('jsonl', [path], 'text', 100)
    numbers = [part.parts[0].index for part in found]
    assert sorted(numbers) == list(range(len(found))) and len(found) > 200
    quarter = len(found) // 4
    assert 0.3 < np.mean(numbers[:quarter]) / len(found) < 0.7
    assert min(numbers[:quarter]) < quarter / 4 and max(numbers[:quarter]) > len(found) - quarter / 4


def test_a_large_corpus_has_larger_slices(tmp_path, monkeypatch):
    monkeypatch.setattr(slices, 'SLICE_BYTES', 10)
    monkeypatch.setattr(slices, 'MAX_SLICES', 8)
    files = [write(tmp_path / f'{i}.jsonl', ['some text'] * 20) for i in range(3)]
    assert 8 <= len(slices.divide_files('jsonl', files, 'text')) <= 16


@pytest.mark.parametrize('kind, size', [('jsonl', 3), ('files', 1)])
def test_the_beginning_of_a_large_slice_is_a_part_of_it(tmp_path, monkeypatch, kind, size):
    path = write(tmp_path / 'a.jsonl', [f'some text {i}' for i in range(100)])
    found = slices.divide_files(kind, [path], 'text', path.stat().st_size // size)
    assert all(slices.beginning(part) == part for part in found)
    monkeypatch.setattr(slices, 'SLICE_BYTES', path.stat().st_size // 9)
    for part in found:
        begin = documents(slices.beginning(part))
        assert begin == documents(part)[: len(begin)] and len(begin) > 0
        assert len(begin) < 15 or kind == 'files'


# ---- Samples --------------------------------------------------------------------------------------------------------


def sample_of(tmp_path, texts, limit, name='sample', slice_bytes=800):
    (tmp_path / name).mkdir()
    path = write(tmp_path / 'a.jsonl', texts)
    corpus = corpora.Corpus(slices.divide_files('jsonl', [path], 'text', slice_bytes), [], 10.0)
    jobs = sampling.take(corpus, tmp_path / name, limit, workers.Processes(1))
    return list(sampling.texts(jobs, limit)), corpus, jobs


def test_a_small_corpus_is_used_whole(tmp_path):
    texts = [f'text {i}' for i in range(300)]
    sample, corpus, jobs = sample_of(tmp_path, texts, sum(map(len, texts)))
    threshold = corpus.threshold
    assert len(jobs) == len(corpus.train) > 5
    assert sorted(sample) == sorted(t for t in texts if reading.document_hash(t.encode()) >= threshold)
    assert 0 < 300 - len(sample) < 60


def test_a_sample_is_a_part_of_each_slice(tmp_path, monkeypatch):
    texts = [f'text number {i:05d}' for i in range(1000)]
    sample, _, jobs = sample_of(tmp_path, texts, 5000)
    assert 4500 < sum(map(len, sample)) < 5000 + len(jobs) * 20
    numbers = np.array([int(text[-5:]) for text in sample])
    assert np.bincount(numbers // 100, minlength=10).min() > 10, 'from everywhere'
    assert len(set(sample)) == len(sample)
    monkeypatch.setattr(sampling, 'MAX_SLICES', 20)
    fewer, _, jobs = sample_of(tmp_path, texts, 500, 'fewer')
    assert len(jobs) == 20 and 400 < sum(map(len, fewer)) < 500 + 20 * 20


def test_the_largest_document_of_a_sample_may_exceed_its_limit(tmp_path):
    sample, _, _ = sample_of(tmp_path, ['x' * 5000, *map(str, range(50))], 100, slice_bytes=10**6)
    assert 100 <= sum(map(len, sample)) <= 5100


def test_most_documents_of_a_sample_need_the_same_repair(tmp_path):
    files = [tmp_path / f'{i}' for i in range(30)]
    for number, file in enumerate(files):
        file.write_bytes(b'caf\xe9 %d' % number)
    corpus = corpora.Corpus(slices.divide_files('files', files, '', 30), [], 10.0)
    assert len(corpus.train) > 5
    with pytest.raises(ConfigError, match='the corpus: 30 of 30 documents with invalid UTF-8'):
        sampling.take(corpus, tmp_path, 1000, workers.Processes(1))


# ---- Held-out documents ---------------------------------------------------------------------------------------------


@CASES
@given(
    hashes=st.lists(st.lists(st.integers(0, LARGEST) | st.sampled_from([0, LARGEST, 2**63]), max_size=8), max_size=3),
    count=st.integers(1, 5), data=st.data(),
)  # fmt: skip
def test_runs_divide_documents_by_their_hashes(tmp_path_factory, hashes, count, data):
    path, dtype = tmp_path_factory.mktemp('runs') / 'a', np.dtype(data.draw(st.sampled_from(['uint16', 'uint32'])))
    expected, runs, number = [], [], 0
    with open(path, 'wb') as file:
        for some in hashes:
            texts = [np.arange(number + i, number + i + 1 + data.draw(st.integers(0, 3))) for i in range(len(some))]
            number += len(some)
            expected += sorted(((key, i, text.tolist()) for i, (key, text) in enumerate(zip(some, texts))))
            runs.append(held_out.write_run(file, some, texts, dtype))
    found = []
    for part in range(count):
        low, high = part * 2**64 // count, (part + 1) * 2**64 // count
        keys, texts = held_out.read(path, runs, low, high, dtype)
        assert all(low <= key < high for key in keys) and all(text.dtype == dtype for text in texts)
        found += [(key, text.tolist()) for key, text in zip(keys, texts, strict=True)]
    assert collections.Counter(map(repr, found)) == collections.Counter(repr((key, text)) for key, _, text in expected)


def test_the_configuration_divides_a_corpus(tmp_path):
    data = config_lib.default_config().data
    write(tmp_path / 'a.jsonl', map(str, range(100)))
    data.update(corpus=f'jsonl:{tmp_path}/a.jsonl', validation_percent=0.0)
    corpus = corpora.open_corpus(data, tmp_path)
    assert not corpus.has_held_out
    with pytest.raises(ConfigError, match='raise data.validation_percent, or name a data.validation_corpus'):
        corpora.check_division(100, 0, corpus)
    data.validation_percent = 25.0
    corpus = corpora.open_corpus(data, tmp_path)
    assert corpus.has_held_out and corpus.threshold == 2**62
    write(tmp_path / 'b.jsonl', map(str, range(100)))
    data.validation_corpus = f'jsonl:{tmp_path}/b.jsonl'
    corpus = corpora.open_corpus(data, tmp_path)
    assert corpus.threshold == 0 and [part.path for each in corpus.held_out for part in each.parts] == [
        f'{tmp_path}/b.jsonl'
    ]
