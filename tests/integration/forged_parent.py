#!/usr/bin/env python3
"""Commit on top of a version whose manifest is sound SQLite but not a sound tree: no crash, nothing of the
damage in what is acknowledged, and an error names the version."""
import os
import shutil

import forged
import lib
import tree
from lib import check, say


def write(path, data):
    with open(path, "wb") as file:
        file.write(data)


def check_version(box, source, repo):
    """The newest version is the source, and whole."""
    target = box.path("export")
    box.dsfs("export", repo, target)
    lines = tree.compare(tree.snapshot(source), tree.snapshot(target))
    check(not lines, "\n".join(lines))
    shutil.rmtree(target)
    found = box.dsfs("verify", f"{repo}@main", "--read-data", "--json", status=None)
    check(found.status == 0 and found.json["clean"], f"verify: {found.text} {found.errors}")


def extents_of_a_small_file(box):
    source, repo = box.new_dir("src"), box.path("repo-small")
    write(f"{source}/a", os.urandom(9000))
    os.link(f"{source}/a", f"{source}/b")
    write(f"{source}/c", b"c")
    box.commit(source, repo, "--init")
    forged.forge(box, repo, """
        INSERT INTO extent (file, off, slot, len, digest, pack, ordinal, stored_off, stored_len)
            SELECT id, 0, 0, size, digest, pack, ordinal, stored_off, stored_len FROM entry WHERE name = x'61';
        UPDATE entry SET pack = NULL, ordinal = NULL, stored_off = NULL, stored_len = NULL, raw_off = NULL,
            extents = 1 WHERE name = x'61';
        """)
    # The names are links of each other no more, so that both rows are made anew.
    os.link(f"{source}/a", f"{source}/d")
    for option in ("--trust-mtime", "--rehash"):
        done = box.commit(source, repo, option)
        check(not done["unchanged"], f"{option}: {done}")
        check_version(box, source, repo)
        write(f"{source}/c", option.encode())


def run(box, args):
    for case in (extents_of_a_small_file,):
        case(box)
        say(f"{case.__name__}: right")


if __name__ == "__main__":
    lib.main(run, fuse=False)
