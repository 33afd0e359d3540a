#!/bin/bash
# usage: fetch_fuse.sh
# Puts the libfuse release that subprojects/fuse3.wrap pins into subprojects/packagecache, from
# Debian's source package of the same release, where the tarball's bytes are upstream's. The wrap's
# SHA-256 decides. Quiet when it is there already; exit status 1 and one line when it cannot be had
# (the build then uses the system's libfuse).
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/scripts/lib/apt_source.sh"

wrap_value() { sed -n "s/^$1 *= *//p" "$root/subprojects/fuse3.wrap"; }
name=$(wrap_value source_filename)
hash=$(wrap_value source_hash)
version=${name#fuse-}
version=${version%.tar.gz}
cache=$root/subprojects/packagecache

is_right() { [ -f "$1" ] && echo "$hash  $1" | sha256sum --check --status; }

"$root/scripts/lib/fuse_unpacked.sh" check
is_right "$cache/$name" && exit 0
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
orig=fuse3_$version.orig.tar.gz
if apt_source_fetch fuse3 "$orig" "$tmp" sid testing stable && is_right "$tmp/$orig"; then
	mkdir -p "$cache"
	cp "$tmp/$orig" "$cache/$name.part"
	mv "$cache/$name.part" "$cache/$name"
	echo "libfuse $version: fetched into subprojects/packagecache"
else
	echo "libfuse $version cannot be fetched here; the build uses the system's libfuse, with less" >&2
	exit 1
fi
