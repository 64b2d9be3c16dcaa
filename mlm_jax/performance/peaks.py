"""Published peaks of devices: matrix products by number format, memory bandwidth, and links to other devices.

All peaks are for dense operands (without structured sparsity) and at boost clocks. Their sources follow. Only the
numbers of TPU v5e and v6e were compared with the sources when this table was written, so check a number before you base
a claim on it.
  NVIDIA H100, H200: the whitepaper of the H100 architecture, and the data sheets of the SXM, PCIe and NVL boards. The
    page of the H200 (nvidia.com/en-us/data-center/h200) gives 1,671 and 835 TFLOP/s with sparsity for the NVL board;
    half of them is dense. Its NVLink bridge is optional, and is left out.
  NVIDIA GH200: the data sheet of the Grace Hopper superchip (nvdam.widen.net/s/rrgqqnpbz8), which has dense numbers.
  NVIDIA B200: the specifications of one GPU of the HGX B200, 4.5 and 2.2 PFLOP/s with sparsity; half of them is dense.
  NVIDIA A100: the data sheet of the 40 GB and 80 GB boards. NVIDIA L40S, L40, L4, A10: their data sheets.
  NVIDIA A10G: its data sheet, which Amazon published for the instances G5, and which has dense numbers.
  The numbers of H200 NVL, GH200, B200, L40 and A10G were compared with what others quote from these sources.
  NVIDIA V100 and T4 are left out: their tensor cores know neither bfloat16 nor TF32.
  TPU: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, per chip. The pages give 'bidirectional' bandwidths of links;
    half of them is the bandwidth in each direction. The bandwidth of the data-center network is published per chip for
    v5p (50 Gbit/s), and per pod of 256 chips for v5e (6.4 Tbit/s) and v6e (25.6 Tbit/s), which is that of the network
    cards of their hosts of 8 chips (2 × 100 and 4 × 200 Gbit/s). All of these were compared with the pages.
"""

import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class Peak:
    """The peaks of one device.

    Attributes:
      bfloat16: TFLOP/s of matrix products in bfloat16.
      float32: TFLOP/s of matrix products of float32 arrays in the format that XLA uses by default: TF32 on NVIDIA GPUs,
        a single pass of bfloat16 on TPUs.
      exact_float32: TFLOP/s of matrix products in float32 itself, as `jax_default_matmul_precision` = 'highest' asks
        for; None where no number is published.
      memory: GB/s from and to the memory of the device.
      links: GB/s to other devices in each direction, the sum over all links; None for a device without fast links.
      network: GB/s in each direction over the data-center network that joins slices, the share of one device of what
        its host has; None where no number is published, or slices are not joined so.
    """

    bfloat16: float
    float32: float
    exact_float32: float | None
    memory: float
    links: float | None = None
    network: float | None = None


_H100_SXM = Peak(989.4, 494.7, 66.9, 3350, 450)
_A100_SXM_80GB = Peak(312, 156, 19.5, 2039, 300)
_GH200_96GB = Peak(990, 494, 67, 4000)
_V5E = Peak(197, 197, None, 819, 200, 3.125)
_V5P = Peak(459, 459, None, 2765, 600, 6.25)
_V6E = Peak(918, 918, None, 1640, 400, 12.5)

# By the whole `device_kind`: what begins alike may be a slower board (A10G, H200 NVL), or a part of one (MIG, vGPU).
PEAKS = {
    'NVIDIA B200': Peak(2250, 1100, 75, 7700, 900),
    'NVIDIA GH200 144G HBM3e': Peak(990, 494, 67, 4900),
    'NVIDIA GH200 480GB': _GH200_96GB,  # 480GB and 120GB are of the memory of the CPU
    'NVIDIA GH200 120GB': _GH200_96GB,
    'NVIDIA H200': Peak(989.4, 494.7, 66.9, 4800, 450),
    'NVIDIA H200 NVL': Peak(835.5, 417.5, 60, 4800),
    'NVIDIA H100 80GB HBM3': _H100_SXM,
    'NVIDIA H100 PCIe': Peak(756, 378, 51, 2000),
    'NVIDIA H100 NVL': Peak(835, 417.5, 60, 3900),
    'NVIDIA A100-SXM4-40GB': Peak(312, 156, 19.5, 1555, 300),
    'NVIDIA A100-SXM4-80GB': _A100_SXM_80GB,
    'NVIDIA A100-SXM-80GB': _A100_SXM_80GB,
    'NVIDIA A100-PCIE-40GB': Peak(312, 156, 19.5, 1555),
    'NVIDIA A100 80GB PCIe': Peak(312, 156, 19.5, 1935),
    'NVIDIA L40S': Peak(362, 183, 91.6, 864),
    'NVIDIA L40': Peak(181.05, 90.5, 90.5, 864),
    'NVIDIA L4': Peak(121, 60, 30.3, 300),
    'NVIDIA A10': Peak(125, 62.5, 31.2, 600),
    'NVIDIA A10G': Peak(70, 35, 35, 600),
    'TPU v4': Peak(275, 275, None, 1228, 150),
    'TPU v5 lite': _V5E,
    'TPU v5e': _V5E,
    'TPU v5': _V5P,
    'TPU v5p': _V5P,
    'TPU v6 lite': _V6E,
    'TPU v6e': _V6E,
}


def peak_of(device_kind: str) -> Peak | None:
    """The published peaks of a kind of device; None for one that is not in `PEAKS`: a CPU, or a part of a GPU."""
    return PEAKS.get(device_kind)


def peak_flops_per_second(device_kind: str, dtype: str = 'bfloat16') -> float | None:
    """Peak FLOP/s of one device for matrix products with the configuration key `model.dtype`; None if not published.

    Args:
      device_kind: as `jax.Device.device_kind` names it.
      dtype: 'bfloat16', or 'float32', for which `jax_default_matmul_precision` decides the format of the products.
    """
    peak = peak_of(device_kind)
    if peak is None:
        return None
    exact = jax.config.jax_default_matmul_precision in ('highest', 'float32')
    tflops = {'bfloat16': peak.bfloat16, 'float32': peak.exact_float32 if exact else peak.float32}[dtype]
    return tflops * 1e12 if tflops else None
