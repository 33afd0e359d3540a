#!/usr/bin/env python3
"""Random trees, committed and mounted, are equal to their sources in every respect; so they are
after a random change, both versions at once, through an empty cache, and through one that is
smaller than a pack. `export`, `fingerprint`, `diff`, `ls` and `cat` agree with that.

In CI 20 seeds, the last two of them on a real S3 server; `--seeds A-B --store dir|s3` for more.
"""
import os
import random
import shutil

import lib
import tree
from lib import Failed, check, equal, say

PACK = 32 << 20


class Counts:
    def __init__(self):
        self.entries = self.files = self.bytes = self.comparisons = self.changes = 0


def same(wanted, root, what, counts):
    lines = tree.compare(wanted, tree.snapshot(root))
    check(not lines, f"{what}: not equal\n  " + "\n  ".join(lines))
    counts.comparisons += 1
    counts.entries += len(wanted)
    counts.bytes += sum(e.size for e in wanted.values() if e.type == tree.FILE)


def check_mount(box, mount, wanted, commit, what):
    """What a snapshot does not hold."""
    lines = tree.check_stat(mount.root, wanted)
    check(not lines, f"{what}:\n  " + "\n  ".join(lines))
    equal(os.getxattr(mount.path, "user.dsfs.version").decode(), commit["version"],
          f"{what}: user.dsfs.version")
    for path, entry in wanted.items():
        whole = os.path.join(mount.root, path)
        if entry.type != tree.FILE:
            continue
        if entry.size <= 4 * tree.MIB:
            digest = os.getxattr(whole, "user.dsfs.digest").decode()
            equal(digest, entry.digest.hex(), f"{what}: user.dsfs.digest of {path!r}")
        else:
            equal(tree.holes(whole, entry.size), tree.zero_runs(whole), f"{what}: holes of {path!r}")


def check_inodes(one, other, wanted):
    """Every mount of a version has the same inode numbers."""
    for path in wanted:
        a, b = (os.lstat(os.path.join(m.root, path) if path else m.root).st_ino
                for m in (one, other))
        check(a == b, f"{path!r}: inode {a} on one mount, {b} on another")


def name_of(value):
    return bytes.fromhex(value["hex"]) if isinstance(value, dict) else value.encode()


def check_ls(box, repo, env, wanted, rng):
    """`ls --json` of a few directories, `cat` of a few files."""
    dirs = [p for p, e in wanted.items() if e.type == tree.DIR]
    for at in rng.sample(dirs, min(2, len(dirs))):
        rows = box.json("ls", "--", repo, at, env=env)
        got = {name_of(row["name"]): row for row in rows}
        names = {p for p in wanted if p and os.path.dirname(p) == at}
        equal(sorted(got), sorted(map(os.path.basename, names)), f"ls {at!r}")
        equal([name_of(row["name"]) for row in rows], sorted(got), f"order of ls {at!r}")
        for path in names:
            row, entry = got[os.path.basename(path)], wanted[path]
            equal(row["type"], entry.type, f"type of {path!r} in ls")
            equal(row["executable"], entry.executable, f"executable bit of {path!r} in ls")
            if entry.type == tree.FILE:
                equal(row["size"], entry.size, f"size of {path!r} in ls")
            if entry.type == tree.LINK:
                equal(name_of(row["target"]), entry.digest, f"target of {path!r} in ls")
    files = [p for p, e in wanted.items() if e.type == tree.FILE]
    for path in rng.sample(files, min(2, len(files))):
        data = box.dsfs("cat", "--", repo, path, env=env).out
        equal(tree.hashlib.sha256(data).digest(), wanted[path].digest, f"cat {path!r}")


def check_diff(box, repo, env, old, new):
    rows = box.json("diff", f"{repo}@1", f"{repo}@2", env=env)["entries"]
    got = {name_of(row["path"]): row["change"] for row in rows}
    wanted = tree.difference(old, new)
    # A directory's digest is that of its entries: it is not changed itself.
    for path in sorted(got.keys() | wanted.keys()):
        equal(got.get(path), wanted.get(path), f"diff says of {path!r}")
    return len(wanted)


