#!/usr/bin/env python3
"""Mounting, from the command to the end: cancelled while it waits for the store, several at one place at
once, mount points that are symlinks, signals that were turned off, a connection that is aborted, options that
must reach the kernel, what a user is told who may not, in a user namespace, too.

Needs root for some of it; on a real S3 server behind a proxy."""
import ctypes
import fcntl
import os
import random
import re
import select
import signal
import stat
import struct
import subprocess
import threading
import time

import lib
import tree
from lib import check, equal, say

libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, MS_BIND, MS_REC, MS_PRIVATE = 0x20000, 0x1000, 0x4000, 0x40000
MNT_FORCE, MNT_DETACH = 1, 2


def mounts_at(path):
    return lib.mountpoints().count(path)


def children_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(word) for word in file.read().split()]


def infos_of(path):
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        rows = [line.split() for line in file]
    return [row for row in rows if lib.unescape(row[4]) == path]


def cancelled(box, repo, proxy):
    """A mount whose command is gone must not appear later, whatever it waited for. Status as a shell
    gives it: 130, 143, 129, 137."""
    for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL:
        for match in "^", "^GET .*/packs/":
            place = box.new_dir("cancel")
            proxy.rules({"match": match, "fault": "hold"})
            process = box.start(["mount", repo, place, "-o",
                                 f"cache_dir={box.new_dir('cancel-cache')}"],
                                env=proxy.env, stderr=subprocess.DEVNULL)
            box.wait(lambda: proxy.stats()["held"] > 0, "a request of the mount")
            children = children_of(process.pid)
            check(children, "the mount runs in no process of its own")
            process.send_signal(number)
            equal(process.wait(60), -number, "status of a cancelled mount")
            proxy.rules()
            for pid in children:
                box.wait(lambda pid=pid: not lib.is_alive(pid),
                         f"the end of the mount after {number!r}")
            equal(mounts_at(place), 0, f"mounts after {number!r}")
    say("cancelled mounts: gone with their command")


def turned_off(box, repo):
    """What nohup, or a shell for its background, has turned off does not end a mount in the foreground; SIGTERM does."""
    numbers = signal.SIGHUP, signal.SIGINT, signal.SIGTERM

    def ignore():
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)

    for ignored in False, True:
        for number in numbers:
            place = box.new_dir("foreground")
            process = box.start(["mount", "-f", repo, place, "-o", f"cache_dir={box.cache}"], stderr=subprocess.DEVNULL,
                                preexec_fn=ignore if ignored else None)
            box.wait(lambda place=place, process=process: mounts_at(place) or process.poll() is not None, "the mount")
            os.statvfs(place)
            with open(f"/proc/{process.pid}/status", encoding="ascii") as file:
                bits = int(re.search(r"SigIgn:\s*(\w+)", file.read())[1], 16)
            stays = ignored and number != signal.SIGTERM
            equal(bool(bits >> number - 1 & 1), stays, f"whether {number!r} is ignored, if it {'was' if ignored else 'was not'}")
            process.send_signal(number)
            if stays:
                os.stat(f"{place}/.dsfs/stats")
                process.terminate()
            equal(process.wait(60), 0, f"status after {number!r}")
            equal(mounts_at(place), 0, f"mounts after {number!r}")
    say("signals that were turned off before: they stay off, but for SIGTERM")


def mount(source, place, kind, flags, data=None):
    if libc.mount(source, os.fsencode(place), kind, flags, data) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), place)


def open_to_all(box):
    """A mount namespace of this test's own, where every user may open /dev/fuse, as udev has it."""
    if libc.unshare(CLONE_NEWNS) < 0:
        raise OSError(ctypes.get_errno(), "unshare")
    mount(b"none", "/", None, MS_REC | MS_PRIVATE)
    # Copies of other tests' mounts would keep their processes alive.
    subprocess.run(["umount", "-al", "-t", "fuse.dsfs"], check=False)
    if stat.S_IMODE(os.stat("/dev/fuse").st_mode) & 0o6 == 0o6:
        return
    place = box.new_dir("dev")
    mount(b"tmpfs", place, b"tmpfs", 0)
    os.mknod(f"{place}/fuse", stat.S_IFCHR, os.stat("/dev/fuse").st_rdev)
    os.chmod(f"{place}/fuse", 0o666)
    mount(os.fsencode(f"{place}/fuse"), "/dev/fuse", None, MS_BIND)
    subprocess.run(["umount", "-l", place], check=True)


