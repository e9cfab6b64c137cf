#!/bin/sh
# Serves /data on port 9000. A bucket is there from the start.
#   S3_ACCESS_KEY, S3_SECRET_KEY   the one pair that is let in; neither may hold a comma or a quote
#   S3_BUCKET                      the bucket
set -eu
mkdir -p "/data/${S3_BUCKET:?}"
# In the environment and not among the arguments, where all processes see it. rclone reads lists there as CSV.
RCLONE_AUTH_KEY="\"${S3_ACCESS_KEY:?},${S3_SECRET_KEY:?}\""
export RCLONE_AUTH_KEY
exec rclone serve s3 --addr 0.0.0.0:9000 --vfs-cache-mode off --config "" /data
