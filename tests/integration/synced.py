#!/usr/bin/env python3
"""What a commit and a tag sync in a directory store, and in which order: strace tells."""
import os
import re

import lib
from lib import check, equal, say

CALLS = "fsync,fdatasync,linkat,renameat,renameat2,mkdir,mkdirat"
LINE = re.compile(r"(?P<start>\d+\.\d+) (?P<call>\w+)\((?P<args>.*)\) += (?P<result>-?\d+).* <(?P<took>\d+\.\d+)>$")
AT = re.compile(r'(?:AT_FDCWD|\d+)<(?P<dir>[^>]*)>, "(?P<name>[^"]*)"')


class Event:
    """A call that succeeded. `path` was synced, made, or has got its name from `source`."""

    def __init__(self, line, thread):
        self.start = float(line["start"])
        self.end = self.start + float(line["took"])
        self.call = line["call"]
        self.thread = thread
        self.source = None
        paths = [os.path.normpath(os.path.join(m["dir"], m["name"])) for m in AT.finditer(line["args"])]
        if "sync" in self.call:
            paths = re.findall(r"<([^>]*)>", line["args"])
        elif self.call == "mkdir":
            paths = re.findall(r'^"([^"]*)"', line["args"])
        self.path = paths[-1]
        if self.call in ("linkat", "renameat", "renameat2"):
            equal(len(paths), 2, f"paths of {line[0]}")
            self.source = paths[0]

    @property
    def parent(self):
        return os.path.dirname(self.path)


def traced(box, below, *args):
    """The events below a directory, by start."""
    _, threads = lib.strace(box, ["-ttt", "-T", "-s", "4096", "-e", f"trace={CALLS}"], *args)
    events = []
    for thread, lines in enumerate(threads):
        for line in lines:
            found = LINE.match(line)
            if found and int(found["result"]) == 0:
                events.append(Event(found, thread))
    return sorted((e for e in events if e.path.startswith(below + "/") or e.path == below),
                  key=lambda event: event.start)


def examine(events, repo):
    """Files: synced, named, their directory synced; directories: made, their parent synced; all of it before the ref entry gets its
    name. Returns how many were seen."""
    syncs = [e for e in events if "sync" in e.call]
    named = [e for e in events if e.source and e.path.startswith(repo + "/")]
    made = [e for e in events if e.call.startswith("mkdir")]
    refs = [e for e in named if e.path.startswith(f"{repo}/refs/")]
    check(refs, "no ref entry was made")
    for one in named:
        what = one.path.removeprefix(repo + "/")
        limit = min((r.start for r in refs if r.start > one.start), default=float("inf"))
        check(any(s.path == one.source and s.end <= one.start for s in syncs),
              f"{what} got its name before its bytes were synced")
        check(any(s.path == one.parent and s.thread == one.thread and s.start >= one.end and s.end <= limit
                  for s in syncs), f"the directory of {what} was not synced, or after the ref entry")
    for one in made:
        limit = min((r.start for r in refs if r.start > one.start), default=float("inf"))
        check(any(s.path == one.parent and s.start >= one.end and s.end <= limit for s in syncs),
              f"the name of the directory {one.path} was not synced, or after the ref entry")
    return len(named), len(made)


def run(box, args):
    source, below = box.new_dir("source"), box.new_dir("below")
    repo = os.path.join(below, "made", "repo")
    for i in range(20):
        with open(f"{source}/{i}", "wb") as file:
            file.write(os.urandom(2 * lib.MIB))
    total, dirs = [], []
    for command in (["commit", "--init", source, repo], ["commit", "--allow-empty", source, repo],
                    ["tag", repo, "v1"]):
        named, made = examine(traced(box, below, *command), repo)
        total.append(named)
        dirs.append(made)
    # dsfs.json, probe.json, two packs, the record, the entry; at least.
    check(total[0] >= 6 and total[1] >= 3 and total[2] >= 1, f"files that got a name: {total}")
    check(dirs[0] >= 10 and dirs[2] >= 2, f"directories that were made: {dirs}")
    say(f"{sum(total)} files and {sum(dirs)} directories, each synced in time")


if __name__ == "__main__":
    lib.main(run, fuse=False)
