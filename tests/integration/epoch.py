#!/usr/bin/env python3
"""A shuffled first epoch over small files on a real S3 server: whole packs come in few requests; a look at a few files
does not bring them, nor does an epoch that the cache cannot hold."""
import os
import random

import lib
from lib import KIB, MIB, check, equal, say


def make(source, rng, files):
    wanted = {}
    for i in range(files):
        name = f"{i % 20:02}/{i:05}"
        os.makedirs(os.path.dirname(f"{source}/{name}"), exist_ok=True)
        wanted[name] = rng.randbytes(rng.randint(20, 60) * KIB)
        with open(f"{source}/{name}", "wb") as file:
            file.write(wanted[name])
    return wanted


def stats(mount):
    with open(f"{mount.path}/.dsfs/stats", encoding="ascii") as file:
        return {key: int(value) for key, value in map(str.split, file)}


def epoch(box, repo, proxy, wanted, rng, *options):
    """Reads all in random order through an empty cache; (requests, counters at the end)."""
    names = list(wanted)
    rng.shuffle(names)
    with box.mount(repo, f"cache_dir={box.new_dir('cache')}", *options, env=proxy.env) as mount:
        proxy.clear_log()
        for name in names:
            with open(f"{mount.path}/{name}", "rb") as file:
                check(file.read() == wanted[name], f"{name} is wrong")
        found = stats(mount)
        equal(found["failures"], 0, "failures")
    return len(proxy.requests()), found


def run(box, args):
    rng = random.Random(args.seed)
    store = box.store("s3")
    source, repo = box.new_dir("src"), store.url("epoch")
    wanted = make(source, rng, args.files)
    box.commit(source, repo, "--init", env=store.env)
    proxy = lib.Proxy(box, store.env)
    total = sum(map(len, wanted.values()))

    with box.mount(repo, f"cache_dir={box.new_dir('few')}", env=proxy.env) as mount:
        for name in list(wanted)[::len(wanted) // 4]:
            with open(f"{mount.path}/{name}", "rb") as file:
                check(file.read() == wanted[name], f"{name} is wrong")
        few = stats(mount)
    equal(few["fetch_pulls"], 0, "packs for a look at four files")

    took, found = epoch(box, repo, proxy, wanted, rng)
    say(f"{len(wanted)} files, {total // MIB} MiB: {took} requests, {found['fetch_pulls']} packs, "
        f"{found['fetch_chunks']} chunks")
    check(found["fetch_pulls"] >= total // (32 * MIB), "no whole packs came")
    # Some before it is taken for an epoch, and those that overtake.
    check(took <= len(wanted) // 5, f"{took} requests for {len(wanted)} files")

    took, found = epoch(box, repo, proxy, wanted, rng, f"cache_size={total // 4}")
    equal(found["fetch_pulls"], 0, "packs for a cache that cannot hold them")
    say(f"with a cache of a quarter: {took} requests")


def add_arguments(parser):
    parser.add_argument("--files", type=int, default=1500)


if __name__ == "__main__":
    lib.main(run, add_arguments)
