"""All programs under one name: `mlm-jax PROGRAM …` is `python -m mlm_jax.PROGRAM …`."""

import ast
import difflib
import pathlib
import runpy
import sys

import mlm_jax

PROGRAMS = (
    'prepare', 'train', 'finetune', 'evaluate', 'probe', 'compare', 'inspect_masks', 'bench', 'bench_likelihood',
    'doctor', 'export',
)  # fmt: skip


def main() -> None:
    """Runs the program that the first argument names, or lists the programs."""
    name, *arguments = sys.argv[1:] or ['--help']
    if name in ('--help', '-h', 'help'):
        print(usage())
    elif name == '--version':
        print(mlm_jax.__version__)
    elif name in PROGRAMS:
        sys.argv = [f'mlm-jax {name}', *arguments]
        runpy.run_module(f'mlm_jax.{name}', run_name='__main__', alter_sys=True)
    else:
        close = difflib.get_close_matches(name, PROGRAMS, n=1)
        hint = f' Did you mean {close[0]}?' if close else ''
        sys.exit(f'error: there is no program {name!r}.{hint}\n\n{usage()}')


def usage() -> str:
    """What the programs do, a line each; taken from their files, since importing them would take seconds."""
    width = max(map(len, PROGRAMS))
    lines = [f'  {name:{width}}  {_summary(name)}' for name in PROGRAMS]
    return '\n'.join(
        ['usage: mlm-jax PROGRAM [flags]', '', *lines, '', '`mlm-jax PROGRAM --help` explains a program and its flags.']
    )


def _summary(name: str) -> str:
    source = pathlib.Path(__file__).with_name(f'{name}.py').read_text(encoding='utf-8')
    return (ast.get_docstring(ast.parse(source)) or '').partition('\n')[0]


if __name__ == '__main__':
    main()
