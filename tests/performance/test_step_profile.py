"""Where the time of a step goes: kinds of instructions, traces of three platforms with known times, and a real step."""

import gzip
import json

import jax
import pytest

from mlm_jax.performance import hlo, kinds_of_work, speed, step_profile
from mlm_jax.performance.kinds_of_work import IDLE, KINDS, MATMUL, RANDOM_BITS, kind_of_path
from mlm_jax.performance.step_profile import Device, Event

STEP = 'jit(train_step)'
LAYER = f'{STEP}/jvp(MLM)/MLM.logits/encoder/while/body/closed_call/layers'
BACK = LAYER.replace('jvp(MLM)', 'transpose(jvp(MLM))')


@pytest.mark.parametrize(
    ('op_name', 'is_product', 'kind'),
    [
        (f'{LAYER}/mlp/up/dot_general', True, 'matmul'),
        (f'{BACK}/attention/attention._queries_keys_values/qkv/dot_general', True, 'matmul'),
        (f'{BACK}/attention/attention._queries_keys_values/key_value/dot_general', True, 'matmul'),
        (f'{BACK}/attention/bthd,bshd->bhts/dot_general', True, 'attention'),
        (f'{STEP}/jvp(MLM)/MLM.logits/head/encoder.token_logits/...d,vd->...v/dot_general', True, 'head and loss'),
        (f'{STEP}/jvp(ExLM)/ExLM.states/transitions/bvcd,bucd->bcvu/dot_general', True, 'head and loss'),
        (f'{STEP}/optimizer/dot_general', True, 'optimizer'),  # Muon
        (f'{LAYER}/attention/exp', False, 'softmax'),
        (f'{LAYER}/attention/jit(_where)/select_n', False, 'attention'),
        (f'{LAYER}/attention/jit(_bernoulli)/jit(_uniform)/xor', False, 'random bits'),
        (f'{LAYER}/Dropout_0/random_bits/while/body/closed_call/add', False, 'random bits'),
        (f'{LAYER}/Dropout_0/jit(_where)/select_n', False, 'dropout, residual'),
        (f'{LAYER}/add', False, 'dropout, residual'),
        (f'{BACK}/attention_norm/mul', False, 'norm'),
        (f'{STEP}/jvp(MLM)/MLM.logits/encoder/encoder.embed/embedding_norm/sub', False, 'norm'),
        (f'{STEP}/jvp(MLM)/MLM.logits/head/head.hidden/norm/mul', False, 'head and loss'),
        (f'{LAYER}/mlp/erfc', False, 'activation'),
        (f'{LAYER}/mlp/up/add', False, 'matmul'),
        (f'{STEP}/transpose(jvp(MLM))/MLM.logits/encoder/encoder.embed/encoder.token_vectors/add', False, 'embedding'),
        (f'{STEP}/jvp(MAELM)/MAELM.logits/decoder/last_layer/mlp/down/dot_general', True, 'matmul'),
        (f'{STEP}/jvp(MLM)/reduce_sum', False, 'head and loss'),
        (f'{STEP}/optimizer/jit(_where)/select_n', False, 'optimizer'),
        (f'{STEP}/masking/jit(_uniform)/shift_left', False, 'masking'),
        (f'{STEP}/reduce_sum', False, 'other'),
    ],
)
def test_operations_are_of_the_kind_that_their_path_says(op_name, is_product, kind):
    assert kind_of_path(op_name, is_product) == kind and kind in KINDS


