#!/bin/bash
# usage: try_fresh.sh [--dir DIR] [--keep] [COMMAND [ARG...]]
# Tries what a newcomer meets: makes a minimal Debian 12 with nothing but git (debootstrap, from
# this system's own mirror), puts a clean clone of HEAD into it and runs COMMAND there (default
# ./scripts/test.sh), in mount and process namespaces of its own, so that no mount and no process
# outlives this script. Wants root, /dev/fuse and some 4 GB. DIR, a new temporary directory by
# default, is removed at the end; with --keep, and with a DIR that was kept, the next run is quick.
# Exit status: COMMAND's.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/scripts/lib/apt_source.sh"
dir= keep=
while [ $# -gt 0 ]; do
	case $1 in
	--dir)
		dir=$(realpath -m -- "${2:?--dir DIR}")
		shift
		;;
	--keep) keep=yes ;;
	-h | --help)
		sed -n '2,9s/^# \{0,1\}//p' "$0"
		exit 0
		;;
	*) break ;;
	esac
	shift
done
[ $# -gt 0 ] || set -- ./scripts/test.sh
[ "$(id -u)" = 0 ] || { echo "try_fresh.sh: needs root" >&2; exit 1; }
command -v debootstrap >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get -qq -y install debootstrap
dir=${dir:-$(mktemp -d /var/tmp/dsfs-fresh.XXXXXX)}
log=$(mktemp)
inside=
finish() {
	# unshare ends for no other signal; the first process in there ends with it, and all others with that.
	[ -z "$inside" ] || { kill -KILL "$inside" && wait "$inside"; } 2>/dev/null || true
	rm -f "$log"
	[ -n "$keep" ] || rm -rf --one-file-system "$dir"
}
trap finish EXIT
trap 'exit 130' HUP INT TERM

if [ ! -e "$dir/.complete" ]; then
	echo "== debootstrap into $dir"
	mkdir -p "$dir"
	debootstrap --variant=minbase --include=git,ca-certificates bookworm "$dir" \
		"$(apt_source_mirror)" >"$log" 2>&1 || { tail -5 "$log" >&2; exit 1; }
	touch "$dir/.complete"
fi
cp -L /etc/resolv.conf /etc/hosts "$dir/etc/"
# As installers leave it; fusermount3 -u reads it.
ln -sfn ../proc/self/mounts "$dir/etc/mtab"
rm -rf "$dir/srv/dsfs"
git clone -q --no-hardlinks "$root" "$dir/srv/dsfs"
git -C "$dir/srv/dsfs" checkout -q --detach "$(git -C "$root" rev-parse HEAD)"

echo "== $* on a fresh Debian $(cat "$dir/etc/debian_version")"
unshare --mount --pid --fork --kill-child --propagation private bash -c '
	set -eu
	dir=$1
	shift
	# Copies of mounts would keep their processes alive here after their umount.
	umount -al -t fuse.dsfs || true
	# The root directory of a mount namespace has to be a mount: tests make some of their own.
	mount --bind "$dir" "$dir"
	mount -t proc proc "$dir/proc"
	mount --rbind /dev "$dir/dev"
	mount --rbind /sys "$dir/sys"
	exec chroot "$dir" /usr/bin/env -i CI="${CI:-}" HOME=/root USER=root TERM="${TERM:-dumb}" \
		LC_ALL=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
		bash -c "cd /srv/dsfs && exec \"\$@\"" - "$@"' - "$dir" "$@" </dev/null &
inside=$!
status=0
wait $inside || status=$?
inside=
exit $status
