"""Every example in --help works as printed, in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import VERBS, edgekd


def examples(verb: str) -> list[str]:
    told = edgekd(verb, "--help", COLUMNS="200").stdout.split("Example:")[1]
    return [line.strip() for line in told.splitlines() if line.strip().startswith("edgekd ")]


@pytest.mark.slow
def test_every_example_works_as_printed(tmp_path):
    lines = list(dict.fromkeys(line for verb in VERBS for line in examples(verb)))
    assert len(lines) >= len(VERBS)
    for line in lines:
        words = [sys.executable, "-m", *line.split()]
        done = subprocess.run(
            words, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"}, timeout=900
        )
        assert done.returncode == 0, (line, done.stderr)
    assert (tmp_path / "runs" / "digits" / "report.html").is_file()
    assert (Path(tmp_path) / "my-model" / "recipe.yaml").is_file()
