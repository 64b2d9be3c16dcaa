"""SMILES: every character in exactly one token, there and back; what is none is counted; molecules written anew."""

import collections
import json
import shutil
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlm_jax import config as config_lib
from mlm_jax import prepare
from mlm_jax.config import ConfigError
from mlm_jax.data import masking_tables, molecules, smiles
from mlm_jax.data.shards import Shards
from mlm_jax.data.tokenizers import Tokenizer
from mlm_jax.files import text_files

MOLECULES = [
    'CC(=O)Oc1ccccc1C(=O)O',
    'CN1C=NC2=C1C(=O)N(C(=O)N2C)C',
    'C[C@H](N)C(=O)O',
    'OC[C@@H]1O[C@H](O)[C@H](O)[C@@H](O)[C@@H]1O',
    'Clc1ccc(Br)cc1I',
    '[Na+].[Cl-]',
    'F/C=C/F',
    'N#N',
    'c1ccc2c(c1)[nH]c1ccccc12',
    '[13CH4]',
    'CC[N+](C)(C)[O-]',
    'O=S(=O)(O)c1cccs1',
    'F\\C=C/Cl',
    'c1cnccn1',
    'C1C2CC3CC1CC(C2)C3',
]
ELEMENTS = ('C', 'N', 'Fe', 'c', 'n', 'se', 'as', '*', '#6', 'Cl', 'H', 'U')
BRACKET_ATOMS = st.builds(
    '[{}{}{}{}{}{}]'.format,
    st.sampled_from(('', '2', '13', '235')),
    st.sampled_from(ELEMENTS),
    st.sampled_from(('', '@', '@@', '@TH1', '@OH30')),
    st.sampled_from(('', 'H', 'H3')),
    st.sampled_from(('', '+', '-', '+2', '-3', '++', '---')),
    st.sampled_from(('', ':1', ':12')),
)
OTHERS = ('Cl', 'Br', '->', '<-', '%10', '%99', '%(123)', *'BCNOPSFI*bcnops0123456789()=#$:~/\\.-')
TOKENS = st.one_of(st.sampled_from(OTHERS), BRACKET_ATOMS)


@pytest.fixture(scope='module')
def tokenizer():
    return smiles.train(MOLECULES, 64)


@given(st.lists(TOKENS, min_size=1, max_size=40))
@settings(max_examples=300, deadline=None)
def test_tokens_are_found_again_and_make_up_the_text(tokens):
    text = ''.join(tokens)
    assert smiles.is_smiles(text) and smiles.split(text) == tokens
    every = smiles.train([text], len(set(tokens)) + 5)
    assert every.decode(every.encode(text)) == text
    assert every.pieces(every.encode(text)) == tokens


@given(st.one_of(st.text(max_size=60), st.text('CNclBr[]()@+-=#%0123456789Hn \n', max_size=60)))
@settings(max_examples=500, deadline=None)
def test_every_character_is_accounted_for(text):
    tokens = smiles.split(text)
    assert ''.join(tokens) == text
    assert smiles.is_smiles(text) == (bool(tokens) and all(smiles.is_smiles(token) for token in tokens))
    assert all(smiles.is_smiles(token) or len(token) == 1 for token in tokens)


@pytest.mark.parametrize('text', ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'C[MASK]C', '[unused70]', '<s>'])
def test_special_symbols_in_text_are_never_special(tokenizer, text):
    assert not smiles.is_smiles(text)
    assert set(tokenizer.encode(text).tolist()) & set(tokenizer.vocabulary.special_ids) <= {tokenizer.unknown_id}


@pytest.mark.parametrize(
    'text', ['', 'CC C', 'CxC', 'C[NH', 'C>>N', 'smiles', 'C%1C', '[]', '[C@@@]', 'Ünïcödé', 'C１C']
)
def test_what_is_no_smiles(text):
    assert not smiles.is_smiles(text)


def test_the_vocabulary_is_that_of_the_text_in_any_order_and_the_rest_unused(tokenizer):
    again = smiles.train(MOLECULES[::-1], 64)
    assert again.model == tokenizer.model
    v = tokenizer.vocabulary
    found = {token for text in MOLECULES for token in smiles.split(text)}
    assert v.size == 64 and v.num_ordinary == len(found)
    assert set(tokenizer.pieces(np.flatnonzero(~np.isin(np.arange(64), v.special_ids)))) == found
    assert tokenizer.pieces(range(5)) == ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
    assert (v.pad_id, v.cls_id, v.sep_id, v.mask_id) == (0, 2, 3, 4)
    counts = collections.Counter(token for text in MOLECULES for token in smiles.split(text))
    times = [counts[piece] for piece in tokenizer.pieces(range(5, 5 + v.num_ordinary))]
    assert times == sorted(times, reverse=True)
    assert not masking_tables.word_starts(tokenizer).any()


