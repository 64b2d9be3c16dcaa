"""The memory of a process that computes on a CPU device.

That a run does not grow is measured, and not tested: only steps of a large program show it (ExLM of size tiny, 32 rows of
128 tokens: 3.4 GB after 60 steps that were dispatched ahead, 1.2 GB now).
"""

import platform
import types

import jax
import pytest

from mlm_jax.config import host_memory


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='only glibc keeps what is freed')
def test_freed_memory_is_kept_only_where_steps_follow_one_another(monkeypatch):
    calls = []
    library = types.SimpleNamespace(
        mallopt=lambda *parameter: calls.append(parameter), malloc_trim=lambda pad: calls.append(('trim', pad))
    )
    monkeypatch.setattr(host_memory.ctypes, 'CDLL', lambda _: library)
    before = jax.config.jax_cpu_enable_async_dispatch
    try:
        host_memory.keep_freed_memory()
        assert calls == [(-4, 0), (-1, -1)]
        assert not jax.config.jax_cpu_enable_async_dispatch
    finally:
        jax.config.update('jax_cpu_enable_async_dispatch', before)
    host_memory.release_freed_memory()
    assert calls[2:] == [('trim', 0)]
