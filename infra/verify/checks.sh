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

# measure_image SERVICE IMAGE
measure_image() {
    local size module
    for module in torch pip setuptools; do
        fails compose exec -T "$1" python -c "import $module"
    done
    size=$(docker image inspect --format '{{.Size}}' "$2:0.1.0")
    echo "$((size / 1000000)) MB"
    ((size < 200000000))
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

# block FILE HEADING N: the Nth block of code under the heading, as it is run here. Starting the stack and copying its
# settings are done already, and the Compose here may be 1.29, which is called otherwise.
block() {
    awk -v heading="$2" -v wanted="$3" '
        /^#+ / && !fence {on = ($0 == heading); next}
        on && /^```/ {fence = !fence; n += fence; next}
        on && fence && n == wanted' "$1" |
        sed -e 's/localhost:8000/127.0.0.1:18000/g' -e '/^cp \.env\.example/d' -e '/^docker compose up/d'
}

# paste FILE HEADING N: runs it as somebody would who pastes it into a shell
paste() {
    block "$@" >"$WORK/pasted"
    [[ -s $WORK/pasted ]]
    (
        docker() {
            [[ $1 == compose ]] && shift && compose "$@"
        }
        set +eu
        # shellcheck disable=SC1091
        source "$WORK/pasted"
    ) >"$WORK/said"
    cat "$WORK/said" >&2
}

readme_polling() {
    paste README.md '### Polling' 1
    grep -q '"state":"completed"' "$WORK/said"
    grep -o -m1 '"text":"[^"]*"' "$WORK/said" | tail -1
}

readme_stack() {
    paste README.md '## Local stack' 1
    grep -q '"content":"QUIET RIVER"' "$WORK/said"
    six_answers
}

# That what was said holds examples/requests.jsonl, worked off.
six_answers() {
    local words
    for words in 'QUIET RIVER' 'STONE BIRD' 'SUMMER GARDEN' 'WINTER EVENING' 'CLOUD MORNING' 'EVERY MOUNTAIN'; do
        grep -q "\"content\":\"$words\"" "$WORK/said"
    done
    echo "6 of 6 answers"
}

stack_line() {
    paste docs/local-stack.md '# A whole Millrace on one machine' 1
    grep -o '"content":"QUIET RIVER"' "$WORK/said"
}

stack_batch_http() {
    paste docs/local-stack.md '## Files of prompts' 1
    six_answers
}

stack_batch_s3() {
    paste docs/local-stack.md '## Files of prompts' 2
    six_answers
}

# As large as one may be.
large_upload() {
    local id bytes
    "$PYTHON" -c 'for _ in range(536_000): print("x" * 999)' >"$WORK/large"
    curl -s "$URL/v1/files" -F purpose=batch -F "file=@$WORK/large" >"$WORK/said"
    rm "$WORK/large"
    id=$(sed 's/.*"id":"\([^"]*\)".*/\1/' "$WORK/said")
    bytes=$(curl -sf "$URL/v1/files/$id/content" | wc -c)
    curl -sf -X DELETE "$URL/v1/files/$id" >&2
    echo "$bytes bytes came back"
    ((bytes == 536000000))
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
    local id pid=0
    id=$(compose ps -q "$1" | sed -n 1p)
    # 0 while it is not running, which kill would take for this shell and all that it started.
    for _ in {1..60}; do
        pid=$(docker inspect --format '{{.State.Pid}}' "$id")
        ((pid == 0)) || break
        sleep 0.5
    done
    ((pid > 1))
    kill -9 "$pid"
    echo "killed $1" >&2
}

# More than a small machine works off between the first kill and the last.
readonly LINES_OF_BATCH=4000
readonly KILLS=(worker bulk gateway redis s3 worker bulk redis gateway)

survive_kills() {
    local submitter service
    "$PYTHON" infra/verify/jobs.py batch "$URL" "$WORK/batch" "$LINES_OF_BATCH"
    "$PYTHON" infra/verify/jobs.py submit "$URL" "$WORK/accepted" 60 &
    submitter=$!
    for service in "${KILLS[@]}"; do
        sleep 6
        crash "$service"
        # Whether the batch still had something to lose.
        "$PYTHON" infra/verify/jobs.py progress "$URL" "$WORK/batch" >>"$WORK/progress" || true
    done
    wait "$submitter"
    "$PYTHON" infra/verify/jobs.py check "$URL" "$WORK/accepted"
}

batch_survived() {
    cat "$WORK/progress" >&2
    [[ $(tail -1 "$WORK/progress") == in_progress* ]]
    "$PYTHON" infra/verify/jobs.py check-batch "$URL" "$WORK/batch"
}

restarted() {
    local service found='' expected='' ids
    for service in worker bulk gateway redis s3; do
        mapfile -t ids < <(compose ps -q "$service")
        found+="$service $(docker inspect --format '{{.RestartCount}}' "${ids[@]}" | awk '{n += $1} END {print n}'), "
        expected+="$service $(printf '%s\n' "${KILLS[@]}" | grep -c "^$service\$"), "
    done
    echo "${found%, }"
    [[ $found == "$expected" ]]
}

stops() {
    local ids
    mapfile -t ids < <(compose ps -q)
    compose stop >&2
    docker inspect --format '{{.Name}} {{.State.ExitCode}} {{.State.OOMKilled}}' "${ids[@]}" >"$WORK/ends"
    cat "$WORK/ends" >&2
    # 137: the engine had to kill it after its time.
    fails grep -E ' (137 |[0-9]+ true)' "$WORK/ends"
    echo "exit codes $(cut -d ' ' -f 2 "$WORK/ends" | sort -un | xargs)"
}

survive_down() {
    compose down >&2
    comes_up >&2
    "$PYTHON" infra/verify/jobs.py check "$URL" "$WORK/accepted"
}
