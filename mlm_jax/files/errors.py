"""The errors for mistakes of a user and of the surroundings: programs print their messages, without a traceback."""

# Errors that tell of a wrong name or of missing rights, not of a disk or a network that fails.
_ABOUT_PLACES = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)


class ConfigError(ValueError):
    """A configuration that cannot run; the message says what is wrong and how to fix it."""


class MissingDataError(ConfigError):
    """A directory without prepared data."""


class TransientError(ConfigError):
    """Work that broke off, though configuration and corpus may be right: a worker, a cluster or a network has failed.

    The same command may succeed, so what is finished is kept.
    """


def unreadable(what: object, error: OSError, cure: str = '') -> ConfigError:
    """The error that `what` cannot be read: a TransientError, unless it tells of a wrong place or of wrong content."""
    is_transient = error.errno is not None and not isinstance(error, _ABOUT_PLACES)  # those of content have no number
    message = f'cannot read {what}: {error.strerror or error}' + f'. {cure}' * bool(cure)
    return (TransientError if is_transient else ConfigError)(message)