# A program with a fused product, a fusion that mostly draws bits, one that only moves, a collective and a loop.
TEXT = f"""HloModule jit_train_step, is_scheduled=true

%product (p0: f32[8,8], p1: f32[8,8]) -> f32[8,8] {{
  %p0 = f32[8,8]{{1,0}} parameter(0)
  %p1 = f32[8,8]{{1,0}} parameter(1)
  %inner = f32[8,8]{{1,0}} dot(%p0, %p1), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}, metadata={{op_name="{LAYER}/mlp/up/dot_general"}}
  ROOT %bias = f32[8,8]{{1,0}} add(%inner, %p1), metadata={{op_name="{LAYER}/mlp_norm/add"}}
}}

%bits (p2: f32[8,8]) -> f32[8,8] {{
  %p2 = f32[8,8]{{1,0}} parameter(0)
  %one = f32[8,8]{{1,0}} add(%p2, %p2), metadata={{op_name="{LAYER}/Dropout_0/jit(_bernoulli)/add"}}
  %two = f32[8,8]{{1,0}} multiply(%one, %p2), metadata={{op_name="{LAYER}/Dropout_0/jit(_bernoulli)/mul"}}
  ROOT %three = f32[8,8]{{1,0}} add(%two, %p2), metadata={{op_name="{LAYER}/add"}}
}}

%moving (p3: f32[4,8,8], p4: f32[8,8], p5: s32[]) -> f32[4,8,8] {{
  %p3 = f32[4,8,8]{{2,1,0}} parameter(0)
  %p4 = f32[8,8]{{1,0}} parameter(1)
  %p5 = s32[] parameter(2)
  %where = s32[] subtract(%p5, %p5), metadata={{op_name="{STEP}/jvp(MLM)/MLM.logits/encoder/while/body/sub"}}
  %cast = f32[1,8,8]{{2,1,0}} bitcast(%p4)
  ROOT %update = f32[4,8,8]{{2,1,0}} dynamic-update-slice(%p3, %cast, %where, %p5, %p5)
}}

%body (state: (s32[], f32[4,8,8], f32[8,8])) -> (s32[], f32[4,8,8], f32[8,8]) {{
  %state = (s32[], f32[4,8,8]{{2,1,0}}, f32[8,8]{{1,0}}) parameter(0)
  %number = s32[] get-tuple-element(%state), index=0
  %stack = f32[4,8,8]{{2,1,0}} get-tuple-element(%state), index=1
  %x = f32[8,8]{{1,0}} get-tuple-element(%state), index=2
  %up.1 = f32[8,8]{{1,0}} fusion(%x, %x), kind=kOutput, calls=%product
  %draw.2 = f32[8,8]{{1,0}} fusion(%up.1), kind=kLoop, calls=%bits
  %save.3 = f32[4,8,8]{{2,1,0}} fusion(%stack, %draw.2, %number), kind=kLoop, calls=%moving
  ROOT %next = (s32[], f32[4,8,8]{{2,1,0}}, f32[8,8]{{1,0}}) tuple(%number, %save.3, %draw.2)
}}

%condition (state.1: (s32[], f32[4,8,8], f32[8,8])) -> pred[] {{
  %state.1 = (s32[], f32[4,8,8]{{2,1,0}}, f32[8,8]{{1,0}}) parameter(0)
  %number.1 = s32[] get-tuple-element(%state.1), index=0
  %end = s32[] constant(4)
  ROOT %less = pred[] compare(%number.1, %end), direction=LT
}}

ENTRY %main (w: f32[8,8]) -> f32[8,8] {{
  %w = f32[8,8]{{1,0}} parameter(0)
  %zero = s32[] constant(0)
  %empty = f32[4,8,8]{{2,1,0}} broadcast(%zero), dimensions={{}}
  %start = (s32[], f32[4,8,8]{{2,1,0}}, f32[8,8]{{1,0}}) tuple(%zero, %empty, %w)
  %loop.4 = (s32[], f32[4,8,8]{{2,1,0}}, f32[8,8]{{1,0}}) while(%start), condition=%condition, body=%body
  %result = f32[8,8]{{1,0}} get-tuple-element(%loop.4), index=2
  %partial.6 = f32[8,8]{{1,0}} reduce-window(%result, %zero), window={{size=8x1}}, to_apply=%sum
  %whole.7 = f32[8]{{0}} reduce(%partial.6, %zero), dimensions={{0}}, to_apply=%sum, metadata={{op_name="{BACK}/mlp_norm/reduce_sum"}}
  ROOT %all-reduce.5 = f32[8,8]{{1,0}} all-reduce(%result), to_apply=%sum, metadata={{op_name="{STEP}/transpose(jvp(MLM))/add"}}
}}

%sum (a: f32[], b: f32[]) -> f32[] {{
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}}
"""  # noqa: E501


@pytest.fixture(scope='module')
def program():
    return hlo.parse(TEXT)


def test_an_instruction_is_of_the_kind_of_most_of_what_is_fused_into_it(program):
    kinds = kinds_of_work.classify(program)
    assert kinds['up.1'] == 'matmul', 'a product outweighs what is fused to it'
    assert kinds['draw.2'] == 'random bits', 'two of three operations'
    assert kinds['save.3'] == 'copies, transposes', 'one number is computed, and 64 are written'
    assert kinds['all-reduce.5'] == 'collectives'
    assert kinds['partial.6'] == kinds['whole.7'] == 'norm', 'a sum in two halves, of which one has a name'
    assert kinds['save_3'] == kinds['save.3'], 'GPU kernels have names without dots'
    assert 'inner' not in kinds, 'what runs within a kernel is not seen in a trace'


def process(name: str, threads: dict[int, str], pid: int = 1) -> list[dict]:
    named = [{'ph': 'M', 'pid': pid, 'name': 'process_name', 'args': {'name': name}}]
    return named + [
        {'ph': 'M', 'pid': pid, 'tid': t, 'name': 'thread_name', 'args': {'name': n}} for t, n in threads.items()
    ]


def event(name: str, start: float, duration: float, thread: int = 1, pid: int = 1, **arguments) -> dict:
    return {'ph': 'X', 'pid': pid, 'tid': thread, 'ts': start, 'dur': duration, 'name': name, 'args': arguments}


def on_cpu(name: str, start: float, duration: float, thread: int, finish: float) -> list[dict]:
    launched = event(name, start, duration, thread, hlo_op=name, hlo_module='jit_train_step')
    return [launched, event(f'end: {name}', finish, 0.1, 2)]


