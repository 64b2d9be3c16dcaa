"""The Hugging Face Hub: which commit a name stands for, and what is wrong if none can be found (extra `hub`).

Names are ORGANIZATION/NAME, with @REVISION behind them for a branch, a tag or a commit. What is read is always that of
a commit, whose content cannot change. Access tokens, caches and other endpoints (HF_TOKEN, HF_HOME, HF_ENDPOINT,
HF_HUB_OFFLINE) are those of the package huggingface_hub.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from mlm_jax.files.errors import ConfigError

COMMIT = re.compile('[0-9a-f]{40}')
# Kind of a repository → its name in sentences.
KINDS = {'model': 'model', 'dataset': 'data set'}


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
    if isinstance(error, errors.RepositoryNotFoundError):
        raise ConfigError(
            f'there is no {kind} {name} on the hub, or it is private: check the name; for a private one, log in with '
            '`hf auth login` (or set HF_TOKEN)'
        ) from error
    if isinstance(error, errors.HFValidationError):
        raise ConfigError(f'{name!r} is no name of a {kind} on the hub: write ORGANIZATION/NAME') from error
    reason = (str(error).splitlines() or [''])[0].strip() or type(error).__name__
    raise ConfigError(f'the hub cannot be reached for the {kind} {name} ({reason}): {offline_cure}') from error


def package(what: str) -> Any:
    """The package huggingface_hub; ConfigError, which begins with `what` needs it, if it is not installed."""
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError:
        raise ConfigError(f"{what} needs the package huggingface_hub: pip install 'mlm_jax[hub]'") from None
    return huggingface_hub
