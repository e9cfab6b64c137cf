#!/bin/sh
# Prometheus reads the key for the gateway's metrics from a file alone; an empty one is no key.
set -eu
umask 077
printf %s "${METRICS_KEY:-}" >/tmp/metrics-key
exec prometheus --config.file=/etc/prometheus/prometheus.yml --storage.tsdb.path=/prometheus "$@"
