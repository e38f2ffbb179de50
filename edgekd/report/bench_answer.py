"""The answer of a bench: on each device and in each scenario, what is fastest and by how much, or that nothing tells them apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..bench import statistics
from .bench_cells import Cell, Told
from .formats import clock, duration, prefixed, share, size, throughput, times
from .words import kind_of, sentence

Samples = Mapping[str, np.ndarray]


def answers(cell: Cell, names: Mapping[str, str], samples: Samples) -> list[dict[str, Any]]:
    """Return an answer for each control of a cell, and one for the things that nothing was compared with."""
    found: list[dict[str, Any]] = []
    left = {m["artifact"]: m for m in cell.measurements}
    for control in dict.fromkeys(c["control"] for c in cell.comparisons):
        against = [c for c in cell.comparisons if c["control"] == control]
        for label in [control, *(c["candidate"] for c in against)]:
            left.pop(label, None)
        found.append(_answer(cell, _judged(cell, control, against, names, samples), against, names))
    if left and cell.scenario == "sustained":
        found.append(_sustained(cell, list(left.values()), names))
    elif left:
        found.append(_answer(cell, _alone(list(left.values()), names), [], names, list(left.values())))
    return found


def unmeasured(told: Told, address: str, title: str) -> dict[str, Any]:
    """Return the answer of a device on which nothing was timed: why."""
    reasons = list(dict.fromkeys(s["reason"] for s in told["skipped"] if s.get("device") == address and s.get("reason")))
    why = [sentence(reason) for reason in reasons] or ["No reason is recorded."]
    return {"target": title, "say": "Nothing was timed", "kind": "unsure", "why": why[0], "also": why[1:], "facts": []}


def _answer(
    cell: Cell,
    judged: tuple[str, str, str, str | None],
    against: Sequence[Told],
    names: Mapping[str, str],
    things: Sequence[Told] = (),
) -> dict[str, Any]:
    say, kind, why, best = judged
    involved = {label for c in against for label in (c["control"], c["candidate"])} or {m["artifact"] for m in things}
    also = []
    for c in against:
        if c["candidate"] == best:
            continue  # said above, with its interval
        said = _said(c["verdict"] or f"{names.get(c['candidate'], c['candidate'])} has no verdict")
        also.append(f"{said} {sentence(c['why'])}" if c["why"] else said)
    for m in cell.measurements:
        if m["artifact"] in involved and (m["sustained"] or {}).get("said"):
            also.append(f"{names.get(m['artifact'], m['artifact'])}: {sentence(m['sustained']['said'])}")
    fastest = next((m for m in cell.measurements if m["artifact"] == best), None)
    return {
        "target": f"{cell.title} · {cell.words}",
        "say": say,
        "kind": kind,
        "why": why,
        "also": also,
        "facts": facts(fastest) if fastest else [],
        "of": names.get(best, best) if best and len(involved) > 1 else None,
    }


def _sustained(cell: Cell, things: Sequence[Told], names: Mapping[str, str]) -> dict[str, Any]:
    """Say which things' throughput fell over minutes. They ran one after the other, so nothing is compared."""
    known = [(names[m["artifact"]], m["sustained"] or {}) for m in things]
    fallen = [f"{name} at {clock(told['fell_at_s'])}" for name, told in known if told.get("fell_at_s") is not None]
    held = all((told.get("said") or "").startswith("throughput held") for _, told in known)
    say = f"Throughput falls: {_list(fallen)}" if fallen else "Throughput held" if held else "No fall found"
    many = len(things) > 1
    ran = "One after the other, each without a pause: their speeds are not compared." if many else "Without a pause."
    ends = [
        (
            f"{name} at the end",
            f"{throughput(told['last_per_s'])}/s",
            f"{throughput(told.get('first_per_s'))}/s at the beginning",
        )
        for name, told in known
        if told.get("last_per_s")
    ]
    return {
        "target": f"{cell.title} · {cell.words}",
        "say": say,
        "kind": "bad" if fallen else "good" if held else "unsure",
        "why": ran,
        "also": [f"{name}: {sentence(told['said'])}" for name, told in known if told.get("said")],
        "facts": ends if many else facts(things[0]),
        "of": None,
    }


