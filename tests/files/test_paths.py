"""Paths: URLs are refused in every flag and every key, before anything is created; a wrong kind of file is named."""

import ast
import pathlib
import re
import runpy
import sys

import pytest
from absl import flags

import mlm_jax
from mlm_jax import config as config_lib
from mlm_jax import prepare
from mlm_jax.__main__ import PROGRAMS
from mlm_jax.config import ConfigError, checks, command_line, possible_values
from mlm_jax.data import tokenizers
from mlm_jax.files import paths, text_files
from mlm_jax.pretrained import sources
from mlm_jax.training import runtime

# Flags of text that names no files, or is checked where it is taken apart.
OTHER_TEXT = {
    'config', 'coordinator_address', 'fill_mask', 'grid', 'label', 'metric', 'metrics', 'ratios',
    'seeds', 'set', 'target_columns', 'task_name', 'tasks', 'text', 'text_columns', 'then', 'thresholds', 'topology',
}  # fmt: skip
# Flags and keys of what may not lie in a bucket; of the compilation cache, JAX decides.
ON_A_DISK = {'--profile', 'compilation_cache'}
IN_BUCKET = re.compile('(gs|s3)://bucket')
OTHER_KEYS = {'data.text_key', 'logging.wandb_project', 'slice'}
PACKAGE = pathlib.Path(mlm_jax.__file__).parent
URLS = ('gs://bucket/x', 's3://bucket/x', 'hf://someone/x', 'file:///tmp/x', 'https://host/x', 'gs:/bucket/x')


@pytest.fixture
def flags_of(monkeypatch):
    """A function from the name of a program to its flags."""
    defined = []

    def collect(program: str) -> dict[str, flags.Flag]:
        before = set(flags.FLAGS)
        monkeypatch.setattr(sys, 'argv', [program, 'dag'])
        monkeypatch.setattr(command_line, 'run', lambda *args, **kwargs: None)
        monkeypatch.delitem(sys.modules, f'mlm_jax.{program}', raising=False)
        runpy.run_module(f'mlm_jax.{program}', run_name='__main__')
        defined.extend(set(flags.FLAGS) - before)
        return {name: flags.FLAGS[name] for name in defined}

    yield collect
    for name in defined:
        delattr(flags.FLAGS, name)


