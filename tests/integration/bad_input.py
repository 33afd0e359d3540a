#!/usr/bin/env python3
"""Every bad input gets one clear line that names the thing, the documented exit status, and with
--json a JSON object that says the same."""
import errno
import hashlib
import json
import os
import re
import socket
import stat
import subprocess
import time

import forged
import lib
import stored
from lib import MIB, check, equal, say

FAILURE, USAGE, NOT_FOUND, ACCESS, STORE, DAMAGED, CONFLICT, SOURCE, TOO_NEW, BUSY = range(1, 11)
SECRET = "Zq8notAsecretThatAnybodyUses"


class Asker:
    def __init__(self, box):
        self.box = box
        self.asked = 0

    def __call__(self, status, names, *args, env=None, lines=1, may_json=True):
        """Runs dsfs: `status`, and `lines` lines on stderr, of which the last has all of `names`."""
        self.asked += 1
        names = [names] if isinstance(names, str) else names
        result = self.box.dsfs(*args, env=env, status=status)
        errors = result.errors
        equal(errors.count("\n"), lines, f"{result}: lines on stderr: {errors}")
        last = errors.splitlines()[-1]
        check(errors.endswith("\n") and last.startswith("dsfs: "), f"{result}: {errors!r}")
        for name in names:
            check(name in last, f"{result}: {name!r} is not in {last!r}")
        check(SECRET not in errors, f"{result}: a secret in {errors!r}")
        check(not result.out, f"{result}: something on stdout: {result.text}")
        if may_json and args[0] not in ("cat", "umount", "mount"):
            self.asked += 1
            with_json = self.box.dsfs(args[0], "--json", *args[1:], env=env, status=status)
            error = with_json.json["error"]
            equal(error["exit_status"], status, f"{with_json}: exit_status in JSON")
            check(error["name"] and error["text"], f"{with_json}: {error}")
        return last


def seal(obj):
    line = json.dumps(obj, separators=(",", ":")).encode() + b"\n"
    return line + hashlib.sha256(line).hexdigest().encode() + b"\n"


def unseal(path):
    with open(path, "rb") as file:
        return json.loads(file.read().split(b"\n")[0])


def put(path, data):
    if os.path.exists(path):
        os.unlink(path)
    with open(path, "wb") as file:
        file.write(data)


