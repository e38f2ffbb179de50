"""Words and numbers that several sections share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Manifest = Mapping[str, Any]

METHODS = {
    "none": "full precision",
    "ptq": "post-training",
    "dynamic": "dynamic",
    "round-to-nearest": "round to nearest",
    "quantized-distillation": "quantized distillation",
    "differentiable": "differentiable quantization",
    "lora": "adapters (LoRA)",
}


STATUS = {"passed": "passed", "failed": "failed", "not_verified": "not verified"}


def status(verdict: Mapping[str, Any]) -> str:
    """Say the verdict, and who executed what was judged where it was not the runtime itself: passed by simulator."""
    by = verdict.get("by")
    return STATUS[verdict["status"]] + (f" by {by}" if by not in (None, "runtime") else "")


def targets(manifest: Manifest) -> list[str]:
    """Return the names of all targets that the manifest speaks of, in its order."""
    named = [*manifest["chosen"], *(key.partition("/")[0] for key in [*manifest["verdicts"], *manifest["artifacts"]])]
    return list(dict.fromkeys(named))


def short(artifact: str) -> str:
    """Return the variant of an artifact's name."""
    return artifact.rpartition("/")[2]


def how(told: Mapping[str, Any], batch: bool = True) -> str:
    """Say in which way a measurement or comparison was timed: single-stream, batch 1; older records have no scenario."""
    parts = [told.get("scenario") or "single-stream", f"batch {told.get('batch') or 1}" if batch else ""]
    parts.append(f"{told['streams']} at once" if told.get("streams") else "")
    return ", ".join(part for part in parts if part)


def unusual(told: Mapping[str, Any]) -> str:
    """Say what sets a way of timing apart from one call after another, begun rested: several at once, or minutes; else ""."""
    if told.get("streams"):
        return f"{told['streams']} at once"
    return "sustained" if told.get("scenario") == "sustained" else ""


