"""Pretraining of masked-language encoders in JAX: MLM and its relatives, on TPU pods and GPUs."""

import sys

TYPE_CHECKING = False  # for type checkers, who know the name; `typing` is not imported for it
if TYPE_CHECKING:
    import os

    from jax.sharding import Mesh

    from mlm_jax.pretrained.model import Model

__version__ = '0.1.0'


def load(source: 'str | os.PathLike', mesh: 'Mesh | None' = None, data_directory: str = '') -> 'Model':
    """Loads a trained model: its tokenizer, its parameters, and what they do with text.

        model = mlm_jax.load('runs/mlm')
        model.encode(['One text.', 'Another one.'])         # float32[2, d]
        model.fill_mask('Paris is the [MASK] of France.')   # for each mask [(piece, probability), …]
        model.log_likelihood(['One text.'])                 # float64[1], nats

    Args:
      source: WORKDIR, the newest checkpoint of a run of any objective; WORKDIR@STEP; hf:DIRECTORY, a model of
        transformers as `save_pretrained` leaves it (docs/interop.md lists the classes), or hf:NAME, one of the Hugging
        Face Hub; random:SOURCE, the same model without what it has learned; ema:WORKDIR, the moving average of its
        parameters that a run with `ema.decay` keeps; or average:SOURCE,SOURCE,…, the mean of the parameters of several.
      mesh: from `mlm_jax.parallel.mesh.make_mesh`, with the parameters whole on each device; None takes all devices.
      data_directory: of the prepared rows of the run, for what reads these, if they are not where the run read them.

    Returns:
      A `mlm_jax.pretrained.model.Model`.

    Raises:
      ConfigError: when there is no such model, or it is damaged.
      FileNotFoundError: without a checkpoint (of that step).
      ImportError: without the extra `huggingface`, where that is needed.
    """
    from mlm_jax.pretrained import loading  # here: JAX takes seconds to import, and this package costs nothing

    return loading.load(source, mesh, data_directory)


def _say_interrupted(kind, error, traceback) -> None:
    """An exception hook that says of Ctrl-C what a user wants to know, and leaves all else as it is."""
    if issubclass(kind, KeyboardInterrupt):
        print('interrupted', file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


if sys.argv[:1] == ['-m']:  # `python -m mlm_jax.PROGRAM` begins: it imports for seconds, before it can catch anything
    sys.excepthook = _say_interrupted
