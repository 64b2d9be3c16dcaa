"""Whether the keys of a configuration have possible values, and agree with each other."""

import ml_collections

from mlm_jax import paths
from mlm_jax.config import DURATIONS, ConfigError, get, resolve_steps

CHOICES = {
    'objective': ('mlm', 'mae_lm', 'exlm'),
    'data.packing': ('documents', 'full_sentences', 'one_per_row'),
    'tokenizer.normalization': ('identity', 'nfkc', 'nmt_nfkc'),
    'model.positions': ('learned', 'rotary', 'rotary_2d'),
    'model.norm': ('post', 'pre'),
    'model.mlp': ('gelu', 'geglu'),
    'model.dtype': ('float32', 'bfloat16'),
    'model.attention_backend': ('xla', 'cudnn', 'splash'),
    'model.remat': ('none', 'full', 'matmuls'),
    'exlm.transitions': ('dense', 'sparse', 'none'),
    'masking.strategy': ('uniform', 'bernoulli', 'weighted', 'least_masked', 'complementary', 'fully_explored'),
    'masking.unit': ('token', 'word', 'span', 'ngram', 'pmi'),
    'masking.ratio_schedule': ('constant', 'linear', 'cosine', 'staged', 'diffusion'),
    'masking.corruption_unit': ('token', 'unit'),
    'masking.fully_explored.partition': ('random', 'contiguous', 'stratified'),
    'masking.fully_explored.schedule': ('one_step', 'successive', 'subset'),
    'optimizer.name': ('adamw', 'lamb', 'stable_adamw', 'muon'),
    'optimizer.decay_mask': ('all', 'matrices'),
    'schedule.name': ('linear', 'cosine', 'wsd', 'constant'),
    'sharding': ('dp', 'fsdp', 'fsdp_tp'),
    'on_nonfinite': ('stop', 'skip'),
    'accelerator': ('any', 'cpu', 'gpu', 'tpu'),
}

ROTARY_MULTIPLE = {'rotary': 2, 'rotary_2d': 4}  # each coordinate turns pairs


