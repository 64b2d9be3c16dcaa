"""Data sets of the hub by name: which files they are, the same bytes as of a copy, and a commit that stays."""

import io
import json
import re
import sys

import hub_server
import numpy as np
import pytest
from preparations import contents_of_any_corpus, made_up_texts, make_config

from mlm_jax import prepare
from mlm_jax.config import ConfigError
from mlm_jax.data import hub_sets
from mlm_jax.data import manifest as manifest_lib
from mlm_jax.files import buckets, text_files

pytest.importorskip('huggingface_hub', reason='needs the extra hub')
pyarrow = pytest.importorskip('pyarrow')
NAME = 'someone/stories'


@pytest.fixture
def hub(tmp_path):
    """A hub without repositories."""
    with hub_server.serving(tmp_path / 'cache') as hub:
        yield hub


def parquet(seed, count=120):
    """A Parquet file of texts, in six row groups, with another column that is larger."""
    import pyarrow.parquet

    rng, file = np.random.default_rng(seed), io.BytesIO()
    texts = made_up_texts(rng, count)
    table = pyarrow.table({'text': texts, 'pixels': [rng.bytes(20_000) for _ in texts]})
    pyarrow.parquet.write_table(table, file, row_group_size=20, compression='none')
    return file.getvalue()


def names(splits, root):
    return {split: [str(file.relative_to(root)) for file in files] for split, files in splits.items()}


# ---- Which files -----------------------------------------------------------------------------------------------------

CARD = b"""---
license: mit
configs:
- config_name: old
  data_files: archive/*.parquet
- config_name: new
  default: true
  data_files:
  - split: train
    path: [crawl/a*.parquet, crawl/b*.parquet]
  - split: validation
    path: crawl/v.parquet
- config_name: folder
  data_dir: crawl
- config_name: mapping
  data_files: {test: x.parquet}
---
# Stories
"""


@pytest.mark.parametrize(
    'files, expected',
    [
        (
            ('default/train/0000.parquet', 'default/validation/0000.parquet'),
            {'default': {'train': [0], 'validation': [1]}},
        ),
        (
            ('de/train/0000.parquet', 'de/train/0001.parquet', 'en/partial-train/0000.parquet', 'en/test/0000.parquet'),
            {'de': {'train': [0, 1]}, 'en': {'partial-train': [2], 'test': [3]}},
        ),
        (  # the hub's own files: directories are the names themselves, whatever words are in them
            ('a/train_gen/0000.parquet', 'a/train_sft/0000.parquet', 'a/validation_mismatched/0000.parquet'),
            {'a': {'train_gen': [0], 'train_sft': [1], 'validation_mismatched': [2]}},
        ),
        (
            ('auxiliary_train/train/0000.parquet', 'data/test/0000.parquet', 'plain_text/unsupervised/0000.parquet'),
            {'auxiliary_train': {'train': [0]}, 'data': {'test': [1]}, 'plain_text': {'unsupervised': [2]}},
        ),
        (
            ('a/partial-dev-part0/9999.parquet', 'a/train-part0/9999.parquet', 'a/train-part1/0000.parquet'),
            {'a': {'partial-dev': [0], 'train': [1, 2]}},
        ),
        (('data/dev/0000.parquet', 'data/train/0.parquet'), {'default': {'validation': [0], 'train': [1]}}),
        (
            ('data/train-00000-of-00002.parquet', 'data/train-00001-of-00002.parquet', 'data/val-00000-of-1.parquet'),
            {'default': {'train': [0, 1], 'validation': [2]}},
        ),
        (('20231101.en/train-00000-of-00001.parquet', '.gitattributes'), {'20231101.en': {'train': [0]}}),
        (('a.parquet', 'b.parquet'), {'default': {'train': [0, 1]}}),
        (('README.md', 'words.csv'), {}),
        (
            ('archive/x.parquet', 'crawl/a1.parquet', 'crawl/b.parquet', 'crawl/v.parquet', 'x.parquet', 'README.md'),
            {
                'old': {'train': [0]},
                'new': {'train': [1, 2], 'validation': [3]},
                'folder': {'train': [1, 2, 3]},
                'mapping': {'test': [4]},
                'default': {'train': [1, 2], 'validation': [3]},
            },
        ),
    ],
)  # fmt: skip
def test_files_are_found_by_card_or_by_name(hub, files, expected):
    commit = hub.put('datasets', NAME, {name: CARD if name == 'README.md' else b'PAR1' for name in files})
    root = buckets.path(f'hf://datasets/{NAME}@{commit}')
    layout = hub_sets._layout(NAME, commit)
    wanted = {
        config: {split: [files[number] for number in numbers] for split, numbers in splits.items()}
        for config, splits in expected.items()
    }
    assert {config: names(splits, root) for config, splits in layout.items()} == wanted


