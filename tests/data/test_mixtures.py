"""Mixtures: how often each source comes, where a run goes on, and what data are refused."""

import dataclasses
import fractions
import pathlib
import shutil

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from prepared_rows import write_prepared

from mlm_jax import config as config_lib
from mlm_jax.config import ConfigError, mixture
from mlm_jax.data import cycles, masking_tables, prepared_data
from mlm_jax.data import manifest as manifest_lib
from mlm_jax.data.cycles import Cycle
from mlm_jax.data.joined_rows import InTurn
from mlm_jax.data.mixtures import Mixture, Reader, Reading
from mlm_jax.data.orders import BlockPermutation, Permutation

share_lists = st.lists(st.integers(1, 60), min_size=1, max_size=7)


# ---- How often each source comes -------------------------------------------------------------------------------------


@hypothesis.given(share_lists)
@hypothesis.settings(deadline=None, max_examples=60)
def test_every_prefix_holds_each_source_as_often_as_its_share_within_one_row(shares):
    cycle = Cycle(shares)
    source, number = cycle.locate(np.arange(2 * cycle.length))
    came = np.cumsum(source[:, None] == np.arange(len(shares)), axis=0)
    due = np.arange(1, len(source) + 1)[:, None] * cycle.shares / cycle.length
    assert np.abs(came - due).max() < 1
    assert number.tolist() == (came[np.arange(len(source)), source] - 1).tolist(), 'rows are numbered as they come'
    for stop in (0, 1, cycle.length - 1, cycle.length, cycle.length + 1):
        assert cycle.count(stop).tolist() == np.bincount(source[:stop], minlength=len(shares)).tolist()
    assert [cycle.position_of(s, n) for s, n in zip(source.tolist(), number.tolist())] == list(range(len(source)))


def test_a_longest_cycle_is_made_at_once_and_holds_to_its_shares():
    cycle = Cycle([9000, 500, 300, 199, 1])
    came = np.cumsum(cycle.locate(np.arange(10_000))[0][:, None] == np.arange(5), axis=0)
    assert np.abs(came - np.arange(1, 10_001)[:, None] * cycle.shares / 10_000).max() < 1


def test_shares_are_exact_where_they_can_be():
    weights = [fractions.Fraction(text) for text in ('0.7', '0.3')]
    assert cycles.shares(weights, ['a', 'b']) == (7, 3)
    assert cycles.shares([fractions.Fraction(5), fractions.Fraction(10)], ['a', 'b']) == (1, 2)
    thirds = cycles.shares(cycles.by_size([100_001, 200_003], 1.0), ['a', 'b'])
    assert sum(thirds) == cycles.LONGEST_CYCLE and thirds[0] == pytest.approx(10_000 / 3, abs=1)
    with pytest.raises(ConfigError, match=r'b has a share of 1e-06 of the mixture, too small'):
        cycles.shares([fractions.Fraction(999_999), fractions.Fraction(1)], ['a', 'b'])


def test_temperature_flattens_the_shares():
    sizes = [1_000_000, 10_000]
    assert [float(w) for w in cycles.by_size(sizes, 1.0)] == pytest.approx([1, 0.01])
    assert [float(w) for w in cycles.by_size(sizes, 2.0)] == pytest.approx([1, 0.1])
    assert [float(w) for w in cycles.by_size(sizes, 1e6)] == pytest.approx([1, 1], abs=1e-4)


# ---- The rows of a mixture -------------------------------------------------------------------------------------------


def reading(shares, rows, first=0, consumed=None):
    consumed = consumed or [0] * len(shares)
    readers = [
        Reader(f's{i}', f'f{i}', n, c, i, consumed=k)
        for i, (c, n, k) in enumerate(zip(shares, rows, consumed, strict=True))
    ]
    return Reading(first, tuple(readers))


def mixed(reading, in_blocks=False):
    make = (
        (lambda r: BlockPermutation(r.rows, r.seed(5), 4, 3))
        if in_blocks
        else (lambda r: Permutation(r.rows, r.seed(5)))
    )
    return Mixture(reading, [make(reader) for reader in reading.present])


