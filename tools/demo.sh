#!/usr/bin/env bash
# Sets up, builds, quantizes the shipped Fashion-MNIST model and measures it before and after on
# the 10,000 test images. The report is build/demo/report.json. Arguments are passed on to CMake.
set -euo pipefail
cd "$(dirname "$0")/.."
tools/build.sh release -DMCOMPRESS_TESTS=OFF "$@"
mkdir -p build/demo
build/release/tools/mcompress quantize tests/data/fashion_mlp.pt -o build/demo/fashion_mlp_int8.pt --force \
  --eval-data /usr/share/datasets/fashion-mnist --report build/demo/report.json
echo "report: build/demo/report.json"
