#!/bin/bash
# usage: check_tree.sh
# What every file of the tree must hold to: at most 800 lines, no path of somebody's machine, no
# address of a package server (scripts learn it from the system), no left-over of a merge, scripts
# that parse.
set -u
cd "$(dirname "$0")/.." || exit 1
. scripts/lib/tree.sh
bad=0
complain() {
	echo "$*"
	bad=1
}

while IFS= read -r file; do
	lines=$(wc -l <"$file")
	[ "$lines" -le 800 ] || complain "$file: $lines lines; above 800 it is two things"
done < <(tree_files '*.c' '*.h' '*.sh' '*.py' '*.sql' '*.build')

machine='(^|[^[:alnum:]_.~$}*-])/(root|home|work|Users)/[[:alnum:]._-]'
server='(deb|security|snapshot)\.debian\.org|registry\.npm|npmjs\.(com|org)|pypi\.org|crates\.io'
merge='^(<{7}|>{7}|={7})( |$)'
while IFS= read -r file; do
	# A text file by grep's own judgement.
	grep -qI . "$file" || continue
	hits=$(grep -nE "$machine|$merge" "$file" | head -3)
	[ -z "$hits" ] || complain "$file: $hits"
	case $file in
	scripts/check_tree.sh) ;;
	*)
		hits=$(grep -nE "$server" "$file" | head -3)
		[ -z "$hits" ] || complain "$file: $hits"
		;;
	esac
done < <(tree_files '*')

for file in $(tree_files '*.sh' '.ci/*'); do
	bash -n "$file" || complain "$file: does not parse"
done
for file in $(tree_files '*.py'); do
	python3 -c 'import ast, sys; ast.parse(open(sys.argv[1]).read())' "$file" ||
		complain "$file: does not parse"
done
exit $bad