def test_texts_of_any_form_have_the_same_ids(tokenizer):
    for text, ids in zip(MOLECULES, tokenizer.encode_batch([text.encode() for text in MOLECULES]), strict=True):
        assert ids.dtype == np.int32 and ids.ndim == 1
        assert ids.tolist() == tokenizer.encode(f' {text}\n').tolist()
        assert tokenizer.decode([2, *ids, 3, 0]) == text
    assert tokenizer.encode('').shape == (0,)


def test_rare_tokens_give_way_and_become_unknown():
    small = smiles.train(['CCCCNO', 'CCNF'], 5 + 2)
    assert small.pieces(small.encode('CNO')) == ['C', 'N', '[UNK]']
    assert small.decode(small.encode('CNO')) == 'CN'


def test_a_mask_stands_for_a_token(tokenizer):
    ids = tokenizer.encode_masked('CC(=O)[MASK]c1ccccc1[MASK]', '[MASK]')
    assert tokenizer.pieces(ids) == [*smiles.split('CC(=O)'), '[MASK]', *smiles.split('c1ccccc1'), '[MASK]']
    assert ids.dtype == np.int32


def test_the_file_is_told_from_other_tokenizers(tokenizer, tmp_path):
    path = tmp_path / 'tokenizer.model'
    path.write_bytes(tokenizer.model)
    again = Tokenizer.from_file(path)
    assert isinstance(again, smiles.SmilesTokenizer)
    assert again.model == tokenizer.model and again.vocabulary == tokenizer.vocabulary
    for other in (b'{"model": {}}', b'[]', b'{', b'{"format": 3}', b'\x0a\x0e'):
        assert not smiles.is_model(other)


@pytest.mark.parametrize(
    'change',
    [
        {'size': 7}, {'size': None}, {'pieces': []}, {'pieces': ['C', 'N']}, {'pieces': [*smiles.SPECIALS, 'C', 'C']},
        {'pieces': [*smiles.SPECIALS, 'CN']}, {'pieces': [*smiles.SPECIALS, ' ']}, {'pieces': list(smiles.SPECIALS)},
        {'pieces': [*smiles.SPECIALS, 'x']}, {'pieces': [*smiles.SPECIALS, 5]}, {'pieces': None},
    ],
)  # fmt: skip
def test_a_damaged_vocabulary_is_refused(tokenizer, change):
    stored = json.loads(tokenizer.model) | change
    with pytest.raises(ConfigError, match='broken.json is not a vocabulary of SMILES tokens'):
        smiles.SmilesTokenizer(json.dumps(stored).encode(), 'broken.json')


def test_texts_without_smiles_and_vocabularies_without_room_are_refused():
    with pytest.raises(ConfigError, match='contains no SMILES.*smi:GLOB'):
        smiles.train(['the model reads', 'words'], 100)
    with pytest.raises(ConfigError, match='vocab_size=5 leaves no room .*the text has 2 tokens: set vocab_size=7'):
        smiles.train(['CCO'], 5)


def test_names_behind_smiles_are_left_out(tmp_path):
    path = tmp_path / 'molecules.smi'
    path.write_bytes(b'\xef\xbb\xbfCCO ethanol\r\nN#N\tnitrogen gas\n\nC |a comment|\n  c1ccccc1\nO')
    assert list(text_files.read(path, 'smi', '')) == [b'CCO', b'N#N', b'', b'C', b'c1ccccc1', b'O']


# ---- prepare --------------------------------------------------------------------------------------------------


def make_config(directory, corpus, **overrides):
    """The same molecules are trained on and held out."""
    config = config_lib.default_config()
    kind, _, file = corpus.partition(':')
    if file:
        shutil.copy(file, directory.parent / 'held_out')
    keys = {
        'data.directory': str(directory), 'data.corpus': corpus,
        'data.validation_corpus': f'{kind}:{directory.parent / "held_out"}' if file else corpus,
        'tokenizer.model': 'smiles', 'vocab_size': '64', 'sequence_length': '64',
    }  # fmt: skip
    config_lib.apply_overrides(config, keys | overrides)
    return config


def documents(directory, manifest, split):
    tokenizer = Tokenizer.from_file(directory / manifest.tokenizer)
    rows = Shards(directory, split).read(np.arange(manifest.splits[split].rows))
    segments = [part for row in rows for part in np.split(row, np.flatnonzero(row == 2))[1:]]
    return sorted(map(tokenizer.decode, segments))


def test_prepare_reads_molecules_and_counts_what_is_none(tmp_path):
    lines = [*MOLECULES, 'SMILES Name', 'CC[X', '', 'hello']
    (tmp_path / 'molecules.smi').write_text('\n'.join(lines) + '\n')
    manifest = prepare.run(make_config(tmp_path / 'rows', f'smi:{tmp_path}/molecules.smi'), num_workers=1)
    assert documents(tmp_path / 'rows', manifest, 'train') == sorted(MOLECULES)
    assert manifest.splits['train'].documents == len(MOLECULES)
    assert manifest.splits['train'].repairs == {
        'documents with characters that no SMILES contains, dropped': 3,
        'empty documents, dropped': 1,
    }
    assert manifest.vocabulary.size == 64 and '' not in manifest.versions