def _alone(things: Sequence[Told], names: Mapping[str, str]) -> tuple[str, str, str, str | None]:
    """Say how fast things are that were compared with nothing."""
    timed = [m for m in things if m["warm"].get("median_s")]
    if not timed:
        return "No warm call was counted", "unsure", "The measurement ended before its first block.", None
    first = min(timed, key=lambda m: m["warm"]["median_s"])
    name, median = names[first["artifact"]], duration(first["warm"]["median_s"])
    if len(things) == 1:
        return f"{name}: {median} a call", "same", "Timed alone: there is nothing to compare it with.", first["artifact"]
    why = f"{name} has the lowest median, {median}, but no two were compared: no ratio is claimed."
    return "Not compared", "unsure", why, first["artifact"]


def _judged(
    cell: Cell, control: str, against: Sequence[Told], names: Mapping[str, str], samples: Samples
) -> tuple[str, str, str, str | None]:
    """Return what to say, its colour, why, and the label of the fastest."""
    kinds = {c["candidate"]: kind_of(c) for c in against}
    faster = sorted((c for c in against if kinds[c["candidate"]] == "good"), key=lambda c: -(c["ratio"] or 0))
    name = {label: names.get(label, label) for label in [control, *kinds]}
    if faster:
        best = faster[0]
        level = [c for c in faster[1:] if not _apart(cell, best, c, samples)]
        by = f"{_times(best)} faster than {name[control]}{_interval(best)}."
        if level:
            tied = _list([name[c["candidate"]] for c in [best, *level]])
            return (
                f"{tied} are the fastest",
                "good",
                f"No difference seen between them; {name[best['candidate']]} is {by}",
                best["candidate"],
            )
        return f"{name[best['candidate']]} is the fastest", "good", by[:1].upper() + by[1:], best["candidate"]
    if "same" in kinds.values():
        equal = [name[c["candidate"]] for c in against if kinds[c["candidate"]] == "same"]
        rest = [name[c["candidate"]] for c in against if kinds[c["candidate"]] == "bad"]
        between = f"Between {_list([name[control], *equal])}" + (f"; {_list(rest)} slower" if rest else "")
        return "No difference seen", "same", f"{between}.", control
    slower = [c for c in against if kinds[c["candidate"]] == "bad"]
    if slower and "unsure" not in kinds.values():
        next_best = max(slower, key=lambda c: c["ratio"] or 0)
        by = f"{_times(next_best, turned=True)} faster than {name[next_best['candidate']]}{_interval(next_best, turned=True)}."
        return f"{name[control]} is the fastest", "good", by[:1].upper() + by[1:], control
    open_ = [c for c in against if kinds[c["candidate"]] == "unsure"]
    return (
        "Too few blocks to tell" if any(c["low"] is None for c in open_) else "Cannot tell",
        "unsure",
        " ".join(dict.fromkeys(_unsure(cell, c) for c in open_)),
        None,
    )


def _unsure(cell: Cell, c: Told) -> str:
    """Say why a comparison says nothing."""
    if c["low"] is not None and c["high"] is not None:
        seen = f"{times(c['ratio'])} (95\u202f%: {times(c['low'])} to {times(c['high'])})"
        return f"The ratio is {seen}, {'too wide an interval to tell' if c['verdict'] else 'and no verdict is recorded'}."
    timed = next((m for m in cell.measurements if m["artifact"] == c["candidate"]), None)
    launches = len(((timed or {}).get("blocks") or {}).get("launches") or [])
    had = [f"{c['pairs']} pair{'s' * (c['pairs'] != 1)}"] if c.get("pairs") is not None else []
    had += [f"{launches} launch{'es' * (launches != 1)}"] if launches else []
    there = f"; there {'was' if c.get('pairs') == 1 else 'were'} {' in '.join(had)}" if had else ""
    needs = f"{statistics.FEWEST_PAIRS} pairs of blocks, or {statistics.FEWEST_LAUNCHES} launches, at least"
    return f"An interval needs {needs}{there}."