def one_way(
    target: str, measurements: Sequence[Mapping[str, Any]], comparisons: Sequence[Mapping[str, Any]]
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Return those of a target that were timed in one way: one device, scenario, batch and number of streams.

    It is the first that is one call after another; the first of any kind where there is none. What is shipped, and how fast it
    is said to be, rests on these alone: of streams and sustained runs a call's length is another quantity.
    """
    mine = [m for m in measurements if m["artifact"].startswith(f"{target}/")]
    first = next((m for m in mine if not unusual(m)), mine[0] if mine else None)
    if first is None:
        return [], []
    told = [c for c in comparisons if c["candidate"].startswith(f"{target}/")]
    return [m for m in mine if _way(m) == _way(first)], [c for c in told if _way(c) == _way(first)]


def _way(told: Mapping[str, Any]) -> tuple[str, str]:
    return told.get("device") or "local", how(told)


def where(device: str) -> str:
    """Say on which device something was timed."""
    return "on this machine" if device == "local" else f"on {device}"


def sentence(words: str) -> str:
    """Begin with a capital, end with a full stop."""
    words = words.strip()
    return words[:1].upper() + words[1:] + ("" if words.endswith((".", "!", "?")) else ".")


def kind_of(comparison: Mapping[str, Any]) -> str:
    """Read a comparison's verdict: the candidate is faster (good), slower (bad), no different (same), or nobody knows (unsure)."""
    said = comparison.get("verdict") or ""
    if said.startswith("no difference"):
        return "same"
    if said.startswith(("cannot tell", "too few")):  # before what names may hold
        return "unsure"
    return "bad" if " SLOWER than " in said else "good" if " faster than " in said else "unsure"


def of_the_model(path: str) -> bool:
    """Say whether a file of an artifact is the model itself, not what checks or builds it."""
    return not path.endswith((".npz", ".py", ".html", ".config"))


def shipped_bytes(manifest: Manifest, key: str) -> int | None:
    """Bytes of an artifact's model files: what is needed on the device, without golden samples and what checks or builds there."""
    artifact = manifest["artifacts"].get(key)
    if artifact is None:
        return None
    files = [f for f in artifact["files"] if of_the_model(f["path"])]
    return sum(f["bytes"] for f in files) or None


def providers(providers: Mapping[str, int]) -> str:
    """Say which execution providers took how many nodes."""
    return ", ".join(f"{name.removesuffix('ExecutionProvider')} {nodes} nodes" for name, nodes in providers.items())


def method(variant: Mapping[str, Any]) -> str:
    """Say how a variant was made: quantized distillation, then differentiable quantization."""
    names = variant.get("facts", {}).get("methods") or variant["method"].split(" + ")
    return ", then ".join(METHODS.get(name, name) for name in names)


def adapters(told: Mapping[str, Any]) -> str:
    """Say what was trained of a network that learnt by adapters, and how far the merged one lies from it."""
    share = told["trained"] / max(told["parameters"], 1)
    return (
        f"rank {told['rank']} in {told['layers']} layers, {100 * share:.2g} % as many numbers as the network has; merged, its outputs "
        f"differ by at most {told['max_relative_difference']:.1e} of the largest"
    )


def numbers(manifest: Manifest, name: str) -> str:
    """Say what numbers a variant is made of: 4-bit weights in buckets of 256, learned ends."""
    scheme = manifest["variants"][name]["scheme"]
    weights, activations = scheme.get("weights"), scheme.get("activations")
    if not weights and not activations:
        label = scheme.get("label") or "fp32"
        return "float32" if label == "fp32" else str(label)
    parts = []
    if weights:
        bits = [str(b) for b in weight_bits(manifest, name)]
        each = f"{', '.join(bits[:-1])} and {bits[-1]}" if len(bits) > 1 else bits[0]
        grain = f"in buckets of {weights['group']}" if weights.get("group") else f"per {weights.get('granularity', 'tensor')}"
        if weights.get("kind") == "codebook":
            levels = [f"{1 << b}" for b in weight_bits(manifest, name)]
            points = levels[0] if len(levels) == 1 else f"{levels[0]} to {levels[-1]}"
            parts.append(f"{each}-bit weights, a codebook of {points} learned points a tensor, scaled {grain}")
        else:
            parts.append(f"{each}-bit weights {grain}")
        if _recipe(manifest, name).get("scale") == "learned":
            parts.append("learned ends")
    if activations:
        parts.append(f"{activations['bits']}-bit activations" + " scaled at each call" * bool(activations.get("dynamic")))
    return ", ".join(parts)


def weight_bits(manifest: Manifest, name: str) -> list[int]:
    """Return the bits of a variant's weights, ascending: several where a budget gave each tensor its own."""
    variant = manifest["variants"][name]
    tensors = variant.get("facts", {}).get("tensors")
    if tensors:
        return sorted({tensor["bits"] for tensor in tensors})
    return sorted(variant["scheme"].get("mixed") or [variant["scheme"]["weights"]["bits"]])


def weights_alone(manifest: Manifest, name: str) -> bool:
    """Say whether a variant stores weights in few bits and computes in floating point all the same."""
    scheme = manifest["variants"].get(name, {}).get("scheme", {})
    return bool(scheme.get("weights")) and not scheme.get("activations")


def stored(manifest: Manifest, names: Sequence[str]) -> str:
    """Say in how many bits the weights of some variants are stored: 1 bit, 4 bits, 2 to 8 bits."""
    bits = sorted({b for name in names for b in weight_bits(manifest, name)})
    if len(bits) > 1:
        return f"{bits[0]} to {bits[-1]} bits"
    return f"{bits[0]} bit{'' if bits[0] == 1 else 's'}"


def gain(manifest: Manifest, comparisons: Sequence[Mapping[str, Any]]) -> str:
    """Say what storing weights in fewer bits has brought to candidates that are no faster than their control."""
    sizes = [[shipped_bytes(manifest, c[role]) for role in ("candidate", "control")] for c in comparisons]
    smaller = all(mine and theirs and mine < theirs for mine, theirs in sizes)
    return "smaller, not faster" if smaller else "not faster"


def _recipe(manifest: Manifest, name: str) -> Mapping[str, Any]:
    return next((v for v in manifest["recipe"].get("quantize", []) if v.get("name") == name), {})