def check(config: ml_collections.ConfigDict) -> None:
    """Checks the keys one by one and against each other, before anything touches a device.

    Raises:
      ConfigError: with all that is wrong, each with its cure.
    """
    problems = paths.problems(config)
    for key, choices in CHOICES.items():
        if get(config, key) not in choices:
            problems.append(f'{key}={get(config, key)!r} must be one of {", ".join(choices)}')
    c, m = config, config.model
    positive = [
        'vocab_size', 'sequence_length', 'batch_size', 'num_microbatches', 'model.num_layers', 'model.width',
        'model.num_heads', 'model.ffn_width', 'logging.every_steps', 'evaluation.rows', 'checkpoint.keep_last',
    ]  # fmt: skip
    problems += [f'{key}={get(c, key)} must be at least 1' for key in positive if get(c, key) < 1]
    fractions = [
        'masking.ratio', 'masking.final_ratio', 'masking.predicted_fraction', 'masking.mask_fraction',
        'masking.random_fraction', 'evaluation.ratio',
    ]  # fmt: skip
    problems += [f'{key}={get(c, key)} must lie within 0 … 1' for key in fractions if not 0 <= get(c, key) <= 1]
    problems += [
        f'{key}={get(c, key)} must be at least 0 and below 1'
        for key in ('model.dropout', 'model.attention_dropout')
        if not 0 <= get(c, key) < 1
    ]
    if c.data.smiles_copies < 0:
        problems.append(f'data.smiles_copies={c.data.smiles_copies} must be 0, for none, or more')
    if not 0 < c.evaluation.blimp_percent <= 100:
        problems.append(f'evaluation.blimp_percent={c.evaluation.blimp_percent} must lie above 0, and be 100 at most')
    if not 0 < m.norm_epsilon < 1:
        problems.append(f'model.norm_epsilon={m.norm_epsilon} must lie between 0 and 1')
    if problems:
        raise ConfigError('\n'.join(problems))

    if c.batch_size % c.num_microbatches:
        problems.append(f'batch_size={c.batch_size} must be a multiple of num_microbatches={c.num_microbatches}')
    if m.width % m.num_heads:
        problems.append(f'model.width={m.width} must be a multiple of model.num_heads={m.num_heads}')
    elif m.positions != 'learned' and m.width // m.num_heads % ROTARY_MULTIPLE[m.positions]:
        problems.append(
            f'model.positions={m.positions} needs a head width that is a multiple of '
            f'{ROTARY_MULTIPLE[m.positions]}, not {m.width // m.num_heads}'
        )
    if m.relative_buckets and (m.relative_buckets % 4 or m.relative_max_distance <= m.relative_buckets // 4 + 1):
        problems.append(
            f'model.relative_buckets={m.relative_buckets} must be a multiple of 4, and relative_max_distance='
            f'{m.relative_max_distance} must exceed a quarter of it by more than 1'
        )
    if c.objective == 'mae_lm':
        problems += _mae_lm_problems(c)
    if c.objective == 'exlm':
        problems += _exlm_problems(c)
    if m.scan_unroll and m.num_layers % m.scan_unroll:
        problems.append(f'model.scan_unroll={m.scan_unroll} must divide model.num_layers={m.num_layers}')
    problems += _masking_problems(c)
    if c.sharding != 'dp' and c.mesh.fsdp == 1 and c.mesh.tensor == 1:
        problems.append(
            f'sharding={c.sharding} splits the state over mesh.fsdp and mesh.tensor, which are both 1: set mesh.data=1 '
            'and mesh.fsdp=-1, or sharding=dp'
        )
    if m.attention_backend in ('cudnn', 'splash'):
        problems += _fused_attention_problems(m)
    if c.accelerator == 'cpu' and m.attention_backend != 'xla':
        problems.append(f'model.attention_backend={m.attention_backend} does not run on a CPU; use xla')
    for prefix in DURATIONS:
        try:
            steps = resolve_steps(c, prefix, total_steps=100, steps_per_epoch=1.0)
        except ConfigError as error:
            problems.append(str(error))
            continue
        if not steps and prefix == 'total':
            problems.append('the length of the run is missing or 0: set total_steps, or another total_…')
    if problems:
        raise ConfigError('\n'.join(problems))


def _masking_problems(c: ml_collections.ConfigDict) -> list[str]:
    k, problems = c.masking, []
    explored = k.fully_explored if k.strategy == 'fully_explored' else None
    if k.mask_fraction + k.random_fraction > 1 + 1e-9:
        problems.append('masking.mask_fraction + masking.random_fraction must not exceed 1')
    if not k.predicted_fraction:
        problems.append('masking.predicted_fraction=0 predicts nothing: set a share above 0, 1 for all that is chosen')
    if k.predicted_fraction < 1 and c.objective != 'mlm':
        problems.append(
            f'masking.predicted_fraction={k.predicted_fraction} leaves tokens replaced that are not predicted, which '
            f'only mlm reads: set masking.predicted_fraction=1, not objective={c.objective}'
        )
    if k.static_masks < 0:
        problems.append(f'masking.static_masks={k.static_masks} must be 0, for new masks at every visit, or more')
    if k.repeats < 1:
        problems.append(f'masking.repeats={k.repeats} must be at least 1')
    if k.repeats > 1 and (c.objective != 'mlm' or k.unit != 'token'):
        problems.append(
            f'masking.repeats={k.repeats} masks copies of tokens one by one, for mlm: set objective=mlm and '
            'masking.unit=token, or masking.repeats=1'
        )
    if k.ratio_schedule == 'diffusion' and not 0 < k.final_ratio <= k.ratio:
        problems.append(
            f'masking.ratio_schedule=diffusion draws ratios from final_ratio={k.final_ratio} to ratio={k.ratio}: set '
            'masking.ratio=1.0 and a smaller masking.final_ratio above 0, such as 0.001'
        )
    if k.strategy == 'complementary' and _largest_ratio(k) > 0.5:
        problems.append(f'complementary masks of ratio {_largest_ratio(k)} would overlap: use at most 0.5')
    if explored is not None:
        if explored.segments < 2:
            problems.append(f'masking.fully_explored.segments={explored.segments} must be at least 2')
        if explored.schedule == 'subset' and not 1 <= explored.views <= explored.segments:
            problems.append(
                f'masking.fully_explored.views={explored.views} must lie within 1 … segments={explored.segments}'
            )
        if k.ratio_schedule != 'constant':
            problems.append(
                'fully_explored masks 1/segments of the tokens at every step: set masking.ratio_schedule=constant'
            )
    follows = k.strategy == 'least_masked' or (explored is not None and explored.schedule == 'successive')
    if k.static_masks and follows:
        problems.append('masks that follow from earlier visits cannot be static: set masking.static_masks=0')
    varies = k.unit != 'token' or k.ratio_schedule != 'constant' or k.strategy in ('bernoulli', 'weighted')
    if c.objective == 'mae_lm' and varies and c.mae_lm.kept_margin < 1:
        problems.append(
            'this masking leaves some rows with far fewer masked tokens than others, and MAE-LM has no slots for the '
            'tokens kept there: set mae_lm.kept_margin=1'
        )
    return problems


def _largest_ratio(k: ml_collections.ConfigDict) -> float:
    return k.ratio if k.ratio_schedule == 'constant' else max(k.ratio, k.final_ratio)


def _mae_lm_problems(c: ml_collections.ConfigDict) -> list[str]:
    a, m, problems = c.mae_lm, c.model, []
    if a.decoder_layers < 1:
        problems.append(f'mae_lm.decoder_layers={a.decoder_layers} must be at least 1')
    if a.decoder_width < 0 or a.decoder_width % m.num_heads:
        problems.append(
            f'mae_lm.decoder_width={a.decoder_width} must be 0, or a multiple of model.num_heads={m.num_heads}'
        )
    elif m.positions != 'learned' and a.decoder_width // m.num_heads % 2:
        problems.append(
            f'rotary positions need an even head width in the decoder, not {a.decoder_width // m.num_heads}'
        )
    if a.decoder_ffn_width < 0:
        problems.append(f'mae_lm.decoder_ffn_width={a.decoder_ffn_width} must be 0, or positive')
    for key in ('masked_in_encoder', 'kept_margin'):
        if not 0 <= a[key] <= 1:
            problems.append(f'mae_lm.{key}={a[key]} must lie within 0 … 1')
    if a.reset_masked and not a.masked_in_encoder:
        problems.append('mae_lm.reset_masked needs masked positions in the encoder: set mae_lm.masked_in_encoder=1.0')
    return problems


def _exlm_problems(c: ml_collections.ConfigDict) -> list[str]:
    e, m, problems = c.exlm, c.model, []
    if e.num_states < 1:
        problems.append(f'exlm.num_states={e.num_states} must be at least 1')
    if e.transition_heads < 0 or (e.transition_heads and m.width % e.transition_heads):
        problems.append(f'exlm.transition_heads={e.transition_heads} must be 0, or divide model.width={m.width}')
    if m.positions == 'learned':
        problems.append('exlm needs rotary positions, which copies of a token share: set model.positions=rotary_2d')
    if m.relative_buckets:
        problems.append('exlm has no relative position bias: set model.relative_buckets=0')
    return problems


def _fused_attention_problems(m: ml_collections.ConfigDict) -> list[str]:
    backend, problems = m.attention_backend, []
    if m.attention_dropout:
        problems.append(f'the {backend} attention backend has no dropout: set model.attention_dropout=0.0, or use xla')
    if backend == 'cudnn' and m.dtype != 'bfloat16':
        problems.append('the cudnn attention backend computes in bfloat16: set model.dtype=bfloat16, or use xla')
    if backend == 'splash' and m.relative_buckets:
        problems.append('the splash attention backend takes no relative bias: set model.relative_buckets=0, or use xla')
    return problems
