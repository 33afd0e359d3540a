#!/bin/bash
# usage: with_radosgw.sh COMMAND [ARG...]
# Runs a test program with a real S3 server of its own: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
# AWS_ENDPOINT_URL, AWS_REGION and BUCKET are in its environment, and RADOSGW_DIR for radosgw.sh's
# other commands. Everything ends with this process. Exit status: COMMAND's; 77 where Ceph is not
# installed.
set -eu
[ $# -gt 0 ] || { sed -n '2s/^# //p' "$0" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
RADOSGW_DIR=$(mktemp -d "${TMPDIR:-/tmp}/dsfs-radosgw.XXXXXX")
export RADOSGW_DIR
finish() {
	"$here/radosgw.sh" stop "$RADOSGW_DIR"
	rm -rf "$RADOSGW_DIR"
}
trap finish EXIT
trap 'exit 143' HUP INT TERM
exports=$("$here/radosgw.sh" start "$RADOSGW_DIR" --owner $$) || exit $?
eval "$exports"
"$@"
