"""What is installed, and what works: found out by doing it on a tiny graph, not by looking at a version."""

from __future__ import annotations

import importlib.metadata
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import backends
from .targets import Target, all_targets

Finding = dict[str, Any]


def examine() -> list[Finding]:
    """Return one finding per part: {part, version, works, needed, says, remedy}."""
    checks: list[tuple[str, str, bool, Callable[[], str], str]] = [
        ("python", "", True, _python, "install Python 3.11 or newer"),
        ("torch", "torch", True, _torch, "pip install torch (CPU: add --index-url https://download.pytorch.org/whl/cpu)"),
        ("onnx export", "onnxscript", True, _export, "pip install edgekd"),
        ("onnxruntime", "onnxruntime", False, _onnxruntime, "pip install 'edgekd[onnxruntime]'"),
        ("nncf", "nncf", False, _nncf, "pip install 'edgekd[onnxruntime]'"),
        ("timm models", "timm", False, _timm, "pip install 'edgekd[timm]'"),
        ("transformers models", "transformers", False, _transformers, "pip install 'edgekd[transformers]'"),
        ("training", "accelerate", True, _accelerate, "pip install edgekd"),
        ("data sets", "datasets", True, _datasets, "pip install edgekd"),
        ("int8 on this CPU", "", False, _int8, ""),
    ]
    return [_finding(*check) for check in checks] + [_backend(name) for name in backends.names() if name != "onnxruntime"]


def _backend(name: str) -> Finding:
    """Convert a tiny network for the first target of a backend, and run it as far as this machine can."""
    told: Finding = {"part": name, "version": "", "works": False, "needed": False, "says": "", "remedy": ""}
    target = next((target for target in all_targets() if target.backend == name), None)
    try:
        backend = backends.backend_of(name)
        told["version"] = next((v for package, v in backends.packages_of(name).items() if package not in _EVERYWHERE), "")
        if reason := backend.missing():
            return told | {"says": reason}
        if target is None:
            return told | {"works": True, "says": "installed; no target uses it"}
        apart, means = _through(backend, target)
    except Exception as error:  # whatever breaks in somebody's installation is the finding
        return told | {"says": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
    if means.by is None:
        return told | {"works": True, "in_part": True, "says": f"converts, and does not run here: {means.why}"}
    return told | {"works": True, "says": f"converts; runs by {means.by}, {apart:.0e} from torch"}


_EVERYWHERE = ("onnx", "numpy", "onnxruntime")


def _through(backend: backends.Backend, target: Target) -> tuple[float, backends.Means]:
    """Return how far a tiny network's outputs lie from torch's, relative to the largest, and what executed it."""
    import numpy as np
    import torch

    from .export import onnx
    from .export.graph import Graph, torch_runner
    from .quantize.variant import Variant
    from .recipe import Scheme

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 3)).eval()
    graph = Graph("model", net, ("x",), ("y",), {"x": torch.ones(2, 3, 8, 8)}, {"x": {0: "batch"}})
    x = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        onnx.write(graph, Path(folder) / "model.onnx")
        variant = Variant("fp32", "none", Scheme(), Path(folder), {"model": Path(folder) / "model.onnx"}, reference="torch")
        made = Path(folder) / "made"
        made.mkdir()
        files = backend.convert(variant, target, made, lambda: [graph])
        means = backend.executes(target)
        session = backend.load(files["model"], target) if means.by else None
        if session is None:
            return float("nan"), means
        expected = torch_runner([graph])("model", {"x": x})["y"]
        error = np.abs(session.run({"x": x})["y"] - expected).max() / np.abs(expected).max()
    limit = 1e-4 if target.precision == "fp32" else 1e-2
    assert error < limit, f"outputs are {error:.1g} of the largest apart from torch's"
    return float(error), means


