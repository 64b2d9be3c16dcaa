"""BERT and RoBERTa of `transformers` compute the same numbers as the encoder here, given the same weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlm_jax.masking.batch import MaskedBatch
from mlm_jax.models.layers import EncoderConfig
from mlm_jax.objectives.mlm import MLM
from mlm_jax.pretrained import huggingface

torch = pytest.importorskip('torch')
LENGTH, HEADS, VOCAB = 24, 4, 97
SIZES = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=HEADS, intermediate_size=80, vocab_size=VOCAB)


def build(name: str):
    """The torch model with random weights (biases and norms too), and the module and parameters here."""
    transformers = pytest.importorskip('transformers')
    torch.manual_seed(0)
    if name == 'bert':
        config = transformers.BertConfig(**SIZES, max_position_embeddings=LENGTH)
        model = transformers.BertForMaskedLM(config).eval()
    else:
        config = transformers.RobertaConfig(**SIZES, max_position_embeddings=LENGTH + 2, layer_norm_eps=1e-5)
        model = transformers.RobertaForMaskedLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    convert = {'bert': huggingface.bert_params, 'roberta': huggingface.roberta_params}[name]
    ours = EncoderConfig(
        vocab_size=VOCAB, max_length=LENGTH, num_layers=3, width=32, num_heads=HEADS, ffn_width=80,
        norm_epsilon=config.layer_norm_eps,
    )  # fmt: skip
    return model, state, MLM(ours), convert(state, HEADS)


@pytest.fixture(scope='module', params=['bert', 'roberta'])
def pair(request):
    return request.param, *build(request.param)


@pytest.fixture(scope='module')
def rows():
    """Rows of 24, 17, 9 and 2 tokens with their padding, RoBERTa's padding id being 1 and BERT's 0."""
    lengths = np.array([24, 17, 9, 2])
    real = np.arange(LENGTH) < lengths[:, None]
    return np.random.default_rng(0).integers(5, VOCAB, (4, LENGTH)), real


def padded(name, rows):
    tokens, real = rows
    return np.where(real, tokens, {'bert': 0, 'roberta': 1}[name]).astype(np.int32), real.astype(np.int32)


def test_parameters_have_the_shapes_of_the_module(pair):
    _, _, _, module, params = pair
    row = jnp.zeros((1, LENGTH), jnp.int32)
    slots = jnp.zeros((1, 3), jnp.int32)
    batch = MaskedBatch(row, row, slots, slots.astype(jnp.float32), row)
    expected = jax.eval_shape(module.init, jax.random.key(0), batch)['params']
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda x: x.shape, expected)


def test_hidden_states_agree(pair, rows):
    name, model, _, module, params = pair
    tokens, segments = padded(name, rows)
    with torch.no_grad():
        theirs = getattr(model, name)(
            input_ids=torch.tensor(tokens).long(), attention_mask=torch.tensor(segments)
        ).last_hidden_state.numpy()
    encode = jax.jit(functools.partial(module.apply, method='encode'))
    ours = encode({'params': params}, tokens, segments)
    np.testing.assert_allclose(ours[segments > 0], theirs[segments > 0], atol=1e-5, rtol=1e-5)


def test_masked_logits_loss_and_gradient_agree(pair, rows):
    name, model, _, module, params = pair
    tokens, segments = padded(name, rows)
    positions = np.array([[1, 5, 23], [0, 16, LENGTH], [3, 4, 8], [1, LENGTH, LENGTH]], np.int32)
    weights = (positions < LENGTH).astype(np.float32)
    inputs = tokens.copy()
    r, m = np.nonzero(weights)
    inputs[r, positions[r, m]] = 4
    batch = MaskedBatch(*map(jnp.asarray, (tokens, inputs, positions, weights, segments)))

    labels = np.full_like(tokens, -100)
    labels[r, positions[r, m]] = tokens[r, positions[r, m]]
    out = model(
        input_ids=torch.tensor(inputs).long(),
        attention_mask=torch.tensor(segments),
        labels=torch.tensor(labels).long(),
    )
    model.zero_grad()
    out.loss.backward()

    logits = jax.jit(functools.partial(module.apply, method='logits'))({'params': params}, batch)
    theirs = out.logits.detach().numpy()[r, positions[r, m]]
    np.testing.assert_allclose(logits[r, m], theirs, atol=1e-5, rtol=1e-5)

    def loss(params):
        terms = module.apply({'params': params}, batch)
        return terms.loss_sum / terms.weight_sum

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    assert float(value) == pytest.approx(out.loss.item(), rel=1e-5)
    theirs = getattr(model, name).embeddings.word_embeddings.weight.grad.numpy()
    ours = np.array(grads['encoder']['token_embedding']['embedding'])
    pad = {'bert': 0, 'roberta': 1}[name]
    ours[pad] = theirs[pad] = 0  # torch keeps the padding's row from learning
    np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=1e-4)


def test_missing_unknown_and_untied_weights_are_refused(pair):
    name, _, state, _, _ = pair
    convert = {'bert': huggingface.bert_params, 'roberta': huggingface.roberta_params}[name]
    norm = f'{name}.embeddings.LayerNorm.weight'
    with pytest.raises(ValueError, match=rf"has no '{norm}'"):
        convert({key: value for key, value in state.items() if key != norm}, HEADS)
    with pytest.raises(ValueError, match=r'without a place here: pooler\.weight'):
        convert(state | {'pooler.weight': np.zeros(3)}, HEADS)
    decoder = next(key for key in state if key.endswith('decoder.weight'))
    with pytest.raises(ValueError, match='is tied to'):
        convert(state | {decoder: state[decoder] + 1}, HEADS)
    with pytest.raises(ValueError, match='num_heads=5 does not divide'):
        convert(state, 5)