def crowded(box, repo, remote, proxy):
    """Of several that mount at one place at once, one does."""
    place, options = box.new_dir("crowd"), f"cache_dir={box.cache}"
    for _ in range(3):
        processes = [box.start(["mount", repo, place, "-o", options], stderr=subprocess.PIPE)
                     for _ in range(8)]
        errors = [process.communicate()[1].decode() for process in processes]
        codes = sorted(process.returncode for process in processes)
        equal(codes, [0] + 7 * [10], "statuses of 8 that mount at one place")
        equal(mounts_at(place), 1, "mounts")
        for text in filter(None, errors):
            check("is mounted there already" in text.splitlines()[-1], f"said: {text}")
        box.dsfs("umount", place)
        equal(mounts_at(place), 0, "mounts after umount")
    # Who waits for the place is not kept by one that is cancelled, and is told about one that stalls.
    proxy.rules({"fault": "hold"})
    first = box.start(["mount", remote, place, "-o", f"cache_dir={box.new_dir('c')}"], env=proxy.env,
                      stderr=subprocess.DEVNULL)
    box.wait(lambda: proxy.stats()["held"] > 0, "a request of the mount")
    result = box.dsfs("mount", repo, place, "-o", f"{options},timeout=1s", status=10)
    check("another" in result.errors and place in result.errors, f"said: {result.errors}")
    second = box.start(["mount", repo, place, "-o", options], stderr=subprocess.PIPE)
    line = second.stderr.readline().decode()
    check("waiting" in line and place in line, f"said: {line}")
    first.kill()
    first.wait()
    equal(second.wait(60), 0, "status of the one that waited")
    second.stderr.close()
    proxy.rules()
    equal(mounts_at(place), 1, "mounts")
    box.dsfs("umount", place)
    say("8 mounts at one place at once: one succeeds")


def symlinks(box, repo):
    """A symlink means what it leads to, for mount and umount."""
    place, options = box.new_dir("real"), f"cache_dir={box.cache}"
    one, two, loop = box.path("one"), box.path("two"), box.path("loop")
    os.symlink(os.path.basename(place), one)
    os.symlink(one, two)
    os.symlink(loop, loop)
    for link in one, two, f"{two}/":
        box.dsfs("mount", repo, link, "-o", options)
        equal(mounts_at(place), 1, "mounts")
        for again in one, two, place:
            result = box.dsfs("mount", repo, again, "-o", options, status=10)
            check("is mounted there already" in result.errors, f"said: {result.errors}")
        equal(mounts_at(place), 1, "mounts after mounting again")
        box.dsfs("umount", link)
        equal(mounts_at(place), 0, "mounts after umount")
    os.symlink(box.path("nowhere"), box.path("dangling"))
    for bad, status in (loop, 1), (box.path("dangling"), 3):
        result = box.dsfs("mount", repo, bad, "-o", options, status=status)
        equal(result.errors.count("\n"), 1, f"lines: {result.errors}")
    # Over what libfuse needs to mount: in a namespace of its own, since it would stop the machine.
    if os.geteuid() == 0:
        os.symlink("/", box.path("root"))
        for root in "/", "/..", box.path("root"), "/proc", "/run":
            result = box.dsfs(lib.DSFS, "mount", repo, root, "-o",
                              options, program=os.path.join(lib.LIB, "own_mounts.sh"), status=2, timeout=60)
            check("the system needs" in result.errors, f"said: {result.errors}")
    # One that is dead gives way, once.
    box.dsfs("mount", repo, one, "-o", options)
    pid = box.mount_row(place)["pid"]
    os.kill(pid, signal.SIGKILL)
    box.wait(lambda: not lib.is_alive(pid), "the killed daemon")
    processes = [box.start(["mount", repo, path, "-o", options], stderr=subprocess.DEVNULL)
                 for path in (one, two, place)]
    equal(sorted(process.wait(60) for process in processes), [0, 10, 10], "statuses over a dead one")
    equal(mounts_at(place), 1, "mounts over a dead one, by symlinks")
    box.dsfs("umount", two)
    say("symlinks as mount points: resolved")


def has_stopped(pid):
    states = set()
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/stat", encoding="ascii", errors="replace") as file:
            states.add(file.read().rsplit(")", 1)[1].split()[0])
    return states == {"T"}


