"""One process in which Qualcomm's compiler or HTP simulator runs one graph, apart from everything else.

They are native code that may crash, they count what they have compiled in this process into the binary (so that only a fresh one
gives the same bytes), and registering them changes the ONNX Runtime of the whole process.

Reads messages from standard input and answers each on standard output; a message is told (JSON) and arrays (npz):
compile {file, options, out}  -> {"nodes": {provider: count}}     out "": the graph is only tried, nothing is written
load {file, options}          -> {"nodes"}
run {} + inputs               -> {} + outputs
A failure is told as {"error": message}; the end of the input ends the process. options: backend_path, soc_model.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import signal
import struct
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

PROVIDER = "QNNExecutionProvider"
_LENGTHS = struct.Struct("<QQ")


def send(stream: BinaryIO, told: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> None:
    """Write one message."""
    packed = io.BytesIO()
    if arrays:
        np.savez(packed, *arrays.values())
    head = json.dumps([told, list(arrays or ())]).encode()
    stream.write(_LENGTHS.pack(len(head), packed.tell()) + head + packed.getvalue())
    stream.flush()


def receive(stream: BinaryIO) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """Read one message; None at the end of the stream."""
    lengths = stream.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        return None
    head, size = _LENGTHS.unpack(lengths)
    told, names = json.loads(stream.read(head))
    packed = stream.read(size)
    if not size:
        return told, {}
    with np.load(io.BytesIO(packed), allow_pickle=False) as file:
        return told, {name: file[f"arr_{i}"] for i, name in enumerate(names)}


def main() -> int:
    """Obey until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group: the parent decides
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # the libraries print
    session: Any = None
    while message := receive(sys.stdin.buffer):
        told, arrays = message
        try:
            if told["do"] == "run":
                names = [value.name for value in session.get_outputs()]
                taken = {value.name: arrays[value.name] for value in session.get_inputs()}
                send(answers, {}, dict(zip(names, session.run(names, taken), strict=True)))
                continue
            session = _session(told["file"], told["options"], told.get("out", ""))
            send(answers, {"nodes": _nodes(session)})
        except Exception as error:  # whatever the runtime raises ends here: the parent names the graph
            send(answers, {"error": f"{type(error).__name__}: {error}"})
    return 0


def _session(file: str, options: Mapping[str, Any], out: str) -> Any:
    import onnxruntime as ort

    qnn = importlib.import_module("onnxruntime_qnn")  # has no types

    ort.register_execution_provider_library(PROVIDER, qnn.get_library_path())
    devices = [device for device in ort.get_ep_devices() if device.ep_name == PROVIDER]
    settings = ort.SessionOptions()
    settings.log_severity_level = 3  # errors: names the nodes that HTP does not take
    settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    provider = {"backend_path": options.get("backend_path") or qnn.get_qnn_htp_path(), "soc_model": str(options["soc_model"])}
    if out:
        provider["htp_graph_finalization_optimization_mode"] = "3"
        settings.add_session_config_entry("ep.context_enable", "1")
        settings.add_session_config_entry("ep.context_embed_mode", "1")
        settings.add_session_config_entry("ep.context_file_path", out)
    settings.add_provider_for_devices(devices[:1], provider)
    return ort.InferenceSession(Path(file).read_bytes() if out else file, settings)  # the binary names its source's path


def _nodes(session: Any) -> dict[str, int]:
    taken: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        taken[part.ep_name] += len(part.get_nodes())
    return dict(taken)


if __name__ == "__main__":
    sys.exit(main())