def test_directories_of_a_repository_with_a_readme_are_no_names(hub):
    files = ('README.md', 'data/train_a/0000.parquet', 'data/train_b/0000.parquet')
    commit = hub.put('datasets', NAME, dict.fromkeys(files, b'# Stories'))
    assert {config: [*splits] for config, splits in hub_sets._layout(NAME, commit).items()} == {'default': ['train']}


def test_a_pinned_name_of_what_is_not_there_is_refused(hub):
    commit = hub.put('datasets', NAME, {'a/train_sft/0000.parquet': b'PAR1'}, hub_sets.CONVERTED)
    with pytest.raises(ConfigError, match="no configuration 'default'; it has a"):
        hub_sets.open_splits(f'{NAME}/default@{commit}')
    with pytest.raises(ConfigError, match="no split 'train'; it has train_sft"):
        hub_sets.open_splits(f'{NAME}/a@{commit}:train')


def test_a_card_in_an_unknown_form_is_refused(hub):
    files = {'a.parquet': b'PAR1', 'README.md': b'---\nconfigs:\n- data_files: [[a.parquet]]\n---\n'}
    hub.put('datasets', 'a/odd', files)
    with pytest.raises(ConfigError, match='README.md names the files of its configurations in an unknown form'):
        hub_sets.pin('a/odd', '', None)


def test_names_are_pinned_to_commits(hub):
    main = hub.put('datasets', NAME, {'data/train.parquet': b'PAR1', 'data/test.parquet': b'PAR1'})
    assert hub_sets.pin(NAME, '', None) == f'{NAME}/default@{main}'
    converted = hub.put('datasets', NAME, {'default/train/0000.parquet': b'PAR1'}, hub_sets.CONVERTED)
    pinned = hub_sets.pin(NAME, '', None)
    assert pinned == f'{NAME}/default@{converted}' == hub_sets.pin(NAME, '', 'validation')
    assert hub_sets.pin(f'{NAME}@main:test', '', 'train') == f'{NAME}/default@main@{main}:test'
    assert hub_sets.pin(f'{NAME}@{main}', '', 'train') == f'{NAME}/default@{main}:train'
    partial = {'default/partial-train/0000.parquet': b'PAR1', 'default/test/0000.parquet': b'PAR1'}
    hub.put('datasets', NAME, partial, hub_sets.CONVERTED)
    assert hub_sets.pin(NAME, '', None) == f'{NAME}/default@{main}'
    hub.put('datasets', NAME, {'.gitattributes': b''}, hub_sets.CONVERTED)  # without a Parquet file yet
    assert hub_sets.pin(NAME, '', None) == f'{NAME}/default@{main}'
    hub.requests.clear()
    assert hub_sets.pin(NAME, pinned, None) == hub_sets.pin(f'{NAME}/default@{converted}', pinned, None) == pinned
    assert not hub.requests  # what is known is not asked again
    assert hub_sets.pin(f'{NAME}@main', pinned, None) == f'{NAME}/default@main@{main}'
    several = hub.put('datasets', 'a/b', {'de/train.parquet': b'PAR1', 'en/train.parquet': b'PAR1'})
    assert hub_sets.pin('a/b/de', '', None) == f'a/b/de@{several}'


@pytest.mark.parametrize('config', ['', '/de'])
@pytest.mark.parametrize('revision', ['', '@main', '@refs/convert/parquet', '@a@b'])
@pytest.mark.parametrize('commit', ['', '@' + '0a' * 20])
@pytest.mark.parametrize('split', ['', ':train_sft'])
def test_names_are_read_as_they_are_written(config, revision, commit, split):
    text = f'{NAME}{config}{revision}{commit}{split}'
    name = hub_sets.parse(text)
    assert str(name) == text
    assert name.place == ((commit or revision)[1:] or None) and name.revision == (revision[1:] or None)


