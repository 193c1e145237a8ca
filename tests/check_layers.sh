#!/usr/bin/env bash
# The include rules of the rooms: includes go down only, and each library has its place.
set -u
cd "$1" || exit 2
status=0
forbid() {  # forbid WHAT PATTERN PATH...
  local what=$1 pattern=$2
  shift 2
  if grep -rnE "#include [<\"]($pattern)" "$@" 2>/dev/null; then
    echo "^ $what" >&2
    status=1
  fi
}
rooms=(base formats model data methods measure report)
for i in "${!rooms[@]}"; do
  for higher in "${rooms[@]:$((i + 1))}"; do
    forbid "${rooms[$i]} may not include $higher" "mcompress/$higher/" "include/mcompress/${rooms[$i]}" "src/${rooms[$i]}"
  done
done
forbid "methods and measure do not know each other" "mcompress/methods/" include/mcompress/measure src/measure
forbid "base and formats know no LibTorch" "torch/|ATen/|c10/" include/mcompress/base src/base include/mcompress/formats src/formats
forbid "tokenizers know no LibTorch" "torch/|ATen/|c10/" include/mcompress/data/tokenizer.h src/data/tokenizer
forbid "CLI11 only in tools" "CLI/" include src
forbid "public headers name json_fwd only" "nlohmann/json.hpp" include
forbid "spdlog never in a header" "spdlog/" include
exit $status
