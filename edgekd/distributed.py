"""Who we are among the processes that `accelerate launch` started. Torch-free: reads the environment alone."""

from __future__ import annotations

import os


def rank() -> int:
    """Return this process's number among all of them; 0 when edgekd was started by itself."""
    return int(os.environ.get("RANK", "0"))


def process_count() -> int:
    """Return how many processes run together; 1 when edgekd was started by itself."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Return whether this process is the one that prints and writes."""
    return rank() == 0
