"""What holds of every objective in the registry."""

import properties
import pytest

from mlm_jax.objectives.registry import OBJECTIVES


# What depends on the shapes of an encoder; the mesh costs most, and the encoder is the same for all objectives.
@pytest.mark.parametrize(
    ('holds', 'name'),
    [
        *((holds, name) for holds in (properties.has_rules, properties.costs_what_compiles) for name in OBJECTIVES),
        (properties.is_the_same_on_a_mesh, 'mlm'),
    ],
)
def test_objectives_with_encoders_of_other_shapes(holds, name):
    holds(name, 'other')


@pytest.mark.parametrize('name', OBJECTIVES)
@pytest.mark.parametrize('holds', properties.ALL)
def test_every_objective(holds, name):
    holds(name)
