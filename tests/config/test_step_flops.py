"""The formulas of FLOPs against the products of really compiled steps, and the table of peaks."""

import functools

import jax
import numpy as np
import pytest

from mlm_jax import config as config_lib
from mlm_jax.config import step_flops
from mlm_jax.objectives import layer_flops
from mlm_jax.performance import ahead_of_time, collectives, peaks

# Wide enough that the products matter, and a vocabulary that outweighs neither layers nor head.
SHAPE = (
    'vocab_size=512,sequence_length=128,batch_size=4,model.num_layers=2,model.width=64,model.num_heads=2,mesh.data=1,'
    'model.dropout=0.0,model.attention_dropout=0.0'
)


@functools.cache
def load(file: str, argument: str = ''):
    recipe = '' if 'recipe=' in argument else ',recipe=roberta'
    config = config_lib.load(f'configs/{file}.py:tiny,{SHAPE},model.ffn_width=256{recipe}{argument}')
    return config_lib.resolve(config)


@pytest.mark.parametrize(
    ('file', 'argument', 'unused'),
    [
        # 20 slots for 19.2 masked tokens: a few of the head.
        ('mlm', ',recipe=modern,model.ffn_width=128', 0.02),
        # Besides, room for 112 kept tokens, where 108.8 are kept: lengths in eights, and a margin for special tokens.
        ('mae_lm', ',model.num_layers=1,mae_lm.decoder_layers=2,mae_lm.decoder_width=32', 0.04),
        # 22 expanded tokens for 21.2, on rows of 200 slots for 191.6, of which attention takes the square.
        ('exlm', ',exlm.alignments=1', 0.08),
        # Two more are expanded in rows of two documents.
        ('exlm', '', 0.1),
    ],
)
def test_a_compiled_step_has_the_products_of_the_formula(file, argument, unused):
    config = load(file, argument)
    compiled = ahead_of_time.compile_train_step(config, jax.devices()[:1])
    computed = collectives.matmul_flops(compiled)
    assert computed == pytest.approx(step_flops.step_flops(config, slots=True), rel=0.02)
    # Unused slots are all that separates it from what the objective needs.
    assert 1 <= step_flops.step_flops(config, slots=True) / step_flops.step_flops(config) < 1 + unused


def test_a_step_is_three_forward_passes():
    """Of the first layer too, whose input is made of embeddings that learn."""
    config = load('mlm')
    sizes = step_flops.needed_sizes(config)
    assert step_flops.step_flops(config) == 3 * 4 * layer_flops.encoder_and_head(
        config.model, config.vocab_size, sizes, 1.0
    )
    m, n = 0.15 * 128, 128
    layer = 2 * n * (4 * 64**2 + 2 * 64 * 256) + 4 * n**2 * 64
    last = 2 * n * 2 * 64**2 + 2 * m * (2 * 64**2 + 2 * 64 * 256) + 4 * n * m * 64
    assert layer_flops.encoder_and_head(config.model, config.vocab_size, sizes, 1.0) == pytest.approx(
        layer + last + m * (2 * 64**2 + 2 * 64 * 512)
    )


def test_windows_cost_less_only_where_a_kernel_skips_what_lies_outside():
    windows = ',recipe=modern,sequence_length=2048,model.num_layers=3,model.local_window='
    whole, masked, splash, narrow, wide = (
        step_flops.attention_flops(load('mlm', f'{windows}{width},model.attention_backend={backend}'))
        for width, backend in ((0, 'splash'), (128, 'xla'), (128, 'splash'), (2, 'splash'), (4096, 'splash'))
    )
    assert masked == whole
    # Layers 1 and 2 are local: of the 8 × 8 blocks of 256 places, those on the diagonal and beside it are computed.
    pairs = 3 * 4 * 4 * 64 * 2048**2  # of a step, with the FLOPs of each
    assert whole == pytest.approx(pairs * (2 + 0.15))  # the last layer has queries only where tokens are masked
    assert splash == narrow == pytest.approx(pairs * (1 + 2 * 22 / 64))  # at a distance of 1, neighboring blocks touch
    assert wide == pytest.approx(pairs * 3)


