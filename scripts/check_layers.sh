#!/bin/bash
# usage: check_layers.sh [BUILDDIR]
# The include rules, as a test: a layer includes only those that its row allows; only store includes
# curl, only manifest sqlite3, only fs fuse; util includes nothing but the C library; every header
# compiles alone. BUILDDIR: a configured build, whose bundled libfuse's headers are then used.
set -u
cd "$(dirname "$0")/.." || exit 1
. scripts/lib/tree.sh
bad=0
complain() {
	echo "$*"
	bad=1
}

declare -A may=(
	[util]="util"
	[store]="util store"
	[codec]="util codec"
	[manifest]="util codec manifest"
	[cache]="util store codec cache"
	[repo]="util store codec manifest cache repo dsfs"
	[fs]="util store codec manifest cache repo fs dsfs"
	[cli]="util store codec manifest cache repo fs cli dsfs"
)
# Libraries that belong to one layer: the pattern of their headers, and the layer.
declare -A owner=(
	['curl/*']=store
	['sqlite3*']=manifest
	['fuse*']=fs
	['linux/fuse*']=fs
)

is_in() {
	[[ " $2 " == *" $1 "* ]]
}

for file in $(tree_files 'src/*.c' 'src/*.h'); do
	layer=${file#src/}
	layer=${layer%%/*}
	[ -n "${may[$layer]-}" ] || { complain "$file: no such layer in the table: $layer"; continue; }
	while read -r kind name; do
		if [ "$kind" = '"' ]; then
			case $name in
			*/*) is_in "${name%%/*}" "${may[$layer]}" ||
				complain "$file: $layer may not include \"$name\"" ;;
			*) complain "$file: \"$name\" does not name its layer" ;;
			esac
			continue
		fi
		for pattern in "${!owner[@]}"; do
			[[ $name != $pattern || $layer = "${owner[$pattern]}" ]] ||
				complain "$file: only ${owner[$pattern]} includes <$name>"
		done
		case $layer:$name in
		util:openssl/* | util:lz4* | util:jansson* | util:expat*)
			complain "$file: util includes nothing but the C library, not <$name>" ;;
		esac
	done < <(sed -nE 's/^[ \t]*#[ \t]*include[ \t]*(["<])([^">]+)[">].*/\1 \2/p' "$file")
done
for file in $(tree_files 'include/*.h'); do
	while read -r name; do
		[[ $name == dsfs/* ]] || complain "$file: a public header may not include \"$name\""
	done < <(sed -nE 's/^[ \t]*#[ \t]*include[ \t]*"([^"]+)".*/\1/p' "$file")
done

flags="-std=gnu17 -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -Wall -Wextra -Wno-unused-parameter -Werror
	-Iinclude -Isrc"
config=$(ls "${1:-}"/subprojects/fuse-*/libfuse_config.h 2>/dev/null | head -1)
if [ -n "$config" ]; then
	fuse=${config%/*}
	flags="$flags -DDS_FUSE_BUNDLED=1 -isystem $fuse -isystem subprojects/${fuse##*/}/include"
else
	flags="$flags $(pkg-config --cflags-only-I fuse3 | sed 's/-I/-isystem /g')"
fi
headers=$(tree_files 'src/*.h' 'include/*.h')
alone() {
	# -include rather than the file itself: a main file would warn about `#pragma once`.
	gcc $flags -fsyntax-only -include "$1" -x c /dev/null ||
		{ echo "$1: does not compile alone"; return 1; }
}
export -f alone
export flags
if [ -n "$headers" ]; then
	echo "$headers" | xargs -P "$(nproc)" -I{} bash -c 'alone "$1"' - {} || bad=1
fi
echo "layers: $(tree_files 'src/*.c' 'src/*.h' | wc -l) sources, $(echo "$headers" | wc -w) headers"
exit $bad