def _apart(cell: Cell, best: Told, other: Told, samples: Samples) -> bool:
    """Say whether two candidates differ: by their own paired blocks where the samples are here, else by intervals that do not meet.

    Samples of streams are the lengths of calls that ran beside others, and verdicts on streams are of all of them together.
    """
    timed = [next((m for m in cell.measurements if m["artifact"] == c["candidate"]), {"samples": None}) for c in (best, other)]
    a, b = (samples.get(m["samples"] or "") for m in timed)
    if not cell.streams and a is not None and b is not None and a.ndim == b.ndim == 2:
        pairs = min(len(a), len(b))
        started, beside = (_launches(m, len(raw)) for m, raw in zip(timed, (a, b), strict=True))
        if (started or [])[:pairs] == (beside or [])[:pairs]:
            launches = started[:pairs] if started else None
            return statistics.differs(statistics.ratio(b[:pairs], a[:pairs], launches=launches))
    return bool(best["low"] and other["high"] and best["low"] > other["high"])


def _launches(m: Told, rows: int) -> list[int] | None:
    """Return the number of the launch that each row of a measurement's samples is of; None where it is not recorded."""
    counts = (m.get("blocks") or {}).get("launches") or []
    return np.repeat(np.arange(len(counts)), counts).tolist() if sum(counts) == rows else None


def facts(m: Told) -> list[tuple[str, str, str]]:
    """Return (what, number, remark) of one measurement, what its scenario is about first."""
    warm, told = m["warm"], []
    made, lasting, energy, roof = (m[key] or {} for key in ("generation", "sustained", "energy", "roofline"))
    if made:
        prompt = f"prompt of {made['prompt_tokens']} tokens" if made.get("prompt_tokens") else "median"
        told.append(("first token", duration((made.get("ttft") or {}).get("median_s")), prompt))
        told.append(
            (
                "tokens a second",
                throughput(made.get("tokens_per_s")),
                f"{duration((made.get('per_token') or {}).get('median_s'))} each",
            )
        )
    if lasting.get("last_per_s"):
        remark = f"{throughput(lasting.get('first_per_s'))} a second at the beginning"
        told.append(("at the end", f"{throughput(lasting['last_per_s'])}/s", remark))
    if warm.get("median_s") and not made:
        told.append(("a warm call", duration(warm["median_s"]), _between(warm)))
    tail = next((p for p in (99, 95, 90) if warm.get(f"p{p}_s")), None)
    if tail and not made:
        told.append((f"p{tail}", duration(warm[f"p{tail}_s"]), f"of {warm.get('count', 0):,} calls"))
    if m["throughput_per_s"] and not made and not lasting:
        told.append(("throughput", f"{throughput(m['throughput_per_s'])}/s", "samples"))
    if m["peak_memory_above_runtime_bytes"] is not None:
        told.append(("memory", size(m["peak_memory_above_runtime_bytes"]), "at most, above the bare runtime"))
    if energy.get("joules_per_call") is not None:
        told.append(("energy", prefixed(energy["joules_per_call"], "J"), "a call"))
    if roof.get("fraction") is not None:
        told.append(
            ("of attainable", share(roof["fraction"]), f"bound by {roof['bound']}" if roof.get("bound") else "roofline")
        )
    return told


def _said(verdict: str) -> str:
    """Write a verdict as a sentence; a name that it begins with stays as it is."""
    return sentence(verdict) if verdict.startswith(("no ", "too ", "cannot ")) else verdict.rstrip(".") + "."


def _between(warm: Told) -> str:
    if warm.get("median_low_s") is None or warm.get("median_high_s") is None:
        return "median"
    return f"95\u202f%: {duration(warm['median_low_s'])} to {duration(warm['median_high_s'])}"


def _times(c: Told, turned: bool = False) -> str:
    value = c["ratio"]
    return "?×" if not value else times(1 / value if turned else value)


def _interval(c: Told, turned: bool = False) -> str:
    """Write a ratio's interval; turned: of the control's speed over the candidate's."""
    low, high = (c["high"], c["low"]) if turned else (c["low"], c["high"])
    if not low or not high:
        return ""
    return f" (95\u202f%: {times(1 / low if turned else low)} to {times(1 / high if turned else high)})"


def _list(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
