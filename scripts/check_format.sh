#!/bin/bash
# usage: check_format.sh [--fix]
# All C is formatted as .clang-format says (version 14, since others differ).
set -u
cd "$(dirname "$0")/.." || exit 1
. scripts/lib/tree.sh
format=$(command -v clang-format-14) || { echo "clang-format-14 is not installed" >&2; exit 1; }
mode=(--dry-run -Werror)
[ "${1:-}" != --fix ] || mode=(-i)
files=$(tree_files 'src/*.[ch]' 'include/*.[ch]' 'tests/*.[ch]')
[ -z "$files" ] || echo "$files" | xargs -P "$(nproc)" -n 20 "$format" --style=file "${mode[@]}"
