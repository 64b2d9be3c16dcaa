"""Scaffold splits: whole groups, nothing drawn, the shares of DeepChem."""

import collections

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlm_jax.tasks import scaffolds

# The molecules in the documentation of DeepChem's ScaffoldSplitter.
DOCUMENTED = [
    'CC(C)Cl', 'CCC(C)CO', 'CCCCCCCO', 'CCCCCCCC(=O)OC', 'c3ccc2nc1ccccc1cc2c3', 'Nc2cccc3nc1ccccc1cc23', 'C1CCCCCC1',
]  # fmt: skip


@given(st.lists(st.sampled_from([None, '', *'abcdefgh']), max_size=60))
@settings(max_examples=300, deadline=None)
def test_every_molecule_lands_in_one_set_with_all_of_its_scaffold(names):
    sets = scaffolds.split(names)
    assert list(sets) == ['train', 'validation', 'test']
    placed = [place for places in sets.values() for place in places]
    assert sorted(placed) == [place for place, name in enumerate(names) if name is not None]
    homes = collections.defaultdict(set)
    for split, places in sets.items():
        for place in places:
            homes[names[place]].add(split)
    assert all(len(splits) == 1 for splits in homes.values())
    assert len(sets['train']) <= 0.8 * len(names)
    assert len(sets['validation']) <= 0.9 * len(names)


@given(st.lists(st.sampled_from('abcdefgh'), max_size=60), st.permutations('abcdefgh'))
@settings(max_examples=100, deadline=None)
def test_names_of_scaffolds_do_not_matter(names, others):
    renamed = dict(zip('abcdefgh', others, strict=True))
    assert scaffolds.split(names) == scaffolds.split([renamed[name] for name in names])


def test_frequent_scaffolds_go_first_and_of_equally_frequent_ones_the_later():
    """Ten molecules: 5 of b, then f, e, d, c, a alone, each later than the next."""
    assert scaffolds.split(['a', 'b', 'b', 'b', 'c', 'b', 'd', 'b', 'e', 'f']) == {
        'train': [1, 2, 3, 5, 7, 9, 8, 6],
        'validation': [4],
        'test': [0],
    }


def test_a_scaffold_that_fits_nowhere_is_test_data_and_a_smaller_one_still_trains():
    """Of 12, seven of a fit into 9.6; four of b neither there nor into 10.8 beside them; c does."""
    assert scaffolds.split([*'aaaaaaa', *'bbbb', 'c']) == {
        'train': [0, 1, 2, 3, 4, 5, 6, 11],
        'validation': [],
        'test': [7, 8, 9, 10],
    }
    assert scaffolds.split([*'aaaaaaaaa', 'b'])['validation'] == [*range(9)], 'one group may be larger than the share'


def test_molecules_without_scaffold_count_in_the_shares():
    assert scaffolds.split([*'abcdefgh', None, None])['train'] == [7, 6, 5, 4, 3, 2, 1, 0]


def test_the_documented_example():
    pytest.importorskip('rdkit')
    sets = scaffolds.split([scaffolds.scaffold(smiles) for smiles in DOCUMENTED])
    assert sets['train'] == [0, 1, 2, 3, 6]
    assert sets['validation'] + sets['test'] == [4, 5], 'both are acridines'


def test_scaffolds_are_rings_and_what_links_them():
    pytest.importorskip('rdkit')
    assert scaffolds.scaffold('CCc1ccccc1O') == 'c1ccccc1'
    assert scaffolds.scaffold('CC1=CC=CC=C1') == 'c1ccccc1', 'however it is written'
    assert scaffolds.scaffold('CCc1ccc(CCC2CC2)cc1') == 'c1ccc(CCC2CC2)cc1'
    assert scaffolds.scaffold('CCO') == ''
    assert scaffolds.scaffold('C1CC') is None
    left, right = 'C[C@H]1CC[C@@](F)(c2ccccc2)CC1', 'C[C@@H]1CC[C@](F)(c2ccccc2)CC1'
    assert scaffolds.scaffold(left) == scaffolds.scaffold(right)
