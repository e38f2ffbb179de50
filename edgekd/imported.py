"""What check.py found on a device, brought back: `edgekd verify RUN --import check.json`."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import BadInput
from .export import check_template
from .run_folder import write_text

if TYPE_CHECKING:
    from .export.artifact import Artifact

_AGAIN = "run `python check.py --json > check.json` on the device again"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"(?!\.)[^/\\]+/(?!\.)[^/\\]+")  # becomes a path, and must not lead elsewhere
_TIMES = ("load_s", "first_call_s", "warm_median_s", "warm_p90_s")
_DEVICE = ("machine", "processor", "system", "runtime", "versions", "threads", "emulator", "when")

Rule = Callable[[Any], bool]


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _hash(value: Any) -> bool:
    return _text(value) and _SHA256.fullmatch(value) is not None


def _table(rule: Rule) -> Rule:
    return lambda value: isinstance(value, dict) and all(_text(key) and rule(one) for key, one in value.items())


_RULES: dict[str, tuple[str, Rule]] = {
    "artifact": ("a text, TARGET/VARIANT", lambda value: _text(value) and _NAME.fullmatch(value) is not None),
    "files": ("a table of file names and their SHA-256", _table(lambda value: value is None or _hash(value))),
    "identity": ("a SHA-256", _hash),
    "right": ("true or false", lambda value: isinstance(value, bool)),
    "problems": ("a list of texts", lambda value: isinstance(value, list) and all(map(_text, value))),
    "graphs": ("a table of graphs", _table(lambda value: isinstance(value, dict))),
    "runtime": ("a text", _text),
    "versions": ("a table of texts", _table(_text)),
    "machine": ("a text", _text),
    "processor": ("a text", _text),
    "system": ("a text", _text),
    "threads": ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0),
    "emulator": ("a text or null", lambda value: value is None or _text(value)),
    "seconds_are_the_devices": ("true or false", lambda value: isinstance(value, bool)),
    "when": ("a time in UTC, such as 2026-01-31T12:00:00Z", lambda v: _text(v) and re.fullmatch(r"[\d-]{10}T[\d:]{8}Z", v) is not None),
}  # fmt: skip
_GRAPH_RULES: dict[str, tuple[str, Rule]] = {
    "relative_error": ("a number, or null for infinite", lambda value: value is None or (_number(value) and value >= 0)),
    "sqnr_db": ("a number, or null for infinite", lambda value: value is None or _number(value)),
}
_MAYBE: dict[str, tuple[str, Rule]] = {
    "providers": (
        "a table of node counts",
        _table(lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0),
    ),
    "warm_count": ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool) and value > 0),
    **{key: ("seconds, 0 or more", lambda value: _number(value) and value >= 0) for key in _TIMES},
}


def read(file: Path) -> dict[str, Any]:
    """Read what check.py --json wrote. Raises BadInput, with the key that is wrong and what it must be."""
    try:
        record = json.loads(file.read_bytes())  # in bytes: PowerShell's > writes UTF-16
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{file}: not the JSON of check.py ({str(error).splitlines()[0]}); {_AGAIN}") from None
    if not isinstance(record, dict) or "schema" not in record:
        raise BadInput(f"{file}: not the JSON of check.py (it has no `schema`); {_AGAIN}")
    if record["schema"] != check_template.SCHEMA:
        raise BadInput(f"{file}: schema {record['schema']!r}, and this edgekd reads {check_template.SCHEMA}: export again")
    _obey(file, record, _RULES, "")
    for name, graph in record["graphs"].items():
        _obey(file, graph, _GRAPH_RULES, f"graphs.{name}.")
        _obey(file, graph, {key: rule for key, rule in _MAYBE.items() if key in graph}, f"graphs.{name}.")
    if record["identity"] != check_template.identity(record["files"]):
        raise BadInput(f"{file}: `identity` is not that of its `files`: the file was changed; {_AGAIN}")
    if record["emulator"] and record["seconds_are_the_devices"]:
        raise BadInput(f"{file}: an emulator's seconds are not the device's, yet `seconds_are_the_devices` is true; {_AGAIN}")
    return record


def _obey(file: Path, told: Mapping[str, Any], rules: Mapping[str, tuple[str, Rule]], where: str) -> None:
    for key, (what, rule) in rules.items():
        if key not in told:
            raise BadInput(f"{file}: needs `{where}{key}` ({what}); {_AGAIN}")
        if not rule(told[key]):
            raise BadInput(f"{file}: `{where}{key}` must be {what}, not {str(told[key])[:80]!r}")


FOLDER = "imported"


def stored(run: Path, target: str, variant: str) -> Path | None:
    """Return the record that was brought back for an artifact of a run; None when there is none."""
    file = run / FOLDER / target / f"{variant}.json"
    return file if file.is_file() else None


def bring(run: Path, file: Path) -> str:
    """Keep what check.py wrote on a device beside the run it is about; return TARGET/VARIANT. Raises BadInput."""
    from .export import artifact as artifacts

    record = read(file)
    name: str = record["artifact"]
    home = run / "targets" / name
    if not (home / "artifact.json").is_file():
        raise BadInput(f"{file}: it is about {name}, and {run} has no such artifact")
    if reason := match(record, artifacts.load(home)):
        raise BadInput(f"{file}: {reason}")
    kept = run / FOLDER / f"{name}.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_text(kept, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return name


def join(here: Mapping[str, Any], record: Mapping[str, Any], artifact: Artifact) -> dict[str, Any]:
    """Return this machine's verdict with a device's word added. One that failed here stays failed; a record about an earlier
    artifact says nothing.
    """
    if match(record, artifact) is not None:
        return dict(here)
    there = verdict(record, artifact)
    reasons = [there["reason"], *([here["reason"]] if here["status"] == "failed" else [])]
    parity = {**here["parity"], "device": there["parity"]["runtime"]}
    failed = "failed" in (here["status"], there["status"])
    return {
        **here,
        "status": "failed" if failed else "passed",
        "by": here["by"] if here["status"] == "failed" else there["by"],
        "reason": "; ".join(reversed(reasons)),
        "lost_at": here["lost_at"] or there["lost_at"],
        "parity": parity,
        "providers": there["providers"] or here["providers"],
        "device": there["device"],
        "timings": there["timings"],
    }


def match(record: Mapping[str, Any], artifact: Artifact) -> str | None:
    """Say why a record is not about this artifact: another name, or a file with other bytes; None when it is."""
    name = f"{artifact.target}/{artifact.variant}"
    if record["artifact"] != name:
        return f"it is about {record['artifact']}, not {name}"
    shipped = {told["path"]: told["sha256"] for told in artifact.record["files"]}
    if record["identity"] == check_template.identity(shipped):
        return None
    here = record["files"]
    for path in sorted(shipped | here):
        if path not in shipped:
            return f"{name}: the device has a file {path} that is not in this artifact; copy the folder to the device again"
        if here.get(path) != shipped[path]:
            missing = here.get(path) is None
            how = "is missing on the device" if missing else "on the device is another file (its SHA-256 differs)"
            return f"{name}: {path} {how}; copy the folder to the device and run check.py again"
    raise AssertionError("the same files have the same identity")


def verdict(record: Mapping[str, Any], artifact: Artifact) -> dict[str, Any]:
    """Judge a record that matches: what Verdict.record() has, by "device" (under an emulator by "runtime"), and

    device: {machine, processor, system, runtime, versions, threads, emulator, when};
    timings: graph name -> {load_s, first_call_s, warm_count, warm_median_s, warm_p90_s}, {} where they are not the device's.
    The artifact's own tolerances decide, not the record's word. Raises BadInput for a record that does not match.
    """
    if reason := match(record, artifact):
        raise BadInput(reason)
    golden = artifact.record["golden"]
    errors = [math.inf if graph["relative_error"] is None else graph["relative_error"] for graph in record["graphs"].values()]
    ratios = [-math.inf if graph["sqnr_db"] is None else graph["sqnr_db"] for graph in record["graphs"].values()]
    problems = list(record["problems"])
    lacking = {name for name, arrays in artifact.golden()[1].items() if arrays} - record["graphs"].keys()
    if lacking and not problems:
        problems.append(f"graph {', '.join(sorted(lacking))} was not run")
    if not problems and errors:
        problems += _too_far(max(errors), min(ratios), golden["max_error"], golden["min_sqnr_db"])
    if not problems and not record["right"]:
        problems.append("check.py says that it is wrong, and not why")
    passed = not problems
    ratio = min(ratios, default=math.nan)
    said = f"check.py passed on {record['processor']}, {record['runtime']} {record['versions'].get(record['runtime'], '')}".rstrip()
    emulated = f" under {record['emulator']}" if record["emulator"] else ""
    providers: Counter[str] = Counter()
    for graph in record["graphs"].values():
        providers.update(graph.get("providers", {}))
    return {
        "status": "passed" if passed else "failed",
        "by": "runtime" if record["emulator"] else "device",
        "reason": f"{said}{emulated}: {ratio:.1f} dB on the golden samples" if passed else problems[0],
        "lost_at": None if passed else "runtime",
        "parity": {
            "runtime": {
                "max_abs": None,
                "reason": None,
                "relative": max(errors) if errors and math.isfinite(max(errors)) else None,
                "sqnr_db": ratio if math.isfinite(ratio) else None,
            }
        },
        "samples": golden["samples"],
        "providers": dict(providers),
        "problems": problems,
        "device": {key: record[key] for key in _DEVICE},
        "timings": _timings(record),
    }


def _too_far(error: float, sqnr_db: float, max_error: float | None, min_sqnr_db: float | None) -> list[str]:
    found = []
    if max_error is not None and not error <= max_error:
        found.append(f"outputs differ from the golden ones by {error:.2g} of the largest, above {max_error:.2g}")
    if min_sqnr_db is not None and not sqnr_db >= min_sqnr_db:
        found.append(f"outputs lie {sqnr_db:.1f} dB above their error against the golden ones, below {min_sqnr_db:g} dB")
    return found


def _timings(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    if record["emulator"] or not record["seconds_are_the_devices"]:
        return {}
    keys = (*_TIMES, "warm_count")
    return {name: {key: graph[key] for key in keys if key in graph} for name, graph in record["graphs"].items()}