def stop(box, pid):
    """Until all of them have, one of its threads may still answer."""
    os.kill(pid, signal.SIGSTOP)
    box.wait(lambda: has_stopped(pid), "the daemon to stop")


def stopped(box, repo):
    """A daemon that is stopped is told to be stuck, in bounded time, and can be got rid of."""
    place, options = box.new_dir("stopped"), f"cache_dir={box.cache}"
    fine = box.mount(repo)
    box.dsfs("mount", repo, place, "-o", options)
    pid = box.mount_row(place)["pid"]
    stop(box, pid)
    rows = {row["mountpoint"]: row for row in box.json("mount", timeout=20)}
    equal((rows[place]["state"], rows[place]["alive"]), ("stuck", True), "of the stopped one")
    equal((rows[fine.path]["state"], rows[fine.path]["alive"]), ("answers", True), "of the other")
    check("stuck" in box.dsfs("mount", timeout=20).text, "the list does not say that it is stuck")
    said = {row["text"].split(" on ")[-1].split(",")[0].split(":")[0]: row for row in box.json("doctor", timeout=20)
            if row["what"] == "mount"}
    check(said[place]["verdict"] == "note" and "stuck" in said[place]["text"], f"doctor says: {said[place]}")
    equal(said[fine.path]["verdict"], "ok", "what doctor says of the other")
    result = box.dsfs("mount", repo, place, "-o", options, status=10, timeout=20)
    check("does not answer" in result.errors, f"said: {result.errors}")
    for flags, status in ([], 5), (["-l"], 0):
        if not lib.is_mounted(place):
            os.kill(pid, signal.SIGCONT)
            box.wait(lambda pid=pid: not lib.is_alive(pid), "the end of the daemon that goes on")
            box.dsfs("mount", repo, place, "-o", options)
            pid = box.mount_row(place)["pid"]
            stop(box, pid)
        box.dsfs("umount", *flags, place, status=status, timeout=40)
        equal(mounts_at(place), 0, f"mounts after umount {flags}")
    os.kill(pid, signal.SIGCONT)
    box.wait(lambda: not lib.is_alive(pid), "the end of the daemon that goes on")
    fine.umount()
    say("a stopped daemon: shown as stuck")


class Mute:
    """A mount whose process takes each request and answers none but INIT: who asks it cannot be killed."""

    INIT, STATFS = 26, 17

    def __init__(self, place):
        self.fd = os.open("/dev/fuse", os.O_RDWR)
        mount(b"mute", place, b"fuse.dsfs", 0, f"fd={self.fd},rootmode=40000,user_id=0,group_id=0".encode())
        self.asked_n = 0
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self):
        while True:
            try:
                request = os.read(self.fd, 1 << 20)
            except OSError:
                return  # unmounted, or aborted
            _, opcode, unique = struct.unpack_from("IIQ", request)
            if opcode == self.INIT:
                os.write(self.fd, struct.pack("IiQ IIII HHI 40x", 80, 0, unique, 7, 31, 0, 0, 16, 12, 1 << 16))
            self.asked_n += opcode == self.STATFS

    def end(self, place):
        # umount(8) would ask the mount.
        if libc.umount2(os.fsencode(place), MNT_FORCE | MNT_DETACH) < 0:
            raise OSError(ctypes.get_errno(), "umount2", place)
        self.thread.join()
        os.close(self.fd)


def mute(box, repo):
    """Who looked at a place, and is kept by the mount that is there, does not keep the next one from looking."""
    if os.geteuid() != 0:
        return
    place, options = box.new_dir("mute"), f"cache_dir={box.cache}"
    server = Mute(place)
    try:
        # Who is late, on a machine that stands still, may be gone before the mount has taken what he asks: he is not kept.
        for i in range(20):
            result = box.dsfs("mount", repo, place, "-o", f"{options},timeout=1s", status=10, timeout=60)
            check("does not answer" in result.errors and "another dsfs" not in result.errors, f"said, time {i}: {result.errors}")
            if server.asked_n >= 2:
                break
        check(server.asked_n >= 2, "the mount has taken no looks")
        check(len(box.left_behind()) >= 2, "nobody is kept: this has shown nothing")
    finally:
        server.end(place)
    box.wait(lambda: not box.left_behind(), "the end of who looked")
    say("a mount that takes what is asked, and answers nothing: told each time")


