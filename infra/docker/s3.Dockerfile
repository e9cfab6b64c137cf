# An S3 server over a volume: rclone, which shows every folder of /data as a bucket.
FROM rclone/rclone:1.75.1
# A named volume begins as a copy of this folder, so it belongs to the user below.
RUN mkdir -p /data/millrace && chown -R 10001:10001 /data
COPY serve-s3.sh /usr/local/bin/serve-s3
COPY s3.sh /usr/local/bin/s3
ENTRYPOINT []
USER 10001:10001
EXPOSE 9000
CMD ["serve-s3"]
