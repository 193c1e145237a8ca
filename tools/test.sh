#!/usr/bin/env bash
# Sets up, builds and runs every test. What reads files also runs under ASan and UBSan.
# With --readers also the tests that need the programs which open our files (transformers and more),
# installed apart into .venv-readers.
set -euo pipefail
cd "$(dirname "$0")/.."
readers=
case ${1-} in
  --readers) readers=ON ;;
  '') ;;
  *) echo "usage: tools/test.sh [--readers]" >&2; exit 2 ;;
esac
if [ -n "$readers" ]; then tools/readers.sh; fi
tools/build.sh dev "-DMCOMPRESS_READERS=${readers:-OFF}"
tools/build.sh asan
ctest --preset asan
ctest --preset dev
