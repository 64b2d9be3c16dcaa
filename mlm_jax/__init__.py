"""Pretraining of masked-language encoders in JAX: MLM and its relatives, on TPU pods and GPUs."""

import sys

__version__ = '0.1.0'


def _say_interrupted(kind, error, traceback) -> None:
    """An exception hook that says of Ctrl-C what a user wants to know, and leaves all else as it is."""
    if issubclass(kind, KeyboardInterrupt):
        print('interrupted', file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


if sys.argv[:1] == ['-m']:  # `python -m mlm_jax.PROGRAM` begins: it imports for seconds, before it can catch anything
    sys.excepthook = _say_interrupted