def usage(ask, repo, mountpoint):
    for words, name in (([], "command"), (["frobnicate"], "frobnicate"),
                        (["help", "frobnicate"], "frobnicate")):
        result = ask.box.dsfs(*words, status=USAGE)
        check(result.errors.count("\n") == 1 and name in result.errors, f"{result}: {result.errors}")
    for command in "init", "commit", "log", "refs", "ls", "cat", "export", "tag", "diff", "verify":
        ask(USAGE, "arguments are missing", command, may_json=False)
        ask(USAGE, "--frobnicate", command, "--frobnicate", may_json=False)
        ask(USAGE, "'-Z'", command, "-Z", may_json=False)
    ask(USAGE, "one argument too many", "log", repo, "more", may_json=False)
    ask(USAGE, "--quiet", "log", "--quiet=yes", repo, may_json=False)
    ask(USAGE, "--message", "commit", repo, repo, "--message", may_json=False)
    ask(USAGE, "--message", "commit", "-m", "a", "-m", "b", repo, repo, may_json=False)
    for bad in "-1", "x", "1.5", "99999999999999999999999":
        ask(USAGE, [bad, "--number"], "log", repo, f"--number={bad}")
    for bad in "12Q", "", "-5M", "M":
        ask(USAGE, [bad, "--memory"], "commit", repo, repo, f"--memory={bad}")
    for bad in "0", "1", "1023K":
        ask(USAGE, [bad, "--memory is at least 1M"], "commit", repo, repo, f"--memory={bad}")
        ask(USAGE, [bad, "--memory is at least 1M"], "fingerprint", mountpoint, f"--memory={bad}")
    for bad in "0", "257", "x":
        ask(USAGE, [bad, "--jobs takes a whole number from 1 to 256"], "commit", repo, repo, "-j", bad)
    for words in ["cache"], ["cache", "prune"], ["log"], ["mount", repo]:
        ask(USAGE, f"(see 'dsfs {words[0]} --help')", *words, may_json=False)
    for bad in "0", "x", "-3s", "5 parsecs":
        ask(USAGE, [bad, "--timeout"], "log", repo, f"--timeout={bad}")
    for option, name in (("cache_size=lots", "cache_size"), ("cache_size=0", "cache_size"),
                         ("cache_size", "cache_size"), ("uid=root", "uid"), ("umask=8", "umask"),
                         ("umask=07777", "umask"), ("timeout=never", "timeout"), ("verison=3", "verison"),
                         ("allow_other=1", "allow_other"), ("version=", "version"),
                         ("ro,cache_dri=/x,nofail", "cache_dri")):
        ask(USAGE, name, "mount", repo, mountpoint, "-o", option)
    ask(USAGE, repo, "mount", f"{repo}@1", mountpoint, "-o", "version=2")
    ask(USAGE, "arguments are missing", "mount", repo)
    for bad in "a/b", "12345", "deadbeef", ".dot", "-dash", "2026-01-01", "a:b", "", "x" * 300, "a,b":
        ask(USAGE, "tag" if not bad else bad[:20], "tag", "--", repo, bad, may_json=False)
    # Such a URL may hold a password, so that it is not repeated.
    for url, name in ((f"s3://AKIDEXAMPLE:{SECRET}@bucket/x", "keys in a URL"), ("s3://", "bucket"),
                      (f"https://user:{SECRET}@host/x", "s3://bucket/prefix"), ("s3:///x", "bucket"),
                      ("s3://UPPER/x", "bucket"), ("s3://bucket/a//b", "prefix")):
        ask(USAGE, name, "log", url)
        ask(USAGE, name, "mount", url, mountpoint)
    ask(USAGE, "@", "commit", mountpoint, f"{repo}@1")
    ask(USAGE, "version", "init", f"{repo}-new@1")
    ask(USAGE, "--branch", "log", f"{repo}@1", "--branch", "main")


def not_found(ask, box, repo, mountpoint):
    nowhere = box.path("nowhere")
    for command in (["log"], ["refs"], ["ls"], ["verify"], ["fingerprint"]):
        ask(NOT_FOUND, nowhere, *command, nowhere)
    ask(NOT_FOUND, nowhere, "mount", nowhere, mountpoint)
    ask(NOT_FOUND, nowhere, "commit", mountpoint, nowhere)
    plain = box.new_dir("plain")
    ask(NOT_FOUND, plain, "log", plain)
    ask(NOT_FOUND, plain, "mount", plain, mountpoint)
    for version in "99", "nosuch", "main:99", "0123456789abcdef", "1999-12-31", "other:1":
        line = ask(NOT_FOUND, version, "ls", f"{repo}@{version}")
        ask(NOT_FOUND, version, "mount", f"{repo}@{version}", mountpoint)
        ask(NOT_FOUND, version, "mount", repo, mountpoint, "-o", f"version={version}")
    line = ask(NOT_FOUND, "nosuch", "log", f"{repo}@nosuch")
    check("v1" in line and "main" in line, f"it does not list what there is: {line}")
    ask(NOT_FOUND, "no/path", "ls", repo, "no/path")
    ask(NOT_FOUND, "no/path", "cat", repo, "no/path")
    ask(NOT_FOUND, "file/below", "cat", repo, "file/below")
    ask(NOT_FOUND, "dir", "cat", repo, "dir")
    empty = box.path("empty")
    box.dsfs("init", empty)
    ask(NOT_FOUND, "no version yet", "mount", empty, mountpoint)
    ask(NOT_FOUND, nowhere, "mount", repo, nowhere)
    ask(NOT_FOUND, nowhere, "mount", repo, f"{nowhere}/deeper")
    put(box.path("a-file"), b"x")
    ask(NOT_FOUND, box.path("a-file"), "mount", repo, box.path("a-file"))
    ask(NOT_FOUND, nowhere, "umount", nowhere)
    ask(NOT_FOUND, mountpoint, "umount", mountpoint)
    ask(NOT_FOUND, nowhere, "commit", nowhere, repo)
    ask(NOT_FOUND, box.path("a-file"), "commit", box.path("a-file"), repo)
    ask(NOT_FOUND, nowhere, "diff", f"{repo}@1", nowhere)


