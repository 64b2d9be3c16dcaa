"""What is read from compiled programs, against programs whose collectives and products are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mlm_jax.parallel.mesh import make_mesh
from mlm_jax.performance import collectives


class Program:
    """Stands in for a compiled function, with this HLO."""

    def __init__(self, text: str):
        self._text = text

    def as_text(self) -> str:
        return self._text


def test_collectives_in_a_loop_count_as_often_as_it_runs():
    @functools.partial(jax.shard_map, mesh=make_mesh(8), in_specs=PartitionSpec('data'), out_specs=PartitionSpec())
    def program(x):
        def body(carry, _):
            return jnp.sin(jax.lax.pmean(carry + x, 'data')), None

        start = jax.lax.pmean(x, 'data')
        return jax.lax.scan(body, start, length=5)[0]

    compiled = jax.jit(program).lower(jax.ShapeDtypeStruct((8, 32), jnp.float32)).compile()
    assert collectives.describe_collectives(compiled) == {'all-reduce': (6, 6 * 32 * 4)}


@pytest.mark.smoke
def test_products_of_loops_and_batches_count_on_each_device():
    mesh = make_mesh(8)
    rows = jax.ShapeDtypeStruct((16, 24, 8), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec('data')))
    weights = jax.ShapeDtypeStruct((3, 8, 8), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))

    def program(x, w):
        x, _ = jax.lax.scan(lambda x, one: (jnp.sin(x @ one), None), x, w)
        return jnp.einsum('btd,bsd->bts', x, x)

    compiled = jax.jit(program).lower(rows, weights).compile()
    assert collectives.matmul_flops(compiled) == 2 * 2 * (3 * 24 * 8 * 8 + 24 * 24 * 8)


# A product as TPUs write it: a convolution whose window of 12 heads reaches 11 positions into padding on either side.
CONVOLUTION = """\
%inside (a: bf16[4,12,64]) -> bf16[4,12,32] {
  %a = bf16[4,12,64]{2,1,0} parameter(0)
  %w = bf16[64,12,32]{2,1,0} constant({...})
  %c = bf16[4,12,32]{2,1,0} convolution(%a, %w), window={WINDOW}, dim_labels=b0f_i0o->b0f
}

ENTRY %main (a: bf16[4,12,64]) -> bf16[4,12,32] {
  %a.1 = bf16[4,12,64]{2,1,0} parameter(0)
  %s = (bf16[4,12,64]{2,1,0:T(8,128)}, bf16[8,12,64]{2,1,0}) all-gather-start(%a.1), dimensions={0}
  %d = bf16[8,12,64]{2,1,0} all-gather-done(%s)
  ROOT %f = bf16[4,12,32]{2,1,0} fusion(%a.1), kind=kOutput, calls=%inside
}
"""


@pytest.mark.parametrize('window', ['size=12 pad=11_11', 'size=12 pad=5_6', 'size=12 pad=11_0 stride=1'])
def test_only_products_with_real_inputs_count_in_a_convolution(window):
    program = Program(CONVOLUTION.replace('WINDOW', window))
    size, (before, after) = 12, map(int, window.split('pad=')[1].split()[0].split('_'))
    taps = np.convolve(np.ones(12), np.ones(size))[size - 1 - before :][: min(12, 12 + before + after - size + 1)]
    assert collectives.matmul_flops(program) == 2 * 4 * 32 * 64 * int(taps.sum())


# A batch of products as XLA gives them to cuBLAS on GPUs, written as in the tests of XLA's pass `gemm_rewriter`.
CUBLAS = """\
ENTRY %main (a: bf16[6,16,64], b: bf16[6,32,64]) -> bf16[6,16,32] {
  %a = bf16[6,16,64]{2,1,0} parameter(0)
  %b = bf16[6,32,64]{2,1,0} parameter(1)
  %c = (bf16[6,16,32]{2,1,0}, s8[33554432]{0}) custom-call(%a, %b), custom_call_target="__cublas$TARGET", \
backend_config={"gemm_backend_config":{"alpha_real":1,"beta":0,"dot_dimension_numbers":{\
"lhs_contracting_dimensions":["2"],"rhs_contracting_dimensions":["2"],\
"lhs_batch_dimensions":["0"],"rhs_batch_dimensions":["0"]},"alpha_imag":0,"epilogue":"DEFAULT"}}
  ROOT %r = bf16[6,16,32]{2,1,0} get-tuple-element(%c), index=0
}
"""


@pytest.mark.parametrize('target', ['gemm', 'lt$matmul'])
def test_products_of_cublas_count_without_the_room_that_they_work_in(target):
    program = Program(CUBLAS.replace('TARGET', target))
    assert collectives.matmul_flops(program) == 2 * 6 * 16 * 32 * 64
    assert collectives.accessed_bytes(program) == 2 * 6 * (16 * 64 + 32 * 64 + 16 * 32)


def test_gathers_that_are_started_together_count_with_all_their_results():
    program = Program(
        """HloModule f, is_scheduled=true