def other_users(box, repo):
    """Each user sees its own mounts; root sees all, and says what it does not know."""
    user, mine = lib.User(box), box.mount(repo)
    place = f"{user.home}/mnt"
    equal(user.dsfs("mount", "--json").json, [], "mounts of a user that has none")
    equal(user.dsfs("mount").text, "", "list of a user that has none")
    user.dsfs("mount", repo, place)
    rows = user.dsfs("mount", "--json").json
    equal([(row["mountpoint"], row["state"], row["user"]) for row in rows],
          [(place, "answers", user.number)], "mounts of the user")
    check(rows[0]["pid"] and rows[0]["version"], f"its own mount: {rows[0]}")
    # What a mount has open, nobody but root may see: it is found by what it said.
    link = f"{user.home}/link"
    os.symlink(user.home, link)
    for name in f"{user.home}/cache", f"{link}/cache":
        found = user.dsfs("cache", "status", "--json", "--cache-dir", name).json["mounts"]
        equal([row["mountpoint"] for row in found], [place], f"the user's mounts that use {name}")
    row = box.mount_row(place)
    equal((row["state"], row["alive"], row["pid"], row["user"]),
          ("answers", True, None, user.number), "the user's mount, for root")
    text = box.dsfs("mount").text
    line = next(line for line in text.splitlines() if place in line)
    check(f"user {user.number}" in line and "dead" not in line, f"the list says: {line}")
    result = user.dsfs("umount", mine.path, status=4)
    check("another user" in result.errors, f"said: {result.errors}")
    check(lib.is_mounted(mine.path), "a user has unmounted what is root's")
    pid = rows[0]["pid"]
    os.kill(pid, signal.SIGKILL)
    box.wait(lambda: not lib.is_alive(pid), "the killed daemon")
    equal(box.mount_row(place)["state"], "dead", "the user's dead mount, for root")
    equal(user.dsfs("mount", "--json").json[0]["state"], "dead", "the user's dead mount")
    for who in box, user:
        rows = [row["text"] for row in who.dsfs("doctor", "--json").json if row["what"] == "mount"]
        check(any("dead: its process is gone" in text for text in rows), f"doctor says of a dead mount: {rows}")
    user.dsfs("umount", place)
    mine.umount()
    say("other users: each sees its own, root sees all")


def no_text(box, repo):
    """Paths that are not UTF-8: the mount is known as any other is, and lists hold them."""
    def odd(name):
        return os.fsdecode(os.fsencode(box.path(name)) + b"-\xe9")

    def as_json(path):
        return {"hex": os.fsencode(path).hex()}

    cache, place = odd("cache"), odd("place")
    os.mkdir(place)
    with box.mount(repo, f"cache_dir={cache}") as mount:
        told = box.json("cache", "status", "--cache-dir", cache)
        equal(told["directory"], as_json(cache), "the cache directory")
        equal([other["mountpoint"] for other in told["mounts"]], [mount.path], "those that use it")
    box.dsfs("mount", repo, place, "-o", f"cache_dir={box.cache}")
    row = next((row for row in box.json("mount") if row["mountpoint"] == as_json(place)), None)
    check(row and row["pid"] and row["version"], f"the list says: {row}")
    found = [other["mountpoint"] for other in box.json("cache", "status", "--cache-dir", box.cache)["mounts"]]
    equal(found.count(as_json(place)), 1, "in the list of those that use the cache")
    for command in ["cache", "status", "--cache-dir", box.cache], ["doctor"]:
        text = os.fsdecode(box.dsfs(*command, status=None).out)
        check("place-" in text and not any("\udc80" <= c <= "\udcff" for c in text), f"{command} says: {text!r}")
    rows = [row["text"] for row in box.json("doctor", status=None) if row["what"] == "mount"]
    check(any("place-" in row for row in rows), f"doctor --json says: {rows}")
    box.dsfs("umount", place)
    check(not lib.is_alive(row["pid"]), f"process {row['pid']} lives after umount")
    say("paths that are not UTF-8: known and listed")


