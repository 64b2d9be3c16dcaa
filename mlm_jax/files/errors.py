"""The error of a user, which ends a program in its own words."""


class ConfigError(ValueError):
    """A configuration that cannot run: what is wrong, and its cure."""
