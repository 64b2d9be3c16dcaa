"""The peer in PyTorch does what our step does: the same loss, the same update; what it cannot do is refused."""

import sys
import types

import jax
import numpy as np
import pytest

from mlm_jax import bench
from mlm_jax import config as config_lib
from mlm_jax.config import ConfigError
from mlm_jax.masking.masking import Masking
from mlm_jax.masking.vocabulary import standard_vocabulary
from mlm_jax.objectives.mlm import MLM
from mlm_jax.performance import pytorch_peer, speed
from mlm_jax.performance.pytorch_peer import VARIANTS, PyTorchStep
from mlm_jax.pretrained import huggingface
from mlm_jax.training import build

pytest.importorskip('torch')
pytest.importorskip('transformers')

# Adam's first update would be ±lr whatever the gradient; with a large ε it is proportional to it.
SETTINGS = {
    'optimizer.eps': '1.0', 'optimizer.weight_decay': '0.1', 'optimizer.learning_rate': '1.0',
    'optimizer.clip_norm': '100.0', 'schedule.name': 'constant', 'schedule.warmup_steps': '0', 'mesh.data': '1',
}  # fmt: skip


@pytest.fixture(scope='module')
def ours():
    """A step of ours on one device, its parameters and masks before it, its loss, and its parameters after it."""
    config = config_lib.load(
        'configs/mlm.py:tiny,recipe=roberta,vocab_size=64,sequence_length=32,batch_size=8,model.num_layers=2,'
        'model.width=32,model.num_heads=2,model.ffn_width=64,model.dropout=0.0,model.attention_dropout=0.0'
    )
    config_lib.apply_overrides(config, SETTINGS)
    one_device = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, 'devices', lambda: one_device)
        contestant = speed.prepare('ours', config)
    config = contestant.config
    before, batch = jax.device_get(contestant.state.params), contestant.masked_batch()
    _, rate = build.make_optimizer_of_run(contestant.config)
    contestant.state, metrics = contestant.step(contestant.state, contestant.tokens)
    after = jax.device_get(contestant.state.params)
    loss = float(metrics['loss'][0] / metrics['loss'][1])
    return types.SimpleNamespace(
        contestant=contestant, config=config, before=before, batch=batch, rate=float(rate(0)), loss=loss, after=after
    )


def peer(ours, name: str, batch=None) -> PyTorchStep:
    encoder = build.encoder_config(ours.config)
    batch = ours.batch if batch is None else batch
    return PyTorchStep(name, VARIANTS[name], ours.config, encoder, ours.before, batch, ours.rate, 256, 1.0)


@pytest.mark.parametrize('name', ['eager-float32', 'eager-float32-everywhere'])
def test_the_first_step_has_our_loss_and_our_update(ours, name):
    step = peer(ours, name)
    assert float(step.loss) == pytest.approx(ours.loss, rel=1e-5)
    state = {name: array.detach().numpy() for name, array in step.model.state_dict().items()}
    updates = 0
    for (name, new), (_, old) in zip(
        huggingface.bert_arrays(ours.after), huggingface.bert_arrays(ours.before), strict=True
    ):
        if 'token_type' in name or 'position_embeddings' in name:
            continue  # PyTorch learns both, which are one table here
        if name.endswith('word_embeddings.weight'):
            old, new, state[name] = old[1:], new[1:], state[name][1:]  # it keeps the padding's row from learning
        np.testing.assert_allclose(state[name] - old, new - old, atol=2e-7, rtol=2e-3, err_msg=name)
        updates = max(updates, np.abs(new - old).max())
    assert updates > 1e-5
    assert step.run(2) > 0 and float(step.loss) < ours.loss


def test_autocast_computes_the_same_loss_less_exactly(ours):
    step = peer(ours, 'eager-bfloat16')
    assert 0 < abs(float(step.loss) - ours.loss) < 0.02
    assert step.dtype == 'bfloat16' and {p.dtype.itemsize for p in step.model.parameters()} == {4}


