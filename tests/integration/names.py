#!/usr/bin/env python3
"""B01: the store's name cannot be resolved: said in one line at the deadline, and what waits goes on once the name is there
again, in a command and in a mount.

The name stands in a file of hosts of a mount namespace of its own (root)."""
import errno
import os
import signal
import subprocess
import time

import lib
import tree
from lib import check, equal, say

UNREACHABLE = 5
HOST = "store.dsfs.test"
OWN_MOUNTS = os.path.join(lib.LIB, "own_mounts.sh")


class Names:
    """/etc/hosts, and nothing else, as seen by what `wrap` starts."""

    def __init__(self, box):
        self.hosts = box.path("hosts")
        self.switch = box.path("nsswitch.conf")
        self.forget()
        with open(self.switch, "w", encoding="ascii") as file:
            file.write("passwd: files\ngroup: files\nhosts: files\n")

    # Written in place: the file is bound over /etc/hosts.
    def know(self):
        with open(self.hosts, "w", encoding="ascii") as file:
            file.write(f"127.0.0.1 localhost\n127.0.0.1 {HOST}\n")

    def forget(self):
        with open(self.hosts, "w", encoding="ascii") as file:
            file.write("127.0.0.1 localhost\n")

    def wrap(self, *words):
        return ["sh", "-c",
                f"mount --bind {self.hosts} /etc/hosts && mount --bind {self.switch} /etc/nsswitch.conf "
                '&& exec "$@"', "sh", *words]


def unknown_for_good(box, names, repo, env):
    for words in (["log", repo], ["mount", repo, box.new_dir("never")]):
        began = time.monotonic()
        result = box.dsfs(*names.wrap(lib.DSFS, *words, "-o" if words[0] == "mount" else "--timeout",
                                      "timeout=3s,insecure_http" if words[0] == "mount" else "3s",
                                      *([] if words[0] == "mount" else ["--insecure-http"])),
                          program=OWN_MOUNTS, env=env, status=UNREACHABLE)
        took = time.monotonic() - began
        check(HOST in result.errors or "resolve" in result.errors, f"{result}: {result.errors}")
        check("memory" not in result.errors, f"{result}: {result.errors}")
        check("attempts" in result.errors and took < 10, f"{result}: {result.errors} after {took:.1f} s")
        say(f"{words[0]}: {result.errors.strip()} ({took:.1f} s)")


def known_again(box, names, repo, env):
    """A command that began before the name was there."""
    names.forget()
    process = subprocess.Popen([OWN_MOUNTS, *names.wrap(lib.DSFS, "log", repo, "--timeout", "60s",
                                                       "--insecure-http")],
                               env=box.environment(env), stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    box.processes.append(process)
    time.sleep(4)
    equal(process.poll(), None, "status of a command whose store has no name yet")
    names.know()
    _, errors = process.communicate(timeout=60)
    equal(process.returncode, 0, f"status once the name is there: {errors}")
    say("log: went on once the name was there")


def under_a_mount(box, names, source, repo, env):
    """The gateway and its name go together; what is read meanwhile fails at the deadline, and later it is right."""
    names.know()
    place = box.new_dir("m")
    log = box.path("names-log")
    process = subprocess.Popen([OWN_MOUNTS, *names.wrap(
        lib.DSFS, "mount", repo, place, "-f", "-o",
        f"timeout=3s,insecure_http,log={log},cache_dir={box.path('names-cache')}")],
        env=box.environment(env), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    box.processes.append(process)
    inside = f"/proc/{process.pid}/root{place}"
    box.wait(lambda: process.poll() is not None or f" {place} fuse.dsfs" in mounts_of(process.pid), "the mount")
    check(process.poll() is None, "the mount ended")
    files = [path for path, entry in tree.snapshot(source).items()
             if entry.type == tree.FILE and entry.size > 100000]
    check(files, "no file that is large enough")
    names.forget()
    box.gateway("rgw-kill")
    try:
        with open(os.path.join(os.fsencode(inside), files[0]), "rb") as file:
            file.read()
        raise lib.Failed("a read went on without a store")
    except OSError as error:
        equal(error.errno, errno.EIO, "errno of a read without a store")
    box.gateway("rgw-start")
    names.know()
    wanted = tree.snapshot(source)
    equal(tree.compare(wanted, tree.snapshot(inside)), [], "what is read once the store is back")
    process.send_signal(signal.SIGTERM)
    equal(process.wait(30), 0, "status of the mount")
    say("mount: EIO without a name, and right once it was there")


def mounts_of(pid):
    try:
        with open(f"/proc/{pid}/mounts", encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def run(box, args):
    if subprocess.run([OWN_MOUNTS, "true"], check=False).returncode == 77:
        raise lib.Skip("no mount namespace of our own")
    s3 = lib.S3(box, HOST)
    box.gateway = lambda command: subprocess.run(
        [os.path.join(lib.LIB, "radosgw.sh"), command, s3.dir], check=True, timeout=60)
    names = Names(box)
    repo, source = s3.url("names"), box.new_dir("src")
    grown = tree.Tree(source, args.seed)
    grown.grow(30, large=False)
    for _ in range(3):
        grown.add_file(os.urandom(300000))
    grown.settle()
    box.commit(source, repo, "--init", env=s3.env)
    port = s3.env["AWS_ENDPOINT_URL"].rpartition(":")[2]
    env = {**s3.env, "AWS_ENDPOINT_URL": f"http://{HOST}:{port}"}
    unknown_for_good(box, names, repo, env)
    known_again(box, names, repo, env)
    under_a_mount(box, names, source, repo, env)


if __name__ == "__main__":
    lib.main(run)