def one_seed(box, seed, store, counts):
    rng = random.Random(f"trees {seed}")
    source, repo, env = box.new_dir("src"), store.url(f"repo-{seed}"), store.env
    entries = rng.choice([20, 100, 300, 600]) if seed % 7 else 2000
    growing = tree.Tree(source, seed)
    growing.grow(entries - 6, large=seed % 3 == 0 or entries == 2000)
    if seed % 3 == 1:
        growing.add_file(growing.bytes(rng.choice(tree.LIMITS[:3]) + rng.randint(-1, 1)))
        growing.settle()

    first = tree.snapshot(source)
    one = box.commit(source, repo, "--init", "-m", f"seed {seed}", env=env)
    equal(one["number"], 1, "number of the first version")
    equal(one["totals"]["files"], sum(e.type == tree.FILE for e in first.values()), "files counted")
    growing.change(max(3, entries // 25))
    second = tree.snapshot(source)
    two = box.commit(source, repo, env=env)
    equal(two["number"], 2, "number of the second version")
    check(tree.compare(second, tree.snapshot(source)) == [], "commit changed the source")

    for number, commit in (1, one), (2, two):
        printed = box.dsfs("fingerprint", f"{repo}@{number}", env=env).text.strip()
        equal(printed, commit["fingerprint"], f"fingerprint of version {number}")
    equal(box.dsfs("fingerprint", source).text.strip(), two["fingerprint"], "of the directory")

    with box.mount(f"{repo}@1", env=env) as m1, box.mount(repo, "version=2", env=env) as m2:
        same(first, m1.path, "version 1", counts)
        same(second, m2.path, "version 2", counts)
        same(first, m1.path, "version 1 once more", counts)
        check_mount(box, m2, second, two, "version 2")
        with box.mount(f"{repo}@2", f"cache_dir={box.path('empty')}", env=env) as again:
            same(second, again.path, "version 2 through an empty cache", counts)
            check_inodes(m2, again, second)
    shutil.rmtree(box.path("empty"))
    with box.mount(f"{repo}@1", f"cache_dir={box.path('small')},cache_size=1M", env=env) as m1:
        same(first, m1.path, "version 1 through a cache of 1 MiB", counts)
    shutil.rmtree(box.path("small"))

    counts.changes += check_diff(box, repo, env, first, second)
    check_ls(box, f"{repo}@1", env, first, rng)
    if seed % 4 == 0:
        target = box.path("export")
        box.dsfs("export", f"{repo}@2", target, env=env)
        same(second, target, "export of version 2", counts)
        shutil.rmtree(os.fsencode(target))
    if seed % 5 == 0:
        box.dsfs("verify", repo, "--read-data", env=env)
    counts.files += two["totals"]["files"]
    growing.remove_all()
    os.rmdir(source)
    shutil.rmtree(box.cache, ignore_errors=True)
    if store.kind == "dir":
        shutil.rmtree(repo)


def run(box, args):
    plans = [(seed, args.store or "dir") for seed in lib.span(args.seeds or "1-20")]
    if not args.seeds and not args.store:
        plans = [(seed, "s3" if seed > 18 else kind) for seed, kind in plans]
    stores, counts, done = {}, Counts(), 0
    for seed, kind in plans:
        if kind not in stores:
            stores[kind] = box.store(kind)
        try:
            one_seed(box, seed, stores[kind], counts)
        except (Failed, OSError) as failure:
            raise Failed(f"seed {seed} on {kind} (--seeds {seed} --store {kind}): {failure}") from None
        done += 1
        if box.late():
            say(f"out of time after seed {seed}")
            break
    say(f"{done} seeds: {counts.files} files; {counts.comparisons} comparisons of "
        f"{counts.entries} entries and {counts.bytes >> 20} MiB; {counts.changes} changes")
    check(counts.changes >= done and counts.comparisons, "nothing was compared")


def arguments(parser):
    parser.add_argument("--seeds", help="such as 1-200")
    parser.add_argument("--store", choices=["dir", "s3"])


if __name__ == "__main__":
    lib.main(run, arguments)
