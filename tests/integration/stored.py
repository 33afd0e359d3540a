"""What lies in a directory store, as schema/README.md describes it, read without dsfs: so that tests
know which byte of which object they spoil."""
import hashlib
import json
import os
import sqlite3
import struct


class Chunk:
    def __init__(self, digest, at, raw, stored):
        self.digest, self.at, self.raw, self.stored = digest, at, raw, stored


class Pack:
    def __init__(self, data):
        length, = struct.unpack("<Q", data[-8:])
        self.toc_at = len(data) - 8 - length
        toc = data[self.toc_at:-8]
        assert data[:8] == b"dsfspak1" and toc[:8] == b"dsfstoc1"
        self.id = hashlib.sha256(toc).hexdigest()
        kind, count = struct.unpack("<II", toc[24:32])
        self.is_manifest = kind == 1
        self.chunks, at = [], 8
        for i in range(count):
            digest, raw, stored = struct.unpack_from("<32sII", toc, 32 + 40 * i)
            self.chunks.append(Chunk(digest, at, raw, stored))
            at += stored
        assert at == self.toc_at
        self.size = len(data)

    def chunk_at(self, offset):
        return next((c for c in self.chunks if c.at <= offset < c.at + c.stored), None)


def keys(repo):
    """The keys of all objects of a directory store."""
    found = []
    for path, _, names in os.walk(repo):
        for name in names:
            if not name.startswith(".tmp-"):
                found.append(os.path.relpath(os.path.join(path, name), repo))
    return sorted(found)


# What a match with offset 0 gives: the format has none, and liblz4 copies what its output buffer happened to hold.
UNTOLD = object()


