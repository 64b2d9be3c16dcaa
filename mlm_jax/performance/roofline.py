"""Predicts how long a compiled step takes on devices that are not present, if these reach their published peaks.

Three lower bounds of the time of a step are computed: matrix products at the peak of their format, memory traffic at
the bandwidth of the memory, and collectives at the bandwidth of the links. If all three overlap, a step takes as long
as the longest; if nothing overlaps, it takes their sum. The prediction leaves out kernels that do not reach the peaks,
latencies, hosts, and networks between slices.

Matrix products are counted as often as the compiled program runs them; the products inside a fused attention kernel are
computed by a formula. Memory traffic is counted as in `performance/collectives.py`, without caches. An all-reduce sends
its bytes twice (to reduce them, and to distribute the sums), all other collectives send them once, over all links of a
device together.
"""

import dataclasses

from mlm_jax.performance import ahead_of_time, peaks


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Times of one step on one device, in seconds.

    Attributes:
      product_seconds: for the matrix products of the compiled program.
      memory_seconds: for the memory traffic.
      link_seconds: for the collectives.
      needed_seconds: for the matrix products that the objective needs. Divided by the time of the step, this is the
        MFU (model FLOPs utilization).
    """

    product_seconds: float
    memory_seconds: float
    link_seconds: float
    needed_seconds: float

    @property
    def shortest(self) -> float:
        """Seconds of a step in which everything overlaps."""
        return max(self.product_seconds, self.memory_seconds, self.link_seconds)

    @property
    def longest(self) -> float:
        """Seconds of a step in which nothing overlaps."""
        return self.product_seconds + self.memory_seconds + self.link_seconds

    @property
    def mfu(self) -> tuple[float, float]:
        """MFU of the longest and of the shortest step."""
        return self.needed_seconds / self.longest, self.needed_seconds / self.shortest

    @property
    def bound(self) -> str:
        """What takes the longest time: 'products', 'memory' or 'links'."""
        times = {'products': self.product_seconds, 'memory': self.memory_seconds, 'links': self.link_seconds}
        return max(times, key=lambda name: times[name])


def predict(
    needs: ahead_of_time.Requirements,
    device_kind: str,
    num_devices: int,
    dtype: str,
    needed_flops: float,
    hidden_flops: float = 0.0,
) -> Prediction | None:
    """The prediction for a step; None for a kind of device without published peaks.

    Args:
      needs: what the compiled step needs on each device.
      device_kind: such as 'TPU v5 lite'.
      num_devices: the number of devices that share the step.
      dtype: of the matrix products.
      needed_flops: the FLOPs of the step without recomputation, on all devices together.
      hidden_flops: those in kernels, which the compiler does not count, on all devices together.
    """
    peak, rate = peaks.peak_of(device_kind), peaks.peak_flops_per_second(device_kind, dtype)
    if peak is None or rate is None or (num_devices > 1 and not peak.links):
        return None
    sent = sum(size * (2 if name == 'all-reduce' else 1) for name, (_, size) in needs.collectives.items())
    return Prediction(
        product_seconds=(needs.flops + hidden_flops / num_devices) / rate,
        memory_seconds=needs.accessed_bytes / (peak.memory * 1e9),
        link_seconds=sent / (peak.links * 1e9) if sent and peak.links else 0.0,
        needed_seconds=needed_flops / num_devices / rate,
    )
