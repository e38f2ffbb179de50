"""A copy of ONNX Runtime that does not see some of this processor's instructions, and so runs the kernels that it has for older ones.

ONNX Runtime asks the processor (cpuid, leaf 7) once, where MLAS, its matrix library, chooses kernels; there is no option for it. The copy
differs in the bits that are tested there, nothing else. Looked for by the bytes of the tests, in any build that has them in this order.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

_AVX_VNNI = re.compile(rb"\xb8\x07\x00\x00\x00\xb9\x01\x00\x00\x00\x0f\xa2\xa8(?=\x10)")
"""mov eax, 7; mov ecx, 1; cpuid; test al, 0x10: leaf 7, subleaf 1, EAX bit 4."""
_AVX512_VNNI = re.compile(rb"\x81[\xe0-\xe7](?=\x00\x08\x00\x00)")
"""and r32, 0x800: of leaf 7, ECX bit 11."""
_AVX512F = re.compile(rb"\xf7[\xc0-\xc7](?=\x00\x00\x01\x00)")
"""test r32, 0x10000: of leaf 7, EBX bit 16."""
_NEAR = 0x400
"""The other tests follow the first within so many bytes."""

FLAGS = {
    "no-vnni": {"avx512_vnni", "avx_vnni"},
    "avx2": {
        "avx512_vnni", "avx_vnni", "avx512f", "avx512dq", "avx512ifma", "avx512cd", "avx512bw", "avx512vl", "avx512_bf16", "avx512vbmi",
        "avx512_vbmi2", "avx512_bitalg", "avx512_vpopcntdq", "avx512_fp16",
    },
}  # fmt: skip
"""Kernels -> the flags of /proc/cpuinfo that a processor which needs them lacks."""
NOT_COVERED = {"avx_vnni_int8", "amx_int8"}
"""Other instructions that MLAS has int8 kernels for: on a processor with one, leaving out VNNI does not give an older one's kernels."""


def copy(kernels: str, folder: Path) -> list[str]:
    """Copy the installed onnxruntime into `folder` and make it choose `kernels` (of FLAGS); return the places that were changed.

    Raises SystemExit where the library does not have the tests that are looked for.
    """
    import onnxruntime

    shutil.copytree(Path(onnxruntime.__file__).parent, folder / "onnxruntime", ignore=shutil.ignore_patterns("__pycache__"))
    (library,) = (folder / "onnxruntime" / "capi").glob("onnxruntime_pybind11_state*.so")
    code = bytearray(library.read_bytes())
    changed = []
    for first in _AVX_VNNI.finditer(bytes(code)):
        after = bytes(code[first.end() : first.end() + _NEAR])
        found = [list(test.finditer(after)) for test in (_AVX512_VNNI, _AVX512F)]
        if any(len(places) != 1 for places in found):
            raise SystemExit(
                f"{library.name}: the tests after {first.start():#x} are not those of the build this was written for"
            )
        vnni, avx512 = (first.end() + places[0].end() for places in found)
        code[first.end()] = 0  # test al, 0
        code[vnni + 1] = 0  # and r32, 0
        changed.append(f"{first.start():#x} {vnni:#x}")
        if kernels == "avx2":
            code[avx512 + 2] = 0  # test r32, 0
            changed[-1] += f" {avx512:#x}"
    if not changed:
        raise SystemExit(f"{library.name}: no test for AVX-VNNI found; nothing to switch off")
    library.write_bytes(code)
    return changed


def cpuinfo_without(flags: set[str], text: str) -> str:
    """Return /proc/cpuinfo as a processor without these flags would have it."""

    def cut(match: re.Match[str]) -> str:
        return match[1] + " ".join(flag for flag in match[2].split() if flag not in flags)

    return re.sub(r"^(flags\s*: )(.*)$", cut, text, flags=re.MULTILINE)