def test_prepare_counts_tokens_that_the_vocabulary_lacks(tmp_path):
    (tmp_path / 'molecules.smi').write_text('\n'.join(MOLECULES))
    (tmp_path / 'held_out.smi').write_text('C[Se]C\n[U]')
    config = make_config(tmp_path / 'rows', f'smi:{tmp_path}/molecules.smi')
    config.data.validation_corpus = f'smi:{tmp_path}/held_out.smi'
    splits = prepare.run(config, num_workers=1).splits
    assert splits['validation'].repairs == {'tokens outside the vocabulary, replaced by [UNK]': 2}
    assert not splits['train'].repairs


def test_prepare_says_where_names_come_from(tmp_path):
    (tmp_path / 'molecules.txt').write_text('\n'.join(f'{text} name' if 'N' in text else text for text in MOLECULES))
    manifest = prepare.run(make_config(tmp_path / 'rows', f'lines:{tmp_path}/molecules.txt'), num_workers=1)
    ((reason, times),) = manifest.splits['train'].repairs.items()
    assert 'smi:GLOB' in reason and times == sum('N' in text for text in MOLECULES)


def test_prepare_adds_copies_of_training_molecules(tmp_path):
    pytest.importorskip('rdkit')
    flat = [text for text in MOLECULES if '@' not in text]  # others have more tokens in another order
    (tmp_path / 'molecules.csv').write_text('id,smiles\n' + ''.join(f'1,{text}\n' for text in [*flat, 'C(C']))
    corpus = f'csv:{tmp_path}/molecules.csv'
    runs = []
    for name, copies, workers in (('plain', '0', 1), ('copied', '3', 1), ('again', '3', 2)):
        config = make_config(tmp_path / name, corpus, **{'data.text_key': 'smiles', 'data.smiles_copies': copies})
        runs.append(prepare.run(config, workers))
    plain, copied, again = runs
    assert copied.splits == again.splits and copied.versions['rdkit'] and 'rdkit' not in plain.versions
    assert copied.splits['validation'] == plain.splits['validation']
    before, after = (documents(tmp_path / n, r, 'train') for n, r in (('plain', plain), ('copied', copied)))
    assert copied.splits['train'].repairs == {'SMILES that RDKit cannot parse, for which no variants were added': 1}
    assert len(after) == len(before) + 3 * (len(before) - 1)
    canonical = {molecules.canonical(text) for text in before}
    assert {molecules.canonical(text) for text in after} == canonical
    assert len(set(after)) > len(set(before))
    with pytest.raises(ConfigError, match='data.smiles_copies: 3 there, 0 now'):
        prepare.run(make_config(tmp_path / 'copied', corpus, **{'data.text_key': 'smiles'}))


def test_directories_of_before_a_key_are_up_to_date(tmp_path, capsys):
    (tmp_path / 'molecules.smi').write_text('\n'.join(MOLECULES))
    config = make_config(tmp_path / 'rows', f'smi:{tmp_path}/molecules.smi')
    prepare.run(config, num_workers=1)
    path = tmp_path / 'rows' / 'manifest.json'
    stored = json.loads(path.read_text())
    del stored['settings']['data.smiles_copies']
    path.write_text(json.dumps(stored))
    prepare.run(config)
    assert 'is up to date' in capsys.readouterr().out


# ---- RDKit ----------------------------------------------------------------------------------------------------


def test_variants_are_the_same_molecule_and_the_same_every_time():
    pytest.importorskip('rdkit')
    for text in MOLECULES:
        written = molecules.variants(text, 8)
        assert len(written) == 8 and written == molecules.variants(text, 8)
        assert {molecules.canonical(variant) for variant in written} == {molecules.canonical(text)}
        assert all(map(smiles.is_smiles, written))
    aspirin = MOLECULES[0]
    assert len(set(molecules.variants(aspirin, 50))) > 10
    assert molecules.variants(aspirin, 8, seed=1) != molecules.variants(aspirin, 8)


def test_what_does_not_parse_is_none_and_silent(capfd):
    pytest.importorskip('rdkit')
    for text in ('C1CC', 'C(C', 'CN(C)(C)(C)C', 'hello'):
        assert molecules.parse(text) is molecules.canonical(text) is molecules.variants(text, 2) is None
    assert capfd.readouterr() == ('', '')


def test_without_the_extra_the_error_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'rdkit', None)
    with pytest.raises(ImportError, match=r"pip install 'mlm_jax\[smiles\]'"):
        molecules.canonical('C')
    with pytest.raises(ImportError, match=r"pip install 'mlm_jax\[smiles\]'"):
        prepare.run(make_config(tmp_path / 'rows', 'demo', **{'data.smiles_copies': '1'}))
    assert not (tmp_path / 'rows').exists()
