#!/usr/bin/env python3
"""Directories whose listing takes several requests, of which the mount makes the next one ahead: all at once, by several at a
time, by turns over more directories than it has room for, from any place, and left in the middle while the mount ends."""
import concurrent.futures
import ctypes
import os
import struct

import lib
import tree
from lib import MIB, check, equal, say

LIBC = ctypes.CDLL(None, use_errno=True)
SIZES = (4096, 32768, MIB)


def getdents(fd, size):
    """[(cookie, name)] of one call."""
    buffer = ctypes.create_string_buffer(size)
    n = LIBC.getdents64(fd, buffer, size)
    check(n >= 0, f"getdents64: {os.strerror(ctypes.get_errno())}")
    found, at = [], 0
    while at < n:
        _, cookie, length = struct.unpack_from("=QqH", buffer, at)
        found.append((cookie, ctypes.string_at(ctypes.addressof(buffer) + at + 19)))
        at += length
    return found


def all_parts(fd, size):
    parts = []
    while part := getdents(fd, size):
        parts.append(part)
    return parts


def opened(path):
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


def list_all(path, size):
    fd = opened(path)
    try:
        return all_parts(fd, size)
    finally:
        os.close(fd)


def counter(mount, name):
    with open(f"{mount.path}/.dsfs/stats", encoding="ascii") as file:
        return dict(map(str.split, file))[name]


def make(box, directories, entries):
    source = box.new_dir("src")
    for d in range(directories):
        os.mkdir(f"{source}/dir{d:02}")
        for i in range(entries):
            path = f"{source}/dir{d:02}/{'n' * (i % 60)}{i:05}"
            if i % 50 == 7:
                os.symlink("x" * (i % 40 + 1), path)
            elif i % 50 == 8:
                os.link(f"{source}/dir00/{0:05}", path)
            elif i % 50 == 9:
                os.mkdir(path)
            else:
                with open(path, "wb") as file:
                    file.write(bytes(i % 71))
    return source


def names_of(source, d):
    return sorted([os.fsencode(name) for name in os.listdir(f"{source}/dir{d:02}")] + [b".", b".."])


def run(box, args):
    directories = 40  # more than the mount makes ahead at a time
    source, repo, cache = make(box, directories, args.entries), box.path("repo"), box.path("cache")
    box.commit(source, repo, "--init")
    wanted = tree.snapshot(source)

    def mount(uring):
        return box.mount(repo, f"cache_dir={cache}", f"io_uring={uring}")

    for uring in "off", "auto":
        with mount(uring) as place:
            lines = tree.compare(wanted, tree.snapshot(place.path))
            check(not lines, "\n".join(lines))
        with mount(uring) as place:
            for d in range(directories):
                with os.scandir(f"{place.path}/dir{d:02}") as found:
                    for entry in found:
                        entry.stat(follow_symlinks=False)
            ahead = int(counter(place, "listings_ahead"))
            say(f"io_uring={uring}: {ahead} parts were ready when they were asked for")
            check(ahead > 0, "nothing was made ahead")
        with mount(uring) as place, concurrent.futures.ThreadPoolExecutor(8) as pool:
            for d in range(0, directories, 5):
                path = f"{place.path}/dir{d:02}"
                for got in pool.map(list_all, [path] * 8, [32768] * 8):
                    equal(sorted(name for part in got for _, name in part), names_of(source, d),
                          "names, listed by 8 at once")
        for size in SIZES:
            with mount(uring) as place:
                turns = {d: (opened(f"{place.path}/dir{d:02}"), []) for d in range(directories)}
                going = set(turns)
                while going:
                    for d in sorted(going):
                        part = getdents(turns[d][0], size)
                        turns[d][1].extend(name for _, name in part)
                        if not part:
                            going.remove(d)
                for d, (fd, names) in turns.items():
                    equal(sorted(names), names_of(source, d), "names, listed by turns")
                    os.close(fd)
        with mount(uring) as place:
            for d in 3, 4:
                path = f"{place.path}/dir{d:02}"
                fd = opened(path)
                parts = all_parts(fd, 32768) if d == 3 else [getdents(fd, 4096) for _ in range(3)]
                entries = [entry for part in parts for entry in part]
                for k in range(0, len(entries) - 1, 37):
                    other = opened(path)
                    os.lseek(other, entries[k][0], os.SEEK_SET)
                    names = [name for _, name in getdents(other, SIZES[k % 3])]
                    follow = [name for _, name in entries[k + 1:k + 1 + len(names)]]
                    equal(names[:len(follow)], follow, f"names after place {k}")
                    os.close(other)
                os.close(fd)
        for _ in range(5):
            with mount(uring) as place:
                for d in range(directories):
                    fd = opened(f"{place.path}/dir{d:02}")
                    getdents(fd, 32768)
                    os.close(fd)


if __name__ == "__main__":
    lib.main(run, lambda parser: parser.add_argument("--entries", type=int, default=700))
