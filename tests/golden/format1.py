"""The stored forms of format 1, written from schema/README.md alone: for make.py."""

import functools
import hashlib
import os
import re
import sqlite3
import struct

KIB, MIB = 1024, 1024 * 1024
PAGE_SIZE = 4096
FANOUT = 512
SCHEMA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../schema/manifest.sql")


def sha(data):
    return hashlib.sha256(data).digest()


def noise(label, n=16):
    """n bytes that look random and are always the same."""
    out = b""
    while len(out) < n:
        out += sha(b"golden %s %d" % (label.encode(), len(out)))
    return out[:n]


# ---- chunks


def lz4_block(data):
    """Greedy LZ4, the block format without a frame."""
    out, anchor, at, seen = bytearray(), 0, 0, {}

    def length(n):
        while n >= 255:
            out.append(255)
            n -= 255
        out.append(n)

    def sequence(literals, match_len, distance):
        lit, mat = len(literals), match_len - 4 if match_len else 0
        out.append(min(lit, 15) << 4 | min(mat, 15))
        if lit >= 15:
            length(lit - 15)
        out.extend(literals)
        if match_len:
            out.extend(struct.pack("<H", distance))
            if mat >= 15:
                length(mat - 15)

    end = len(data) - 12  # no match starts later, and the last 5 bytes are literals
    while at < end:
        key = data[at : at + 4]
        before = seen.get(key)
        seen[key] = at
        if before is None or at - before > 65535:
            at += 1
            continue
        distance, stop, n = at - before, len(data) - 5, 4
        step = 1 << 16
        while step:  # the longest match, by doubling backwards
            while at + n + step <= stop and data[at + n : at + n + step] == data[before + n : before + n + step]:
                n += step
            step >>= 1
        sequence(data[anchor:at], n, distance)
        at += n
        anchor = at
    sequence(data[anchor:], 0, 0)
    return bytes(out)


@functools.lru_cache(maxsize=None)
def encode_chunk(raw):
    packed = lz4_block(raw)
    return packed if len(packed) <= len(raw) - len(raw) // 16 and len(packed) < len(raw) else raw


GEAR = [struct.unpack("<Q", sha(b"dsfs-gear-" + bytes([i]))[:8])[0] for i in range(256)]
MASK1 = ((1 << 22) - 1) << 42
MASK2 = ((1 << 18) - 1) << 46


def cut(stretch):
    """Lengths of the chunks of a stretch between zeros."""
    lengths, start = [], 0
    while start < len(stretch):
        left = len(stretch) - start
        if left <= 256 * KIB:
            n = left
        else:
            h, n = 0, min(left, 4 * MIB)
            for p in range(256 * KIB, n):
                h = ((h << 1) + GEAR[stretch[start + p]]) & 0xFFFFFFFFFFFFFFFF
                if h & (MASK1 if p < MIB else MASK2) == 0:
                    n = p + 1
                    break
        lengths.append(n)
        start += n
    return lengths


@functools.lru_cache(maxsize=None)
def extents_of(data):
    """[(offset, bytes or None for zeros, length)] of a file over 4 MiB."""
    out, at = [], 0

    def stretch(start, end):
        for n in cut(data[start:end]) if end > start else []:
            out.append((start, data[start : start + n], n))
            start += n

    for run in re.finditer(rb"\0{65536,}", data):
        stretch(at, run.start())
        out.append((run.start(), None, run.end() - run.start()))
        at = run.end()
    stretch(at, len(data))
    return out


@functools.lru_cache(maxsize=None)
def content_digest(data):
    if len(data) <= 4 * MIB:
        return sha(data)
    h = hashlib.sha256(b"dsfs-file-1\n" + struct.pack("<Q", len(data)))
    for _, chunk, n in extents_of(data):
        h.update(struct.pack("<BQ", 0 if chunk is None else 1, n) + (b"" if chunk is None else sha(chunk)))
    return h.digest()


# ---- packs


