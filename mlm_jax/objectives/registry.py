"""The only list of the objectives, by the names that configurations use."""

from mlm_jax.objectives.exlm_spec import ExLMSpec
from mlm_jax.objectives.mae_lm_spec import MAELMSpec
from mlm_jax.objectives.mlm_spec import MLMSpec
from mlm_jax.objectives.spec import Spec
from mlm_jax.parallel.parameters import ENCODER, Parameter

OBJECTIVES: dict[str, Spec] = {
    'mlm': MLMSpec(),
    'mae_lm': MAELMSpec(),
    'exlm': ExLMSpec(),
}


def parameters(name: str) -> tuple[Parameter, ...]:
    """The rules for all parameters of a model with the objective `name`."""
    return (*OBJECTIVES[name].parameters, *ENCODER)


def distributions() -> tuple[str, ...]:
    """The names in `Spec.distributions` of all objectives, each once, in the order of the registry."""
    return tuple(dict.fromkeys(name for spec in OBJECTIVES.values() for name in spec.distributions))
