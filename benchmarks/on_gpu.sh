#!/usr/bin/env bash
# What needs a GPU, in one call of under ten minutes: build, tests on the device, benchmarks, compute-sanitizer.
# Usage: [BUDGET=560] [BENCH=bench_panet] benchmarks/on_gpu.sh OUT [build|test|bench|sanitize ...]   (default: all four)
#
# OUT gets log.txt and results.tar.gz (a JSON file a benchmark), brought up to date after every step: a call that is
# ended early loses nothing. Unpack the results under benchmarks/results/ and commit them. After BUDGET seconds the
# step that runs is stopped, and what has not begun is named; BENCH runs one benchmark alone.
# Needs nvcc, g++, compute-sanitizer, and the Python packages of the check below; of the package's own dependencies
# torch, numpy, scipy and packaging are enough. transformers is measured against where it is there.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: benchmarks/on_gpu.sh OUT [build|test|bench|sanitize ...]}
shift
stages=${*:-build test bench sanitize}
budget=${BUDGET:-560}
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
mkdir "$work/results"
trap 'rm -rf "$work"' EXIT
export PATH="$PATH:${CUDA_HOME:-/usr/local/cuda}/bin"
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" FSSOPS_CUDA=1
# Only this machine's architecture, to save time.
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-9.0}
status=0
: >"$out/log.txt"

if ! python3 - <<'PYTHON'
import importlib.util, shutil, sys
packages = "torch numpy scipy packaging setuptools pybind11 pytest pytest_benchmark hypothesis".split()
missing = [name for name in packages if importlib.util.find_spec(name) is None]
missing += [name for name in ("nvcc", "g++") if shutil.which(name) is None]
if shutil.which("ninja") is None and importlib.util.find_spec("ninja") is None:
    missing.append("ninja")
if missing:
    sys.exit(f"on_gpu: python3 and the path must have {', '.join(missing)}, got none")
import setuptools, torch
if int(setuptools.__version__.split(".")[0]) < 77:
    sys.exit(f"on_gpu: setuptools must be at least 77, got {setuptools.__version__}")
device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device: everything will be skipped"
print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, {device}")
PYTHON
then
  exit 2
fi

# step NAME LIMIT COMMAND...: runs it for at most LIMIT seconds and what is left of the budget.
step() {
  local name=$1 limit=$2 started=$SECONDS left=$((budget - SECONDS)) code
  shift 2
  if [ "$left" -lt 10 ]; then
    status=1
    echo "== $name: left out, the $budget s are over" | tee -a "$out/log.txt"
    return
  fi
  # An interrupt, not a kill: pytest then still writes what it has measured.
  timeout -s INT -k 25 $((limit < left ? limit : left)) "$@" >"$work/step.log" 2>&1
  code=$?
  { echo "== $name ($*): exit code $code"; cat "$work/step.log"; } >>"$out/log.txt"
  tar czf "$out/results.tar.gz" -C "$work/results" .
  if [ "$code" != 0 ]; then
    status=1
    tail -n 40 "$work/step.log"
  fi
  echo "== $name: exit code $code, $((SECONDS - started)) s: $(tail -n 1 "$work/step.log")"
}

bench() {
  local name
  name=$(basename "$1" .py)
  [ "${BENCH:-$name}" = "$name" ] || return 0
  step "$name" 120 python3 -m pytest -q "$1" --device cuda --results "$work/results/$name.json" -p no:cacheprovider
  grep -E "fssops|composition|compiled|peer" "$work/step.log" | cut -c1-120
}

for name in $stages; do
  case $name in
    build) step build 300 python3 setup.py -q build_ext --inplace ;;
    test)
      step test 240 python3 -m pytest -q --maxfail=10 -m gpu tests/ops tests/compat tests/models/test_mask2former_vis.py \
        -p no:cacheprovider
      ;;
    bench)
      # Operators first: of whole systems the CPU's figures say more.
      for file in benchmarks/bench_*.py; do
        op=$(basename "$file" .py)
        if [ -d "csrc/${op#bench_}" ]; then bench "$file"; fi
      done
      for file in benchmarks/bench_*.py; do
        op=$(basename "$file" .py)
        if [ ! -d "csrc/${op#bench_}" ]; then bench "$file"; fi
      done
      ;;
    sanitize)
      for tool in memcheck racecheck; do
        step "$tool" 150 compute-sanitizer --tool "$tool" --error-exitcode 9 \
          python3 -m pytest -q -m "gpu and every_isa" tests/ops -p no:cacheprovider
      done
      ;;
    *) echo "on_gpu: a stage must be one of build, test, bench, sanitize, got $name" && exit 2 ;;
  esac
done
exit $status
