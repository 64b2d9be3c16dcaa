"""Floating-point operations of the model's matmuls, and the peaks of devices."""

import ml_collections

# Published peaks in TFLOP/s for dense bfloat16 matmuls, by the start of `device_kind`.
PEAK_TFLOPS = {
    'NVIDIA H200': 989.0,
    'NVIDIA H100': 989.0,
    'NVIDIA A100': 312.0,
    'TPU v4': 275.0,
    'TPU v5 lite': 197.0,
    'TPU v5e': 197.0,
    'TPU v5p': 459.0,
    'TPU v5': 459.0,
    'TPU v6 lite': 918.0,
    'TPU v6e': 918.0,
}


def peak_flops_per_second(device_kind: str) -> float | None:
    """Peak FLOP/s of one device in bfloat16; None for kinds without a published number, such as CPUs."""
    for start, tflops in PEAK_TFLOPS.items():
        if device_kind.startswith(start):
            return tflops * 1e12
    return None


def mlm_step_flops(config: ml_collections.ConfigDict) -> float:
    """FLOPs of the matmuls of one optimizer step of MLM; the backward pass counts twice the forward pass.

    A row of n tokens costs L·(2nW + 4n²d) + m·(2d² + 2dV) forward, with W = 4d² + g·d·F, g = 2 (GELU) or 3 (GeGLU) and
    m = ratio·n masked positions. Rows count in full, packed or not.
    """
    m, n = config.model, config.sequence_length
    weights = 4 * m.width**2 + (3 if m.mlp == 'geglu' else 2) * m.width * m.ffn_width
    encoder = m.num_layers * (2 * n * weights + 4 * n**2 * m.width)
    head = config.masking.ratio * n * (2 * m.width**2 + 2 * m.width * config.vocab_size)
    return 3 * config.batch_size * (encoder + head)
