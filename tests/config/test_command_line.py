"""Errors at the boundary of the programs: one line, and a status of their own."""

import errno
import os
import signal
import subprocess
import sys

import programs
import pytest
from absl import flags

from mlm_jax.config import ConfigError, command_line
from mlm_jax.files.pictures import plain_text


def run(body: str, before: str = '') -> subprocess.CompletedProcess:
    """A program whose main is `body`."""
    code = f'from mlm_jax.config import command_line\n{before}\ndef main():\n    {body}\ncommand_line.run(main)'
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)


def test_ctrl_c_is_one_line_and_status_130():
    result = run('import os, signal; os.kill(os.getpid(), signal.SIGINT); import time; time.sleep(5)')
    assert result.returncode == command_line.INTERRUPTED_EXIT_CODE == 128 + signal.SIGINT
    assert result.stderr.split() == ['interrupted;', 'the', 'same', 'command', 'goes', 'on', 'from', 'here']


def test_ctrl_c_does_not_wait_for_a_compilation():
    """Which goes on in a thread, for half a minute here, and crashed when the process ended under it."""
    before = 'import jax, jax.numpy as jnp, os, signal, threading'
    body = (
        'lowered = jax.jit(lambda x: [x := jnp.sin(x @ x) + i for i in range(400)][-1]).lower(jnp.ones((64, 64))); '
        'threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT)).start(); lowered.compile(); print("compiled")'
    )
    result = run(body, before)
    assert (result.returncode, result.stdout) == (command_line.INTERRUPTED_EXIT_CODE, '')
    assert result.stderr.strip() == 'interrupted; the same command goes on from here'


def test_former_spellings_name_their_successors():
    """Those of configurations, in programs that take one, and those that a program names."""
    former = {'workdir': '--workdir is now --model={value}'}

    def said(*arguments):
        return command_line.former_spelling(arguments, former)

    assert said('--verbosity=1', '--workdir=runs/mlm') == '--workdir is now --model=runs/mlm'
    assert said('-workdir', 'runs/mlm') == '--workdir is now --model=runs/mlm'
    assert said('--workdir') == '--workdir is now --model=VALUE'
    assert said('--output=--workdir=x', 'workdir=x', '--', '--workdir=x') == ''
    assert said('--config.batch_size=8', '--configs=a.py,b.py') == '', 'this program takes no configuration'
    before = set(flags.FLAGS)
    command_line.define_config_flags()
    try:
        assert said('--config.data.corpus=a,b=c') == '--config.data.corpus=a,b=c is now --set=data.corpus=a,b=c'
        assert said('--config=mlm:tiny', '--configs=a.py,b.py').startswith('--configs is now --config, given once for')
    finally:
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['--help'], '--helpfull'),
        (['-help'], '--helpfull'),
        (['-?'], '--helpfull'),
        (['--help=true'], '--helpfull'),
        (['--helpshort'], '--helpfull'),
        (['--helpfull'], '--verbosity'),
        (['--helpxml'], '<name>model</name>'),
        (['--parallel_seeds=none', '--workdir=x', '--nonsense', '--help'], '--helpfull'),
    ],
)
def test_help_is_no_failure(arguments, said):
    """And other flags, which may be wrong, do not keep it away."""
    result = programs.run('finetune', *arguments)
    assert (result.returncode, result.stderr) == (0, '')
    assert said in result.stdout and 'model' in result.stdout


def test_arguments_that_only_look_like_help():
    for argument in ('help', '--help=false', '--helper', '--label=--help'):
        assert not command_line.asks_for_help(argument), argument
    assert programs.run('finetune', '--help=false', '--model=x').returncode == 1


def test_a_disk_that_is_full_is_one_line_and_a_status_of_its_own():
    """A thread that hangs does not hold up the end, and a limit of the system stands for the end of the disk."""
    before = (
        'import resource, signal, tempfile, threading, time\n'
        'signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n'
        'resource.setrlimit(resource.RLIMIT_FSIZE, (9, 9))\n'
        'threading.Thread(target=time.sleep, args=(600,)).start()'
    )
    result = run('open(tempfile.mkdtemp() + "/x", "wb", buffering=0).write(b"0" * 9); '
                 'import pathlib; from mlm_jax.files import atomic; '
                 'atomic.write_bytes(pathlib.Path(tempfile.mkdtemp()) / "x", b"0" * 99)', before)  # fmt: skip
    assert result.returncode == command_line.DISK_EXIT_CODE
    assert result.stderr.startswith('error: File too large') and result.stderr.count('\n') == 1


@pytest.mark.parametrize(
    ('number', 'cure'),
    [(errno.ENOSPC, 'Free space, and run the same command again.'), (errno.EROFS, 'Make it writable, or give another')],
)
def test_errors_of_the_disk_have_a_place_a_cure_and_what_is_saved(number, cure):
    error = OSError(number, os.strerror(number), 'runs/mlm')
    error.add_note('The last complete checkpoint is that of step 7.')
    said = command_line.describe_disk_error(error)
    assert said.startswith(f'{os.strerror(number)}: runs/mlm. {cure}') and said.endswith('that of step 7.')


def test_names_that_no_file_system_takes_are_refused():
    command_line.check_file_names(['a' * 255], 'Shorten it.')
    with pytest.raises(ConfigError, match=r'has 256 bytes, and would name a directory; 255 are possible\. Shorten it'):
        command_line.check_file_names(['ä' * 128], 'Shorten it.')


def test_dollar_signs_of_names_are_not_mathematics(tmp_path):
    from matplotlib.figure import Figure

    figure = Figure()
    for name in ('$x', 'a$b$c', '$\\frac$', 'plain'):
        figure.text(0.5, 0.5, plain_text(name))
    figure.savefig(tmp_path / 'x.png')
