#!/usr/bin/env bash
# Checks and measures everything that needs a GPU, in one go: tests first, since a fast wrong kernel is worth nothing.
#
#   benchmarks/gpu.sh [RESULTS [STAGE ...]]
#
# RESULTS takes the output of each stage, and JSON of what is measured. A stage that fails does not stop the others; the
# last lines say which did. PYTHON is the interpreter, MODEL the model of the benches, COMMIT what is noted in results.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
results=${1:-benchmarks/results}
shift || true
stages=("$@")
((${#stages[@]})) || stages=(tests kernels throughput redis latency prefix)
PYTHON=${PYTHON:-python3} MODEL=${MODEL:-llama8b}
commit=(${COMMIT:+--commit "$COMMIT"})
model=(--model "$MODEL" --load-format dummy)
export PYTHONUNBUFFERED=1
export PYTHONPATH=$PWD/schemas:$PWD/kernels:$PWD/producer:$PWD/worker:$PWD/benchmarks:$PWD/tests/support${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$results"

bench() { "$PYTHON" -m millrace_bench "$@"; }

stage_tests() {
    local pytest=("$PYTHON" -m pytest -q -p no:cacheprovider -W ignore)
    "$PYTHON" -c "import xdist" 2>/dev/null && pytest+=(-n 8)
    "${pytest[@]}" -c tests/kernels/pytest.ini -m "not interpret" tests/kernels && "${pytest[@]}" tests/engine/test_cuda*.py
}
stage_kernels() { bench kernels --model "$MODEL"; }
stage_throughput() { bench throughput "${model[@]}" --workload all --save --results-dir "$results" "${commit[@]}"; }
stage_redis() { bench throughput "${model[@]}" --workload all --through-redis --save --results-dir "$results" "${commit[@]}"; }
stage_latency() {
    bench latency "${model[@]}" --workload mixed8k --rates 4 --long-prefill-token-thresholds 0,256,512,1024
}
# Groups, then tiers by themselves: no bucket here, and each in its own time.
stage_prefix() {
    local record=(--save --results-dir "$results" "${commit[@]}")
    bench prefix "${model[@]}" --repeats 2 --tiers none "${record[@]}"
    bench prefix "${model[@]}" --repeats 3 --groups none --prefixes 2048,8192 --tiers cpu,disk --cpu-cache-gb 64 \
        --restarts 2 "${record[@]}"
}

failed=()
for stage in "${stages[@]}"; do
    began=$SECONDS
    echo "== $stage"
    "stage_$stage" 2>&1 | tee "$results/$stage.log" || failed+=("$stage")
    echo "== $stage took $((SECONDS - began)) s"
done
((${#failed[@]})) && echo "failed: ${failed[*]}" && exit 1
echo "all of ${stages[*]} passed"
