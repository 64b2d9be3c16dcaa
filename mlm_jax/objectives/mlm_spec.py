"""What the program must know about MLM without importing its module."""

from mlm_jax.objectives.spec import Spec


class MLMSpec(Spec):
    """Masked language modeling: an encoder reads the corrupted row, and a head predicts the masked positions."""

    module = 'mlm_jax.objectives.mlm:MLM'
    reads_inputs = True
    head_on_encoder = True
