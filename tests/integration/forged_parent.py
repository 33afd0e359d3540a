#!/usr/bin/env python3
"""Commit on top of a version whose manifest is sound SQLite but not a sound tree: no crash, nothing of the
damage in what is acknowledged, and an error names the version. Files in imported objects, which this build
cannot read, stop neither commit nor verify."""
import json
import os
import shutil
import struct
import time

import forged
import lib
import other_writer
import tree
from lib import KIB, MIB, check, equal, say

RESTED = []  # the stat cache knows the files

IMPORT = """
    UPDATE extent SET pack = NULL, ordinal = NULL, stored_off = NULL, stored_len = NULL, source = 1,
        source_off = off WHERE digest IS NOT NULL;
    INSERT INTO source VALUES (1, 's3://x/y', CAST('k' AS BLOB), NULL, 'e');
"""


def write(path, data):
    with open(path, "wb") as file:
        file.write(data)


def check_version(box, source, repo):
    """The newest version is the source, and whole."""
    target = box.path("export")
    box.dsfs("export", repo, target)
    lines = tree.compare(tree.snapshot(source), tree.snapshot(target))
    check(not lines, "\n".join(lines))
    shutil.rmtree(target)
    found = box.dsfs("verify", f"{repo}@main", "--read-data", "--json", status=None)
    check(found.status == 0 and found.json["clean"], f"verify: {found.text} {found.errors}")
    equal(found.json["imported_files"], 0, "imported files of the newest version")


def extents_of_a_small_file(box):
    source, repo = box.new_dir("src"), box.path("repo-small")
    write(f"{source}/a", os.urandom(9000))
    os.link(f"{source}/a", f"{source}/b")
    write(f"{source}/c", b"c")
    box.commit(source, repo, "--init")
    forged.forge(box, repo, """
        INSERT INTO extent (file, off, slot, len, digest, pack, ordinal, stored_off, stored_len)
            SELECT id, 0, 0, size, digest, pack, ordinal, stored_off, stored_len FROM entry WHERE name = x'61';
        UPDATE entry SET pack = NULL, ordinal = NULL, stored_off = NULL, stored_len = NULL, raw_off = NULL,
            extents = 1 WHERE name = x'61';
        """)
    # The names are links of each other no more, so that both rows are made anew.
    os.link(f"{source}/a", f"{source}/d")
    for option in ("--trust-mtime", "--rehash"):
        done = box.commit(source, repo, option)
        check(not done["unchanged"], f"{option}: {done}")
        check_version(box, source, repo)
        write(f"{source}/c", option.encode())


def imported(box):
    source, repo = box.new_dir("src"), box.path("repo-imported")
    write(f"{source}/large", os.urandom(9 * MIB))
    write(f"{source}/small", os.urandom(100 * KIB))
    write(f"{source}/zeros", bytes(4 * MIB) + os.urandom(MIB))
    write(f"{source}/other", b"1")
    box.commit(source, repo, "--init")
    forged.forge(box, repo, """
        INSERT INTO extent (file, off, slot, len, digest) SELECT id, 0, 0, size, digest FROM entry
            WHERE name = CAST('small' AS BLOB);
        UPDATE entry SET pack = NULL, ordinal = NULL, stored_off = NULL, stored_len = NULL, raw_off = NULL,
            extents = 1 WHERE name = CAST('small' AS BLOB);
        """ + IMPORT + """
        UPDATE extent SET source = 1, source_off = off WHERE digest IS NULL;
        UPDATE pack SET live = 1;
        """)
    found = box.dsfs("verify", repo, "--json", status=None)
    check(found.status == 0 and found.json["clean"], f"verify: {found.text} {found.errors}")
    equal(found.json["imported_files"], 3, "imported files")
    text = box.dsfs("verify", repo).text
    check("not checked: 3 files in imported objects" in text, text)
    # Of what is imported no chunk can be taken: all of it is read. A row that is right stays.
    write(f"{source}/other", b"other")
    done = box.commit(source, repo, "--trust-mtime")
    equal(done["read_bytes"], 10 * MIB + 100 * KIB + 5, "bytes read, but for zeros")
    found = box.dsfs("verify", f"{repo}@main", "--json").json
    check(found["clean"] and found["imported_files"] == 2, f"{found}")
    with open(f"{source}/large", "r+b") as file:
        file.write(b"changed")
    # A row of zeros takes the place of an imported one of the same extent.
    with open(f"{source}/zeros", "ab") as file:
        file.write(b"changed")
    for step in range(2):
        write(f"{source}/other", b"%d" % (step + 2))
        done = box.commit(source, repo, ["--trust-mtime", "--rehash"][step])
        check(not done["unchanged"], f"{done}")
    check_version(box, source, repo)


