#!/bin/bash
# quickstart.sh [DIR]: installs what building needs, builds the release, and shows what dsfs does with DIR
# (default: /usr/share/doc): commits it, changes a copy, commits again, mounts both versions.
# Leaves the repository and the mounts for you to look at; prints how to clean up.
# QUICKSTART_DIR: where its files go (default: ./quickstart). QUICKSTART_KEEP=0: clean up at the end.
set -euo pipefail
TREE=$(realpath "$(dirname "$0")/..")
SOURCE=$(realpath -m -- "${1:-/usr/share/doc}")
WORK=$(realpath -m -- "${QUICKSTART_DIR:-$TREE/quickstart}")
cd "$TREE"
DSFS=$PWD/build-release/src/cli/dsfs

step() { printf '\n== %s\n' "$*"; }
run() { printf '$ %s\n' "$*"; "$@"; }
cleanup() {
	for v in 1 2; do
		if mountpoint -q "$WORK/v$v"; then "$DSFS" umount "$WORK/v$v" || "$DSFS" umount -l "$WORK/v$v"; fi
	done
	rm -rf "$WORK"
}

[ -d "$SOURCE" ] || { echo "quickstart: $SOURCE is not a directory" >&2; exit 2; }
step "installing what is missing"
./scripts/setup.sh --build
step "building the release (build-release/)"
[ -f build-release/build.ninja ] || meson setup build-release --buildtype=release -Dtests=disabled >/dev/null
ninja -C build-release

if [ -e "$WORK" ]; then
	step "cleaning up what an earlier run left in $WORK"
	cleanup
fi
mkdir -p "$WORK/v1" "$WORK/v2"
trap 'echo; echo "quickstart: stopped; cleaning up" >&2; cleanup' INT TERM
[ "${QUICKSTART_KEEP:-1}" = 1 ] || trap cleanup EXIT

step "version 1: $SOURCE as it is"
cp -a --no-preserve=ownership "$SOURCE" "$WORK/data"
run "$DSFS" commit --init "$WORK/data" "$WORK/repo" -m "as it came" --tag first
step "version 2: one file changed, one new, one directory gone (of what there is)"
FILE=$(find "$WORK/data" -type f -size +0 | sort | sed -n 1p)
GONE=$(find "$WORK/data" -mindepth 1 -maxdepth 1 -type d | sort | sed -n '$p')
if [ -n "$FILE" ]; then
	BEFORE=$(sha256sum <"$FILE")
	chmod u+w "$FILE"
	echo "changed by quickstart" >>"$FILE"
fi
echo "hello, version 2" >"$WORK/data/new-file"
[ -z "$GONE" ] || rm -rf "$GONE"
run "$DSFS" commit "$WORK/data" "$WORK/repo" -m "changed, added, removed"
run "$DSFS" log "$WORK/repo"
run "$DSFS" diff "$WORK/repo@1" "$WORK/repo@2" | tail -n 6

step "both mounted at once"
run "$DSFS" mount "$WORK/repo@first" "$WORK/v1" -o "cache_dir=$WORK/cache"
run "$DSFS" mount "$WORK/repo@2" "$WORK/v2" -o "cache_dir=$WORK/cache"
REL=${FILE#"$WORK/data/"}
diff -r --no-dereference "$WORK/data" "$WORK/v2" >/dev/null && echo "version 2 is exactly the directory as it is now"
[ -n "$FILE" ] && [ "$(sha256sum <"$WORK/v1/$REL")" = "$BEFORE" ] && echo "version 1 still reads as before: $REL"
[ -n "$GONE" ] && [ -d "$WORK/v1/$(basename "$GONE")" ] &&
	echo "and still has what version 2 lost: $(basename "$GONE")/"
diff -r --no-dereference "$SOURCE" "$WORK/v1" >/dev/null 2>&1 && echo "version 1 is exactly $SOURCE"
run "$DSFS" mount

step "next"
cat <<EOF
look around:     ls $WORK/v1 $WORK/v2
your own data:   $DSFS init s3://bucket/name
                 $DSFS commit ./data s3://bucket/name -m "first"
                 $DSFS mount s3://bucket/name /mnt
more:            $DSFS help
clean up:        $DSFS umount $WORK/v1 $WORK/v2 && rm -rf $WORK
EOF
