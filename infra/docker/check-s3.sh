#!/bin/sh
# Whether the S3 server of this container lists its buckets for whoever has the key.
set -eu
export RCLONE_S3_PROVIDER=Rclone RCLONE_S3_ENDPOINT=http://127.0.0.1:9000
export RCLONE_S3_ACCESS_KEY_ID="$S3_ACCESS_KEY" RCLONE_S3_SECRET_ACCESS_KEY="$S3_SECRET_KEY"
exec rclone lsd --config "" --retries 1 --low-level-retries 1 :s3:
