"""`make gpu-kit`: fills a folder with what a bare GPU machine needs to run `gpu_day.sh` there.

    python pack.py DIR [--python PYTHON]

project.tgz   the tracked and untracked files of this tree, without checkpoints and media
wheels/       what the machine lacks, for its Python; those that it has are not used there
kernels.tgz   Triton's cache for sm_90, compiled by the Triton that PYTHON has: its keys hold that library's hash

At most 60 MiB together, or exit code 1. TensorRT-RTX's library alone is 62 MiB packed as small as xz can: it stays
here, and the stage that asks it says so.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[3]
MOST_BYTES = 60 << 20
CACHE = ROOT / "build/cache/gpu-kit"
CUDNN = "nvidia-cudnn-frontend==1.18.0"  # not pinned: only this kit measures it
# Beside these the machine has torch, triton, numpy, onnx, onnxruntime, safetensors, tokenizers, pytest, hypothesis.
WHEELS = ("msgspec", "PyJWT", "orjson", "onnxscript", "onnx-ir", "pytest-timeout", "pytest-asyncio", CUDNN)
LEFT_OUT = ("checkpoints/", "client/demo_media/", "shared/", "docs/", "tests/bench/results/")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--python", type=Path, help="of the machine's versions; without it no kernels are compiled")
    args = parser.parse_args()
    fill(args.directory)
    if args.python is not None:
        kernels(args.python, args.directory)
    files = [file for file in args.directory.rglob("*") if file.is_file() and "results" not in file.parts]
    size = sum(file.stat().st_size for file in files)
    for file in sorted(files):
        print(f"{file.stat().st_size / 2**20:8.2f} MiB  {file.relative_to(args.directory)}")
    print(f"{size / 2**20:8.2f} MiB  of at most {MOST_BYTES >> 20}; there: bash gpu_day.sh")
    return 0 if size <= MOST_BYTES else 1


def fill(directory: Path) -> None:
    """Everything but the kernels."""
    directory.mkdir(parents=True, exist_ok=True)
    CACHE.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(HERE / "gpu_day.sh", directory / "gpu_day.sh")
    (directory / "project.tgz").write_bytes(project())
    wheels(directory / "wheels")


def project() -> bytes:
    """The tree as it lies here, as a packed archive."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name in sorted(set(filter(None, names))):
            if not name.startswith(LEFT_OUT) and (ROOT / name).is_file():
                tar.add(ROOT / name, name)
    return packed.getvalue()


def wheels(directory: Path) -> None:
    """In the versions that the project pins; downloads are kept for the next kit."""
    lines = (ROOT / "build/constraints.txt").read_text().lower().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for wanted in WHEELS:
        name, _, version = wanted.lower().partition("==")
        version = version or pins[name]
        pattern = f"{name.replace('-', '_')}-{version}-*.whl"
        if not any(CACHE.glob(pattern)):
            platforms = [f"--platform=manylinux_2_{n}_x86_64" for n in (28, 27, 24, 17)]
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
            command += ["--only-binary=:all:", "--python-version=3.12", "--implementation=cp", *platforms]
            subprocess.run([*command, "--dest", str(CACHE), f"{name}=={version}"], check=True)
        shutil.copy(next(CACHE.glob(pattern)), directory)


def kernels(python: Path, kit: Path) -> None:
    """Compiled kernels and what Triton wrote about them; what they were compiled from is left out."""
    site, cache = CACHE / "site", CACHE / "kernels"
    for wheel in (kit / "wheels").glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(site)
    env = {**os.environ, "TRITON_CACHE_DIR": str(cache), "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(site)}
    subprocess.run([str(python), str(HERE / "prewarm.py")], cwd=ROOT, env=env, check=True)
    with tarfile.open(kit / "kernels.tgz", "w:gz") as tar:
        for file in sorted(cache.rglob("*")):
            if file.suffix in (".cubin", ".json"):
                tar.add(file, str(file.relative_to(cache)))


if __name__ == "__main__":
    sys.exit(main())
