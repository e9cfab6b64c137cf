#!/usr/bin/env bash
# Makes images under the names that Millrace's are built from, out of Debian's packages: for machines that reach Debian
# but no image registry. What they hold is what Debian has, so versions differ from those that the names say.
#   DEBIAN_MIRROR   default http://deb.debian.org/debian
#   RCLONE          the rclone program
set -euo pipefail

readonly MIRROR=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
readonly DEBIAN=millrace-verify/debian:bookworm

has() {
    docker image inspect "$1" >/dev/null 2>&1
}

make_debian() {
    local root
    root=$(mktemp -d /var/tmp/millrace-debian.XXXXXX)
    debootstrap --variant=minbase bookworm "$root" "$MIRROR" >"$root.log" || {
        tail -5 "$root.log" >&2
        return 1
    }
    # As in Debian's own slim images: no documents, no translations.
    printf 'path-exclude /usr/share/%s/*\n' doc man locale info >"$root/etc/dpkg/dpkg.cfg.d/slim"
    rm -rf "$root"/usr/share/{doc,man,locale,info}/* "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*
    tar -C "$root" -c . | docker import - "$DEBIAN" >/dev/null
    rm -rf "$root" "$root.log"
}

# make NAME PACKAGES [LINES OF A DOCKERFILE]: Debian with these packages
make() {
    local context
    has "$1" && return
    context=$(mktemp -d)
    [[ $1 != rclone/* ]] || cp "$RCLONE" "$context/rclone"
    cat >"$context/Dockerfile" <<END
FROM $DEBIAN
RUN apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $2 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
${3:-}
END
    docker build --quiet --network host --tag "$1" "$context" >/dev/null
    rm -rf "$context"
}

base_named() {
    grep -hoE "(FROM|image:) $1:[^ ]+" docker-compose.yml infra/docker/*ockerfile | head -1 | cut -d ' ' -f 2
}

main() {
    has "$DEBIAN" || make_debian
    make "$(base_named python)" "ca-certificates python3 python3-pip python3-venv" \
        "RUN ln -s /usr/bin/python3 /usr/local/bin/python"
    make "$(base_named redis)" redis-server "RUN install -d -o redis -g redis /data"
    make "$(base_named rclone/rclone)" ca-certificates "COPY rclone /usr/local/bin/rclone"
    make "$(base_named prom/prometheus)" "prometheus busybox" \
        "RUN ln -s /bin/busybox /usr/local/bin/wget && install -d -o nobody -g nogroup /prometheus && mv /etc/prometheus /etc/p"
}

main
