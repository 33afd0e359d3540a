#!/usr/bin/env python3
"""The commands that look at versions: what ls, cat, diff, log and export print, and what they say when
they cannot."""
import hashlib
import os
import shutil
import signal
import subprocess
import time

import lib
from lib import check, equal, say

USAGE, FAILURE, INTERRUPTED = 2, 1, 130


def put(path, data=b""):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)


def lines_of(box, *words, **kwargs):
    return box.dsfs(*words, **kwargs).text.splitlines()


def output_that_fails(box, repo):
    """Standard output is to blame, not the repository; also where only a part of the output fits."""
    commands = [["ls", "-l", repo, "many"], ["ls", repo, "many"], ["ls", "--json", repo, "many"],
                ["cat", repo, "large"], ["diff", f"{repo}@1", f"{repo}@2"], ["log", repo],
                ["refs", repo], ["verify", repo]]
    for words in commands:
        with open("/dev/full", "wb") as full:
            for stdout, reason in (full, "No space left on device"), (None, "Bad file descriptor"):
                result = box.dsfs(*words, status=FAILURE, stdout=stdout,
                                  preexec_fn=None if stdout else lambda: os.close(1))
                equal(result.errors, f"dsfs: standard output: {reason}\n", f"{words}: stderr")


def times(box, repo):
    """A time that log prints selects the version beside it."""
    rows = box.json("log", repo)
    text = lines_of(box, "log", repo)
    for i, row in enumerate(rows):
        with open(f"{repo}/refs/branches/main/{row['number']:010}", encoding="utf-8") as file:
            check(f'"{row["entry_time"]}"' in file.readline(), f"{row['entry_time']}: the entry's time")
        check(row["record"]["time"], "the record's time")
        printed = text[2 * i + 1].split()[0]
        equal(printed, row["entry_time"], "the time in text")
        if i and row["entry_time"] == rows[i - 1]["entry_time"]:
            continue
        got = box.json("log", "-n", "1", f"{repo}@{printed}")[0]["version"]
        equal(got, row["version"], f"@{printed}")
    equal(box.json("log", f"{repo}@{rows[0]['version']}")[0]["entry_time"], None, "found by id")
    equal(box.json("log", "-n", "0", repo), [], "log -n 0, JSON")
    equal(box.dsfs("log", "-n", "0", repo).text, "", "log -n 0")


def diff(box):
    source, repo = box.new_dir("source"), box.path("diff")
    put(f"{source}/changed", b"1")
    put(f"{source}/mode")
    put(f"{source}/removed")
    put(f"{source}/time")
    put(f"{source}/type")
    os.mkdir(f"{source}/touched")
    put(f"{source}/kept/below")
    deep = source
    for _ in range(40):
        deep += "/" + "d" * 200
        fd = os.open(deep[:-201], os.O_RDONLY) if len(deep) < 4000 else fd
        os.mkdir("d" * 200, dir_fd=fd)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    box.commit(source, repo, "--init")
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    put(f"{source}/added")
    put(f"{source}/changed", b"2")
    os.chmod(f"{source}/mode", 0o755)
    os.unlink(f"{source}/removed")
    os.utime(f"{source}/time", (1, 1))
    os.unlink(f"{source}/type")
    os.symlink("x", f"{source}/type")
    put(f"{source}/touched/new")
    before = os.stat(f"{source}/kept")
    put(f"{source}/kept/new")
    os.utime(f"{source}/kept", ns=(before.st_atime_ns, before.st_mtime_ns))
    box.commit(source, repo)
    rows = dict(reversed(line.split(" ", 1)) for line in
                lines_of(box, "diff", "--mtime", f"{repo}@1", f"{repo}@2")[:-1])
    wanted = {"added": "A", "changed": "C", "mode": "M", "removed": "D", "time": "U", "type": "T",
              "touched/": "U", "touched/new": "A", "kept/": None, "kept/new": "A", "/": "U"}
    equal({name: rows.get(name) for name in wanted}, wanted, "letters")
    whole = "/".join(["d" * 200] * 40) + "/file"
    equal(rows.get(whole), "A", f"a path of {len(whole)} bytes")
    equal([row["change"] for row in box.json("diff", "--mtime", f"{repo}@1", f"{repo}@2")["entries"]
           if row["path"] == "time"], ["time"], "change in JSON")
    check(not [line for line in lines_of(box, "diff", f"{repo}@1", f"{repo}@2") if line.startswith("U")],
          "times without --mtime")
    equal(box.dsfs("diff", "-q", f"{repo}@1", f"{repo}@2").text, "", "diff -q")
    equal(box.json("diff", "-q", f"{repo}@1", f"{repo}@2"), box.json("diff", f"{repo}@1", f"{repo}@2"),
          "diff -q --json")
    text = box.dsfs("diff", "--help").text
    for letter in "ACDMTU":
        check(f" {letter} " in text, f"{letter} in diff's help")


