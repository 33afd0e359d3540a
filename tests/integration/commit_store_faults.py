#!/usr/bin/env python3
"""Commit before a store that fails, lies, stands still or is locked: it says so, in time, and a signal ends it."""
import fcntl
import os
import signal
import subprocess
import time

import lib
from lib import check, equal, say

STORE, DAMAGED, INTERRUPTED = 5, 6, 130
# Far below what the store's timeout would give: under ASan, on a busy machine.
SOON_S = 10


def new_source(box, size=1000):
    source = box.new_dir("source")
    with open(f"{source}/file", "wb") as file:
        file.write(os.urandom(size))
    return source


def swallowed(box, s3, proxy):
    repo, source = s3.url("swallowed"), new_source(box)
    for words, key, text in (["--tag", "v1"], "refs/tags/", "but not the tag"), \
            ([], "refs/branches/", "does not keep"):
        box.dsfs("init", f"{repo}-{key[5]}", env=proxy.env)
        proxy.rules({"match": f"PUT .*{key}", "fault": "swallow"})
        done = box.dsfs("commit", source, f"{repo}-{key[5]}", *words, env=proxy.env, status=DAMAGED)
        check(text in done.errors, done.errors)
        check(not done.out, f"{done}: acknowledged: {done.text}")
        check(proxy.stats()["delivered"] > 0, "nothing was swallowed")
        proxy.rules()
    log = box.dsfs("log", f"{repo}-b", env=proxy.env, status=3).errors
    check("no version" in log, log)
    equal(box.commit(source, f"{repo}-b", env=proxy.env)["number"], 1, "the number afterwards")


def wrong_date(box, s3, proxy):
    """One answer with a date of its own does not set the time of a record for good."""
    repo, source = s3.url("wrong-date"), new_source(box)
    box.dsfs("init", repo, env=proxy.env)
    for date in "Tue, 01 Jan 2099 00:00:00 GMT", "Mon, 01 Jan 2001 00:00:00 GMT":
        for key in "packs/", "versions/", "refs/", "policy/":
            proxy.rules({"match": key, "fault": "rewrite", "set": {"Date": date}, "times": 1})
            box.commit(source, repo, "--allow-empty", env=proxy.env)
            equal(proxy.stats()["delivered"], 1, "wrong dates")
            proxy.rules()
            record = box.json("log", "-n", "1", repo, env=proxy.env)[0]["record"]
            check(abs(int(record["time"][:4]) - time.gmtime().tm_year) <= 1, record)


def ignore_hangup():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def held_commit(box, proxy, source, repo, match, **kwargs):
    """A commit that waits for the store at a request that fits."""
    proxy.rules({"match": match, "fault": "hold"})
    process = box.start(["commit", source, repo], env=proxy.env, stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE, **kwargs)
    box.wait(lambda: proxy.stats()["held"] > 0 or process.poll() is not None, f"the commit at {match}")
    check(process.poll() is None, f"the commit ended before {match}: {process.stderr}")
    return process


def hangups(box, s3, proxy):
    """SIGHUP ends a commit, but not one that was started to ignore it."""
    repo, source = s3.url("hangups"), new_source(box)
    box.dsfs("init", repo, env=proxy.env)
    for ignored, status in (False, INTERRUPTED), (True, 0):
        process = held_commit(box, proxy, source, repo, "PUT .*packs/",
                              preexec_fn=ignore_hangup if ignored else None)
        process.send_signal(signal.SIGHUP)
        if not ignored:
            process.wait(lib.TIMEOUT_S)
        proxy.rules()
        _, errors = process.communicate(timeout=lib.TIMEOUT_S)
        equal(process.returncode, status, f"status after SIGHUP: {errors}")


def interrupts(box, s3, proxy):
    """A signal ends a commit at whatever request it waits."""
    repo, source = s3.url("interrupts"), new_source(box)
    box.dsfs("commit", "--init", source, repo, env=proxy.env)
    places = ("GET .*policy/", "GET .*refs/", "GET .*versions/", "GET .*packs/", "PUT .*packs/",
              "HEAD .*packs/", "PUT .*versions/", "HEAD .*versions/", "PUT .*refs/")
    for i, match in enumerate(places):
        with open(f"{source}/file", "ab") as file:
            file.write(b"more")
        process = held_commit(box, proxy, source, repo, match)
        started = time.monotonic()
        process.send_signal(signal.SIGTERM if i % 2 else signal.SIGINT)
        _, errors = process.communicate(timeout=lib.TIMEOUT_S)
        took = time.monotonic() - started
        equal(process.returncode, INTERRUPTED, f"status after a signal at {match}: {errors}")
        check(took < SOON_S, f"a signal at {match} took {took:.1f} s")
        text = b"it was being published" if "PUT .*refs" in match else b"nothing was published"
        check(text in errors and errors.count(b"\n") == 1, f"at {match}: {errors}")
        proxy.rules()
    box.commit(source, repo, "--allow-empty", env=proxy.env)


def locked(box):
    """A directory store that another process has locked is waited for, which is said, and a signal ends it."""
    repo, source = box.path("locked"), new_source(box)
    box.dsfs("commit", "--init", source, repo)
    for number in signal.SIGINT, signal.SIGTERM, None:
        with open(f"{repo}/lock", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            process = box.start(["commit", "--allow-empty", source, repo], stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE)
            line = process.stderr.readline()
            check(b"another process has locked" in line, f"where the lock is held: {line}")
            if number:
                process.send_signal(number)
                equal(process.wait(SOON_S), INTERRUPTED, "status after a signal at the lock")
        equal(process.wait(lib.TIMEOUT_S), INTERRUPTED if number else 0, "status of a commit that waited")
        process.communicate()
    equal(len(box.json("log", repo)), 2, "versions")


def run(box, args):
    s3 = box.store("s3")
    proxy = lib.Proxy(box, s3.env, args.seed)
    swallowed(box, s3, proxy)
    wrong_date(box, s3, proxy)
    hangups(box, s3, proxy)
    interrupts(box, s3, proxy)
    locked(box)


if __name__ == "__main__":
    lib.main(run, fuse=False)
