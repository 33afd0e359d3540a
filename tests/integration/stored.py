"""What lies in a directory store, as schema/README.md describes it, read without dsfs: so that tests
know which byte of which object they spoil."""
import hashlib
import os
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


def unlz4(data, raw):
    """An LZ4 block of `raw` bytes, decoded; None when it is none. Slow: for a few chunks."""
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
            if not 0 < offset <= len(out) or len(out) > raw:
                return None
            for _ in range(length + 4):
                out.append(out[-offset])
    except (IndexError, struct.error):
        return None


def is_harmless(data, chunk):
    """Whether a chunk still gives the right bytes, although its stored ones were altered."""
    stored = data[chunk.at:chunk.at + chunk.stored]
    raw = stored if chunk.stored == chunk.raw else unlz4(stored, chunk.raw)
    return raw is not None and hashlib.sha256(raw).digest() == chunk.digest
