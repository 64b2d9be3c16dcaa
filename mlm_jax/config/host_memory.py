"""The memory of the host: how much of it this process may use, and what glibc keeps where CPU devices compute."""

import ctypes
import math
import os
import pathlib
import platform
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h
CONTROL_GROUPS = pathlib.Path('/sys/fs/cgroup')  # of a container, which sees its own limits there


def usable_bytes() -> int:
    """The memory of the host, or of the container that this process runs in, if that has less."""
    host = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    return int(min(host, _limit('memory.max'), _limit('memory/memory.limit_in_bytes')))  # of versions 2 and 1


def _limit(name: str) -> float:
    """The bytes in a file of `CONTROL_GROUPS`; infinity where there is none, or it holds another word, such as max."""
    try:
        return int((CONTROL_GROUPS / name).read_text())
    except (OSError, ValueError):
        return math.inf


def keep_freed_memory() -> None:
    """Makes the C library keep what is freed for the next allocation, and one step on a CPU device follow another.

    On CPU devices a step allocates its hundreds of megabytes anew. Given back and asked for again, each of their pages
    costs a fault and is set to zero, which took a quarter of a step; `mallopt` is glibc's own knob for it. But a step
    that is dispatched ahead allocates before the one that runs has freed: the heap then has a hole, which small
    allocations keep from being used again, and it grew by the memory of one step every few steps. So steps are not
    dispatched ahead on CPU devices; nothing is gained by it there, as batches are read by another thread. To be called
    before devices are used.
    """
    if platform.libc_ver()[0] == 'glibc':
        c_library = ctypes.CDLL(None)
        for parameter, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1)):
            c_library.mallopt(parameter, value)
        if jax := sys.modules.get('jax'):  # a program that computes has imported it
            jax.config.update('jax_cpu_enable_async_dispatch', False)


def release_freed_memory() -> None:
    """Gives back what has been freed, once: what compiling took, which is more than small models need in a step."""
    if platform.libc_ver()[0] == 'glibc':
        ctypes.CDLL(None).malloc_trim(0)
