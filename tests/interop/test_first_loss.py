"""Models that transformers itself has made: here, the first loss on the same masked batch is theirs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlm_jax.masking.batch import MaskedBatch
from mlm_jax.pretrained import huggingface

pytest.importorskip('safetensors.numpy')
torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

VOCABULARY, LENGTH, MASK, PAD = 67, 48, 4, 1
SIZES = dict(
    vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=48,
    max_position_embeddings=LENGTH + 2, pad_token_id=PAD,
)  # fmt: skip
SPECIALS = dict(bos_token_id=2, eos_token_id=3)
MODERN = SIZES | SPECIALS | dict(cls_token_id=2, sep_token_id=3, local_attention=8)
DISTIL = dict(vocab_size=VOCABULARY, dim=32, n_layers=2, n_heads=2, hidden_dim=48, max_position_embeddings=LENGTH)
# Model type → the arguments of its configuration.
MODELS = {
    'modernbert': MODERN,
    'xlm-roberta': SIZES | dict(type_vocab_size=1),
    'distilbert': DISTIL | dict(pad_token_id=PAD),
    'mpnet': SIZES,
    'esm': SIZES | dict(position_embedding_type='rotary', mask_token_id=MASK, token_dropout=True),
    'roformer': SIZES,
    'eurobert': SIZES | SPECIALS | dict(num_key_value_heads=1, mask_token_id=MASK),
}
# Rows of documents, some shorter than the window of 8 and some longer.
DOCUMENTS = ((3, 30, 15), (48,), (7, 2, 9, 20))


def save(directory, kind, arguments):
    """A model of transformers with random weights, large enough that attention is far from uniform; and its copy."""
    torch.manual_seed(0)
    model = transformers.AutoModelForMaskedLM.from_config(transformers.AutoConfig.for_model(kind, **arguments)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if kind == 'roformer' and 'token_type' in name:
                parameter.zero_()  # others have no place here
            elif 'embed_positions' not in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    return model


def batch_of(documents):
    """Rows of packed documents, of whose tokens every fourth is masked."""
    rng = np.random.default_rng(0)
    tokens, segments = np.full((len(documents), LENGTH), PAD, np.int32), np.zeros((len(documents), LENGTH), np.int32)
    for row, lengths in enumerate(documents):
        ends = np.cumsum(lengths)
        for number, (length, end) in enumerate(zip(lengths, ends, strict=True), start=1):
            tokens[row, end - length : end] = rng.integers(5, VOCABULARY, length)
            segments[row, end - length : end] = number
    chosen = (np.arange(LENGTH) % 4 == 2) & (segments > 0)
    positions = np.full((len(documents), LENGTH // 4), LENGTH, np.int32)
    for row, slots in enumerate(chosen):
        positions[row, : slots.sum()] = np.flatnonzero(slots)
    inputs = np.where(chosen, MASK, tokens)
    weights = (positions < LENGTH).astype(np.float32)
    return MaskedBatch(*map(jnp.asarray, (tokens, inputs, positions, weights, segments))), chosen


def their_loss(model, batch, chosen):
    """Of each document by itself, which is what packing means."""
    tokens, inputs, segments = (np.asarray(x) for x in (batch.tokens, batch.inputs, batch.segments))
    total = 0.0
    for row in range(len(tokens)):
        for number in range(1, segments[row].max() + 1):
            at = segments[row] == number
            labels = torch.tensor(np.where(chosen[row], tokens[row], -100)[at]).long()
            with torch.no_grad():
                logits = model(input_ids=torch.tensor(inputs[row][at]).long()[None]).logits[0]
            total += torch.nn.functional.cross_entropy(logits, labels, reduction='sum').item()
    return total / chosen.sum()


@pytest.mark.parametrize('kind', MODELS)
def test_the_first_loss_of_packed_documents_is_that_of_transformers(kind, tmp_path):
    model = save(tmp_path, kind, MODELS[kind])
    module, params = huggingface.from_hf(tmp_path)
    batch, chosen = batch_of(DOCUMENTS)
    terms = jax.jit(module.apply)({'params': params}, batch)
    ours = float(terms.loss_sum / terms.weight_sum)
    assert ours == pytest.approx(their_loss(model, batch, chosen), abs=1e-4)
    if kind == 'modernbert':
        c = module.config
        assert (c.local_window, c.global_every, c.rotary_base, c.rotary_base_local) == (8, 3, 160_000.0, 10_000.0)
