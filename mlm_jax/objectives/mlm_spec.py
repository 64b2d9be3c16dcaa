"""What is known of MLM without its module."""

from mlm_jax.objectives.spec import Spec


class MLMSpec(Spec):
    """Masked language modeling: an encoder of the corrupted row, and a head on the masked positions."""

    module = 'mlm_jax.objectives.mlm:MLM'
    reads_inputs = True
