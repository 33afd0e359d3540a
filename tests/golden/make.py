#!/usr/bin/env python3
"""Writes the golden repositories: tests/golden/repo, newer, newer_record, imported,
expected.json and expected_imported.json.

usage: make.py DIRECTORY

A second writer of the format, made from schema/README.md alone and with nothing but the standard library, so
that the document is tested too. What lies in the tree was written once and stays: every later build must read it. Running this
again gives the same repository as long as SQLite writes the same pages.
"""

import json
import os
import struct
import sys
import tempfile
import urllib.parse

sys.dont_write_bytecode = True
from format1 import (
    FANOUT,
    GEAR,
    KIB,
    MASK1,
    MASK2,
    MIB,
    Manifest,
    Node,
    PAGE_SIZE,
    Pack,
    children,
    cut,
    digest_of,
    extents_of,
    inode,
    moved_note,
    names_of,
    noise,
    sha,
    walk,
)

REPOSITORY = "00112233445566778899aabbccddeeff"


# ---- the repository


def compact(obj):
    return json.dumps(obj, separators=(",", ":"), ensure_ascii=False).encode()


def sealed(obj):
    line = compact(obj) + b"\n"
    return line + sha(line).hex().encode() + b"\n"


def encode_name(name):
    return urllib.parse.quote(name.encode(), safe="").replace("~", "%7E")


class Repository:
    def __init__(self, path):
        self.path, self.logs = path, {}

    def put(self, key, data):
        path = os.path.join(self.path, key)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as f:
            f.write(data)

    def put_pack(self, pack):
        self.put("packs/%s/%s" % (pack.id().hex()[:2], pack.id().hex()), pack.object())

    def put_moved(self, pack, targets):
        key = "packs/%s/%s.moved" % (pack.id().hex()[:2], pack.id().hex())
        self.put(key, moved_note(pack, targets))

    def entry(self, folder, name, time, version=None, **more):
        log = self.logs.setdefault((folder, name), [])
        number = len(log) + 1
        fields = {"format": 1, "repository": REPOSITORY}
        if folder != "policy":
            fields["branch" if folder == "refs/branches" else "tag"] = name
        fields["number"] = number
        if folder != "policy":
            fields.update({"version": version} if version else {"deleted": True})
        fields["previous"] = sha(log[-1]).hex() if log else None
        fields["writer"] = noise("writer %s %s %d" % (folder, name, number)).hex()
        fields["time"] = time
        fields.update(more)
        log.append(sealed(fields))
        key = "%s/%s/%010d" % (folder, encode_name(name), number) if name else "%s/%010d" % (folder, number)
        self.put(key, log[-1])
        return key

    def record(self, label, time, parents, tree, totals, root, prefetch, pages, **more):
        fields = {
            "format": 1,
            "nonce": noise("nonce " + label).hex(),
            "parents": parents,
            "time": time,
            "author": "Grace <grace@example.org>",
            "message": "version " + label,
            "fingerprint": digest_of(tree, b"", {}).hex(),
            "totals": totals,
            "inputs": [],
            "transform": None,
            "producer": "make.py",
            "run": None,
            "labels": {},
            "manifest": {"schema": 1, "page_size": PAGE_SIZE, "pages": pages, "index": root.json()},
            "prefetch": [r.json() for r in prefetch],
        }
        fields.update(more)
        data = compact(fields)
        self.put("versions/" + sha(data).hex(), data)
        return sha(data).hex()


def dedup_object(chunks, packs, versions, covered):
    """chunks: [(digest, pack index, ordinal, version number)]"""
    out = b"dsfsdup1" + struct.pack("<IIIIQ", len(packs), len(versions), len(covered), 0, len(chunks))
    out += b"".join(p.id() for p in packs) + b"".join(bytes.fromhex(v) for v in versions) + b"".join(covered)
    for digest, pack, ordinal, version in sorted(chunks, key=lambda c: c[0][:8]):
        out += digest[:8] + struct.pack("<III", pack, ordinal, version)
    return out


