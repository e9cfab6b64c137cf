#!/bin/sh
# Takes from an environment without torch what nothing in it uses: trim.sh SITE_PACKAGES
set -eu
cd "$1"
# Of no use without a worker: its model.
rm -r millrace_worker/demo_model
# Of AWS' services only S3 is called, and those that give credentials for it.
find botocore/data -mindepth 1 -maxdepth 1 -type d \
    ! -name s3 ! -name sts ! -name sso ! -name sso-oidc -exec rm -r {} +
rm -rf boto3/examples
find . -type d \( -name test -o -name tests \) -prune -exec rm -r {} +
# Symbols for debuggers: of uvloop's 13 MB they are 12.
find . -name '*.so' -exec strip --strip-unneeded {} +
