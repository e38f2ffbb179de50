"""How the run came about: training, pipeline, environment."""

from __future__ import annotations

from typing import Any

from . import charts
from .formats import DASH, Metric, clock, duration, number, size
from .words import Manifest, providers


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
            ("speed", f"{number(history['images_per_second'])} pictures a second"),
            ("time in steps", clock(sum(e["seconds"] for e in epochs))),
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
                "providers": providers(m["providers"]),
                "runtime": ", ".join(f"{k} {v}" for k, v in e["runtime"].items() if k != "numpy"),
                "load": " to ".join(load) or DASH,
                "temperature": f"{' to '.join(hot)} °C" if hot else DASH,
                "warm_up": f"{number(m['warm_up']['count'])} calls, {duration(m['warm_up']['seconds'])}",
                "blocks": f"{m['blocks']['count']} × {m['blocks']['calls']}",
                "sha256": e["artifact_sha256"][:12],
            }
        )
    return {"machine": machine, "packages": sorted(host["packages"].items()), "timing": timing}