@hypothesis.given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 25)), min_size=1, max_size=4), st.booleans(), st.data()
)
@hypothesis.settings(deadline=None, max_examples=15)
def test_each_source_is_read_in_its_own_epochs_wherever_reading_begins(sources, in_blocks, data):
    shares, rows = zip(*sources)
    order = mixed(reading(shares, rows), in_blocks)
    num = 3 * sum(rows)
    found = order(np.arange(num))
    ends = np.cumsum(rows)
    for source, (end, size) in enumerate(zip(ends, rows)):
        own = found[(found >= end - size) & (found < end)] - (end - size)
        for epoch in range(len(own) // size):
            assert sorted(own[epoch * size : (epoch + 1) * size]) == list(range(size))
        assert order.epochs(num)[f's{source}'] == pytest.approx(len(own) / size)
    start = data.draw(st.integers(0, num - 1))
    some = np.arange(start, min(num, start + 7))
    assert mixed(reading(shares, rows), in_blocks)(some).tolist() == found[some].tolist()
    if in_blocks:
        spans = [range(*span) for span in order.spans(start, start + len(some)).tolist()]
        assert all(sum(row in span for span in spans) == 1 for row in found[some].tolist())


def test_a_single_directory_is_read_as_it_has_always_been():
    assert np.array_equal(mixed(reading([1], [50]))(np.arange(120)), Permutation(50, 5)(np.arange(120)))


def test_rows_are_named_by_their_source():
    order = mixed(reading([1, 1], [10, 20], first=4))
    names = [f's{int(row >= 10)} {row - 10 * (row >= 10)}' for row in order(np.arange(4, 9)).tolist()]
    assert order.describe(np.arange(4, 9)) == names and names[0][:3] == 's0 '
    assert order.describe(np.arange(2, 6)) == ['read before the mixture changed']
    assert mixed(reading([1], [10])).describe(np.array([3])) == [str(Permutation(10, 5)(np.array([3]))[0])]


# ---- Going on --------------------------------------------------------------------------------------------------------


def test_unchanged_shares_go_on_as_if_nothing_had_happened():
    before, notes = reading([7, 3], [100, 50]), []
    assert before.resumed(reading([7, 3], [100, 50]), 33, notes.append) == before
    assert notes == []
    assert Reading.from_json(before.to_json()) == before


def test_after_new_weights_each_source_goes_on_where_it_stopped():
    before, notes = reading([7, 3], [100, 50]), []
    after = before.resumed(reading([1, 1], [100, 50]), 40, notes.append)
    assert [reader.consumed for reader in after.readers] == [28, 12] and after.first_example == 40
    assert notes == [
        'mixture: s0 70 % of the rows before, 50 % now; 28 of its rows have been read',
        'mixture: s1 30 % of the rows before, 50 % now; 12 of its rows have been read',
    ]
    one, two = mixed(before), mixed(after)
    read = np.concatenate([one(np.arange(40)), two(np.arange(40, 112))])
    first = read[read < 100]
    assert len(first) == 28 + 36 and len(set(first)) == len(first), 'no row comes twice in an epoch'
    second = read[read >= 100]
    assert sorted(second[:48]) == sorted(set(second[:48]))
    again = after.resumed(reading([1, 1], [100, 50]), 90, notes.append)
    assert again == after and len(notes) == 2
    third = after.resumed(reading([1, 3], [100, 50]), 112, notes.append)
    assert [reader.consumed for reader in third.readers] == [28 + 36, 12 + 36]


def test_windows_stay_as_they_were_when_shares_change():
    """The order of a source within an epoch depends on them."""
    before = Reading(
        0, tuple(dataclasses.replace(r, window=w) for r, w in zip(reading([3, 1], [90, 90]).readers, (6, 2)))
    )
    now = Reading(0, tuple(dataclasses.replace(r, window=4) for r in reading([1, 1], [90, 90]).readers))
    assert [reader.window for reader in before.resumed(now, 20, lambda _: None).readers] == [6, 2]


def test_sources_may_come_and_go_and_are_known_by_their_rows():
    before = reading([1, 1], [100, 50])
    new = Reader('new', 'f9', 30, 1, 0)
    moved = dataclasses.replace(before.readers[1], name='moved', share=3, number=1)
    after = before.resumed(Reading(0, (new, moved)), 20, lambda _: None)
    assert [(r.name, r.share, r.number, r.consumed) for r in after.readers] == [
        ('new', 1, 2, 0), ('moved', 3, 1, 10), ('s0', 0, 0, 10),
    ]  # fmt: skip
    twin = dataclasses.replace(before.readers[0], name='twin', number=2)
    twins = before.resumed(Reading(0, (*before.readers, twin)), 20, lambda _: None)
    assert [(r.name, r.number, r.consumed) for r in twins.readers] == [('s0', 0, 10), ('s1', 1, 10), ('twin', 2, 0)]
    back = after.resumed(before, 28, lambda _: None)
    assert [(r.name, r.number, r.consumed) for r in back.readers] == [('s0', 0, 10), ('s1', 1, 16), ('new', 2, 2)]


def test_other_rows_under_the_name_of_a_source_are_refused():
    other = reading([1, 1], [100, 60])
    other = Reading(0, (other.readers[0], dataclasses.replace(other.readers[1], fingerprint='changed')))
    with pytest.raises(ConfigError, match=r's1 in the mixture are others .* another workdir'):
        reading([1, 1], [100, 50]).resumed(other, 20, lambda _: None)


def test_a_single_directory_may_become_a_mixture_and_back():
    old = Reading(0, (Reader('s0', '', 0, 1, 0),))  # a checkpoint of an earlier version
    mix = old.resumed(reading([1, 1], [100, 50]), 30, lambda _: None)
    assert [(r.number, r.consumed) for r in mix.readers] == [(0, 30), (1, 0)]
    alone = mix.resumed(reading([1], [100]), 50, lambda _: None)
    assert [(r.share, r.consumed) for r in alone.readers] == [(1, 40), (0, 10)]
    notes = []
    assert reading([1], [100]).resumed(Reading(0, (Reader('else', 'x', 70, 1, 0),)), 9, notes.append).first_example == 0
    assert notes == ['the rows of else are others than those with which this run began']


# ---- What data.directory says ----------------------------------------------------------------------------------------


def test_directories_and_weights_are_read():
    one, two = mixture.parse('data/en:0.7, data/de:3e-1')
    assert (one.directory, one.name, one.weight) == ('data/en', 'en', fractions.Fraction(7, 10))
    assert (two.directory, two.name, two.weight) == ('data/de', 'de', fractions.Fraction(3, 10))
    assert [source.weight for source in mixture.parse('a,b')] == [None, None]
    assert [source.name for source in mixture.parse('en/rows,de/rows')] == ['en_rows', 'de_rows']
    assert [source.directory for source in mixture.parse('data/a:0.7')] == ['data/a:0.7'], 'one directory'


def test_a_directory_with_a_comma_in_its_name_stays_one(tmp_path):
    (tmp_path / 'a,b').mkdir()
    assert len(mixture.parse(str(tmp_path / 'a,b'))) == 1
    (tmp_path / 'v:2').mkdir()
    assert [(s.name, s.weight) for s in mixture.parse(f'{tmp_path}/v:2,{tmp_path}/w')] == [('v-2', None), ('w', None)]


@pytest.mark.parametrize(
    'directory, message',
    [
        ('a:0.7,b', 'gives b no weight'),
        ('a:0.7,b:0', 'weight 0 of b must be a number above 0'),
        ('a:0.7,b:-1', 'weight -1 of b'),
        ('a:0.7,b:1.2.3', 'weight 1.2.3 of b'),
        ('a,a', 'twice'),
        ('a,', 'lacks a directory'),
        ('a,:0.3', 'lacks a directory'),
        ('hf://x/a:1,b:1', 'is a URL'),
    ],
)
def test_odd_mixtures_are_refused(directory, message):
    config = config_lib.default_config()
    config.data.directory = directory
    with pytest.raises(ConfigError, match=message):
        config_lib.check(config)


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'data.mixture_temperature': '5'}, 'temperature=5.0 decides the shares of a mixture without weights'),
        ({'masking.unit': 'pmi'}, 'masking.unit=pmi takes collocations'),
        ({'masking.strategy': 'least_masked'}, 'masks that follow the visits'),
        ({'masking.static_masks': '2'}, 'masks that follow the visits'),
    ],
)
def test_what_a_mixture_cannot_have_is_refused(changes, message):
    config = config_lib.default_config()
    config_lib.apply_overrides(config, {'data.directory': 'a:0.5,b:0.5', **changes})
    with pytest.raises(ConfigError, match=message):
        config_lib.check(config)
    if 'data.mixture_temperature' in changes:
        config.data.directory = 'a,b'
    else:
        config.data.directory = 'a'
    config_lib.check(config)


