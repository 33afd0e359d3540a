#!/usr/bin/env python3
"""schema/README.md is enough to write a repository: trees stored by a writer that knows nothing but that
document (no compression, one pack, one node) are read by dsfs like its own, and dsfs goes on from them."""
import hashlib
import json
import os
import secrets
import sqlite3
import struct

import lib
import stored
import tree
from lib import MIB, check, equal, say

TIME = "2026-01-02T03:04:05.678Z"
PAGE = 16384
FILE, EXECUTABLE, DIR, LINK, AGAIN = range(5)


def seal(obj):
    line = json.dumps(obj, separators=(",", ":")).encode() + b"\n"
    return line + hashlib.sha256(line).hexdigest().encode() + b"\n"


class PackWriter:
    def __init__(self, kind):
        self.kind, self.chunks, self.at, self.raw, self.index = kind, [], 8, 0, {}

    def add(self, data):
        """(digest, ordinal, offset, length, raw offset) of a chunk; equal ones are put once."""
        digest = hashlib.sha256(data).digest()
        if digest not in self.index:
            self.index[digest] = (digest, len(self.chunks), self.at, len(data), self.raw)
            self.chunks.append(data)
            self.at += len(data)
            self.raw += len(data)
        return self.index[digest]

    def finish(self, repo):
        toc = b"dsfstoc1" + secrets.token_bytes(16) + struct.pack("<II", self.kind, len(self.chunks))
        for data in self.chunks:
            toc += hashlib.sha256(data).digest() + struct.pack("<II", len(data), len(data))
        id = hashlib.sha256(toc).hexdigest()
        body = b"dsfspak1" + b"".join(self.chunks) + toc + struct.pack("<Q", len(toc))
        put(repo, f"packs/{id[:2]}/{id}", body)
        return id, len(body)


def put(repo, key, data):
    os.makedirs(os.path.dirname(f"{repo}/{key}"), exist_ok=True)
    with open(f"{repo}/{key}", "xb") as file:
        file.write(data)


