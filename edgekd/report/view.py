"""What the report says: the manifest turned into words, numbers and charts, section by section. No HTML here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import yaml

from ..bench.clock import DEFINITIONS
from . import charts
from .formats import DASH, Metric, clock, digits, duration, number, size, times

STATUS = {"passed": "passed", "failed": "failed", "not_verified": "not verified"}
KINDS = {"passed": "good", "failed": "bad", "not_verified": "unsure"}
STAGE_MEANING = {
    "teacher": "the teacher in torch",
    "student": "the student in torch",
    "variant": "the quantized student, in the exact arithmetic of its method",
    "file": "the shipped file, in exact arithmetic (every optimisation off)",
    "runtime": "the shipped file as the runtime executes it",
}

Manifest = Mapping[str, Any]
Samples = Mapping[str, np.ndarray]


def view(manifest: Manifest, samples: Samples) -> dict[str, Any]:
    """Return all that the template shows. samples: path as in the manifest -> (blocks, calls) of seconds, those that are there."""
    metric = Metric(manifest["metric"])
    colours = {name: i for i, name in enumerate(manifest["variants"])}
    return {
        "title": _name(manifest),
        "kind": manifest.get("kind", "compress"),
        "metric": metric,
        "answers": [_answer(manifest, target, metric) for target in _targets(manifest)],
        "trained": _trained(manifest, metric),
        "models": _models(manifest, metric),
        "gate": _gate(manifest, metric),
        "stages_meaning": STAGE_MEANING,
        "tradeoff": _tradeoff(manifest, metric, colours),
        "variants": _variants(manifest, metric, colours),
        "refused": manifest.get("refused", []),
        "speed": _speed(manifest, samples, colours),
        "comparisons": _comparisons(manifest),
        "training": _training(manifest, metric),
        "pipeline": _pipeline(manifest),
        "environment": _environment(manifest),
        "recipe": yaml.safe_dump(dict(manifest["recipe"]), sort_keys=False, allow_unicode=True, width=88),
        "definitions": DEFINITIONS,
        "manifest": manifest,
    }


def _name(manifest: Manifest) -> str:
    parts = [p for p in manifest["recipe_file"].replace("\\", "/").split("/") if p]
    if parts and parts[-1].startswith("recipe."):
        parts.pop()
    return parts[-1].removesuffix(".yaml").removesuffix(".yml") if parts else "edgekd run"


def _targets(manifest: Manifest) -> list[str]:
    named = [*manifest["chosen"], *(key.partition("/")[0] for key in [*manifest["verdicts"], *manifest["artifacts"]])]
    return list(dict.fromkeys(named))


# --- the answer: what to ship, target by target -------------------------------------------------


def _answer(manifest: Manifest, target: str, metric: Metric) -> dict[str, Any]:
    choice = manifest["chosen"].get(target)
    verdicts = {key.partition("/")[2]: v for key, v in manifest["verdicts"].items() if key.startswith(f"{target}/")}
    variant = choice["variant"] if choice else None
    if variant is not None:
        said = f"Ship {variant}"
        kind, why = "good", _sentence(choice["why"])
        how = (
            "Chosen by measurement on this machine."
            if choice["by"] == "measurement"
            else "Not measured: chosen by the target's rule."
        )
        return {
            "target": target,
            "say": said,
            "kind": kind,
            "why": why,
            "how": how,
            "facts": _facts(manifest, target, variant, metric),
        }
    failed = [name for name, v in verdicts.items() if v["status"] == "failed"]
    unsure = [name for name, v in verdicts.items() if v["status"] == "not_verified"]
    if any(v["status"] == "passed" for v in verdicts.values()) and not choice:
        say, kind = "Verified, not chosen yet", "unsure"
        why = "The run stopped before it measured; edgekd bench and edgekd compress go on from here."
    elif unsure and not failed:
        say, kind = "Not verified: nothing to ship yet", "unsure"
        why = _sentence(verdicts[unsure[0]]["reason"])
    elif failed:
        say, kind = "Nothing to ship: the gate failed", "bad"
        worst = verdicts[failed[0]]
        why = (
            f"{failed[0]} lost it at the {worst['lost_at']} stage: {worst['reason']}."
            if len(failed) == 1
            else f"None of {len(verdicts)} variants passed; the reasons are below."
        )
    else:
        say, kind, why = (
            "Not verified yet",
            "unsure",
            "The run stopped before its files were proven; edgekd verify goes on from here.",
        )
    return {"target": target, "say": say, "kind": kind, "why": why, "how": "", "facts": []}


def _facts(manifest: Manifest, target: str, variant: str, metric: Metric) -> list[tuple[str, str, str]]:
    """Return (what, number, remark) of the chosen artifact."""
    key, told = f"{target}/{variant}", []
    verdict = manifest["verdicts"].get(key, {})
    score = verdict.get("scores", {}).get("runtime")
    if score is not None:
        first = "teacher" if "teacher" in verdict["scores"] else "student"
        told.append((metric.name, metric.score(score), f"{metric.drop(verdict.get('drop'))} from the {first}"))
    count = _shipped_bytes(manifest, key)
    teacher = manifest["models"].get("teacher")
    if count:
        smaller = teacher["bytes"] / count if teacher else 1.0
        told.append(("size", size(count), f"{times(smaller)} smaller than the teacher" if smaller > 1.05 else "model files"))
    measured = next((m for m in manifest["measurements"] if m["artifact"] == key), None)
    if measured:
        against = next((c for c in manifest["comparisons"] if c["candidate"] == key), None)
        remark = f"a warm call, batch {measured['batch']}"
        if against and against["low"] is not None and against["ratio"] >= 1 and against["low"] > 1:
            remark = f"{times(against['ratio'])} faster than {_short(against['control'])}"
        told.append(("latency", duration(measured["warm"]["median_s"]), remark))
        above = measured.get("peak_memory_above_runtime_bytes")
        if above is not None:
            told.append(("memory", size(above), "at most, above the bare runtime"))
    return told


def _shipped_bytes(manifest: Manifest, key: str) -> int | None:
    """Bytes of an artifact's model files: what is needed on the device, without golden samples and check.py."""
    artifact = manifest["artifacts"].get(key)
    if artifact is None:
        return None
    files = [f for f in artifact["files"] if f["path"] not in {"golden.npz", "check.py"}]
    return sum(f["bytes"] for f in files) or None


