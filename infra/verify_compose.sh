#!/usr/bin/env bash
# Runs the stack of docker-compose.yml for real, all but Grafana and the GPU: builds the images, starts it on ports of its
# own, tries what the documents say, kills containers under load, and looks for every job that was accepted. Takes five to
# ten minutes, as root on Linux (containers are killed by their process, as a crash would). Starts dockerd where none runs.
# Where no registry can be reached the base images are made from Debian's packages: infra/verify/bases.sh.
#   PYTHON   a Python 3.11 with pip (default python3), which fetches the packages that the images hold
#   RCLONE   the rclone program (default: of PATH), for the S3 server where no registry can be reached
#   WHEELS   a folder for those packages, which is left there (default: a temporary one)
#   ENGINE_DATA  where a dockerd that is started here keeps its images, which are left there (default: a temporary folder)
#   KEEP=1   leave the images
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly PYTHON=${PYTHON:-python3} URL=http://127.0.0.1:18000 SERVICES=(redis s3 worker bulk gateway prometheus)
readonly IMAGES=(millrace millrace-bulk millrace-worker)
# The same in every run, so that what was built before counts.
readonly WHEEL_PORT=18999
WORK=$(mktemp -d /var/tmp/millrace-verify.XXXXXX)
readonly WORK
RESULTS=()
FAILED=0
ENGINE='' WHEEL_SERVER=''

compose() {
    docker-compose --env-file "$WORK/env" "$@"
}

# check WORDS COMMAND...: one line of the table; the command's last line is what it found
check() {
    local what=$1 found status result=ok
    shift
    # Not in a condition: there, `set -e` would not hold for what is called.
    set +e
    found=$(
        set -e
        "$@" 2>"$WORK/errors"
    )
    status=$?
    set -e
    if ((status)); then
        result=FAILED
        FAILED=1
        tail -5 "$WORK/errors" >&2
    fi
    RESULTS+=("$(printf '%-52s %-6s %s' "$what" "$result" "$(tail -1 <<<"$found")")")
    echo "${RESULTS[-1]}"
}

# For commands that are to fail: `!` before them would hide that they did not.
fails() {
    if "$@"; then
        echo "did not fail: $*" >&2
        return 1
    fi
}

start_engine() {
    docker info >/dev/null 2>&1 && return
    dockerd --data-root "${ENGINE_DATA:-$WORK/docker}" --exec-root "$WORK/run" --pidfile "$WORK/dockerd.pid" >"$WORK/dockerd.log" 2>&1 &
    ENGINE=$!
    for _ in {1..30}; do
        docker info >/dev/null 2>&1 && return
        sleep 1
    done
    tail -5 "$WORK/dockerd.log" >&2
    return 1
}

clean_up() {
    [[ ! -f $WORK/env ]] || compose down --volumes --timeout 10 >/dev/null 2>&1 || true
    [[ -n ${KEEP:-} || ! -f $WORK/env ]] || docker image rm "${IMAGES[@]/%/:0.1.0}" millrace-s3:0.1.0 >/dev/null || true
    [[ -z $WHEEL_SERVER ]] || kill "$WHEEL_SERVER"
    if [[ -n $ENGINE ]]; then
        kill "$ENGINE" && wait "$ENGINE" || true
        # It leaves this one mounted.
        umount "$WORK/run/netns/default" 2>/dev/null || true
    fi
    rm -rf "$WORK"
}

build() {
    local wheels=${WHEELS:-$WORK/wheels} target
    RCLONE=${RCLONE:-$(command -v rclone || true)} infra/verify/bases.sh
    # Packages are fetched out here, where pip is set up for this machine. Debian's Python is older than pip's markers
    # for this one know, and needs async-timeout as well.
    mkdir -p "$wheels"
    "$PYTHON" infra/docker/requirements.py pyproject.toml gateway bulk worker >"$WORK/requirements"
    download() { "$PYTHON" -m pip download -qq --dest "$wheels" --find-links "$wheels" --only-binary :all: "$@"; }
    local torch
    torch=$(grep '^torch==' constraints.txt)+cpu
    download --no-deps "$torch" || download --no-deps --index-url https://download.pytorch.org/whl/cpu "$torch"
    download --constraint constraints.txt --requirement "$WORK/requirements" hatchling async-timeout
    "$PYTHON" -m http.server "$WHEEL_PORT" --bind 127.0.0.1 --directory "$wheels" >/dev/null 2>&1 &
    WHEEL_SERVER=$!
    docker buildx version >/dev/null 2>&1 || export DOCKER_BUILDKIT=0
    docker build --quiet --tag millrace-s3:0.1.0 --file infra/docker/s3.Dockerfile infra/docker >/dev/null
    for target in "${IMAGES[@]}"; do
        docker build --quiet --network host --tag "$target:0.1.0" --target "$target" --file infra/docker/Dockerfile \
            --build-arg "PIP_FIND_LINKS=http://127.0.0.1:$WHEEL_PORT/" --build-arg PIP_NO_INDEX=1 . >"$WORK/build" 2>&1 || {
            tail -20 "$WORK/build" >&2
            return 1
        }
    done
}

make_settings() {
    sed -e 's/^COMPOSE_PROJECT_NAME=.*/COMPOSE_PROJECT_NAME=millrace-verify/' -e 's/^\(GATEWAY\|S3\|PROMETHEUS\)_PORT=/&1/' \
        -e 's/^REDIS_PORT=/&1/' -e 's/^WORKER_CPUS=.*/WORKER_CPUS=1/' -e "s/^\(.*_PASSWORD\|S3_SECRET_KEY\)=.*/\1=$(od -An -N12 -tx1 /dev/urandom | tr -d ' \n')/" \
        .env.example >"$WORK/env"
}

source infra/verify/checks.sh

main() {
    trap clean_up EXIT
    start_engine
    build
    make_settings
    check "compose refuses without a password" refuses_without_password
    check "the stack is up and healthy" comes_up
    check "the client's image: no torch, no pip, below 200 MB" measure_image gateway millrace
    check "the image for bulk files: the same" measure_image bulk millrace-bulk
    check "no root, no writable root file system" runs_confined
    check "published on the loopback address only" published_here_only
    check "the README's lines for polling" readme_polling
    check "the README's lines for the stack" readme_stack
    check "docs/local-stack.md: the first lines" stack_line
    check "docs/local-stack.md: a batch over HTTP" stack_batch_http
    check "docs/local-stack.md: a batch in S3" stack_batch_s3
    check "a file of 536 MB through the gateway to S3" large_upload
    check "a page of another site is refused" refuses_other_sites
    check "published wider, the gateway asks for keys" asks_for_keys
    check "a large result goes to S3 and comes back" result_in_s3
    check "Prometheus scrapes, all rules are well" prometheus_sees
    check "every expression of the dashboard is valid" dashboard_expressions
    check "two workers serve" scales
    check "jobs submitted while containers are killed" survive_kills
    check "a batch that ran meanwhile" batch_survived
    check "restarts by the engine after the kills" restarted
    check "a stop lets every process end by itself" stops
    check "the same jobs after down and up" survive_down
    check "the same batch" batch_survived
    echo
    printf '%s\n' "${RESULTS[@]}"
    return $FAILED
}

main
