"""What holds of every objective in the registry."""

import properties
import pytest

from mlm_jax.objectives.registry import OBJECTIVES


# What depends on the shapes of an encoder, which is the same for all objectives; MAE-LM's decoder follows them, too.
@pytest.mark.parametrize(
    ('holds', 'name'),
    [
        *((properties.has_rules, name) for name in OBJECTIVES),
        *((properties.costs_what_compiles, name) for name in ('mlm', 'mae_lm')),
        (properties.is_the_same_on_a_mesh, 'mlm'),
    ],
)
def test_objectives_with_encoders_of_other_shapes(holds, name):
    holds(name, 'other')


@pytest.mark.parametrize('name', OBJECTIVES)
@pytest.mark.parametrize('holds', properties.ALL)
def test_every_objective(holds, name):
    holds(name)
