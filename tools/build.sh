#!/usr/bin/env bash
# Sets up and builds: build.sh PRESET [CMake options]. LibTorch is the one in .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
tools/setup.sh
torch=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/torch/share/cmake/Torch
preset=$1
shift
cmake --preset "$preset" -DTorch_DIR="$torch" "$@" >&2
cmake --build --preset "$preset" >&2
