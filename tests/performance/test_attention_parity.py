"""Whether a kernel agrees with the reference: what is right passes, and what is a little wrong does not."""

import functools

import jax.numpy as jnp
import pytest

from mlm_jax.models import attention
from mlm_jax.performance import attention_parity


def check(change) -> tuple[bool, dict]:
    """What is found of a backend that is the reference with its inputs changed."""

    def attend(q, k, v, q_segments, k_segments, backend):
        inputs = q, k, v, q_segments, k_segments
        return attention.attend(*(inputs if backend == 'xla' else change(*inputs)))

    found = attention_parity.errors('kernel', 48, 2, 16, 'bfloat16', attend=attend)
    return attention_parity.agrees(found), found


def test_a_kernel_that_is_the_reference_agrees():
    fine, found = check(lambda *inputs: inputs)
    assert fine and found.keys() == {'output', 'd query', 'd key', 'd value'}
    assert all(0 < ours == reference < 0.02 for ours, reference in found.values())


@pytest.mark.parametrize(
    'change',
    [
        lambda q, k, v, a, b: (q, k, v, jnp.minimum(a, 1), jnp.minimum(b, 1)),  # documents see each other
        lambda q, k, v, a, b: (1.05 * q, k, v, a, b),  # another scale
        lambda q, k, v, a, b: (q, k, v, a, b.at[0, 3].set(0)),  # a key is missing
    ],
)
def test_a_kernel_that_is_wrong_does_not(change):
    fine, _ = check(change)
    assert not fine


def test_splash_agrees_as_far_as_a_cpu_interprets_it():
    attend = functools.partial(attention.splash_attention, interpret=True)

    def either(*inputs, backend, **window):
        return attention.attend(*inputs, **window) if backend == 'xla' else attend(*inputs, **window)

    shape = ('splash', 128, 2, 16, 'bfloat16')
    for kv_heads, window in ((2, 0), (1, 24)):
        assert attention_parity.agrees(attention_parity.errors(*shape, kv_heads, window, attend=either))