def places(ask, box, repo, mountpoint):
    cache = box.new_dir("place")
    inside = os.path.join(cache, "mnt")
    os.mkdir(inside)
    ask(USAGE, [inside, cache], "mount", repo, inside, "-o", f"cache_dir={cache}")
    ask(USAGE, mountpoint, "mount", repo, mountpoint, "-o", f"cache_dir={mountpoint}/deep/cache")
    ask(USAGE, mountpoint, "mount", repo, mountpoint, "-o", f"cache_dir={mountpoint}")
    full = box.new_dir("full")
    put(f"{full}/there", b"")
    ask(USAGE, full, "export", repo, full)
    equal(os.listdir(full), ["there"], "what is in the directory that was refused")
    ask(CONFLICT, "v1", "tag", repo, "v1")
    ask(CONFLICT, "v1", "commit", mountpoint, repo, "--allow-empty", "--tag", "v1", may_json=False)
    ask(CONFLICT, ["main", "choose another name"], "tag", repo, "main")
    ask(CONFLICT, ["main", "choose another name"], "commit", mountpoint, repo, "--allow-empty", "--tag", "main",
        may_json=False)
    ask(CONFLICT, ["v1", "choose another name"], "commit", mountpoint, repo, "--branch", "v1", may_json=False)
    ask(CONFLICT, "1", "commit", mountpoint, repo, "--parent", "1")
    ask(CONFLICT, repo, "init", repo)
    with box.mount(repo) as mount:
        ask(BUSY, mount.path, "mount", repo, mount.path)
        ask(SOURCE, mount.path, "commit", mount.path, repo)
        with open(f"{mount.path}/file", "rb"):
            result = box.dsfs("umount", mount.path, status=BUSY)
            check(str(os.getpid()) in result.errors, f"the holder is not named: {result.errors}")
        for name, action in (("create", lambda: open(f"{mount.path}/new", "wb")),
                             ("write", lambda: open(f"{mount.path}/file", "r+b")),
                             ("mkdir", lambda: os.mkdir(f"{mount.path}/new")),
                             ("unlink", lambda: os.unlink(f"{mount.path}/file")),
                             ("rename", lambda: os.rename(f"{mount.path}/file", f"{mount.path}/x")),
                             ("chmod", lambda: os.chmod(f"{mount.path}/file", 0o600)),
                             ("symlink", lambda: os.symlink("a", f"{mount.path}/new")),
                             ("utime", lambda: os.utime(f"{mount.path}/file"))):
            try:
                action()
                raise lib.Failed(f"{name} on a mount did not fail")
            except OSError as error:
                equal(error.errno, errno.EROFS, f"errno of {name}")


