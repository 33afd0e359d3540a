#!/usr/bin/env python3
"""The ways in which the kernel reaches a mount's bytes: kernel=classic, stateless, passthrough, and what `auto` makes of a
version. Opens are asked for where they must be and nowhere else; a large file is handed to the kernel once all of it is in the
cache, never to one handle and not to another (T46), and stays right when the cache loses it."""
import concurrent.futures
import glob
import hashlib
import mmap
import os
import random
import re
import shutil

import lib
from lib import KIB, MIB, check, equal, say

MODES = ["classic", "stateless", "passthrough"]


def make(box, rng, large, small):
    source = box.new_dir("src")
    for i in range(small):
        with open(f"{source}/small{i}", "wb") as file:
            file.write(rng.randbytes(rng.randint(1, 100 * KIB)))
    for i in range(large):
        with open(f"{source}/large{i}", "wb") as file:
            file.write(rng.randbytes(9 * MIB + i))
            file.seek(2 * MIB, os.SEEK_CUR)
            file.write(rng.randbytes(100 * KIB))
            file.truncate(16 * MIB + 3 * i)
    return source


def read(path):
    with open(path, "rb") as file:
        return file.read()


def stats(mount):
    return {key: int(value) for key, value in
            map(str.split, read(f"{mount.path}/.dsfs/stats").decode().splitlines())}


def chosen(mount):
    return re.search(r"mounted .* on .*: kernel=(\w+), (.*); io_uring", mount.log_text()).groups()


def may_pass(box):
    """None, or why there is no passthrough here, as doctor says it."""
    row = next(row for row in box.json("doctor") if row["what"] == "passthrough")
    return None if row["verdict"] == "ok" else row["text"]


def check_auto(box, rng):
    missing = may_pass(box)
    for large, small, wanted in (3, 5, "passthrough"), (1, 900, "stateless"), (0, 2, "stateless"):
        source, repo = make(box, rng, large, small), box.path(f"auto{large}-{small}")
        box.commit(source, repo, "--init")
        with box.mount(repo) as mount:
            mode, why = chosen(mount)
            if wanted == "passthrough" and missing:
                equal((mode, why), ("stateless", missing), "without passthrough")
            else:
                equal(mode, wanted, f"mode for {large} large and {small} small files ({why})")
    if os.geteuid() == 0:
        with box.mount(repo, "kernel=classic") as mount:
            equal(chosen(mount), ("classic", "as asked"), "what was asked for")


def check_asked(box, repo, source):
    """What the kernel asks for again, when all is in its page cache."""
    names = sorted(os.listdir(source))
    small = [name for name in names if name.startswith("small")]
    for mode in MODES:
        if mode == "passthrough" and may_pass(box):
            continue
        with box.mount(repo, f"kernel={mode}") as mount:
            for name in names:
                equal(read(f"{mount.path}/{name}"), read(f"{source}/{name}"), f"{mode}: {name}")
            before = stats(mount)["requests"]
            for name in small:
                with open(f"{mount.path}/{name}", "rb") as file:
                    os.fstat(file.fileno())
                    file.read()
            os.listdir(mount.path)
            again = stats(mount)["requests"] - before
        # In classic mode opens, releases and the listing are answered without being counted as requests.
        limit = len(small) + 4 if mode == "passthrough" else 4
        check(again <= limit, f"{mode}: {again} requests for {len(small)} files that were read before")
        say(f"{mode}: {again} requests for {len(small)} files that were read before")


