#!/usr/bin/env python3
"""Mounting, from the command to the end: cancelled while it waits for the store, several at one place at
once, mount points that are symlinks, options that must reach the kernel, what a user is told who may not.

Needs root for some of it; on a real S3 server behind a proxy."""
import os
import signal
import subprocess

import lib
import tree
from lib import check, equal, say


def mounts_at(path):
    return lib.mountpoints().count(path)


def children_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(word) for word in file.read().split()]


def cancelled(box, repo, proxy):
    """A mount whose command is gone must not appear later."""
    for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL:
        place = box.new_dir("cancel")
        proxy.rules({"fault": "hold"})
        process = box.start(["mount", repo, place, "-o", f"cache_dir={box.path(f'c{number}')}"],
                            env=proxy.env, stderr=subprocess.DEVNULL)
        box.wait(lambda: proxy.stats()["held"] > 0, "a request of the mount")
        children = children_of(process.pid)
        check(children, "the mount runs in no process of its own")
        process.send_signal(number)
        equal(process.wait(60), -number, "status of a cancelled mount")
        proxy.rules()
        for pid in children:
            box.wait(lambda pid=pid: not lib.is_alive(pid), f"the end of the mount after {number!r}")
        equal(mounts_at(place), 0, f"mounts after {number!r}")
    say("cancelled mounts: gone with their command")


def run(box, args):
    s3 = box.store("s3")
    proxy = lib.Proxy(box, s3.env)
    source, remote = box.new_dir("src"), s3.url("repo")
    tree.Tree(source, args.seed).grow(30, large=False)
    box.commit(source, remote, "--init", env=s3.env)
    cancelled(box, remote, proxy)


if __name__ == "__main__":
    lib.main(run)
