#!/bin/sh
# rclone with this container's S3 server as the remote ":s3:": s3 lsd :s3:, s3 cat :s3:BUCKET/KEY, s3 rcat :s3:BUCKET/KEY
set -eu
export RCLONE_S3_PROVIDER=Rclone RCLONE_S3_ENDPOINT=http://127.0.0.1:9000
export RCLONE_S3_ACCESS_KEY_ID="$S3_ACCESS_KEY" RCLONE_S3_SECRET_ACCESS_KEY="$S3_SECRET_KEY"
exec rclone --config "" --retries 1 --low-level-retries 1 "$@"
