"""The objectives by the name that configurations use. A new one is a module with MLM's interface and a line here."""

from mlm_jax.models.mlm import MLM

OBJECTIVES = {'mlm': MLM}
