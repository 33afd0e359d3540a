#!/usr/bin/env python3
"""A source that does not stand still while it is committed: each file is stored as it was at one moment,
or the commit is refused (exit status 8); nothing is stored torn.

A writer fills files from front to back with a number, over and over, each time a higher one: at every
moment a file holds one number, or a higher one before a lower one. The lower one first was torn. Other
files grow, shrink, vanish and are replaced; one is overwritten by a single long write()."""
import os
import random
import shutil
import struct
import threading
import time

import lib
from lib import KIB, MIB, check, say

SIZES = [8, 4 * KIB, 200 * KIB, 3 * MIB, 4 * MIB + 8, 9 * MIB]
PIECE = 256 * KIB
LONG = 32 * MIB


class Mover(threading.Thread):
    def __init__(self, source, seed):
        super().__init__(daemon=True)
        self.source, self.rng = source, random.Random(seed)
        self.is_over, self.steps = False, 0

    def fill(self, name, size, value):
        """In place, in pieces."""
        fd = os.open(f"{self.source}/{name}", os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            for at in range(0, size, PIECE):
                os.pwrite(fd, struct.pack(">Q", value) * (min(PIECE, size - at) // 8), at)
            os.ftruncate(fd, size)
        finally:
            os.close(fd)

    def overwrite(self, name, value):
        """In place, at once."""
        fd = os.open(f"{self.source}/{name}", os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(fd, struct.pack(">Q", value) * (LONG // 8), 0)
        finally:
            os.close(fd)

    def run(self):
        while not self.is_over:
            self.steps += 1
            value = self.steps + 1
            kind = self.rng.random()
            if kind < 0.6:
                size = self.rng.choice(SIZES)
                self.fill(f"fixed-{size}", size, value)
            elif kind < 0.7:
                self.fill("changing", self.rng.choice(SIZES), value)
            elif kind < 0.8:
                self.fill(".new", self.rng.choice(SIZES[:4]), value)
                os.rename(f"{self.source}/.new", f"{self.source}/replaced")
            elif kind < 0.9:
                name = f"{self.source}/coming/{value % 10}"
                os.makedirs(f"{self.source}/coming", exist_ok=True)
                if os.path.exists(name):
                    os.unlink(name)
                else:
                    self.fill(f"coming/{value % 10}", 1000, value)
            else:
                self.overwrite("long", value)
            time.sleep(self.rng.choice([0, 0, 0.001, 0.02, 0.1]))


def torn_by(path, runs_max):
    """What is wrong with the numbers in a file; None if it is as it was at some moment."""
    with open(path, "rb") as file:
        data = file.read()
    if len(data) % 8:
        return f"{len(data)} bytes"
    runs, at = [], 0
    while at < len(data):
        number, start = data[at:at + 8], at
        while at < len(data) and data[at:at + PIECE] == (number * (PIECE // 8))[:len(data) - at]:
            at += PIECE
        while at < len(data) and data[at:at + 8] == number:
            at += 8
        runs.append((start, struct.unpack(">Q", number)[0]))
    if any(start % PIECE for start, _ in runs):
        return f"numbers begin at {runs}"
    if len(runs) > runs_max or any(a[1] < b[1] for a, b in zip(runs, runs[1:])):
        return f"numbers are {runs}"
    return None


def check_version(box, repo, number):
    target = box.path("export")
    box.dsfs("export", f"{repo}@{number}", target)
    torn = []
    for path, _, names in os.walk(target):
        for name in names:
            wrong = torn_by(os.path.join(path, name), 1 if name == "long" else 2)
            if wrong:
                torn.append(f"version {number}: {name}: {wrong}")
    for size in SIZES:
        check(os.path.getsize(f"{target}/fixed-{size}") == size, f"fixed-{size} has another size")
    shutil.rmtree(target)
    return torn


def run(box, args):
    source, repo = box.new_dir("src"), box.path("repo")
    mover = Mover(source, args.seed)
    for size in SIZES:
        mover.fill(f"fixed-{size}", size, 1)
    mover.overwrite("long", 1)
    box.commit(source, repo, "--init")
    mover.start()
    refused = made = unchanged = 0
    deadline = time.monotonic() + args.seconds
    torn = []

    def goes_on():
        """For that long, and on a slow machine for up to a minute more until something was shown."""
        left_s, is_shown = deadline - time.monotonic(), made + refused > 3 and mover.steps > 20
        return left_s > (-60 if not is_shown else 0)

    while mover.is_alive() and goes_on():
        result = box.dsfs("commit", "--json", source, repo, status=None)
        check(result.status in (0, 8), f"{result}: {result.errors}")
        if result.status == 8:
            refused += 1
            continue
        if result.json["unchanged"]:
            unchanged += 1
            continue
        made += 1
        torn += check_version(box, repo, result.json["number"])
    mover.is_over = True
    mover.join()
    say(f"{made} versions, {refused} refused, {unchanged} unchanged while the source changed "
        f"{mover.steps} times; {len(torn)} files torn")
    check(made + refused > 3 and mover.steps > 20, "nothing moved")
    check(not torn, f"torn: {torn[:10]}")
    box.dsfs("verify", repo, "--read-data")
    # It stands still at last.
    done = box.commit(source, repo)
    check(done["fingerprint"] == box.dsfs("fingerprint", source).text.strip(), "at rest")


if __name__ == "__main__":
    lib.main(run, lambda parser: parser.add_argument("--seconds", type=float, default=12), fuse=False)