def damage_ends_with_the_version(box):
    """A tree that is none, or totals that are not right, are not carried into the next version."""
    for step, sql in enumerate((
            "UPDATE entry SET parent = 999 WHERE name = x'61'",
            # Of a name that is not there any more: nothing asks for it but a listing.
            "UPDATE entry SET mtime_ns = -1 WHERE name = x'62'",
            "UPDATE meta SET value = 77 WHERE key = 'files'",
            "UPDATE meta SET value = 0 WHERE key IN ('files', 'bytes')",
            "UPDATE meta SET value = 3 WHERE key = 'symlinks'",
            "INSERT INTO entry (id, parent, name, type, mtime_s, mtime_ns, nlink, size, digest)"
            "    SELECT 500, 500, x'7a', 2, 0, 0, 2, 0, zeroblob(32)",
            "DELETE FROM entry WHERE name = CAST('large' AS BLOB)")):
        source, repo = box.new_dir("src"), box.path(f"repo-damage-{step}")
        write(f"{source}/a", b"a")
        write(f"{source}/b", os.urandom(2 * MIB))
        write(f"{source}/large", os.urandom(9 * MIB))
        box.commit(source, repo, "--init")
        id = forged.forge(box, repo, sql)
        write(f"{source}/c", b"c")
        os.unlink(f"{source}/b")
        result = box.dsfs("commit", "--json", source, repo)
        check(result.json["parent_damaged"] and id in result.errors, f"{sql}: {result.json} {result.errors}")
        check(result.json["uploaded_data_bytes"] < MIB, f"{sql}: uploaded again: {result.json}")
        check_version(box, source, repo)


def damage_below_an_unchanged_directory(box):
    """Rows that say something else of a file than what is there, while the digests of the directories are right."""
    names = "UPDATE entry SET name = x'7a7a' WHERE name = x'61'; UPDATE entry SET name = x'61' WHERE name = x'62';" \
        "UPDATE entry SET name = x'62' WHERE name = x'7a7a';"
    for step, (sql, options) in enumerate((
            (names, []), (names, ["--rehash"]), (names, RESTED),
            ("UPDATE entry SET type = 1 - type WHERE name = x'61'", []),
            ("UPDATE entry SET name = x'7a' WHERE name = x'6c31'; UPDATE entry SET name = x'6c31' WHERE name = x'6c32';"
             "UPDATE entry SET name = x'6c32' WHERE name = x'7a'", []))):
        source, repo = box.new_dir("src"), box.path(f"repo-below-{step}")
        os.makedirs(f"{source}/top/dir")
        write(f"{source}/top/other", b"1")
        for name in ("a", "b"):
            write(f"{source}/top/dir/{name}", os.urandom(9000))
            os.utime(f"{source}/top/dir/{name}", ns=(7, 7))
        for name in ("l1", "l2"):
            os.symlink(f"to-{name}", f"{source}/top/dir/{name}")
            os.utime(f"{source}/top/dir/{name}", ns=(7, 7), follow_symlinks=False)
        if options is RESTED:
            time.sleep(2.1)
        box.commit(source, repo, "--init")
        forged.forge(box, repo, sql)
        write(f"{source}/top/other", b"22")
        done = box.commit(source, repo, *options)
        equal((done["unchanged"], done["parent_damaged"]), (False, False), f"{sql}: {done}")
        check_version(box, source, repo)


def a_place_that_cannot_be(box):
    """As of a file that was an extent of an earlier version: its offset in the raw bytes is made good."""
    for step, options in enumerate(([], RESTED, ["--rehash"], ["--trust-mtime"])):
        source, repo = box.new_dir("src"), box.path(f"repo-place-{step}")
        os.mkdir(f"{source}/dir")
        for name in ("a", "b", "c"):
            write(f"{source}/dir/{name}", os.urandom(9000))
        os.link(f"{source}/dir/c", f"{source}/dir/d")
        write(f"{source}/other", b"1")
        if options is RESTED:
            time.sleep(2.1)
        box.commit(source, repo, "--init")
        forged.forge(box, repo, "UPDATE entry SET raw_off = 0 WHERE ordinal > 0")
        found = box.dsfs("verify", f"{repo}@main", "--json", status=None)
        check(found.status != 0 and not found.json["clean"], f"verify: {found.text} {found.errors}")
        write(f"{source}/other", b"22")
        done = box.commit(source, repo, *options)
        equal((done["unchanged"], done["parent_damaged"]), (False, False), f"{options}: {done}")
        equal(done["uploaded_data_bytes"] < 9000, True, f"{options}: uploaded again: {done}")
        check_version(box, source, repo)


