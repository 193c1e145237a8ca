#!/usr/bin/env bash
# Installs what the build needs and is missing: Debian packages, and LibTorch by pip into .venv.
# Idempotent. Without root it uses sudo.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(ccache cmake dataset-fashion-mnist g++ libcli11-dev libfmt-dev libgtest-dev libpcre2-dev
  libspdlog-dev libssl-dev libutf8proc-dev libvalijson-dev libzstd-dev ninja-build nlohmann-json3-dev python3 python3-venv zlib1g-dev)
missing=()
for package in "${packages[@]}"; do
  case $package in
    python3) command -v python3 >/dev/null && continue ;;
    python3-venv) python3 -c 'import ensurepip, venv' 2>/dev/null && continue ;;
  esac
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
if ((${#missing[@]})); then
  as_root=()
  ((EUID == 0)) || as_root=(sudo)
  echo "installing: ${missing[*]}" >&2
  "${as_root[@]}" apt-get update -qq >&2 || true
  DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2 || {
    echo "these Debian packages are missing and could not be installed: ${missing[*]}" >&2
    exit 1
  }
fi

[ -x .venv/bin/python ] || python3 -m venv .venv
if ! .venv/bin/python -c 'import importlib.metadata as m; assert m.version("torch").split("+")[0] == "2.13.0"; m.version("numpy")' 2>/dev/null; then
  .venv/bin/python -m pip install --quiet torch==2.13.0 numpy >&2 || {
    echo "the Python packages torch 2.13.0 and numpy are missing and could not be installed" >&2
    exit 1
  }
fi
