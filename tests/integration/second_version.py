#!/usr/bin/env python3
"""100,000 files of 20 KB, 1 % of them changed at random: the second version uploads at most 1.2 x the
changed bytes + 6 MiB. Takes 4 GB of disk for a while (in /var/tmp, unless --base says otherwise)."""
import os
import random
import time

import lib
from lib import MIB, check, equal, say


def run(box, args):
    rng = random.Random(args.seed)
    source, repo = box.new_dir("src"), box.path("repo")
    for i in range(args.files):
        if i % 1000 == 0:
            os.mkdir(f"{source}/{i // 1000:03}")
        fd = os.open(f"{source}/{i // 1000:03}/{i:06}.jpg", os.O_WRONLY | os.O_CREAT, 0o644)
        os.write(fd, rng.randbytes(args.size))
        os.close(fd)
    started = time.monotonic()
    first = box.commit(source, repo, "--init", timeout=1200)
    say(f"version 1: {first['totals']['files']} files, {first['totals']['bytes']} bytes in "
        f"{time.monotonic() - started:.1f} s; {first['uploaded_data_bytes']} bytes of data, "
        f"{first['uploaded_manifest_bytes']} of manifest uploaded")
    changed = args.files // 100
    for i in rng.sample(range(args.files), changed):
        with open(f"{source}/{i // 1000:03}/{i:06}.jpg", "wb") as file:
            file.write(rng.randbytes(args.size))
    started = time.monotonic()
    second = box.commit(source, repo, timeout=1200)
    uploaded = second["uploaded_data_bytes"] + second["uploaded_manifest_bytes"]
    limit = int(1.2 * changed * args.size) + 6 * MIB
    say(f"version 2: {changed} files, {changed * args.size} bytes changed; in "
        f"{time.monotonic() - started:.1f} s {second['uploaded_data_bytes']} bytes of data and "
        f"{second['uploaded_manifest_bytes']} of manifest uploaded; "
        f"{uploaded} in all, {limit} allowed ({100 * uploaded / limit:.0f} %)")
    equal(second["changed"], changed, "files that changed")
    check(uploaded <= limit, f"{uploaded} bytes uploaded, {limit} allowed")
    # Without the stat cache: what the parent's rows say must do as well.
    with open(f"{source}/000/000000.jpg", "wb") as file:
        file.write(rng.randbytes(args.size))
    third = box.commit(source, repo, "--state-dir", "", timeout=1200)
    equal(third["changed"], 1, "files that changed after that")
    check(third["uploaded_data_bytes"] < 2 * args.size, f"third version: {third}")
    box.dsfs("verify", repo)


def arguments(parser):
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=20_000)
    parser.set_defaults(base="/var/tmp")


if __name__ == "__main__":
    lib.main(run, arguments, fuse=False)