def unlz4(data, raw):
    """An LZ4 block of `raw` bytes, decoded; None when it is none; or UNTOLD."""
    out, at = bytearray(), 0

    def more(length, at):
        while True:
            byte = data[at]
            length, at = length + byte, at + 1
            if byte != 255:
                return length, at

    try:
        while True:
            token, at = data[at], at + 1
            length = token >> 4
            if length == 15:
                length, at = more(length, at)
            if at + length > len(data):
                return None
            out += data[at:at + length]
            at += length
            if at == len(data):
                return bytes(out) if len(out) == raw else None
            offset, = struct.unpack_from("<H", data, at)
            at += 2
            length = token & 15
            if length == 15:
                length, at = more(length, at)
            if offset == 0:
                return UNTOLD
            if offset > len(out) or len(out) > raw:
                return None
            length, start = length + 4, len(out) - offset
            out += (out[start:] * (length // offset + 1))[:length]
    except (IndexError, struct.error):
        return None


def is_harmless(data, chunk):
    """Whether a chunk still gives the right bytes, although its stored ones were altered."""
    stored = data[chunk.at:chunk.at + chunk.stored]
    raw = stored if chunk.stored == chunk.raw else unlz4(stored, chunk.raw)
    if raw is UNTOLD:
        return True  # it may
    return raw is not None and hashlib.sha256(raw).digest() == chunk.digest


# A reader of versions, and the digests, as the format's document has them.

GEAR = [int.from_bytes(hashlib.sha256(b"dsfs-gear-" + bytes([i])).digest()[:8], "little")
        for i in range(256)]
M1 = ((1 << 22) - 1) << 42
M2 = ((1 << 18) - 1) << 46
SMALL, KIB, MIB = 4 << 20, 1 << 10, 1 << 20


def cut(data):
    """Lengths of the chunks of a stretch between zeros. A byte at a time: slow."""
    lengths, start = [], 0
    while start < len(data):
        left = len(data) - start
        if left <= 256 * KIB:
            lengths.append(left)
            break
        h, length = 0, min(left, 4 * MIB)
        for p in range(256 * KIB, length):
            h = ((h << 1) + GEAR[data[start + p]]) & 0xFFFFFFFFFFFFFFFF
            if not h & (M1 if p < MIB else M2):
                length = p + 1
                break
        lengths.append(length)
        start += length
    return lengths


def content_digest(size, extents):
    """extents: [(length, digest or None for zeros)], of a file over 4 MiB."""
    text = b"dsfs-file-1\n" + struct.pack("<Q", size)
    for length, digest in extents:
        text += struct.pack("<BQ", 1 if digest else 0, length) + (digest or b"")
    return hashlib.sha256(text).digest()


class Version:
    """One version of a directory store: its record, its manifest as a database, its chunks."""

    def __init__(self, repo, id, database):
        self.repo = repo
        with open(os.path.join(repo, "versions", id), "rb") as file:
            data = file.read()
        assert hashlib.sha256(data).hexdigest() == id
        self.record = json.loads(data)
        manifest = self.record["manifest"]
        self.pages = manifest["pages"]
        self.page_size = manifest["page_size"]
        with open(database, "wb") as file:
            file.truncate(self.pages * self.page_size)
            self.nodes = self.write_pages(manifest["index"], file)
        self.db = sqlite3.connect(f"file:{database}?mode=ro&immutable=1", uri=True)
        self.packs = {number: (id.hex(), size, chunks, raw, live) for number, id, size, chunks, raw, live
                      in self.db.execute("SELECT number, id, size, chunks, raw, live FROM pack")}

    def chunk(self, pack, at, stored, raw, digest):
        with open(os.path.join(self.repo, "packs", pack[:2], pack), "rb") as file:
            file.seek(at)
            data = file.read(stored)
        data = data if stored == raw else unlz4(data, raw)
        assert data is not None and len(data) == raw and hashlib.sha256(data).digest() == digest
        return data

    def write_pages(self, ref, file):
        nodes = 1
        data = self.chunk(ref["pack"], ref["offset"], ref["stored"], ref["raw"],
                          bytes.fromhex(ref["digest"]))
        level, entries, first, packs_n, zero = struct.unpack_from("<IIQII", data, 8)
        assert data[:8] == b"dsfsidx1" and zero == 0
        assert len(data) == 32 + 32 * packs_n + 56 * entries
        packs = [ref["pack"]] + [data[32 + 32 * i:64 + 32 * i].hex() for i in range(packs_n)]
        for i in range(entries):
            digest, pack, ordinal, at, stored, raw = struct.unpack_from(
                "<32sIIQII", data, 32 + 32 * packs_n + 56 * i)
            if level:
                nodes += self.write_pages({"pack": packs[pack], "offset": at, "stored": stored,
                                           "raw": raw, "digest": digest.hex()}, file)
            elif stored:
                file.seek((first + i) * self.page_size)
                file.write(self.chunk(packs[pack], at, stored, raw, digest))
            else:
                assert not (any(digest) or pack or ordinal or at) and raw == self.page_size
        return nodes

    def rows(self):
        """{path: row as a dict} of all entries."""
        self.db.row_factory = sqlite3.Row
        rows = {row["id"]: row for row in self.db.execute("SELECT * FROM entry")}

        def path_of(row):
            parts = []
            while row["parent"]:
                parts.append(row["name"])
                row = rows[row["parent"]]
            return b"/".join(reversed(parts))
        return {path_of(row): row for row in rows.values()}

    def bytes_of(self, row):
        if row["size"] == 0:
            return b""
        if row["extents"] is None:
            return self.chunk(self.packs[row["pack"]][0], row["stored_off"], row["stored_len"],
                              row["size"], row["digest"])
        return b"".join(self.chunk(self.packs[e["pack"]][0], e["stored_off"], e["stored_len"], e["len"],
                                   e["digest"]) if e["digest"] else bytes(e["len"])
                        for e in self.extents(row))

    def extents(self, row):
        return self.db.execute("SELECT * FROM extent WHERE file = ? ORDER BY off",
                               (row["id"],)).fetchall()
