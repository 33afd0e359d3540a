#!/usr/bin/env python3
"""Mounting a version of 1,000,000 files from a real S3 server: at most 12 requests to the store before
the first `ls` answers, and the manifest is not downloaded as a whole. Counted by a proxy."""
import os
import subprocess
import time

import lib
from lib import MIB, check, equal, say

REQUESTS_MAX = 12


def make(source, files):
    for d in range(files // 1000):
        os.mkdir(f"{source}/{d:04}")
        fd = os.open(f"{source}/{d:04}", os.O_RDONLY | os.O_DIRECTORY)
        for i in range(1000):
            os.close(os.open(f"image-{d * 1000 + i:07}.jpg", os.O_WRONLY | os.O_CREAT | os.O_EXCL,
                             0o644, dir_fd=fd))
        os.close(fd)


def look(box, proxy, repo, files):
    """Mounts with an empty cache and counts what each step asks of the store."""
    counts, started = {}, time.monotonic()
    proxy.clear_log()
    mount = box.mount(repo, f"cache_dir={box.path('cold')}", env=proxy.env)
    counts["mount"] = proxy.requests(), time.monotonic() - started
    started = time.monotonic()
    names = subprocess.run(["ls", mount.path], capture_output=True, text=True, check=True,
                           timeout=120).stdout.split()
    counts["ls"] = proxy.requests(), time.monotonic() - started
    equal(len(names), files // 1000, "directories listed")
    started = time.monotonic()
    equal(len(os.listdir(f"{mount.path}/0500")), 1000, "files of a directory listed")
    counts["ls of a directory"] = proxy.requests(), time.monotonic() - started
    equal(os.stat(f"{mount.path}/0999/image-0999999.jpg").st_size, 0, "size of the last file")
    mount.umount()
    return counts


def run(box, args):
    source, store = box.new_dir("src"), box.store("s3")
    repo = store.url("million")
    started = time.monotonic()
    make(source, args.files)
    made = time.monotonic()
    done = box.commit(source, repo, "--init", "--state-dir", "", env=store.env, timeout=1200)
    equal(done["totals"]["files"], args.files, "files committed")
    manifest = done["uploaded_manifest_bytes"]
    say(f"{args.files} files made in {made - started:.1f} s, committed in "
        f"{time.monotonic() - made:.1f} s; the manifest has {manifest} bytes in the store")
    proxy = lib.Proxy(box, store.env)
    counts = look(box, proxy, repo, args.files)
    for step, (requests, seconds) in counts.items():
        size = sum(row[2] or 0 for row in requests if row[0] == "GET")
        say(f"until after {step}: {len(requests)} requests, {size} bytes in ranges, "
            f"{1000 * seconds:.0f} ms for it")
    requests = counts["ls"][0]
    for method, target, size, status in requests:
        say(f"  {method} {target[:100]} {size or ''} {status}")
    check(requests, "the proxy saw nothing: nothing was measured")
    check(len(requests) <= REQUESTS_MAX, f"{len(requests)} requests before the first ls answered")
    whole = [row for row in requests if row[0] == "GET" and "/packs/" in row[1] and not row[2]]
    check(not whole, f"whole packs were fetched: {whole}")
    size = sum(row[2] or 0 for row in requests)
    check(size < max(manifest // 4, 2 * MIB), f"{size} of {manifest} bytes of the manifest fetched")


if __name__ == "__main__":
    lib.main(run, lambda parser: parser.add_argument("--files", type=int, default=1_000_000))