@pytest.mark.parametrize('program', PROGRAMS)
def test_every_flag_that_names_files_refuses_urls(program, flags_of, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = flags_of(program)
    is_path = {name: isinstance(flag.parser, paths.PathParser) for name, flag in found.items()}
    plain_text = {name for name, flag in found.items() if type(flag.parser) in (flags.ArgumentParser, flags.ListParser)}
    assert plain_text <= OTHER_TEXT, 'a flag of text is defined by paths.define_flag, or listed above'
    assert any(is_path.values()) or program == 'prepare'
    for name in filter(is_path.get, found):
        for url in (*URLS, f'random:hf:{URLS[0]}', f'average:a:1,{URLS[0]}:2', f'glue={URLS[0]}'):
            if f'--{name}' not in ON_A_DISK and IN_BUCKET.search(url):
                found[name].parse(url)
                continue
            with pytest.raises(flags.IllegalFlagValueError, match=r'--\w+=.*URL.*(path|directory|DIRECTORY)'):
                found[name].parse(url)
    assert not list(tmp_path.iterdir())


def test_every_key_that_names_files_refuses_urls(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)  # with gcsfs, compiled programs may go to gs://
    default = config_lib.default_config()
    text = {key for key, value in config_lib.values(default).items() if isinstance(value, str)}
    free = {key for key in text if not any(possible_values.bounds_of(key))}
    assert free - OTHER_KEYS == set(checks.PATH_KEYS)
    before = {'data.corpus': 'jsonl:', 'data.validation_corpus': 'text:a.txt;', 'tokenizer.model': 'extend:'}
    for key in checks.PATH_KEYS:
        for url in (*URLS, f'hf:{URLS[0]}'):
            config = config_lib.default_config()
            config_lib.apply_overrides(config, {key: before.get(key, '') + url})
            if key not in ON_A_DISK and IN_BUCKET.search(url):
                config_lib.check(config)
                continue
            with pytest.raises(ConfigError, match=rf'^{key}=.*URL'):
                config_lib.check(config)
            with pytest.raises(ConfigError, match=rf'^{key}='):
                prepare.run(config)
    with pytest.raises(ConfigError, match='gs://bucket/x is a URL'):
        runtime.use_compilation_cache('gs://bucket/x')
    assert not list(tmp_path.iterdir())


def test_a_configuration_file_is_no_url(flags_of, monkeypatch, capsys):
    flags_of('train')
    with pytest.raises(ConfigError, match='gs://bucket/mlm is a URL'):
        config_lib.load('gs://bucket/mlm.py:tiny')
    for argv in (['train', '--config=gs://bucket/mlm.py'], ['train', '--config', 'https://host/mlm.py:tiny']):
        flags.FLAGS.unparse_flags()
        flags.FLAGS['config'].unparse()
        flags.FLAGS(argv)
        with pytest.raises(ConfigError, match=r'(gs|https)://\w+/mlm is a URL'):
            command_line.configuration()


def test_jax_keeps_compiled_programs_in_a_bucket_where_it_can(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(ConfigError, match='gcsfuse'):
        paths.check_compilation_cache('gs://bucket/cache')
    monkeypatch.setattr('importlib.util.find_spec', lambda name: name == 'gcsfs')
    paths.check_compilation_cache('gs://bucket/cache')
    with pytest.raises(ConfigError, match='s3://bucket/cache is a URL'):
        paths.check_compilation_cache('s3://bucket/cache')


@pytest.mark.parametrize(
    'text',
    [
        'runs/a', '/a/b', '~/a', 'hf:/models/bert', 'jsonl:/a/*.gz', 'glue=data/glue', 'run@3', 'jsonl://a/b',
        'extend:a', 'tfds:lm1b', 'a:b', 'C:/a', '',
    ],
)  # fmt: skip
def test_paths_are_no_urls(text):
    paths.check_local(text)


def test_the_cure_follows_the_scheme():
    cures = {
        'file:///tmp/a': 'write the path itself, /tmp/a', 'hf://a/b': 'hf:DIRECTORY', 'gs://a': 'gcsfuse',
        'https://a/b.txt': 'download it', 'abfs://a': 'mount it',
    }  # fmt: skip
    for url, cure in cures.items():
        with pytest.raises(ConfigError, match=cure):
            paths.check_local(url)


def test_a_bucket_has_a_name_and_two_slashes():
    for url in ('gs://bucket', 'jsonl:s3://bucket/*.gz', 'glue=gs://bucket/a', 'gs://a/b:0.5,gs://c/d:0.5', 'runs/a'):
        paths.check_local_or_bucket(url)
    for url in ('gs:/bucket/a', 'gs://', 's3:///a', 'hf://a/b', 'gcs://bucket/a', 'https://a/b'):
        with pytest.raises(ConfigError, match='is a URL'):
            paths.check_local_or_bucket(url)


def test_the_prefixes_are_those_of_corpora_tokenizers_and_models():
    assert {f'{prefix}:' for prefix in paths.PREFIXES} == {
        *(f'{kind}:' for kind in text_files.KINDS), tokenizers.EXTEND, sources.RANDOM, sources.EMA, sources.AVERAGE
    }  # fmt: skip


def test_what_is_no_directory_or_no_file_is_named(tmp_path):
    file, link = tmp_path / 'file', tmp_path / 'link'
    file.write_text('')
    link.symlink_to(tmp_path / 'gone')
    paths.check_kind(str(tmp_path), 'directory')
    paths.check_kind(str(tmp_path / 'new'), 'directory')
    paths.check_kind(str(file), 'file')
    for path, kind, message in [
        (file, 'directory', 'is a file; give a directory'),
        (tmp_path, 'file', 'is a directory; give a file'),
        (link, 'directory', 'is a symbolic link to .*gone, which does not exist'),
        ('x' * 300, 'file', 'File name too long'),
        ('~nobody_of_that_name/x', 'directory', 'home directory'),
    ]:
        with pytest.raises(ConfigError, match=message):
            paths.check_kind(str(path), kind)
    config = config_lib.default_config()
    config.data.directory = str(file)
    with pytest.raises(ConfigError, match=r'data\.directory=.*is a file; give a directory'):
        config_lib.check(config)


def test_programs_define_no_flag_of_files_by_other_means():
    """Whatever a module defines when it is imported would escape the test of programs."""
    for path in PACKAGE.rglob('*.py'):
        for node in ast.parse(path.read_text(encoding='utf-8')).body:
            call = node.value if isinstance(node, ast.Expr) else None
            assert not (isinstance(call, ast.Call) and 'DEFINE' in ast.unparse(call.func)), path