# ---- Prepared directories --------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def directories(tmp_path_factory) -> pathlib.Path:
    root = tmp_path_factory.mktemp('mixture')
    write_prepared(root / 'en', documents=120)
    write_prepared(root / 'de', documents=40)
    return root


def data_of(root, text, **changes):
    config = config_lib.default_config()
    config.data.update(directory=','.join(f'{root}/{part}' for part in text.split(',')), **changes)
    return prepared_data.load(config.data)


def test_the_data_of_a_mixture_are_those_of_its_directories(directories):
    data = data_of(directories, 'en:0.75,de:0.25')
    assert data.weights == {'en': 0.75, 'de': 0.25}
    en, de = (manifest_lib.load(directories / name) for name in ('en', 'de'))
    assert data.split('train').rows == en.split('train').rows + de.split('train').rows
    rows = data.training_rows()
    last = len(rows) - 1
    assert (
        rows.read(np.array([last, 0])).tolist()
        == np.concatenate(
            [data.shards('train')['de'].read(np.array([de.split('train').rows - 1])), rows.read(np.array([0]))]
        ).tolist()
    )
    assert rows.read_span(last - 2, last + 1).tolist() == rows.read(np.arange(last - 2, last + 1)).tolist()
    held_out = data.held_out_rows()
    assert isinstance(held_out, InTurn) and len(held_out) > 4
    source, number = Cycle([3, 1]).locate(np.arange(len(held_out)))
    for j, (s, n) in enumerate(zip(source.tolist(), number.tolist())):
        expected = data.shards('validation')[('en', 'de')[s]].read(np.array([n]))[0]
        assert held_out.read(np.array([j]))[0].tolist() == expected.tolist()
    by_size = data_of(directories, 'en,de').weights
    assert by_size['en'] == pytest.approx(en.split('train').rows / data.split('train').rows, abs=1e-4)
    assert data_of(directories, 'en,de', mixture_temperature=1e6).weights['en'] == pytest.approx(0.5, abs=1e-3)


