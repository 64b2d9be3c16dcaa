"""Git LFS pointers: until `git lfs pull` is run, a clone holds a few lines of text in place of each large file."""

FIRST_LINE = b'version https://git-lfs'

REASON = 'it is a Git LFS pointer, not the file itself: run `git lfs pull` in the clone, or download the file again'


def is_pointer(start: bytes) -> bool:
    """Whether a file is a Git LFS pointer; `start` holds at least its first 23 bytes."""
    return start.startswith(FIRST_LINE)
