"""The architectures of `transformers` that encoders here can come from and go to."""

from typing import Any

from mlm_jax.interop.architecture import Architecture, Encoder, effective
from mlm_jax.interop.bert import Bert, DistilBert
from mlm_jax.interop.description import Description
from mlm_jax.interop.esm import Esm
from mlm_jax.interop.eurobert import EuroBert
from mlm_jax.interop.modernbert import ModernBert
from mlm_jax.interop.mpnet import MPNet
from mlm_jax.interop.roberta import Camembert, Roberta, RobertaPreLayerNorm, XLMRoberta
from mlm_jax.interop.roformer import RoFormer

# In the order in which an export looks for the first that fits.
ARCHITECTURES: tuple[Architecture, ...] = (
    Bert(), ModernBert(), MPNet(), Esm(), RoFormer(), RobertaPreLayerNorm(), EuroBert(), Roberta(), XLMRoberta(),
    Camembert(), DistilBert(),
)  # fmt: skip
BY_TYPE = {architecture.model_type: architecture for architecture in ARCHITECTURES}


def of_description(d: Description) -> tuple[Architecture, bool]:
    """The architecture that a config.json names, and whether its class has a prediction head.

    Raises:
      ValueError: for an architecture that is not listed here.
    """
    named = d.stored.get('architectures') or []
    named = named if isinstance(named, list) else [named]
    kind = d.stored.get('model_type')
    architecture = BY_TYPE.get(kind) if isinstance(kind, str) else None
    if architecture is not None and len(named) == 1:
        if named[0] in (architecture.masked_lm, *architecture.also_read):
            return architecture, True
        if named[0] == architecture.base:
            return architecture, False
    known = ', '.join(architecture.masked_lm for architecture in ARCHITECTURES)
    raise ValueError(
        f'{d.path} describes {", ".join(map(str, named)) or "no architecture"} (model_type {kind!r}); only {known}, '
        'and their encoders alone, can be read'
    )


def home_of(e: Encoder, preferred: str = '') -> Architecture:
    """The architecture that an encoder can be written as.

    Args:
      e: of the encoder: anything with the attributes of EncoderConfig.
      preferred: the `model_type` to write, if it fits; '' takes the first that does.

    Raises:
      ValueError: where there is none, with what has no place and the keys that would give it one.
    """
    if preferred:
        if BY_TYPE[preferred].differences(e):
            raise ValueError(f'a {BY_TYPE[preferred].masked_lm} cannot express this encoder: {reasons(preferred, e)}')
        return BY_TYPE[preferred]
    for architecture in ARCHITECTURES:
        if not architecture.differences(e):
            return architecture
    closest = min(ARCHITECTURES, key=lambda architecture: len(architecture.differences(e)))
    cure = ','.join(f'model.{key}={first_of(value)}' for key, value in closest.differences(e).items())
    raise ValueError(
        f'no class of transformers computes what this encoder does. The closest is {closest.masked_lm}, but for '
        f'{reasons(closest.model_type, e)}. These parameters cannot go there; a new run with {cure} can'
    )


def reasons(model_type: str, e: Encoder) -> str:
    """What of an encoder has no place in an architecture, with what it has instead."""
    architecture, actual = BY_TYPE[model_type], effective(e)
    return '; '.join(
        f'{key}={actual[key]!r}, where {architecture.title} has {first_of(value)!r}'
        for key, value in architecture.differences(e).items()
    )


def first_of(value: Any) -> Any:
    """A value, or the first of several."""
    return value[0] if isinstance(value, tuple) else value