def test_a_cpu_thread_without_an_event_works_on_what_was_handed_out(program):
    trace = process('/host:CPU', {1: 'tf_XLAEigen/1', 2: 'tf_XLAEigen/2'})
    trace += on_cpu('up.1', 0, 10, 1, finish=30)  # from 10 to 30 in other threads
    trace += on_cpu('draw.2', 20, 20, 1, finish=40)  # both at work from 20 to 30
    trace += on_cpu('save.3', 50, 10, 1, finish=60)  # and before, nothing
    trace.append(event('other', 0, 100, 1, hlo_op='other', hlo_module='jit_mask'))
    seconds = step_profile.profile(trace, program, num_steps=1).seconds
    # draw.2 reads what up.1 makes: by its start, that was finished, whatever its own end says.
    assert seconds == pytest.approx({MATMUL: 20e-6, RANDOM_BITS: 20e-6, 'copies, transposes': 10e-6, IDLE: 10e-6})


def test_threads_at_work_share_a_moment():
    events = [Event('a', 0, 10, 30, (1,)), Event('b', 10, 30, 30, (1,)), Event('c', 15, 20, 20, (2,))]
    # Alone; b beside what is left of a; b and c in both threads; b beside a again.
    times = step_profile.wall_time(Device(events, num_workers=2))
    assert times == pytest.approx({'a': 10 + 2.5 + 5, 'b': 2.5 + 2.5 + 5, 'c': 2.5})
    assert sum(times.values()) == 30


def test_only_the_innermost_event_of_a_thread_counts():
    events = [Event('loop', 0, 10, 10, (1,)), Event('a', 2, 5, 5, (1,)), Event('b', 5, 6, 6, (1,))]
    assert step_profile.wall_time(Device(events, 1)) == pytest.approx({'loop': 6, 'a': 3, 'b': 1})


@pytest.mark.parametrize('thread', ['Stream #14(Compute)', 'XLA Ops'])
def test_what_an_accelerator_leaves_open_is_idle(program, thread):
    trace = process('/host:CPU', {1: 'python'}, pid=9)
    trace.append(event('up.1', 0, 500, pid=9, hlo_op='up.1', hlo_module='jit_train_step'))  # the launch, on the host
    for pid, name in ((1, '/device:GPU:0'), (2, '/device:GPU:1')):
        trace += process(name, {7: thread, 8: 'XLA Modules', **({9: 'XLA Ops'} if thread != 'XLA Ops' else {})}, pid)
        trace += [
            event('up_1', 0, 20, 7, pid, hlo_module='jit_train_step'),
            event('ncclDevKernel_AllReduce', 30, 5, 7, pid),
            event('sm90_xmma_gemm_bf16', 35, 5, 7, pid),
            event('jit_train_step(7)', 0, 40, 8, pid),
            event('up.1', 0, 35, 9 if thread != 'XLA Ops' else 8, pid),  # what streams have said already
        ]
    seconds = step_profile.profile(trace, program, num_steps=2).seconds
    assert seconds == pytest.approx({MATMUL: 12.5e-6, 'collectives': 2.5e-6, IDLE: 5e-6})


def test_a_trace_without_the_program_and_a_place_without_a_trace_are_refused(program, tmp_path):
    with pytest.raises(FileNotFoundError, match='has no file'):
        step_profile.load_trace(tmp_path)
    with gzip.open(tmp_path / 'host.trace.json.gz', 'wt') as file:
        json.dump({'traceEvents': process('/host:CPU', {1: 'python'})}, file)
    with pytest.raises(ValueError, match='no instruction of jit_train_step'):
        step_profile.read_profile(tmp_path, TEXT, 1)


@pytest.fixture(scope='module')
def traced(tmp_path_factory):
    """A real step with dropout, and its profile: (contestant, profile)."""
    name = (
        'configs/mlm.py:tiny,recipe=roberta,vocab_size=64,sequence_length=32,batch_size=16,model.width=64,model.num_layers=2,'
        'model.ffn_width=256,mesh.data=8'
    )
    contestant = speed.prepare(name)
    contestant.run(1)
    return contestant, step_profile.trace_step(contestant, tmp_path_factory.mktemp('trace'), num_steps=2)


def test_times_of_a_real_step_are_accounted_for(traced):
    _, profile = traced
    shares = {kind: time / profile.step_seconds for kind, time in profile.seconds.items()}
    assert {'matmul', 'attention', 'norm', 'head and loss', 'optimizer', 'random bits', 'collectives'} <= shares.keys()
    assert shares.get('other', 0) < 0.1, profile.instructions
    assert len(profile.instructions) == 12 and profile.instructions[0][0] >= profile.instructions[1][0]
    text = step_profile.format_profiles({'tiny': profile})
    assert 'matmul' in text and '100.0%' in text


def test_every_instruction_of_a_real_trace_is_known(traced):
    contestant, _ = traced
    program = hlo.parse(contestant.step.as_text())
    known = kinds_of_work.classify(program)
    assert {i.name for _, i in program.launched()} <= known.keys()
    assert jax.device_count() == 8 and program.name == 'jit_train_step'
