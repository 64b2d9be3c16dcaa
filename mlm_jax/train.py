"""Pretrains an encoder.

    python -m mlm_jax.prepare --config=configs/mlm.py:mini,data.directory=data/mine,data.corpus='text:corpus/*.txt'
    python -m mlm_jax.train --config=configs/mlm.py:mini,data.directory=data/mine --workdir=runs/mlm_mini

If it is run again with the same workdir, it resumes from the last checkpoint: after a crash, after a preemption, or on
other devices.
The workdir may lie in a bucket: gs://BUCKET/PATH (extra gcs) or s3://BUCKET/PATH (extra s3); docs/train.md says more.
A mixture of prepared directories: --set=data.directory=data/en:0.7,data/de:0.3
Single keys: --config=configs/mlm.py:mini,total_epochs=3 or --set=optimizer.learning_rate=1e-3;
mlm_jax/config/defaults.py lists them; mlm_jax/objectives/*_spec.py list those of single objectives, such as exlm.….
"""

import contextlib
import pathlib
import sys
import time

import jax
import ml_collections
from absl import flags

from mlm_jax.analysis import minimal_pairs
from mlm_jax.config import command_line, host_memory, step_flops
from mlm_jax.config.checks import remarks
from mlm_jax.data import prepared_data, verification
from mlm_jax.data.rows import Batches, Prefetcher
from mlm_jax.files import atomic, buckets, paths
from mlm_jax.parallel import agreement
from mlm_jax.parallel import mesh as mesh_lib
from mlm_jax.performance import memory, peaks
from mlm_jax.pretrained import warm_start
from mlm_jax.training import build, checkpoints, evaluation, goodput, loss_curve, mask_ratio, resuming, runtime
from mlm_jax.training import workdir as workdir_lib
from mlm_jax.training.run_log import RunLog
from mlm_jax.training.state import abstract_state, create_state, num_parameters
from mlm_jax.training.step import jit_train_step


