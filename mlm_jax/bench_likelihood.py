"""Compares the speed of ExLM's alignment likelihood and its gradient with plain PyTorch and autograd on the same CPU.

    pip install -e '.[peer]'
    python -m mlm_jax.bench_likelihood

Both compute the same recursion in float32 on the same rows. Each round times one after the other, so that other load on
the machine affects both. The memory is the maximal memory for intermediate results: for JAX the temporaries that XLA
reports, for PyTorch the tensors that autograd saves. In JAX, one core does nearly all of the work, because each step of
the recursion depends on the step before it; PyTorch divides its broadcast operations among all cores. To compare both
on one core, use `taskset -c 0 python -m mlm_jax.bench_likelihood`.
"""

import json
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from mlm_jax.config import command_line
from mlm_jax.files import buckets, paths
from mlm_jax.losses.dag import dag_log_likelihood
from mlm_jax.performance.memory import memory_of

SHAPES = ((32, 21, 84), (8, 79, 316))  # rows, targets and states: 15 % of 128 and of 512 tokens, 4 states each


def random_rows(batch: int, num_targets: int, num_states: int) -> tuple[np.ndarray, np.ndarray]:
    """Random inputs of the recursion.

    Returns:
      Log-probabilities of emissions around −ln 8000, float32[B, M, S], and of normalized transitions, float32[B, S, S].
    """
    rng = np.random.default_rng(0)
    match = rng.normal(-9, 1, (batch, num_targets, num_states)).astype(np.float32)
    scores = rng.normal(0, 1, (batch, num_states, num_states))
    weights = np.exp(scores) * np.triu(np.ones((num_states, num_states)), 1)
    with np.errstate(divide='ignore'):
        return match, np.log(weights / np.maximum(weights.sum(-1, keepdims=True), 1e-30)).astype(np.float32)


def ours(match: np.ndarray, links: np.ndarray) -> tuple[Callable[[], np.ndarray], int | None]:
    """The likelihood in JAX.

    Returns:
      A function that computes log Z, float32[B], together with its gradients; and the bytes of the temporaries, None
      where the compiler does not report them.
    """
    batch, num_targets, num_states = match.shape
    sizes = jnp.full(batch, num_targets), jnp.full(batch, num_states)

    def total(match, links):
        log_z_B = dag_log_likelihood(match, links, *sizes)
        return log_z_B.sum(), log_z_B

    arrays = jnp.asarray(match), jnp.asarray(links)
    step = jax.jit(jax.grad(total, (0, 1), has_aux=True)).lower(*arrays).compile()

    def run() -> np.ndarray:
        return np.asarray(jax.block_until_ready(step(*arrays))[1])

    memory = memory_of(step)
    return run, None if memory is None else memory.temporary_bytes


def plain_torch(match: np.ndarray, links: np.ndarray) -> tuple[Callable[[], np.ndarray], int]:
    """The same recursion, written in plain PyTorch; returns the same as `ours`.

    Raises:
      ImportError: without PyTorch.
    """
    try:
        import torch
    except ImportError:
        raise ImportError("the benchmark compares with PyTorch: pip install 'mlm_jax[peer]'") from None
    match_BxMxS = torch.tensor(match, requires_grad=True)
    links_BxSxS = torch.tensor(np.maximum(links, -1e9), requires_grad=True)  # −∞ would give NaN gradients

    def log_likelihood():
        first_B = match_BxMxS[:, 0, :1]
        alpha_BxS = torch.cat([first_B, torch.full_like(match_BxMxS[:, 0, 1:], -1e9)], dim=1)
        for i in range(1, match.shape[1]):
            alpha_BxS = match_BxMxS[:, i] + torch.logsumexp(alpha_BxS[:, :, None] + links_BxSxS, dim=1)
        return alpha_BxS[:, -1]

    def run() -> np.ndarray:
        match_BxMxS.grad = links_BxSxS.grad = None
        log_z_B = log_likelihood()
        log_z_B.sum().backward()
        return log_z_B.detach().numpy()

    sizes: dict[int, int] = {}

    def save(tensor):
        sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        log_z_B = log_likelihood()
    del log_z_B
    return run, sum(sizes.values())


def seconds(run: Callable[[], object]) -> float:
    """The seconds of one call, on average over as many calls as fit into 0.05 s, and at least one.

    An earlier call is not timed, because the other library leaves its data in the caches and threads that busy-wait.
    """
    run()
    start, calls = time.perf_counter(), 0
    while not calls or time.perf_counter() - start < 0.05:
        run()
        calls += 1
    return (time.perf_counter() - start) / calls


def main() -> None:
    """Prints a table, and writes it as JSON if there is an output file."""
    lines = []
    print('rows × targets × states'.rjust(24), '  JAX, ms  PyTorch, ms   ratio   JAX, MB  PyTorch, MB')
    for shape in SHAPES:
        rows = random_rows(*shape)
        (run, held), (run_torch, held_torch) = ours(*rows), plain_torch(*rows)
        np.testing.assert_allclose(run(), run_torch(), rtol=1e-5)
        times = np.array([(seconds(run), seconds(run_torch)) for _ in range(flags.FLAGS.rounds)])
        ms, torch_ms = 1000 * np.median(times, axis=0)
        line = {
            'rows': shape[0], 'targets': shape[1], 'states': shape[2], 'ms': ms, 'torch_ms': torch_ms,
            'ratio': float(np.median(times[:, 1] / times[:, 0])), 'bytes': held, 'torch_bytes': held_torch,
        }  # fmt: skip
        lines.append(line)
        name = ' × '.join(map(str, shape))
        megabytes = '–' if held is None else f'{held / 1e6:.1f}'
        print(f'{name:>24}{ms:10.2f}{torch_ms:13.1f}{line["ratio"]:8.0f}{megabytes:>10}{held_torch / 1e6:13.1f}')
    if flags.FLAGS.output:
        buckets.path(flags.FLAGS.output).expanduser().write_text(json.dumps(lines, indent=2) + '\n', encoding='utf-8')


if __name__ == '__main__':
    flags.DEFINE_integer('rounds', 9, 'Number of rounds; the results are medians over them.', lower_bound=1)
    paths.define_flag('output', None, 'File for the results as JSON.', 'file')
    command_line.run(main)
