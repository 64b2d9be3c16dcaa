"""Predicts how long a compiled step takes on devices that are not present, if these reach their published peaks.

Four lower bounds of the time of a step are computed: matrix products at the peak of their format, memory traffic at the
bandwidth of the memory, collectives within a slice at the bandwidth of the links, and those between slices at the
bandwidth of the data-center network. If all of them overlap, a step takes as long as the longest; if nothing overlaps,
it takes their sum. The prediction leaves out kernels that do not reach the peaks, latencies, and the way through hosts.

Matrix products are counted as often as the compiled program runs them; the products inside a fused attention kernel are
computed by a formula. Memory traffic is counted as in `performance/collectives.py`, without caches. An all-reduce sends
its bytes twice (to reduce them, and to distribute the sums), all other collectives send them once, over all links of a
device together.

Between slices, the runtime sends what it must so that every slice has the result (`_SENT`). Gradients are summed over
slices once, at the end of a step, where little is left to overlap with: of the network, expect the upper bound.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from mlm_jax.performance import ahead_of_time, peaks

# Collective between S slices → the bytes that a device sends for each byte that it contributes, if no slice sends more
# than it must.
_SENT = {
    'all-reduce': lambda s: 2 * (s - 1) / s,
    'reduce-scatter': lambda s: (s - 1) / s,
    'all-to-all': lambda s: (s - 1) / s,
    'all-gather': lambda s: s - 1,
}


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Times of one step on one device, in seconds.

    Attributes:
      product_seconds: for the matrix products of the compiled program.
      memory_seconds: for the memory traffic.
      link_seconds: for the collectives within a slice.
      network_seconds: for those between slices.
      needed_seconds: for the matrix products that the objective needs. Divided by the time of the step, this is the
        MFU (model FLOPs utilization).
    """

    product_seconds: float
    memory_seconds: float
    link_seconds: float
    network_seconds: float
    needed_seconds: float

    @property
    def _times(self) -> dict[str, float]:
        return {
            'products': self.product_seconds,
            'memory': self.memory_seconds,
            'links': self.link_seconds,
            'network': self.network_seconds,
        }

    @property
    def shortest(self) -> float:
        """Seconds of a step in which everything overlaps."""
        return max(self._times.values())

    @property
    def longest(self) -> float:
        """Seconds of a step in which nothing overlaps."""
        return sum(self._times.values())

    @property
    def mfu(self) -> tuple[float, float]:
        """MFU of the longest and of the shortest step."""
        return self.needed_seconds / self.longest, self.needed_seconds / self.shortest

    @property
    def bound(self) -> str:
        """What takes the longest time: 'products', 'memory', 'links' or 'network'."""
        return max(self._times, key=lambda name: self._times[name])


def predict(
    needs: ahead_of_time.Requirements,
    device_kind: str,
    num_devices: int,
    dtype: str,
    needed_flops: float,
    hidden_flops: float = 0.0,
    num_slices: int = 1,
) -> Prediction | None:
    """The prediction for a step; None for a kind of device without published peaks.

    Args:
      needs: what the compiled step needs on each device.
      device_kind: such as 'TPU v5 lite'.
      num_devices: the number of devices that share the step.
      dtype: of the matrix products.
      needed_flops: the FLOPs of the step without recomputation, on all devices together.
      hidden_flops: those in kernels, which the compiler does not count, on all devices together.
      num_slices: the number of slices among which the devices are divided.
    """
    peak, rate = peaks.peak_of(device_kind), peaks.peak_flops_per_second(device_kind, dtype)
    network = network_seconds(needs.between_slices, device_kind, num_slices)
    if peak is None or rate is None or network is None or (num_devices > 1 and not peak.links):
        return None
    sent = sum(size * (2 if name == 'all-reduce' else 1) for name, (_, size) in needs.collectives.items())
    return Prediction(
        product_seconds=(needs.flops + hidden_flops / num_devices) / rate,
        memory_seconds=needs.accessed_bytes / (peak.memory * 1e9),
        link_seconds=sent / (peak.links * 1e9) if sent and peak.links else 0.0,
        network_seconds=network,
        needed_seconds=needed_flops / num_devices / rate,
    )


def network_seconds(found: Mapping[str, Sequence[int]], device_kind: str, num_slices: int) -> float | None:
    """The time of collectives between slices at the published bandwidth; None if it is needed and not published.

    All devices of a host send at the same time, so that each has its share of the bandwidth of the host.

    Args:
      found: name → (times executed, bytes that one device sends), as of `collectives.between_slices`.
      device_kind: such as 'TPU v5 lite'.
      num_slices: the number of slices.
    """
    sent = sum(size * _SENT.get(name, lambda s: 1)(num_slices) for name, (_, size) in found.items())
    peak = peaks.peak_of(device_kind)
    if not sent:
        return 0.0
    return sent / (peak.network * 1e9) if peak and peak.network else None