def _finding(part: str, package: str, needed: bool, check: Callable[[], str], remedy: str) -> Finding:
    version = ""
    try:
        version = importlib.metadata.version(package) if package else ""
        says = check()
        works = True
    except importlib.metadata.PackageNotFoundError:
        says, works = "not installed", False
    except Exception as error:  # whatever breaks in somebody's installation is the finding
        says, works = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", False
    return {"part": part, "version": version, "works": works, "needed": needed, "says": says, "remedy": "" if works else remedy}


def _python() -> str:
    return f"{platform.python_version()} on {platform.system()} {platform.machine()}"


def _torch() -> str:
    import torch

    total = float(torch.nn.Linear(4, 2)(torch.ones(3, 4)).detach().abs().sum())
    assert total == total
    return f"runs; {'CUDA ' + torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'}, {torch.get_num_threads()} threads"


def _tiny_model() -> Any:
    from onnx import TensorProto, helper

    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "tiny", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _export() -> str:
    import torch

    from .export import onnx
    from .export.graph import Graph

    graph = Graph("model", torch.nn.Linear(4, 2).eval(), ("x",), ("y",), {"x": torch.ones(2, 4)}, {"x": {0: "batch"}})
    with tempfile.TemporaryDirectory() as folder:
        onnx.write(graph, Path(folder) / "model.onnx")
    return "a small network exports"


def _onnxruntime() -> str:
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(_tiny_model().SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": np.array([[-1, 0, 1, 2]], np.float32)})
    assert y.tolist() == [[0, 0, 1, 2]]
    return f"runs; {', '.join(p.removesuffix('ExecutionProvider') for p in onnxruntime.get_available_providers())}"


def _nncf() -> str:
    import numpy as np
    from onnx import helper, numpy_helper, save

    from . import quantize
    from .recipe import Activations, VariantRecipe, Weights

    model = _tiny_model()
    model.graph.initializer.append(numpy_helper.from_array(np.eye(4, dtype=np.float32), "w"))
    del model.graph.node[:]
    model.graph.node.append(helper.make_node("MatMul", ["x", "w"], ["y"], name="linear"))
    wanted = VariantRecipe(name="int8", method="ptq", weights=Weights(bits=8), activations=Activations(bits=8))
    with tempfile.TemporaryDirectory() as folder:
        save(model, Path(folder) / "model.onnx")
        batches = [{"x": np.arange(4, dtype=np.float32)[None]}] * 4
        job = quantize.Job({"model": Path(folder) / "model.onnx"}, calibration=lambda graph, settings: iter(batches))
        made = quantize.make(wanted, job, Path(folder) / "int8")
    assert made.facts["nodes"]["model"]["int8"] == 1, made.facts
    return "quantizes a tiny graph to int8"


def _timm() -> str:
    from ._torchvision import ensure

    ensure()
    import timm

    return f"{len(timm.list_models())} architectures"


def _transformers() -> str:
    from ._torchvision import ensure

    ensure()
    from transformers import ViTConfig, ViTForImageClassification

    ViTForImageClassification(
        ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=8, patch_size=4)
    )
    return "a tiny ViT builds"


def _accelerate() -> str:
    from accelerate import Accelerator

    return f"device {Accelerator().device}"


def _datasets() -> str:
    from datasets import Dataset

    assert Dataset.from_dict({"a": [1, 2]})[1] == {"a": 2}
    return "reads a table"


def _int8() -> str:
    from .host import vnni

    if vnni():
        return "VNNI: int8 sums in 32 bits"
    return "no VNNI: int8 may be slower than fp32, weights keep to 7 bits (overflow fix)"


def table(findings: list[Finding]) -> Any:
    """Return the findings as a terminal table."""
    from rich.markup import escape
    from rich.table import Table

    made = Table(box=None, pad_edge=False, show_header=False)
    for f in findings:
        missing = "[red]missing[/]" if f["needed"] else "[yellow]missing[/]"
        mark = ("[yellow]partly[/]" if f.get("in_part") else "[green]ok[/]") if f["works"] else missing
        made.add_row(mark, f["part"], f["version"], escape(f"{f['says']}  →  {f['remedy']}" if f["remedy"] else f["says"]))
    return made
