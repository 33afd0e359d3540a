#!/usr/bin/env python3
"""export and cat, on a real S3 server behind a proxy that counts: how many requests they take, and what
an export looks like on disk."""
import os

import lib
import tree
from lib import KIB, MIB, check, equal, say


def put(path, data):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)


def requests_of(proxy, function):
    proxy.clear_log()
    function()
    return len(proxy.requests())


def small_files(box, store, proxy):
    """Files of a few hundred bytes, in one directory and in many, travel together."""
    source, repo = box.new_dir("source"), store.url("small")
    for i in range(200):
        put(f"{source}/one/{i:03}", os.urandom(300))
        put(f"{source}/many/{i:03}/file", os.urandom(300))
    put(f"{source}/large", os.urandom(10 * MIB))
    os.link(f"{source}/one/000", f"{source}/many/000/link")
    os.symlink("large", f"{source}/symlink")
    os.utime(f"{source}/one", ns=(1, 1_234_567_890_123_456_789))
    box.commit(source, repo, "--init", env=store.env)
    target = box.path("out")
    took = requests_of(proxy, lambda: box.dsfs("export", repo, target, env=proxy.env))
    say(f"export of 400 small files and one of 10 MiB: {took} requests")
    equal(tree.compare(tree.snapshot(source), tree.snapshot(target)), [], "the export")
    check(took <= 25, f"export took {took} requests")


def one_directory(box, store, proxy):
    source, repo = box.new_dir("source"), store.url("one")
    for i in range(200):
        put(f"{source}/{i:03}", os.urandom(300))
    box.commit(source, repo, "--init", env=store.env)
    took = requests_of(proxy, lambda: box.dsfs("export", repo, box.path("one"), env=proxy.env))
    say(f"export of 200 small files: {took} requests")
    check(took <= 15, f"export of 200 small files took {took} requests")


def large_file(box, store, proxy):
    source, repo = box.new_dir("source"), store.url("large")
    data = os.urandom(10 * MIB)
    put(f"{source}/large", data)
    for i in range(16):
        put(f"{source}/small/{i}", b"%d" % i * KIB)
    box.commit(source, repo, "--init", env=store.env)
    out = []
    took = requests_of(proxy, lambda: out.append(box.dsfs("cat", repo, "large", env=proxy.env).out))
    say(f"cat of 10 MiB: {took} requests")
    equal(out, [data], "cat")
    # Some 10 chunks, and 6 to open the version: not one each.
    check(took <= 12, f"cat of 10 MiB took {took} requests")
    names = [f"small/{i}" for i in range(12)]
    took = requests_of(proxy, lambda: box.dsfs("cat", repo, *names, env=proxy.env))
    say(f"cat of 12 small files: {took} requests")
    check(took <= 9, f"cat of 12 small files took {took} requests")


def run(box, args):
    store = box.store("s3")
    proxy = lib.Proxy(box, store.env, args.seed)
    one_directory(box, store, proxy)
    small_files(box, store, proxy)
    large_file(box, store, proxy)


if __name__ == "__main__":
    lib.main(run, fuse=False)