def periodic(label, period, n):
    return (noise(label, period) * (n // period + 1))[:n]


def cutting_period(period):
    """A label whose periodic bytes are cut by content between 1 and 4 MiB."""
    for i in range(10000):
        label = "period %d" % i
        data = periodic(label, period, MIB + 2 * period + 300 * KIB)
        if len(cut(data)) == 2 and cut(data)[0] >= MIB:
            return label
    raise RuntimeError("no such period")


def uncut_period(period):
    for i in range(10000):
        label = "uncut %d" % i
        h, ok = 0, True
        data = noise(label, period) * 3
        for p, byte in enumerate(data):
            h = ((h << 1) + GEAR[byte]) & 0xFFFFFFFFFFFFFFFF
            ok &= p < 64 or (h & MASK2 != 0 and h & MASK1 != 0)
        if ok:
            return label
    raise RuntimeError("no such period")


def first_tree():
    t = {b"": Node("dir", (1700000000, 0))}

    def add(path, kind, content=b"", mtime=(1700000000, 123456789), link=None):
        t[path] = Node(kind, mtime, content, link)

    add(b"README", "file", b"The golden repository.\n")
    add(b"empty", "file", b"", (0, 0))
    add(b"one", "file", b"1", (-1, 999999999))
    add(b"old", "file", b"before 1970\n", (-86400 * 365 * 30, 1))
    add(b"far", "file", b"far ahead\n", (253402300800, 0))
    add(b"run.sh", "exec", b"#!/bin/sh\nexit 0\n")
    add(b"link", "symlink", b"dir/deep")
    add(b"dangling", "symlink", b"no where/\xff")
    add(b"dir", "dir", mtime=(1600000000, 5))
    add(b"dir/deep", "dir")
    add(b"dir/deep/file", "file", b"deep\n" * 1000)
    add(b"dir/empty", "dir", mtime=(1500000000, 0))
    add(b"dir/hard-b", "file", link=b"dir/hard-a")
    add(b"dir/hard-a", "exec", b"three names\n")
    add(b"zz-hard", "file", link=b"dir/hard-a")
    add(b"same", "file", b"The golden repository.\n")
    add(b"-dash", "file", b"-\n")
    add(b" space ", "file", b" \n")
    add(b"new\nline", "file", b"\n")
    add(b"not\xff\xfeUTF-8", "file", b"bytes\n")
    add("\u00e9".encode(), "file", b"one code point\n")
    add("e\u0301".encode(), "file", b"two code points\n")
    add(b"n" * 255, "file", b"255 bytes of name\n")
    add(b"a", "dir")
    add(b"a/x", "file", b"a, x\n")
    add(b"a.b", "file", b"between a and a/\n")
    add(b"tabs\tand\\backslash\"quote", "file", b"?\n")
    add(b"dead", "file", b"only in version 1\n" * 9)
    add(b"incompressible", "file", noise("incompressible", 3000))
    add(b"4MiB", "file", bytes(4 * MIB))
    add(b"4MiB+1", "file", bytes(4 * MIB + 1))
    add(b"cut", "file", periodic(cutting_period(2000), 2000, 5 * MIB))
    add(b"uncut", "file", periodic(uncut_period(500), 500, 5 * MIB))
    holes = bytes(MIB) + b"start" + bytes(65535) + b"middle" + bytes(65536) + b"end" + bytes(4 * MIB) + b"!"
    add(b"holes", "file", holes)
    return t


def chunks_of(node):
    if node.link is not None or node.kind not in ("file", "exec") or not node.content:
        return []
    if not node.extents():
        return [node.content]
    return [chunk for i, (_, chunk, _) in enumerate(node.extents()) if chunk is not None and i not in node.sources]


def pack_new(tree, where, pack):
    """Puts what is not there yet into `pack`, in the tree's order."""
    for path in walk(tree):
        for chunk in chunks_of(tree[path]):
            if sha(chunk) not in where:
                where[sha(chunk)] = (pack, pack.add(chunk))


def listing(tree, ids):
    memo, out = {}, []
    for path in walk(tree):
        node = inode(tree, path)
        item = {
            "path": urllib.parse.quote(path, safe="/"),
            "id": ids[path],
            "ino": ids[tree[path].link] if tree[path].link is not None else ids[path],
            "type": node.kind,
            "mtime": list(node.mtime),
            "digest": digest_of(tree, path, memo).hex(),
        }
        if node.kind == "dir":
            item["size"] = len(children(tree, path))
        else:
            item["size"] = len(node.content)
            item["nlink"] = len(names_of(tree, path))
        if node.kind == "symlink":
            item["target"] = urllib.parse.quote(node.content, safe="/")
        elif node.kind != "dir":
            item["sha256"] = sha(node.content).hex()
            if len(node.content) > 4 * MIB:
                item["holes"] = [[off, n] for off, chunk, n in extents_of(node.content) if chunk is None]
        out.append(item)
    return out


def marker(**more):
    fields = {"format": 1, "needs": "0.1.0", "repository": REPOSITORY, "default_branch": "main"}
    fields.update({"created": "2026-01-01T00:00:00.000Z"}, **more)
    return sealed(fields)


def make_repository(target, scratch):
    repo = Repository(os.path.join(target, "repo"))
    manifest = Manifest(os.path.join(scratch, "manifest"))
    where, expected = {}, {"versions": {}, "selectors": []}
    repo.put("dsfs.json", marker(later={"unknown": [1, None, "\u00e9"]}))
    repo.put("probe.json", b'{"format":1,"put_if_absent":true}\n')

    # Version 1. Its data pack was replaced twice, its manifest pack once.
    tree = first_tree()
    data1, gone = Pack(0, "data 1"), b"a chunk that no version refers to\n"
    data1.add(gone)
    pack_new(tree, where, data1)
    totals = manifest.write(tree, where, [], {})
    packs, root, prefetch, pages = manifest.publish("manifest 1")
    later = Pack(0, "data 1, later")
    latest = Pack(0, "data 1, latest")
    latest.add(b"something else\n")
    old_raw = {sha(c): c for p in tree for c in chunks_of(tree[p])}
    targets = []
    for digest, _, _ in reversed(data1.chunks):
        if digest in old_raw:
            later.add(old_raw[digest])
    for digest, _, _ in data1.chunks:
        targets.append((later, later.index[digest]) if digest in old_raw else None)
    repo.put_moved(data1, targets)
    targets = []
    for digest, _, _ in later.chunks:
        targets.append((latest, latest.add(old_raw[digest])))
    repo.put_moved(later, targets)
    repo.put_pack(latest)
    page_raw = open(manifest.path, "rb").read()
    raw = {sha(page_raw[i : i + PAGE_SIZE]): page_raw[i : i + PAGE_SIZE] for i in range(0, len(page_raw), PAGE_SIZE)}
    moved = Pack(1, "manifest 1, later")
    targets = []
    for digest, raw_len, stored in packs[0].chunks:
        # Nodes are chunks, too: as they were stored.
        if digest in raw:
            targets.append((moved, moved.add(raw[digest])))
        else:
            moved.index[digest] = len(moved.chunks)
            moved.chunks.append((digest, raw_len, stored))
            targets.append((moved, moved.index[digest]))
    repo.put_moved(packs[0], targets)
    repo.put_pack(moved)
    v1 = repo.record(
        "1", "2026-01-02T10:00:00.000Z", [], tree, totals, root, prefetch, pages,
        labels={"split": "train"}, later=[{"field": "unknown"}],
        transform={"command": "make", "code": "1", "container": "", "parameters": {"seed": 1}},
        inputs=[{"url": "s3://bucket/source", "version": "ab" * 32}], run="run-1",
    )
    expected["versions"][v1] = {"message": "version 1", "totals": totals, "entries": listing(tree, manifest.ids)}
    index1 = dedup_object([(d, 0, i, 1) for i, (d, _, _) in enumerate(data1.chunks)], [data1], [v1], [])
    repo.put("index/0/" + sha(index1).hex(), index1)

    # Version 2: some things changed; from packs of both versions.
    tree = dict(tree)
    del tree[b"dead"]
    tree[b"README"] = Node("file", (1700000001, 0), b"The golden repository, changed.\n")
    tree[b"dir/new"] = Node("file", (1700000001, 1), b"new in 2\n")
    tree[b"dir"] = Node("dir", (1700000001, 2))
    tree[b"back"] = Node("symlink", (1700000001, 3), b"../back")
    data2 = Pack(0, "data 2")
    pack_new(tree, where, data2)
    totals = manifest.write(tree, where, [], {})
    packs, root, prefetch, pages = manifest.publish("manifest 2")
    for pack in [data2] + packs:
        repo.put_pack(pack)
    v2 = repo.record("2", "2026-01-03T10:00:00.000Z", [v1], tree, totals, root, prefetch, pages)
    expected["versions"][v2] = {"message": "version 2", "totals": totals, "entries": listing(tree, manifest.ids)}
    index2 = dedup_object([(d, 0, i, 0) for i, (d, _, _) in enumerate(data2.chunks)], [data2], [], [sha(index1)])
    repo.put("index/1/" + sha(index2).hex(), index2)

    # Version 3: the spare tables and columns filled, over 512 pages (a tree of two levels), two manifest packs.
    tree = dict(tree)
    tree[b"three"] = Node("file", (1700000002, 0), b"new in 3\n")
    data3 = Pack(0, "data 3")
    pack_new(tree, where, data3)
    rejects = [(b"dev/null", "a device"), (b"secret\xff", "cannot be read")]
    extra = {
        "owners": {b"README": {"uid": 1000, "gid": 100, "mode": 0o640}, b"dir": {"uid": 0, "gid": 0, "mode": 0o755}},
        "xattr": [{"entry": 3, "name": b"user.note", "value": b"\0\1\2"}, {"entry": 4, "name": b"user.x", "value": b""}],
        "source": [{"number": 1, "url": "s3://other/x", "object": b"key", "object_version": None, "etag": '"e"'}],
        "meta": {"free": "text", "free_blob": b"\0\xff", "free_null": None},
        "zero_pages": 600,
    }
    totals = manifest.write(tree, where, rejects, extra)
    packs, root, prefetch, pages = manifest.publish("manifest 3", 2)
    assert pages > FANOUT
    for pack in [data3] + packs:
        repo.put_pack(pack)
    v3 = repo.record("3", "2026-01-06T10:00:00.000Z", [v2], tree, totals, root, prefetch, pages, message="version 3\n\u00e9")
    expected["versions"][v3] = {
        "message": "version 3\n\u00e9",
        "totals": totals,
        "entries": listing(tree, manifest.ids),
        "rejects": [[urllib.parse.quote(p, safe="/"), r] for p, r in rejects],
    }

    make_refs(repo, v1, v2, v3, expected)
    expected["repository"] = REPOSITORY
    expected["default_branch"] = "main"
    with open(os.path.join(target, "expected.json"), "w") as f:
        json.dump(expected, f, indent=1)
        f.write("\n")


def make_refs(repo, v1, v2, v3, expected):
    branches, tags = "refs/branches", "refs/tags"
    repo.entry(branches, "main", "2026-01-02T10:00:01.000Z", v1, later="unknown")
    repo.entry(branches, "main", "2026-01-03T10:00:01.500Z", v2)
    repo.entry(branches, "main", "2026-01-04T10:00:01.000Z", v1)
    repo.entry(branches, "main", "2026-01-05T10:00:01.000Z")
    repo.entry(branches, "main", "2026-01-06T10:00:01.000Z", v3)
    repo.entry(branches, "closed", "2026-01-02T11:00:00.000Z", v1)
    repo.entry(branches, "closed", "2026-01-02T12:00:00.000Z")
    repo.entry(branches, "odd \u00e9%~ name", "2026-01-03T11:00:00.000Z", v2)
    key = repo.entry(tags, "v1.0", "2026-01-02T13:00:00.000Z", v1)
    repo.entry(tags, "gone", "2026-01-02T14:00:00.000Z", v1)
    repo.entry(tags, "gone", "2026-01-02T15:00:00.000Z")
    repo.entry(tags, "both", "2026-01-03T14:00:00.000Z", v2)
    repo.entry(branches, "both", "2026-01-03T14:00:00.000Z", v1)
    limits = {"grace_s": 1209600, "keep_entries": None, "keep_s": None}
    repo.entry("policy", "", "2026-01-02T16:00:00.000Z", None, **limits)
    limits = {"grace_s": 604800, "keep_entries": 100, "keep_s": 31536000, "later": True}
    repo.entry("policy", "", "2026-01-03T16:00:00.000Z", None, **limits)
    repo.put("hints/branches/main", b"2\n")  # stale
    repo.put("versions/%s.sig" % v1, noise("signature", 64))
    repo.put(key + ".sig", noise("another signature", 64))
    repo.put("runs/%s/run-1/%s.start" % (v1, noise("run").hex()), b'{"later":true}\n')
    repo.put("runs/%s/run-1/%s.end" % (v1, noise("run").hex()), b'{"later":true}\n')
    repo.put("notes/%s/%s" % (v1, noise("note").hex()), b'{"quality":1}\n')
    found = [
        ("", v3, 5), ("main", v3, 5), ("5", v3, 5), ("1", v1, 1), ("2", v2, 2), ("main:3", v1, 3),
        ("v1.0", v1, 1), ("both", v2, 1), ("both:1", v1, 1), ("closed:1", v1, 1),
        ("odd \u00e9%~ name", v2, 1), ("odd \u00e9%~ name:1", v2, 1),
        ("2026-01-02", v1, 1), ("2026-01-03", v2, 2), ("2026-01-03T10:00:01Z", v1, 1),
        ("2026-01-03T11:00:01.5+01:00", v2, 2), ("2026-01-04T23:00", v1, 3), ("2030-01-01", v3, 5),
        (v1, v1, 0), (v2[:10], v2, 0), (v3[:8], v3, 0),
    ]
    refused = [
        ("4", "CLOSED"), ("main:4", "CLOSED"), ("closed", "CLOSED"), ("gone", "CLOSED"), ("2026-01-05", "CLOSED"),
        ("6", "NO_VERSION"), ("nothing", "NO_VERSION"), ("2026-01-01", "NO_VERSION"), ("0" * 64, "NO_VERSION"),
    ]
    for selector, version, number in found:
        expected["selectors"].append({"selector": selector, "version": version, "number": number})
    for selector, error in refused:
        expected["selectors"].append({"selector": selector, "error": error})


def make_newer(target):
    """A repository of a later format, and one of ours in which a later release wrote a record."""
    repo = Repository(os.path.join(target, "newer"))
    repo.put("dsfs.json", marker(format=2, needs="2.3.4"))
    repo = Repository(os.path.join(target, "newer_record"))
    repo.put("dsfs.json", marker())
    data = compact({"format": 2, "needs": "2.3.4", "whatever": True})
    repo.put("versions/" + sha(data).hex(), data)
    repo.entry("refs/branches", "main", "2026-01-02T10:00:01.000Z", sha(data).hex())


def make_imported(target, scratch):
    """Files that lie in imported objects: read when they were imported, in part, or not at all."""
    repo = Repository(os.path.join(target, "imported"))
    manifest = Manifest(os.path.join(scratch, "imported"))
    repo.put("dsfs.json", marker())
    time, where = (1700000000, 0), {}
    large = periodic(cutting_period(2000), 2000, 5 * MIB) + bytes(MIB) + b"end"
    read = {i: (1, off, True) for i, (off, chunk, _) in enumerate(extents_of(large)) if chunk is not None}
    tree = {
        b"": Node("dir", time),
        b"dir": Node("dir", time),
        b"dir/hard": Node("file", time, link=b"small"),
        b"dir/unread": Node("file", time, b"?" * 5000, sources={0: (2, 0, False)}),
        b"large": Node("file", time, large, sources=read),
        b"mixed": Node("file", time, large, sources={0: (1, 0, True)}),
        b"own": Node("exec", time, b"in a pack\n"),
        b"small": Node("file", time, b"in an object\n", sources={0: (3, 100, True)}),
    }
    data = Pack(0, "data imported")
    pack_new(tree, where, data)
    sources = [
        {"number": 1, "url": "s3://bucket", "object": b"raw/large.bin", "object_version": "3HL4kqtJ", "etag": '"0123-1"'},
        {"number": 2, "url": "s3://elsewhere", "object": b"not read \xff", "object_version": None, "etag": '"4567"'},
        {"number": 3, "url": "file:///srv/raw", "object": b"many.tar", "object_version": None, "etag": None},
    ]
    totals = manifest.write(tree, where, [], {"source": sources})
    packs, root, prefetch, pages = manifest.publish("manifest imported")
    for pack in [data] + packs:
        repo.put_pack(pack)
    # What was not read has no fingerprint.
    v1 = repo.record("imported", "2026-01-02T10:00:00.000Z", [], tree, totals, root, prefetch, pages, fingerprint=None)
    repo.entry("refs/branches", "main", "2026-01-02T10:00:01.000Z", v1)
    entries = listing(tree, manifest.ids)
    for item in entries:
        item["imported"] = bool(inode(tree, urllib.parse.unquote_to_bytes(item["path"])).sources)
    return {v1: {"message": "version imported", "totals": totals, "entries": entries}}


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__.split("\n\n")[1])
    with tempfile.TemporaryDirectory() as scratch:
        make_repository(sys.argv[1], scratch)
        imported = make_imported(sys.argv[1], scratch)
    with open(os.path.join(sys.argv[1], "expected_imported.json"), "w") as f:
        json.dump({"versions": imported}, f, indent=1)
        f.write("\n")
    make_newer(sys.argv[1])


main()
