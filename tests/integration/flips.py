#!/usr/bin/env python3
"""Flipped bits in any object of a store: every read gives the right bytes, or EIO or a refusal that
names the object; `verify --read-data` names every flipped object but hints and the advisory index.

Flips come in rounds. A round of packs flips some twenty bits, mounts with an empty cache, reads all,
puts the bits back and reads again on the same mount; a round of one flips one JSON object (or hint, or
index) and asks `cat`. 1,000 flips in CI, `--flips N` for more.
"""
import errno
import hashlib
import os
import random
import shutil
import time

import lib
import stored
import tree
from lib import KIB, MIB, Failed, check, say

PER_ROUND = 22
# Spoiling these must not be noticed: they are derived.
DERIVED = ("hints/", "index/", "probe.json")


class Flip:
    def __init__(self, key, offset, bit, where):
        self.key, self.offset, self.bit, self.where = key, offset, bit, where

    def __str__(self):
        return f"{self.key} offset {self.offset} bit {self.bit} ({self.where})"


class Repo:
    """A directory store with some versions, what is in them, and what every byte of it is."""

    def __init__(self, box, seed, versions=6):
        self.box, self.dir = box, box.path("repo")
        self.rng = random.Random(seed)
        source = box.new_dir("src")
        growing = tree.Tree(source, seed)
        for _ in range(60):
            growing.add_file(growing.rng.randbytes(growing.rng.randint(1, 60_000)))
        growing.grow(150, large=False)
        growing.add_file(growing.large_bytes(6 * MIB))
        growing.add_file(growing.rng.randbytes(3 * MIB))
        growing.settle()
        self.truth = []
        for _ in range(versions):
            box.commit(source, self.dir, "--init", "--author", "tester", "-m", "words")
            self.truth.append(tree.snapshot(source))
            growing.change(25)
            for _ in range(10):
                growing.add_file(growing.rng.randbytes(growing.rng.randint(1, 60_000)))
        box.dsfs("tag", f"{self.dir}@2", "named")
        self.sizes = {key: os.path.getsize(f"{self.dir}/{key}") for key in stored.keys(self.dir)}
        self.packs = {key: stored.Pack(self.read(key)) for key in self.sizes
                      if key.startswith("packs/")}
        self.data = [k for k, p in self.packs.items() if not p.is_manifest]
        self.manifests = [k for k, p in self.packs.items() if p.is_manifest]
        self.json = [k for k in self.sizes if k == "dsfs.json" or k.startswith(("refs/", "versions/"))]
        self.derived = [k for k in self.sizes if k.startswith(DERIVED)]
        check(self.data and self.manifests and len(self.json) > versions, "objects are missing")
        check(any(k.startswith("index/") for k in self.derived), "there is no advisory index")

    def read(self, key):
        with open(f"{self.dir}/{key}", "rb") as file:
            return file.read()

    def flip(self, flip):
        """Once more puts the bit back."""
        path = f"{self.dir}/{flip.key}"
        mode = os.stat(path).st_mode
        os.chmod(path, mode | 0o200)
        with open(path, "r+b", buffering=0) as file:
            file.seek(flip.offset)
            byte = file.read(1)[0]
            file.seek(flip.offset)
            file.write(bytes([byte ^ 1 << flip.bit]))
        os.chmod(path, mode)

    def in_file(self, version):
        """In a chunk that is a whole file of the version, so that reading all of it meets this one."""
        digests = {e.digest for e in self.truth[version - 1].values() if e.type == tree.FILE}
        key, chunk = self.rng.choice([(key, chunk) for key in self.data
                                      for chunk in self.packs[key].chunks if chunk.digest in digests])
        at = chunk.at + self.rng.randrange(chunk.stored)
        return Flip(key, at, self.rng.randrange(8), "a file's chunk")

    def in_pack(self, key, chunks_only=False):
        pack, rng = self.packs[key], self.rng
        kind = rng.random()
        if chunks_only or kind < 0.7:
            chunk = rng.choice(pack.chunks)
            where = rng.choice(["first", "middle", "middle", "last"])
            at = {"first": chunk.at, "last": chunk.at + chunk.stored - 1,
                  "middle": chunk.at + rng.randrange(chunk.stored)}[where]
            where = f"chunk's {where} byte"
        elif kind < 0.75:
            at, where = rng.randrange(8), "head"
        elif kind < 0.95:
            at, where = rng.randrange(pack.toc_at, pack.size - 8), "table"
        else:
            at, where = rng.randrange(pack.size - 8, pack.size), "trailer"
        return Flip(key, at, rng.randrange(8), where)

    def in_object(self, key):
        size, rng = self.sizes[key], self.rng
        where = rng.choice(["first", "middle", "middle", "seal", "last"])
        at = {"first": 0, "middle": rng.randrange(size), "last": size - 1,
              "seal": rng.randrange(max(0, size - 66), size)}[where]
        return Flip(key, at, rng.randrange(8), where)