def not_allowed(box, repo):
    """A user is told why fusermount3 has refused, and what would help."""
    user = lib.User(box)
    place = f"{user.home}/mnt"
    with open("/etc/fuse.conf", encoding="utf-8") as file:
        allowed = "user_allow_other" in map(str.strip, file)
    if not allowed:
        result = user.dsfs("mount", repo, place, "-o", "allow_other", status=4)
        check("/etc/fuse.conf" in result.errors.splitlines()[-1] and
              "user_allow_other" in result.errors.splitlines()[-1], f"said: {result.errors}")
        equal(mounts_at(place), 0, "mounts after a refusal")
    for option, name in ("nosymfollow", "nosymfollow"), ("context=u:r:t", "context="):
        result = user.dsfs("mount", repo, place, "-o", option, status=None)
        if result.status == 0:
            say(f"fusermount3 knows {option}")
            user.dsfs("umount", place)
            continue
        if "libfuse refused the options" in result.errors:
            say(f"this libfuse does not know {option}")
            continue
        equal(result.status, 4, f"status of {option}: {result.errors}")
        last = result.errors.splitlines()[-1]
        check(place in last and f"it may not know {name}: leave that out" in last, f"said: {result.errors}")
    if os.path.exists("/sys/fs/selinux"):
        say("context= without SELinux is not tried")
    else:
        root_place = box.new_dir("context")
        for name in "context", "fscontext", "defcontext", "rootcontext":
            result = box.dsfs("mount", repo, root_place, "-o", f"noexec,{name}=foo", status=1)
            check("context= needs SELinux" in result.errors.splitlines()[-1], f"said: {result.errors}")
            check("not permitted" not in result.errors, f"said: {result.errors}")
    os.chown(place, 0, 0)
    result = user.dsfs("mount", repo, place, status=4)
    check(place in result.errors.splitlines()[-1] and "must be yours" in result.errors, f"said: {result.errors}")
    say("what fusermount3 refuses: told with the remedy")


def without_privilege(box):
    """A user who may not: passthrough is refused in one line, and auto does without, and says why."""
    source, repo = box.new_dir("large"), box.path("large-repo")
    with open(f"{source}/file", "wb") as file:
        file.write(random.Random(1).randbytes(5 << 20))
    box.commit(source, repo, "--init")
    user = lib.User(box)
    # What is missing first, for anybody, is told first.
    why = "libfuse 3.17" if "libfuse" in (lib.no_passthrough(box) or "") else "CAP_SYS_ADMIN"
    place, log = f"{user.home}/mnt", f"{user.home}/run/log"
    errors = user.dsfs("mount", repo, place, "-o", "kernel=passthrough", status=1).errors
    equal(len(errors.splitlines()), 1, f"lines of {errors!r}")
    check(why in errors, f"said: {errors}")
    check(not lib.is_mounted(place), "a refused mount is there")
    user.dsfs("mount", repo, place, "-o", f"log={log}")
    with open(log, encoding="utf-8") as file:
        text = file.read()
    check(re.search(f"kernel=stateless, .*{why}", text), f"said: {text}")
    user.dsfs("umount", place)
    say("passthrough without the right to it: refused, and auto does without")
    check(re.search("; readahead [0-9.]+ KiB, the kernel's own: as root 'echo 512 > /sys/class/bdi/", text),
          f"said: {text}")
    row = next(row for row in user.dsfs("doctor", "--json").json if row["what"] == "readahead")
    check(row["verdict"] == "note" and "root" in row["text"], f"doctor says: {row}")
    in_namespace(box, repo)


def in_namespace(box, repo):
    """Root of a user namespace, as in a rootless container, is none to the kernel where passthrough is opened."""
    own = ["-U", "--map-root-user", "--mount"]
    done = subprocess.run(["unshare", *own, "true"], capture_output=True, text=True, check=False)
    if done.returncode:
        say(f"no user namespace is tried: {done.stderr.strip()}")
        return
    why = "libfuse 3.17" if "libfuse" in (lib.no_passthrough(box) or "") else "user namespace"
    row = next(row for row in box.dsfs(*own, lib.DSFS, "doctor", "--json", program="unshare").json if row["what"] == "passthrough")
    check(row["verdict"] == "note" and why in row["text"], f"doctor says: {row}")
    place, log = box.new_dir("namespace"), box.path("namespace-log")
    mount_it = [*own, lib.DSFS, "mount", repo, place, "-o"]
    cache = f"cache_dir={box.new_dir('namespace-cache')}"
    errors = box.dsfs(*mount_it, f"{cache},kernel=passthrough", program="unshare", status=1).errors
    equal(len(errors.splitlines()), 1, f"lines of {errors!r}")
    check(why in errors, f"said: {errors}")
    script = '"$0" "$@" && stat "$3/file" && "$0" umount "$3"'
    box.dsfs(*own, "sh", "-c", script, lib.DSFS, "mount", repo, place, "-o", f"{cache},log={log}", program="unshare")
    with open(log, encoding="utf-8") as file:
        text = file.read()
    check(re.search(f"kernel=stateless, .*{why}", text), f"said: {text}")
    say("passthrough in a user namespace: refused, and auto does without")


