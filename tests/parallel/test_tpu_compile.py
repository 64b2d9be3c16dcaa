"""The train step of BERT-base compiles for TPU slices that nobody has here, fits them, and is divided as it should."""

import importlib.util
import math
import pathlib
import re

import jax
import pytest

from mlm_jax import config as config_lib
from mlm_jax.config.step_flops import slot_sizes, step_flops
from mlm_jax.masking.batch import gather_positions
from mlm_jax.models import attention
from mlm_jax.parallel import topology, tpu_slices
from mlm_jax.performance import ahead_of_time

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
BASE = 'base,model.attention_backend=splash,model.attention_dropout=0.0'
# A layer of base: 12 d² weights in bfloat16; the token embedding: V · d in float32.
LAYER_BYTES, TABLE_BYTES = 2 * 12 * 768**2, 4 * 32768 * 768

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None, reason='libtpu is not installed (extra `tpu`)'
)


def get_config(argument: str, file: str = 'mlm.py'):
    """The checked configuration of this file in configs/ with this argument."""
    spec = importlib.util.spec_from_file_location('a_config', CONFIGS / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(argument)
    config_lib.check(config)
    return config


def compile_for(name: str, argument: str, capsys, file: str = 'mlm.py'):
    """What one device needs, the FLOPs of all devices as a share of the model's own, and the program; prints too."""
    config, devices = get_config(argument, file), topology.tpu_devices(name)
    compiled = ahead_of_time.compile_train_step(config, devices, compiler_options=ahead_of_time.LOW_EFFORT)
    needs = ahead_of_time.requirements(compiled)
    share = needs.flops * len(devices) / step_flops(config)
    with capsys.disabled():
        print(f'\n{name} configs/{file}:{argument}')
        total, temporary = (size / 2**20 for size in (needs.memory.total_bytes, needs.memory.temporary_bytes))
        print(f'  {total:,.0f} MiB per device, {temporary:,.0f} of temporaries')
        print(
            f'  {needs.flops / 1e12:.2f} TFLOP per device, {share:.3f} of what the model needs, attention not counted'
        )
        for collective, (times, size) in needs.collectives.items():
            print(f'  {collective}: {times} times, {size / 2**20:,.0f} MiB')
    return needs, share, compiled.as_text()


@needs_libtpu
@pytest.mark.tpu_compile
def test_fsdp_gathers_weights_and_moves_no_activations(capsys):
    overrides = 'sharding=fsdp,mesh.data=16,mesh.fsdp=16,recipe=modern'
    needs, share, _ = compile_for('v5e-256', f'{BASE},{overrides}', capsys)
    assert needs.memory.total_bytes < 15.75 * 2**30
    # All products are done once, on one device: what is missing is the attention in the fused kernel, 9.6 %.
    assert share == pytest.approx(1 - 0.096, abs=0.01)
    # Every layer's weights are gathered once, and kept for the backward pass; so is the embedding.
    gathered = 12 * LAYER_BYTES + TABLE_BYTES
    assert needs.collectives['all-gather'][1] == pytest.approx(gathered, rel=0.15)
    # Gradients are summed over the devices of `fsdp`, those of layers in bfloat16, and mostly reduce-scattered (for
    # some layouts, the compiler makes that an all-reduce); then the parts are summed over `data`, in float32.
    scattered, parts = needs.collectives['reduce-scatter'][1], (2 * 12 * LAYER_BYTES + TABLE_BYTES) / 16
    assert scattered > 0.8 * 12 * LAYER_BYTES
    assert scattered + needs.collectives['all-reduce'][1] < 1.1 * (12 * LAYER_BYTES + TABLE_BYTES + parts)
    # Rows stay where they are: no exchange of activations, no products of slices passed around a ring.
    assert needs.collectives.keys() == {'all-gather', 'reduce-scatter', 'all-reduce'}
    # The state is divided by the 16 devices of the axis (12 bytes per parameter; narrow slices are padded to 128).
    assert needs.memory.argument_bytes < 128 / 48 * 12 * 111e6 / 16


@needs_libtpu
@pytest.mark.tpu_compile
def test_exlm_moves_no_states_and_holds_no_steps_of_targets(capsys):
    """Two layers of size mini, which compile much sooner than base; doctor and bench predict base (docs/results)."""
    argument = 'mini,recipe=roberta,slice=v5e-16,model.num_layers=2'
    needs, share, program = compile_for('v5e-16', argument, capsys, 'exlm.py')
    assert needs.memory.total_bytes < 110 * 2**20
    # Expanded rows have 200 slots, and 256 within the fused kernel alone.
    assert share == pytest.approx(1.0, abs=0.05)
    # The sum over alignments is done where its rows are; whether a row needs log space is known to all.
    assert needs.collectives.keys() == {'all-gather', 'all-reduce'}
    # 4 rows on a device at a time, of E targets and S states each: logits of states, not of positions, and nothing that
    # holds all steps between states for each target.
    num_targets = slot_sizes(get_config(argument, 'exlm.py')).expanded
    num_states = 4 * num_targets
    shapes = {tuple(map(int, dims.split(','))) for dims in re.findall(r'\b(?:f32|bf16)\[([\d,]+)\]', program)}
    assert any(shape.count(num_states) > 1 for shape in shapes), 'transitions'
    assert max(math.prod(shape) for shape in shapes if 8192 in shape) <= 4 * num_states * 8192
    assert not [s for s in shapes if math.prod(s) >= 4 * num_targets * num_states**2 and s.count(num_states) > 1]


@needs_libtpu
@pytest.mark.tpu_compile
def test_attention_chooses_between_the_kernels_of_local_and_of_global_layers():
    """Forward and backward, with fewer heads of keys and values, and with queries at some positions alone."""
    place = jax.sharding.SingleDeviceSharding(topology.tpu_devices('v5e-4')[0])

    def shape(*sizes, dtype='bfloat16'):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=place)

    def loss(q, k, v, segments, at, is_local):
        q_segments, window = gather_positions(segments, at), attention.Window(64, is_local, at)
        out = attention.attend(q, k, v, q_segments, segments, window=window, backend='splash')
        return out.astype('float32').sum()

    rows = shape(2, 512, dtype='int32'), shape(2, 77, dtype='int32'), shape(dtype='bool')
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    lowered = gradient.lower(shape(2, 77, 4, 64), shape(2, 512, 2, 64), shape(2, 512, 2, 64), *rows)
    with ahead_of_time.no_compilation_cache():
        program = lowered.compile(ahead_of_time.LOW_EFFORT).as_text()
    assert program.count(' conditional(') == 2