def test_documents_in_a_row_and_padding_are_kept_apart(ours):
    vocabulary = standard_vocabulary(64)
    tokens = np.random.default_rng(0).integers(5, 64, (8, 32)).astype(np.int32)
    segments = np.repeat([1, 1, 1, 2, 2, 3, 0, 0], 4)[None].repeat(8, 0).astype(np.int32)
    segments[0] = 1
    tokens[segments == 0] = vocabulary.pad_id
    batch = jax.device_get(jax.jit(Masking(vocabulary))(jax.random.key(0), tokens, segments))
    module = MLM(build.encoder_config(ours.config))
    terms = jax.jit(module.apply)({'params': ours.before}, batch)
    expected = float(terms.loss_sum / terms.weight_sum)
    for name in ('eager-float32', 'eager-float32-everywhere'):
        assert float(peer(ours, name, batch).loss) == pytest.approx(expected, rel=1e-5)


def test_what_bert_cannot_express_is_refused_with_the_keys_to_set():
    config = config_lib.load('configs/mlm.py:tiny,recipe=modern,num_microbatches=2')
    config = config_lib.resolve(config)
    with pytest.raises(ConfigError) as error:
        pytorch_peer.check(config, build.encoder_config(config))
    text = 'set model.positions=learned, model.norm=post, model.bias=True, model.mlp=gelu, optimizer.name=adamw'
    assert f'{text}, num_microbatches=1' in str(error.value)
    config = config_lib.resolve(config_lib.load('configs/mae_lm.py:tiny,recipe=roberta,model.relative_buckets=0'))
    with pytest.raises(ConfigError, match='set objective=mlm$'):
        pytorch_peer.check(config, build.encoder_config(config))


def test_the_extra_is_named_where_it_is_missing(ours, monkeypatch):
    monkeypatch.setitem(sys.modules, 'transformers', None)
    with pytest.raises(ImportError, match=r"pip install 'mlm_jax\[peer\]'"):
        bench.peers(ours.contestant, ['eager-float32'])


def test_a_variant_that_cannot_be_compiled_is_left_out_with_the_reason(ours, monkeypatch):
    torch, _ = pytorch_peer.import_torch()
    from torch._inductor.exc import InvalidCxxCompiler

    def compile(function, **options):
        def fail():
            raise InvalidCxxCompiler()

        return fail

    monkeypatch.setattr(torch, 'compile', compile)
    found, failed = bench.peers(ours.contestant, ['eager-float32', 'compile-float32'])
    assert [step.name for step in found] == ['PyTorch eager-float32']
    assert 'No working C++ compiler' in failed['PyTorch compile-float32']
    bench.measure([ours.contestant, *found], 3, 1, parts=True)
    ratios = bench.ratios([ours.contestant], found)
    assert ratios['PyTorch eager-float32']['ours'] > 0
    lines = bench.report([ours.contestant, *found])
    text = bench.table(lines) + bench.ratio_table(ratios, failed)
    assert 'cannot be compiled here: InvalidCxxCompiler' in text and 'PyTorch eager-float32' in text
    assert ours.contestant.flops_per_step == found[0].flops_per_step


@pytest.mark.parametrize(
    ('platform', 'has_cuda', 'found'),
    [
        ('cpu', True, 'cpu'), ('cpu', False, 'cpu'), ('gpu', True, 'cuda'),
        ('gpu', False, 'JAX runs on a GPU, which this PyTorch .* cannot use: install one .*JAX_PLATFORMS=cpu'),
        ('tpu', True, 'JAX runs on a tpu: leave out --peer, or compare both on the CPU, .*JAX_PLATFORMS=cpu'),
    ],
)  # fmt: skip
def test_both_sides_run_on_the_same_kind_of_device(platform, has_cuda, found, monkeypatch):
    torch, _ = pytorch_peer.import_torch()
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: has_cuda)
    monkeypatch.setattr(jax, 'devices', lambda: [types.SimpleNamespace(platform=platform)])
    if found in ('cpu', 'cuda'):
        assert pytorch_peer.device_type() == found
        return
    with pytest.raises(ConfigError, match=found):
        pytorch_peer.device_type()


def test_on_a_cpu_the_peer_leaves_a_gpu_alone(ours, monkeypatch):
    torch, _ = pytorch_peer.import_torch()
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    assert {p.device.type for p in peer(ours, 'eager-float32').model.parameters()} == {'cpu'}


def test_several_devices_are_refused(ours, monkeypatch):
    monkeypatch.setattr(speed.TrainStep, 'num_devices', 8)
    with pytest.raises(ConfigError, match='CUDA_VISIBLE_DEVICES=0'):
        bench.peers(ours.contestant, ['eager-float32'])
