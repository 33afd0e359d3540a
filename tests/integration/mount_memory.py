#!/usr/bin/env python3
"""What a mount's own memory is (RssAnon + RssShmem) while 64 readers take megabytes of a large file from the store, each in
another place: at most inflight= and 64 MiB; and when they are done, nothing of that size stays. For release builds."""
import concurrent.futures
import os
import random
import zlib

import lib
from lib import MIB, check, equal, say
from scale import Sampler

# Of the last, 16 MiB are what rings keep.
READERS, BUDGET, MORE, STAYS = 64, 64 * MIB, 64 * MIB, 80 * MIB


def check_round(box, store, repo, sums, rng, more):
    # No way of the kernel past the mount: each read is a request of this size.
    options = ["kernel=stateless", f"inflight={BUDGET // MIB}M", f"cache_dir={box.new_dir('cache')}", *more]
    # That would have malloc touch all of each block.
    with box.mount(repo, *options, env={**store.env, "MALLOC_PERTURB_": None}) as mount:
        fd = os.open(f"{mount.path}/large", os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)

        def read(i):
            block = os.pread(fd, MIB, i * MIB)
            equal((len(block), zlib.crc32(block)), (MIB, sums[i]), f"length and sum of MiB {i}")

        blocks = list(range(len(sums)))
        rng.shuffle(blocks)
        sampler = Sampler(mount.pid)
        with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
            list(pool.map(read, blocks))
        peak = sampler.end()
        os.close(fd)
        what = f"{READERS} readers of {len(sums)} MiB, {' '.join(more) or 'a cache for all of it'}"
        check(peak > 8 * MIB, f"{what}: a peak of {peak / MIB:.0f} MiB: nothing was on its way")
        check(peak <= BUDGET + MORE, f"{what}: {peak / MIB:.0f} MiB of memory with {BUDGET // MIB} MiB on their way")
        box.wait(lambda: sampler.look() <= STAYS, f"the memory to go below {STAYS // MIB} MiB", 10)
        say(f"{what}: {peak / MIB:.0f} MiB at most, {sampler.look() / MIB:.0f} afterwards")


def run(box, args):
    rng, store = random.Random(args.seed), box.store(args.store)
    source, repo = box.new_dir("src"), store.url("repo")
    sums = []
    with open(f"{source}/large", "wb") as file:
        for _ in range(args.mib):
            block = rng.randbytes(MIB)
            sums.append(zlib.crc32(block))
            file.write(block)
    box.commit(source, repo, "--init", env=store.env)
    for more in [], ["cache_size=128M"]:
        check_round(box, store, repo, sums, rng, more)


def arguments(parser):
    parser.add_argument("--mib", type=int, default=384, help="the file")
    parser.add_argument("--store", choices=["dir", "s3"], default="s3")


if __name__ == "__main__":
    lib.main(run, arguments)