ENTRY %main (p: f32[64], q: f32[16]) -> f32[512] {
  %p = f32[64]{0} parameter(0)
  %q = f32[16]{0} parameter(1)
  %gather = ((f32[64]{0}, f32[16]{0}), (f32[512]{0}, f32[128]{0})) all-gather-start(%p, %q), dimensions={0}
  %done = (f32[512]{0}, f32[128]{0}) all-gather-done(%gather)
  ROOT %first = f32[512]{0} get-tuple-element(%done), index=0
}
"""
    )
    assert collectives.describe_collectives(program) == {'all-gather': (1, (512 + 128) * 4)}


def test_a_gather_whose_start_and_end_are_fused_counts_once():
    def fused(name):
        return f"""
%{name} (x.{name}: f32[64]) -> f32[512] {{
  %x.{name} = f32[64]{{0}} parameter(0)
  ROOT %g.{name} = f32[512]{{0}} all-gather(%x.{name}), channel_id=5, dimensions={{0}}
}}
"""

    program = Program(
        'HloModule f, is_scheduled=true\n'
        + ''.join(map(fused, ('start', 'body', 'end')))
        + """
ENTRY %main (p: f32[64]) -> f32[512] {
  %p = f32[64]{0} parameter(0)
  %a = f32[512]{0} fusion(%p), kind=kCustom, calls=%start
  %b = f32[512]{0} fusion(%p), kind=kCustom, calls=%body
  %c = f32[512]{0} fusion(%p), kind=kCustom, calls=%end
  ROOT %other = f32[512]{0} all-gather(%p), channel_id=6, dimensions={0}
}
"""
    )
    assert collectives.describe_collectives(program) == {'all-gather': (2, 2 * 512 * 4)}


def test_an_asynchronous_collective_counts_once():
    program = Program(CONVOLUTION.replace('WINDOW', 'size=12'))
    assert collectives.describe_collectives(program) == {'all-gather': (1, 8 * 12 * 64 * 2)}


MOVING = """\
HloModule jit_moving

%tiled (rows.1: f32[5,64,8]) -> f32[5,64,8] {
  %rows.1 = f32[5,64,8]{2,1,0} parameter(0)
  ROOT %tiles = f32[5,64,8]{2,1,0:T(8,128)} copy(%rows.1)
}

%one_row (rows: f32[5,64,8], number: s32[]) -> f32[64,8] {
  %number.1 = s32[] parameter(1)
  %rows = f32[5,64,8]{2,1,0} parameter(0)
  %view = f32[5,64,8]{2,1,0:T(8,128)} fusion(%rows), kind=kLoop, calls=%tiled
  %slice = f32[1,64,8]{2,1,0} dynamic-slice(%view, %number.1, %number.1, %number.1), dynamic_slice_sizes={1,64,8}
  ROOT %flat = f32[64,8]{1,0} bitcast(%slice)
}

%slicing (stack: f32[5,64,8], x: f32[64,8], i: s32[]) -> f32[64,8] {
  %stack = f32[5,64,8]{2,1,0} parameter(0)
  %x = f32[64,8]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %same = f32[5,64,8]{2,1,0} bitcast(%stack)
  %row = f32[64,8]{1,0} fusion(%same, %i), kind=kLoop, calls=%one_row
  ROOT %sum = f32[64,8]{1,0} add(%row, %x)
}

%saving (stack.2: f32[5,64,8], x.2: f32[64,8], i.2: s32[]) -> f32[5,64,8] {
  %stack.2 = f32[5,64,8]{2,1,0} parameter(0)
  %x.2 = f32[64,8]{1,0} parameter(1)
  %i.2 = s32[] parameter(2)
  ROOT %updated = f32[5,64,8]{2,1,0} fusion(%stack.2, %x.2, %i.2), kind=kLoop, calls=%saving_inside
}

%saving_inside (stack.1: f32[5,64,8], x.1: f32[64,8], i.1: s32[]) -> f32[5,64,8] {
  %stack.1 = f32[5,64,8]{2,1,0} parameter(0)
  %x.1 = f32[64,8]{1,0} parameter(1)
  %i.1 = s32[] parameter(2)
  %flat.1 = f32[1,64,8]{2,1,0} bitcast(%x.1)
  ROOT %update = f32[5,64,8]{2,1,0} dynamic-update-slice(%stack.1, %flat.1, %i.1, %i.1, %i.1)
}

