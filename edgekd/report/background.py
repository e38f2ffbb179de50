"""How the run came about: training, pipeline, environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import charts
from .formats import DASH, Metric, clock, duration, number, share, size
from .words import Manifest, adapters, how, providers


def training(manifest: Manifest, metric: Metric) -> dict[str, Any] | None:
    """Return the curves and facts of the training; None where nothing was trained."""
    history = manifest["training"]
    if not history or not history["epochs"]:
        return None
    epochs = history["epochs"]
    teacher = manifest["scores"].get("teacher")
    best = history["best_epoch"]
    return {
        "losses": charts.losses(epochs),
        "validation": charts.curves(
            {"validation": [e["validation"] for e in epochs]},
            "epoch",
            metric.tick,
            mark=best,
            reference=("teacher*", teacher) if teacher is not None else None,
            first=epochs[0]["epoch"],
        ),
        "facts": [
            ("epochs", f"{len(epochs)}, the weights of epoch {best} kept"),
            ("steps", number(history["steps"])),
            ("speed", f"{number(history['images_per_second'])} samples a second"),
            ("time in steps", clock(sum(e["seconds"] for e in epochs))),
            *([("adapters", adapters(history["lora"]))] if history.get("lora") else []),
        ],
        "teacher": metric.score(teacher) if teacher is not None else None,
        "warnings": history.get("warnings", []),
    }


def pipeline(manifest: Manifest) -> dict[str, Any]:
    """Return the stages with their times, and what the finished ones saved."""
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


def environment(manifest: Manifest) -> dict[str, Any]:
    """Return the machine, the packages, and what surrounded each measurement."""
    host = manifest["host"]
    return {
        "machine": machine(host),
        "packages": sorted(host["packages"].items()),
        "timing": [around(m) for m in manifest["measurements"]],
    }


def machine(host: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what a machine is, from host.describe() there; what it does not tell is a dash."""
    cores = f"{host['cores']} usable" if host.get("cores") else DASH
    if host.get("physical_cores"):
        cores += f", {host['physical_cores']} physical"
    vnni = {
        True: "yes",
        False: "no: sums of int8 products take several instructions instead of one, and those of full-range weights can saturate",
        None: "not known",
    }[host.get("vnni")]
    rate = host.get("frequency_mhz") or {}
    ends = [f"{rate[end]:,.0f}" for end in ("min", "max") if rate.get(end)]
    more = [("clock rate", f"{' to '.join(ends)} MHz")] if ends else []
    if host.get("quota_cores"):
        more.append(("container's quota", f"{host['quota_cores']:g} cores"))
    if host.get("virtual_machine") is not None:
        more.append(("virtual machine", "yes" if host["virtual_machine"] else "no"))
    return [
        ("processor", host.get("cpu") or DASH),
        ("cores", cores),
        ("instructions", ", ".join(host.get("flags") or []) or DASH),
        ("VNNI or dot products", vnni),
        ("memory", size(host.get("memory_bytes"))),
        ("governor", host.get("governor") or DASH),
        ("system", host.get("os") or DASH),
        ("Python", host.get("python") or DASH),
        *more,
    ]


def around(measurement: Mapping[str, Any]) -> dict[str, Any]:
    """Return what surrounded one measurement: threads, providers, versions, warm-up, blocks, load, temperature, file."""
    m, e = measurement, measurement.get("environment") or {}
    load = [f"{v:.2f}" for v in e.get("load_average") or [] if v is not None]
    hot = [f"{v:.0f}" for v in e.get("temperature_c") or [] if v is not None]
    warm_up, blocks = m.get("warm_up"), m.get("blocks")
    return {
        "artifact": m["artifact"],
        "how": how(m),
        "threads": m.get("threads") or DASH,
        "providers": providers(m.get("providers") or {}) or DASH,
        "runtime": ", ".join(f"{k} {v}" for k, v in (e.get("runtime") or {}).items() if k != "numpy") or DASH,
        "load": (" to ".join(load) or DASH) + (f", {share(e['others'])} by others" if e.get("others") is not None else ""),
        "temperature": f"{' to '.join(hot)} °C" if hot else DASH,
        "warm_up": f"{number(warm_up['count'])} calls, {duration(warm_up['seconds'])}" if warm_up else DASH,
        "blocks": f"{blocks['count']} × {blocks['calls']}" if blocks else DASH,
        "sha256": (e.get("artifact_sha256") or DASH)[:12],
    }
