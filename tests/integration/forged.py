"""A version whose manifest was changed by SQL, put on top of the one that it was taken from, with seals and
digests that are right: what a damaged or hostile writer could leave."""
import hashlib
import json
import os
import secrets
import sqlite3
import struct

import other_writer
import stored


def head_of(repo, branch="main"):
    log = f"{repo}/refs/branches/{branch}"
    number = max(int(name) for name in os.listdir(log) if name.isdigit())
    with open(f"{log}/{number:010}", "rb") as file:
        data = file.read()
    return number, json.loads(data.split(b"\n")[0]), hashlib.sha256(data).hexdigest()


def forge(box, repo, sql, fingerprint=None, index=None):
    """Appends the version to `main`; gives its id. index(rows) changes the rows of the index: lists of digest,
    pack number, ordinal, offset, length and raw length."""
    number, entry, _ = head_of(repo)
    path = box.path(f"forged-{number}.sqlite")
    version = stored.Version(repo, entry["version"], path)
    version.db.close()
    db = sqlite3.connect(path)
    db.executescript("PRAGMA journal_mode = DELETE;" + sql)
    db.commit()
    db.close()
    size = version.page_size
    with open(path, "rb") as file:
        data = file.read()
    pages = [data[i:i + size] for i in range(0, len(data), size)]
    assert len(pages) <= 512
    packer = other_writer.PackWriter(1)
    node = b"dsfsidx1" + struct.pack("<IIQII", 0, len(pages), 0, 0, 0)
    rows = []
    for page in pages:
        digest, ordinal, at, length, _ = packer.add(page) if any(page) else (bytes(32), 0, 0, 0, 0)
        rows.append([digest, 0, ordinal, at, length, size])
    if index:
        index(rows)
    node += b"".join(struct.pack("<32sIIQII", *row) for row in rows)
    return append(repo, version.record, packer, node, len(pages), size, fingerprint)


def append(repo, parent, packer, node, pages, page_size, fingerprint=None):
    """Puts a version like its parent, of whose index `node` is the root, on top of `main`; gives its id."""
    number, entry, previous = head_of(repo)
    digest, ordinal, at, length, _ = packer.add(node)
    pack, _ = packer.finish(repo)
    record = dict(parent, nonce=secrets.token_hex(16), parents=[entry["version"]], prefetch=[])
    if fingerprint:
        record["fingerprint"] = fingerprint
    record["manifest"] = {"schema": 1, "page_size": page_size, "pages": pages,
                          "index": {"digest": digest.hex(), "pack": pack, "ordinal": ordinal, "offset": at,
                                    "stored": length, "raw": length}}
    text = json.dumps(record).encode()
    id = hashlib.sha256(text).hexdigest()
    other_writer.put(repo, f"versions/{id}", text)
    entry.update(number=number + 1, version=id, previous=previous, writer=secrets.token_hex(16))
    other_writer.put(repo, f"refs/branches/main/{number + 1:010}", other_writer.seal(entry))
    return id
