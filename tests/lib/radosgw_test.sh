#!/bin/bash
# Run by with_radosgw.sh: the server is what the tests on S3 rely on.
set -eu
here=$(cd "$(dirname "$0")" && pwd)

code() {
	curl --noproxy '*' -s -o /dev/null -w '%{http_code}' --aws-sigv4 "aws:amz:$AWS_REGION:s3" \
		--user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY" \
		-H 'x-amz-content-sha256: UNSIGNED-PAYLOAD' "$@" || true
}
expect() {
	local want=$1 what=$2 got
	shift 2
	got=$(code "$@")
	[ "$got" = "$want" ] || { echo "$what: HTTP $got, not $want" >&2; exit 1; }
}

url=$AWS_ENDPOINT_URL/$BUCKET
expect 200 "put" -T "$0" "$url/key"
expect 412 "put if absent, present" -T "$0" -H 'If-None-Match: *' "$url/key"
expect 206 "range" -H 'Range: bytes=1-9' "$url/key"
expect 404 "absent" "$url/absent"
expect 403 "wrong key" --user wrong:wrong "$url/key"
expect 200 "virtual-host style" "http://$BUCKET.localhost:${AWS_ENDPOINT_URL##*:}/key"

"$here/radosgw.sh" osd-pause "$RADOSGW_DIR"
expect 000 "paused store" --max-time 1 "$url/key"
"$here/radosgw.sh" osd-resume "$RADOSGW_DIR"
expect 200 "resumed store" "$url/key"
"$here/radosgw.sh" rgw-kill "$RADOSGW_DIR"
expect 000 "killed gateway" --max-time 1 "$url/key"
"$here/radosgw.sh" rgw-start "$RADOSGW_DIR"
expect 200 "gateway back with its data" "$url/key"

# Nothing of a server outlives its owner.
second=$(mktemp -d "$RADOSGW_DIR/second.XXXXXX")
sleep 60 &
owner=$!
"$here/radosgw.sh" start "$second" --owner $owner >/dev/null
eval "$("$here/radosgw.sh" env "$second")"
expect 200 "second server" "$AWS_ENDPOINT_URL/$BUCKET"
kill -KILL $owner
for _ in $(seq 600); do
	[ "$(code "$AWS_ENDPOINT_URL/$BUCKET")" = 000 ] && exit 0
	sleep 0.05
done
echo "the second server outlived its owner" >&2
exit 1
