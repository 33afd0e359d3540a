#!/bin/bash
# usage: fetch_vectors.sh [DIR]
# Puts AWS's published SigV4 test vectors (one directory for each case) into DIR, by default
# subprojects/packagecache/sigv4-vectors. They come out of Debian's source package aws-crt-python,
# which carries aws-c-auth and its test data. Quiet when they are there already; exit status 1 and
# one line when they cannot be had.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/scripts/lib/apt_source.sh"
dir=${1:-$root/subprojects/packagecache/sigv4-vectors}

[ -d "$dir/get-vanilla" ] && exit 0
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-stable}")
inside=crt/aws-c-auth/tests/aws-signing-test-suite/v4
if apt_source_fetch aws-crt-python 'aws-crt-python_*.orig.tar.*' "$tmp" "$codename" stable testing sid &&
	mkdir "$tmp/tree" &&
	tar -xf "$tmp"/aws-crt-python_*.orig.tar.* -C "$tmp/tree" --strip-components=1 \
		--wildcards "*/$inside/*" && [ -d "$tmp/tree/$inside/get-vanilla" ]; then
	mkdir -p "$(dirname "$dir")"
	rm -rf "$dir.part" "$dir"
	cp -R "$tmp/tree/$inside" "$dir.part"
	mv "$dir.part" "$dir"
	echo "SigV4 test vectors: $(find "$dir" -mindepth 1 -maxdepth 1 -type d | wc -l) cases in $dir"
else
	echo "SigV4 test vectors (Debian source package aws-crt-python) cannot be fetched here" >&2
	exit 1
fi