def test_a_branch_stays_at_its_commit(hub):
    first, second = (hub.put('datasets', NAME, {'train.parquet': data}, 'v2') for data in (b'PAR1', b'PAR1 '))
    hub.put('datasets', NAME, {'train.parquet': b'PAR1'}, 'v1')
    stored, earlier = f'{NAME}/default@v2@{first}', f'{NAME}/default@{first}'  # as earlier versions have stored it
    hub.requests.clear()
    assert hub_sets.pin(f'{NAME}@v2', stored, None) == hub_sets.pin(f'{NAME}@{first}', stored, None) == stored
    assert hub_sets.pin(stored, earlier, None) == earlier and hub_sets.pin(earlier, stored, None) == stored
    assert not hub.requests
    # Another branch, or a directory that knows none, is asked for, and is the same if it leads to the same commit.
    assert hub_sets.pin(f'{NAME}@v1', stored, None) == stored
    assert hub_sets.pin(f'{NAME}@v1', earlier, None) == earlier
    hub.put('datasets', NAME, {'train.parquet': b'PAR1 '}, 'main')
    assert hub_sets.pin(f'{NAME}@main', stored, None) == f'{NAME}/default@main@{second}'
    assert hub_sets.pin(NAME, stored, None) == f'{NAME}/default@{second}'
    assert hub_sets.pin(f'{NAME}@{second}', stored, None) == f'{NAME}/default@{second}'


@pytest.mark.parametrize(
    'name, message',
    [
        ('wikitext', "'wikitext' is no name of a data set on the hub: write hf:ORGANIZATION/NAME"),
        ('a/nothing', 'there is no data set a/nothing on the hub, or it is private: .* log in'),
        ('a/b', 'the data set a/b has several configurations: de, en. Write hf:a/b/CONFIG'),
        ('a/b/fr', "the data set a/b has no configuration 'fr'; it has de, en. Write"),
        ('a/b/en:test', "hf:a/b/en:test has no split 'test'; it has train"),
        ('a/b@v2', "the data set a/b has no revision 'v2'"),
        ('a/words', 'the data set a/words has no Parquet files at main, and the hub has not converted all of it'),
        ('a/gated', 'the data set a/gated is gated: accept its terms on its page'),
    ],
)
def test_what_is_not_there_is_explained(hub, name, message):
    hub.put('datasets', 'a/b', {'de/train.parquet': b'PAR1', 'en/train.parquet': b'PAR1'})
    hub.put('datasets', 'a/words', {'words.csv': b'a'})
    hub.put('datasets', 'a/gated', {'train.parquet': b'PAR1'})
    hub.gate('a/gated')
    with pytest.raises(ConfigError, match=message):
        hub_sets.pin(name, '', None)


def test_without_the_hub_the_cure_is_to_download(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, 'ENDPOINT', 'http://127.0.0.1:9')
    with pytest.raises(ConfigError, match=r'cannot be reached for the data set a/b \(.*hf download a/b ') as raised:
        hub_sets.pin('a/b', '', None)
    # What is advised reads each split by itself.
    advised = dict(re.findall(r'data\.(\w+)=parquet:DIRECTORY/(\S+\.parquet)', str(raised.value)))
    (tmp_path / 'data').mkdir()
    for split in ('train', 'validation', 'test'):
        (tmp_path / 'data' / f'{split}-00000-of-00001.parquet').touch()
    found = {key: [file.name[:5] for file in text_files.names(f'{tmp_path}/{glob}')] for key, glob in advised.items()}
    assert found == {'corpus': ['train'], 'validation_corpus': ['valid']}
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(ConfigError, match=r"hf:a/b needs the package huggingface_hub: pip install 'mlm_jax\[hub\]'"):
        hub_sets.pin('a/b', '', None)


# ---- What prepare makes of them --------------------------------------------------------------------------------------


def test_prepare_makes_the_same_bytes_as_of_a_copy(hub, tmp_path, monkeypatch):
    monkeypatch.setattr('mlm_jax.data.slices.SLICE_BYTES', 1_000_000)
    files = {f'default/train/000{seed}.parquet': parquet(seed) for seed in range(2)}
    files['default/validation/0000.parquet'] = parquet(2, 40)
    for path, data in files.items():
        (tmp_path / 'copy' / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'copy' / path).write_bytes(data)
    copy = make_config(
        tmp_path / 'here', f'parquet:{tmp_path}/copy/default/train/*.parquet',
        **{'data.validation_corpus': f'parquet:{tmp_path}/copy/default/validation/*.parquet'},
    )  # fmt: skip
    prepare.run(copy, num_workers=1)
    commit = hub.put('datasets', NAME, files, hub_sets.CONVERTED)
    config = make_config(tmp_path / 'there', f'hf:{NAME}')
    manifest = prepare.run(config, num_workers=1)
    assert contents_of_any_corpus(tmp_path / 'there') == contents_of_any_corpus(tmp_path / 'here')
    # The other column has not been read: no request was for more than the smallest number of bytes.
    assert {size for _, path, size in hub.requests if '/resolve/' in path} <= {0, buckets._FIRST_READ}
    assert manifest.settings['data.corpus'] == f'hf:{NAME}/default@{commit}'
    assert [*manifest.sources] == [f'hf:{NAME}/default@{commit}']
    assert 'pyarrow' in manifest.versions
    # The data set moves on, and the directory stays with its commit.
    hub.put('datasets', NAME, {path: parquet(9) for path in files}, hub_sets.CONVERTED)
    (tmp_path / 'there' / 'tokenizer.model').write_bytes(b'damaged')
    damaged = next((tmp_path / 'there').glob('train-*.npy'))
    damaged.write_bytes(damaged.read_bytes()[:-2] + b'\1\1')
    assert prepare.run(config, num_workers=1) == manifest
    assert contents_of_any_corpus(tmp_path / 'there') == contents_of_any_corpus(tmp_path / 'here')
    prepare.run(make_config(tmp_path / 'there', f'hf:{NAME}@{commit}'), num_workers=1)
    with pytest.raises(ConfigError, match=f"(?s)data.corpus: '.*@{commit}' there, 'hf:{NAME}/default@.*' now"):
        prepare.run(make_config(tmp_path / 'there', f'hf:{NAME}@{hub_sets.CONVERTED}'), num_workers=1)


