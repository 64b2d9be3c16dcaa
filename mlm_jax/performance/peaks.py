"""Published peaks of devices: matrix products by number format, memory, and links to neighbours.

All dense (without structured sparsity) and at boost clocks, as published in these places. Only those of TPU v5e and v6e
were compared with them when this table was written: check a number before you rest a claim on it.
  NVIDIA H100, H200: the whitepaper of the H100 architecture, and the data sheets of the SXM, PCIe and NVL boards.
  NVIDIA A100: its data sheet, 40 GB and 80 GB. L40S, L4, A10: theirs.
  TPU: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, per chip. Links are 'bidirectional' there: half each way.
"""

import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class Peak:
    """What one device can do at most.

    Attributes:
      bfloat16: TFLOP/s of matrix products.
      float32: TFLOP/s of products of float32 in the format that XLA takes by default: TF32 on NVIDIA GPUs, a single
        pass of bfloat16 on TPUs.
      exact_float32: TFLOP/s of float32 as such, with `jax_default_matmul_precision` set to 'highest'; None where no
        number is published.
      memory: GB/s from and to the memory of the device.
      links: GB/s to other devices, each way, over all links together; None without links worth the name.
    """

    bfloat16: float
    float32: float
    exact_float32: float | None
    memory: float
    links: float | None = None


# By the start of `device_kind`; the first that fits counts.
PEAKS = {
    'NVIDIA H200': Peak(989.4, 494.7, 66.9, 4800, 450),
    'NVIDIA H100 PCIe': Peak(756, 378, 51, 2000),
    'NVIDIA H100 NVL': Peak(835, 417.5, 60, 3900),
    'NVIDIA H100': Peak(989.4, 494.7, 66.9, 3350, 450),
    'NVIDIA A100-SXM4-40GB': Peak(312, 156, 19.5, 1555, 300),
    'NVIDIA A100-PCIE-40GB': Peak(312, 156, 19.5, 1555),
    'NVIDIA A100 80GB PCIe': Peak(312, 156, 19.5, 1935),
    'NVIDIA A100': Peak(312, 156, 19.5, 2039, 300),
    'NVIDIA L40S': Peak(362, 183, 91.6, 864),
    'NVIDIA L4': Peak(121, 60, 30.3, 300),
    'NVIDIA A10': Peak(125, 62.5, 31.2, 600),
    'TPU v4': Peak(275, 275, None, 1228, 150),
    'TPU v5 lite': Peak(197, 197, None, 819, 200),
    'TPU v5e': Peak(197, 197, None, 819, 200),
    'TPU v5': Peak(459, 459, None, 2765, 600),  # v5p: 'TPU v5' or 'TPU v5p'
    'TPU v6 lite': Peak(918, 918, None, 1640, 400),
    'TPU v6e': Peak(918, 918, None, 1640, 400),
}


def peak_of(device_kind: str) -> Peak | None:
    """The published peaks of a kind of device; None for kinds without any, such as CPUs."""
    kinds = sorted((kind for kind in PEAKS if device_kind.startswith(kind)), key=len)
    if not kinds or device_kind[len(kinds[-1]) :][:1].isdigit():  # an L40 is no L4, an A1000 no A100
        return None
    return PEAKS[kinds[-1]]


def peak_flops_per_second(device_kind: str, dtype: str = 'bfloat16') -> float | None:
    """Peak FLOP/s of one device for matrix products of a `model.dtype`, in the format that XLA computes them in.

    None where no number is published.
    """
    peak = peak_of(device_kind)
    if peak is None:
        return None
    exact = jax.config.jax_default_matmul_precision in ('highest', 'float32')
    tflops = {'bfloat16': peak.bfloat16, 'float32': peak.exact_float32 if exact else peak.float32}[dtype]
    return tflops * 1e12 if tflops else None