def test_attention_within_documents_counts_their_squares():
    segments = np.array([[1] * 32 + [2] * 16 + [0] * 16, [1] * 64])  # at the end of a row, padding
    share = step_flops.document_share(segments)
    assert share == pytest.approx((32**2 + 16**2 + 64**2) / (2 * 64**2))
    assert step_flops.document_share(np.ones((3, 8), int)) == 1.0
    for file in ('mlm', 'mae_lm', 'exlm'):
        config = load(file)
        whole, within = step_flops.step_flops(config), step_flops.step_flops(config, document_share=share)
        assert whole - within == pytest.approx((1 - share) * step_flops.attention_flops(config))
        assert 0 < step_flops.attention_flops(config) < 0.5 * whole


def test_sizes_of_the_objectives():
    assert step_flops.needed_sizes(load('mlm')).encoded == 128
    assert step_flops.needed_sizes(load('mae_lm')).encoded == pytest.approx(128 - 19.2)
    exlm = step_flops.needed_sizes(load('exlm'))
    assert (exlm.expanded, exlm.encoded) == pytest.approx((21.2, 128 + 3 * 21.2))
    slots = step_flops.slot_sizes(load('exlm'))
    assert (slots.masked, slots.expanded, slots.encoded) == (20, 24, 200)
    assert step_flops.slot_sizes(load('mae_lm')).encoded == 112


def test_corrupted_tokens_that_are_not_predicted_have_no_logits():
    half, all_ = (
        step_flops.step_flops(load('mlm', f',masking.ratio=0.3,masking.predicted_fraction={p}')) for p in (0.5, 1.0)
    )
    assert half == pytest.approx(step_flops.step_flops(load('mlm')))
    assert all_ > half


def test_peaks_are_those_of_the_kind_and_of_the_dtype():
    assert peaks.peak_flops_per_second('NVIDIA H200', 'bfloat16') == pytest.approx(989.4e12)
    assert peaks.peak_flops_per_second('NVIDIA H100 80GB HBM3', 'float32') == pytest.approx(
        494.7e12
    )  # TF32, XLA's default
    assert peaks.peak_flops_per_second('NVIDIA H100 PCIe', 'bfloat16') == pytest.approx(756e12)
    assert peaks.peak_flops_per_second('NVIDIA A100-SXM4-80GB') == pytest.approx(312e12)
    assert peaks.peak_flops_per_second('TPU v5 lite') == pytest.approx(197e12)
    assert peaks.peak_flops_per_second('TPU v5') == peaks.peak_flops_per_second('TPU v5p')
    assert peaks.peak_flops_per_second('TPU v6 lite', 'float32') == pytest.approx(918e12)


@pytest.mark.parametrize(
    ('kind', 'bfloat16', 'float32'),
    [
        ('NVIDIA A10', 125, 62.5), ('NVIDIA A10G', 70, 35), ('NVIDIA L40', 181.05, 90.5), ('NVIDIA L40S', 362, 183),
        ('NVIDIA H200 NVL', 835.5, 417.5), ('NVIDIA GH200 480GB', 990, 494), ('NVIDIA B200', 2250, 1100),
    ],
)  # fmt: skip
def test_boards_whose_names_begin_alike_have_peaks_of_their_own(kind, bfloat16, float32):
    assert peaks.peak_flops_per_second(kind, 'bfloat16') == pytest.approx(bfloat16 * 1e12)
    assert peaks.peak_flops_per_second(kind, 'float32') == pytest.approx(float32 * 1e12)


@pytest.mark.parametrize(
    'kind',
    [
        'cpu', 'NVIDIA A1000', 'NVIDIA A10-24Q', 'NVIDIA A100-SXM4-40GB MIG 1g.5gb', 'NVIDIA H200 MIG 1g.18gb',
        'NVIDIA A100-SXM-64GB', 'NVIDIA H100 96GB HBM3', 'NVIDIA GB200', 'TPU v4 lite', 'TPU v9',
    ],
)  # fmt: skip
def test_parts_of_a_gpu_and_unknown_boards_have_no_peak(kind):
    assert peaks.peak_flops_per_second(kind) is None


def test_float32_as_such_has_a_peak_of_its_own():
    with jax.default_matmul_precision('highest'):
        assert peaks.peak_flops_per_second('NVIDIA H200', 'float32') == pytest.approx(66.9e12)
        assert peaks.peak_flops_per_second('NVIDIA H200', 'bfloat16') == pytest.approx(989.4e12)
        assert peaks.peak_flops_per_second('TPU v5 lite', 'float32') is None
