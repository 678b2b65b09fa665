"""Imports the real enterprise TensorRT bindings on a machine that has no TensorRT, to read names and signatures.

    python enterprise_bindings.py WORK_DIR < names.json -> {"version", "missing": [...], "doc": {name: first doc lines}}

The wheel `tensorrt-cu13-bindings` holds the extension module without the libraries behind it (those come from NVIDIA's
own index). Nine C functions link the two. In a copy of the module they are marked weak, so that the loader lets them
be absent, and the libraries that it asks for are links to one that every machine has. Nothing of it can be called.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import struct
import sys
from pathlib import Path

LINKS = (
    b"createInferBuilder_INTERNAL",
    b"createInferRefitter_INTERNAL",
    b"createInferRuntime_INTERNAL",
    b"createNvOnnxParserRefitter_INTERNAL",
    b"createNvOnnxParser_INTERNAL",
    b"getBuilderPluginRegistry",
    b"getNvOnnxParserVersion",
    b"getPluginRegistry",
    b"initLibNvInferPlugins",
)
LIBRARY = re.compile(rb"lib(?:nvinfer|nvinfer_plugin|nvonnxparser)\.so\.\d+")
SECTION = struct.Struct("<IIQQQQIIQQ")  # Elf64_Shdr
DYNSYM, WEAK, UNDEFINED = 11, 2, 0


def weaken(path: Path) -> set[str]:
    """Marks the linking symbols of an ELF64 file weak; returns the libraries that it needs."""
    data = bytearray(path.read_bytes())
    table, size, count = struct.unpack_from("<Q", data, 40)[0], *struct.unpack_from("<HH", data, 58)
    sections = [SECTION.unpack_from(data, table + i * size) for i in range(count)]
    symbols = next(s for s in sections if s[1] == DYNSYM)
    strings = sections[symbols[6]]
    for at in range(symbols[4], symbols[4] + symbols[5], 24):  # Elf64_Sym
        name, info, _, section = struct.unpack_from("<IBBH", data, at)
        start = strings[4] + name
        if section == UNDEFINED and bytes(data[start : data.index(0, start)]) in LINKS:
            data[at + 4] = WEAK << 4 | info & 15
    path.write_bytes(data)
    text = bytes(data[strings[4] : strings[4] + strings[5]])
    return {match.decode() for match in LIBRARY.findall(text)}


def prepare(work: Path) -> None:
    """Puts an importable copy of the bindings, and the libraries that they ask for, into `work`."""
    spec = importlib.util.find_spec("tensorrt_bindings")
    if spec is None or spec.origin is None:
        sys.exit("tensorrt_bindings: expected the wheel tensorrt-cu13-bindings, which is not installed")
    shutil.copytree(Path(spec.origin).parent, work / "tensorrt_bindings")
    stand_in = next(
        line.split()[-1]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if re.search(r"/libc[.-][^/]*so", line)
    )
    for library in weaken(work / "tensorrt_bindings" / "tensorrt.so"):
        (work / library).symlink_to(stand_in)


def report(names: list[str]) -> dict[str, object]:
    import tensorrt_bindings as trt

    missing, docs = [], {}
    for name in names:
        value: object = trt
        for part in name.split("."):
            value = getattr(value, part, None)
        if value is None:
            missing.append(name)
        docs[name] = " ".join((getattr(value, "__doc__", None) or "").split())[:400]
    return {"version": trt.__version__, "missing": missing, "doc": docs}


if __name__ == "__main__":
    work = Path(sys.argv[1])
    if "READY" not in os.environ:  # the loader reads its path when a process starts
        prepare(work)
        found = {"LD_LIBRARY_PATH": str(work), "PYTHONPATH": str(work), "READY": "1"}
        os.execve(sys.executable, [sys.executable, __file__, str(work)], {**os.environ, **found})
    print(json.dumps(report(json.load(sys.stdin))))
