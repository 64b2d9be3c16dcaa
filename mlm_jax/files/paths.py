"""Checks of paths that users give: where they may lie, and that each is a file or a directory as required."""

import importlib.util
import pathlib
import re

from absl import flags

from mlm_jax.files import buckets
from mlm_jax.files.errors import ConfigError

flags.disclaim_key_flags()  # a flag defined by `define_flag` belongs to the program that calls it

# Prefixes of paths that are not URL schemes: the kinds of corpora, extend: for tokenizers, and those of models.
PREFIXES = ('text', 'lines', 'files', 'jsonl', 'csv', 'parquet', 'arrow', 'smi', 'extend', 'random', 'ema', 'average')
# A scheme with two slashes, or, if the scheme is unmistakable, with the single slash to which some tools shorten two.
_URL = re.compile(
    r'(?<![A-Za-z0-9+.-])(?:([A-Za-z][A-Za-z0-9+.-]*)://|(gs|gcs|s3|s3a|az|abfss?|hdfs|file):/)([^;,\s]*)'
)
_CURES = {
    'hf': 'write hf:ORGANIZATION/NAME for what is on the hub, or download it and write hf:DIRECTORY',
    'http': 'download it and give the path of the copy',
    'https': 'download it and give the path of the copy',
    'gs': 'copy it to a local directory or mount the bucket with gcsfuse, and give that path',
}
_OTHER_CURE = 'copy it to a local directory or mount it as a directory, and give that path'


def check_local(text: str) -> None:
    """Raises ConfigError if a path or a list of globs contains a URL, which would create a directory such as `gs:`."""
    _check(text, takes_buckets=False)


def check_local_or_bucket(text: str) -> None:
    """As `check_local`, but paths in buckets (`buckets.py`) are taken."""
    _check(text, takes_buckets=True)


def _check(text: str, takes_buckets: bool) -> None:
    for match in _URL.finditer(text):
        scheme = (match[1] or match[2]).lower()
        if scheme in PREFIXES:  # jsonl://data is the path //data
            continue
        if takes_buckets and scheme in buckets.SCHEMES and scheme not in buckets.READ_ONLY:
            if buckets.is_bucket(match[0]):
                continue
            raise ConfigError(
                f'{match[0]} is a URL without the name of a bucket: the path of a directory or file is '
                f'{scheme}://BUCKET/PATH'
            )
        if scheme == 'file':
            raise ConfigError(f'{match[0]} is a URL; write the path itself, /{match[3].lstrip("/")}')
        raise ConfigError(
            f'{match[0]} is a URL, and here only files on a local or mounted disk can be read and written: '
            f'{_CURES.get(scheme, _OTHER_CURE)}'
        )


def check_configuration_name(name: str) -> None:
    """Applies `check_local` to FILE.py of FILE.py[:ARGUMENT]; `config.checks` checks what the argument sets."""
    file = re.split(':(?!/)', name, maxsplit=1)[0]  # without the argument, which may name a bucket
    check_local(file.partition('.py')[0])


def check_kind(path: str, kind: str) -> None:
    """Checks that a path, if it exists, is of the required kind.

    Args:
      path: the path of a file or directory that need not exist.
      kind: 'directory' or 'file'.

    Raises:
      ConfigError: for the other kind, for a dangling symbolic link, and for a path that the system rejects. Nothing is
        asked of a bucket.
    """
    if buckets.is_bucket(path):
        return
    try:
        found = pathlib.Path(path).expanduser()
        is_dangling = found.is_symlink() and not found.exists()
        is_other = found.is_file() if kind == 'directory' else found.is_dir()
    except (OSError, RuntimeError) as error:  # the name is too long, or the user of a home directory does not exist
        raise ConfigError(f'{path} cannot be used: {getattr(error, "strerror", None) or error}') from None
    if is_dangling:
        raise ConfigError(f'{path} is a symbolic link to {found.readlink()}, which does not exist')
    if is_other:
        raise ConfigError(f'{path} is a {"file" if kind == "directory" else "directory"}; give a {kind}')


def check_compilation_cache(directory: str) -> None:
    """Like `check_local`, but allows gs:// if gcsfs is installed, because JAX can then read and write such URLs."""
    if not (directory.startswith('gs://') and importlib.util.find_spec('gcsfs')):
        check_local(directory)


class PathParser(flags.ArgumentParser):
    """Parses flags whose values are paths; `kind` is 'directory', 'file', or '' if a value may be more than a path."""

    syntactic_help = 'a path'

    def __init__(self, kind: str, takes_buckets: bool = True):
        self.kind, self.takes_buckets = kind, takes_buckets

    def parse(self, argument: str) -> str:
        """Returns the path unchanged; raises ConfigError, which absl reports with the flag, if it cannot be used."""
        _check(argument, self.takes_buckets)
        if self.kind and argument:
            check_kind(argument, self.kind)
        return argument


def define_flag(
    name: str,
    default: str | list[str] | None,
    text: str,
    kind: str = '',
    multiple: bool = False,
    takes_buckets: bool = True,
) -> None:
    """Defines a flag whose value is a path; all programs define such flags with this function.

    Args:
      name: the name of the flag.
      default: the value of the flag if it is not given.
      text: the help text.
      kind: 'directory' or 'file'; '' if the value may be more than a path.
      multiple: whether the flag may be given several times; its value is then a list.
      takes_buckets: whether the path may lie in a bucket (`buckets.py`).
    """
    parser = PathParser(kind, takes_buckets)
    if multiple:
        flags.DEFINE_multi(parser, flags.ArgumentSerializer(), name, default, text)
    else:
        flags.DEFINE(parser, name, default, text, serializer=flags.ArgumentSerializer())
