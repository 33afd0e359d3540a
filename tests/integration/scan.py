#!/usr/bin/env python3
"""Epochs over more than the cache holds: whatever the order, a part of the data stays in it, and what is missing is fetched once,
in chunks. Small files in several packs, a file that is larger than the cache, two mounts that share it, and a turn to other data."""
import os
import random
import threading

import lib
from lib import KIB, MIB, check, equal, say

# Of the cache: the version's list of files, and what is less than a chunk at the end; blocks that chunks share, and the images' maps
# (1 to 6 % in epochs over 1 GiB).
ALLOWED_BYTES = 2 * MIB
ALLOWED_PART = 0.07
# Of a small one it may be more.
ALLOWED_PART_MAX = 0.15


def stats(mount):
    with open(f"{mount.path}/.dsfs/stats", encoding="ascii") as file:
        return {key: int(value) for key, value in map(str.split, file)}


def make(source, rng, count, sizes):
    wanted = {}
    for i in range(count):
        name = f"{i % 10}/{i:05}"
        os.makedirs(os.path.dirname(f"{source}/{name}"), exist_ok=True)
        size = rng.randint(*sizes)
        # randbytes() knows 256 MiB at most.
        wanted[name] = b"".join(rng.randbytes(min(64 * MIB, size - off)) for off in range(0, size, 64 * MIB))
        with open(f"{source}/{name}", "wb") as file:
            file.write(wanted[name])
    return wanted


def read(mount, name, wanted, piece=1 << 30):
    """All of a file, and then no more in page cache, so that the next epoch comes to dsfs too."""
    fd = os.open(f"{mount.path}/{name}", os.O_RDONLY)
    try:
        for off in range(0, len(wanted), piece):
            got = b""
            while len(got) < min(piece, len(wanted) - off):
                part = os.pread(fd, min(piece, len(wanted) - off) - len(got), off + len(got))
                check(part, f"{name} ends early")
                got += part
            check(got == wanted[off:off + len(got)], f"{name} is wrong at {off}")
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def fetched(mount):
    return stats(mount)["fetch_chunk_bytes"]


def present(cache):
    """Bytes of `data` that are allocated."""
    return sum(os.stat(os.path.join(path, "data")).st_blocks * 512
               for path, _, names in os.walk(cache) if "data" in names)


def epochs(mount, wanted, order, rng, count, piece=1 << 30):
    """The parts of the bytes that were not fetched, epoch by epoch."""
    names, total, rates = list(wanted), sum(map(len, wanted.values())), []
    for _ in range(count):
        if order == "shuffled":
            rng.shuffle(names)
        before = fetched(mount)
        for name in names:
            read(mount, name, wanted[name], piece)
        rates.append(1 - (fetched(mount) - before) / total)
    equal(stats(mount)["failures"], 0, "failures")
    return rates


def show(rates):
    return " ".join(f"{100 * rate:.1f}" for rate in rates) + " %"


def check_rates(what, rates, size, total):
    allowed = min(ALLOWED_BYTES + ALLOWED_PART * size, ALLOWED_PART_MAX * size)
    bound = (size - allowed) / total
    say(f"{what}: not fetched {show(rates)}; cache/dataset {100 * size / total:.1f} %")
    for rate in rates[1:]:
        check(rate >= bound, f"{what}: {show(rates)}, less than {100 * bound:.1f} %")


def small(box, repo, wanted, rng, count):
    total = sum(map(len, wanted.values()))
    size = total // 4
    for order in ("cyclic", "shuffled"):
        cache = box.new_dir("cache")
        with box.mount(repo, f"cache_dir={cache},cache_size={size}") as mount:
            rates = epochs(mount, wanted, order, rng, count)
            check_rates(f"{len(wanted)} small files, {order}", rates, size, total)
            # What is not there is fetched, and nothing else: blocks count more than the chunks in them.
            least = (total - present(cache)) / total
            say(f"  fetched of what was missed: at most {(1 - rates[-1]) / least:.3f}")
            check(1 - rates[-1] <= 1.1 * least + 0.02, f"{show(rates)} with {present(cache)} bytes in the cache")


def large(box, repo, wanted, rng, count):
    """In reads of 128 KiB, far smaller than its chunks: fetched once all the same."""
    total = sum(map(len, wanted.values()))
    size = total // 4
    with box.mount(repo, f"cache_dir={box.new_dir('cache')},cache_size={size}") as mount:
        rates = epochs(mount, wanted, "cyclic", rng, count, 128 * KIB)
        # A chunk may be a part of the cache.
        check_rates("a large file", [rate + 2 * MIB / total for rate in rates], size, total)
        check(min(rates) > -0.05, f"more was fetched than there is: {show(rates)}")


def shared(box, repo, wanted, rng, count):
    total = sum(map(len, wanted.values()))
    size = total // 4
    cache = box.new_dir("cache")
    options = f"cache_dir={cache},cache_size={size}"
    with box.mount(repo, options) as one, box.mount(repo, options) as two:
        found, errors = {}, []

        def reader(mount, order, seed):
            try:
                found[order] = epochs(mount, wanted, order, random.Random(seed), count)
            except (lib.Failed, OSError) as error:
                errors.append(error)

        threads = [threading.Thread(target=reader, args=(one, "cyclic", 1)),
                   threading.Thread(target=reader, args=(two, "shuffled", rng.random()))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        check(not errors, f"{errors}")
        # What one has just fetched and the other wants now may be fetched twice: it is not counted as a hit of either.
        for order, rates in found.items():
            check_rates(f"two mounts, one cache, {order}", rates, size, total)


def turn(box, repo, other, wanted, others, rng):
    """A mount of other data, which would fit alone: from its second epoch on they are there."""
    size = sum(map(len, wanted.values())) // 4
    cache = box.new_dir("cache")
    with box.mount(repo, f"cache_dir={cache},cache_size={size}") as mount:
        epochs(mount, wanted, "shuffled", rng, 2)
    with box.mount(other, f"cache_dir={cache},cache_size={size}") as mount:
        rates = epochs(mount, others, "shuffled", rng, 2)
        say(f"then other data: not fetched {show(rates)}")
        check(rates[1] > 0.9, f"other data do not take the place of the old: {show(rates)}")


def run(box, args):
    rng = random.Random(args.seed)
    repos, wanted = {}, {}
    for what, count, sizes in (("small", args.mib * 16, (20 * KIB, 108 * KIB)),
                               ("large", 1, (args.mib * MIB,) * 2),
                               ("other", args.mib * 2, (20 * KIB, 108 * KIB))):
        source, repos[what] = box.new_dir(what), box.path(f"repo-{what}")
        wanted[what] = make(source, rng, count, sizes)
        box.commit(source, repos[what], "--init")
    small(box, repos["small"], wanted["small"], rng, args.epochs)
    large(box, repos["large"], wanted["large"], rng, args.epochs)
    shared(box, repos["small"], wanted["small"], rng, args.epochs)
    turn(box, repos["small"], repos["other"], wanted["small"], wanted["other"], rng)


def add_arguments(parser):
    parser.add_argument("--mib", type=int, default=64, help="small files of so many MiB")
    parser.add_argument("--epochs", type=int, default=2)


if __name__ == "__main__":
    lib.main(run, add_arguments)
