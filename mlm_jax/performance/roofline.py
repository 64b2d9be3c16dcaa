"""How long a compiled step takes on devices that are not here, if they reach their published peaks: a prediction.

Three times that no step can beat: products at the peak of their format, bytes at the bandwidth of the memory, and
collectives at that of the links. A step takes at least the longest of them, where all overlap, and their sum where
nothing does. Kernels that fall short of peaks, latencies, hosts and networks between slices are not in it.

What is counted: products as the compiled program has them, as often as they run, and attention hidden in a fused kernel
by formula; bytes as `performance/collectives.py` counts them, without caches; an all-reduce sends its bytes twice (once
to reduce, once to spread the sums), other collectives once, over all links of a device together.
"""

import dataclasses

import ml_collections

from mlm_jax.config import step_flops
from mlm_jax.performance import ahead_of_time, peaks


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Times of one step on one device, in seconds.

    Attributes:
      product_seconds: for matrix products.
      memory_seconds: for bytes from and to memory.
      link_seconds: for collectives.
      needed_seconds: for the products that the objective needs: MFU is that, by the time of the step.
    """

    product_seconds: float
    memory_seconds: float
    link_seconds: float
    needed_seconds: float

    @property
    def shortest(self) -> float:
        """Seconds of a step in which all overlaps."""
        return max(self.product_seconds, self.memory_seconds, self.link_seconds)

    @property
    def longest(self) -> float:
        """Seconds of a step in which nothing overlaps."""
        return self.product_seconds + self.memory_seconds + self.link_seconds

    @property
    def mfu(self) -> tuple[float, float]:
        """From where nothing overlaps to where all does."""
        return self.needed_seconds / self.longest, self.needed_seconds / self.shortest

    @property
    def bound(self) -> str:
        """What takes longest: 'products', 'memory' or 'links'."""
        times = {'products': self.product_seconds, 'memory': self.memory_seconds, 'links': self.link_seconds}
        return max(times, key=times.get)


def predict(
    config: ml_collections.ConfigDict, needs: ahead_of_time.Requirements, device_kind: str, num_devices: int
) -> Prediction | None:
    """The prediction for a step; None for kinds of devices without published peaks.

    Args:
      config: of the step.
      needs: of the compiled step.
      device_kind: such as 'TPU v5 lite'.
      num_devices: that share the step.
    """
    peak, rate = peaks.peak_of(device_kind), peaks.peak_flops_per_second(device_kind, config.model.dtype)
    if peak is None or rate is None or (num_devices > 1 and not peak.links):
        return None
    hidden = 0.0 if config.model.attention_backend == 'xla' else step_flops.attention_flops(config) / num_devices
    sent = sum(size * (2 if name == 'all-reduce' else 1) for name, (_, size) in needs.collectives.items())
    return Prediction(
        product_seconds=(needs.flops + hidden) / rate,
        memory_seconds=needs.accessed_bytes / (peak.memory * 1e9),
        link_seconds=sent / (peak.links * 1e9) if sent else 0.0,
        needed_seconds=step_flops.step_flops(config) / num_devices / rate,
    )
