"""The pages of results are what their data make of them, and their tables hold no other numbers."""

import ast
import importlib
import importlib.util
import itertools
import json
import re
import shlex
import types

import pytest
from test_package import PACKAGE

from mlm_jax import config as config_lib
from mlm_jax.comparing import configurations, experiment, figures, results_page

RESULTS = PACKAGE.parent / 'docs' / 'results'
CLAIMS = 'What the papers promise'
NUMBER = re.compile(r'(?<![\w.])[+−]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?(?![\d,])')


@pytest.fixture(scope='module')
def experiments():
    return results_page.read_page(RESULTS)[1]


def test_the_pages_are_what_the_data_make_of_them():
    spec = importlib.util.spec_from_file_location('make_results', RESULTS / 'make.py')
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    for path, text in make.pages().items():
        assert path.read_text(encoding='utf-8') == text, f'{path.name} is old: run python docs/results/make.py'


def test_every_number_in_a_table_is_one_of_its_data(experiments):
    """Read from the page, and compared with the data as far as its digits go."""
    page = (RESULTS.parent / 'results.md').read_text(encoding='utf-8')
    sections = {part.partition('\n')[0]: part for part in re.split(r'^## ', page, flags=re.MULTILINE)[1:]}
    assert [title for title in sections if title != CLAIMS] == [entry.title for entry in experiments.values()]
    checked = 0
    for entry in experiments.values():
        lines = [line for line in sections[entry.title].splitlines() if line.startswith('|')]
        rows = [row for table in entry.tables for row in (None, None, *table.rows)]  # titles and a rule come first
        assert len(lines) == len(rows), entry.title
        for line, row in zip(lines, rows, strict=True):
            if row is None:
                continue
            cells = [cell.strip() for cell in re.split(r'(?<!\\)\|', line)[2:-1]]
            for text, value in zip(cells, row.values, strict=True):
                known = experiment.numbers(value) if not isinstance(value, str) else None
                for shown in NUMBER.findall(text):
                    if known is None:
                        assert shown in value
                    else:
                        digits = len(shown.partition('e')[0].partition('.')[2])
                        number = float(shown.replace(',', '').replace('−', '-'))
                        bound = 0.51 * 10**-digits if 'e' not in shown else abs(number) * 0.51 * 10**-digits
                        assert any(abs(number - k) <= bound for k in known), f'{entry.title}: {text} is not {value}'
                    checked += 1
    assert checked > 500


def test_every_figure_is_there_and_can_be_drawn(experiments):
    for name, entry in experiments.items():
        assert (RESULTS / name / experiment.FIGURE).exists() == bool(entry.figure)
        for panel in entry.figure:  # as `figures.draw` reads them
            kind = figures.kind_of(panel)
            if kind != 'curves':
                figures.rows_of(entry.table(panel[kind]), panel)


def commands_of(program: str) -> list[tuple[str, list[str]]]:
    """(experiment, arguments) of each command of its page that calls the program as it stands, without a loop."""
    found = []
    for path in sorted(RESULTS.glob('*/experiment.json')):
        for block in json.loads(path.read_text(encoding='utf-8'))['commands']:
            for line in block.replace('\\\n', ' ').splitlines():
                if line.startswith(f'python -m {program} ') and '$' not in line:
                    found.append((path.parent.name, shlex.split(line)[3:]))
    return found


COMPARISONS = commands_of('mlm_jax.compare')
SCRIPTS = sorted(RESULTS.glob('*/*.py'))


@pytest.mark.parametrize(('name', 'arguments'), COMPARISONS, ids=[name for name, _ in COMPARISONS])
def test_a_comparison_can_be_asked_for_by_its_command(name, arguments):
    """Defaults change; configurations that differed by one may be the same today, and `compare` refuses these."""
    names, settings = (
        [argument.partition('=')[2] for argument in arguments if argument.startswith(f'--{flag}=')]
        for flag in ('config', 'set')
    )
    overrides = config_lib.parse_settings(settings)
    configs = [config_lib.load(str(PACKAGE.parent / text), overrides) for text in names]
    for one, other in itertools.combinations(configs, 2):
        ignored = (*configurations.WITHOUT_INFLUENCE, *configurations.LENGTH_AND_SEED)
        assert configurations.differences(one, other, ignored)


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: f'{path.parent.name}/{path.name}')
def test_scripts_of_the_results_call_what_there_is(path):
    """They measure for hours and are seldom run, so what they call must not have gone meanwhile."""
    tree, modules = ast.parse(path.read_text(encoding='utf-8')), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] == 'mlm_jax':
            for alias in node.names:
                parent = importlib.import_module(node.module)
                found = getattr(parent, alias.name, None) or importlib.import_module(f'{node.module}.{alias.name}')
                if isinstance(found, types.ModuleType):
                    modules[alias.asname or alias.name] = found
    assert modules
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            assert hasattr(modules[node.value.id], node.attr), f'line {node.lineno}: {ast.unparse(node)}'
