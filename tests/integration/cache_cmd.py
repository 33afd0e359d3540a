#!/usr/bin/env python3
"""dsfs cache status, prune and verify, with and without live mounts beside them."""
import glob
import os
import random
import subprocess
import threading

import lib
from lib import KIB, MIB, check, equal, say
from mount_cache import Tmpfs, stats

# Too small for whole packs ahead of demand, so that what is there is what was read.
SIZE = "cache_size=300M"


def make(source, rng, count):
    wanted = {}
    for i in range(count):
        wanted[f"{i % 4}/{i:03}"] = rng.randbytes(rng.randint(10, 60) * KIB)
    wanted["large"] = rng.randbytes(9 * MIB)
    for name, data in wanted.items():
        os.makedirs(os.path.dirname(f"{source}/{name}"), exist_ok=True)
        with open(f"{source}/{name}", "wb") as file:
            file.write(data)
    return wanted


def read(mount, name):
    """From dsfs, and not from the kernel's page cache."""
    fd = os.open(f"{mount.path}/{name}", os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        parts = []
        while part := os.read(fd, MIB):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def same(mount, wanted, what):
    wrong = [name for name, data in wanted.items() if read(mount, name) != data]
    check(not wrong, f"{what}: {len(wrong)} files are wrong, such as {wrong[:3]}")


def allocated(cache):
    return sum(os.lstat(path).st_blocks * 512 for path in glob.glob(f"{cache}/images/*/*/*"))


def find(cache, data):
    """(path, offset) of these bytes in the cache."""
    for path in glob.glob(f"{cache}/images/*/*/data"):
        with open(path, "rb") as file:
            at = file.read().find(data)
        if at >= 0:
            return path, at
    raise lib.Failed("the bytes are not in the cache")


def flip(path, at):
    with open(path, "r+b") as file:
        file.seek(at)
        old = file.read(1)
        file.seek(at)
        file.write(bytes([old[0] ^ 0x10]))


def verify(box, cache, status=0):
    return box.dsfs("cache", "verify", "--json", "--cache-dir", cache, status=status).json


def usage(box, cache):
    result = box.dsfs("cache", status=2)
    check("dsfs cache status|prune|verify" in result.errors, result.errors)
    for args, words in ((["all"], "status, prune or verify"),
                        (["prune"], "one of --all"),
                        (["prune", "--all", "--to", "1M"], "one of --all"),
                        (["prune", "--to", "much"], "takes a size"),
                        (["prune", "--older-than", "long"], "takes a time"),
                        (["status", "--all"], "--all is of cache prune"),
                        (["verify", "--to", "1G"], "--to is of cache prune"),
                        (["status", "now"], "one argument too many")):
        result = box.dsfs("cache", *args, "--cache-dir", cache, status=2)
        check(words in result.errors, f"{result}: {result.errors}")
    missing = box.path("missing")
    for action in (["status"], ["verify"], ["prune", "--all"]):
        result = box.dsfs("cache", *action, "--cache-dir", missing, status=3)
        check(missing in result.errors and "no cache is there" in result.errors, result.errors)
    check(not os.path.exists(missing), "a look made a cache")
    say("wrong usage is told")


def listed(path):
    """All that is below it, with modes and bytes."""
    found = {}
    for folder, folders, files in os.walk(path):
        for name in folders + files:
            at = os.path.join(folder, name)
            stat = os.lstat(at)
            data = open(at, "rb").read() if stat.st_mode & 0o170000 == 0o100000 else None
            found[at] = (stat.st_mode, stat.st_ino, stat.st_mtime_ns, data)
    return found


def not_a_cache(box, repo):
    """Nobody's data suffer from being named as the cache."""
    data, empty = box.new_dir("data"), box.new_dir("empty")
    for name in ("usage/deep/report.txt", "images/cat.png", "tmp/note"):
        os.makedirs(os.path.dirname(f"{data}/{name}"), exist_ok=True)
        with open(f"{data}/{name}", "w", encoding="ascii") as file:
            file.write("precious")
    actions = [["cache", action, *more] for action, *more in (("status",), ("verify",), ("prune", "--all"))]
    before = listed(data)
    for args in [*(action + ["--cache-dir", data] for action in actions),
                 ["warm", repo, "-o", f"cache_dir={data}"],
                 ["mount", repo, box.new_dir("not-mounted"), "-o", f"cache_dir={data}"]]:
        result = box.dsfs(*args, status=7)
        check(f"{data}/usage" in result.errors and "is not dsfs's" in result.errors and "give an empty" in result.errors,
              f"{args}: {result.errors}")
        equal(listed(data), before, f"the data, after {args}")
    # A command that can do without a cache does.
    box.dsfs("ls", repo, env={"DSFS_CACHE_DIR": data})
    equal(listed(data), before, "the data, after ls")
    for action in actions:
        result = box.dsfs(*action, "--cache-dir", empty, status=3)
        check(empty in result.errors and "no cache is there" in result.errors, result.errors)
        equal(os.listdir(empty), [], "what a look made")
    # On a file system of its own.
    os.mkdir(f"{empty}/lost+found", 0o700)
    with box.mount(repo, f"cache_dir={empty}"):
        pass
    box.dsfs("cache", "status", "--cache-dir", empty)
    # Where commits keep what they know.
    shared = box.path("shared")
    more = box.new_dir("more")
    with open(f"{more}/file", "w", encoding="ascii") as file:
        file.write("more")
    box.dsfs("commit", more, box.path("more-repo"), "--init", env={"DSFS_CACHE_DIR": shared})
    check(os.listdir(shared), "the commit left nothing")
    box.dsfs("warm", box.path("more-repo"), env={"DSFS_CACHE_DIR": shared})
    say("a directory of somebody's data is no cache, and stays as it is")


def status(box, cache, mount, wanted):
    found = box.dsfs("cache", "status", "--json", "--cache-dir", cache).json
    total = sum(map(len, wanted.values()))
    kinds = {row["kind"]: row for row in found["kinds"]}
    equal(sorted(kinds), ["indexes", "large files", "manifests", "packs"], "kinds of images")
    # Equal files, if any, are one chunk.
    equal(kinds["packs"]["present_bytes"] + kinds["large files"]["present_bytes"], total, "bytes present")
    equal(kinds["packs"]["chunks"], len(wanted) - 1, "chunks of small files")
    equal(kinds["packs"]["trusted_bytes"], kinds["packs"]["present_bytes"], "bytes checked in this boot")
    equal(found["used_bytes"], allocated(cache), "used bytes")
    equal(found["directory"], cache, "directory")
    equal(found["damaged_images"], 0, "damaged images")
    check(0 < found["free_bytes"] <= found["file_system_bytes"], f"{found}")
    check(found["default_capacity_bytes"] > 0, f"{found}")
    equal([row["mountpoint"] for row in found["mounts"]], [mount.path] if mount else [], "mounts")
    # The same by $DSFS_CACHE_DIR, for people.
    text = box.dsfs("cache", "status", env={"DSFS_CACHE_DIR": cache}).text
    check(text.startswith(f"{cache}: "), text)
    check(lines_with(text, "used by ") == (1 if mount else 0), text)


def lines_with(text, words):
    return sum(line.startswith(words) for line in text.splitlines())


def flips(box, repo, cache, wanted):
    """One byte: with nobody there, beside a mount, and in the middle of a large file."""
    for name in ("1/001", "large"):
        path, at = find(cache, wanted[name][len(wanted[name]) // 2:][:64])
        inode = os.stat(path).st_ino
        flip(path, at + 7)
        found = verify(box, cache, 6)
        equal(found["clean"], False, "clean")
        equal(len(found["findings"]), 1, f"findings {found['findings']}")
        row = found["findings"][0]
        equal(f"{cache}/{row['file']}", path, "the damaged file")
        check(row["offset"] <= at + 7 < row["offset"] + row["bytes"], f"{row}, flipped at {at + 7}")
        # Nothing but that chunk went.
        if name != "large":
            equal(os.stat(path).st_ino, inode, "the image")
        again = verify(box, cache)
        check(again["clean"] and again["chunks"] >= found["chunks"] - (1 if name != "large" else 99), f"{again}")
        with box.mount(repo, f"cache_dir={cache},{SIZE}") as mount:
            same(mount, wanted, f"after a flip in {name}")
    say("one byte flipped, no mount: found, dropped, fetched anew")
    for name in ("2/002", "large"):
        with box.mount(repo, f"cache_dir={cache},{SIZE}") as mount:
            same(mount, wanted, "before the flip")
            path, at = find(cache, wanted[name][1000:1064])
            flip(path, at + 3)
            check(read(mount, name) != wanted[name], "the mount does not read what was flipped")
            found = verify(box, cache, 6)
            equal([f"{cache}/{row['file']}" for row in found["findings"]], [path], "the damaged file")
            equal(found["still_used_images"], 0, "images still used")
            same(mount, wanted, f"the mount, after a flip in {name}")
            check(verify(box, cache)["clean"], "it is not clean now")
    say("one byte flipped beside a live mount: found, dropped, and the mount reads right")


def damaged(box, repo, cache, wanted):
    """Images that are none any more, and what does not belong there."""
    data = find(cache, wanted["3/003"][:64])[0]
    os.truncate(f"{os.path.dirname(data)}/map", 100)
    text = box.dsfs("cache", "status", "--cache-dir", cache).text
    check("damaged: 1 image (" in text, text)
    with open(f"{cache}/images/stranger", "w", encoding="ascii"):
        pass
    result = box.dsfs("cache", "verify", "--cache-dir", cache, status=6)
    check("the image is damaged; dropped" in result.text and "damaged: " in result.text, result.text)
    check(not os.path.exists(data), "a damaged image stays")
    text = box.dsfs("cache", "verify", "--cache-dir", cache).text
    check(text.startswith("clean: "), text)
    equal(box.dsfs("cache", "verify", "-q", "--cache-dir", cache).text, "", "verify -q of a clean cache")
    with box.mount(repo, f"cache_dir={cache},{SIZE}") as mount:
        same(mount, wanted, "after damage to a map")
    say("a damaged map: told and dropped")


def prune(box, repo, cache, wanted):
    with box.mount(repo, f"cache_dir={cache},{SIZE}") as mount:
        same(mount, wanted, "before prune")
        size = allocated(cache)
        result = box.dsfs("cache", "prune", "--older-than", "1h", "--json", "--cache-dir", cache).json
        equal((result["freed_bytes"], allocated(cache)), (0, size), "freed of what was just used")
        stop, failures = threading.Event(), []

        def reader():
            rng = random.Random(1)
            names = list(wanted)
            while not stop.is_set():
                name = rng.choice(names)
                if read(mount, name) != wanted[name]:
                    failures.append(name)

        thread = threading.Thread(target=reader)
        thread.start()
        try:
            for _ in range(2):
                box.dsfs("cache", "prune", "--all", "--json", "--cache-dir", cache)
                check(verify(box, cache)["clean"], "damage after a prune beside a reader")
        finally:
            stop.set()
            thread.join()
        check(not failures, f"wrong bytes beside a prune: {failures[:3]}")
        same(mount, wanted, "after prune beside a reader")
    size = allocated(cache)
    result = box.dsfs("cache", "prune", "--to", str(size // 2), "--json", "--cache-dir", cache).json
    # What was handed to the kernel goes as a whole: how much more is a matter of the order.
    check(allocated(cache) <= size // 2, f"{allocated(cache)} of {size} bytes left: {result}")
    equal(result["used_bytes"], allocated(cache), "used bytes")
    check(abs(result["freed_bytes"] - (size - allocated(cache))) <= 64 * KIB, f"{result}, before {size}")
    text = box.dsfs("cache", "prune", "--all", "--cache-dir", cache).text
    check(text.startswith("freed "), text)
    equal(allocated(cache), 0, "bytes left after prune --all")
    equal(box.dsfs("cache", "status", "--json", "--cache-dir", cache).json["images"], 0, "images left")
    with box.mount(repo, f"cache_dir={cache},{SIZE}") as mount:
        same(mount, wanted, "after prune --all")
    text = box.dsfs("cache", "prune", "--older-than", "0s", "--cache-dir", cache).text
    equal(allocated(cache), 0, "bytes left after prune --older-than 0s")
    say("prune: freed what it said, and readers beside it read right")


def unstored(box, repo, cache, wanted, why):
    """Right bytes, and one line with the reason."""
    with box.mount(repo, f"cache_dir={cache}") as mount:
        for _ in range(2):
            same(mount, wanted, f"a cache that stores nothing: {why}")
        # The keeper looks every 2 s.
        box.wait(lambda: "cannot store" in mount.log_text(), "the warning")
        lines = [line for line in mount.log_text().splitlines() if "cannot store" in line]
        check(len(lines) == 1 and cache in lines[0] and why in lines[0], f"{lines}")
        check(stats(mount)["cache_unstored"] > 0, f"{stats(mount)}")


def read_only(box, repo, wanted):
    """The disk turned read-only: a cache is as whole as it was, and what cannot be done is said."""
    if os.geteuid() != 0:
        say("no tmpfs can be mounted here: nothing is known of read-only ones")
        return
    with Tmpfs(box, 64 * MIB) as tmpfs:
        cache = f"{tmpfs.path}/c"
        at = ("--cache-dir", cache)
        box.dsfs("warm", repo, "-o", f"cache_dir={cache}")
        was = box.dsfs("cache", "status", "--json", *at).json
        subprocess.run(["mount", "-o", "remount,ro", tmpfs.path], check=True, timeout=60)
        found = box.dsfs("cache", "status", "--json", *at).json
        equal((found["images"], found["damaged_images"], found["kinds"]), (was["images"], 0, was["kinds"]), "a read-only cache")
        check(verify(box, cache)["clean"], "a read-only cache is not clean")
        result = box.dsfs("cache", "prune", "--all", *at, status=1)
        check("Read-only" in result.errors, result.errors)
        row = next(row for row in box.dsfs("doctor", "--json", env={"DSFS_CACHE_DIR": cache}, status=None).json
                   if row["what"] == "cache")
        check(row["verdict"] == "bad" and "Read-only" in row["text"], f"{row}")
        # What stays is not said to be dropped.
        subprocess.run(["mount", "-o", "remount,rw", tmpfs.path], check=True, timeout=60)
        # Of the largest: what it leaves when it is dropped does not make room for the manifest's.
        data = max(glob.glob(f"{cache}/images/*/*/map"), key=lambda path: os.stat(f"{os.path.dirname(path)}/data").st_size)
        os.truncate(data, 100)
        subprocess.run(["mount", "-o", "remount,ro", tmpfs.path], check=True, timeout=60)
        equal(box.dsfs("cache", "status", "--json", *at).json["damaged_images"], 1, "damaged images")
        result = box.dsfs("cache", "verify", *at, status=1)
        check("Read-only" in result.errors and "dropped" not in result.text, f"{result.errors} {result.text}")
        check(os.path.exists(data), "what was it that was dropped?")
        subprocess.run(["mount", "-o", "remount,rw", tmpfs.path], check=True, timeout=60)
        result = box.dsfs("cache", "verify", *at, status=6)
        check("dropped" in result.text and not os.path.exists(data), result.text)
        # Full: nothing is wrong with it.
        with open(f"{tmpfs.path}/filler", "wb", buffering=0) as file:
            try:
                while file.write(bytes(64 * KIB)) == 64 * KIB:
                    pass
            except OSError:
                pass
        row = next(row for row in box.dsfs("doctor", "--json", env={"DSFS_CACHE_DIR": cache}, status=None).json
                   if row["what"] == "cache")
        check(row["verdict"] == "note" and "it is full" in row["text"], f"{row}")
        # A mount says that it does without.
        unstored(box, repo, cache, wanted, "No space left on device")
        os.unlink(f"{tmpfs.path}/filler")
        box.dsfs("cache", "prune", "--all", *at)
        with box.mount(repo, f"cache_dir={cache}") as mount:
            same(mount, wanted, "a cache with room")
            equal(stats(mount)["cache_unstored"], 0, "chunks not stored by a cache with room")
            check(stats(mount)["cache_fills"] > 0, "nothing was stored")
            log = mount.log_text
        # What was refused for want of room is told at the end at the latest.
        check("cannot store" not in log(), log())
        box.dsfs("cache", "prune", "--all", *at)
        subprocess.run(["mount", "-o", "remount,ro", tmpfs.path], check=True, timeout=60)
        result = box.dsfs("warm", repo, "-o", f"cache_dir={cache}", status=1)
        check("Read-only" in result.errors and "full" not in result.errors, result.errors)
        unstored(box, repo, cache, wanted, "Read-only file system")
    say("a read-only cache is whole, and a full one is called so; mounts on them say that they store nothing")


def run(box, args):
    rng = random.Random(args.seed)
    source, repo, cache = box.new_dir("src"), box.path("repo"), box.path("its-cache")
    wanted = make(source, rng, args.files)
    box.commit(source, repo, "--init")
    usage(box, cache)
    not_a_cache(box, repo)
    with box.mount(repo, f"cache_dir={cache},{SIZE}") as mount:
        same(mount, wanted, "at first")
        status(box, cache, mount, wanted)
        check(verify(box, cache)["clean"], "not clean at first")
    status(box, cache, None, wanted)
    read_only(box, repo, wanted)
    flips(box, repo, cache, wanted)
    damaged(box, repo, cache, wanted)
    prune(box, repo, cache, wanted)


def add_arguments(parser):
    parser.add_argument("--files", type=int, default=100)


if __name__ == "__main__":
    lib.main(run, add_arguments)
