"""Fine-tuning learns, alike whatever is beside it, and as a plain loop in PyTorch does."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlm_jax.config import ConfigError
from mlm_jax.finetuning import inputs as inputs_lib
from mlm_jax.finetuning import loop as fine_tuning
from mlm_jax.finetuning.downstream import Downstream
from mlm_jax.finetuning.inputs import Inputs
from mlm_jax.finetuning.loop import fine_tune
from mlm_jax.finetuning.problems import Problem
from mlm_jax.finetuning.programs import init_params, make_module
from mlm_jax.finetuning.recipe import Recipe
from mlm_jax.models.layers import EncoderConfig
from mlm_jax.models.pooling import POOLINGS
from mlm_jax.objectives.exlm import ExLM
from mlm_jax.objectives.mlm import MLM
from mlm_jax.parallel.mesh import make_mesh
from mlm_jax.pretrained import huggingface
from mlm_jax.training.checkpoints import Snapshots

CONFIG = EncoderConfig(vocab_size=64, max_length=32, num_layers=2, width=32, num_heads=2, ffn_width=64)
RECIPE = Recipe(learning_rate=3e-3, batch_size=16, epochs=3, dropout=0.0)


def rows(count: int, seed: int, longest: int = 17) -> Inputs:
    """Rows of 4 … `longest` − 1 tokens; in those of class 1 every second token is 9.

    Batches of up to 16 tokens have one shape, and so one program; those of more tokens have two.
    """
    rng = np.random.default_rng(seed)
    tokens = []
    for i in range(count):
        row = rng.integers(10, 64, rng.integers(4, longest))
        row[0] = 2
        if i % 2:
            row[1::2] = 9
        tokens.append(row.astype(np.int32))
    return Inputs(tokens, (np.arange(count) % 2)[:, None].astype(np.float32), 32)


def accuracy(inputs):
    return lambda split, outputs: {'accuracy': float((outputs.argmax(1) == inputs[split].targets[:, 0]).mean())}


def make_problem(**splits: Inputs) -> Problem:
    inputs = splits or {'train': rows(200, 0), 'validation': rows(60, 1)}
    return Problem(
        'classification', 2, inputs, accuracy(inputs), lambda *_: None, 'accuracy', np.ones(2, np.float32), {}
    )


@pytest.fixture(scope='module')
def mesh():
    return make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope='module')
def encoder():
    params = MLM(CONFIG).init(
        jax.random.key(7), jnp.ones((1, 8), jnp.int32), jnp.ones((1, 8), jnp.int32), method='encode'
    )
    return params['params']['encoder']


def run(mesh, encoder, seeds, recipe=RECIPE, problem=None, objective=None, **callbacks):
    with jax.set_mesh(mesh):
        return fine_tune(
            objective or MLM(CONFIG), encoder, 0, problem or make_problem(), recipe, seeds, mesh, **callbacks
        )


@pytest.fixture(scope='module')
def outcomes(mesh, encoder):
    return run(mesh, encoder, [1, 2])


def test_it_learns_and_keeps_the_best(outcomes):
    for outcome in outcomes:
        assert outcome.metrics['validation']['accuracy'] > 0.95
        assert outcome.metrics['validation']['accuracy'] == max(point['accuracy'] for point in outcome.curve)
        assert [point['step'] for point in outcome.curve] == [13, 26, 39]
        assert outcome.best_step in (13, 26, 39)
        assert np.mean(outcome.train_losses[-5:]) < 0.3 < np.mean(outcome.train_losses[:5])
        assert outcome.curve[0]['train_loss'] == pytest.approx(np.mean(outcome.train_losses[:13]), rel=1e-5)


def test_a_seed_does_not_depend_on_those_beside_it(mesh, encoder, outcomes):
    (alone,) = run(mesh, encoder, [2])
    assert alone.train_losses == pytest.approx(outcomes[1].train_losses, rel=1e-3, abs=1e-4)
    assert alone.train_losses != pytest.approx(outcomes[0].train_losses, rel=1e-2)
    np.testing.assert_allclose(alone.outputs['validation'], outcomes[1].outputs['validation'], rtol=1e-2, atol=1e-2)


def test_rows_are_divided_over_devices(mesh, encoder):
    problem = make_problem(train=rows(48, 0), validation=rows(20, 1))
    recipe = dataclasses.replace(RECIPE, epochs=2)
    (one,), (divided,) = (run(m, encoder, [1], recipe, problem) for m in (mesh, make_mesh()))
    assert divided.train_losses == pytest.approx(one.train_losses, rel=1e-3, abs=1e-4)
    np.testing.assert_allclose(divided.outputs['validation'], one.outputs['validation'], rtol=1e-2, atol=1e-2)
    with pytest.raises(ConfigError, match='batch_size=12 cannot be divided over 8 devices'):
        run(make_mesh(), encoder, [1], dataclasses.replace(RECIPE, batch_size=12))


def test_random_encoders_differ_by_seed(mesh):
    outcomes = run(mesh, None, [1, 2], dataclasses.replace(RECIPE, epochs=1))
    assert outcomes[0].train_losses[0] != outcomes[1].train_losses[0]


@pytest.mark.parametrize('pooling', POOLINGS)
def test_outputs_keep_their_order_and_padding_changes_nothing(mesh, encoder, pooling):
    long = rows(40, 3, longest=24)
    short = Inputs(long.tokens[:5], long.targets[:5], 32)  # other batches, padded to other lengths
    inputs = {'train': rows(32, 0), 'validation': long, 'few': short}
    recipe = dataclasses.replace(RECIPE, epochs=1, pooling=pooling)
    (outcome,) = run(mesh, encoder, [1], recipe, make_problem(**inputs))
    np.testing.assert_allclose(outcome.outputs['few'], outcome.outputs['validation'][:5], atol=1e-5)


@pytest.mark.parametrize('objective', [MLM(CONFIG), ExLM(CONFIG)])
def test_the_head_reads_cls_or_the_mean_of_real_tokens(objective):
    tokens = jax.random.randint(jax.random.key(0), (2, 6), 5, 64)
    segments = jnp.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    read = {p: Downstream(objective, 'sequence', 3, 0.0, p) for p in POOLINGS}
    params = jax.jit(read['cls'].init)(jax.random.key(1), tokens, segments)['params']
    params = jax.tree.map(lambda x: 5 * x, params)

    @jax.jit
    def outputs(params):
        x = objective.apply({'params': params['objective']}, tokens, segments, method='encode')
        return x, {pooling: module.apply({'params': params}, tokens, segments) for pooling, module in read.items()}

    x, found = outputs(params)
    expected = {'cls': x[:, 0], 'mean': jnp.stack([x[0, :4].mean(0), x[1].mean(0)])}
    for pooling, vector in expected.items():
        dense, output = params['dense'], params['output']
        logits = jnp.tanh(vector @ dense['kernel'] + dense['bias']) @ output['kernel'] + output['bias']
        np.testing.assert_allclose(found[pooling], logits, atol=1e-5)


@pytest.mark.parametrize('kind', ['sequence', 'span'])
def test_a_token_that_is_read_twice_has_one_vector(kind):
    """As if its copies stood in the row, and the head read their mean."""
    objective = MLM(CONFIG)
    tokens = jax.random.randint(jax.random.key(0), (2, 6), 5, 64)
    segments = jnp.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    module = Downstream(objective, kind, 3, 0.0, 'mean', repeats=2)
    params = jax.jit(module.init)(jax.random.key(1), tokens, segments)['params']
    params = jax.tree.map(lambda x: 5 * x, params)
    copies = [jnp.repeat(x, 2, axis=1) for x in (tokens, segments)]
    x = objective.apply({'params': params['objective']}, *copies, method='encode').reshape(2, 6, 2, -1).mean(2)
    if kind == 'sequence':
        x = jnp.stack([x[0, :4].mean(0), x[1].mean(0)]) @ params['dense']['kernel'] + params['dense']['bias']
        x = jnp.tanh(x)
    expected = x @ params['output']['kernel'] + params['output']['bias']
    np.testing.assert_allclose(module.apply({'params': params}, tokens, segments), expected, atol=1e-5)


def test_a_run_ends_when_nothing_improves(mesh, encoder):
    inputs = {'train': rows(32, 0), 'validation': rows(20, 1)}
    values = iter([0.5, 0.7, 0.6, 0.7, 0.9])
    problem = dataclasses.replace(make_problem(**inputs), score=lambda split, outputs: {'accuracy': next(values, 1.0)})
    spared = []
    with jax.set_mesh(mesh):
        (outcome,) = fine_tune(
            MLM(CONFIG),
            encoder,
            0,
            problem,
            dataclasses.replace(RECIPE, epochs=9, patience=2),
            [1],
            mesh,
            spared.append,
        )
    assert [point['accuracy'] for point in outcome.curve] == [0.5, 0.7, 0.6, 0.7]
    assert outcome.best_step == 4 and len(outcome.train_losses) == 8
    assert sum(spared) == 18, 'the bar still reaches its end'


def test_a_run_may_end_within_an_epoch(mesh, encoder):
    inputs = {'train': rows(128, 0), 'validation': rows(20, 1)}
    values = iter([0.5, 0.4, 0.3])
    problem = dataclasses.replace(make_problem(**inputs), score=lambda split, outputs: {'accuracy': next(values, 1.0)})
    recipe = dataclasses.replace(RECIPE, epochs=2, evaluations_per_epoch=4, patience=1)
    (outcome,) = run(mesh, encoder, [1], recipe, problem)
    assert len(outcome.train_losses) == 4 and outcome.best_step == 2


def test_padding_ends_where_the_positions_of_the_model_do(mesh):
    objective = MLM(dataclasses.replace(CONFIG, max_length=30))
    train = rows(40, 0, longest=24)
    tokens = [*train.tokens[:-1], np.full(30, 12, np.int32)]  # and a last batch that is not full
    inputs = Inputs(tokens, train.targets, 30)
    assert [inputs_lib.batch_length(inputs, longest) for longest in (9, 29)] == [16, 30]
    recipe = dataclasses.replace(RECIPE, epochs=1)
    (outcome,) = run(mesh, None, [1], recipe, make_problem(train=inputs, validation=inputs), objective)
    assert np.isfinite(outcome.train_losses).all()


def test_evaluations_within_an_epoch(mesh, encoder):
    inputs, seen = {'train': rows(80, 0), 'validation': rows(20, 1)}, []
    recipe = dataclasses.replace(RECIPE, epochs=2, evaluations_per_epoch=2)
    outcomes = run(mesh, encoder, [1, 2], recipe, make_problem(**inputs), evaluated=seen.append)
    assert [point['step'] for point in outcomes[0].curve] == [2, 5, 7, 10]
    assert seen == [list(points) for points in zip(*(outcome.curve for outcome in outcomes), strict=True)]


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(mesh, encoder, tmp_path, monkeypatch):
    """Interrupted in its second epoch, a step behind an evaluation."""
    inputs = {'train': rows(80, 0), 'validation': rows(20, 1)}
    recipe = dataclasses.replace(RECIPE, epochs=3, evaluations_per_epoch=2, dropout=0.1)
    whole = run(mesh, encoder, [1, 2], recipe, make_problem(**inputs))
    monkeypatch.setattr(fine_tuning, 'SNAPSHOT_SECONDS', 0.0)
    snapshots, done = Snapshots(tmp_path / 'unfinished'), []

    def interrupt(updates):
        done.append(updates)
        if len(done) == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(mesh, encoder, [1, 2], recipe, make_problem(**inputs), progress=interrupt, snapshots=snapshots)
    snapshots.close()
    passed = []
    again = run(
        mesh, encoder, [1, 2], recipe, make_problem(**inputs), progress=passed.append,
        snapshots=Snapshots(tmp_path / 'unfinished'),
    )  # fmt: skip
    assert passed == [8] + [1] * 7
    for ours, theirs in zip(again, whole, strict=True):
        assert ours.train_losses == theirs.train_losses and ours.curve == theirs.curve
        assert ours.metrics == theirs.metrics and ours.best_step == theirs.best_step
        np.testing.assert_array_equal(ours.outputs['validation'], theirs.outputs['validation'])


def test_a_loss_that_is_not_finite_is_an_error(mesh, encoder):
    with pytest.raises(FloatingPointError, match='the loss of seed 1 is not finite by update 13'):
        run(mesh, encoder, [1], dataclasses.replace(RECIPE, learning_rate=1e30))


def test_an_output_that_is_not_finite_is_an_error(mesh, encoder):
    """Also where the loss of all updates so far is finite, and a metric would take NaN for an answer."""
    problem = make_problem(train=rows(16, 0), validation=rows(20, 1))
    scored = dataclasses.replace(problem, score=lambda split, outputs: pytest.fail('what is not finite is not scored'))
    recipe = dataclasses.replace(RECIPE, epochs=1, learning_rate=1e30, warmup_percent=0.0)
    message = 'an output for the validation split of seed 1, 2 is not finite by update 1: lower learning_rate'
    with pytest.raises(fine_tuning.Diverged, match=message) as caught:
        run(mesh, encoder, [1, 2], recipe, scored)
    assert caught.value.seeds == [1, 2]
    with pytest.raises(fine_tuning.Diverged, match='the loss of seed 2 is not finite') as caught:
        fine_tuning._check_finite('the loss', np.array([[0.5, 0.5], [0.5, np.inf]]), [1, 2], 13)
    assert caught.value.seeds == [2], 'those beside it are not affected'


def test_losses_are_those_of_a_plain_loop_in_pytorch(mesh):
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=64)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        **sizes, max_position_embeddings=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    model = transformers.BertForMaskedLM(config)
    params = huggingface.bert_params({name: value.numpy() for name, value in model.state_dict().items()}, 2)
    objective = MLM(dataclasses.replace(CONFIG, norm_epsilon=config.layer_norm_eps))
    problem = make_problem(train=rows(200, 0, longest=24), validation=rows(20, 1))
    recipe = dataclasses.replace(RECIPE, epochs=2, learning_rate=1e-3, weight_decay=0.1)
    (ours,) = run(mesh, params['encoder'], [3], recipe, problem, objective)

    head = init_params(make_module(objective, problem, recipe), 3, params['encoder'])
    dense, output = torch.nn.Linear(32, 32), torch.nn.Linear(32, 2)
    for layer, name in ((dense, 'dense'), (output, 'output')):
        layer.weight.data = torch.tensor(np.array(head[name]['kernel']).T.copy())
        layer.bias.data.zero_()
    parameters = [*model.bert.named_parameters(), *dense.named_parameters(), *output.named_parameters()]
    decayed = [p for _, p in parameters if p.ndim == 2]
    others = [p for _, p in parameters if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{'params': decayed, 'weight_decay': 0.1}, {'params': others, 'weight_decay': 0.0}],
        lr=1e-3, betas=(0.9, 0.98), eps=1e-6,
    )  # fmt: skip
    total = fine_tuning.num_updates(problem, recipe)
    warmup = round(0.06 * total)
    train, theirs = problem.inputs['train'], []
    for epoch in range(2):
        for chosen in inputs_lib.epoch_batches(train.lengths, 16, 3, epoch):
            tokens, targets = inputs_lib.pad_rows(train, chosen, len(chosen), 32, 0)
            tokens = torch.tensor(tokens).long()
            hidden = model.bert(tokens, attention_mask=(tokens != 0).long()).last_hidden_state[:, 0]
            logits = output(torch.tanh(dense(hidden)))
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor(targets[:, 0]).long())
            step = len(theirs)
            factor = min(1, (step + 1) / max(1, warmup)) * (1 - max(0, step - warmup) / (total - warmup))
            for group in optimizer.param_groups:
                group['lr'] = 1e-3 * factor
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([p for _, p in parameters], 1.0)
            optimizer.step()
            theirs.append(loss.item())
    assert len(theirs) == total > 20
    np.testing.assert_allclose(ours.train_losses[:20], theirs[:20], atol=1e-3)
