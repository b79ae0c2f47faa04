"""Freed memory that a process keeps: what glibc hands back to the kernel comes again page by page, each a fault, in the next step or for the next mesh."""

import contextlib
import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


def keep_freed_memory(largest_block: int, most: int) -> None:
    """Take blocks of up to `largest_block` bytes from the heap, and keep up to `most` bytes that lie free at its end."""
    with contextlib.suppress(AttributeError, OSError):  # another C library has no mallopt
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, largest_block)
        library.mallopt(M_TRIM_THRESHOLD, most)
