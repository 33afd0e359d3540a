#!/usr/bin/env python3
"""What commit's options promise, how versions are named, and progress on a terminal."""
import errno
import fcntl
import json
import os
import pty
import shutil
import tempfile
import time

import lib
import tree
from lib import MIB, check, equal, say


def put(path, data, mtime=None):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)
    if mtime:
        os.utime(path, ns=(mtime, mtime))


def names(box, repo, path=""):
    return sorted(row["name"] for row in box.json("ls", repo, path))


def unchanged(box, source, repo):
    first = box.commit(source, repo, "--init")
    for words in [], ["--rehash"], ["--trust-mtime"], ["--state-dir", ""], ["--mtime"]:
        again = box.commit(source, repo, *words)
        check(again["unchanged"], f"{words} made a version of an unchanged tree")
        equal((again["number"], again["version"]), (1, first["version"]), f"what {words} gives")
    text = box.dsfs("commit", source, repo).text
    check("nothing has changed" in text and "main:1" in text, text)
    equal(box.dsfs("commit", "-q", source, repo).text.strip(), first["version"], "commit -q")
    os.utime(f"{source}/a/one", ns=(5, 5))
    check(box.commit(source, repo)["unchanged"], "a changed time alone made a version")
    timed = box.commit(source, repo, "--mtime")
    equal((timed["number"], timed["unchanged"]), (2, False), "a changed time with --mtime")
    equal(timed["fingerprint"], first["fingerprint"], "fingerprint after a changed time")
    equal(timed["uploaded_data_bytes"], 0, "data uploaded for a changed time")
    os.link(f"{source}/a/one", f"{source}/a/again")
    box.commit(source, repo)
    os.unlink(f"{source}/a/again")
    put(f"{source}/a/again", b"one\n", 5)
    check(box.commit(source, repo)["unchanged"], "hard links alone made a version")
    check(not box.commit(source, repo, "--mtime")["unchanged"], "hard links with --mtime")
    empty = box.commit(source, repo, "--allow-empty", "-m", "an empty one\nof two lines", "--author", "me")
    check(not empty["unchanged"], "--allow-empty made none")
    record = box.json("log", "-n", "1", repo)[0]["record"]
    equal((record["message"], record["author"]), ("an empty one\nof two lines", "me"), "record")


