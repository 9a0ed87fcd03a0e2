"""Lock a folder by a file in it, so that one process writes to the folder at a time."""

import fcntl
from pathlib import Path
from typing import TextIO

from .errors import say


def try_lock(file: TextIO, folder: Path, advice: str, shared: bool = False) -> bool:
    """Lock an open file until it is closed or the process ends.

    Args:
        file: the lock file.
        folder: the folder that it locks, for the warning.
        advice: the end of the warning: what to do on a file system without locks.
        shared: whether other processes may hold the lock too, if they share it.

    Returns:
        Whether it is locked. If the file system does not support locks, False after a warning.

    Raises:
        BlockingIOError: another process holds the lock.
    """
    try:
        # The kernel releases this lock when the process ends, even by SIGKILL; a mere lock file would stay.
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        say(f"warning: {folder} cannot be locked ({error.strerror}): {advice}", error=True)
        return False
    return True