def _sentence(words: str) -> str:
    words = words.strip()
    return words[:1].upper() + words[1:] + ("" if words.endswith((".", "!", "?")) else ".")


def _short(artifact: str) -> str:
    return artifact.rpartition("/")[2]


def _trained(manifest: Manifest, metric: Metric) -> str | None:
    if manifest.get("kind") != "train":
        return None
    for role, score in manifest["scores"].items():
        if score is not None:
            return f"The {role} scores {metric.score(score)} {metric.name} on the test samples."
    return "The model is trained; it has no score yet."


def _models(manifest: Manifest, metric: Metric) -> list[dict[str, str]]:
    found = []
    for role in ("teacher", "student"):
        model = manifest["models"].get(role)
        if model:
            found.append(
                {
                    "role": role,
                    "reference": _reference(model["reference"]),
                    "parameters": number(model["parameters"]),
                    "size": size(model["bytes"]),
                    "score": metric.score(manifest["scores"].get(role)),
                }
            )
    return found


def _reference(reference: str) -> str:
    """Leave out most of a long path: py:.../model.py:teacher."""
    kind, colon, rest = reference.partition(":")
    parts = rest.replace("\\", "/").split("/")
    return f"{kind}{colon}…/{parts[-1]}" if len(parts) > 2 else reference


# --- the gate ----------------------------------------------------------------------------------


