"""The file format of ONNX Runtime's mobile builds (.ort, a FlatBuffer): write it, and see what is in it.

ONNX Runtime writes the kernels' type names in the order of a hash table, which is another one at every run. `canonical` puts
them in order, so that the same model gives the same bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import BadInput, first_line

_IDENTIFIER = b"ORTM"


def write(source: Path, file: Path) -> None:
    """Convert an ONNX file for ARM processors: every optimisation is made now, for the CPU ("Fixed" is what ONNX Runtime calls it).

    Layouts that x86 alone has are left out. Raises BadInput for a model that ONNX Runtime cannot load.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(file)
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.add_session_config_entry("session.qdqisint8allowed", "1")  # ARM has kernels for signed activations
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"], disabled_optimizers=["NchwcTransformer"])
    except Exception as error:  # the binding's exceptions share no base
        reason = first_line(error)
        raise BadInput(f"{source}: ONNX Runtime cannot write it as .ort: {reason}") from None
    file.write_bytes(canonical(file.read_bytes()))


def canonical(content: bytes) -> bytes:
    """Return the same file with its kernel types sorted by operator. Everything else keeps its bytes."""
    import flatbuffers

    fbs = _schema()
    old = fbs.InferenceSession.InferenceSession.GetRootAs(content, 0)
    model, resolver = old.Model(), old.KernelTypeStrResolver()
    table = model._tab.Pos
    start = min(table, table - int.from_bytes(content[table : table + 4], "little", signed=True))  # where its vtable lies
    if resolver is None or resolver._tab.Pos > start:
        raise AssertionError("ONNX Runtime lays .ort files out in another way than edgekd knows")
    # A FlatBuffer is written from its end, and what is written points to what was before: the model's bytes stand for themselves.
    builder = flatbuffers.Builder(2 * len(content))
    blob = content[start:]
    builder.minalign = 16  # of the whole: what lies in the model is aligned as seen from the end
    builder.head -= len(blob)
    builder.Bytes[builder.head : builder.head + len(blob)] = blob
    at = builder.Offset() - (table - start)
    types = _write_types(builder, fbs, resolver)
    version = builder.CreateString(old.OrtVersion())
    fbs.InferenceSession.InferenceSessionStart(builder)
    fbs.InferenceSession.InferenceSessionAddOrtVersion(builder, version)
    fbs.InferenceSession.InferenceSessionAddModel(builder, at)
    fbs.InferenceSession.InferenceSessionAddKernelTypeStrResolver(builder, types)
    builder.Finish(fbs.InferenceSession.InferenceSessionEnd(builder), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


def _write_types(builder: Any, fbs: Any, resolver: Any) -> int:
    """Write the resolver anew: operator -> type name -> which arguments have that type."""
    operators = [resolver.OpKernelTypeStrArgs(i) for i in range(resolver.OpKernelTypeStrArgsLength())]
    written = []
    for operator in sorted(operators, key=lambda one: one.OpId()):
        named = [operator.KernelTypeStrArgs(i) for i in range(operator.KernelTypeStrArgsLength())]
        entries = []
        for entry in sorted(named, key=lambda one: one.KernelTypeStr()):
            arguments = []
            for argument in (entry.Args(i) for i in range(entry.ArgsLength())):
                fbs.ArgTypeAndIndex.ArgTypeAndIndexStart(builder)
                fbs.ArgTypeAndIndex.ArgTypeAndIndexAddArgType(builder, argument.ArgType())
                fbs.ArgTypeAndIndex.ArgTypeAndIndexAddIndex(builder, argument.Index())
                arguments.append(fbs.ArgTypeAndIndex.ArgTypeAndIndexEnd(builder))
            listed = _vector(builder, arguments)
            name = builder.CreateString(entry.KernelTypeStr())
            fbs.KernelTypeStrArgsEntry.KernelTypeStrArgsEntryStart(builder)
            fbs.KernelTypeStrArgsEntry.KernelTypeStrArgsEntryAddKernelTypeStr(builder, name)
            fbs.KernelTypeStrArgsEntry.KernelTypeStrArgsEntryAddArgs(builder, listed)
            entries.append(fbs.KernelTypeStrArgsEntry.KernelTypeStrArgsEntryEnd(builder))
        listed = _vector(builder, entries)
        name = builder.CreateString(operator.OpId())
        fbs.OpIdKernelTypeStrArgsEntry.OpIdKernelTypeStrArgsEntryStart(builder)
        fbs.OpIdKernelTypeStrArgsEntry.OpIdKernelTypeStrArgsEntryAddOpId(builder, name)
        fbs.OpIdKernelTypeStrArgsEntry.OpIdKernelTypeStrArgsEntryAddKernelTypeStrArgs(builder, listed)
        written.append(fbs.OpIdKernelTypeStrArgsEntry.OpIdKernelTypeStrArgsEntryEnd(builder))
    listed = _vector(builder, written)
    fbs.KernelTypeStrResolver.KernelTypeStrResolverStart(builder)
    fbs.KernelTypeStrResolver.KernelTypeStrResolverAddOpKernelTypeStrArgs(builder, listed)
    return int(fbs.KernelTypeStrResolver.KernelTypeStrResolverEnd(builder))


def _vector(builder: Any, offsets: list[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def operators(file: Path) -> Counter[tuple[str, int, str]]:
    """Count a file's nodes, those of branches and loops too: (domain, since which version of it, operator) -> how many.

    Raises BadInput for what is no .ort file.
    """
    found: Counter[tuple[str, int, str]] = Counter()
    for node in _nodes(_graph(file)):
        found[(node.Domain() or b"").decode() or "ai.onnx", node.SinceVersion(), node.OpType().decode()] += 1
    return found


def _graph(file: Path) -> Any:
    content = file.read_bytes()
    try:
        if content[4:8] != _IDENTIFIER:
            raise ValueError("it does not begin as one")
        return _schema().InferenceSession.InferenceSession.GetRootAs(content, 0).Model().Graph()
    except Exception as error:  # what a damaged FlatBuffer raises depends on where it is damaged
        raise BadInput(f"{file}: cannot be read as an .ort file ({error or type(error).__name__})") from None


def _nodes(graph: Any) -> Iterator[Any]:
    for node in (graph.Nodes(i) for i in range(graph.NodesLength())):
        yield node
        for attribute in (node.Attributes(i) for i in range(node.AttributesLength())):
            if attribute.G() is not None:
                yield from _nodes(attribute.G())


def _schema() -> Any:
    """Return ONNX Runtime's own FlatBuffer classes, each in a module of its name."""
    import onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs as fbs
    from onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs import (  # noqa: F401 - so that they are attributes of fbs
        ArgTypeAndIndex,
        InferenceSession,
        KernelTypeStrArgsEntry,
        KernelTypeStrResolver,
        OpIdKernelTypeStrArgsEntry,
    )

    return fbs