class Pack:
    def __init__(self, kind, label):
        self.kind, self.nonce, self.chunks, self.index = kind, noise("pack " + label), [], {}

    def add(self, raw):
        """Ordinal of the chunk; the same bytes are put once."""
        digest = sha(raw)
        if digest not in self.index:
            self.index[digest] = len(self.chunks)
            self.chunks.append((digest, len(raw), encode_chunk(raw)))
        return self.index[digest]

    def table(self):
        out = b"dsfstoc1" + self.nonce + struct.pack("<II", self.kind, len(self.chunks))
        for digest, raw_len, stored in self.chunks:
            out += digest + struct.pack("<II", raw_len, len(stored))
        return out

    def id(self):
        return sha(self.table())

    def object(self):
        table = self.table()
        return b"dsfspak1" + b"".join(c[2] for c in self.chunks) + table + struct.pack("<Q", len(table))

    def place(self, ordinal):
        """(stored offset, stored length, raw offset, raw length)"""
        before = self.chunks[:ordinal]
        _, raw_len, stored = self.chunks[ordinal]
        return 8 + sum(len(c[2]) for c in before), len(stored), sum(c[1] for c in before), raw_len

    def ref(self, ordinal):
        off, stored_len, _, raw_len = self.place(ordinal)
        return Ref(self.chunks[ordinal][0], self, ordinal, off, stored_len, raw_len)


class Ref:
    def __init__(self, digest, pack, ordinal, off, stored_len, raw_len):
        self.digest, self.pack, self.ordinal = digest, pack, ordinal
        self.off, self.stored_len, self.raw_len = off, stored_len, raw_len

    def json(self):
        return {
            "digest": self.digest.hex(),
            "pack": self.pack.id().hex(),
            "ordinal": self.ordinal,
            "offset": self.off,
            "stored": self.stored_len,
            "raw": self.raw_len,
        }


def moved_note(old, targets):
    """targets: for each ordinal (pack, ordinal) or None."""
    packs = []
    for target in targets:
        if target and target[0] not in packs:
            packs.append(target[0])
    table = old.table()
    out = b"dsfsmov1" + struct.pack("<I", len(table)) + table + struct.pack("<I", len(packs))
    out += b"".join(p.id() for p in packs)
    for target in targets:
        out += struct.pack("<II", packs.index(target[0]) + 1, target[1]) if target else struct.pack("<II", 0, 0)
    return out + sha(out)


# ---- trees: path -> node; paths are bytes, b"" is the root


class Node:
    """sources: of an imported file, slot of the extent -> (number of the source, offset in it, was it read)."""

    def __init__(self, kind, mtime, content=b"", link=None, sources=None):
        self.kind, self.mtime, self.content, self.link = kind, mtime, content, link
        self.sources = sources or {}

    def extents(self):
        """[(offset, bytes or None for zeros, length)] of a file that has any in the manifest."""
        if len(self.content) > 4 * MIB:
            return extents_of(self.content)
        return [(0, self.content, len(self.content))] if self.sources else []

    def is_unverified(self):
        return any(not was_read for _, _, was_read in self.sources.values())


def children(tree, path):
    prefix = path + b"/" if path else b""
    return sorted(
        p[len(prefix) :] for p in tree if p and p.startswith(prefix) and b"/" not in p[len(prefix) :]
    )


def join(path, name):
    return path + b"/" + name if path else name


def walk(tree, path=b""):
    """Depth first, names in byte order."""
    yield path
    if tree[path].kind == "dir":
        for name in children(tree, path):
            yield from walk(tree, join(path, name))


def inode(tree, path):
    """The node that holds what a name shows."""
    return tree[tree[path].link] if tree[path].link is not None else tree[path]


def digest_of(tree, path, memo):
    if path in memo:
        return memo[path]
    node = inode(tree, path)
    if node.kind == "dir":
        h = b"dsfs-dir-1\n"
        for name in children(tree, path):
            child = inode(tree, join(path, name))
            letter = {"file": b"f", "exec": b"f", "dir": b"d", "symlink": b"l"}[child.kind]
            h += letter + struct.pack("<BI", child.kind == "exec", len(name)) + name
            h += digest_of(tree, join(path, name), memo)
        memo[path] = sha(h)
    elif node.kind == "symlink":
        memo[path] = sha(node.content)
    elif node.is_unverified():
        memo[path] = noise("unverified " + path.decode(), 32)
    else:
        memo[path] = content_digest(node.content)
    return memo[path]


def names_of(tree, path):
    """All names of the inode of `path`."""
    first = tree[path].link if tree[path].link is not None else path
    return [p for p in tree if p == first or tree[p].link == first]


# ---- the manifest


