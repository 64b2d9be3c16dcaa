"""A pretrained encoder under the head of a downstream task."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from mlm_jax.models import pooling as pooling_lib


class Downstream(nn.Module):
    """The `encode` of an objective under a new head. Other parts of the objective have no parameters here.

    Attributes:
      objective: a module of `objectives/registry.py`; its configuration holds the dropout of fine-tuning.
      kind: 'sequence': outputs for the whole row, by dropout → linear → tanh → dropout → linear on its pooled vector;
        'span': two linear scores for each token, as the start and as the end of an answer.
      num_outputs: the number of outputs of the kind 'sequence'.
      dropout: rate in the head.
      pooling: the pooled vector: 'cls', the state of [CLS], or 'mean', the mean over all tokens except padding.
      repeats: how often the encoder reads each token.
    """

    objective: nn.Module
    kind: str
    num_outputs: int
    dropout: float
    pooling: str = pooling_lib.POOLINGS[0]
    repeats: int = 1

    @nn.compact
    def __call__(self, tokens_BxT: jax.Array, segments_BxT: jax.Array, deterministic: bool = True) -> jax.Array:
        """The outputs: float32[B, num_outputs], or for the kind 'span' float32[B, T, 2].

        Args:
          tokens_BxT: int32[B, T]; the first token of each row is [CLS].
          segments_BxT: int32[B, T], 1 for tokens and 0 for padding.
          deterministic: False applies dropout, with keys from the RNG stream 'dropout'.
        """
        c = self.objective.config
        encode = functools.partial(self.objective.encode, deterministic=deterministic)
        rows = (encode, tokens_BxT, segments_BxT)

        def linear(features: int, name: str) -> nn.Dense:
            return nn.Dense(features, kernel_init=nn.initializers.normal(c.init_stddev), name=name)

        if self.kind == 'span':
            return linear(2, 'output')(pooling_lib.token_vectors(*rows, repeats=self.repeats))
        drop = nn.Dropout(self.dropout, deterministic=deterministic)
        x_Bxd = drop(pooling_lib.row_vectors(*rows, self.pooling, repeats=self.repeats))
        x_Bxd = drop(jnp.tanh(linear(c.width, 'dense')(x_Bxd)))
        return linear(self.num_outputs, 'output')(x_Bxd)
