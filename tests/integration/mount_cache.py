#!/usr/bin/env python3
"""A mount whose cache is in trouble gives right bytes all the same: a disk that is full from the start
or fills up, a cache directory that is removed or damaged, one that two mounts share, a daemon that is
killed. What is in the cache is read without the store.
"""
import ctypes
import errno
import hashlib
import os
import random
import shutil
import signal
import subprocess
import threading
import time

import lib
from lib import KIB, MIB, check, equal, say

libc = ctypes.CDLL(None, use_errno=True)


def stats(mount):
    with open(f"{mount.path}/.dsfs/stats", encoding="ascii") as file:
        return {key: int(value) for key, value in map(str.split, file)}


def make(source, rng):
    for d in range(8):
        os.mkdir(f"{source}/{d}")
        for i in range(100):
            with open(f"{source}/{d}/{i:03}", "wb") as file:
                file.write(rng.randbytes(rng.choice((1, 1000, 20 * KIB, 100 * KIB))))
    with open(f"{source}/large", "wb") as file:
        file.write(rng.randbytes(24 * MIB))
    with open(f"{source}/zeros", "wb") as file:
        file.write(b"a")
        file.truncate(6 * MIB)


def digests(root):
    found = {}
    for path, _, names in os.walk(root):
        for name in names:
            with open(os.path.join(path, name), "rb") as file:
                found[os.path.relpath(os.path.join(path, name), root)] = \
                    hashlib.file_digest(file, "sha256").hexdigest()
    return found


def same(wanted, mount, what):
    got = digests(mount.path)
    wrong = [path for path in wanted.keys() | got.keys() if wanted.get(path) != got.get(path)]
    check(not wrong, f"{what}: {len(wrong)} files are wrong, such as {wrong[:3]}")
    equal(stats(mount)["failures"], 0, f"{what}: failures")


class Tmpfs:
    def __init__(self, box, size):
        self.path = box.new_dir("tmpfs")
        if os.geteuid() != 0 or libc.mount(b"tmpfs", os.fsencode(self.path), b"tmpfs", 0,
                                           f"size={size},mode=700".encode()) != 0:
            raise lib.Skip("a tmpfs cannot be mounted here")

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        subprocess.run(["umount", "-l", self.path], check=False, timeout=60)


def full_disk(box, repo, wanted):
    for size, filled in ((4 * MIB, True), (4 * MIB, False), (64 * KIB, False)):
        what = f"cache on a tmpfs of {size // KIB} KiB{' that is full' if filled else ''}"
        with Tmpfs(box, size) as tmpfs:
            if filled:
                with open(f"{tmpfs.path}/filler", "wb", buffering=0) as file:
                    try:
                        while file.write(bytes(64 * KIB)) == 64 * KIB:
                            pass
                    except OSError as error:
                        equal(error.errno, errno.ENOSPC, "errno when full")
            with box.mount(repo, f"cache_dir={tmpfs.path}/c,cache_size=1G") as mount:
                same(wanted, mount, what)
                if not filled:
                    # It fills up while the mount lives.
                    with open(f"{tmpfs.path}/filler", "wb", buffering=0) as file:
                        try:
                            while file.write(bytes(4 * KIB)) == 4 * KIB:
                                pass
                        except OSError:
                            pass
                    same(wanted, mount, f"{what}, filled up")
        say(f"{what}: right")


def damage(box, repo, wanted, rng):
    """Bytes of the cache flipped, and files of it cut, between two mounts."""
    cache = box.path("damaged")
    with box.mount(repo, f"cache_dir={cache}") as mount:
        same(wanted, mount, "before the damage")
    changed = 0
    for path, _, names in os.walk(cache):
        for name in names:
            whole = os.path.join(path, name)
            size = os.path.getsize(whole)
            if name == "map" and size:
                with open(whole, "r+b") as file:
                    at = rng.randrange(size)
                    file.seek(at)
                    old = file.read(1)
                    file.seek(at)
                    file.write(bytes([old[0] ^ 1 << rng.randrange(8)]))
                changed += 1
            elif name == "data" and rng.random() < 0.3:
                os.truncate(whole, rng.randrange(size + 1))
                changed += 1
    check(changed > 3, "nothing was damaged")
    with box.mount(repo, f"cache_dir={cache}") as mount:
        same(wanted, mount, f"after damage to {changed} files of the cache")
    say(f"{changed} files of the cache damaged: right")
    flip_manifest(box, repo, wanted, rng, cache)