def test_directories_that_do_not_go_together_are_refused_by_name(directories, tmp_path):
    write_prepared(tmp_path / 'longer', length=40)
    with pytest.raises(ConfigError, match=r'sequence_length: 32 in .*/en, 40 in .*/longer'):
        data_of(directories, f'en,../{"../" * len(directories.parts)}{tmp_path}/longer')
    copy = tmp_path / 'copy'
    shutil.copytree(directories / 'de', copy)
    manifest = dataclasses.replace(manifest_lib.load(copy), tokenizer_sha256='f' * 64, packing='one_per_row')
    manifest_lib.save(manifest, copy)
    config = config_lib.default_config()
    config.data.directory = f'{directories}/en,{copy}'
    with pytest.raises(
        ConfigError, match=r'(?s)SHA-256 of the tokenizer.*data.packing: documents in .*/en, one_per_row'
    ):
        prepared_data.load(config.data)


def test_counts_are_mixed_by_weight(directories, tmp_path):
    config = config_lib.default_config()
    config.masking.update(strategy='weighted', unit='token')
    found = []
    for name in ('en', 'de'):
        shutil.copytree(directories / name, tmp_path / name)
        manifest = manifest_lib.load(tmp_path / name)
        counts = np.full(64, 3 if name == 'en' else 0)
        counts[10] = 0 if name == 'en' else 500
        np.savez(tmp_path / name / 'tables.npz', counts=counts)
        found.append((tmp_path / name, manifest))
    mixed = masking_tables.load(config.masking, found, [0.25, 0.75]).token_weights
    total = 63 * 3 + 500
    assert mixed[10] == pytest.approx(1 / np.sqrt(0.75 * total + 1), rel=1e-5)
    assert mixed[11] == pytest.approx(1 / np.sqrt(0.25 * total / 63 + 1), rel=1e-5)
