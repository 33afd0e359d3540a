#!/usr/bin/env python3
"""Shapes that break a file system: 100,000 entries in one directory, directories 200 deep, a sparse
file of 5 GiB, which costs no space in the store or in the cache."""
import os
import time

import lib
import tree
from lib import GIB, MIB, check, equal, say

SIZE = 5 * GIB


def wide(box, entries):
    source, repo = box.new_dir("wide"), box.path("wide-repo")
    for i in range(entries):
        kind = i % 10
        path = f"{source}/entry {i:06}"
        if kind == 0:
            os.symlink(f"entry {i + 1:06}", path)
        elif kind == 1:
            os.mkdir(path)
        else:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o755 if kind == 2 else 0o644)
            if kind > 6:
                os.write(fd, b"%d\n" % (i // 7))
            os.close(fd)
    wanted = tree.snapshot(source)
    started = time.monotonic()
    done = box.commit(source, repo, "--init")
    committed = time.monotonic()
    equal(done["totals"]["files"] + done["totals"]["directories"] + done["totals"]["symlinks"],
          entries, "entries counted")
    with box.mount(repo) as mount:
        names = os.listdir(mount.path)
        listed = time.monotonic()
        equal(len(names), entries, "entries listed")
        equal(len(set(names)), entries, "different names listed")
        # A listing that is closed and gone on with elsewhere.
        with os.scandir(mount.path) as listing:
            for _, entry in zip(range(1000), listing):
                entry.stat(follow_symlinks=False)
        lines = tree.compare(wanted, tree.snapshot(mount.path))
        check(not lines, "wide: " + "\n".join(lines))
        check(not os.path.lexists(f"{mount.path}/entry {entries:06}"), "a name that is not there")
    say(f"wide: {entries} entries: commit {committed - started:.1f} s, "
        f"mount and list {listed - committed:.1f} s, compare {time.monotonic() - listed:.1f} s")


def deep(box, depth):
    source, repo = box.new_dir("deep"), box.path("deep-repo")
    at = source
    for i in range(depth):
        at = os.path.join(at, f"d{i % 10}")
        os.mkdir(at)
        if i % 20 == 0:
            with open(os.path.join(at, "f"), "w", encoding="ascii") as file:
                file.write(f"level {i}")
    with open(os.path.join(at, "bottom"), "w", encoding="ascii") as file:
        file.write("here")
    wanted = tree.snapshot(source)
    box.commit(source, repo, "--init")
    with box.mount(repo) as mount:
        lines = tree.compare(wanted, tree.snapshot(mount.path))
        check(not lines, "deep: " + "\n".join(lines))
        bottom = os.path.relpath(os.path.join(at, "bottom"), source)
        with open(os.path.join(mount.path, bottom), encoding="ascii") as file:
            equal(file.read(), "here", "at the bottom")
    target = box.path("deep-export")
    box.dsfs("export", repo, target)
    check(tree.compare(wanted, tree.snapshot(target)) == [], "deep: export")
    say(f"deep: {depth} levels")


def sparse(box):
    source, repo, cache = box.new_dir("sparse"), box.path("sparse-repo"), box.path("sparse-cache")
    path = os.path.join(source, "file")
    spots = {0: b"start", 3 * GIB + 12345: b"middle", SIZE - 3: b"end"}
    with open(path, "wb") as file:
        file.truncate(SIZE)
        for at, data in spots.items():
            file.seek(at)
            file.write(data)
    with open(os.path.join(source, "nothing"), "wb") as file:
        file.truncate(SIZE)
    started = time.monotonic()
    done = box.commit(source, repo, "--init")
    equal(done["totals"]["bytes"], 2 * SIZE, "bytes counted")
    took = time.monotonic() - started
    with box.mount(repo, f"cache_dir={cache}") as mount:
        for name in "file", "nothing":
            equal(os.stat(f"{mount.path}/{name}").st_size, SIZE, f"size of {name}")
        with open(f"{mount.path}/file", "rb") as file:
            for at, data in spots.items():
                file.seek(max(0, at - 100_000))
                got = file.read(min(at, 100_000) + len(data))
                equal(got, bytes(min(at, 100_000)) + data, f"bytes before and at {at}")
            for at in range(GIB + MIB, SIZE - 2 * MIB, GIB // 2):
                file.seek(at)
                equal(file.read(MIB).count(0), MIB, f"zeros at {at}")
        holes = tree.holes(f"{mount.path}/file", SIZE)
        equal(holes, [(5, 3 * GIB + 12345), (3 * GIB + 12351, SIZE - 3)], "holes")
        equal(tree.holes(f"{mount.path}/nothing", SIZE), [(0, SIZE)], "holes of nothing but holes")
        # A good part of one of them, so that whatever the cache would keep is kept.
        with open(f"{mount.path}/nothing", "rb", buffering=0) as file:
            total = 0
            while total < GIB and (piece := file.read(4 * MIB)):
                check(piece.count(0) == len(piece), f"not zero after {total}")
                total += len(piece)
        equal(total, GIB, "bytes read")
        in_cache = lib.allocated(cache)
    in_store = lib.allocated(repo)
    say(f"sparse: 2 files of {SIZE >> 30} GiB: commit {took:.1f} s, {in_store >> 10} KiB in the store, "
        f"{in_cache >> 10} KiB in the cache")
    check(in_store < MIB, f"{in_store} bytes in the store")
    check(in_cache < 2 * MIB, f"{in_cache} bytes in the cache")


def run(box, args):
    deep(box, 200)
    sparse(box)
    wide(box, args.entries)


if __name__ == "__main__":
    lib.main(run, lambda parser: parser.add_argument("--entries", type=int, default=100_000))
