"""Measures ExLM's alignment likelihood, forward and backward, against plain PyTorch with autograd on the same CPU.

    pip install -e '.[peer]'
    python -m mlm_jax.bench_likelihood

Both compute the same recursion in float32 on the same rows; rounds take them in turn, so that what else the machine
does falls on both. Memory is what each holds at the worst: temporaries by XLA's own account, and the tensors that
autograd saves. In JAX, one core does nearly all of the work, as steps of a recursion wait for each other; PyTorch
divides its broadcasts among all cores. `taskset -c 0 python -m …` compares on one core each.
"""

import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from mlm_jax.config import command_line
from mlm_jax.files import paths
from mlm_jax.losses.dag import dag_log_likelihood

SHAPES = ((32, 21, 84), (8, 79, 316))  # rows, targets and states: 15 % of 128 and of 512 tokens, 4 states each


def random_rows(batch: int, num_targets: int, num_states: int) -> tuple[np.ndarray, np.ndarray]:
    """Emissions around −ln 8000 and normalised transitions, float32[B, M, S] and float32[B, S, S]."""
    rng = np.random.default_rng(0)
    match = rng.normal(-9, 1, (batch, num_targets, num_states)).astype(np.float32)
    scores = rng.normal(0, 1, (batch, num_states, num_states))
    weights = np.exp(scores) * np.triu(np.ones((num_states, num_states)), 1)
    with np.errstate(divide='ignore'):
        return match, np.log(weights / np.maximum(weights.sum(-1, keepdims=True), 1e-30)).astype(np.float32)


def ours(match: np.ndarray, links: np.ndarray):
    """A function without arguments that computes log Z and its gradients, and the bytes that it holds."""
    batch, num_targets, num_states = match.shape
    sizes = jnp.full(batch, num_targets), jnp.full(batch, num_states)

    def total(match, links):
        log_z_B = dag_log_likelihood(match, links, *sizes)
        return log_z_B.sum(), log_z_B

    arrays = jnp.asarray(match), jnp.asarray(links)
    step = jax.jit(jax.grad(total, (0, 1), has_aux=True)).lower(*arrays).compile()

    def run() -> np.ndarray:
        return np.asarray(jax.block_until_ready(step(*arrays))[1])

    memory = step.memory_analysis()
    assert memory is not None, 'every backend of XLA that runs this has one'
    return run, memory.temp_size_in_bytes


def plain_torch(match: np.ndarray, links: np.ndarray):
    """The same, as one writes it in PyTorch."""
    try:
        import torch
    except ImportError:
        raise ImportError("the benchmark compares with PyTorch: pip install 'mlm_jax[peer]'") from None
    match_BxMxS = torch.tensor(match, requires_grad=True)
    links_BxSxS = torch.tensor(np.maximum(links, -1e9), requires_grad=True)  # no NaN where nothing is allowed

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


def seconds(run) -> float:
    """Of one call, on average over a twentieth of a second, or of one that takes longer.

    One before does not count: the other side leaves caches full, and threads that wait busily.
    """
    run()
    start, calls = time.perf_counter(), 0
    while not calls or time.perf_counter() - start < 0.05:
        run()
        calls += 1
    return (time.perf_counter() - start) / calls


def main() -> None:
    """Prints a table, and writes JSON where asked."""
    lines = []
    print('rows × targets × states'.rjust(24), ' here, ms  PyTorch, ms   ratio  here, MB  PyTorch, MB')
    for shape in SHAPES:
        rows = random_rows(*shape)
        (run, held), (run_torch, held_torch) = ours(*rows), plain_torch(*rows)
        np.testing.assert_allclose(run(), run_torch(), rtol=1e-5)  # and what does not count
        times = np.array([(seconds(run), seconds(run_torch)) for _ in range(flags.FLAGS.rounds)])
        ms, torch_ms = 1000 * np.median(times, axis=0)
        line = {
            'rows': shape[0], 'targets': shape[1], 'states': shape[2], 'ms': ms, 'torch_ms': torch_ms,
            'ratio': float(np.median(times[:, 1] / times[:, 0])), 'bytes': held, 'torch_bytes': held_torch,
        }  # fmt: skip
        lines.append(line)
        name = ' × '.join(map(str, shape))
        print(f'{name:>24}{ms:10.2f}{torch_ms:13.1f}{line["ratio"]:8.0f}{held / 1e6:10.1f}{held_torch / 1e6:13.1f}')
    if flags.FLAGS.output:
        pathlib.Path(flags.FLAGS.output).expanduser().write_text(json.dumps(lines, indent=2) + '\n', encoding='utf-8')


if __name__ == '__main__':
    flags.DEFINE_integer('rounds', 9, 'Rounds; figures are medians over them.', lower_bound=1)
    paths.define_flag('output', None, 'File for the figures as JSON.', 'file')
    command_line.run(main)
