"""What check.py found on a device, brought back: `edgekd verify RUN --import check.json`."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import BadInput
from .export import check_template
from .run_folder import write_text

if TYPE_CHECKING:
    from .export.artifact import Artifact

_AGAIN = "run `python check.py --json > check.json` on the device again"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PART = r"(?!\.)[^/\\\x00-\x1f]{1,100}"
_NAME = re.compile(f"{_PART}/{_PART}")  # becomes a path, and must not lead elsewhere
_TIMES = ("load_s", "first_call_s", "warm_median_s", "warm_p90_s")
_DEVICE = ("machine", "processor", "system", "runtime", "versions", "threads", "emulator", "when")

Rule = Callable[[Any], bool]


def _text(value: Any) -> bool:
    return isinstance(value, str) and not re.search(r"[\ud800-\udfff]", value)  # half a character, which no file can hold


def _number(value: Any, least: float, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31


def _moment(value: Any) -> bool:
    if not _text(value) or not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}Z", value):
        return False
    try:
        return bool(datetime.strptime(value, "%Y-%m-%dT%H:%M:%SZ"))
    except ValueError:
        return False


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
    "vnni": ("true, false or null", lambda value: value is None or isinstance(value, bool)),
    "threads": ("a whole number", _count),
    "emulator": ("its name or null", lambda value: value is None or (_text(value) and bool(value.strip()))),
    "simulator": ("true or false", lambda value: isinstance(value, bool)),
    "seconds_are_the_devices": ("true or false", lambda value: isinstance(value, bool)),
    "when": ("a time in UTC, such as 2026-01-31T12:00:00Z", _moment),
}  # fmt: skip
_GRAPH_RULES: dict[str, tuple[str, Rule]] = {
    "relative_error": ("a number, or null for infinite", lambda value: value is None or _number(value, 0, math.inf)),
    "sqnr_db": ("a number up to 200, or null for infinite", lambda value: value is None or _number(value, -10_000, 200)),
}
_MAYBE: dict[str, tuple[str, Rule]] = {
    "providers": ("a table of node counts", _table(_count)),
    "warm_count": ("a whole number above 0", lambda value: _count(value) and value > 0),
    **{key: ("seconds, of a day at most", lambda value: _number(value, 0, 86_400)) for key in _TIMES},
}


def read(file: Path) -> dict[str, Any]:
    """Read what check.py --json wrote. Raises BadInput, with the key that is wrong and what it must be."""
    try:
        content = file.read_bytes()  # not as text: PowerShell's > writes UTF-16
        if not content.strip():
            raise BadInput(f"{file}: empty: check.py found nothing out, and said why (its runtime or device was not there)")
        record = json.loads(content)
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{file}: not the JSON of check.py ({str(error).splitlines()[0]}); {_AGAIN}") from None
    if not isinstance(record, dict) or "schema" not in record:
        raise BadInput(f"{file}: not the JSON of check.py (it has no `schema`); {_AGAIN}")
    if type(record["schema"]) is not int or record["schema"] != check_template.SCHEMA:
        raise BadInput(f"{file}: schema {record['schema']!r}, and this edgekd reads {check_template.SCHEMA}: export again")
    _obey(file, record, _RULES, "")
    for name, graph in record["graphs"].items():
        _obey(file, graph, _GRAPH_RULES, f"graphs.{name}.")
        _obey(file, graph, {key: rule for key, rule in _MAYBE.items() if key in graph}, f"graphs.{name}.")
    if record["identity"] != check_template.identity(record["files"]):
        raise BadInput(f"{file}: `identity` is not that of its `files`: the file was changed; {_AGAIN}")
    if record["runtime"] not in record["versions"]:
        raise BadInput(f"{file}: `versions` must have that of its runtime, {record['runtime']}; {_AGAIN}")
    if record["simulator"] and not record["emulator"]:
        raise BadInput(f"{file}: `simulator` is true, and `emulator` does not name it; {_AGAIN}")
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


def bring(run: Path, files: Sequence[Path]) -> list[str]:
    """Keep what check.py wrote on devices beside the run it is about; return each TARGET/VARIANT. Raises BadInput.

    All are looked at before the first is kept.
    """
    from .export import artifact as artifacts

    found: dict[str, dict[str, Any]] = {}
    for file in files:
        record = read(file)
        name: str = record["artifact"]
        home = run / "targets" / name
        if not (home / "artifact.json").is_file():
            raise BadInput(f"{file}: it is about {name}, and {run} has no such artifact")
        if reason := match(record, artifacts.load(home)):
            raise BadInput(f"{file}: {reason}")
        if name in found:
            raise BadInput(f"{file}: another file that is brought now is about {name} too; bring the one that is to count")
        found[name] = record
    for name, record in found.items():
        kept = run / FOLDER / f"{name}.json"
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_text(kept, json.dumps(record, indent=1) + "\n")
    return list(found)


def joined(here: Mapping[str, Any], run: Path, artifact: Artifact) -> dict[str, Any]:
    """Return this machine's verdict with what was brought back for the artifact added; its reason names a file that is damaged."""
    file = stored(run, artifact.target, artifact.variant)
    if file is None:
        return dict(here)
    try:
        record = read(file)
    except BadInput:
        lost = f"what a device said of it cannot be read: delete {file}, or bring it again with --import"
        return {**here, "reason": f"{here['reason']}; {lost}"}
    return join(here, record, artifact)


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
    """Say why a record is not about this artifact: another name, another runtime, or a file with other bytes; None when it is."""
    name = f"{artifact.target}/{artifact.variant}"
    if record["artifact"] != name:
        return f"it is about {record['artifact']}, not {name}"
    if "runtime" not in artifact.record:
        return f"{name} was made by an earlier edgekd; make it again with `edgekd export`"
    if record["runtime"] != artifact.record["runtime"]:
        return f"{name} is for {artifact.record['runtime']}, and {record['runtime']} ran it; run its own check.py"
    if strange := record["graphs"].keys() - artifact.graphs.keys():
        return f"{name} has no graph {', '.join(sorted(strange))}"
    told = (artifact.folder / "artifact.json").read_bytes()  # by its content it is part of what was checked
    shipped = {one["path"]: one["sha256"] for one in artifact.record["files"]}
    shipped["artifact.json"] = hashlib.sha256(told).hexdigest()
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
    """Judge a record that matches: what Verdict.record() has, by "device" (by "runtime" under an emulator or
    on another machine, by "simulator" in the vendor's), and

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
    away = elsewhere(record, artifact)
    runs = record["seconds_are_the_devices"] and not record["emulator"] and not away
    said = f"check.py passed on {record['processor'] or 'an unknown processor'}, {record['runtime']} {record['versions'][record['runtime']]}".rstrip()
    emulated = f" under {record['emulator']}" if record["emulator"] else ""
    aside = f" ({away})" if away and not record["emulator"] else ""
    providers: Counter[str] = Counter()
    for graph in record["graphs"].values():
        providers.update(graph.get("providers", {}))
    return {
        "status": "passed" if passed else "failed",
        "by": "simulator" if record["simulator"] else "device" if runs else "runtime",
        "reason": f"{said}{emulated}: {ratio:.1f} dB on the golden samples{aside}" if passed else f"{problems[0]}{aside}",
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
        "timings": _timings(record) if runs else {},
    }


def elsewhere(record: Mapping[str, Any], artifact: Artifact) -> str | None:
    """Say why the machine that a record speaks of is not the artifact's device; None when it can be."""
    device = artifact.record["device"]
    title, machine = device["title"], record["machine"]
    if device["architecture"] and _architecture(device["architecture"]) != _architecture(machine):
        return f"{title} is {device['architecture']} and that machine {machine or 'unknown'}"
    if device["kind"] not in ("local", "browser") and record["system"].startswith(("macOS", "Darwin")):
        return f"{title} is another device ({device['kind']}) and that machine a Mac"
    if None not in (device["vnni"], record["vnni"]) and device["vnni"] != record["vnni"]:
        has, has_not = (title, "that machine") if device["vnni"] else ("that machine", title)
        return f"{has} has VNNI and {has_not} has not"
    return None


def _architecture(name: str) -> str:
    """Return one name for what systems call differently: macOS says arm64, Linux aarch64, Windows AMD64."""
    return {"arm64": "aarch64", "amd64": "x86_64", "x64": "x86_64"}.get(name.lower(), name.lower())


def _too_far(error: float, sqnr_db: float, max_error: float | None, min_sqnr_db: float | None) -> list[str]:
    found = []
    if max_error is not None and not error <= max_error:
        found.append(f"outputs differ from the golden ones by {error:.2g} of the largest, above {max_error:.2g}")
    if min_sqnr_db is not None and not sqnr_db >= min_sqnr_db:
        found.append(f"outputs lie {sqnr_db:.1f} dB above their error against the golden ones, below {min_sqnr_db:g} dB")
    return found


def _timings(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    keys = (*_TIMES, "warm_count")
    return {name: {key: graph[key] for key in keys if key in graph} for name, graph in record["graphs"].items()}
