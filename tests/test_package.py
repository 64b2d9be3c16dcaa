"""What is installed: one entry point for all programs, shipped configurations by name, a version."""

import pathlib
import re
import subprocess
import sys

import programs
import pytest

import mlm_jax
from mlm_jax import __main__ as entry_point
from mlm_jax import config as config_lib

PACKAGE = pathlib.Path(mlm_jax.__file__).parent


def test_every_program_can_be_reached_and_says_what_it_does(capsys, monkeypatch):
    found = {p.stem for p in PACKAGE.glob('*.py') if "__name__ == '__main__'" in p.read_text(encoding='utf-8')}
    assert {*entry_point.PROGRAMS} == found - {'__main__'}
    monkeypatch.setattr(sys, 'argv', ['mlm-jax', '--help'])
    entry_point.main()
    lines = capsys.readouterr().out.splitlines()
    for name in entry_point.PROGRAMS:
        assert any(re.match(rf'  {name}  +\S+ \S+', line) for line in lines), name


@pytest.mark.parametrize(
    ('program', 'flag'), [('train', 'num_processes'), ('evaluate', 'model'), ('finetune', 'model'), ('probe', 'model')]
)
def test_help_lists_flags_that_programs_share(program, flag):
    assert f'\n  --{flag}:' in programs.run(program, '--help').stdout


def test_a_misspelt_program_is_named(monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['mlm-jax', 'trian'])
    with pytest.raises(SystemExit, match="no program 'trian'. Did you mean train?"):
        entry_point.main()


def test_shipped_configurations_have_names():
    names = config_lib.shipped()
    assert {'mlm', 'mae_lm', 'exlm', 'masking', 'smiles', 'demo', 'repeated_mlm'} <= names.keys()
    with pytest.raises(
        config_lib.ConfigError, match=r'needs the model to go on from, .*--config=continue:hf:DIRECTORY'
    ):
        config_lib.load('continue')
    for name, path in names.items() - {('continue', names['continue'])}:
        assert config_lib.differences(config_lib.load(name), config_lib.load(str(path))) == {}
    assert config_lib.load('mlm:tiny,batch_size=8').batch_size == 8
    with pytest.raises(
        config_lib.ConfigError, match='no configuration file mml. Those that are shipped: continue, demo'
    ):
        config_lib.with_path('mml:tiny')


@pytest.mark.parametrize('form', ['--config=mlm:tiny,dropout=0', '-config=mlm:tiny,dropout=0'])
def test_the_command_line_takes_names_and_unknown_keys_are_named(form, tmp_path):
    result = subprocess.run(
        [sys.executable, '-m', 'mlm_jax', 'prepare', form], cwd=tmp_path, capture_output=True, text=True,
        env={'PYTHONPATH': str(PACKAGE.parent), 'PATH': ''},
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.startswith("error: unknown configuration key 'dropout'; did you mean model.dropout")


def test_importing_the_package_costs_nothing():
    program = 'import sys; before = {*sys.modules}; import mlm_jax; print(len({*sys.modules} - before))'
    result = subprocess.run(
        [sys.executable, '-c', program], cwd=PACKAGE.parent, capture_output=True, text=True, check=True
    )
    assert int(result.stdout) == 1


def test_the_version_is_one():
    distribution = pytest.importorskip('importlib.metadata').version('mlm_jax')
    assert distribution == mlm_jax.__version__
