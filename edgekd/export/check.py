"""check.py, as it ships: the common template with one runtime's part in it, one file that imports nothing of edgekd.

A part is a module under check_parts/ (or a third party's), written for Python 3.8 and up, with

    NEEDS = ("numpy", "openvino")                         what is to be installed, as pip calls it, the runtime last
    def version() -> str                                  ImportError where the runtime is not installed
    def open_session(path, threads) -> (call, seconds)    call(inputs: name -> array) -> outputs: name -> array
    def clock() -> float                                  optional: seconds, where calls are timed elsewhere
    def about() -> dict                                   optional: keys of the JSON that it knows better, such as processor

and call.providers, where it has them: execution provider -> nodes. open_session raises OSError(ENODEV, what is missing) where the
device that the file is for (an NPU, a GPU, a browser) is not there: a right file must not look wrong for that. about() says
{"emulator": its name} once a session is open in one, with "simulator": True where that is the vendor's, of the very accelerator.
"""

from __future__ import annotations

import ast
from pathlib import Path

TEMPLATE = Path(__file__).with_name("check_template.py")
OLDEST = (3, 8)
"""The oldest Python that check.py runs on."""

_START, _END = "# --- the runtime", "# --- end of the runtime"
_OPTIONAL = {"clock", "about"}
_OWN = {"NEEDS", "version", "open_session"} | _OPTIONAL


def assemble(part: Path) -> str:
    """Return check.py for one runtime. part: its file. Raises ValueError for a part that lacks a function, hides one of the
    template's, or imports edgekd.
    """
    before, rest = _split(TEMPLATE.read_text(encoding="utf-8"), _START)
    after = _split(rest, _END)[1].partition("\n")[2]
    source = part.read_text(encoding="utf-8")
    tree = ast.parse(source, str(part), feature_version=OLDEST)
    names = _names(tree)
    if lacking := (_OWN - _OPTIONAL) - names:
        raise ValueError(f"{part}: a part of check.py needs {', '.join(sorted(lacking))}")
    if hidden := names & (_names(ast.parse(before + after)) - _OWN):
        raise ValueError(f"{part}: the template of check.py has {', '.join(sorted(hidden))} too")
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level or str(node.module).split(".")[0] == "edgekd"):
            raise ValueError(f"{part}: line {node.lineno} imports edgekd, which the device does not have")
    known = {line for line in before.splitlines() if line.startswith(("import ", "from "))}
    head = before.replace("its runtime and numpy", " and ".join(sorted(_needs(tree))))
    text = f"{head}{_body(source, tree, known)}\n\n\n{after.lstrip()}"
    ast.parse(text, "check.py", feature_version=OLDEST)
    return text


def runtime_of(part: Path) -> str:
    """Return the name of a part's runtime, as its JSON gives it."""
    return _needs(ast.parse(part.read_text(encoding="utf-8"), str(part)))[-1]


def _split(text: str, mark: str) -> tuple[str, str]:
    before, found, after = text.partition(mark)
    assert found, f"{TEMPLATE} has no line `{mark}`"
    return before, after


def _names(tree: ast.Module) -> set[str]:
    """Return the names of a module's functions, classes and variables; what it imports is not its own."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return found


def _needs(tree: ast.Module) -> list[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "NEEDS" for t in node.targets):
            return list(ast.literal_eval(node.value))
    raise AssertionError("checked by assemble")


def _body(source: str, tree: ast.Module, known: set[str]) -> str:
    """Return a part's lines without its docstring, which becomes a comment, and without the imports that the template has."""
    lines = source.splitlines()
    drop: set[int] = set()
    for node in tree.body:
        docstring = node is tree.body[0] and ast.get_docstring(tree) is not None
        if docstring or lines[node.lineno - 1] in known:
            drop |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    told = [f"# {line}".rstrip() for line in (ast.get_docstring(tree) or "").splitlines()]
    kept = [line for number, line in enumerate(lines, 1) if number not in drop]
    while kept and not kept[0]:
        kept.pop(0)
    return "\n".join([*told, *kept]).rstrip()
