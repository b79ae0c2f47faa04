"""Keep freed memory in the process: memory that glibc returns to the kernel comes back page by page, with one page
fault each.
"""

import contextlib
import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


def keep_freed_memory(largest_block: int, most: int) -> None:
    """Allocate blocks of up to `largest_block` bytes from the heap, and keep up to `most` free bytes at its end."""
    with contextlib.suppress(AttributeError, OSError):  # another C library has no mallopt
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, largest_block)
        library.mallopt(M_TRIM_THRESHOLD, most)