def reading(box, source, repo):
    """What is read again, and what is not."""
    time.sleep(2.1)  # the stat cache trusts nothing that is younger
    box.commit(source, repo)
    equal(box.commit(source, repo)["read_bytes"], 0, "bytes read of an unchanged tree")
    total = sum(e.size for e in tree.snapshot(source).values() if e.type == tree.FILE)
    check(box.commit(source, repo, "--rehash")["read_bytes"] >= total // 2, "--rehash reads all")
    check(box.commit(source, repo, "--rehash", "--trust-mtime")["read_bytes"] >= total // 2,
          "--rehash reads all, whatever is trusted")
    check(box.commit(source, repo, "--state-dir", "")["read_bytes"] >= total // 2, "without a stat cache")
    equal(box.commit(source, repo, "--state-dir", "", "--trust-mtime")["read_bytes"], 0, "--trust-mtime")
    # Same size, same mtime: the stat cache sees it by ctime, --trust-mtime does not promise to.
    before = os.stat(f"{source}/b/two")
    put(f"{source}/b/two", b"TWO\n" * 1000)
    os.utime(f"{source}/b/two", ns=(before.st_mtime_ns, before.st_mtime_ns))
    done = box.commit(source, repo)
    equal(done["changed"], 1, "a change that only ctime tells")
    equal(box.dsfs("cat", repo, "b/two").out, b"TWO\n" * 1000, "its bytes")
    # Replaced by another file of the same size and times (rename): the inode tells.
    put(f"{source}/b/new", b"two\n" * 1000, before.st_mtime_ns)
    os.rename(f"{source}/b/new", f"{source}/b/two")
    equal(box.commit(source, repo)["changed"], 1, "a file that was replaced")
    # Changed again and again within a second, each time with the same size.
    for i in range(12):
        put(f"{source}/b/quick", b"%04d\n" % i)
        box.commit(source, repo)
        equal(box.dsfs("cat", repo, "b/quick").text, f"{i:04}\n", "a file changed within a second")


def excludes(box, source):
    repo = box.path("excludes")
    for name in "keep.txt", "x.tmp", "d/y.tmp", "d/keep", ".git/config", "d/.git/x", "cache/z", "d/cache":
        put(f"{source}/ex/{name}", b"x")
    done = box.commit(f"{source}/ex", repo, "--init", "--exclude", "*.tmp", "--exclude", ".git",
                      "--exclude", "cache/*")
    equal(names(box, repo), ["cache", "d", "keep.txt"], "what is kept")
    equal(names(box, repo, "d"), ["cache", "keep"], "what is kept below")
    equal(names(box, repo, "cache"), [], "what is kept of cache/*")
    equal(done["totals"]["files"], 3, "files")
    printed = box.dsfs("fingerprint", f"{source}/ex", "--exclude", "*.tmp", "--exclude", ".git",
                       "--exclude", "cache/*").text.strip()
    equal(printed, done["fingerprint"], "fingerprint with the same --exclude")
    # It reads every file as it is, and knows no stat cache.
    for option in "--rehash", "--state-dir=x":
        box.dsfs("fingerprint", option, source, status=2)


def branches(box, source, repo):
    before = box.json("log", repo)
    put(f"{source}/a/branch", b"on a branch")
    other = box.commit(source, repo, "--branch", "exp-1", "--tag", "v1.0")
    equal((other["branch"], other["number"]), ("exp-1", 1), "a new branch")
    equal(other["uploaded_data_bytes"] < 1000, True, "a new branch uploads what is new")
    equal(box.json("log", repo), before, "the default branch is as it was")
    refs = {(row["kind"], row["name"]): row for row in box.json("refs", repo)}
    equal(sorted(refs), [("branch", "exp-1"), ("branch", "main"), ("tag", "v1.0")], "refs")
    equal(refs["tag", "v1.0"]["version"], other["version"], "the tag's version")
    check(refs["branch", "main"]["default"], "main is the default")
    head = before[0]
    done = box.commit(source, repo, "--parent", str(head["number"]))
    equal(done["number"], head["number"] + 1, "--parent of the head")
    box.dsfs("commit", source, repo, "--allow-empty", "--parent", str(head["number"]), status=7)
    box.dsfs("commit", source, repo, "--allow-empty", "--parent", head["version"][:12], status=7)
    return other


def selectors(box, source, repo, other):
    log = {row["number"]: row for row in box.json("log", repo)}
    latest = max(log)
    today, day = log[latest]["record"]["time"][:10], log[2]["record"]["time"][:10]
    # It may be midnight in between.
    of_day = max(number for number, row in log.items() if row["record"]["time"][:10] == day)
    wanted = {
        "1": log[1]["version"], "main:2": log[2]["version"], "v1.0": other["version"],
        "exp-1": other["version"], "exp-1:1": other["version"], "main": log[latest]["version"],
        log[3]["version"][:8]: log[3]["version"], log[3]["version"]: log[3]["version"],
        today: log[latest]["version"], f"{day}T23:59:59Z": log[of_day]["version"],
    }
    times = {}
    for number in log:
        with open(f"{repo}/refs/branches/main/{number:010}", "rb") as file:
            times[number] = json.loads(file.readline())["time"]
    for number in range(2, latest):
        a, b = times[number], times[number + 1]
        if a < b:  # a time between two versions
            wanted[a] = log[number]["version"]
    for selector, version in wanted.items():
        got = box.json("log", "-n", "1", f"{repo}@{selector}")[0]["version"]
        equal(got, version, f"@{selector}")
        done = box.dsfs("ls", f"{repo}@{selector}")
        check(done.out, "an empty version")
    with box.mount(repo, "version=exp-1:1") as one, box.mount(f"{repo}@v1.0") as two, \
            box.mount(f"{repo}@{today}", f"version={today}") as three:
        for mount, version in (one, other["version"]), (two, other["version"]), \
                (three, log[latest]["version"]):
            equal(os.getxattr(mount.path, "user.dsfs.version").decode(), version, "version of a mount")
            check(os.getxattr(f"{mount.path}/a/one", "user.dsfs.digest"), "digest")
            try:
                os.getxattr(f"{mount.path}/a/one", "user.none")
                raise lib.Failed("an attribute that is not there")
            except OSError as error:
                equal(error.errno, errno.ENODATA, "errno of an attribute that is not there")
    url = f"file://{repo}"
    equal(box.json("log", url), box.json("log", repo), "log of a file:// URL")
    at = box.path("with@sign")
    os.makedirs(at)
    box.commit(source, f"{at}/repo", "--init")
    equal(names(box, f"{at}/repo@1"), names(box, f"{at}/repo"), "an @ before the last /")
    equal(len(box.json("log", repo, "-n", "2")), 2, "log -n 2")
    equal([row["number"] for row in box.json("log", f"{repo}@2")], [2, 1], "log from a version on")
    equal([row["version"] for row in box.json("log", repo, "--branch", "exp-1")][:1], [other["version"]],
          "log of a branch")


def odd_names(box):
    """Names that are no text."""
    repo, odd = box.path("odd"), box.new_dir("odd")
    put(os.fsencode(odd) + b"/\xff\n", b"x")
    box.commit(odd, repo, "--init")
    equal(box.json("ls", repo)[0]["name"], {"hex": "ff0a"}, "a name that is no text, in JSON")
    text = box.dsfs("ls", repo).text
    equal(text.count("\n"), 1, f"lines for one entry: {text!r}")
    equal(box.dsfs("cat", repo, b"\xff\n").out, b"x", "cat of that name")
    result = box.json("diff", "--exit-code", f"{repo}@1", f"{repo}@1")
    equal(result["entries"], [], "diff of a version and itself")
    put(f"{odd}/more", b"y")
    box.commit(odd, repo)
    box.dsfs("diff", "--exit-code", f"{repo}@1", f"{repo}@2", status=11)


def progress(box):
    """On a terminal there is progress; elsewhere there is none."""
    source, repo = box.path("much"), box.path("progress")
    for i in range(400):
        put(f"{source}/{i}", os.urandom(100_000))
    quiet = box.dsfs("commit", source, repo, "--init")
    equal(quiet.err, b"", "stderr where it is no terminal")
    master, slave = pty.openpty()
    process = box.start(["commit", source, box.path("again"), "--init"], stderr=slave,
                        stdout=lib.subprocess.DEVNULL)
    os.close(slave)
    seen = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # EIO: the other side is closed
            break
        if not piece:
            break
        seen += piece
    os.close(master)
    equal(process.wait(lib.TIMEOUT_S), 0, "status of commit on a terminal")
    check(b"files" in seen and b"/s" in seen, f"progress on a terminal: {seen[:300]!r}")
    check(seen.endswith(b"\r"), f"the line is cleared at the end: {seen[-100:]!r}")
    check(b"\n" not in seen, "progress stays on one line")


def too_much(box):
    """More bytes than the totals of a version can count; holes, on a file system that takes them."""
    source = tempfile.mkdtemp(prefix="dsfs-", dir="/dev/shm")
    box.at_end(lambda: shutil.rmtree(source))
    try:
        for i in range(3):
            with open(f"{source}/{i}", "wb") as file:
                os.truncate(file.fileno(), 4 << 60)
    except OSError as error:
        say(f"no files of 4 EiB here: {error}")
        return
    for words in ["commit", "--init", source, box.path("repo-too-much")], ["fingerprint", source]:
        result = box.dsfs(*words, status=8)
        check(source in result.errors and "over 8 EiB in all" in result.errors, result.errors)


def memory(box):
    """A small budget is kept to, and does not deadlock."""
    source = box.path("large")
    for i in range(6):
        put(f"{source}/{i}", os.urandom(11 * MIB))
    for size in "1M", "40M", "1G":
        repo = box.path(f"memory-{size}")
        done = box.commit(source, repo, "--init", "--memory", size, "--jobs", "3", "--state-dir", "")
        equal(done["totals"]["bytes"], 66 * MIB, f"bytes with --memory {size}")
        equal(box.dsfs("fingerprint", repo).text, box.dsfs("fingerprint", source).text, "fingerprint")


def stale(box, source, repo):
    """What a killed commit left in the state directory goes, and nothing else that lies there."""
    state = box.path("state")
    kept = "tmp/commit-messages/letter", "tmp/commit-backup/old", "tmp/commit-", "tmp/other/lock"
    left = "tmp/commit-aB3dEf/lock", "tmp/commit-aB3dEf/below/part", "tmp/commit-Zy9XwV/lock"
    for name in kept + left:
        put(f"{state}/{name}", b"x")
    os.mkdir(f"{state}/tmp/commit-000000")
    for path in f"{state}/tmp", state:
        os.chmod(path, 0o700)
    with open(f"{state}/{left[2]}") as running:
        fcntl.flock(running, fcntl.LOCK_EX)
        box.commit(source, repo, "--state-dir", state)
    for name in kept + left[2:]:
        check(os.path.exists(f"{state}/{name}"), f"{name} is gone")
    equal({name for name in os.listdir(f"{state}/tmp") if name.startswith("commit-")},
          {"commit-messages", "commit-backup", "commit-", "commit-Zy9XwV"}, "what is left of commits")


def run(box, args):
    source, repo = box.path("source"), box.path("repo")
    put(f"{source}/a/one", b"one\n")
    put(f"{source}/b/two", b"two\n" * 1000)
    unchanged(box, source, repo)
    reading(box, source, repo)
    stale(box, source, repo)
    excludes(box, source)
    selectors(box, source, repo, branches(box, source, repo))
    odd_names(box)
    progress(box)
    memory(box)
    too_much(box)
    say(f"{len(box.json('log', repo))} versions")


if __name__ == "__main__":
    lib.main(run)
