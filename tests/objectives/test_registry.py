"""What holds of every objective in the registry."""

import properties
import pytest

from mlm_jax.objectives.registry import OBJECTIVES


@pytest.mark.parametrize('name', OBJECTIVES)
@pytest.mark.parametrize('holds', properties.ALL)
def test_every_objective(holds, name):
    holds(name)
