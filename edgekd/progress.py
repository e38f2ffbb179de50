"""What a person sees while work goes on: one line a stage and a bar for the long ones, on standard error.

Quiet when standard error is not a terminal (stage lines stay, bars go) and in processes other than the first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console

console = Console(stderr=True, highlight=False)


def say(text: str, passing: bool = False) -> None:
    """Print one line, rich markup allowed. passing: the next line takes its place; on a terminal alone."""
    if not passing:
        console.print(text)
    elif console.is_terminal:
        console.print(text, end="\r")


@contextlib.contextmanager
def bar(label: str, total: float | None) -> Iterator[Callable[..., Any]]:
    """Show a progress bar; yields advance(n=1, note="")."""
    if not console.is_terminal or console.quiet:
        yield lambda n=1, note="": None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("  {task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
        TimeRemainingColumn(compact=True), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(label, total=total, note="")

        def advance(n: float = 1, note: str | None = None) -> None:
            progress.update(task, advance=n)
            if note is not None:
                progress.update(task, note=note)

        yield advance