def paths(box, repo):
    listed = box.dsfs("ls", repo).text
    for path in ".", "./", "/", "/.", "", "./.":
        equal(box.dsfs("ls", repo, path).text, listed, f"ls {path!r}")
    for path in "./dir", "dir/.", "/dir/", "./dir/./":
        equal(box.dsfs("ls", repo, path).text, "one\n", f"ls {path!r}")
    equal(box.dsfs("cat", repo, "./dir/./one").out, b"one", "cat ./dir/./one")
    equal(box.dsfs("ls", "-ld", repo, "/").text.split()[-1], "/", "name of the root, long")
    equal(box.dsfs("ls", "-d", repo, "/").text, "/\n", "name of the root")
    equal(box.json("ls", "-d", repo)[0]["name"], "/", "name of the root, JSON")
    equal([row["mtime"] for row in box.json("ls", repo, "large")], ["2009-02-13T23:31:30.123456789Z"],
          "mtime in JSON")
    equal(lines_of(box, "ls", "-l", repo, "long")[0].split(" -> ")[1], "\\x01" * 4000, "a long target")
    result = box.dsfs("cat", repo, "link", status=USAGE)
    check("dir/one" in result.errors and "symlink" in result.errors, result.errors)


def digests(box):
    """As --help and the README have it: of the content up to 4 MiB, of a list of chunks above."""
    source, repo = box.new_dir("digests"), box.path("digests-repo")
    wanted = {}
    for name, size in ("limit", lib.MIB * 4), ("more", lib.MIB * 4 + 1), ("empty", 0):
        data = os.urandom(size)
        put(f"{source}/{name}", data)
        wanted[name] = hashlib.sha256(data).hexdigest()
    shutil.copy(f"{source}/more", f"{source}/same")
    box.commit(source, repo, "--init")
    got = {row["name"]: row["digest"] for row in box.json("ls", repo)}
    for name in "limit", "empty":
        equal(got[name], wanted[name], f"digest of {name}")
    check(got["more"] != wanted["more"], "the digest of a large file is that of its content")
    equal(got["same"], got["more"], "digest of an equal file")
    text = " ".join(box.dsfs("ls", "--help").text.split())
    check("SHA-256 of the content up to 4 MiB" in text and "not what sha256sum says" in text, text)


def exports(box, repo):
    full = box.new_dir("full")
    put(f"{full}/x")
    result = box.dsfs("export", repo, full, status=USAGE)
    check(full in result.errors and "empty directory" in result.errors, result.errors)
    source, much = box.new_dir("source"), box.path("much")
    for i in range(3000):
        put(f"{source}/{i}", b"%d" % i)
    box.commit(source, much, "--init")
    # Whether the signal comes before the end is for chance.
    for i in range(10):
        target = box.path(f"interrupted-{i}")
        process = box.start(["export", much, target], stderr=subprocess.PIPE)
        box.wait(lambda target=target: os.path.isdir(target) and os.listdir(target), "the first file")
        process.send_signal(signal.SIGTERM)
        errors = process.communicate(timeout=lib.TIMEOUT_S)[1].decode()
        if process.returncode:
            break
    equal(process.returncode, INTERRUPTED, f"status of an interrupted export: {errors}")
    equal(errors.count("\n"), 1, f"lines: {errors}")
    check(target in errors and "incomplete" in errors and "remove it" in errors, errors)


def run(box, args):
    source, repo = box.new_dir("source"), box.path("repo")
    put(f"{source}/dir/one", b"one")
    os.mkdir(f"{source}/many")
    put(f"{source}/large", os.urandom(100_000))
    os.utime(f"{source}/large", ns=(1, 1_234_567_890_123_456_789))
    os.symlink("dir/one", f"{source}/link")
    os.symlink("\x01" * 4000, f"{source}/long")
    box.commit(source, repo, "--init")
    for i in range(2000):
        put(f"{source}/many/{i:04}")
    box.commit(source, repo)
    for _ in range(4):
        time.sleep(0.01)
        box.commit(source, repo, "--allow-empty")
    output_that_fails(box, repo)
    paths(box, repo)
    diff(box)
    times(box, repo)
    digests(box)
    exports(box, repo)
    say("ls, cat, diff, log and export")


if __name__ == "__main__":
    lib.main(run, fuse=False)