%body (state: (s32[], f32[5,64,8], f32[64,8])) -> (s32[], f32[5,64,8], f32[64,8]) {
  %state = (s32[], f32[5,64,8]{2,1,0}, f32[64,8]{1,0}) parameter(0)
  %number = s32[] get-tuple-element(%state), index=0
  %all = f32[5,64,8]{2,1,0} get-tuple-element(%state), index=1
  %one = f32[64,8]{1,0} get-tuple-element(%state), index=2
  %near = f32[64,8]{1,0:S(1)} copy(%one)
  %read = f32[64,8]{1,0} fusion(%all, %near, %number), kind=kLoop, calls=%slicing
  %written = f32[5,64,8]{2,1,0} fusion(%all, %read, %number), kind=kLoop, calls=%saving
  ROOT %next = (s32[], f32[5,64,8]{2,1,0}, f32[64,8]{1,0}) tuple(%number, %written, %read)
}

%condition (state.1: (s32[], f32[5,64,8], f32[64,8])) -> pred[] {
  %state.1 = (s32[], f32[5,64,8]{2,1,0}, f32[64,8]{1,0}) parameter(0)
  ROOT %never = pred[] constant(false)
}

ENTRY %main (start: (s32[], f32[5,64,8], f32[64,8])) -> f32[64,8] {
  %start = (s32[], f32[5,64,8]{2,1,0}, f32[64,8]{1,0}) parameter(0)
  %loop = (s32[], f32[5,64,8]{2,1,0}, f32[64,8]{1,0}) while(%start), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %last = f32[64,8]{1,0} get-tuple-element(%loop), index=2
  %all.1 = f32[5,64,8]{2,1,0} get-tuple-element(%loop), index=1
  %room = f32[64,8]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  %other = f32[5,64,8]{2,1,0:T(8,128)} fusion(%all.1), kind=kLoop, calls=%tiled
  ROOT %twice = f32[64,8]{1,0} add(%last, %last)
}
"""  # noqa: E501


def test_bytes_of_slices_and_updates_count_as_often_as_a_loop_runs():
    row, index = 64 * 8 * 4, 4
    copied = row  # into the memory of the core, where what is read and written does not count
    sliced = row + index + row  # a row of the stack, and the result
    saved = row + index + row  # what is saved, and its place in the stack
    tiled = 2 * 5 * row  # another layout of the whole stack
    assert collectives.accessed_bytes(Program(MOVING)) == 5 * (copied + sliced + saved) + tiled + 3 * row


def test_bytes_of_a_real_program_are_those_of_its_arrays():
    x = jax.ShapeDtypeStruct((256, 128), jnp.float32)
    compiled = jax.jit(lambda x, y: jnp.sin(x) * y + 1.0).lower(x, x).compile()
    assert collectives.accessed_bytes(compiled) == 3 * 256 * 128 * 4


# What a TPU of two slices does to a gradient: it scatters the sum within its slice, and sends its part to the other.
TWO_SLICES = """\
%all-reduce-scatter (input: f32[512,256]) -> f32[128,256] {
  %input = f32[512,256]{1,0} parameter(0)
  %sum = f32[512,256]{1,0} all-reduce(%input), channel_id=1, replica_groups={{0,1,2,3}}
  ROOT %part = f32[128,256]{1,0} dynamic-slice(%sum, %i, %i), dynamic_slice_sizes={128,256}
}

ENTRY %main (x: f32[512,256]) -> f32[128,256] {
  %x = f32[512,256]{1,0} parameter(0)
  %fusion = f32[128,256]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter
  %start = token[] after-all()
  %send = (f32[128,256]{1,0}, u32[], token[]) send(%fusion, %start), frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %sent = token[] send-done(%send), channel_id=2
  %recv = (f32[128,256]{1,0}, u32[], token[]) recv(%start), frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %received = (f32[128,256]{1,0}, token[]) recv-done(%recv), channel_id=1
  ROOT %result = f32[128,256]{1,0} get-tuple-element(%received), index=0
}
"""  # noqa: E501


def test_what_crosses_slices_is_told_from_what_stays_within():
    program = Program(TWO_SLICES)
    assert collectives.describe_collectives(program) == {'reduce-scatter': (1, 512 * 256 * 4)}
    assert collectives.between_slices(program) == {'all-reduce': (1, 128 * 256 * 4)}


def test_a_reduce_scatter_counts_what_it_sends():
    mesh = make_mesh(8)
    rows, parts = PartitionSpec(None), PartitionSpec('data')
    scatter = jax.shard_map(
        lambda x: jax.lax.psum_scatter(x, 'data', tiled=True),
        mesh=mesh,
        in_specs=rows,
        out_specs=parts,
        check_vma=False,
    )
    compiled = jax.jit(scatter).lower(jax.ShapeDtypeStruct((64, 4), jnp.float32)).compile()
    assert collectives.describe_collectives(compiled) == {'reduce-scatter': (1, 64 * 4 * 4)}
