"""Models of the hub by name: only what can execute nothing is read, of one commit, and without the hub from a copy."""

import dataclasses
import json
import pathlib
import sys
import types

import hub_server
import jax
import numpy as np
import pytest

from mlm_jax import config as config_lib
from mlm_jax import evaluate, finetune, prepare
from mlm_jax.config import ConfigError
from mlm_jax.data import fast_tokenizer, tokenizers
from mlm_jax.data import manifest as manifest_lib
from mlm_jax.files import atomic, hub
from mlm_jax.pretrained import loading, sources, warm_start

pytest.importorskip('huggingface_hub', reason='needs the extra hub')
pytest.importorskip('safetensors.numpy')
pytestmark = pytest.mark.usefixtures('one_device')
NAME = 'someone/bert'
NEVER = {'pytorch_model.bin': b'a pickle', 'modeling.py': b'import os', 'onnx/model.safetensors': b'', 'README.md': b''}


@pytest.fixture(scope='module')
def bert(write_bert, tmp_path_factory):
    """The directory of a small BERT."""
    return write_bert(tmp_path_factory.mktemp('bert') / 'local')


@pytest.fixture
def server(tmp_path, bert):
    """A hub with the BERT, and other files beside it: (the hub, the commit)."""
    hub._snapshot.cache_clear()
    with hub_server.serving(tmp_path / 'cache') as served:
        files = {path.name: path.read_bytes() for path in bert.iterdir()}
        yield served, served.put('models', NAME, files | NEVER)
    hub._snapshot.cache_clear()


def begin_again(monkeypatch, endpoint='http://127.0.0.1:9'):
    """Forgets what this process knows; the hub, but for another `endpoint`, is gone."""
    from huggingface_hub import constants

    hub._snapshot.cache_clear()
    monkeypatch.setattr(constants, 'ENDPOINT', endpoint)
    monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', endpoint + '/{repo_id}/resolve/{revision}/{filename}')


def test_a_model_is_that_of_its_directory_with_and_without_the_hub(server, bert, monkeypatch):
    served, commit = server
    expected = loading.load(f'hf:{bert}')
    model = loading.load(f'hf:{NAME}')
    assert jax.tree.all(jax.tree.map(np.array_equal, model.params, expected.params))
    assert model.tokenizer.model == expected.tokenizer.model and str(model.source) == f'hf:{NAME}'
    read = {path.rpartition('/')[2] for _, path, _ in served.requests if '/resolve/' in path}
    assert read == {'config.json', 'model.safetensors', 'tokenizer.json'}
    begin_again(monkeypatch)
    for name in (NAME, f'{NAME}@{commit}'):
        assert hub.model(pathlib.Path(name)).name == commit
    with pytest.raises(ConfigError, match=r'no directory a/b, and the hub cannot .*\(.*hf download a/b .*hf:DIRECTORY'):
        loading.load('hf:a/b')


def test_a_directory_of_that_name_is_taken_first(server, bert, tmp_path, monkeypatch):
    served, _ = server
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'someone').mkdir()
    (tmp_path / 'someone' / 'bert').symlink_to(bert)
    assert sources.parse(f'hf:{NAME}').on_disk == pathlib.Path(NAME) and sources.pin(f'hf:{NAME}') == f'hf:{NAME}'
    for path in (tmp_path / 'missing', pathlib.Path('a/b/c'), pathlib.Path('./.hidden')):
        assert hub.model(path) == path
    assert not served.requests


