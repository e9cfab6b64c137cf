# What verify_compose.sh tries; each prints what it found as its last line.
# shellcheck shell=bash disable=SC2154

refuses_without_password() {
    grep -v '^REDIS_PASSWORD=' "$WORK/env" >"$WORK/no-password"
    fails docker-compose --env-file "$WORK/no-password" config >"$WORK/said" 2>&1
    grep -o 'copy .env.example to .env, and set REDIS_PASSWORD there' "$WORK/said" | head -1
}

health() {
    docker inspect --format '{{.State.Health.Status}}' "$(compose ps -q "$1" | sed -n 1p)"
}

comes_up() {
    local began=$SECONDS service
    compose up --detach --no-build "${SERVICES[@]}" >&2
    for service in "${SERVICES[@]}"; do
        until [[ $(health "$service") == healthy ]]; do
            ((SECONDS - began < 180)) || { echo "$service is $(health "$service")" && return 1; }
            sleep 1
        done
    done
    echo "after $((SECONDS - began)) s"
}

measure_client() {
    local own base
    fails compose exec -T gateway python -c 'import torch'
    base=$(docker image inspect --format '{{.Size}}' "$(grep -m1 -o 'python:[^ ]*' infra/docker/Dockerfile)")
    own=$(($(docker image inspect --format '{{.Size}}' millrace:0.1.0) - base))
    echo "$((own / 1000000)) MB on a base of $((base / 1000000)) MB"
    ((own < 72000000))
}

runs_confined() {
    local service
    for service in "${SERVICES[@]}"; do
        [[ $(compose exec -T "$service" id -u) != 0 ]]
        fails compose exec -T "$service" touch /usr/here
    done
    echo "${SERVICES[*]}"
}

published_here_only() {
    local ids addresses
    mapfile -t ids < <(compose ps -q)
    addresses=$(docker inspect --format '{{range .NetworkSettings.Ports}}{{range .}}{{.HostIp}} {{end}}{{end}}' "${ids[@]}")
    addresses=$(xargs -n 1 <<<"$addresses" | sort -u)
    echo "${#ids[@]} containers, on $addresses"
    [[ $addresses == 127.0.0.1 ]]
}

readme_lines() {
    # The first block under the heading, and no more.
    awk '/^### Polling$/{on = 1} on && /^```/{if (fence) exit; fence = 1; next} fence' README.md |
        sed 's/localhost:8000/127.0.0.1:18000/' >"$WORK/readme"
    bash "$WORK/readme" >"$WORK/said"
    grep -q '"state":"completed"' "$WORK/said"
    grep -o -m1 '"text":"[^"]*"' "$WORK/said" | tail -1
}

stack_line() {
    grep '^curl ' docs/local-stack.md | head -1 | sed 's/localhost:8000/127.0.0.1:18000/' >"$WORK/line"
    bash "$WORK/line" >"$WORK/said"
    grep -o '"content":"QUIET RIVER"' "$WORK/said"
}

refuses_other_sites() {
    curl -s -o /dev/null -w '%{http_code}' -H 'Host: other.example' "$URL/v1/models" | tee "$WORK/said"
    [[ $(<"$WORK/said") == 403 ]]
}

asks_for_keys() {
    fails compose run -T --rm --no-deps -e GATEWAY_BIND=0.0.0.0 gateway </dev/null >"$WORK/said" 2>&1
    grep -o 'asks for API keys, and there is none in this Redis' "$WORK/said"
}

result_in_s3() {
    local body id
    body='{"system": "Change the words by the rule.", "prompt": "Uppercase every word: quiet river",
        "result_to": "s3://millrace/verify", "sampling": {"max_tokens": 16, "temperature": 0}}'
    id=$(curl -sf "$URL/v1/jobs" -H 'content-type: application/json' -d "$body" | sed 's/.*"id":"\([^"]*\)".*/\1/')
    curl -sf "$URL/v1/jobs/$id?wait=30" >"$WORK/said"
    grep -q '"text":"QUIET RIVER"' "$WORK/said"
    compose exec -T s3 find /data/millrace/verify -name "$id*.json" | grep -o '/data/.*' | sed "s/$id/<id>/"
}

prometheus_sees() {
    "$PYTHON" infra/verify/prometheus.py health "http://127.0.0.1:19090"
}

dashboard_expressions() {
    "$PYTHON" infra/verify/prometheus.py dashboard "http://127.0.0.1:19090" infra/grafana/dashboards/millrace.json
}

scales() {
    compose up --detach --no-build --no-recreate --scale worker=2 worker >&2
    for _ in {1..60}; do
        if compose exec -T gateway millrace queue stats --model demo --json >"$WORK/said" &&
            [[ $("$PYTHON" -c 'import json, sys; print(len(json.load(sys.stdin)["workers"]))' <"$WORK/said") == 2 ]]; then
            echo "2 workers in the queue" && return
        fi
        sleep 1
    done
    return 1
}

# As a crash would: `docker kill` counts as a wish of the operator, after which nothing is restarted.
crash() {
    local id
    id=$(compose ps -q "$1" | sed -n 1p)
    kill -9 "$(docker inspect --format '{{.State.Pid}}' "$id")"
    echo "killed $1" >&2
}

survive_kills() {
    "$PYTHON" infra/verify/jobs.py submit "$URL" "$WORK/accepted" 45 &
    local submitter=$! service
    for service in worker gateway redis worker redis gateway; do
        sleep 6
        crash "$service"
    done
    wait "$submitter"
    "$PYTHON" infra/verify/jobs.py check "$URL" "$WORK/accepted"
}

restarted() {
    local service found=''
    for service in worker gateway redis; do
        found+="$service $(compose ps -q "$service" | xargs docker inspect --format '{{.RestartCount}}' | awk "{n += \$1} END {print n}"), "
    done
    echo "${found%, }"
    [[ $found == "worker 2, gateway 2, redis 2, " ]]
}

survive_down() {
    compose down >&2
    comes_up >&2
    "$PYTHON" infra/verify/jobs.py check "$URL" "$WORK/accepted"
}