class Manifest:
    """One SQLite file, changed in place from version to version."""

    def __init__(self, path):
        self.path, self.ids, self.packs, self.rows = path, {b"": 1}, [], {}
        self.next_id = 3
        db = self.open()
        db.execute("PRAGMA page_size = %d" % PAGE_SIZE)
        db.execute("PRAGMA encoding = 'UTF-8'")
        db.execute("PRAGMA application_id = %d" % 0x64736673)
        db.execute("PRAGMA user_version = 1")
        db.executescript("BEGIN;" + open(SCHEMA).read() + "COMMIT;")
        db.close()
        self.page_refs = []
        self.nodes = {}

    def open(self):
        db = sqlite3.connect(self.path, isolation_level=None)
        db.execute("PRAGMA secure_delete = ON")
        db.execute("PRAGMA journal_mode = DELETE")
        return db

    def pack_number(self, pack):
        if pack not in self.packs:
            self.packs.append(pack)
        return self.packs.index(pack) + 1

    def entry_row(self, tree, path, where, memo):
        parent, _, name = path.rpartition(b"/")
        node, i = tree[path], self.ids[path]
        row = {"id": i, "parent": self.ids[parent] if path else 0, "name": name}
        if node.link is not None:
            return dict(row, type=4, link=self.ids[node.link])
        row["type"] = {"file": 0, "exec": 1, "dir": 2, "symlink": 3}[node.kind]
        row["mtime_s"], row["mtime_ns"] = node.mtime
        row["digest"] = digest_of(tree, path, memo)
        if node.kind == "dir":
            names = children(tree, path)
            row["nlink"] = 2 + sum(tree[join(path, n)].kind == "dir" for n in names)
            row["size"] = len(names)
        else:
            row["nlink"] = len(names_of(tree, path))
            row["size"] = len(node.content)
        if node.kind == "symlink":
            row["target"] = node.content
        elif node.kind != "dir" and node.extents():
            row["extents"] = len(node.extents())
        elif node.kind != "dir" and node.content:
            pack, ordinal = where[sha(node.content)]
            off, stored_len, raw_off, _ = pack.place(ordinal)
            row.update(pack=self.pack_number(pack), ordinal=ordinal, stored_off=off, stored_len=stored_len)
            row["raw_off"] = raw_off
        return row

    def extent_rows(self, tree, path, where):
        node = tree[path]
        if node.link is not None or node.kind not in ("file", "exec"):
            return
        for slot, (off, chunk, n) in enumerate(node.extents()):
            row = {"file": self.ids[path], "off": off, "slot": slot, "len": n}
            if slot in node.sources:
                row["source"], row["source_off"], was_read = node.sources[slot]
                row["digest"] = sha(chunk) if was_read else None
            elif chunk is not None:
                pack, ordinal = where[sha(chunk)]
                stored_off, stored_len, _, _ = pack.place(ordinal)
                row.update(digest=sha(chunk), pack=self.pack_number(pack), ordinal=ordinal)
                row.update(stored_off=stored_off, stored_len=stored_len)
            yield row

    def write(self, tree, where, rejects, extra):
        """Brings the file to `tree`; gives the totals."""
        memo, rows = {}, {}
        for path in walk(tree):
            if path not in self.ids:
                self.ids[path] = self.next_id
                self.next_id += 1
        for path in walk(tree):
            row = self.entry_row(tree, path, where, memo)
            rows[("entry", row["id"])] = row
            for row in self.extent_rows(tree, path, where):
                rows[("extent", row["file"], row["off"])] = row
        used = [r["pack"] for r in rows.values() if r.get("pack")]
        for i, pack in enumerate(self.packs):
            number = i + 1
            if number in used:
                rows[("pack", number)] = {
                    "number": number,
                    "id": pack.id(),
                    "size": len(pack.object()),
                    "chunks": len(pack.chunks),
                    "raw": sum(c[1] for c in pack.chunks),
                    "live": used.count(number),
                }
        files = [p for p in tree if inode(tree, p).kind in ("file", "exec")]
        totals = {
            "files": len(files),
            "directories": sum(n.kind == "dir" for n in tree.values()) - 1,
            "symlinks": sum(n.kind == "symlink" and n.link is None for n in tree.values()),
            "bytes": sum(len(tree[p].content) for p in files if tree[p].link is None),
            "rejected": len(rejects),
        }
        meta = dict(totals)
        for p in files:
            key = "size_%d" % len(inode(tree, p).content).bit_length()
            meta[key] = meta.get(key, 0) + 1
        meta.update(extra.get("meta", {}))
        for key, value in meta.items():
            rows[("meta", key)] = {"key": key, "value": value}
        for path, reason in rejects:
            rows[("reject", path)] = {"path": path, "reason": reason}
        for table in ("xattr", "source"):
            for row in extra.get(table, []):
                rows[(table,) + tuple(row.values())] = row
        for path, columns in extra.get("owners", {}).items():
            rows[("entry", self.ids[path])].update(columns)
        self.change(rows, extra.get("zero_pages", 0))
        self.ids = {p: i for p, i in self.ids.items() if p in tree}
        return totals

    def change(self, rows, zero_pages):
        keys = {"entry": "id", "extent": "file,off", "pack": "number", "meta": "key", "reject": "path"}
        keys.update({"xattr": "entry,name", "source": "number"})
        db = self.open()
        db.execute("BEGIN")
        for key, row in self.rows.items():
            if key not in rows:
                cols = keys[key[0]].split(",")
                where = " AND ".join("%s IS ?" % c for c in cols)
                db.execute("DELETE FROM %s WHERE %s" % (key[0], where), [row[c] for c in cols])
        for key, row in rows.items():
            if self.rows.get(key) == row:
                continue
            marks = ",".join("?" * len(row))
            sql = "INSERT OR REPLACE INTO %s (%s) VALUES (%s)" % (key[0], ",".join(row), marks)
            db.execute(sql, list(row.values()))
        db.execute("COMMIT")
        if zero_pages:
            # Pages that were used and given back: zeros, with secure_delete.
            db.execute("INSERT INTO meta VALUES ('filler', ?)", [noise("filler", zero_pages * PAGE_SIZE)])
            db.execute("DELETE FROM meta WHERE key = 'filler'")
        db.close()
        self.rows = rows

    def hot_pages(self):
        db = self.open()
        roots = [r[0] - 1 for r in db.execute("SELECT rootpage FROM sqlite_schema ORDER BY rootpage")]
        db.close()
        return sorted({0, *roots})

    def publish(self, label, packs_n=1):
        """Packs of what changed; (packs, reference of the root of the index, prefetch, pages)."""
        data = open(self.path, "rb").read()
        pages = [data[i : i + PAGE_SIZE] for i in range(0, len(data), PAGE_SIZE)]
        packs = [Pack(1, "%s %d" % (label, i)) for i in range(packs_n)]
        hot, old, refs = self.hot_pages(), self.page_refs, [None] * len(pages)
        for i, page in enumerate(pages):
            if page.strip(b"\0") and i not in hot:
                same = i < len(old) and old[i] and old[i].digest == sha(page)
                refs[i] = old[i] if same else packs[0].ref(packs[0].add(page))
        last = packs[-1]
        first_hot = len(last.chunks)
        for i in hot:
            refs[i] = last.ref(last.add(pages[i]))
        self.page_refs = refs
        level, nodes = 0, [refs[i : i + FANOUT] for i in range(0, len(refs), FANOUT)]
        while True:
            node_refs = [self.node(last, level, i, entries) for i, entries in enumerate(nodes)]
            if len(node_refs) == 1:
                break
            level += 1
            nodes = [node_refs[i : i + FANOUT] for i in range(0, len(node_refs), FANOUT)]
        prefetch = [last.ref(i) for i in range(first_hot, len(last.chunks))]
        return packs, node_refs[0], prefetch, len(pages)

    def node(self, pack, level, i, entries):
        """The reference of a node: that of the version before if nothing below it changed."""
        shape = [(e.digest, e.pack, e.ordinal) if e else None for e in entries]
        if self.nodes.get((level, i), (None,))[0] == shape:
            return self.nodes[(level, i)][1]
        others = []
        body = b""
        for e in entries:
            if e is None:
                body += bytes(32) + struct.pack("<IIQII", 0, 0, 0, 0, PAGE_SIZE)
                continue
            if e.pack is not pack and e.pack not in others:
                others.append(e.pack)
            number = 0 if e.pack is pack else others.index(e.pack) + 1
            body += e.digest + struct.pack("<IIQII", number, e.ordinal, e.off, e.stored_len, e.raw_len)
        head = b"dsfsidx1" + struct.pack("<IIQII", level, len(entries), i * FANOUT ** (level + 1), len(others), 0)
        ref = pack.ref(pack.add(head + b"".join(p.id() for p in others) + body))
        self.nodes[(level, i)] = (shape, ref)
        return ref
