"""The roofline: three times that no step can beat, their overlap, and what is known of fused kernels."""

import pytest

from mlm_jax.performance import roofline
from mlm_jax.performance.ahead_of_time import Requirements
from mlm_jax.performance.memory import Memory

FLOPS = 9e15  # of the whole step


def needs(**values) -> Requirements:
    defaults = dict(memory=Memory(0, 0, 0, 0), flops=0, accessed_bytes=0, collectives={})
    return Requirements(**(defaults | values))


def test_each_time_is_an_amount_by_a_published_peak():
    collectives = {'all-gather': (3, 20_000_000_000), 'all-reduce': (1, 40_000_000_000)}
    amounts = needs(flops=197 * 10**12, accessed_bytes=819 * 10**9 // 2, collectives=collectives)
    prediction = roofline.predict(amounts, 'TPU v5 lite', 16, 'bfloat16', FLOPS)
    assert prediction.product_seconds == pytest.approx(1.0)
    assert prediction.memory_seconds == pytest.approx(0.5)
    assert prediction.link_seconds == pytest.approx((20 + 2 * 40) / 200), 'sums are gathered again'
    assert (prediction.shortest, prediction.longest) == pytest.approx((1.0, 2.0))
    assert prediction.bound == 'products'
    low, high = prediction.mfu
    assert high == pytest.approx(FLOPS / 16 / 197e12) and low == pytest.approx(high / 2)


def test_the_network_between_slices_has_the_share_of_a_device_in_its_host():
    """v5e: 2 cards of 100 Gbit/s for 8 chips. Of two slices, each sends its sums once; of more, up to twice."""
    amounts = needs(flops=197 * 10**12, between_slices={'all-reduce': (5, 2 * 10**9)})
    two, four = (roofline.predict(amounts, 'TPU v5e', 32, 'bfloat16', FLOPS, num_slices=n) for n in (2, 4))
    assert two.network_seconds == pytest.approx(2e9 / (2 * 100e9 / 8 / 8))
    assert four.network_seconds == pytest.approx(1.5 * two.network_seconds)
    assert (two.shortest, two.longest) == pytest.approx((1.0, 1.0 + two.network_seconds))
    slow = roofline.predict(needs(between_slices={'one-to-one': (1, 10**9)}), 'TPU v5p', 8, 'bfloat16', FLOPS, 0.0, 2)
    assert slow.bound == 'network' and slow.shortest == slow.longest == pytest.approx(1e9 / (50e9 / 8))
    assert roofline.predict(amounts, 'TPU v4', 32, 'bfloat16', FLOPS, num_slices=2) is None, 'nothing is published'


def test_attention_in_a_fused_kernel_is_added():
    prediction = roofline.predict(needs(flops=0), 'TPU v6 lite', 4, 'bfloat16', FLOPS, hidden_flops=1e12)
    assert prediction.product_seconds == pytest.approx(1e12 / 4 / 918e12)


@pytest.mark.parametrize(('kind', 'count'), [('cpu', 1), ('TPU v9', 4), ('NVIDIA L4', 2)])
def test_nothing_is_predicted_where_nothing_is_published(kind, count):
    assert roofline.predict(needs(flops=1), kind, count, 'bfloat16', FLOPS) is None


def test_one_device_needs_no_links():
    assert roofline.predict(needs(flops=10**12), 'NVIDIA L4', 1, 'bfloat16', FLOPS).link_seconds == 0.0