class Counts:
    def __init__(self):
        self.flips = self.met = self.mounts = self.refused = self.reads = self.eio = 0
        self.harmless = self.recovered = 0
        self.classes = {}

    def add(self, flips):
        self.flips += len(flips)
        for flip in flips:
            kind = flip.key.split("/")[0] if "/" in flip.key else flip.key
            name = f"{kind}: {flip.where}"
            self.classes[name] = self.classes.get(name, 0) + 1


def named(text, key):
    return key in text or key.rsplit("/", 1)[-1] in text


def is_harmless(repo, key, chunk):
    """Whether what is stored now is another LZ4 block for the same bytes."""
    return chunk.stored != chunk.raw and stored.is_harmless(repo.read(key), chunk)


def verify(repo, flips, counts):
    """Every flipped object is named, and nothing else is."""
    result = repo.box.dsfs("verify", repo.dir, "--read-data", "--json", status=None)
    text = result.text + result.errors
    wanted = {flip.key for flip in flips if not flip.key.startswith(DERIVED)}
    for key in wanted:
        if named(text, key):
            continue
        mine = [flip for flip in flips if flip.key == key]
        pack = repo.packs.get(key)
        chunks = [pack.chunk_at(flip.offset) for flip in mine] if pack else [None]
        if all(c and is_harmless(repo, key, c) for c in chunks):
            counts.harmless += len(mine)  # another LZ4 block for the same bytes
            continue
        raise Failed("verify --read-data does not name " + ", ".join(map(str, mine)) +
                     f"; status {result.status}: {text[:1500]}")
    if wanted and not counts.harmless:
        check(result.status == 6, f"verify: status {result.status}: {text[:500]}")
    for row in result.json.get("findings", []):
        key = next((k for k in wanted if named(row["object"] + row["finding"], k)), None)
        check(key or any(k in repo.manifests or k in repo.json for k in wanted),
              f"verify finds a fault where there is none: {row}")


def read_all(mount, truth, counts):
    """Reads all; returns the paths that gave EIO. Anything else than that and the truth fails."""
    bad = set()
    for path, entry in truth.items():
        whole = os.path.join(mount.root, path) if path else mount.root
        counts.reads += 1
        try:
            st = os.lstat(whole)
            if entry.type == tree.DIR:
                got = sorted(os.listdir(whole))
                wanted = sorted(os.path.basename(p) for p in truth if p and os.path.dirname(p) == path)
                check(got == wanted, f"{path!r}: a wrong listing")
            elif entry.type == tree.LINK:
                check(os.readlink(whole) == entry.digest, f"{path!r}: a wrong target")
            else:
                check(st.st_size == entry.size, f"{path!r}: size {st.st_size}, not {entry.size}")
                with open(whole, "rb", buffering=0) as file:
                    digest = hashlib.sha256()
                    while piece := file.read(128 * KIB):
                        digest.update(piece)
                check(digest.digest() == entry.digest, f"{path!r}: WRONG BYTES")
            check(st.st_mtime_ns == entry.mtime_ns, f"{path!r}: a wrong time")
        except OSError as error:
            check(error.errno == errno.EIO, f"{path!r}: {error}, not EIO")
            bad.add(path)
    counts.eio += len(bad)
    return bad


def see_in_log(box, mount, key, path):
    """The log has at most ten lines a second: what it left out is asked once more."""
    def is_there():
        if named(mount.log_text(), key):
            return True
        try:
            with open(path, "rb", buffering=0) as file:
                while file.read(128 * KIB):
                    pass
        except OSError:
            pass
        time.sleep(0.2)
        return False
    box.wait(is_there, f"{key} to be named in the log", 10)


def pack_round(repo, flips, version, counts):
    box, truth = repo.box, repo.truth[version - 1]
    for flip in flips:
        repo.flip(flip)
    try:
        verify(repo, flips, counts)
        counts.mounts += 1
        cache = box.path(f"cold-{counts.mounts}")
        try:
            mount = box.mount(f"{repo.dir}@{version}", f"cache_dir={cache}", "timeout=10s")
        except lib.MountRefused as refused:
            text = refused.result.errors + refused.log
            hit = [flip for flip in flips if named(text, flip.key)]
            check(hit, f"refused without naming one of the flipped objects: {text}")
            counts.refused += 1
            counts.met += 1
            return
        with mount:
            bad = read_all(mount, truth, counts)
            log = mount.log_text()
            met, hit_packs = 0, {}
            paths = {e.digest: p for p, e in truth.items() if e.type == tree.FILE}
            for flip in flips:
                pack = repo.packs.get(flip.key)
                chunk = pack.chunk_at(flip.offset) if pack else None
                if not chunk or pack.is_manifest or chunk.digest not in paths:
                    continue  # its bytes are in no file of this version, or in one of several chunks
                if paths[chunk.digest] in bad:
                    met += 1
                    hit_packs[flip.key] = paths[chunk.digest]
                else:
                    check(is_harmless(repo, flip.key, chunk),
                          f"{paths[chunk.digest]!r} was read in spite of the flip in {flip}")
            if any(flip.key in repo.manifests for flip in flips) and bad:
                met += any(named(log, flip.key) for flip in flips)
            for key, path in hit_packs.items():
                see_in_log(box, mount, key, os.path.join(mount.root, path))
            check(not bad or any(named(log, flip.key) for flip in flips),
                  f"{len(bad)} paths with EIO, and no flipped object in the log: {log[-1000:]}")
            counts.met += met
            for flip in flips:
                repo.flip(flip)
            flips = []
            still = read_all(mount, truth, counts)
            check(not still, f"still EIO after the bytes are right again: {sorted(still)[:5]}")
            counts.recovered += len(bad)
    finally:
        for flip in flips:
            repo.flip(flip)
        shutil.rmtree(box.path(f"cold-{counts.mounts}"), ignore_errors=True)


