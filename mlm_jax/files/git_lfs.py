"""Pointers of Git LFS: a clone without `git lfs pull` has a few lines of text in the place of each large file."""

FIRST_LINE = b'version https://git-lfs'

REASON = (
    'it is a pointer of Git LFS and not the file itself: run `git lfs pull` where it was cloned, or download it again'
)


def is_pointer(start: bytes) -> bool:
    """Whether a file that begins with `start`, 23 bytes or more, stands for another one."""
    return start.startswith(FIRST_LINE)