@pytest.mark.parametrize(
    'name, message',
    [
        ('a/no', 'there is no directory a/no, and no model a/no on the hub, or it is private: .* log in'),
        ('a/gated', 'the model a/gated is gated: accept its terms on its page on the hub, log in'),
        (f'{NAME}@v9', "the model someone/bert has no revision 'v9'"),
        ('a/pickles', r'the model a/pickles has no safetensors on the hub.*save_pretrained\("DIRECTORY"\); then'),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_explained(server, bert, name, message):
    served, _ = server
    served.put('models', 'a/gated', {'config.json': b'{}', 'model.safetensors': b''})
    served.gate('a/gated')
    served.put('models', 'a/pickles', {'config.json': b'{}', 'pytorch_model.bin': b'a pickle'})
    with pytest.raises(ConfigError, match=f'^{message}'):
        hub.model(pathlib.Path(name))


def test_without_the_package_the_cure_is_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(ConfigError, match=r"^there is no directory a/c, and hf:a/c, .*: pip install 'mlm_jax\[hub\]'$"):
        hub.model(pathlib.Path('a/c'))


def test_a_run_keeps_the_commit(server, bert, tmp_path, monkeypatch):
    served, commit = server
    pinned = f'hf:{NAME}@{commit}'
    assert sources.pin(f'hf:{NAME}') == sources.pin(f'hf:{NAME}@main') == sources.pin(pinned) == pinned
    assert sources.pin(f'average:hf:{NAME}:0.5,hf:{NAME}@main:2') == f'average:{pinned}:0.5,{pinned}:2'
    assert sources.pin('runs/a@7') == 'runs/a@7' and sources.pin(f'hf:{bert}') == f'hf:{bert}'
    assert warm_start.pinned('ema:runs/a', tmp_path) == 'ema:runs/a'
    config = config_lib.default_config()
    config.init_from = warm_start.pinned(f'hf:{NAME}', tmp_path)
    (tmp_path / 'config.json').write_text(config_lib.to_json(config))
    begin_again(monkeypatch)  # the run resumes, and the hub is gone, or has another commit
    served.requests.clear()
    for name in (NAME, f'{NAME}@main'):
        assert warm_start.pinned(f'hf:{name}', tmp_path) == pinned == config.init_from
    assert not served.requests


def test_results_of_fine_tuning_keep_the_commit(server, bert):
    """Begun again when the name has another commit, the program does not mix the two."""
    _, commit = server
    model = loading.load(f'hf:{NAME}')
    assert finetune.origin(model) == {
        'source': f'hf:{NAME}@{commit}', 'step': None, 'parameters': model.fingerprint(),
    }  # fmt: skip
    assert finetune.origin(loading.load(f'hf:{bert}'))['source'] == f'hf:{bert}'


def test_accuracies_keep_the_commit(server, minimal_pairs, monkeypatch):
    _, commit = server
    judge = types.SimpleNamespace(compile=lambda *of: None, evaluate=lambda params: {'accuracy': 1.0})
    monkeypatch.setattr(evaluate.minimal_pairs, 'Blimp', lambda *of, **how: judge)
    report = evaluate.judge_minimal_pairs([sources.parse(f'hf:{NAME}')], None, minimal_pairs, 100.0, False)
    (of_model,) = report['models'].values()
    assert of_model['model'] == f'hf:{NAME}@{commit}'


def test_a_configuration_that_goes_on_from_a_model(server, bert, tmp_path):
    _, commit = server
    config, local = (config_lib.load(f'continue:hf:{name},total_steps=7') for name in (NAME, bert))
    assert config.init_from == f'hf:{NAME}' and local.init_from == f'hf:{bert}'
    assert warm_start.pinned(config.init_from, tmp_path) == f'hf:{NAME}@{commit}'  # by the run, which stays with it
    assert config.tokenizer.model == f'hf:{NAME}/tokenizer.json'
    assert (config.vocab_size, config.sequence_length, config.total_steps) == (64, 40, 7)
    config_lib.check(config)
    assert config.model == local.model
    (tmp_path / 'corpus.txt').write_text(''.join(f'w{5 + i % 50} w{6 + i % 40} w7\n' for i in range(200)))
    config.data.update(corpus=f'lines:{tmp_path}/corpus.txt', directory=str(tmp_path / 'rows'), validation_percent=20.0)
    manifest = prepare.run(config, num_workers=1)
    assert manifest.tokenizer_sha256 == atomic.sha256(bert / 'tokenizer.json')
    warm_start.check_source(config, manifest)


# ---- Of an own export ------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tiny_config, tmp_path):
    """Rows that a trained tokenizer has encoded: (configuration, tokenizer)."""
    settings = config_lib.default_config().tokenizer
    settings.byte_fallback = False
    texts = [f'w{i} w{i + 1} and others' for i in range(60)]
    tokenizer = tokenizers.train(texts, settings, 64, exact_size=False)
    directory = tmp_path / 'data'
    directory.mkdir()
    for path in pathlib.Path(tiny_config.data.directory).iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    (directory / 'tokenizer.model').write_bytes(tokenizer.model)
    digest = atomic.sha256(directory / 'tokenizer.model')
    manifest_lib.save(dataclasses.replace(manifest_lib.load(directory), tokenizer_sha256=digest), directory)
    tiny_config.data.directory = str(directory)
    return tiny_config, tokenizer


def test_data_of_the_original_tokenizer_go_with_its_export(data, write_bert, tmp_path):
    config, tokenizer = data
    exported = write_bert(tmp_path / 'exported')
    fast_tokenizer.write_fast_tokenizer(tokenizer, exported, 40)
    config.init_from = f'hf:{exported}'
    manifest = manifest_lib.load(config.data.directory)
    warm_start.check_source(config, manifest)
    stored = json.loads((exported / 'tokenizer.json').read_text())
    first, second = stored['model']['vocab'][5:7]
    stored['model']['vocab'][5:7] = second, first
    (exported / 'tokenizer.json').write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match='were not made with the tokenizer of init_from=hf:'):
        warm_start.check_source(config, manifest)
