#!/usr/bin/env python3
"""What a mount's own memory is (RssAnon + RssShmem) while 64 readers take megabytes of a large file from the store, each in
another place: at most inflight= and 64 MiB; when nothing is on its way any more, no more than that stays; and after further rounds
with other files no more than after the first. For release builds."""
import concurrent.futures
import os
import random
import zlib

import lib
from lib import MIB, check, equal, say
from mount_stalls import stats
from scale import Sampler

READERS, BUDGET, MORE = 64, 64 * MIB, 64 * MIB
ROUNDS = 3
# Measured: 21 to 40 MiB, 33 to 46 with rings. Four spare buffers of 6 MiB, as far as they were touched (SPARES_IDLE); 16 MiB that rings
# keep; a buffer of 1 MiB for each reply that is made at one moment, and libcurl's; glibc's arenas.
STAYS = 64 * MIB
# How far the spare ones were touched is for chance.
GROWS = 24 * MIB


def read_all(mount, number, sums, rng):
    """A large file, once; the Sampler of that time, at its end."""
    fd = os.open(f"{mount.path}/large{number}", os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)

    def read(i):
        block = os.pread(fd, MIB, i * MIB)
        equal((len(block), zlib.crc32(block)), (MIB, sums[i]), f"length and sum of MiB {i}")

    blocks = list(range(len(sums)))
    rng.shuffle(blocks)
    sampler = Sampler(mount.pid)
    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        list(pool.map(read, blocks))
    sampler.end()
    os.close(fd)
    return sampler


def check_mount(box, store, repo, sums, rng, more):
    # No way of the kernel past the mount: each read is a request of this size.
    options = ["kernel=stateless", f"inflight={BUDGET // MIB}M", f"cache_dir={box.new_dir('cache')}", *more]
    what, stayed = f"{READERS} readers, {' '.join(more) or 'a cache for all of it'}", []
    # That would have malloc touch all of each block.
    with box.mount(repo, *options, env={**store.env, "MALLOC_PERTURB_": None}) as mount:
        for i, of_file in enumerate(sums):
            sampler = read_all(mount, i, of_file, rng)
            peak = sampler.peak
            # What was cut off or read ahead comes after the last reader has gone.
            box.wait(lambda: not any(stats(mount)[key] for key in ("fetch_underway", "fetch_inflight_bytes")), "nothing to be on its way")
            limit = min([STAYS] + [mib + GROWS for mib in stayed[:1]])
            try:
                box.wait(lambda sampler=sampler, limit=limit: sampler.look() <= limit, f"the memory to go below {limit // MIB} MiB", 10)
            finally:
                stayed.append(sampler.look())
                say(f"{what}, round {i + 1}: {peak / MIB:.0f} MiB at most, {stayed[-1] / MIB:.0f} afterwards")
            check(peak > 8 * MIB, f"{what}: a peak of {peak / MIB:.0f} MiB: nothing was on its way")
            check(peak <= BUDGET + MORE, f"{what}: {peak / MIB:.0f} MiB of memory with {BUDGET // MIB} MiB on their way")
        check(stats(mount)["fetch_chunk_bytes"] >= len(sums) * len(sums[0]) * MIB, "not all was fetched")


def run(box, args):
    rng, store = random.Random(args.seed), box.store(args.store)
    source, repo = box.new_dir("src"), store.url("repo")
    sums = []
    for number in range(ROUNDS):
        sums.append([])
        with open(f"{source}/large{number}", "wb") as file:
            for _ in range(args.mib):
                block = rng.randbytes(MIB)
                sums[-1].append(zlib.crc32(block))
                file.write(block)
    box.commit(source, repo, "--init", env=store.env)
    for more in [], [f"cache_size={args.mib // 2}M"]:
        check_mount(box, store, repo, sums, rng, more)


def arguments(parser):
    parser.add_argument("--mib", type=int, default=128, help="each of the files")
    parser.add_argument("--store", choices=["dir", "s3"], default="s3")


if __name__ == "__main__":
    lib.main(run, arguments)