@needs_libtpu
@pytest.mark.tpu_compile
def test_what_does_not_fit_is_refused_with_the_sizes():
    config = get_config(f'{BASE},sharding=fsdp,mesh.data=1,mesh.fsdp=16')
    with pytest.raises(jax.errors.JaxRuntimeError, match='RESOURCE_EXHAUSTED.*exceeds available HBM'):
        ahead_of_time.compile_train_step(config, topology.tpu_devices('v5e-16'))


@pytest.mark.parametrize(
    'name, layout', [('v5e-16', 'v5e:4x4'), ('v6e-256', 'v6e:16x16'), ('v5p-64', 'v5p:2x4x4'), ('v5e:2x2', 'v5e:2x2')]
)
def test_slices_are_known_by_name_and_by_layout(name, layout):
    assert tpu_slices.layout_name(name) == layout


def test_slices_have_devices_and_memory():
    assert tpu_slices.size_of('v5e-16') == (16, 16 * 2**30)
    assert tpu_slices.size_of('v5p-64') == (32, 95 * 2**30)
    assert tpu_slices.size_of('v6e:2x4') == (8, 32 * 2**30)
    with pytest.raises(ValueError, match="unknown topology 'v9:2x2': its kind must be one of v5e, v6e, v5p"):
        tpu_slices.size_of('v9:2x2')


@pytest.mark.parametrize('name', ['v5e-17', 'v5p-7', 'v9-16', 'v5e', 'v5e-x'])
def test_an_unknown_slice_is_refused(name):
    with pytest.raises(ValueError, match=f"unknown topology '{name}': it must be one of v5e-4, "):
        tpu_slices.layout_name(name)


def test_without_libtpu_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'mlm_jax\[tpu\]'"):
        topology.tpu_devices('v5e-16')
