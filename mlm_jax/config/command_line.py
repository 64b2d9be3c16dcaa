"""What the programs share at their boundary: flags, and errors in the user's words instead of tracebacks."""

import ctypes
import errno
import os
import pathlib
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from mlm_jax import config as config_lib
from mlm_jax.config import ConfigError

# Exit statuses besides 1: sysexits' EX_IOERR, and what shells give a program that Ctrl-C ends.
DISK_EXIT_CODE, INTERRUPTED_EXIT_CODE = 74, 130
# Errors of the file system that are the user's to mend.
_DISK_CURES = {
    errno.ENOSPC: 'Free space, and run the same command again.',
    errno.EDQUOT: 'Free space of your quota, and run the same command again.',
    errno.EFBIG: 'The file system, or a limit (ulimit -f), does not let files grow so large.',
    errno.EROFS: 'Make it writable, or give another directory.',
    errno.EACCES: 'Make it writable for this user, or give another directory.',
    errno.EPERM: 'Make it writable for this user, or give another directory.',
    errno.EIO: 'The disk, or the network that it is on, fails; the log of the system may say more.',
    errno.ESTALE: 'The network file system has lost it; run the same command again when that is back.',
    errno.ENAMETOOLONG: 'Give a shorter name: file systems take 255 bytes.',
    errno.ENOTDIR: 'A part of that path is a file; give another directory.',
    errno.EEXIST: 'There is a file of that name; give another directory.',
    errno.EISDIR: 'There is a directory of that name, where a file should be.',
}

LONGEST_NAME = 255  # bytes, of one file or directory, on all common file systems


def define_config_flag() -> None:
    """Defines `--config`; unknown keys, and overrides of the wrong type, are errors."""
    config_flags.DEFINE_config_file(
        'config',
        None,
        'Configuration: NAME or FILE.py, then [:SIZE[,key=value…]], such as mlm:mini,batch_size=128. Single keys: '
        '--config.KEY=VALUE. mlm_jax/config/keys.py explains them.',
        lock_config=True,
    )


def run(main: Callable[[], None], required: tuple[str, ...] = ()) -> None:
    """Parses the flags and runs `main`; exits with the message of an error that is the user's to mend.

    Programs define their flags just before this, and not when they are imported: so each can use the others.

    Args:
      main: reads its flags itself.
      required: the flags that must be given.
    """
    flags.mark_flags_as_required(required)
    keep_freed_memory()
    sys.stdout.reconfigure(errors='backslashreplace')  # as stderr does: of names and texts that it cannot write
    try:
        app.run(lambda argv: _guarded(main), flags_parser=_parse_flags)
    except KeyboardInterrupt:
        print('\ninterrupted; the same command goes on from here', file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED_EXIT_CODE)


def keep_freed_memory() -> None:
    """Makes the C library keep what is freed for the next allocation, where that is glibc.

    On CPU devices a step allocates its hundreds of megabytes anew. Given back and asked for again, each of their pages
    costs a fault and is set to zero, which took a fifth of a step; `mallopt` is glibc's own knob for it. Threads share
    one heap then, as only that one may be so large. To be called before there are threads.
    """
    if platform.libc_ver()[0] == 'glibc':
        c_library = ctypes.CDLL(None)
        trim_threshold, mmap_max, arena_max = -1, -4, -8  # malloc.h
        for parameter, value in ((mmap_max, 0), (arena_max, 1), (trim_threshold, -1)):
            c_library.mallopt(parameter, value)


def parse_seeds(texts: Sequence[str]) -> list[int]:
    """Seeds from text; ConfigError unless they are different whole numbers."""
    try:
        seeds = [int(text) for text in texts]
    except ValueError:
        seeds = []
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0 or max(seeds) >= 2**32:
        raise ConfigError(f'--seeds={",".join(texts)}: give different whole numbers below 2³², such as 0,1,2')
    return seeds


def check_file_names(names: Iterable[str], cure: str) -> None:
    """Raises ConfigError, with the cure, for a name that is too long for a file or a directory."""
    for name in names:
        if (size := len(os.fsencode(name))) > LONGEST_NAME:
            raise ConfigError(
                f'{name[:60]}… has {size} bytes, and would name a directory; {LONGEST_NAME} are possible. {cure}'
            )


def short_names(workdirs: Sequence[str]) -> list[str]:
    """The last parts of paths, as many as it takes to tell them apart; ConfigError where two are the same."""
    parts = [pathlib.Path(workdir).expanduser().absolute().parts for workdir in workdirs]
    for length in range(1, max(map(len, parts)) + 1):
        names = ['/'.join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ConfigError(f'a --workdir is given twice: {", ".join(workdirs)}')


def _guarded(main: Callable[[], None]) -> None:
    if not flags.FLAGS['verbosity'].present:
        logging.set_verbosity(logging.WARNING)  # Orbax tells of each of its threads otherwise
    try:
        main()
    except (ConfigError, FloatingPointError, FileNotFoundError, ImportError) as error:
        sys.exit(f'error: {error}')
    except OSError as error:
        if error.errno not in _DISK_CURES:
            raise
        print(f'error: {describe_disk_error(error)}', file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(DISK_EXIT_CODE)  # what was being written in other threads would hold up the end, and print tracebacks


def describe_disk_error(error: OSError) -> str:
    """An error of the file system in one line: what, where, the cure, and what has been added to it."""
    where = f': {error.filename}' if error.filename else ''
    return ' '.join([f'{error.strerror}{where}.', _DISK_CURES[error.errno], *getattr(error, '__notes__', ())])


def _parse_flags(argv: list[str]) -> list[str]:
    if any(argument.lstrip('-') in ('help', 'helpshort', 'helpfull') for argument in argv):
        return app.parse_flags_with_usage(argv)
    try:
        unparsed = flags.FLAGS(list(_with_paths(argv)))[1:]
        if 'config' in flags.FLAGS and flags.FLAGS['config'].present:
            # A file that does not load says so only when somebody reads from it.
            getattr(flags.FLAGS.config, 'keys', None)
    except AttributeError as error:  # how a locked ConfigDict refuses an override
        sys.exit(f'error: unknown configuration key {_plain(str(error))}')
    except (flags.Error, TypeError, ValueError, OSError) as error:
        sys.exit(f'error: {_plain(str(error))}\n--help lists the flags')
    if unparsed:
        sys.exit(f'error: unexpected arguments: {" ".join(unparsed)}\n--help lists the flags')
    return argv[:1]


def _with_paths(argv: Sequence[str]) -> Iterator[str]:
    """The arguments, in which `--config=mlm:mini` has become the path of the file that is shipped under that name."""
    # A flag that takes several names hands them to `config.load`, which finds the files itself.
    takes_path = 'config' in flags.FLAGS and not isinstance(flags.FLAGS['config'], flags.MultiFlag)
    is_name = False  # the word behind `--config`
    for argument in argv:
        flag, equals, name = argument.partition('=')
        is_flag = takes_path and flag.startswith('-') and flag.lstrip('-') == 'config'
        if is_name:
            yield config_lib.with_path(argument)
        else:
            yield f'{flag}={config_lib.with_path(name)}' if is_flag and equals else argument
        is_name = is_flag and not equals


def _plain(message: str) -> str:
    """The message without the traceback and the quotes in which ml_collections hands it on."""
    if 'ConfigError: ' in message:
        message = message.rsplit('ConfigError: ', 1)[1]
    message = message.replace("\\'", "'").replace('\\n', '\n').strip()
    while len(message) > 1 and message[0] == message[-1] and message[0] in '\'"':
        message = message[1:-1].strip()
    return message
