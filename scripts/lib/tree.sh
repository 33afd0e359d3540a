# Which files are ours (sourced): tree_files PATTERN... prints the tracked and new files that match,
# relative to the root; without git (a tarball) everything but build output.
tree_files() {
	if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
		git ls-files --cached --others --exclude-standard -- "$@" |
			while IFS= read -r file; do
				[ ! -f "$file" ] || printf '%s\n' "$file"
			done
	else
		local pattern
		for pattern; do
			find . -path './build*' -prune -o -path './subprojects/*/*' -prune -o \
				-type f -name "${pattern##*/}" -printf '%P\n'
		done
	fi | sort -u
}
