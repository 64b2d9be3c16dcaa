"""The rooms of the package: what lies where, and which folder may import which."""

import ast
import functools
import os
import pathlib
import subprocess
import sys

import pytest

import mlm_jax
from mlm_jax.objectives.registry import OBJECTIVES

PACKAGE = pathlib.Path(mlm_jax.__file__).parent

# Every folder may import those above it in this list, and none below.
FOLDERS = (
    'files', 'parallel', 'masking', 'losses', 'models', 'objectives', 'config', 'data', 'training', 'tasks', 'interop',
    'pretrained', 'finetuning', 'analysis', 'performance', 'comparing',
)  # fmt: skip
PROGRAMS = 'programs'
# Folders of pure functions and Linen modules on arrays, and what they do not know.
PURE, UNKNOWN_TO_PURE = ('masking', 'losses', 'models', 'objectives'), ('files', 'config', 'data')
LIBRARIES_UNKNOWN_TO_PURE = ('absl', 'ml_collections', 'pathlib', 'os', 'io', 'orbax', 'tensorflow_datasets')
# Lazy for what they cost, and not to break a circle: the API of the package, and the data stack in a benchmark.
LAZY = {
    'mlm_jax': ('mlm_jax.pretrained.loading',),
    'mlm_jax.performance.speed': ('mlm_jax.performance.prepared_rows',),
}


def modules() -> dict[str, pathlib.Path]:
    """Name → file of every module of the package; the shipped configurations are none of them."""
    files = [path for path in PACKAGE.rglob('*.py') if 'configs' not in path.relative_to(PACKAGE).parts]
    return {name_of(path): path for path in files}


def name_of(path: pathlib.Path) -> str:
    parts = ('mlm_jax', *path.relative_to(PACKAGE).with_suffix('').parts)
    return '.'.join(parts).removesuffix('.__init__')


MODULES = modules()


def folder_of(module: str) -> str:
    part = module.split('.')[1] if '.' in module else ''
    return part if (PACKAGE / part).is_dir() and part else PROGRAMS


@functools.cache
def tree_of(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text(encoding='utf-8'))


@functools.cache
def imports(path: pathlib.Path) -> list[tuple[str, bool]]:
    """(module, whether the import stands inside a function) of all that a file imports."""
    tree, found = tree_of(path), []
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    inside = {id(node) for f in ast.walk(tree) if isinstance(f, functions) for node in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = [f'{node.module}.{alias.name}' for alias in node.names]
            found += [(name if name in MODULES else node.module, id(node) in inside) for name in names]
        elif isinstance(node, ast.Import):
            found += [(alias.name, id(node) in inside) for alias in node.names]
    return found


def own_imports(module: str) -> list[tuple[str, bool]]:
    return [(name, inside) for name, inside in imports(MODULES[module]) if name.split('.')[0] == 'mlm_jax']


def test_only_programs_lie_directly_in_the_package():
    for path in PACKAGE.glob('*.py'):
        is_program = "if __name__ == '__main__':" in path.read_text(encoding='utf-8')
        assert is_program or path.name == '__init__.py', f'{path.name} is no program: give it a folder'
    folders = {path.parent.name for path in PACKAGE.glob('*/__init__.py')} - {'configs'}
    assert folders == set(FOLDERS)


def test_arrows_between_folders_point_one_way():
    rank = {**{name: i for i, name in enumerate(FOLDERS)}, PROGRAMS: len(FOLDERS)}
    for module in MODULES:
        for name, _ in own_imports(module):
            if name in LAZY.get(module, ()) or name == 'mlm_jax':
                continue
            assert rank[folder_of(name)] <= rank[folder_of(module)], f'{module} imports {name}, from further down'


def test_no_import_of_ours_stands_inside_a_function():
    inside = [(module, name) for module in MODULES for name, is_inside in own_imports(module) if is_inside]
    assert [pair for pair in inside if pair[1] not in LAZY.get(pair[0], ())] == []


def test_no_files_import_each_other_in_a_circle():
    edges = {module: {name for name, _ in own_imports(module) if name in MODULES} - {module} for module in MODULES}
    # The package of a folder names what others import of it; the folder's own files import each other directly.
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f'a circle: {" → ".join((*path[path.index(module) :], module))}'
        if module not in done:
            for name in edges[module]:
                visit(name, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def test_pure_folders_know_no_files_no_flags_and_no_configuration_library():
    pure = [module for module in MODULES if folder_of(module) in PURE]
    for module, (name, _) in [(known, found) for known in pure for found in imports(MODULES[known])]:
        assert folder_of(name) not in UNKNOWN_TO_PURE or name.split('.')[0] != 'mlm_jax', f'{module} imports {name}'
        assert name.split('.')[0] not in LIBRARIES_UNKNOWN_TO_PURE, f'{module} imports {name}'


# A value of `model.relative_bucketing` is named after the paper that its buckets are from; any objective can have it.
BUCKETING = (
    'mlm_jax.config.possible_values', 'mlm_jax.config.model_checks', 'mlm_jax.config.defaults',
    'mlm_jax.models.layers', 'mlm_jax.models.positions',
)  # fmt: skip


@pytest.mark.parametrize('name', sorted(set(OBJECTIVES) - {'mlm'}))
def test_nothing_but_its_own_files_names_an_objective_in_code(name):
    """Prose may: docstrings, comments, and messages that are sentences."""
    for module, path in MODULES.items():
        if folder_of(module) in ('objectives', 'pretrained'):
            continue
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Attribute):
                assert node.attr != name, f'{module}, line {node.lineno}'
            elif isinstance(node, ast.Name):
                assert node.id != name, f'{module}, line {node.lineno}'
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                if (name, node.value) == ('mae_lm', 'mae_lm') and module in BUCKETING:
                    continue
                assert node.value != name and not node.value.startswith(f'{name}.'), f'{module}, line {node.lineno}'


@pytest.mark.parametrize(
    'code',
    [
        'import mlm_jax.prepare, mlm_jax.interop.checkpoint',
        'from mlm_jax import config; config.check(config.load("mlm"))',
    ],
)
def test_preparing_and_checking_configurations_import_no_jax(code):
    program = f'import sys; {code}; print([name for name in ("jax", "tensorflow", "torch") if name in sys.modules])'
    result = subprocess.run(
        [sys.executable, '-c', program], cwd=PACKAGE.parent, capture_output=True, text=True, check=True
    )
    assert result.stdout == '[]\n'


def test_no_program_imports_tensorflow_where_it_is_installed(tmp_path):
    """A package of that name on the path, which leaves a note if anything imports it."""
    (tmp_path / 'tensorflow').mkdir()
    (tmp_path / 'tensorflow' / '__init__.py').write_text(f'open({str(tmp_path / "imported")!r}, "w").close()')
    names = ('prepare', 'train', 'finetune', 'evaluate', 'export', 'compare')
    paths = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get('PYTHONPATH'))))
    command = [sys.executable, '-c', 'import ' + ', '.join(f'mlm_jax.{name}' for name in names)]
    subprocess.run(command, check=True, cwd=PACKAGE.parent, env=os.environ | {'PYTHONPATH': paths})
    assert not (tmp_path / 'imported').exists()
