"""Locks that a forked process can use."""

import os
import threading

__all__ = ["fork_safe_lock"]


def fork_safe_lock() -> threading.Lock:
    """Make a lock for a module.

    A process may be forked while a thread holds the lock. That thread is not in the new process,
    where the lock would stay closed for ever, so the new process starts with an open one.
    """
    lock = threading.Lock()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lock._at_fork_reinit)  # type: ignore[attr-defined]
    return lock
