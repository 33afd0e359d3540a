#!/usr/bin/env python3
"""schema/README.md is enough to read a repository: a reader that knows nothing but that document finds
the trees that were committed, in every respect, and computes the same digests and the fingerprint."""
import hashlib
import os
import struct

import lib
import stored
import tree
from lib import MIB, check, equal, say

FILE, EXECUTABLE, DIR, LINK, AGAIN = range(5)


def directory_digest(rows, children, path):
    """Computed from the rows below, not taken from the row."""
    text = b"dsfs-dir-1\n"
    for name in sorted(children.get(path, [])):
        below = os.path.join(path, name) if path else name
        row = rows[below]
        row = row if row["type"] != AGAIN else rows[row["link"]]
        digest = directory_digest(rows, children, below) if row["type"] == DIR else row["digest"]
        kind = {DIR: b"d", LINK: b"l"}.get(row["type"], b"f")
        text += kind + bytes([row["type"] == EXECUTABLE]) + struct.pack("<I", len(name)) + name + digest
    digest = hashlib.sha256(text).digest()
    equal(rows[path]["digest"], digest, f"directory digest of {path!r}")
    return digest


def check_large(version, row, data, path):
    """The extents of a file over 4 MiB: runs of zeros, cut points, content digest."""
    wanted, at = [], 0
    runs = tree.zero_runs_of(data) + [(len(data), len(data))]
    for start, end in runs:
        lengths = stored.cut(data[at:start]) if start > at else []
        for length in lengths:
            wanted.append((length, hashlib.sha256(data[at:at + length]).digest()))
            at += length
        if end > start:
            wanted.append((end - start, None))
        at = end
    got = [(e["len"], e["digest"]) for e in version.extents(row)]
    equal([length for length, _ in got], [length for length, _ in wanted], f"extents of {path!r}")
    equal(got, wanted, f"digests of extents of {path!r}")
    equal(row["digest"], stored.content_digest(len(data), got), f"content digest of {path!r}")
    equal(row["extents"], len(got), f"number of extents of {path!r}")


def check_version(box, repo, id, wanted):
    version = stored.Version(repo, id, box.path(f"{id}.sqlite"))
    with open(os.path.join(lib.TREE, "schema", "manifest.sql"), encoding="utf-8") as file:
        schema = [" ".join(text.split()) for text in file.read().split(";") if text.strip()]
    there = [" ".join(sql.split()) for sql, in version.db.execute(
        "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY rowid")]
    equal(sorted(there), sorted(schema), "schema")
    equal(version.db.execute("PRAGMA application_id").fetchone()[0], 0x64736673, "application_id")
    equal(version.db.execute("PRAGMA integrity_check").fetchone()[0], "ok", "SQLite's own check")
    rows = version.rows()
    equal(sorted(rows), sorted(wanted), "paths")
    by_id = {row["id"]: row for row in rows.values()}
    path_of = {row["id"]: path for path, row in rows.items()}
    equal(rows[b""]["id"], 1, "id of the root")
    children, large, references = {}, 0, {}
    for path, row in rows.items():
        entry = wanted[path]
        if path:
            children.setdefault(os.path.dirname(path), []).append(row["name"])
            check(3 <= row["id"] < 1 << 40, f"id of {path!r}")
        if row["type"] == AGAIN:
            row = by_id[row["link"]]
            check(row["type"] in (FILE, EXECUTABLE), f"{path!r} is a further name of no file")
            equal(wanted[path_of[row["id"]]].first, entry.first, f"the file that {path!r} names")
        else:
            for pack in [row["pack"]] + [e["pack"] for e in version.extents(row)]:
                references[pack] = references.get(pack, 0) + 1
        equal((row["mtime_s"] * 1_000_000_000 + row["mtime_ns"], row["nlink"]),
              (entry.mtime_ns, entry.links), f"time and links of {path!r}")
        if entry.type == tree.DIR:
            equal(row["type"], DIR, f"type of {path!r}")
        elif entry.type == tree.LINK:
            equal((row["type"], row["target"], row["digest"], row["size"]),
                  (LINK, entry.digest, hashlib.sha256(entry.digest).digest(), len(entry.digest)), f"{path!r}")
        else:
            equal((row["type"], row["size"]), (EXECUTABLE if entry.executable else FILE, entry.size),
                  f"type and size of {path!r}")
            data = version.bytes_of(row)
            equal(hashlib.sha256(data).digest(), entry.digest, f"bytes of {path!r}")
            if entry.size > 4 * MIB:
                large += 1
                check_large(version, row, data, path)
            else:
                equal(row["digest"], entry.digest, f"content digest of {path!r}")
    for path, names in children.items():
        equal(rows[path]["size"], len(names), f"entries of {path!r}")
    linked = {**rows, **{row["id"]: row for row in rows.values()}}
    fingerprint = directory_digest(linked, children, b"").hex()
    equal(version.record["fingerprint"], fingerprint, "fingerprint")
    references.pop(None, None)
    equal({n: p[4] for n, p in version.packs.items() if p[4]}, references, "live references of packs")
    for id, size, chunks, raw, _ in version.packs.values():
        path = os.path.join(repo, "packs", id[:2], id)
        with open(path, "rb") as file:
            pack = stored.Pack(file.read())
        equal((pack.id, pack.size, len(pack.chunks), sum(c.raw for c in pack.chunks)),
              (id, size, chunks, raw), "row of a pack")
    totals = version.record["totals"]
    equal(totals["files"], sum(e.type == tree.FILE for e in wanted.values()), "files in the totals")
    equal(totals["directories"], sum(e.type == tree.DIR for e in wanted.values()) - 1, "directories")
    equal(totals["bytes"], sum(e.size for p, e in wanted.items() if e.type == tree.FILE and e.first == p),
          "bytes in the totals")
    meta = dict(version.db.execute("SELECT key, value FROM meta"))
    for name in "files", "directories", "symlinks", "bytes", "rejected":
        equal(meta[name], totals[name], f"{name} in meta")
    histogram = {}
    for entry in wanted.values():
        if entry.type == tree.FILE:
            key = f"size_{entry.size.bit_length()}"
            histogram[key] = histogram.get(key, 0) + 1
    equal({k: v for k, v in meta.items() if k.startswith("size_")}, histogram, "histogram of sizes")
    hot = version.record["prefetch"]
    check(0 < len(hot) <= 64 and len({c["pack"] for c in hot}) == 1, "prefetch: all in one pack")
    ends = sorted((c["offset"], c["offset"] + c["stored"]) for c in hot)
    check(all(a[1] == b[0] for a, b in zip(ends, ends[1:])), "prefetch: side by side")
    say(f"version {version.record['message']}: {len(rows)} entries, {large} large files, "
        f"{version.pages} pages of {version.page_size}, {version.nodes} nodes, {len(version.packs)} packs")
    return large


def run(box, args):
    source, repo = box.new_dir("src"), box.path("repo")
    growing = tree.Tree(source, args.seed)
    growing.grow(300)
    large = 0
    for message in "one", "two", "three":
        done = box.commit(source, repo, "--init", "-m", message)
        large += check_version(box, repo, done["version"], tree.snapshot(source))
        growing.change(40)
    check(large > 0, "there was no large file")
    for key in stored.keys(repo):
        if key == "dsfs.json" or key.startswith("refs/"):
            with open(f"{repo}/{key}", "rb") as file:
                line, seal, rest = file.read().split(b"\n")
            equal(seal.decode(), hashlib.sha256(line + b"\n").hexdigest(), f"seal of {key}")
            equal(rest, b"", f"end of {key}")


if __name__ == "__main__":
    lib.main(run, fuse=False)
