#!/usr/bin/env python3
"""What is in the store already is not uploaded again: the same tree from another place without local
state, a renamed directory of 10,000 files, a directory that comes back, a commit that was killed
half-way and is repeated elsewhere. And files that have not changed are not opened: they cost one stat."""
import collections
import os
import random
import re
import shutil
import signal
import time

import lib
import tree
from lib import MIB, check, equal, say

NO_STATE = ["--state-dir", ""]
STATS = "%%stat,faccessat,faccessat2"  # what asks about a file without opening it
OPENS = "open,openat,openat2"
# CALL(DIRECTORY OR FILE AS A DESCRIPTOR, "NAME", or one of them.
CALL = re.compile(r'(?P<call>\w+)\((?:(?:AT_FDCWD|\d+)<(?P<at>[^>]*)>(?:, )?)?(?:"(?P<name>[^"]*)")?')


def fill(root, files, rng, size):
    os.makedirs(root)
    for i in range(files):
        if i % 100 == 0:
            os.mkdir(f"{root}/{i // 100:04}")
        with open(f"{root}/{i // 100:04}/{i:06}", "wb") as file:
            file.write(rng.randbytes(size))


def elsewhere(box, rng):
    """Other inode numbers, another path, other times, no stat cache."""
    source, repo = box.new_dir("src"), box.path("same")
    growing = tree.Tree(source, rng.random())
    growing.grow(400)
    first = box.commit(source, repo, "--init")
    copy = box.path("copy")
    shutil.copytree(os.fsencode(source), os.fsencode(copy), symlinks=True)
    again = box.commit(copy, repo, *NO_STATE, env={"DSFS_CACHE_DIR": box.path("other-state")})
    equal(again["fingerprint"], first["fingerprint"], "fingerprint of the same tree elsewhere")
    check(again["unchanged"], "the same tree made a version")
    equal(again["version"], first["version"], "version of the same tree")
    equal(len(box.json("log", repo)), 1, "versions")
    equal(again["uploaded_data_bytes"] + again["uploaded_manifest_bytes"], 0, "bytes uploaded")
    # A repository of its own: nothing of the first one can have had a part in it.
    apart = box.commit(copy, box.path("apart"), "--init", *NO_STATE)
    equal(apart["fingerprint"], first["fingerprint"], "fingerprint in another repository")
    say(f"the same tree elsewhere: {first['totals']['files']} files, same fingerprint, no version")


def renamed(box, rng, files):
    source, repo = box.path("ren"), box.path("ren-repo")
    fill(f"{source}/before", files, rng, 700)
    os.mkdir(f"{source}/other")
    with open(f"{source}/other/file", "wb") as file:
        file.write(rng.randbytes(5 * MIB))
    first = box.commit(source, repo, "--init")
    check(first["uploaded_data_bytes"] >= files * 700, f"the first upload is too small: {first}")
    for name, state in (("after", []), ("later", NO_STATE)):
        old = os.listdir(source)
        old.remove("other")
        os.rename(f"{source}/{old[0]}", f"{source}/{name}")
        done = box.commit(source, repo, *state)
        equal(done["uploaded_data_bytes"], 0, f"data uploaded after renaming to {name}")
        check(not done["unchanged"], "the renamed directory made no version")
        say(f"renamed {files} files{' without local state' if state else ''}: 0 bytes of data, "
            f"{done['uploaded_manifest_bytes']} of manifest, {done['read_bytes']} read")
    # Gone for two versions, and back.
    os.rename(f"{source}/later", box.path("aside"))
    for i in range(2):
        with open(f"{source}/other/new{i}", "wb") as file:
            file.write(rng.randbytes(1000))
        done = box.commit(source, repo)
        check(not done["unchanged"], "nothing was removed")
    shutil.copytree(box.path("aside"), f"{source}/back")
    done = box.commit(source, repo)
    equal(done["uploaded_data_bytes"], 0, "data uploaded after coming back")
    equal(done["added"], files, "files added after coming back")
    with box.mount(repo) as mount:
        lines = tree.compare(tree.snapshot(source), tree.snapshot(mount.path))
        check(not lines, "after coming back: " + "\n".join(lines))
    say(f"came back after two versions: {files} files, 0 bytes of data")


def packs_of(repo):
    """{path: size} of the packs that are in a directory store."""
    found = {}
    for path, _, names in os.walk(os.path.join(repo, "packs")):
        for name in names:
            if len(name) == 64:
                try:
                    found[os.path.join(path, name)] = os.stat(os.path.join(path, name)).st_size
                except FileNotFoundError:
                    pass
    return found