def a_lost_pack(box):
    """--rehash stores again what is lost, or is not where the rows say, also where nothing else has changed."""
    source, repo = box.new_dir("src"), box.path("repo-lost")
    os.mkdir(f"{source}/dir")
    write(f"{source}/dir/large", os.urandom(9 * MIB))
    box.commit(source, repo, "--init")
    for name in ("a", "b"):
        write(f"{source}/dir/{name}", os.urandom(90 * KIB))
    # What two files have is read once.
    shutil.copy(f"{source}/dir/a", f"{source}/dir/same")
    box.commit(source, repo)
    sizes = sorted((os.path.getsize(f"{path}/{name}"), f"{path}/{name}")
                   for path, _, names in os.walk(f"{repo}/packs") for name in names)
    check(sizes[-1][0] > 9 * MIB > MIB > sizes[-2][0] > 180 * KIB, f"packs: {sizes}")
    check(box.commit(source, repo, "--rehash")["unchanged"], "--rehash where nothing is lost")
    for lost, least in ((sizes[-1][1], 9 * MIB), (sizes[-2][1], 180 * KIB)):
        os.unlink(lost)
        check(box.commit(source, repo)["unchanged"], "a lost pack without --rehash")
        done = box.commit(source, repo, "--rehash")
        equal((done["unchanged"], done["parent_damaged"]), (False, True), f"--rehash: {done}")
        check(least < done["uploaded_data_bytes"] < least + MIB, f"uploaded: {done}")
    check_version(box, source, repo)
    check(box.commit(source, repo, "--rehash")["unchanged"], "--rehash where all is made good")
    # Of a file whose chunk another file of the commit has where it should be.
    forged.forge(box, repo, "UPDATE entry SET stored_off = stored_off + 1 WHERE name = CAST('same' AS BLOB)")
    done = box.commit(source, repo, "--rehash")
    equal((done["unchanged"], done["parent_damaged"]), (False, True), f"--rehash: {done}")
    equal(done["uploaded_data_bytes"], 0, "uploaded where nothing is lost")
    check_version(box, source, repo)


def the_version_is_named(box):
    """Whatever of its manifest is wrong; not what was read before."""
    source = box.new_dir("src")
    write(f"{source}/a", b"a")
    write(f"{source}/large", os.urandom(5 * MIB))
    for step, sql in enumerate((
            "UPDATE entry SET mtime_ns = -1 WHERE name = x'61'",
            "UPDATE extent SET slot = slot + 1",
            "UPDATE pack SET size = -1",
            "UPDATE meta SET value = 'many' WHERE key = 'files'",
            "PRAGMA user_version = 7")):
        repo = box.path(f"repo-named-{step}")
        box.commit(source, repo, "--init")
        id = forged.forge(box, repo, sql)
        with open(f"{source}/large", "r+b") as file:
            file.write(os.urandom(8))
        result = box.dsfs("commit", source, repo, status=None)
        check(result.status in (6, 9) and f'"versions/{id}"' in result.errors, f"{sql}: {result}: {result.errors}")


def pages_that_overlap(box):
    """One page is said to lie inside another: what is asked of the store ends where the longer one ends.
    (What a read over the end of the answer does, ASan says.)"""
    source, repo = box.new_dir("src"), box.path("repo-overlap")
    for i in range(100):
        write(f"{source}/{i}", b"%d" % i)
    box.commit(source, repo, "--init")

    def overlap(rows):
        long, short, *rest = [row for row in rows if row[4]]
        short[3:5] = long[3] + 1, 1
        for row in rest:
            row[:5] = bytes(32), 0, 0, 0, 0

    forged.forge(box, repo, "", index=overlap)
    write(f"{source}/0", b"changed")
    result = box.dsfs("commit", source, repo, status=None)
    check(result.status == 6 and "malformed: chunk 1" in result.errors, f"{result}: {result.errors}")


def more_pages_than_there_are(box):
    """Memory is taken for what was read of an index, not for what a record says. (A limit that ASan knows.)"""
    source, repo = box.new_dir("src"), box.path("repo-pages")
    write(f"{source}/a", b"a")
    box.commit(source, repo, "--init")
    _, entry, _ = forged.head_of(repo)
    with open(f"{repo}/versions/{entry['version']}", "rb") as file:
        parent = json.loads(file.read())
    packer = other_writer.PackWriter(1)
    digest, ordinal, at, length, _ = packer.add(b"no node")
    pages, fanout = 1 << 30, 512
    node = b"dsfsidx1" + struct.pack("<IIQII", 3, pages // fanout**3, 0, 0, 0)
    node += struct.pack("<32sIIQII", digest, 0, ordinal, at, length, length) * (pages // fanout**3)
    id = forged.append(repo, parent, packer, node, pages, 65536)
    limit = {"ASAN_OPTIONS": box.env["ASAN_OPTIONS"] + ":max_allocation_size_mb=1024:allocator_may_return_null=1"}
    result = box.dsfs("commit", source, repo, status=6, env=limit)
    check(f'"versions/{id}"' in result.errors, result.errors)


def run(box, args):
    for case in (extents_of_a_small_file, imported, damage_ends_with_the_version,
                 damage_below_an_unchanged_directory, a_place_that_cannot_be, a_lost_pack,
                 the_version_is_named, pages_that_overlap, more_pages_than_there_are):
        case(box)
        say(f"{case.__name__}: right")


if __name__ == "__main__":
    lib.main(run, fuse=False)
