#!/usr/bin/env bash
# Everything that needs a GPU, in one call of under ten minutes: build, tests on the device, compute-sanitizer, benchmarks.
# Usage: benchmarks/on_gpu.sh OUT [build|test|sanitize|bench ...]   (default: all four)
# Writes logs and results_<name>.json to OUT; commit what was measured under benchmarks/results/.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: benchmarks/on_gpu.sh OUT [build|test|sanitize|bench ...]}
shift
stages=${*:-build test sanitize bench}
mkdir -p "$out"
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
# Only this machine's architecture, to save time; sm_90a is where Hopper's own instructions are.
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-9.0}
status=0

stage() {
  local name=$1 seconds=$SECONDS
  shift
  if ! "$@" >"$out/$name.log" 2>&1; then
    status=1
    echo "== $name FAILED"
    tail -n 40 "$out/$name.log"
  fi
  echo "== $name: $((SECONDS - seconds)) s: $(tail -n 1 "$out/$name.log")"
}

for name in $stages; do
  case $name in
    build) stage build python3 setup.py -q build_ext --inplace ;;
    test) stage test timeout 240 python3 -m pytest -q --maxfail=10 -m gpu tests/ops tests/compat -p no:cacheprovider ;;
    sanitize)
      for tool in memcheck racecheck; do
        stage "$tool" timeout 150 compute-sanitizer --tool "$tool" --error-exitcode 9 \
          python3 -m pytest -q -m "gpu and every_isa" tests/ops -p no:cacheprovider
      done
      ;;
    bench)
      for file in benchmarks/bench_*.py; do
        bench=$(basename "$file" .py)
        [ "${BENCH:-$bench}" = "$bench" ] || continue
        stage "$bench" timeout 200 python3 -m pytest -q "$file" --device cuda --results "$out/$bench.json" -p no:cacheprovider
        grep -E "fssops|composition|compiled|peer" "$out/$bench.log" | cut -c1-120 || true
      done
      ;;
    *) echo "unknown stage $name" && exit 2 ;;
  esac
done
exit $status