def _gate(manifest: Manifest, metric: Metric) -> dict[str, Any]:
    cards, rows, parity = [], [], []
    for target in _targets(manifest):
        mine = {k: v for k, v in manifest["verdicts"].items() if k.startswith(f"{target}/")}
        for key, v in mine.items():
            scores = v["scores"]
            domain, floor = _domain({key: v}, manifest["gate"]["max_drop"], metric)
            cards.append(
                {
                    "target": target,
                    "variant": _short(key),
                    "status": STATUS[v["status"]],
                    "kind": KINDS[v["status"]],
                    "chart": charts.through_stages(scores, metric, domain, floor, v["lost_at"]) if scores else None,
                    "drop": metric.drop(v.get("drop")),
                    "interval": _drop_interval(v, metric),
                    "first": "teacher" if "teacher" in scores else "student",
                    "samples": number(v["samples"]),
                    "reason": _sentence(v["reason"]),
                    "lost_at": v["lost_at"],
                    "divergence": _divergence(v["first_divergence"]),
                    "providers": _providers(v["providers"]),
                }
            )
            cells = {stage: metric.score(scores.get(stage)) for stage in charts.STAGES}
            rows.append(
                {
                    "target": target,
                    "name": _short(key),
                    **cells,
                    "lost_at": v["lost_at"],
                    "drop": metric.drop(v.get("drop")),
                    "interval": _drop_interval(v, metric),
                    "samples": number(v["samples"]),
                    "kind": KINDS[v["status"]],
                    "status": STATUS[v["status"]],
                }
            )
            parity += [
                {"target": target, "variant": _short(key), "stage": stage, **_parity(p)} for stage, p in v["parity"].items()
            ]
    gate = manifest["gate"]
    rule = f"An artifact may lose {metric.gate(gate['max_drop'])} of {metric.name}, from the first stage to the runtime."
    return {"cards": cards, "rows": rows, "parity": parity, "rule": rule, "limits": gate}


def _domain(verdicts: Mapping[str, Any], max_drop: float, metric: Metric) -> tuple[tuple[float, float], float | None]:
    """Return a score axis that holds all of the verdicts, and the score below (or above) which the gate fails them."""
    known = [score for v in verdicts.values() for score in v["scores"].values()]
    if not known:
        return (0.0, 1.0), None
    first = next(iter(next(v["scores"] for v in verdicts.values() if v["scores"]).values()))
    floor = first - max_drop if metric.higher_is_better else first + max_drop
    low, high = min(*known, floor), max(*known, floor)
    pad = 0.06 * (high - low) or 0.01 * max(abs(high), 1e-9)
    return (low - pad, high + pad), floor


def _drop_interval(verdict: Mapping[str, Any], metric: Metric) -> str | None:
    if not verdict.get("interval"):
        return None
    low, high = verdict["interval"]
    return f"{metric.drop(high, unit=False)} to {metric.drop(low)}"


def _divergence(found: Mapping[str, Any] | None) -> dict[str, str] | None:
    if not found:
        return None
    far = found.get("reason") or (
        f"{digits(found['relative'], 2)} of the largest value apart" if found.get("relative") is not None else ""
    )
    return {"module": found.get("module") or "", "node": found["node"], "operation": found.get("operation", ""), "far": far}


def _parity(told: Mapping[str, Any]) -> dict[str, str]:
    def small(value: float | None) -> str:
        return "∞" if value is None else "0" if value == 0 else digits(value, 2) if value >= 1e-4 else f"{value:.1e}"

    db = told["sqnr_db"]
    return {
        "max_abs": small(told["max_abs"]),
        "relative": small(told["relative"]),
        "sqnr": DASH if db is None else "identical" if db >= 200 else f"{db:.1f} dB",
        "reason": told.get("reason") or "",
    }


def _providers(providers: Mapping[str, int]) -> str:
    return ", ".join(f"{name.removesuffix('ExecutionProvider')} {nodes} nodes" for name, nodes in providers.items())


# --- size, latency, score ----------------------------------------------------------------------


