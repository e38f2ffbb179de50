"""tools/sentences.py: texts out of tables and running text, each once."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    file = Path(__file__).parents[1] / "tools" / "sentences.py"
    spec = importlib.util.spec_from_file_location("sentences_tool", file)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_sentences_of_tables_and_of_running_text(tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"a": "A  dog\nruns.", "b": "A cat sleeps."}, {"a": "A dog runs.", "b": None}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "w.txt").write_bytes(
        "\ufeff = A heading of some length here = \n It was a well @-@ known place , it is said . The <unk> 's end came in 1900 . Too short .\n".encode()
    )
    assert tool.main([f"{tmp_path / 't.jsonl'}:a,b", str(tmp_path / "w.txt"), "-o", str(tmp_path / "out.txt")]) == 0
    wanted = ["A cat sleeps.", "A dog runs.", "It was a well-known place, it is said.", "The it's end came in 1900."]
    made = (tmp_path / "out.txt").read_text(encoding="utf-8").splitlines()
    assert sorted(made) == wanted
    assert capsys.readouterr().out.startswith("4 sentences in ")
    tool.main([f"{tmp_path / 't.jsonl'}:a,b", str(tmp_path / "w.txt"), "-o", str(tmp_path / "again.txt")])
    assert (tmp_path / "again.txt").read_text() == (tmp_path / "out.txt").read_text()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nowhere.csv:a", "no file or folder"),
        ("t.jsonl:c", "has no column `c`"),
        ("n.jsonl:n", "7 is int, no text"),
        ("l.txt", "not a UTF-8 text file"),
    ],
)
def test_what_cannot_be_read_is_told(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, said: str
) -> None:
    (tmp_path / "t.jsonl").write_text('{"a": "x"}\n')
    (tmp_path / "n.jsonl").write_text('{"n": 7}\n')
    (tmp_path / "l.txt").write_bytes("dög".encode("latin-1"))
    assert tool.main([str(tmp_path / source), "-o", str(tmp_path / "out.txt")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out.txt").exists()
