#!/bin/sh
# Runs the gateway on all addresses of its container. Who can reach it is decided by where its port is published:
# on this machine alone it asks for no keys, and answers to local names only, as `millrace gateway` does; anywhere else
# it asks for API keys. Arguments are passed on.
#   GATEWAY_BIND    the address on which the port is published
#   GATEWAY_FILES   where /v1/files and /v1/batches keep theirs; without it there are neither
set -eu
case "${GATEWAY_BIND:?the address on which the port is published}" in
127.* | localhost | ::1 | "[::1]") set -- --allow-open --allow-host gateway "$@" ;;
*) set -- --require-keys "$@" ;;
esac
[ -z "${GATEWAY_FILES:-}" ] || set -- --files "$GATEWAY_FILES" "$@"
exec millrace gateway --host 0.0.0.0 --port 8000 "$@"
