"""The programs of this package, run in this process as `mlm-jax NAME …` runs them.

That saves importing JAX anew for each, and compiling what this process has compiled.
"""

import contextlib
import dataclasses
import io
import re
import sys
import warnings

import pytest
from absl import flags

from mlm_jax import __main__ as entry_point
from mlm_jax.config import host_memory
from mlm_jax.files import paths
from mlm_jax.training import runtime


@dataclasses.dataclass(frozen=True)
class Finished:
    """A program that has ended.

    Attributes:
      returncode: 0, or what it ended with.
      stdout: what it printed.
      stderr: what it reported, with the message that it ended with.
    """

    returncode: int
    stdout: str
    stderr: str


def run(name: str, *arguments: str) -> Finished:
    """Runs a program with these arguments; what would be a traceback is raised."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with _fresh_flags(), warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.filterwarnings('ignore', message='.*found in sys.modules')  # other tests import the programs
        patch.setattr(sys, 'argv', ['mlm-jax', name, *arguments])
        # What a program sets up for a process that lives no longer than it does.
        patch.setattr(host_memory, 'keep_freed_memory', lambda: None)
        patch.setattr(runtime, 'use_compilation_cache', lambda place: place and paths.check_compilation_cache(place))
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            try:
                entry_point.main()
                code = 0
            except SystemExit as end:
                code = end.code or 0
    if isinstance(code, str):  # which Python prints, before it ends with 1
        stderr.write(f'{code}\n')
        code = 1
    return Finished(code, stdout.getvalue(), stderr.getvalue())


@contextlib.contextmanager
def _fresh_flags():
    """Removes the flags that a program has defined, and the values of all others."""
    before = {*flags.FLAGS}
    try:
        yield
    finally:
        for name in {*flags.FLAGS} - before:
            # Libraries that a program is the first to import define their own once.
            if re.match(r'__main__|mlm[-_]jax|.*[\\/]mlm_jax[\\/]', flags.FLAGS.find_module_defining_flag(name)):
                delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()
