"""Paths that people give: on a disk, and of the kind that is wanted."""

import importlib.util
import pathlib
import re

from absl import flags

from mlm_jax.files.errors import ConfigError

flags.disclaim_key_flags()  # what `define_flag` defines belongs to the program that calls it

# What may stand before a path here and is no scheme: the kinds of corpora, extend: of tokenizers, random: of models.
PREFIXES = ('text', 'lines', 'files', 'jsonl', 'csv', 'smi', 'extend', 'random')
# A scheme with its slashes; of those that cannot be meant otherwise also with one slash, to which tools shorten two.
_URL = re.compile(
    r'(?<![A-Za-z0-9+.-])(?:([A-Za-z][A-Za-z0-9+.-]*)://|(gs|gcs|s3|s3a|az|abfss?|hdfs|file):/)([^;,\s]*)'
)
_CURES = {
    'hf': 'download it, and write hf:DIRECTORY',
    'http': 'download it, and give the path of that copy',
    'https': 'download it, and give the path of that copy',
    'gs': 'copy it to a local directory, or mount the bucket with gcsfuse, and give that path',
}
_OTHER_CURE = 'copy it to a local directory, or mount it as one, and give that path'


def check_local(text: str) -> None:
    """Raises ConfigError where a path, or what stands for several, holds a URL: it would become a directory `gs:`."""
    for match in _URL.finditer(text):
        scheme = (match[1] or match[2]).lower()
        if scheme in PREFIXES:  # jsonl://data is the path //data
            continue
        if scheme == 'file':
            raise ConfigError(f'{match[0]} is a URL; write the path itself, /{match[3].lstrip("/")}')
        raise ConfigError(
            f'{match[0]} is a URL, and only files on a local or mounted disk can be read and written: '
            f'{_CURES.get(scheme, _OTHER_CURE)}'
        )


def check_configuration_name(name: str) -> None:
    """As `check_local`, of the file in FILE.py[:ARGUMENT]; what the argument sets is for `config.checks`."""
    check_local(name.partition('.py')[0])


def check_kind(path: str, kind: str) -> None:
    """Checks that what exists under a path is of a kind.

    Args:
      path: of something that need not be there.
      kind: 'directory' or 'file'.

    Raises:
      ConfigError: for the other kind, a symbolic link that leads nowhere, and a path that the system refuses.
    """
    try:
        found = pathlib.Path(path).expanduser()
        is_dangling = found.is_symlink() and not found.exists()
        is_other = found.is_file() if kind == 'directory' else found.is_dir()
    except (OSError, RuntimeError) as error:  # a name that is too long; a home directory of nobody
        raise ConfigError(f'{path} cannot be used: {getattr(error, "strerror", None) or error}') from None
    if is_dangling:
        raise ConfigError(f'{path} is a symbolic link to {found.readlink()}, which is not there')
    if is_other:
        raise ConfigError(f'{path} is a {"file" if kind == "directory" else "directory"}; give a {kind}')


def check_compilation_cache(directory: str) -> None:
    """As `check_local`, but for gs://, which JAX itself reads and writes where the package gcsfs is installed."""
    if not (directory.startswith('gs://') and importlib.util.find_spec('gcsfs')):
        check_local(directory)


class PathParser(flags.ArgumentParser):
    """Flags whose values are paths; `kind` is 'directory', 'file', or '' where more than a path may stand there."""

    syntactic_help = 'a path'

    def __init__(self, kind: str):
        self.kind = kind

    def parse(self, argument: str) -> str:
        """The path as it is given; ConfigError, which absl reports with the flag, where it cannot be used."""
        check_local(argument)
        if self.kind and argument:
            check_kind(argument, self.kind)
        return argument


def define_flag(name: str, default, text: str, kind: str = '', multiple: bool = False) -> None:
    """Defines a flag that names files; every program defines those here.

    Args:
      name: of the flag.
      default: its value where it is not given.
      text: its help.
      kind: 'directory' or 'file'; '' where more than a path may stand there.
      multiple: whether it may be given several times; its value is a list then.
    """
    if multiple:
        flags.DEFINE_multi(PathParser(kind), flags.ArgumentSerializer(), name, default, text)
    else:
        flags.DEFINE(PathParser(kind), name, default, text, serializer=flags.ArgumentSerializer())
