#!/usr/bin/env bash
# What needs a GPU, in two calls of at most six minutes each:
#   benchmarks/on_gpu.sh OUT check      build, tests on the device, memcheck
#   benchmarks/on_gpu.sh OUT measure    build (what is missing), benchmarks, racecheck, kernel profile
# Usage: [BUDGET=340] [BENCH=bench_panet] benchmarks/on_gpu.sh OUT check|measure
#
# OUT gets CALL.log and results.tar.gz with one file, gpu.json (measurements, kernels, and how every step ended), brought
# up to date after every step: a call that is ended early loses nothing. Unpack it under benchmarks/results/, commit it,
# and print the tables with `python benchmarks/table.py FILE`. A second call with the same OUT adds to the first one's.
# After BUDGET seconds the step that runs is stopped, and what has not begun is named; BENCH measures one file alone.
# Needs nvcc, g++, compute-sanitizer, and the Python packages of the check below; of the package's own dependencies
# torch, numpy, scipy and packaging are enough. transformers is measured against where it is there.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: benchmarks/on_gpu.sh OUT check|measure}
call=${2:?usage: benchmarks/on_gpu.sh OUT check|measure}
case $call in
  check | measure) ;;
  *) echo "on_gpu: the call must be check or measure, got $call" && exit 2 ;;
esac
budget=${BUDGET:-340}
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
mkdir "$work/results"
if [ -f "$out/results.tar.gz" ]; then tar xzf "$out/results.tar.gz" -C "$work/results"; fi
results=$work/results/gpu.json
trap 'rm -rf "$work"' EXIT
export PATH="$PATH:${CUDA_HOME:-/usr/local/cuda}/bin"
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" FSSOPS_CUDA=1
# Only this machine's architecture, to save time.
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-9.0}
status=0
log=$out/$call.log
: >"$log"

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

# record NAME CODE SECONDS LINE: how a step ended, into the results.
record() {
  python3 - "$results" "$@" <<'PYTHON'
import json, pathlib, sys
file, name, code, seconds, line = sys.argv[1:]
path = pathlib.Path(file)
content = json.loads(path.read_text()) if path.is_file() else {}
ended = {"exit_code": int(code) if code else None, "seconds": int(seconds), "last_line": line}
content.setdefault("steps", {})[name] = ended
path.write_text(json.dumps(content, indent=1) + "\n")
PYTHON
  tar czf "$out/results.tar.gz" -C "$work/results" .
}

# step NAME LIMIT COMMAND...: runs it for at most LIMIT seconds and what is left of the budget.
step() {
  local name=$1 limit=$2 started=$SECONDS left=$((budget - SECONDS)) code
  shift 2
  if [ "$left" -lt 10 ]; then
    status=1
    echo "== $name: left out, the $budget s are over" | tee -a "$log"
    record "$name" "" 0 "left out, the $budget s were over"
    return 1
  fi
  # An interrupt, not a kill: pytest then still writes what it has measured.
  timeout -s INT -k 25 $((limit < left ? limit : left)) "$@" >"$work/step.log" 2>&1
  code=$?
  { echo "== $name ($*): exit code $code"; cat "$work/step.log"; } >>"$log"
  record "$name" "$code" $((SECONDS - started)) "$(tail -n 1 "$work/step.log")"
  if [ "$code" != 0 ]; then
    status=1
    tail -n 40 "$work/step.log"
  fi
  echo "== $name: exit code $code, $((SECONDS - started)) s: $(tail -n 1 "$work/step.log")"
}

# Without what is compiled anew for every shape, and without what runs on the CPU alone.
bench() {
  [ "${BENCH:-$1}" = "$1" ] || return 0
  step "$1" 75 python3 -m pytest -q "benchmarks/$1.py" --device cuda --results "$results" -p no:cacheprovider \
    -k "not compiled and not flex and not logits_agree" && grep -E "fssops|composition|peer" "$work/step.log" | cut -c1-140
}

# Our kernels alone, in about thirty tests: instrumenting torch's takes minutes and tells nothing of ours.
sanitize() {
  local small="small or head_64 or three_levels or odd_channels or prior_mask or topk or own_points or same_size"
  step "$1" 120 compute-sanitizer --tool "$1" --kernel-name kernel_substring=fssops --error-exitcode 9 \
    python3 -m pytest -q -m gpu tests/ops -p no:cacheprovider \
    -k "($small or one_way) and (float32 or bfloat16) and (definition or half_types)"
}

step build 200 python3 setup.py -q build_ext --inplace || exit 1
if [ "$call" = check ]; then
  step test 240 python3 -m pytest -q -m gpu tests/ops tests/compat tests/models/test_mask2former_vis.py -p no:cacheprovider
  sanitize memcheck
else
  # What is most wanted first.
  for name in ms_deform_attn masked_attention mask2former cosine_correlation point_mask_loss masked_average_pooling; do
    bench "bench_$name"
  done
  sanitize racecheck
  step kernel_profile 60 python3 benchmarks/kernel_profile.py --results "$results"
  for file in benchmarks/bench_*.py; do
    name=$(basename "$file" .py)
    case $name in
      bench_ms_deform_attn | bench_masked_attention | bench_mask2former | bench_cosine_correlation) ;;
      bench_point_mask_loss | bench_masked_average_pooling) ;;
      *) bench "$name" ;;
    esac
  done
fi
tar czf "$out/results.tar.gz" -C "$work/results" .
exit $status