FUSECTL = "/sys/fs/fuse/connections"


def aborted(box, repo):
    """A mount whose connection was aborted by fusectl is gone with its process, as after SIGTERM."""
    if os.geteuid() != 0:
        return
    if not os.path.ismount(FUSECTL):
        mount(b"none", FUSECTL, b"fusectl", 0)
    user = lib.User(box)
    for who, place in (box, box.new_dir("aborted")), (user, f"{user.home}/mnt"):
        log = f"{user.home}/run/aborted"
        who.dsfs("mount", repo, place, "-o", f"log={log}")
        pid = next(row["pid"] for row in who.dsfs("mount", "--json").json if row["mountpoint"] == place)
        number = infos_of(place)[-1][2].partition(":")[2]
        with open(f"{FUSECTL}/{number}/abort", "w", encoding="ascii") as file:
            file.write("1")
        box.wait(lambda pid=pid: not lib.is_alive(pid), "the end of a mount that was aborted")
        equal(mounts_at(place), 0, "mounts after an abort")
        with open(log, encoding="utf-8") as file:
            check("was aborted" in file.read(), "the log does not tell of it")
        os.unlink(log)
    # What somebody has mounted over it is not taken for it.
    place = box.new_dir("covered")
    box.dsfs("mount", repo, place)
    pid = next(row["pid"] for row in box.dsfs("mount", "--json").json if row["mountpoint"] == place)
    number = infos_of(place)[-1][2].partition(":")[2]
    mount(b"none", place, b"tmpfs", 0)
    try:
        with open(f"{place}/theirs", "w", encoding="ascii") as file:
            file.write("theirs")
        with open(f"{FUSECTL}/{number}/abort", "w", encoding="ascii") as file:
            file.write("1")
        box.wait(lambda: not lib.is_alive(pid), "the end of a mount that was aborted")
        check(os.path.exists(f"{place}/theirs"), "what was mounted over it is gone")
    finally:
        for _ in range(mounts_at(place)):
            libc.umount2(os.fsencode(place), MNT_DETACH)
    say("a connection that was aborted: no dead mount is left")


def replaced(box, repo):
    """One that was detached while it was in use, and ends later, leaves alone what is mounted at its place by then."""
    if os.geteuid() != 0:
        return
    place = box.new_dir("replaced")
    pids = []
    for _ in range(2):
        box.dsfs("mount", repo, place)
        pids.append(next(row["pid"] for row in box.dsfs("mount", "--json").json if row["mountpoint"] == place))
        if len(pids) == 1:
            used = os.open(place, os.O_RDONLY)
            subprocess.run(["umount", "-l", place], check=True, timeout=60)
    try:
        check(lib.is_alive(pids[0]), "the first has ended already: this shows nothing")
        os.kill(pids[0], signal.SIGTERM)
        box.wait(lambda: not lib.is_alive(pids[0]), "the end of the first")
        equal(mounts_at(place), 1, "mounts at the place of both")
        check(os.listdir(place), "the second mount is empty")
    finally:
        os.close(used)
        box.dsfs("umount", place, status=None)
    box.wait(lambda: not lib.is_alive(pids[1]), "the end of the second")
    say("one that was detached, and ends: the next at its place stays")


AUTOFS_READY, AUTOFS_CATATONIC = 0x9360, 0x9362  # linux/auto_fs.h