def flip_manifest(box, repo, wanted, rng, cache):
    """Manifests are checked again by each process: bytes flipped within one boot are a miss too."""
    flipped = 0
    for path, _, names in os.walk(cache):
        if "data" not in names:
            continue
        with open(os.path.join(path, "data"), "r+b") as file:
            data = bytearray(file.read())
            if not data.startswith(b"SQLite format 3\0"):
                continue
            for start in range(0, len(data), 2048):
                at = rng.randrange(start, min(start + 2048, len(data)))
                flipped += data[at] != 0
                data[at] ^= 1 << rng.randrange(8)
            file.seek(0)
            file.write(data)
    check(flipped > 3, "no manifest was damaged")
    with box.mount(repo, f"cache_dir={cache}") as mount:
        same(wanted, mount, f"after {flipped} flips in the manifest")
    say(f"{flipped} bytes of the cached manifest flipped: right")


def removed(box, repo, wanted):
    cache = box.path("removed")
    with box.mount(repo, f"cache_dir={cache}") as mount:
        with open(f"{mount.path}/0/000", "rb") as file:
            file.read()
        # What is fetched ahead would put new files into it meanwhile.
        box.wait(lambda: stats(mount)["fetch_underway"] == 0, "what is fetched ahead to be there")
        shutil.rmtree(cache)
        same(wanted, mount, "after rm -r of the cache")
    with box.mount(repo, f"cache_dir={cache}") as mount:
        same(wanted, mount, "a mount after rm -r of the cache")
    say("cache removed below a mount: right")


def shared(box, repo, wanted, one_alone):
    """Two mounts at once from one cache: each chunk is fetched once."""
    cache = box.path("shared")
    with box.mount(repo, f"cache_dir={cache}") as one, box.mount(repo, f"cache_dir={cache}") as two:
        failures = []

        def reader(mount):
            try:
                same(wanted, mount, "two mounts, one cache")
            except lib.Failed as failure:
                failures.append(failure)

        threads = [threading.Thread(target=reader, args=(mount,)) for mount in (one, two)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        check(not failures, f"{failures}")
        chunks = stats(one)["fetch_chunks"] + stats(two)["fetch_chunks"]
    say(f"two mounts fetched {chunks} chunks, one {one_alone}")
    check(chunks <= 1.2 * one_alone, f"{chunks} chunks fetched by two mounts, {one_alone} by one")


def killed(box, repo, wanted):
    """kill -9 of the daemon: who looks gets an error at once, the next mount takes the place and has
    all that was in the cache."""
    cache = box.path("killed")
    mount = box.mount(repo, f"cache_dir={cache}")
    same(wanted, mount, "before kill -9")
    count = stats(mount)["fetch_chunks"]
    os.kill(mount.pid, signal.SIGKILL)
    box.wait(lambda: not lib.is_alive(mount.pid), "the daemon to die")
    try:
        # A listing that the kernel has may outlive the daemon.
        os.statvfs(mount.path)
        raise lib.Failed("a dead mount answers")
    except OSError as error:
        # A request that was on its way into a ring of io_uring is cancelled with it.
        check(error.errno in (errno.ENOTCONN, errno.ECONNABORTED, errno.ECANCELED), f"a dead mount: {error}")
    box.mounts.remove(mount)
    started = time.monotonic()
    with box.mount(repo, f"cache_dir={cache}", place=mount.path) as again:
        same(wanted, again, "after kill -9")
        check(stats(again)["fetch_chunks"] == 0, "what was in the cache was fetched again")
    say(f"after kill -9 a mount in the same place answered in {time.monotonic() - started:.1f} s")
    return count


def without_store(box, repo, wanted):
    """All is in the cache: a directory store is moved away below the mount, which does not notice."""
    with box.mount(repo, f"cache_dir={box.path('killed')}") as mount:
        os.rename(repo, f"{repo}.away")
        try:
            same(wanted, mount, "without the store")
        finally:
            os.rename(f"{repo}.away", repo)
    say("everything read from the cache alone: right")


def run(box, args):
    rng = random.Random(args.seed)
    source, repo = box.new_dir("src"), box.path("repo")
    make(source, rng)
    wanted = digests(source)
    box.commit(source, repo, "--init")
    count = killed(box, repo, wanted)
    without_store(box, repo, wanted)
    shared(box, repo, wanted, count)
    removed(box, repo, wanted)
    damage(box, repo, wanted, rng)
    full_disk(box, repo, wanted)


if __name__ == "__main__":
    lib.main(run)
