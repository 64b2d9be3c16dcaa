"""The memory of the process, where steps are computed on CPU devices and the C library is glibc."""

import ctypes
import platform
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h


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