def source(ask, box, repo):
    odd = box.new_dir("odd")
    put(f"{odd}/file", b"x")
    os.mkfifo(f"{odd}/fifo")
    os.mknod(f"{odd}/null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(f"{odd}/sock")
    sock.close()
    result = box.dsfs("commit", odd, repo, status=SOURCE)
    for name in "fifo", "null", "sock":
        check(name in result.errors, f"{name} is not listed: {result.errors}")
    check(result.errors.count("\n") <= 4, f"too many words: {result.errors}")
    equal(box.dsfs("commit", odd, repo, "--json", status=SOURCE).json["error"]["exit_status"], SOURCE,
          "exit status in JSON")
    done = box.commit(odd, box.path("skipped"), "--init", "--skip-special")
    equal(done["totals"]["rejected"], 3, "special files recorded")
    equal(sorted(os.path.basename(row["path"]) for row in done["rejected"]),
          ["fifo", "null", "sock"], "special files told")
    equal([row["name"] for row in box.json("ls", box.path("skipped"))], ["file"], "what is kept")
    around = box.new_dir("around")
    put(f"{around}/file", b"x")
    box.dsfs("init", f"{around}/repo")
    ask(SOURCE, "repo", "commit", around, f"{around}/repo")
    ask(SOURCE, f"{around}/repo", "commit", f"{around}/repo", f"{around}/repo")
    if os.geteuid() != 0:
        os.chmod(f"{odd}/file", 0)
        ask(SOURCE, "file", "commit", odd, repo, "--skip-special", may_json=False)


def refused(mount, name, why):
    """A file that cannot be read, of which the log says why."""
    try:
        with open(f"{mount.path}/{name}", "rb") as file:
            raise lib.Failed(f"{name} was read: {len(file.read())} bytes")
    except OSError as error:
        equal(error.errno, errno.EIO, f"reading {name}")
    check(why in mount.log_text(), f"the log: {mount.log_text()}")


def too_new(ask, box, tree, mountpoint):
    repo = box.path("newer")
    box.commit(tree, repo, "--init")
    entry_path = f"{repo}/refs/branches/main/0000000001"
    entry, marker = unseal(entry_path), unseal(f"{repo}/dsfs.json")
    newer = {"format": 2, "needs": "9.9.9"}

    put(entry_path, seal({**entry, **newer}))
    for command in (["log", repo], ["ls", repo], ["cat", repo, "file"], ["mount", repo, mountpoint],
                    ["export", repo, box.path("never")]):
        ask(TOO_NEW, "9.9.9", *command)
    with open(f"{repo}/versions/{entry['version']}", "rb") as file:
        record = json.dumps({**json.loads(file.read()), **newer}).encode()
    name = hashlib.sha256(record).hexdigest()
    put(f"{repo}/versions/{name}", record)
    put(entry_path, seal({**entry, "version": name}))
    for command in (["ls", repo], ["cat", repo, "file"], ["mount", repo, mountpoint]):
        ask(TOO_NEW, "9.9.9", *command)
    put(entry_path, seal(entry))
    box.dsfs("ls", repo)
    put(f"{repo}/dsfs.json", seal({**marker, **newer}))
    for command in (["log", repo], ["refs", repo], ["ls", repo], ["commit", tree, repo], ["verify", repo],
                    ["tag", repo, "name"], ["mount", repo, mountpoint], ["diff", repo, repo]):
        ask(TOO_NEW, "9.9.9", *command)
    golden = os.path.join(lib.TREE, "tests", "golden")
    ask(TOO_NEW, "dsfs", "ls", f"{golden}/newer")
    imported = f"{golden}/imported"
    for name in "small", "large", "dir/unread":
        ask(TOO_NEW, [os.path.basename(name), "imported object"], "cat", imported, name)
    ask(TOO_NEW, "imported object", "export", imported, box.path("never-imported"), may_json=False)
    ask(FAILURE, "no fingerprint", "fingerprint", imported)
    equal(box.dsfs("cat", imported, "own").out, b"in a pack\n", "a file beside imported ones")
    with box.mount(imported) as mount:
        with open(f"{mount.path}/own", "rb") as file:
            equal(file.read(), b"in a pack\n", "a file beside imported ones, through a mount")
        refused(mount, "small", "imported object")


def damaged(ask, box, tree, mountpoint):
    repo = box.path("damaged")
    done = box.commit(tree, repo, "--init")
    for key in [k for k in stored.keys(repo) if k.startswith("packs/")]:
        os.rename(f"{repo}/{key}", box.path("pack-aside"))
        ask(DAMAGED, os.path.basename(key), "export", repo, box.path(f"gone-{key[-8:]}"),
            may_json=False, env={"DSFS_CACHE_DIR": box.new_dir("cold")})
        os.rename(box.path("pack-aside"), f"{repo}/{key}")
    os.rename(f"{repo}/versions/{done['version']}", box.path("record-aside"))
    for command in (["ls", repo], ["mount", repo, mountpoint]):
        result = box.dsfs(*command, status=None)
        check(result.status in (NOT_FOUND, DAMAGED), f"{result}: {result.errors}")
        check(done["version"][:16] in result.errors, f"{result}: not named: {result.errors}")


def lying(box):
    """A row that says more pieces than its bytes can have is refused, and costs the cache nothing."""
    source, repo, cache = box.new_dir("src"), box.path("lying"), box.new_dir("cache")
    put(f"{source}/large", os.urandom(9 * MIB))
    put(f"{source}/small", b"small")
    box.commit(source, repo, "--init")
    forged.forge(box, repo, "UPDATE entry SET extents = size WHERE name = CAST('large' AS BLOB)")
    with box.mount(repo, f"cache_dir={cache}") as mount:
        with open(f"{mount.path}/small", "rb") as file:
            equal(file.read(), b"small", "a file beside one that lies")
        refused(mount, "large", "extents")
        check(lib.allocated(cache) < 4 * MIB, f"{lib.allocated(cache)} bytes in the cache")
    found = box.dsfs("verify", repo, status=DAMAGED)
    check("extents" in found.text + found.errors, f"{found.text} {found.errors}")


def output(ask, box, repo):
    for words in (["log", repo], ["refs", repo], ["ls", repo], ["cat", repo, "file"], ["verify", repo],
                  ["fingerprint", repo], ["doctor"], ["help"], ["log", "--help"], ["--version"],
                  ["ls", "--json", repo], ["diff", f"{repo}@1", f"{repo}@2"], ["mount", "--json"],
                  ["help", "--man"]):
        with open("/dev/full", "wb") as full:
            result = box.dsfs(*words, stdout=full, status=None)
        check(result.status not in (0, None) and result.status < 128, f"{result} with /dev/full")
        equal(result.errors.count("\n"), 1, f"{result}: lines on stderr: {result.errors}")
        ask.asked += 2
        argv = [lib.DSFS, *words]
        closed = box.dsfs("-c", 'exec "$@" >&-', "sh", *argv, program="/bin/sh", status=None)
        check(closed.status not in (0, None) and closed.status < 128,
              f"{closed}: standard output is closed, and it says nothing")
    # Closed input and errors are nobody's fault.
    box.dsfs("-c", 'exec "$@" <&- 2>&-', "sh", lib.DSFS, "log", repo, program="/bin/sh")
    quiet = box.dsfs("-c", '"$@" 2>&-', "sh", lib.DSFS, "log", repo + "-not", program="/bin/sh",
                     status=NOT_FOUND)
    check(not quiet.out, "an error went to standard output")


def s3(ask, box, tree, mountpoint):
    store = box.store("s3")
    repo, env = store.url("good"), store.env
    box.commit(tree, repo, "--init", env=env)
    missing = "s3://no-such-bucket-here/x"
    for command in (["log", missing], ["init", missing], ["commit", tree, missing],
                    ["mount", missing, mountpoint]):
        ask(NOT_FOUND, "no-such-bucket-here", *command, env=env)
    other = store.url("nothing-there")
    for command in (["log", other], ["mount", other, mountpoint], ["verify", other]):
        ask(NOT_FOUND, other, *command, env=env)
    ask(NOT_FOUND, "99", "ls", f"{repo}@99", env=env)
    for bad in ({"AWS_SECRET_ACCESS_KEY": SECRET}, {"AWS_ACCESS_KEY_ID": "AKIDUNKNOWN"},
                {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}):
        for command in (["log", repo], ["commit", tree, repo], ["mount", repo, mountpoint]):
            ask(ACCESS, "", *command, env={**env, **bad})
    unreachable(ask, box, tree, repo, mountpoint, env)
    ask(USAGE, "192.0.2.1", "log", repo, env={**env, "AWS_ENDPOINT_URL": "http://192.0.2.1:9"})
    ask(USAGE, "192.0.2.1", "mount", repo, mountpoint, "-o", "endpoint=http://192.0.2.1:9", env=env)


def unreachable(ask, box, tree, repo, mountpoint, env):
    """Nobody listens: after 2 s it is said once what is waited for, and --timeout ends it."""
    # Kept, so that nobody else listens there meanwhile.
    port = socket.socket()
    box.at_end(port.close)
    port.bind(("127.0.0.1", 0))
    endpoint = f"http://127.0.0.1:{port.getsockname()[1]}"
    env = {**env, "AWS_ENDPOINT_URL": endpoint}
    waiting = re.compile(f"dsfs: cannot reach {endpoint}: Connection refused; trying for [678] s more")
    commands = (["init", repo], ["commit", tree, repo], ["commit", "--init", tree, repo], ["log", repo],
                ["ls", repo], ["refs", repo], ["cat", repo, "file"], ["tag", repo, "v2"], ["verify", repo],
                ["export", repo, box.path("never")], ["diff", f"{repo}@1", f"{repo}@2"],
                ["fingerprint", repo], ["doctor", repo], ["mount", repo, mountpoint],
                ["mount", "-f", repo, box.new_dir("mnt")])

    def start(timeout):
        processes = []
        for command in commands:
            words = ["-o", f"timeout={timeout}s"] if command[0] == "mount" else ["--timeout", f"{timeout}s"]
            processes.append(box.start([*command, *words], env=env, stdout=subprocess.PIPE,
                                       stderr=subprocess.PIPE))
        return processes

    # The pause that is told ends within 2 + 5 s.
    for timeout, lines_n in (1, 1), (8, 2):
        started = time.monotonic()
        for command, process in zip(commands, start(timeout)):
            text, errors = process.communicate(timeout=lib.TIMEOUT_S)
            lines = (errors + text if command[0] == "doctor" else errors).decode().splitlines()
            ask.asked += 1
            if command[0] == "doctor":
                lines = [line for line in lines if "127.0.0.1" in line]
            else:
                equal(process.returncode, STORE, f"{command}: status")
            equal(len(lines), lines_n, f"{command}: lines on stderr: {lines}")
            check("127.0.0.1" in lines[-1] and "cannot be reached" in lines[-1], f"{command}: {lines}")
            if lines_n == 2:
                check(waiting.fullmatch(lines[0]), f"{command}: {lines}")
        took = time.monotonic() - started
        check(took < timeout + 5, f"--timeout {timeout}s took {took:.1f} s")


def run(box, args):
    ask = Asker(box)
    tree = box.new_dir("tree")
    put(f"{tree}/file", b"one\n")
    os.mkdir(f"{tree}/dir")
    repo, mountpoint = box.path("repo"), box.new_dir("mnt")
    box.commit(tree, repo, "--init", "--tag", "v1")
    put(f"{tree}/file", b"two\n")
    box.commit(tree, repo)
    for name, part in (("usage", lambda: usage(ask, repo, mountpoint)),
                       ("not found", lambda: not_found(ask, box, repo, mountpoint)),
                       ("places", lambda: places(ask, box, repo, mountpoint)),
                       ("source", lambda: source(ask, box, repo)),
                       ("too new", lambda: too_new(ask, box, tree, mountpoint)),
                       ("damaged", lambda: damaged(ask, box, tree, mountpoint)),
                       ("lying", lambda: lying(box)),
                       ("output", lambda: output(ask, box, repo)),
                       ("s3", lambda: s3(ask, box, tree, mountpoint))):
        before = ask.asked
        part()
        say(f"{name}: {ask.asked - before} bad inputs")
    equal(os.listdir(mountpoint), [], "what is in the mount point")
    check(box.json("verify", repo)["clean"], "the repository is damaged")


if __name__ == "__main__":
    lib.main(run)
