"""The memory of the host, and that of a process that computes on a CPU device.

That a run does not grow was measured, and is not tested, as only steps of a large program show it: a run of ExLM, size
tiny, 32 rows of 128 tokens, had 3.4 GB after 60 steps that were dispatched ahead, and has 1.2 GB without that.
"""

import math
import os
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
    monkeypatch.setattr(jax.config, 'update', lambda *setting: calls.append(setting))
    host_memory.keep_freed_memory()
    assert calls == [(-4, 0), (-1, -1), ('jax_cpu_enable_async_dispatch', False)]
    host_memory.release_freed_memory()
    assert calls[3:] == [('trim', 0)]


@pytest.mark.parametrize(
    ('name', 'text', 'usable'),
    [
        ('memory.max', '1073741824\n', 2**30), ('memory/memory.limit_in_bytes', '1073741824\n', 2**30),
        ('memory.max', 'max\n', math.inf), ('memory/memory.limit_in_bytes', '9223372036854771712\n', math.inf),
        ('none', '', math.inf),
    ],
)  # fmt: skip
def test_a_container_may_have_less_memory_than_the_host(tmp_path, monkeypatch, name, text, usable):
    (tmp_path / 'memory').mkdir()
    (tmp_path / name).write_text(text)
    monkeypatch.setattr(host_memory, 'CONTROL_GROUPS', tmp_path)
    host = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    assert host_memory.usable_bytes() == min(host, usable)
