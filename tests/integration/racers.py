#!/usr/bin/env python3
"""8 processes with different trees commit 10 versions each to one branch, on a directory store and on
a real S3 server: 80 entries, no gap, no duplicate, each acknowledged one present and readable."""
import os
import random
import threading
import time

import lib
import tree
from lib import check, equal, say


class Racer(threading.Thread):
    def __init__(self, box, repo, env, index, versions, start, seed):
        super().__init__()
        self.box, self.repo, self.env, self.index = box, repo, env, index
        self.versions, self.start_line = versions, start
        self.source = box.new_dir(f"racer{index}-")
        self.tree = tree.Tree(self.source, f"{seed} {index}")
        self.tree.grow(30, large=False)
        self.done, self.error = [], None

    def run(self):
        try:
            self.start_line.wait()
            for i in range(self.versions):
                mark = f"racer {self.index} round {i}"
                with open(f"{self.source}/mark", "w", encoding="ascii") as file:
                    file.write(mark)
                result = self.box.commit(self.source, self.repo, "-m", mark, "--state-dir",
                                         self.box.path(f"state-{self.index}"), env=self.env)
                self.done.append((result, mark, tree.snapshot(self.source)))
        except Exception as error:  # told by the main thread
            self.error = error


def race(box, store, racers, versions, seed):
    repo = store.url(f"race-{box.number()}")
    box.dsfs("init", repo, env=store.env)
    start = threading.Barrier(racers)
    threads = [Racer(box, repo, store.env, i, versions, start, seed) for i in range(racers)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - started
    for thread in threads:
        check(thread.error is None, f"racer {thread.index}: {thread.error}")
    total = racers * versions
    log = box.json("log", repo, env=store.env)
    equal([row["number"] for row in log], list(range(total, 0, -1)), "numbers in the log")
    equal(len({row["version"] for row in log}), total, "different versions in the log")
    by_number = {row["number"]: row for row in log}
    for number in range(2, total + 1):
        equal(by_number[number]["record"]["parents"], [by_number[number - 1]["version"]],
              f"parents of entry {number}")
    equal(by_number[1]["record"]["parents"], [], "parents of entry 1")
    acknowledged = [(result, mark, snap, thread) for thread in threads
                    for result, mark, snap in thread.done]
    equal(len(acknowledged), total, "acknowledged commits")
    equal(len({result["number"] for result, _, _, _ in acknowledged}), total, "numbers given")
    rng = random.Random(seed)
    for result, mark, _, thread in acknowledged:
        row = by_number[result["number"]]
        equal(row["version"], result["version"], f"entry {result['number']}")
        equal(row["record"]["message"], mark, f"message of entry {result['number']}")
        equal(row["record"]["fingerprint"], result["fingerprint"], "fingerprint in the record")
        text = box.dsfs("cat", f"{repo}@{result['number']}", "mark", env=store.env).text
        equal(text, mark, f"the mark in version {result['number']}")
    for result, mark, snap, _ in rng.sample(acknowledged, min(6, total)):
        with box.mount(f"{repo}@{result['version'][:16]}", env=store.env,
                       place=box.new_dir("m")) as mount:
            lines = tree.compare(snap, tree.snapshot(mount.path))
            check(not lines, f"version {result['number']}: " + "\n".join(lines))
    found = box.dsfs("verify", repo, "--read-data", env=store.env, status=None)
    check(found.status == 0, f"{found}: {found.text}{found.errors}")
    races = sum(result["races"] for result, _, _, _ in acknowledged)
    say(f"{store.kind}: {racers} x {versions} commits in {took:.1f} s, {races} races lost, "
        f"{total} entries in a row")
    check(races > 0 or total < 10, "nobody ever lost a race: nothing was shown")


def run(box, args):
    for kind in args.store or ["dir", "s3"]:
        race(box, box.store(kind), args.racers, args.versions, args.seed)


def arguments(parser):
    parser.add_argument("--store", action="append", choices=["dir", "s3"])
    parser.add_argument("--racers", type=int, default=8)
    parser.add_argument("--versions", type=int, default=10)


if __name__ == "__main__":
    lib.main(run, arguments)
