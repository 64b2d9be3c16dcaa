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
_STRUCTURE = frozenset({'positions', 'norm', 'norm_type', 'mlp'})
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


def home_of(e: Encoder, preferred: str = '', has_head: bool = True) -> Architecture:
    """The architecture that an encoder can be written as.

    Args:
      e: of the encoder: anything with the attributes of EncoderConfig.
      preferred: the `model_type` to write; '' takes the first that fits.
      has_head: whether the prediction head is to go there, too.

    Raises:
      ValueError: where there is none, with what has no place and the keys that would give it one.
    """
    if preferred:
        if different := BY_TYPE[preferred].differences(e, has_head):
            raise ValueError(
                f'a {BY_TYPE[preferred].masked_lm} cannot express this encoder: '
                f'{reasons(BY_TYPE[preferred], e, different)}'
            )
        return BY_TYPE[preferred]
    differences = [(architecture, architecture.differences(e, has_head)) for architecture in ARCHITECTURES]
    for architecture, different in differences:
        if not different:
            return architecture
    closest, different = min(differences, key=lambda pair: (len(pair[1]), _structural(e, pair[1])))
    cure = ','.join(f'model.{key}={first_of(value)}' for key, value in different.items())
    raise ValueError(
        f'no class of transformers computes what this encoder does. The closest is {closest.masked_lm}, but for '
        f'{reasons(closest, e, different)}. These parameters cannot go there; a new run with {cure} can'
    )


def _structural(e: Encoder, different: dict[str, Any]) -> int:
    """How many differences make an encoder another one, rather than a variant."""
    keys = different.keys() & _STRUCTURE
    return len(keys) + (
        'relative_buckets' in different and bool(e.relative_buckets) != bool(different['relative_buckets'])
    )


def reasons(architecture: Architecture, e: Encoder, different: dict[str, Any]) -> str:
    """What of an encoder has no place in an architecture (its `differences`), with what it has instead."""
    actual = effective(e)
    return '; '.join(
        f'{key}={actual[key]!r}, where {architecture.title} has {first_of(value)!r}' for key, value in different.items()
    )


def first_of(value: Any) -> Any:
    """A value, or the first of several."""
    return value[0] if isinstance(value, tuple) else value