def single_round(repo, flip, counts):
    """One object that is no pack; asked by `cat` of a version that it may have a part in."""
    box, version = repo.box, repo.rng.randint(1, len(repo.truth))
    truth = repo.truth[version - 1]
    path = repo.rng.choice([p for p, e in truth.items() if e.type == tree.FILE and e.size])
    selector = {1: f"@{version}", 2: "@named" if version == 2 else ""}.get(repo.rng.randint(1, 2), "")
    if not selector and version != len(repo.truth):
        selector = f"@main:{version}"
    repo.flip(flip)
    try:
        cache = box.path("cold-cat")
        result = box.dsfs("cat", "--", f"{repo.dir}{selector}", path, status=None,
                          env={"DSFS_CACHE_DIR": cache})
        shutil.rmtree(cache, ignore_errors=True)
        if result.status == 0:
            digest = hashlib.sha256(result.out).digest()
            check(digest == truth[path].digest, f"WRONG BYTES from cat {selector} {path!r}")
        else:
            counts.refused += 1
            counts.met += 1
            check(named(result.errors, flip.key), f"not named: {result.errors}")
            check(result.status in (3, 6, 9), f"status {result.status}: {result.errors}")
            check(not flip.key.startswith(DERIVED), f"a derived object matters: {result.errors}")
        verify(repo, [flip], counts)
    except Failed as failure:
        raise Failed(f"{flip}: {failure}") from None
    finally:
        repo.flip(flip)


def run(box, args):
    repo, counts = Repo(box, args.seed), Counts()
    before = {key: repo.read(key) for key in repo.sizes}
    rounds = 0
    while counts.flips < args.flips and not box.late():
        kind = rounds % 7
        rounds += 1
        left = min(PER_ROUND, args.flips - counts.flips)
        version = repo.rng.randint(1, len(repo.truth))
        if kind == 6 and left > 4:
            flips = [repo.in_pack(repo.rng.choice(repo.manifests)) for _ in range(left)]
        else:
            flips = [repo.in_file(version)] if left > 1 else []
            flips += [repo.in_pack(repo.rng.choice(repo.data), repo.rng.random() < 0.7)
                      for _ in range(left - 2)]
            flips.append(repo.in_object(repo.rng.choice(repo.derived)))
        # The same bit twice would be right again.
        flips = list({(flip.key, flip.offset, flip.bit): flip for flip in flips}.values())
        try:
            pack_round(repo, flips, version, counts)
        except Failed as failure:
            raise Failed(f"round {rounds}, version {version}, flips:\n  " +
                         "\n  ".join(map(str, flips)) + f"\n{failure}") from None
        counts.add(flips)
        for _ in range(min(2, args.flips - counts.flips)):
            flip = repo.in_object(repo.rng.choice(repo.json * 3 + repo.derived))
            single_round(repo, flip, counts)
            counts.add([flip])
    if counts.flips < args.flips:
        say("out of time")
    for key, data in before.items():
        check(repo.read(key) == data, f"{key} was not put back: a fault of this test")
    check(box.json("verify", repo.dir, "--read-data")["clean"], "not clean at the end")
    for name, number in sorted(counts.classes.items()):
        say(f"  {number:6} {name}")
    say(f"{counts.flips} flips, {counts.met} met by a read or a refusal ({counts.refused} refusals); "
        f"{counts.mounts} mounts, {counts.reads} reads, {counts.eio} EIO, {counts.recovered} right "
        f"afterwards; {counts.harmless} flips left an LZ4 block of the same bytes")
    check(counts.mounts <= max(50, args.flips // 20), f"{counts.mounts} mounts are too many")
    # Each that could be is (pack_round), one of each round at least; of how many more the version that is read has a part is
    # for chance: 284 to some 400 of 1,000.
    least = 0.1 * counts.flips if counts.flips >= 500 else 1
    check(counts.met >= least, f"only {counts.met} of {counts.flips} flips were met")
    check(counts.harmless <= counts.flips // 20, "too many flips that do no harm")


if __name__ == "__main__":
    lib.main(run, lambda parser: parser.add_argument("--flips", type=int, default=1000))
