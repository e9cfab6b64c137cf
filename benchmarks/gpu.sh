#!/usr/bin/env bash
# Checks and measures everything that needs a GPU, in one go: tests first, since a fast wrong kernel is worth nothing.
#
#   benchmarks/gpu.sh [RESULTS [STAGE ...]]
#
# RESULTS takes the output of each stage, and JSON of what is measured. A stage that fails does not stop the others; the
# last lines say which did. PYTHON is the interpreter, MODEL the model of the benches, COMMIT what is noted in results.
# With VLLM, the directories of vLLM's packages, throughput and prefix run it beside Millrace.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
results=${1:-benchmarks/results}
shift || true
stages=("$@")
((${#stages[@]})) || stages=(tests kernels throughput redis latency prefix tiers)
PYTHON=${PYTHON:-python3} MODEL=${MODEL:-llama8b}
commit=(${COMMIT:+--commit "$COMMIT"})
model=(--model "$MODEL" --load-format dummy)
vs=(${VLLM:+--vs vllm --vs-pythonpath "$VLLM"})
record=(--save --results-dir "$results" "${commit[@]}")
export PYTHONUNBUFFERED=1
export PYTHONPATH=$PWD/schemas:$PWD/kernels:$PWD/producer:$PWD/worker:$PWD/benchmarks:$PWD/tests/support${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$results"

bench() { "$PYTHON" -m millrace_bench "$@"; }

# Both kinds of tests at once: nothing is timed.
stage_tests() {
    local pytest=("$PYTHON" -m pytest -q -p no:cacheprovider -p no:benchmark -W ignore) spread=()
    "$PYTHON" -c "import xdist" 2>/dev/null && spread=(-n 6)
    "${pytest[@]}" "${spread[@]}" tests/engine/test_cuda*.py >"$results/engine.log" 2>&1 &
    local engine=$! status=0
    "${pytest[@]}" "${spread[@]}" -c tests/kernels/pytest.ini -m "not interpret" tests/kernels || status=1
    wait $engine || status=1
    cat "$results/engine.log"
    return $status
}
stage_kernels() { bench kernels --model "$MODEL"; }
stage_throughput() { bench throughput "${model[@]}" --workload all "${vs[@]}" "${record[@]}"; }
stage_redis() { bench throughput "${model[@]}" --workload all --repeats 1 --through-redis "${record[@]}"; }
stage_latency() {
    bench latency "${model[@]}" --workload mixed8k --rates 4 --seconds 15 --long-prefill-token-thresholds 0,256,512,1024
}
stage_prefix() {
    local cells=(${VLLM:+--vs-cells 64x2048x1,256x2048x1,256x8192x1,256x512x0})
    bench prefix "${model[@]}" --repeats 2 --groups 4,64,256 --systems 1 --tiers none "${vs[@]}" "${cells[@]}" \
        "${record[@]}"
}
# First tokens and copies, with pinned memory of its own; no bucket here.
stage_tiers() {
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