def killed(box, rng, total):
    """A commit killed when about half of its packs are there, then repeated from a copy."""
    source = box.path("big")
    fill(source, total // 100_000, rng, 100_000)
    with open(f"{source}/large", "wb") as file:
        for _ in range(64):
            file.write(rng.randbytes(MIB))
    whole = box.commit(source, box.path("whole"), "--init", *NO_STATE)
    uploaded = whole["uploaded_data_bytes"]
    # Whether the kill comes before too much is there is for chance.
    for i in range(10):
        repo = box.path(f"killed-{i}")
        box.dsfs("init", repo)
        process = box.start(["commit", source, repo, *NO_STATE, "-q"])
        while process.poll() is None and sum(packs_of(repo).values()) < uploaded // 2:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        packs = packs_of(repo).values()
        kept = sum(packs)
        if process.returncode == -signal.SIGKILL and kept < uploaded * 0.95:
            break
        shutil.rmtree(repo)
    equal(process.returncode, -signal.SIGKILL, "status of the killed commit")
    check(uploaded * 0.2 < kept < uploaded * 0.95, f"killed at {kept} of {uploaded} bytes: not half-way")
    equal(box.json("log", repo, status=None).__class__, dict, "log of a branch without a version")
    box.dsfs("verify", repo)
    copy = box.path("big-copy")
    shutil.copytree(source, copy)
    again = box.commit(copy, repo, *NO_STATE, env={"DSFS_CACHE_DIR": box.path("fresh-state")})
    reused = (uploaded - again["uploaded_data_bytes"]) / kept
    # The kill comes when a pack has appeared, and may come before the index that names it: where there are
    # few packs, one is more than a tenth.
    last = max(packs) if kept < 512 * MIB else 0
    say(f"killed at {kept >> 20} of {uploaded >> 20} MiB; repeated elsewhere without local state: "
        f"{again['uploaded_data_bytes'] >> 20} MiB uploaded, {100 * reused:.1f} % re-used")
    check(reused * kept >= 0.9 * (kept - last), f"only {100 * reused:.1f} % of what was uploaded was used again")
    equal(again["fingerprint"], whole["fingerprint"], "fingerprint after the kill")
    box.dsfs("verify", repo, "--read-data")


def traced(box, source, repo, user):
    """Commits; returns what it printed, and how often it asked for the stat of each path, and opened it."""
    result, threads = lib.strace(box, ["-s", "4096", "-e", f"trace={STATS},{OPENS}"], "commit", "--json", source, repo, user=user)
    stats, opens = collections.Counter(), collections.Counter()
    for found in filter(None, (CALL.match(line) for lines in threads for line in lines)):
        path = os.path.normpath(os.path.join(found["at"] or "", found["name"] or ""))
        (opens if found["call"] in OPENS.split(",") else stats)[path] += 1
    return result.json, stats, opens


def one_stat(box, rng, files, user=None):
    """A commit takes one stat of each file that has not changed, and opens none of them; as another user, too, who cannot read just
    everything."""
    source = box.path("stats-user" if user else "stats")
    repo = f"{user.home}/cache/stats-repo" if user else box.path("stats-repo")
    fill(source, files, rng, 500)
    paths = [f"{source}/{i // 100:04}/{i:06}" for i in range(files)]
    # Who does not own a file cannot be told that nobody writes to it, until it is older.
    for path in paths if user else []:
        os.chown(path, user.number, user.number)
    newest = max(os.stat(path).st_ctime for path in paths)
    # The stat cache vouches for what was two seconds old when it was read.
    box.wait(lambda: time.time() > newest + 2.1, "the files to be two seconds old")
    (user or box).dsfs("commit", source, repo, "--init")
    for what, changed in ("nothing changed", []), ("1 % changed", rng.sample(paths, files // 100)):
        for path in changed:
            with open(path, "ab") as file:
                file.write(b"more")
        done, stats, opens = traced(box, source, repo, user)
        equal(done.get("changed", 0), len(changed), f"{what}: files changed")
        wrong = {path: (stats[path], opens[path]) for path in set(paths) - set(changed)
                 if (stats[path], opens[path]) != (1, 0)}
        check(not wrong, f"{what}: {len(wrong)} unchanged files cost other than one stat and no open: "
              f"{sorted(wrong.items())[:5]}")
        check(all(opens[path] for path in changed), f"{what}: strace has not seen how the changed ones were opened")
        say(f"{what}{', another user' if user else ''}: one stat and no open of each of the {files - len(changed)} others")


def run(box, args):
    rng = random.Random(args.seed)
    elsewhere(box, rng)
    renamed(box, rng, args.files)
    killed(box, rng, args.bytes)
    one_stat(box, rng, args.files // 5)
    if os.geteuid() == 0:
        one_stat(box, rng, args.files // 5, lib.User(box))


def arguments(parser):
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--bytes", type=int, default=300_000_000)


if __name__ == "__main__":
    lib.main(run, arguments)