@pytest.mark.parametrize('revision', ['', '@main'])
def test_a_preparation_is_resumed_at_its_commit(hub, tmp_path, monkeypatch, revision):
    monkeypatch.setattr('mlm_jax.data.slices.SLICE_BYTES', 1_000_000)
    commit = hub.put('datasets', NAME, {'train-0.parquet': parquet(0), 'test-0.parquet': parquet(1)})
    name = f'hf:{NAME}{revision}'
    config = make_config(tmp_path / 'rows', name, **{'data.validation_corpus': f'{name}:test'})
    run, begun = prepare.encoding.SliceJob.run, []

    def killed(job):
        begun.append(job)
        return run(job) if len(begun) < 3 else exit()

    monkeypatch.setattr(prepare.encoding.SliceJob, 'run', killed)
    with pytest.raises(SystemExit):
        prepare.run(config, num_workers=1)
    monkeypatch.setattr(prepare.encoding.SliceJob, 'run', run)
    hub.put('datasets', NAME, {'train-0.parquet': parquet(5), 'test-0.parquet': parquet(1)})
    manifest = prepare.run(config, num_workers=1)
    pinned = f'hf:{NAME}/default{revision}@{commit}'
    assert manifest.settings['data.corpus'] == f'{pinned}:train'
    assert manifest.settings['data.validation_corpus'] == f'{pinned}:test'
    stored = json.loads((tmp_path / 'rows' / manifest_lib.FILE).read_text())['sources']
    ((file, state),) = stored[f'{pinned}:train'].items()
    assert file == f'hf://datasets/{NAME}@{commit}/train-0.parquet'
    assert {*state.get('parts', [state.get('sha256')])} == {f'blob {hub_server.oid(parquet(0))}'}
    assert prepare.run(config, num_workers=1) == manifest


def test_only_a_split_that_is_not_trained_on_is_held_out(hub, tmp_path, capsys):
    hub.put('datasets', NAME, {'train.parquet': parquet(0), 'test.parquet': parquet(1, 30)})
    hub.put('datasets', 'a/b', {'train.parquet': parquet(2), 'val.parquet': parquet(3, 30)})
    for name in (NAME, f'{NAME}:train'):
        config = make_config(tmp_path / 'rows', f'hf:{NAME}', **{'data.validation_corpus': f'hf:{name}'})
        with pytest.raises(ConfigError, match='is the very text that is trained on: leave it out'):
            prepare.run(config, num_workers=1)
    aloud = f'held-out   the split train of hf:{NAME}/default@'
    for corpus, held_out, says in (('a/b', NAME, True), ('a/b', f'{NAME}:train', False), (NAME, 'a/b', False)):
        directory = tmp_path / f'{corpus} {held_out}'.replace('/', '_')
        capsys.readouterr()
        prepare.run(make_config(directory, f'hf:{corpus}', **{'data.validation_corpus': f'hf:{held_out}'}), 1)
        assert (aloud in capsys.readouterr().out) == says


def test_a_file_that_the_hub_serves_short_is_noticed(hub):
    commit = hub.put('datasets', NAME, {'train.parquet': parquet(0)})
    path = buckets.path(f'hf://datasets/{NAME}@{commit}/train.parquet')
    assert path.stat().st_size == len(parquet(0)) and path.read_range(3, 9) == parquet(0)[3:9] and path.is_immutable
    hub._revisions['datasets', NAME][commit][1]['train.parquet'] = parquet(0)[:50]
    with pytest.raises(OSError, match='become shorter|416'):
        path.read_range(40, 90)
