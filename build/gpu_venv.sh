#!/usr/bin/env bash
# The twin of a bare GPU machine, on a CPU: Python 3.12 with the versions that it has, nothing of ours. 5 GB, two minutes.
# usage: build/gpu_venv.sh VENV_DIR        (PYTHON=/path/to/python3.12 chooses the interpreter)
set -euo pipefail
venv=${1:?usage: build/gpu_venv.sh VENV_DIR}

fits() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null; }

python=""
for candidate in ${PYTHON:-} python3 python3.12 "$HOME"/.pyenv/versions/3.12*/bin/python3; do
  if command -v "$candidate" >/dev/null && fits "$candidate"; then python=$(command -v "$candidate"); break; fi
done
if [ -z "$python" ]; then
  "$(dirname "$0")/system_packages.sh" python3.12 python3.12-venv
  python=$(command -v python3.12)
fi
mkdir -p "$(dirname "$venv")"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
# torch names triton 3.6.0 and the CUDA libraries that it was built with; without a GPU they are there and asleep.
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.11.0 triton==3.6.0 numpy==2.5.2 \
  onnx==1.23.2 onnxruntime==1.30.0 safetensors==0.8.0 tokenizers==0.23.3 pytest==9.2.0 hypothesis