def _tradeoff(manifest: Manifest, metric: Metric, colours: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return the two plots for each target that has something to show."""
    found = []
    for target in _targets(manifest):
        verdicts = {k: v for k, v in manifest["verdicts"].items() if k.startswith(f"{target}/") and "runtime" in v["scores"]}
        if not verdicts:
            continue
        _, floor = _domain(verdicts, manifest["gate"]["max_drop"], metric)
        by_size, by_time = [], []
        for key, v in verdicts.items():
            name, shape = _short(key), "ring" if v["status"] == "failed" else "dot"
            score, colour = v["scores"]["runtime"], colours.get(_short(key))
            if count := _shipped_bytes(manifest, key):
                by_size.append(charts.Point(name, count, score, colour, shape))
            if m := next((m for m in manifest["measurements"] if m["artifact"] == key), None):
                by_time.append(charts.Point(name, m["warm"]["median_s"], score, colour, shape))
        teacher = manifest["models"].get("teacher")
        if teacher and manifest["scores"].get("teacher") is not None and by_size:
            by_size.append(charts.Point("teacher", teacher["bytes"], manifest["scores"]["teacher"], None))
        plots = []
        if by_size:
            plots.append(charts.scatter(by_size, metric, "size of the model files", size, floor))
        if by_time:
            plots.append(charts.scatter(by_time, metric, "median of a warm call", lambda v: duration(v, plain=True), floor))
        if plots:
            found.append({"target": target, "plots": plots, "failed": any(v["status"] == "failed" for v in verdicts.values())})
    return found


def _variants(manifest: Manifest, metric: Metric, colours: Mapping[str, int]) -> list[dict[str, Any]]:
    teacher = manifest["models"].get("teacher")
    return [
        {
            "name": name,
            "colour": colours[name] % 6,
            "method": {"none": "full precision", "ptq": "post-training"}.get(v["method"], v["method"]),
            "scheme": _scheme(v["scheme"]),
            "size": size(v["size_bytes"]),
            "smaller": times(teacher["bytes"] / v["size_bytes"]) if teacher and v["size_bytes"] else DASH,
            "score": metric.score(v.get("score")),
        }
        for name, v in manifest["variants"].items()
    ]


def _scheme(scheme: Mapping[str, Any]) -> str:
    weights, activations = scheme.get("weights"), scheme.get("activations")
    if not weights and not activations:
        label = scheme.get("label") or "fp32"
        return "float32" if label == "fp32" else str(label)
    parts = []
    if weights:
        grain = f"groups of {weights['group']}" if weights.get("group") else f"per {weights.get('granularity', 'tensor')}"
        parts.append(f"{weights['bits']}-bit {weights.get('kind', 'uniform')} weights {grain}")
    if activations:
        parts.append(f"{activations['bits']}-bit activations")
    return ", ".join(parts)


# --- speed -------------------------------------------------------------------------------------


def _speed(manifest: Manifest, samples: Samples, colours: Mapping[str, int]) -> dict[str, Any]:
    many_targets = len({m["artifact"].partition("/")[0] for m in manifest["measurements"]}) > 1
    many_batches = len({m["batch"] for m in manifest["measurements"]}) > 1
    rows, ridges = [], []
    for m in manifest["measurements"]:
        name, warm = m["artifact"] if many_targets else _short(m["artifact"]), m["warm"]
        colour = colours.get(_short(m["artifact"]), 0) % 6
        above = m.get("peak_memory_above_runtime_bytes")
        rows.append(
            {
                "artifact": name,
                "colour": colour,
                "batch": m["batch"],
                "load": duration(m["load_s"]),
                "first": duration(m["first_call_s"]),
                "median": duration(warm["median_s"]),
                "interval": f"{duration(warm['median_low_s'])} to {duration(warm['median_high_s'])}",
                "tail": [(f"p{p}", duration(warm[f"p{p}_s"])) for p in (90, 95, 99) if f"p{p}_s" in warm],
                "count": number(warm["count"]),
                "throughput": number(m["throughput_per_s"]) if m["throughput_per_s"] >= 10 else digits(m["throughput_per_s"]),
                "memory": size(m["peak_memory_bytes"]),
                "above": size(above) if above is not None else None,
                "cut": m["stopped_by"] == "max_seconds",
            }
        )
        raw = samples.get(m["samples"])
        if raw is not None and raw.size:
            label = f"{name}, batch {m['batch']}" if many_batches else name
            ridges.append(charts.Row(label, raw.ravel(), warm["median_s"], colour))
    absent = sorted({m["samples"] for m in manifest["measurements"]} - set(samples))
    return {"rows": rows, "chart": charts.distribution(ridges) if ridges else None, "absent": absent, "notes": _notes(manifest)}


def _notes(manifest: Manifest) -> list[str]:
    return list(dict.fromkeys(_sentence(note) for m in manifest["measurements"] for note in m["environment"].get("notes", [])))


def _comparisons(manifest: Manifest) -> list[dict[str, Any]]:
    many_batches = len({c["batch"] for c in manifest["comparisons"]}) > 1
    ends = [abs(math.log(v)) for c in manifest["comparisons"] for v in (c["ratio"], c["low"], c["high"]) if v]
    reach = next((r for r in (1.25, 1.5, 2, 3, 4, 6, 10, 20, 50, 100) if not ends or math.log(r) > max(ends)), 1000)
    found = []
    for c in manifest["comparisons"]:
        said = c["verdict"]
        kind = "bad" if "SLOWER" in said else "good" if "faster" in said else "same"
        found.append(
            {
                "say": said,
                "failed": manifest["verdicts"].get(c["candidate"], {}).get("status") == "failed",
                "target": c["target"],
                "batch": c["batch"] if many_batches else None,
                "why": _sentence(c["why"]) if c["why"] else None,
                "kind": kind,
                "chart": charts.ratio(c["ratio"], c["low"], c["high"], reach, kind),
            }
        )
    return found


# --- training, pipeline, environment -----------------------------------------------------------


def _training(manifest: Manifest, metric: Metric) -> dict[str, Any] | None:
    history = manifest["training"]
    if not history or not history["epochs"]:
        return None
    epochs = history["epochs"]
    names = list(dict.fromkeys(name for e in epochs for name in e["terms"]))
    losses = {name: [float(e["terms"].get(name, math.nan)) for e in epochs] for name in names}
    if len(names) > 1:
        losses = {"total": [e["loss"] for e in epochs], **losses}
    teacher = manifest["scores"].get("teacher")
    best = history["best_epoch"]
    role = "validation"
    return {
        "losses": charts.curves(losses, "epoch", lambda v: f"{v:.2g}", log=True),
        "validation": charts.curves(
            {role: [e["validation"] for e in epochs]},
            "epoch",
            lambda v: metric.score(v, 0 if metric.share and abs(v * 100 - round(v * 100)) < 1e-6 else 1),
            mark=best,
            reference=("teacher*", teacher) if teacher is not None else None,
            first=epochs[0]["epoch"],
        ),
        "facts": [
            ("epochs", f"{len(epochs)}, the weights of epoch {best} kept"),
            ("steps", number(history["steps"])),
            ("speed", f"{number(history['images_per_second'])} pictures a second"),
            ("time in steps", clock(sum(e["seconds"] for e in epochs))),
        ],
        "teacher": metric.score(teacher) if teacher is not None else None,
        "warnings": history.get("warnings", []),
    }


def _pipeline(manifest: Manifest) -> dict[str, Any]:
    stages = manifest["stages"]
    longest = max((s["seconds"] for s in stages), default=0) or 1
    rows = []
    for s in stages:
        name, _, rest = s["name"].partition("/")
        rows.append(
            {
                "name": name,
                "rest": rest,
                "time": clock(s["seconds"]),
                "cached": s["cached"],
                "share": round(100 * s["seconds"] / longest, 1),
            }
        )
    fresh = sum(s["seconds"] for s in stages if not s["cached"])
    saved = sum(s["seconds"] for s in stages if s["cached"])
    return {"rows": rows, "total": clock(fresh), "saved": clock(saved) if saved else None}


def _environment(manifest: Manifest) -> dict[str, Any]:
    host = manifest["host"]
    cores = f"{host['cores']} usable" + (f", {host['physical_cores']} physical" if host.get("physical_cores") else "")
    vnni = {True: "yes", False: "no: int8 is slower here, and full-range int8 sums can saturate", None: "not known"}[
        host.get("vnni")
    ]
    machine = [
        ("processor", host["cpu"]),
        ("cores", cores),
        ("instructions", ", ".join(host["flags"]) or DASH),
        ("VNNI or dot products", vnni),
        ("memory", size(host.get("memory_bytes"))),
        ("governor", host.get("governor") or DASH),
        ("system", host["os"]),
        ("Python", host["python"]),
    ]
    timing = []
    for m in manifest["measurements"]:
        e = m["environment"]
        load = [f"{v:.2f}" for v in e.get("load_average", []) if v is not None]
        hot = [f"{v:.0f}" for v in e.get("temperature_c", []) if v is not None]
        timing.append(
            {
                "artifact": m["artifact"],
                "batch": m["batch"],
                "threads": m["threads"],
                "providers": _providers(m["providers"]),
                "runtime": ", ".join(f"{k} {v}" for k, v in e["runtime"].items() if k != "numpy"),
                "load": " to ".join(load) or DASH,
                "temperature": f"{' to '.join(hot)} °C" if hot else DASH,
                "warm_up": f"{number(m['warm_up']['count'])} calls, {duration(m['warm_up']['seconds'])}",
                "blocks": f"{m['blocks']['count']} × {m['blocks']['calls']}",
                "sha256": e["artifact_sha256"][:12],
            }
        )
    return {"machine": machine, "packages": sorted(host["packages"].items()), "timing": timing}