class Writer:
    """Stores one version of `source` in a new repository."""

    def __init__(self, box, source, repo):
        self.root, self.repo = os.fsencode(source), repo
        self.truth = tree.snapshot(source)
        self.data = PackWriter(0)
        self.path = box.path("manifest.sqlite")
        if os.path.exists(self.path):
            os.unlink(self.path)
        self.db = sqlite3.connect(self.path, isolation_level=None)
        self.db.execute(f"PRAGMA page_size = {PAGE}")
        self.db.execute("PRAGMA secure_delete = ON")
        self.db.execute("PRAGMA application_id = 0x64736673")
        self.db.execute("PRAGMA user_version = 1")
        with open(os.path.join(lib.TREE, "schema", "manifest.sql"), encoding="utf-8") as file:
            self.db.executescript(file.read())
        self.db.execute("BEGIN")
        self.children = {}
        for path in self.truth:
            if path:
                self.children.setdefault(os.path.dirname(path), []).append(os.path.basename(path))
        self.ids, self.next_id, self.first, self.live = {}, 3, {}, 0
        fingerprint = self.add_directory(b"", 1, 0, b"")
        self.finish(fingerprint)

    def insert(self, table, **row):
        names, marks = ", ".join(row), ", ".join("?" * len(row))
        self.db.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", list(row.values()))

    def add_directory(self, path, id, parent, name):
        """Inserts the rows below before its own; returns its digest."""
        text = b"dsfs-dir-1\n"
        for below in sorted(self.children.get(path, [])):
            whole = os.path.join(path, below) if path else below
            entry, own = self.truth[whole], self.next_id
            self.next_id += 1
            if entry.type == tree.DIR:
                digest = self.add_directory(whole, own, id, below)
            else:
                digest = self.add_other(whole, entry, own, id, below)
            kind = {tree.DIR: b"d", tree.LINK: b"l", tree.FILE: b"f"}[entry.type]
            text += kind + bytes([entry.executable]) + struct.pack("<I", len(below)) + below + digest
        digest, entry = hashlib.sha256(text).digest(), self.truth[path]
        seconds, ns = divmod(entry.mtime_ns, 1_000_000_000)
        self.insert("entry", id=id, parent=parent, name=name, type=DIR, mtime_s=seconds, mtime_ns=ns,
                    nlink=entry.links, size=len(self.children.get(path, [])), digest=digest)
        return digest

    def add_other(self, path, entry, id, parent, name):
        if entry.first in self.first:
            first, digest = self.first[entry.first]
            self.insert("entry", id=id, parent=parent, name=name, type=AGAIN, link=first)
            return digest
        seconds, ns = divmod(entry.mtime_ns, 1_000_000_000)
        row = {"id": id, "parent": parent, "name": name, "mtime_s": seconds, "mtime_ns": ns,
               "nlink": entry.links, "size": entry.size}
        if entry.type == tree.LINK:
            row.update(type=LINK, size=len(entry.digest), target=entry.digest,
                       digest=hashlib.sha256(entry.digest).digest())
            self.insert("entry", **row)
            return row["digest"]
        row.update(type=EXECUTABLE if entry.executable else FILE)
        with open(os.path.join(self.root, path), "rb") as file:
            data = file.read()
        if len(data) > 4 * MIB:
            extents = self.add_extents(id, data)
            row.update(digest=stored.content_digest(len(data), extents), extents=len(extents))
        elif data:
            digest, ordinal, at, length, raw = self.data.add(data)
            row.update(digest=digest, pack=1, ordinal=ordinal, stored_off=at, stored_len=length,
                       raw_off=raw)
            self.live += 1
        else:
            row.update(digest=hashlib.sha256(b"").digest())
        self.insert("entry", **row)
        self.first[entry.first] = id, row["digest"]
        return row["digest"]

    def add_extents(self, id, data):
        extents, at, off = [], 0, 0
        for start, end in tree.zero_runs_of(data) + [(len(data), len(data))]:
            for length in stored.cut(data[at:start]) if start > at else []:
                digest, ordinal, where, size, _ = self.data.add(data[at:at + length])
                self.insert("extent", file=id, off=off, slot=len(extents), len=length, digest=digest, pack=1,
                            ordinal=ordinal, stored_off=where, stored_len=size)
                self.live += 1
                extents.append((length, digest))
                at, off = at + length, off + length
            if end > start:
                self.insert("extent", file=id, off=off, slot=len(extents), len=end - start)
                extents.append((end - start, None))
                at = off = end
        return extents

    def finish(self, fingerprint):
        files = [e for e in self.truth.values() if e.type == tree.FILE]
        once = [e for p, e in self.truth.items() if e.type == tree.FILE and e.first == p]
        totals = {"files": len(files), "directories": sum(e.type == tree.DIR for e in self.truth.values()) - 1,
                  "symlinks": sum(e.type == tree.LINK for e in self.truth.values()),
                  "bytes": sum(e.size for e in once), "rejected": 0}
        meta = dict(totals)
        for entry in files:
            key = f"size_{entry.size.bit_length()}"
            meta[key] = meta.get(key, 0) + 1
        for key, value in meta.items():
            self.insert("meta", key=key, value=value)
        pack, size = self.data.finish(self.repo)
        self.insert("pack", number=1, id=bytes.fromhex(pack), size=size, chunks=len(self.data.chunks),
                    raw=self.data.raw, live=self.live)
        self.db.execute("COMMIT")
        self.db.close()
        with open(self.path, "rb") as file:
            data = file.read()
        pages = [data[i:i + PAGE] for i in range(0, len(data), PAGE)]
        check(len(pages) <= 512, "this writer has one node only")
        packer = PackWriter(1)
        placed = {}
        for i in [*range(1, len(pages)), 0]:
            placed[i] = packer.add(pages[i]) if any(pages[i]) else None
        node = b"dsfsidx1" + struct.pack("<IIQII", 0, len(pages), 0, 0, 0)
        for i in range(len(pages)):
            digest, ordinal, at, length, _ = placed[i] or (bytes(32), 0, 0, 0, 0)
            node += struct.pack("<32sIIQII", digest, 0, ordinal, at, length, PAGE)
        root = packer.add(node)
        manifest_pack, _ = packer.finish(self.repo)

        def chunk(place):
            digest, ordinal, at, length, _ = place
            return {"digest": digest.hex(), "pack": manifest_pack, "ordinal": ordinal, "offset": at,
                    "stored": length, "raw": length}
        record = {"format": 1, "nonce": secrets.token_hex(16), "parents": [], "time": TIME,
                  "author": "somebody", "message": "written by another program",
                  "fingerprint": fingerprint.hex(), "totals": totals, "inputs": [], "transform": None,
                  "producer": "other 1", "run": None, "labels": {"a": "b"}, "unknown": {"field": [1]},
                  "manifest": {"schema": 1, "page_size": PAGE, "pages": len(pages), "index": chunk(root)},
                  "prefetch": [chunk(placed[0]), chunk(root)]}
        text = json.dumps(record).encode()
        self.id, self.fingerprint = hashlib.sha256(text).hexdigest(), fingerprint.hex()
        put(self.repo, f"versions/{self.id}", text)
        repository = secrets.token_hex(16)
        put(self.repo, "dsfs.json", seal({"format": 1, "needs": "0.1.0", "repository": repository,
                                          "default_branch": "trunk", "created": TIME, "more": 1}))
        put(self.repo, "refs/branches/trunk/0000000001",
            seal({"format": 1, "repository": repository, "branch": "trunk", "number": 1,
                  "version": self.id, "previous": None, "writer": secrets.token_hex(16), "time": TIME}))


def run(box, args):
    for step in range(2):
        source, repo = box.new_dir("src"), box.path(f"repo-{step}")
        growing = tree.Tree(source, args.seed + step)
        growing.grow([60, 400][step], large=step == 1)
        writer = Writer(box, source, repo)
        found = box.dsfs("verify", repo, "--read-data", "--json", status=None).json
        check(found.get("clean"), f"verify: {found}")
        equal(box.dsfs("fingerprint", repo).text.strip(), writer.fingerprint, "fingerprint in the record")
        equal(box.dsfs("fingerprint", source).text.strip(), writer.fingerprint, "of the directory")
        with box.mount(repo) as mount:
            lines = tree.compare(writer.truth, tree.snapshot(mount.path))
            check(not lines, "\n".join(lines))
            lines = tree.check_stat(mount.root, writer.truth)
            check(not lines, "\n".join(lines))
        done = box.commit(source, repo)
        check(done["unchanged"], f"the same tree made a version: {done}")
        growing.change(20)
        done = box.commit(source, repo)
        equal(done["number"], 2, "number of the version that dsfs added")
        check(done["uploaded_data_bytes"] < sum(e.size for e in writer.truth.values()) // 2 + MIB,
              f"dsfs uploaded again what was there: {done}")
        with box.mount(repo) as new, box.mount(f"{repo}@1") as old:
            lines = tree.compare(tree.snapshot(source), tree.snapshot(new.path)) + \
                tree.compare(writer.truth, tree.snapshot(old.path))
            check(not lines, "\n".join(lines))
        found = box.dsfs("verify", repo, "--read-data", "--json", status=None).json
        check(found.get("clean"), f"verify of both: {found}")
        say(f"{len(writer.truth)} entries written by the other program, read and gone on from")


if __name__ == "__main__":
    lib.main(run)
