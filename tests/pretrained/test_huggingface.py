"""Directories of `transformers` are read and written so that both sides compute the same numbers."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlm_jax.masking.batch import MaskedBatch
from mlm_jax.models.layers import EncoderConfig
from mlm_jax.objectives.mlm import MLM
from mlm_jax.pretrained import huggingface

safetensors_numpy = pytest.importorskip('safetensors.numpy')
LENGTH, VOCAB = 16, 61
SIZES = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40, vocab_size=VOCAB)


def save_model(directory, kind: str, **keys):
    """A torch model with random weights (biases and norms too), saved, and itself."""
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    torch.manual_seed(0)
    if kind == 'bert':
        config = transformers.BertConfig(**SIZES, max_position_embeddings=LENGTH, layer_norm_eps=1e-3, **keys)
        model = transformers.BertForMaskedLM(config).eval()
    else:
        config = transformers.RobertaConfig(**SIZES, max_position_embeddings=LENGTH + 2, layer_norm_eps=1e-5, **keys)
        model = transformers.RobertaForMaskedLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    return model


@pytest.fixture(scope='module', params=['bert', 'roberta'])
def saved(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    return save_model(directory, request.param), directory


@pytest.fixture
def written(tmp_path):
    """A directory of `to_hf`: (configuration, parameters, directory)."""
    config = EncoderConfig(VOCAB, LENGTH, 2, 16, 4, 40, norm_epsilon=1e-4)
    params = random_params(config)
    huggingface.to_hf(config, params, tmp_path / 'model', pad_id=3)
    return config, params, tmp_path / 'model'


def random_params(config):
    slots = jnp.zeros((1, 3), jnp.int32)
    row = jnp.zeros((1, LENGTH), jnp.int32)
    batch = MaskedBatch(row, row, slots, slots.astype(float), row)
    shapes = jax.eval_shape(MLM(config).init, jax.random.key(0), batch)['params']
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0.2, 0.2, x.shape).astype(np.float32), shapes)


def logits(module, params):
    """f32[2, T, V] of rows of 16 and 9 tokens, and where they are real."""
    real = np.arange(LENGTH) < np.array([[16], [9]])
    tokens = np.where(real, np.random.default_rng(0).integers(5, VOCAB, (2, LENGTH)), 1).astype(np.int32)
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens.shape)
    batch = MaskedBatch(tokens, tokens, positions, real.astype(np.float32), real.astype(np.int32))
    apply = jax.jit(module.apply, static_argnames='method')
    return apply({'params': params}, batch, method='logits'), tokens, real


def torch_logits(model, tokens, real):
    torch = pytest.importorskip('torch')
    with torch.no_grad():
        return model(input_ids=torch.tensor(tokens).long(), attention_mask=torch.tensor(real).long()).logits.numpy()


def change(directory, **keys):
    """Replaces keys of config.json; None removes one."""
    path = directory / 'config.json'
    stored = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({key: value for key, value in stored.items() if value is not None}))


def test_a_saved_model_computes_the_same_logits(saved):
    model, directory = saved
    module, params = huggingface.from_hf(directory)
    assert module.config.max_length == LENGTH and module.config.norm_epsilon == model.config.layer_norm_eps
    ours, tokens, real = logits(module, params)
    np.testing.assert_allclose(ours[real], torch_logits(model, tokens, real)[real], atol=1e-5, rtol=1e-5)


def test_a_written_model_is_read_by_transformers_and_by_us(written):
    transformers = pytest.importorskip('transformers')
    config, params, directory = written
    ours, tokens, real = logits(MLM(config), params)
    model, report = transformers.AutoModelForMaskedLM.from_pretrained(directory, output_loading_info=True)
    assert type(model).__name__ == 'BertForMaskedLM' and model.config.pad_token_id == 3
    assert not report['missing_keys'] and not report['unexpected_keys']
    np.testing.assert_allclose(ours[real], torch_logits(model.eval(), tokens, real)[real], atol=1e-5, rtol=1e-5)


def test_a_written_model_comes_back_to_the_bit(written):
    config, params, directory = written
    module, read = huggingface.from_hf(directory)
    assert module.config == config
    assert jax.tree.all(jax.tree.map(np.array_equal, read, params))


def test_old_names_the_pooler_half_precision_and_shards_are_read(written):
    """As bert-base-uncased has them: gamma and beta, and the parts that predict the next sentence."""
    _, params, directory = written
    arrays = safetensors_numpy.load_file(directory / 'model.safetensors')
    (directory / 'model.safetensors').unlink()
    old = {k.replace('Norm.weight', 'Norm.gamma').replace('Norm.bias', 'Norm.beta'): v for k, v in arrays.items()}
    old |= {'bert.pooler.dense.weight': np.zeros((16, 16)), 'cls.seq_relationship.bias': np.zeros(2)}
    old['cls.predictions.decoder.weight'] = old['bert.embeddings.word_embeddings.weight']
    names = sorted(old)
    files = {'a.safetensors': names[:9], 'b.safetensors': names[9:]}
    for file, part in files.items():
        safetensors_numpy.save_file({k: old[k].astype(jnp.bfloat16) for k in part}, directory / file)
    index = {'weight_map': {k: file for file, part in files.items() for k in part}}
    (directory / 'model.safetensors.index.json').write_text(json.dumps(index))
    change(directory, architectures=['BertForPreTraining'])
    _, read = huggingface.from_hf(directory)
    for a, b in zip(jax.tree.leaves(read), jax.tree.leaves(params), strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-3)
    (directory / 'b.safetensors').unlink()
    with pytest.raises(FileNotFoundError, match='lacks b.safetensors'):
        huggingface.from_hf(directory)


@pytest.mark.parametrize(
    'keys, message',
    [
        (dict(architectures=['BertForTokenClassification']), 'describes BertForTokenClassification'),
        (dict(architectures=['RobertaForMaskedLM']), "model_type 'bert'"),
        (dict(architectures=None), 'describes no architecture'),
        (dict(hidden_act='gelu_new'), "hidden_act='gelu_new': only 'gelu'"),
        (dict(position_embedding_type='relative_key'), 'position_embedding_type='),
        (dict(tie_word_embeddings=False), 'tie_word_embeddings=False'),
        (dict(is_decoder=True), 'is_decoder=True'),
        (dict(vocab_size=None), "lacks 'vocab_size'"),
        (dict(vocab_size=60), r'\[61, 16\], where .* vocab_size × hidden_size = \[60, 16\]'),
        (dict(num_hidden_layers=3), r'\[2, 40\], where .* num_hidden_layers'),
        (dict(num_attention_heads=3), 'num_heads=3 does not divide'),
    ],
)
def test_what_has_no_place_here_is_refused(written, keys, message):
    directory = written[2]
    change(directory, **keys)
    with pytest.raises(ValueError, match=message):
        huggingface.from_hf(directory)


def test_missing_files_and_untied_weights_are_refused(written):
    directory = written[2]
    arrays = safetensors_numpy.load_file(directory / 'model.safetensors')
    for name, array, message in [
        ('cls.predictions.decoder.weight', np.ones((VOCAB, 16), np.float32), 'is tied to'),
        ('bert.adapter.weight', np.ones(3), r'without a place here: bert\.adapter\.weight'),
    ]:
        safetensors_numpy.save_file(arrays | {name: array}, directory / 'model.safetensors')
        with pytest.raises(ValueError, match=message):
            huggingface.from_hf(directory)
    (directory / 'model.safetensors').write_bytes(b'version https://git-lfs')
    with pytest.raises(ValueError, match='model.safetensors is damaged'):
        huggingface.from_hf(directory)
    (directory / 'model.safetensors').unlink()
    with pytest.raises(FileNotFoundError, match=r'lacks model\.safetensors.*pytorch_model\.bin'):
        huggingface.read_encoder_config(directory)
    (directory / 'config.json').unlink()
    with pytest.raises(FileNotFoundError, match=r'has no config\.json'):
        huggingface.from_hf(directory)


def test_without_the_extra_the_error_says_how_to_install_it(written, monkeypatch):
    monkeypatch.setitem(sys.modules, 'safetensors.numpy', None)
    with pytest.raises(ImportError, match=r"pip install 'mlm_jax\[huggingface\]'"):
        huggingface.read_encoder_config(written[2])


def test_what_bert_cannot_express_is_refused(written, tmp_path):
    _, params, _ = written
    modern = EncoderConfig(VOCAB, LENGTH, 2, 16, 4, 40, positions='rotary', norm='pre', bias=False, mlp='geglu')
    with pytest.raises(ValueError, match=r"positions='rotary', where BERT has 'learned'; norm='pre'.*bias=.*mlp="):
        huggingface.to_hf(modern, params, tmp_path / 'new')
    with pytest.raises(ValueError, match=r'the parameters are \[16, 16\], where .* positions'):
        huggingface.to_hf(EncoderConfig(VOCAB, 8, 2, 16, 4, 40), params, tmp_path / 'new')
    with pytest.raises(ValueError, match='these have decoder, encoder, head'):
        huggingface.to_hf(EncoderConfig(VOCAB, LENGTH), {**params, 'decoder': {}}, tmp_path / 'new')
    assert not (tmp_path / 'new').exists()
