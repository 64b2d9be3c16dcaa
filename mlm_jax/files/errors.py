"""The error for mistakes of a user: programs print its message, without a traceback, and exit."""


class ConfigError(ValueError):
    """A configuration that cannot run; the message says what is wrong and how to fix it."""