def check_readahead(box, repo):
    """How far the kernel reads ahead: as asked, further than it does by itself only as root."""
    for options, kib in ((), 512), (("readahead=2M",), 2048), (("readahead=64K",), 64):
        with box.mount(repo, *options) as mount:
            device = os.stat(mount.path).st_dev
            said = re.search("; readahead ([0-9.]+) ([KM])iB", mount.log_text())
            check(said, f"nothing about readahead in {mount.log_text()}")
            is_kib = int(read(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb"))
        equal(float(said[1]) * {"K": 1, "M": 1024}[said[2]], is_kib, f"KiB as the log says, for {options}")
        if os.geteuid() == 0 or kib <= 64:
            equal(is_kib, kib, f"KiB that are read ahead, for {options}")
    for bad, word in ("2K", "at least 4.0 KiB"), ("1G", "at most 64.0 MiB"):
        result = box.dsfs("mount", repo, box.dir, "-o", f"readahead={bad}", status=2)
        check(word in result.errors and result.errors.count("\n") == 1, f"said: {result.errors}")
    result = box.dsfs("mount", repo, box.dir, "-o", "inflight=1M", status=2)
    check("inflight is at least 16.0 MiB" in result.errors, f"said: {result.errors}")


def hold(path, n):
    return [open(path, "rb") for _ in range(n)]


def check_passing(box, repo, source):
    wanted = read(f"{source}/large0")
    cache = box.new_dir("pass")
    with box.mount(repo, "kernel=passthrough", f"cache_dir={cache}") as mount:
        path = f"{mount.path}/large0"
        # Open while it is not here: cached, and so is who comes while that one is open.
        first = open(path, "rb")
        equal(first.read(100), wanted[:100], "start through the first handle")
        equal(read(path), wanted, "all of it through a second handle")
        equal(first.read(), wanted[100:], "the rest through the first")
        equal(stats(mount)["passthrough_opens"], 0, "handles for the kernel while a cached one is open")
        first.close()
        box.wait(lambda: passes(mount, path), "a handle for the kernel")
        opens = stats(mount)["passthrough_opens"]
        handles = hold(path, 64)
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            digests = set(pool.map(lambda file: hashlib.sha256(file.read()).hexdigest(), handles))
        equal(digests, {hashlib.sha256(wanted).hexdigest()}, "digests through 64 handles")
        equal(stats(mount)["passthrough_opens"] - opens, 64, "handles for the kernel")
        with mmap.mmap(handles[0].fileno(), 0, prot=mmap.PROT_READ) as mapped:
            check(mapped[:] == wanted, "a mapping")
        equal(os.lseek(handles[1].fileno(), 0, os.SEEK_HOLE), 9 * MIB, "the first hole")
        bytes_before = stats(mount)["read_bytes"]
        for file in handles:
            equal(os.pread(file.fileno(), 100 * KIB, 11 * MIB - 7), wanted[11 * MIB - 7:][:100 * KIB], "a piece")
        equal(stats(mount)["read_bytes"], bytes_before, "bytes that went through the mount's process")
        # The cache loses it: who has it open goes on, and who comes gets right bytes all the same.
        for image in glob.glob(f"{cache}/images/*/*"):
            shutil.rmtree(image)
        equal(os.pread(handles[2].fileno(), MIB, 5 * MIB), wanted[5 * MIB:6 * MIB], "what was unlinked")
        equal(read(path), wanted, "a new handle beside it")
        for file in handles:
            file.close()
        equal(read(path), wanted, "after all were closed")
        equal(stats(mount)["failures"], 0, "failures")
    say("passthrough: 64 handles, a mapping, an unlinked image")


def passes(mount, path):
    """Releases are not waited for by close: whether an open goes to the kernel by now."""
    before = stats(mount)["passthrough_opens"]
    with open(path, "rb"):
        return stats(mount)["passthrough_opens"] > before


def check_storm(box, repo, source, seed):
    """Opens, reads and closes of the same large files from many threads, while the files become whole."""
    wanted = {name: read(f"{source}/{name}") for name in os.listdir(source) if name.startswith("large")}

    def one(mount, number):
        rng = random.Random(f"{seed} {number}")
        for _ in range(60):
            name = rng.choice(sorted(wanted))
            with open(f"{mount.path}/{name}", "rb") as file:
                for _ in range(rng.randint(1, 8)):
                    off, size = rng.randrange(len(wanted[name])), rng.choice((1, 4096, 128 * KIB, MIB))
                    got = os.pread(file.fileno(), size, off)
                    check(got == wanted[name][off:off + size], f"{name}: {size} bytes at {off}")
        return True

    with box.mount(repo, "kernel=passthrough", f"cache_dir={box.new_dir('storm')}") as mount:
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            equal(list(pool.map(lambda n: one(mount, n), range(16))), [True] * 16, "threads")
        found = stats(mount)
        check(found["passthrough_opens"] > 0, "no open went to the kernel")
        equal(found["failures"], 0, "failures")
    say(f"storm: {found['passthrough_opens']} of 960 opens went to the kernel")


def run(box, args):
    rng = random.Random(args.seed)
    source, repo = make(box, rng, 4, 30), box.path("repo")
    box.commit(source, repo, "--init")
    check_auto(box, rng)
    check_asked(box, repo, source)
    check_readahead(box, repo)
    missing = may_pass(box)
    if missing:
        raise lib.Skip(missing)
    check_passing(box, repo, source)
    check_storm(box, repo, source, args.seed)


if __name__ == "__main__":
    lib.main(run)
