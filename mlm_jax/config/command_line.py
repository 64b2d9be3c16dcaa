"""What the programs share at their boundary: flags, and errors in the user's words instead of tracebacks."""

import atexit
import errno
import functools
import io
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence

import ml_collections
from absl import app, flags, logging

from mlm_jax import config as config_lib
from mlm_jax.config import ConfigError, host_memory

flags.disclaim_key_flags()  # the flags that are defined here belong to the program that calls for them

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
_HELP = ('help', 'helpshort', 'helpfull', 'helpxml', '?')  # flags that print what there is, and end the program
_FORMER_CONFIGS = '--configs is now --config, given once for each configuration: --config=mlm:mini --config=mae_lm:mini'


class Stopped(SystemExit):
    """Ends a program in the middle of something, such as a compilation, with the status that it is given."""


def define_config_flags() -> None:
    """Defines `--config`, which may be repeated, and `--set`, which changes single keys of each configuration.

    A program reads them by `configuration` or `configurations`.
    """
    flags.DEFINE_multi_string(
        'config',
        None,
        'Configuration: NAME or FILE.py, then [:SIZE[,key=value…]], such as mlm:mini,batch_size=128. Repeated where '
        'a program takes several.',
    )
    flags.DEFINE_multi_string(
        'set',
        [],
        'KEY=VALUE, a single key of the configuration, or of each of several; may be repeated. '
        'mlm_jax/config/defaults.py explains the keys; mlm_jax/objectives/*_spec.py those of single objectives.',
    )


def configurations() -> list[tuple[str, ml_collections.ConfigDict]]:
    """The configurations of `--config`, by their names as given, each changed by `--set`.

    Raises:
      ConfigError: for a configuration that there is not, an unknown key, or a value of the wrong type.
    """
    settings = config_lib.parse_settings(flags.FLAGS.set)
    return [(name, config_lib.load(name, settings).lock()) for name in flags.FLAGS.config]


def configuration() -> ml_collections.ConfigDict:
    """The configuration of a program that takes one; ConfigError as `configurations`, and where several are given."""
    if len(flags.FLAGS.config) > 1:
        raise ConfigError(
            f'--config is given {len(flags.FLAGS.config)} times, but this program takes one configuration; single keys '
            'of it are changed by --set=KEY=VALUE'
        )
    ((_, config),) = configurations()
    return config


def run(
    main: Callable[..., None],
    required: Sequence[str] = (),
    former: Mapping[str, str] | None = None,
    takes_rest: bool = False,
) -> None:
    """Parses the flags and runs `main`; exits with the message of an error that is the user's to mend.

    Programs define their flags just before this, and not when they are imported: so each can use the others.

    Args:
      main: reads its flags itself.
      required: the flags that must be given.
      former: name of a flag that there was once → the sentence that names its successor; `{value}` stands in it for
        what is given.
      takes_rest: whether `main` takes the arguments behind a lone `--`, a list; otherwise they are refused.
    """
    flags.mark_flags_as_required(required)
    # JAX compiles in a thread that goes on when the main one has been stopped. Taking Python down waits for it, and may
    # end with a segmentation fault and its status, as the client of XLA goes first (jaxlib 0.10). Exit functions are
    # called in reverse order: those of the work come before this one, and JAX's do not come.
    status: list[int] = []
    atexit.register(_leave, status)
    host_memory.keep_freed_memory()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors='backslashreplace')  # as stderr does: of names and texts that it cannot write
    try:
        app.run(
            lambda argv: _guarded(functools.partial(main, argv[1:]) if takes_rest else main),
            flags_parser=lambda argv: _parse_flags(argv, former or {}, takes_rest),
        )
    except KeyboardInterrupt:
        print('\ninterrupted; the same command goes on from here', file=sys.stderr, flush=True)
        status.append(INTERRUPTED_EXIT_CODE)
        sys.exit(INTERRUPTED_EXIT_CODE)
    except Stopped as stopped:
        status.append(int(stopped.code or 0))
        raise


def asks_for_help(argument: str) -> bool:
    """Whether an argument of the command line is `--help`, or one of the flags that print more of it, or less."""
    return argument.startswith('-') and argument.lstrip('-') in _HELP


def is_given(name: str) -> bool:
    """Whether a flag is on the command line, with a value."""
    return bool(flags.FLAGS[name].present) and flags.FLAGS[name].value != ''


def check_companions(companions: Mapping[str, str]) -> None:
    """Raises ConfigError for a flag that is given without the one that it says more about: flag → that one."""
    for name, other in companions.items():
        if is_given(name) and not flags.FLAGS[other].value:
            raise ConfigError(f'--{name} means nothing without --{other}: add --{other}, or leave out --{name}')


def _leave(status: Sequence[int]) -> None:
    """Ends this process at once where there is a status."""
    if status:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status[0])


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
    return ' '.join([f'{error.strerror}{where}.', _DISK_CURES[error.errno or 0], *getattr(error, '__notes__', ())])


def _parse_flags(argv: list[str], former: Mapping[str, str], takes_rest: bool = False) -> list[str]:
    """The program and, with `takes_rest`, the arguments behind `--`, which are not looked at."""
    rest: list[str] = []
    if takes_rest and '--' in argv:
        argv, rest = argv[: argv.index('--')], argv[argv.index('--') + 1 :]
    if asked := [argument for argument in argv[1:] if asks_for_help(argument)]:
        argv = [argv[0], asked[0]]  # the other flags need not be right
    if sentence := former_spelling(argv[1:], former):
        sys.exit(f'error: {sentence}')
    try:
        unparsed = flags.FLAGS(argv)[1:]
    except SystemExit:  # abseil has printed the help that was asked for, and calls that a failure
        sys.exit(0)
    except (flags.Error, ValueError) as error:
        sys.exit(f'error: {error}\n--help lists the flags')
    if unparsed:
        sys.exit(f'error: unexpected arguments: {" ".join(unparsed)}\n--help lists the flags')
    return argv[:1] + rest


def former_spelling(arguments: Sequence[str], former: Mapping[str, str]) -> str:
    """The sentence that names the successor of the first flag that there was once; '' where there is none.

    Args:
      arguments: of the command line, without the program.
      former: as for `run`. Programs with `--config` add `--config.KEY=VALUE` and `--configs` to it.
    """
    for place, argument in enumerate(arguments):
        if argument == '--':
            break
        if not argument.startswith('-'):
            continue
        name, equals, value = argument.lstrip('-').partition('=')
        value = value if equals else next(iter(arguments[place + 1 : place + 2]), 'VALUE')
        if name in former:
            return former[name].format(value=value)
        if 'config' in flags.FLAGS and name.startswith('config.'):
            key = name.removeprefix('config.')
            return f'--config.{key}={value} is now --set={key}={value}'
        if 'config' in flags.FLAGS and name == 'configs':
            return _FORMER_CONFIGS
    return ''
