#!/usr/bin/env python3
"""Commit before a store that fails, lies, stands still or is locked: it says so, in time, and a signal ends it."""
import fcntl
import os
import signal
import socket
import subprocess
import threading
import time

import lib
from lib import MIB, check, equal

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


def at_the_lock(box, repo, args):
    """Signals at a lock that another process holds end the command; once it is free, the command goes on."""
    for number in signal.SIGINT, signal.SIGTERM, None:
        with open(f"{repo}/lock", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            process = box.start(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            line = process.stderr.readline()
            check(b"another process has locked" in line, f"{args[0]} where the lock is held: {line}")
            if number:
                process.send_signal(number)
                equal(process.wait(SOON_S), INTERRUPTED, f"status of {args[0]} after a signal at the lock")
        equal(process.wait(lib.TIMEOUT_S), INTERRUPTED if number else 0, f"status of {args[0]} that waited")
        process.communicate()


def locked(box):
    """A directory store that another process has locked is waited for by all who write refs, which is said, and a signal ends it."""
    repo, source = box.path("locked"), new_source(box)
    box.dsfs("commit", "--init", source, repo)
    at_the_lock(box, repo, ["commit", "--allow-empty", source, repo])
    equal(len(box.json("log", repo)), 2, "versions")
    at_the_lock(box, repo, ["tag", repo, "v1"])
    equal([row["name"] for row in box.json("refs", repo)], ["main", "v1"], "refs")


def keeps_failing(box, s3, proxy):
    """A store that goes on refusing is asked for as long as --timeout says, not longer."""
    source = new_source(box)
    for key in "packs/", "versions/", "refs/":
        proxy.rules({"match": f"PUT .*{key}", "fault": "status", "code": 503, "s3code": "SlowDown"})
        started = time.monotonic()
        done = box.dsfs("commit", "--init", "--timeout", "2s", source, s3.url(f"refused-{key[:-1]}"),
                        env=proxy.env, status=STORE)
        took = time.monotonic() - started
        check("SlowDown" in done.errors, done.errors)
        check(took < 2 * SOON_S, f"it took {took:.1f} s with --timeout 2s")
        check(proxy.stats()["delivered"] > 1, "it was not tried again")
        proxy.rules()


def keeps_failing_readers(box, s3, proxy):
    """Chunks that do not come end a diff when --timeout says, not later."""
    source, repo = new_source(box), s3.url("diff")
    box.commit(source, repo, "--init", env=s3.env)
    box.commit(source, repo, "--allow-empty", env=s3.env)
    proxy.rules({"match": "GET .*packs/", "fault": "status", "code": 503, "s3code": "SlowDown"})
    started = time.monotonic()
    done = box.dsfs("diff", "--timeout", "2s", f"{repo}@1", f"{repo}@2", status=STORE,
                    env={**proxy.env, "DSFS_CACHE_DIR": box.path("no-cache")})
    took = time.monotonic() - started
    check("slow down" in done.errors, done.errors)
    check(took < 3 * SOON_S, f"it took {took:.1f} s with --timeout 2s")
    check(proxy.stats()["delivered"] > 1, "it was not tried again")
    proxy.rules()


class SlowLine:
    """A line to a server that takes so many bytes in a second."""

    def __init__(self, env, bytes_per_s):
        self.host, self.port = env["AWS_ENDPOINT_URL"].removeprefix("http://").split(":")
        self.bytes_per_s = bytes_per_s
        self.listener = socket.socket()
        # Small, or the kernel takes all at once.
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(64)
        self.env = {**env, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.listener.getsockname()[1]}"}
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            client, _ = self.listener.accept()
            server = socket.create_connection((self.host, int(self.port)))
            for words in (client, server, self.bytes_per_s), (server, client, None):
                threading.Thread(target=self.pass_on, args=words, daemon=True).start()

    @staticmethod
    def pass_on(source, to, bytes_per_s):
        try:
            while piece := source.recv(32768):
                to.sendall(piece)
                if bytes_per_s:
                    time.sleep(len(piece) / bytes_per_s)
            to.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def slow_line(box, s3):
    """A pack that takes longer than --timeout arrives as long as it moves."""
    source = new_source(box, 24 * MIB)
    line = SlowLine(s3.env, 3 * MIB)
    started = time.monotonic()
    box.commit(source, s3.url("slow"), "--init", "--timeout", "4s", env=line.env)
    took = time.monotonic() - started
    check(took > 6, f"nothing was slow: {took:.1f} s")
    box.dsfs("verify", "--read-data", s3.url("slow"), env=s3.env)


def full_disk(box):
    """A local directory that is full is named, and not the repository."""
    source, state = new_source(box), box.new_dir("state")
    for i in range(1000):
        with open(f"{source}/{i:060}", "wb") as file:
            file.write(b"%d" % i)
    seen = 0
    for size in "64k", "300k", "400k", "500k", "600k":
        repo = box.path(f"full-{size}")
        if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", state], check=False,
                          capture_output=True).returncode:
            lib.say("no tmpfs can be mounted here: nothing is known of full disks")
            return
        try:
            box.dsfs("init", repo)
            for _ in range(2):
                done = box.dsfs("commit", "--allow-empty", "--state-dir", state, source, repo, status=None)
                if done.status:
                    seen += 1
                    check("No space left" in done.errors and f"{state}/tmp/" in done.errors
                          and repo not in done.errors, f"{size}: {done.errors}")
        finally:
            subprocess.run(["umount", state], check=True)
    check(seen > 2, f"only {seen} commits found the disk full")


def run(box, args):
    s3 = box.store("s3")
    proxy = lib.Proxy(box, s3.env, args.seed)
    swallowed(box, s3, proxy)
    wrong_date(box, s3, proxy)
    hangups(box, s3, proxy)
    interrupts(box, s3, proxy)
    locked(box)
    full_disk(box)
    keeps_failing(box, s3, proxy)
    keeps_failing_readers(box, s3, proxy)
    slow_line(box, s3)


if __name__ == "__main__":
    lib.main(run, fuse=False)
