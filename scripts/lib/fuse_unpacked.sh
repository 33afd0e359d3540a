#!/bin/bash
# usage: fuse_unpacked.sh check | stamp
# Meson unpacks and patches libfuse once, and never looks again. `check` removes what was unpacked with
# another wrap file or other patches than those of now, so that meson does it anew; `stamp`, after
# meson has unpacked, notes with which. What has no note is removed too.
set -eu
cd "$(dirname "$0")/../../subprojects"

wrap_value() { sed -n "s/^$1 *= *//p" fuse3.wrap; }
unpacked=$(wrap_value directory)
stamp=$unpacked/.unpacked-with
[ -n "$unpacked" ] && [ -d "$unpacked" ] || exit 0
patches=$(wrap_value diff_files | tr , '\n' | sed 's|^ *|packagefiles/|')
# shellcheck disable=SC2086
digest=$(cat fuse3.wrap $patches | sha256sum)
case ${1-} in
check) [ "$(cat "$stamp" 2>/dev/null)" = "$digest" ] || rm -rf "$unpacked" ;;
stamp)
	if [ ! -e "$stamp" ]; then
		# A file that has lost a patch is as old as the tarball, and its object newer.
		find "$unpacked" -type f -exec touch {} +
		echo "$digest" >"$stamp"
	fi
	;;
*)
	echo "usage: fuse_unpacked.sh check | stamp" >&2
	exit 2
	;;
esac
