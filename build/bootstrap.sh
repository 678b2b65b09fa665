#!/usr/bin/env bash
# Makes the virtual environment: finds a fitting Python, adds the system packages it lacks, installs pinned wheels.
# usage: build/bootstrap.sh VENV_DIR        (PYTHON=/path/to/python3.11 chooses the interpreter)
set -euo pipefail
venv=${1:?usage: build/bootstrap.sh VENV_DIR}

say() { printf '%s\n' "$*" >&2; }

install_packages() { "$(dirname "$0")/system_packages.sh" "$@"; }

fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; }

python=""
for candidate in ${PYTHON:-} python3 python3.12 python3.11 /usr/bin/python3; do
  if command -v "$candidate" >/dev/null && fits "$candidate"; then python=$(command -v "$candidate"); break; fi
done
if [ -z "$python" ]; then
  if apt-cache show python3.12 >/dev/null 2>&1; then version=3.12; else version=3.11; fi
  install_packages "python$version" "python$version-venv"
  python=$(command -v "python$version")
fi
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')

# Debian splits venv and the shared libpython (which Triton's Python backend loads) from the interpreter.
missing=()
"$python" -c 'import ensurepip' 2>/dev/null || missing+=("python$version-venv")
"$python" - <<'PROBE' || missing+=("libpython$version")
import ctypes, sys, sysconfig
name = sysconfig.get_config_var("INSTSONAME") or ""
paths = [name, f'{sysconfig.get_config_var("LIBDIR")}/{name}', f"libpython{sys.version_info[0]}.{sys.version_info[1]}.so.1.0"]
for path in paths:
    try:
        ctypes.CDLL(path) if ".so" in path else 1 / 0
        sys.exit(0)
    except (OSError, ZeroDivisionError):
        pass
sys.exit(1)
PROBE
[ ${#missing[@]} -eq 0 ] || install_packages "${missing[@]}"

say "creating $venv with $python ($version)"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
# PIP_FLAGS goes to pip: on the public index torch is the CUDA build (gigabytes); name an index with CPU builds there.
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade pip
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  --constraint "$(dirname "$0")/constraints.txt" -e '.[build,rtx,gpu,serve,client,train,dev]' ${PIP_FLAGS:-}
say "environment ready"
