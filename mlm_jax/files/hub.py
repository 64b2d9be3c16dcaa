"""The Hugging Face Hub: which commit a name stands for, copies of models, and what is wrong (extra `hub`).

Names are ORGANIZATION/NAME, with @REVISION behind them for a branch, a tag or a commit. What is read is always that of
a commit, whose content cannot change. Of a model, only what can execute nothing is downloaded: config.json, safetensors
and the file of its tokenizer. Access tokens, caches and other endpoints (HF_TOKEN, HF_HOME, HF_ENDPOINT,
HF_HUB_OFFLINE) are those of the package huggingface_hub.
"""

import contextlib
import functools
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from mlm_jax.files.errors import ConfigError, TransientError

COMMIT = re.compile('[0-9a-f]{40}')
# Kind of a repository → its name in sentences.
KINDS = {'model': 'model', 'dataset': 'data set'}
PREFIX = 'hf:'
_MODEL = re.compile(r'(\w[\w.-]*(?:/\w[\w.-]*)?)(?:@(\w[\w./-]*))?')  # the name of a model, and its revision
_SUFFIXES = ('.json', '.txt', '.model')  # of files of tokenizers
_FILES = (
    'config.json', 'model.safetensors', 'model-*.safetensors', 'model.safetensors.index.json', 'tokenizer.json',
    'vocab.txt',
)  # fmt: skip


def commit(name: str, kind: str, revision: str | None, offline_cure: str) -> str | None:
    """The commit that a revision of a repository stands for; None if it has no such revision.

    Args:
      name: ORGANIZATION/NAME.
      kind: 'model' or 'dataset'.
      revision: a branch, a tag or a commit; None takes the main branch.
      offline_cure: what to do without the hub, a clause: 'download it and write …'.

    Raises:
      ConfigError: if there is no such repository, it is gated, or the hub cannot be reached; and without the extra.
    """
    library = package(f'hf:{name}')
    try:
        with explained(name, kind, offline_cure):
            library.HfApi().auth_check(name, repo_type=kind)  # all may know the commits of a gated repository
            return library.HfApi().repo_info(name, repo_type=kind, revision=revision).sha
    except library.errors.RevisionNotFoundError:
        return None


def model(directory: pathlib.Path) -> pathlib.Path:
    """A directory; if there is none of that name and it can be the name of a model, the copy of the model in the cache.

    What is not in the cache is downloaded. Without the hub, the cache alone is used.

    Args:
      directory: the path of a directory, or ORGANIZATION/NAME[@REVISION].

    Raises:
      ConfigError: if there is no such model, it is gated, it has no safetensors, or it is not in the cache and the hub
        cannot be reached; and without the extra.
    """
    if not (found := _MODEL.fullmatch(str(directory))) or directory.exists():
        return directory
    return _snapshot(*found.groups())


def can_be_model(name: str) -> bool:
    """Whether a text has the form of [ORGANIZATION/]NAME[@REVISION], and not of a file of a tokenizer."""
    return _MODEL.fullmatch(name) is not None and pathlib.Path(name).suffix not in _SUFFIXES


def model_file(name: str) -> pathlib.Path:
    """The file of NAME/FILE, where NAME is as in `model`.

    Raises:
      ConfigError: if the text names no file, and as `model` does.
    """
    path = pathlib.Path(name).expanduser()
    if path.suffix not in _SUFFIXES and not path.is_file():  # names of models have dots, too
        raise ConfigError(
            f'{PREFIX}{name} is the name of a model or directory, not of a file: write {PREFIX}{name}/tokenizer.json'
        )
    return model(path.parent) / path.name


def pinned_model(directory: pathlib.Path) -> str | None:
    """The name of a model on the hub, with its commit; None for a directory that there is, which has none."""
    place = model(directory)
    return None if place == directory else f'{str(directory).partition("@")[0]}@{place.name}'


@functools.cache
def _snapshot(name: str, revision: str | None) -> pathlib.Path:
    """The copy of a model, in a directory that is named after its commit."""
    library = package(f'there is no directory {name}, and {PREFIX}{name}, as the name of a model on the hub,')
    cure = (
        f'on a machine that reaches it, `hf download {name} --local-dir=DIRECTORY` copies it; then write '
        f'{PREFIX}DIRECTORY'
    )
    try:
        with explained(name, 'model', cure):
            place = pathlib.Path(library.snapshot_download(name, revision=revision, allow_patterns=list(_FILES)))
    except library.errors.RevisionNotFoundError as error:
        raise ConfigError(f'the model {name} has no revision {revision!r}: check its name') from error
    if not any(place.glob('*.safetensors')):
        raise ConfigError(
            f'the model {name} has no safetensors on the hub. Other formats are not read, because they can execute '
            'code; if you trust the model, transformers writes safetensors: '
            f'AutoModelForMaskedLM.from_pretrained({name!r}).save_pretrained("DIRECTORY"); then write '
            f'{PREFIX}DIRECTORY'
        )
    return place


@contextlib.contextmanager
def explained(name: str, kind: str, offline_cure: str) -> Iterator[None]:
    """Converts the errors of the hub, but for a missing revision, to ConfigError; arguments as those of `commit`."""
    library = package(f'hf:{name}')
    try:
        yield
    except (ConfigError, library.errors.RevisionNotFoundError):
        raise
    except Exception as error:  # those of HTTP are of a package that changes with the version of huggingface_hub
        _explain(error, library.errors, name, KINDS[kind], offline_cure)


def _explain(error: Exception, errors: Any, name: str, kind: str, offline_cure: str) -> NoReturn:
    if isinstance(error, errors.GatedRepoError):
        raise ConfigError(
            f'the {kind} {name} is gated: accept its terms on its page on the hub, log in with `hf auth login` (or set '
            'HF_TOKEN), and run this again'
        ) from error
    nowhere = f'there is no directory {name}, and ' if kind == KINDS['model'] else ''  # which would be taken first
    if isinstance(error, errors.RepositoryNotFoundError):
        raise ConfigError(
            f'{nowhere or "there is "}no {kind} {name} on the hub, or it is private: check the name; for a private '
            'one, log in with `hf auth login` (or set HF_TOKEN)'
        ) from error
    if isinstance(error, errors.HFValidationError):
        raise ConfigError(f'{name!r} is no name of a {kind} on the hub: write ORGANIZATION/NAME') from error
    reason = (str(error).splitlines() or [''])[0].strip() or type(error).__name__
    said = f'{nowhere}the hub cannot be reached for the {kind} {name} ({reason}): {offline_cure}'
    raise TransientError(said) from error


def package(what: str) -> Any:
    """The package huggingface_hub; ConfigError, which begins with `what` needs it, if it is not installed."""
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError:
        raise ConfigError(f"{what} needs the package huggingface_hub: pip install 'mlm_jax[hub]'") from None
    return huggingface_hub
