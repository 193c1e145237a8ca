#!/usr/bin/env bash
# Sets up, builds and runs every test. The readers of formats/ also run under ASan and UBSan.
set -euo pipefail
cd "$(dirname "$0")/.."
tools/build.sh dev
tools/build.sh asan
ctest --preset asan
ctest --preset dev
