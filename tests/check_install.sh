#!/usr/bin/env bash
# The installed program starts from a scratch prefix, and only one OpenMP runtime is loaded.
set -euo pipefail
prefix=$(mktemp -d)
trap 'rm -rf "$prefix"' EXIT
"$1" --install "$2" --prefix "$prefix" >/dev/null
"$prefix/bin/mcompress" --version
test "$(ldd "$prefix/bin/mcompress" | grep -c libgomp)" -eq 1