def train(config: ml_collections.ConfigDict, workdir: pathlib.Path, age_seconds: float = 0.0) -> dict[str, float]:
    """Trains to the end of the run, and returns the metrics of the last evaluation that was done here.

    They are {} where there was none: with evaluation.every_steps=0, or for a complete run that is started again.

    Args:
      config: any configuration; it is resolved here.
      workdir: the directory of the run.
      age_seconds: for how long this start of the run has already been going on, to count it as lost time.

    Raises:
      ConfigError: if the configuration cannot run on this machine, or does not fit the data or the checkpoint.
      FloatingPointError: if a loss or gradient is not finite, unless `on_nonfinite` is 'skip'.
      OSError: if the workdir cannot be written to; a note of the error says which checkpoint is complete.
    """
    clock = goodput.Goodput(age_seconds)

    # ---- Configuration and data: every check that needs no device ----------------------------------------------------
    config, data = prepared_data.resolve(config)
    config.init_from = warm_start.pinned(config.init_from, workdir)
    warm_start.check_source(config, data.manifest)
    train_rows, held_out_rows = data.training_rows(), data.shards('validation', verify=True)
    run = build.make_run(config, data.vocabulary, data.rows_between_visits, data.tables(config.masking))
    blimp = minimal_pairs.of_run(config.evaluation, run.objective, data.tokenizer, config.masking.repeats)
    evaluate_every, save_every = config.evaluation.every_steps, config.checkpoint.every_steps

    # ---- Devices -----------------------------------------------------------------------------------------------------
    runtime.use_compilation_cache(config.compilation_cache)
    mesh = runtime.make_mesh(config)
    with jax.set_mesh(mesh):
        shapes = abstract_state(run.init, mesh, config.sharding)  # raises ConfigError before anything is written
    sharding = mesh_lib.batch_sharding(mesh)
    is_leader = jax.process_index() == 0
    missed_ratio = mask_ratio.warning(run.masking, train_rows, config.seed) if is_leader else ''
    with workdir_lib.held(workdir), jax.set_mesh(mesh):
        # ---- State: new, or from the last checkpoint; sharded over this mesh, whatever the mesh was before -----------
        with clock.phase('restore'):
            saver = checkpoints.Checkpoints(
                workdir / 'checkpoints', config.checkpoint.keep_last, config.checkpoint.keep_steps
            )
        position = checkpoints.Position(examples=0, train_seconds=0.0, window=[], config={})
        reading = data.reading(config.data.window_blocks)
        saved_step = saver.latest_step()
        if resumed := saved_step is not None:
            position = saver.restore_position(saved_step)
            resuming.check_resume(
                position.config, config, lambda text: print(text, file=sys.stderr), len(train_rows) / config.batch_size
            )
            agreement.of_leader(lambda: resuming.check_tokenizer(data, workdir))
            reading = resuming.resumed_reading(position, reading, lambda text: print(text, file=sys.stderr))
        first_step = position.examples // config.batch_size
        resuming.check_length(first_step, run.total_steps)
        position.data = reading.to_json()
        order = data.order(config, reading)
        batches = Batches(train_rows, order, config.batch_size, sharding)
        log = RunLog(
            config, workdir, run.total_steps, run.learning_rate, lambda step: order.describe(batches.positions(step)),
            position, order.epochs if data.is_mixture else None,
            step_flops.step_flops(config),
            peaks.peak_flops_per_second(mesh.devices.flat[0].device_kind, config.model.dtype), clock,
        )  # fmt: skip
        if resumed:
            with clock.phase('restore'):
                state = saver.restore(shapes, saved_step)
        else:
            state = create_state(run.init, mesh, config.sharding)
            if config.init_from:
                state = warm_start.start_from(config.init_from, state, data.tokenizer)
        if is_leader:
            workdir_lib.write_config(workdir, config)
            workdir_lib.write_environment(workdir)
            atomic.write_bytes(workdir / 'tokenizer.model', data.tokenizer.read_bytes())
        shape = ', '.join(f'{axis} {size}' for axis, size in mesh.shape.items())
        log.note(f'{jax.device_count()} × {mesh.devices.flat[0].device_kind} (mesh: {shape})')
        log.note(
            f'{num_parameters(state.params):,} parameters; {len(train_rows):,} rows of {config.sequence_length} tokens'
        )
        for remark in filter(None, (data.describe(), *remarks(config, len(train_rows)))):
            log.note(remark)
        log.note(f'{"resuming at" if resumed else "starting at"} step {first_step:,} of {run.total_steps:,}')
        if missed_ratio:
            log.note(missed_ratio)

        # ---- Compile before the loop: the time is reported, and not part of any step ---------------------------------
        comparison = verification.Background(data.checksums(), jax.process_index(), jax.process_count())
        eval_batch = config.batch_size // config.num_microbatches
        held_out = evaluation.HeldOutSources(
            held_out_rows, data.weights, config.evaluation.rows, eval_batch, data.vocabulary.pad_id, sharding
        )
        compiled_before = clock.seconds()['compile']  # in earlier starts of the run
        with clock.phase('compile'):
            train_step = jit_train_step(run.train_step, state, mesh).lower(state, batches(first_step)).compile()
            eval_step = jax.jit(run.eval_step).lower(state.params, *held_out.example).compile()
            if blimp:
                blimp.compile(state.params, mesh)
        compile_seconds = clock.seconds()['compile'] - compiled_before
        host_memory.release_freed_memory()
        log.write(first_step, {'perf/compile_seconds': compile_seconds})
        log.note(f'compiled in {compile_seconds:.1f} s; {memory.describe(train_step)}')
        log.start_clock()

        def evaluate(params) -> dict[str, float]:
            return held_out.evaluate(eval_step, params) | (blimp.metrics(params) if blimp else {})

        # ---- The loop ------------------------------------------------------------------------------------------------
        # The order must not change: evaluate the old state → save if due → next batch → step → write the metrics of
        # earlier steps. A checkpoint at step i therefore means that batch i is not yet consumed, and the device
        # computes step i while the host waits for the metrics of step i − 1. At a preemption there may be no time to
        # evaluate: the next start does it.
        preemption = runtime.Preemption(first_step)
        profiler = runtime.Profiler(config.profile, workdir, first_step, run.total_steps)
        prefetcher = Prefetcher(batches, first_step, run.total_steps)
        eval_metrics: dict[str, float] = {}
        with contextlib.ExitStack() as closing:
            closing.enter_context(workdir_lib.saying_what_is_saved(saver))
            for part in (log, saver, batches, prefetcher, comparison, profiler):  # closed in reverse order
                closing.callback(part.close)
            for step in range(first_step, run.total_steps + 1):
                is_last, is_new = step == run.total_steps, step > first_step or not resumed
                is_logged = is_last or step % config.logging.every_steps == 0
                comparison.raise_if_damaged(
                    runtime.gather if is_logged else None
                )  # before results of damaged rows are saved

                is_preempted = preemption.reached(step) and not is_last
                is_evaluated = evaluate_every and (step % evaluate_every == 0 or is_last)
                evaluation_is_due = bool(is_evaluated) and (is_new or position.evaluation_is_due)
                if evaluation_is_due and not is_preempted:
                    with log.paused():
                        judged = {'eval': evaluate(state.params)}
                        if state.ema is not None:
                            judged['eval_ema'] = evaluate(state.ema)
                    eval_metrics = judged['eval']
                    log.write(
                        step, {f'{kind}/{name}': value for kind in judged for name, value in judged[kind].items()}
                    )
                    shown = held_out.describe(eval_metrics)
                    shown += f'; BLiMP {eval_metrics["blimp"]:.1%}' if blimp else ''
                    if state.ema is not None:
                        shown += f'; of the moving average {judged["eval_ema"]["loss"]:.4f}'
                    log.note(f'step {step:,}: held-out loss {eval_metrics["loss"]:.4f}{shown}')

                save_is_due = bool(save_every) and step % save_every == 0 and step > 0
                if is_new and (save_is_due or is_last or is_preempted):
                    position = log.position(step, prefetcher.stall_seconds, evaluation_is_due and is_preempted)
                    with clock.phase('checkpoint'):
                        saver.save(step, state, position)
                    log.write(step, clock.scalars())  # from which a start that resumes here goes on
                if is_preempted:
                    log.note(f'stopped by a signal at step {step:,}, which was saved: the same command resumes from it')
                    sys.exit(runtime.PREEMPTED_EXIT_CODE)
                if is_last:
                    break

                with clock.phase('input_stall'):
                    batch = next(prefetcher)
                profiler.before(step)
                dispatched = time.perf_counter()
                with jax.transfer_guard('disallow'):
                    state, metrics = train_step(state, batch)
                profiler.after(step, metrics)
                log.add(step, metrics, prefetcher.stall_seconds, dispatched)
                saver.check()
            log.flush(run.total_steps, prefetcher.stall_seconds)
            with clock.phase('checkpoint'):
                saver.wait()
            spent = clock.scalars(is_complete=True)
            log.write(run.total_steps, spent)
            log.note(goodput.describe(goodput.seconds_of(spent)))
            if not comparison.is_done:
                log.note(
                    'the run ended before all rows were compared with their checksums; doctor --verify compares them'
                )

    if is_leader:
        picture = loss_curve.draw_loss_curve(workdir, data.split('validation').unigram_entropy_nats)
        log.note(f'loss curve: {picture}')
    return eval_metrics


def main() -> None:
    """Runs the program with the command-line flags."""
    config = command_line.configuration()
    with runtime.distributed(flags.FLAGS):
        train(config, buckets.path(flags.FLAGS.workdir).expanduser(), goodput.process_age())


if __name__ == '__main__':
    command_line.define_config_flags()
    runtime.define_distributed_flags()
    paths.define_flag(
        'workdir', None, 'Directory of the run, for configuration, metrics, checkpoints and pictures.', 'directory'
    )
    command_line.run(main, required=('config', 'workdir'))