def automounted(box, repo):
    """At a place of autofs (x-systemd.automount, automount(8)): its process group mounts, who looks waits, and an end asks for nothing."""
    with open("/proc/filesystems", encoding="ascii") as file:
        known = "autofs" in file.read().split()
    if os.geteuid() != 0 or not known:
        say("no autofs here: nothing is known of x-systemd.automount")
        return
    place = box.new_dir("auto")
    asked, asks = os.pipe()
    mount(b"auto", place, b"autofs", 0, f"fd={asks},pgrp={os.getpgrp()},minproto=5,maxproto=5,direct".encode())
    os.close(asks)
    control = os.open(place, os.O_RDONLY)
    try:
        # Of another process group: it waits until the mount is there.
        looking = subprocess.Popen(["ls", "-A", "--zero", place], start_new_session=True, stdout=subprocess.PIPE)
        box.processes.append(looking)
        check(select.select([asked], [], [], 60)[0], "autofs asks for nothing")
        token = struct.unpack_from("iiI", os.read(asked, 304))[2]
        box.dsfs("mount", repo, place, "-o", f"cache_dir={box.cache}", timeout=60)
        fcntl.ioctl(control, AUTOFS_READY, token)
        names = looking.communicate(timeout=60)[0].split(b"\0")[:-1]
        equal(sorted(names), sorted(os.listdir(os.fsencode(place))), "names that who looked has seen")
        check(names, "he has seen nothing")
        row = next(row for row in box.dsfs("mount", "--json").json if row["mountpoint"] == place)
        check(os.getsid(row["pid"]) == row["pid"], "the mount's process is of the session of who mounted")
        subprocess.run(["umount", place], check=True, timeout=60)
        box.wait(lambda: not lib.is_alive(row["pid"]), "the end of the mount")
        equal(select.select([asked], [], [], 0)[0], [], "requests for a mount when one has ended")
    finally:
        fcntl.ioctl(control, AUTOFS_CATATONIC, 0)
        for fd in control, asked:
            os.close(fd)
        for _ in range(mounts_at(place)):
            libc.umount2(os.fsencode(place), MNT_DETACH)
    say("at a place of autofs: mounted by its process group, unmounted without a request")


def passing(box, repo):
    """A statfs that is on its way (df, a listing of mounts) makes the mount busy: umount waits for it."""
    mount = lib.Mount(box, repo)
    stop(box, mount.pid)
    looking = subprocess.Popen(["stat", "-f", mount.path], stdout=subprocess.DEVNULL)
    box.processes.append(looking)
    box.wait(lambda: "request_wait" in wchan(looking.pid), "a statfs that waits")
    ending = box.start(["umount", mount.path])
    time.sleep(0.7)
    equal(ending.poll(), None, "status of umount while somebody looks")
    os.kill(mount.pid, signal.SIGCONT)
    equal(ending.wait(60), 0, "status of umount")
    equal(looking.wait(60), 0, "status of who looked")
    check(not lib.is_mounted(mount.path), "still mounted")
    box.mounts.remove(mount)
    say("a statfs on its way: umount waited for it")


def wchan(pid):
    with open(f"/proc/{pid}/wchan", encoding="ascii") as file:
        return file.read()


def copies(box, repo):
    """A container that began meanwhile has a copy of the mount, and the copy keeps its process alive: who has it is told."""
    if os.geteuid() != 0:
        return
    mount = lib.Mount(box, repo)
    # Those of other tests are let go of.
    script = """awk '/ - fuse.dsfs / { print $5 }' /proc/self/mountinfo | grep -vxF "$0" | xargs -r -n1 umount -l
                echo; exec sleep 60"""
    holder = subprocess.Popen(["unshare", "--mount", "--propagation", "private", "sh", "-c", script, mount.path],
                              stdout=subprocess.PIPE)
    box.processes.append(holder)
    holder.stdout.readline()
    result = box.dsfs("umount", mount.path, status=5)
    check(f"process {holder.pid} (" in result.errors and "namespace" in result.errors, result.errors)
    check(not lib.is_mounted(mount.path), "still mounted here")
    holder.kill()
    holder.wait()
    box.wait(lambda: not lib.is_alive(mount.pid), "the end of the daemon")
    box.mounts.remove(mount)
    say("a copy in another mount namespace: told after umount")


def run(box, args):
    if os.geteuid() == 0:
        open_to_all(box)
    s3 = box.store("s3")
    proxy = lib.Proxy(box, s3.env)
    source, remote = box.new_dir("src"), s3.url("repo")
    tree.Tree(source, args.seed).grow(30, large=False)
    box.commit(source, remote, "--init", env=s3.env)
    local = box.path("repo")
    box.commit(source, local, "--init")
    crowded(box, local, remote, proxy)
    symlinks(box, local)
    no_text(box, local)
    stopped(box, local)
    mute(box, local)
    if os.geteuid() == 0:
        other_users(box, local)
        not_allowed(box, local)
        without_privilege(box)
    cancelled(box, remote, proxy)
    turned_off(box, local)
    aborted(box, local)
    replaced(box, local)
    automounted(box, local)
    passing(box, local)
    copies(box, local)


if __name__ == "__main__":
    lib.main(run)
