#!/usr/bin/env python3
"""What `meson install` puts where, and the completion as bash runs it on a terminal."""
import os
import pty
import re
import select
import shutil
import subprocess
import time

import lib
from lib import Skip, check, equal, say


def install(box):
    """The tree below a DESTDIR."""
    build = os.path.dirname(os.path.dirname(os.path.dirname(lib.DSFS)))
    if not shutil.which("meson") or not os.path.exists(f"{build}/build.ninja"):
        raise Skip(f"{build} is no build directory of meson")
    dest = box.path("dest")
    done = subprocess.run(["meson", "install", "-C", build, "--no-rebuild", "--destdir", dest], check=False,
                          capture_output=True, text=True, timeout=lib.TIMEOUT_S)
    equal(done.returncode, 0, f"status of meson install: {done.stderr}")
    check("not found" not in done.stdout, done.stdout)
    found = {}
    for where, _, names in os.walk(dest):
        for name in names:
            found.setdefault(name, []).append(os.path.join(where, name))
    return dest, found


class Shell:
    """An interactive bash in a directory, with the completion; `dsfs` prints its arguments."""

    def __init__(self, box, completion, cwd):
        master, slave = pty.openpty()
        self.fd = master
        env = {**box.env, "TERM": "dumb", "PS1": "", "INPUTRC": "/dev/null", "HISTFILE": "/dev/null"}
        self.process = subprocess.Popen(["bash", "--norc", "--noprofile", "-i"], stdin=slave, stdout=slave,
                                        stderr=slave, cwd=cwd, env=env, start_new_session=True)
        box.processes.append(self.process)
        os.close(slave)
        self.say("bind 'set bell-style none'; bind 'set show-all-if-ambiguous off'\n")
        self.say(f"source {completion}\n")
        self.say("dsfs() { printf 'got:'; printf '<%s>' \"$@\"; echo; }\n")

    def say(self, text):
        os.write(self.fd, text.encode())

    def asks(self, typed):
        """What dsfs gets after a line was typed, tabs and all."""
        self.say(typed + "\n")
        seen = ""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if select.select([self.fd], [], [], 1)[0]:
                seen += os.read(self.fd, 65536).decode("utf-8", "replace")
            found = re.findall(r"got:(<.*>)\r?\n", seen)
            if found:
                return re.findall(r"<(.*?)>", found[-1])
        raise lib.Failed(f"{typed!r}: no answer: {seen[-500:]!r}")

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.fd)


def completion(box, path):
    cwd = box.new_dir("here")
    for name in "re po", "many words here", "cache dir", "$x":
        os.mkdir(f"{cwd}/{name}")
    shell = Shell(box, path, cwd)
    for typed, wanted in [
            ("dsfs fin\t", ["fingerprint"]),
            ("dsfs help fin\t", ["help", "fingerprint"]),
            ("dsfs commit --allow-\t", ["commit", "--allow-empty"]),
            ("dsfs log re\t", ["log", "re po/"]),
            ("dsfs commit -m x man\t re\t", ["commit", "-m", "x", "many words here/", "re po/"]),
            ('dsfs log "many w\t', ["log", "many words here/"]),
            ("dsfs log ./re\t", ["log", "./re po/"]),
            ("dsfs log '$\t", ["log", "$x/"]),
            ("dsfs mount -o allow\t", ["mount", "-o", "allow_other"]),
            ("dsfs mount -o vers\t", ["mount", "-o", "version="]),
            ("dsfs mount -o version=1,cache_d\t", ["mount", "-o", "version=1,cache_dir="]),
            ("dsfs mount -o allow_other,vers\t3", ["mount", "-o", "allow_other,version=3"]),
            ("dsfs mount -o cache_dir=cac\t", ["mount", "-o", "cache_dir=cache dir/"]),
            ("dsfs mount re\t", ["mount", "re po/"])]:
        equal(shell.asks(typed), wanted, f"dsfs' arguments after {typed!r}")
    shell.close()


def run(box, args):
    dest, found = install(box)
    commands = re.findall(r"^  (\w+) {2,}", box.dsfs("help").text.split("Commands:")[1], re.M)
    for name in ["dsfs", "dsfs.1", "dsfs.bash", "mount.dsfs", "mount.dsfs.8", "mount.fuse.dsfs",
                 *(f"dsfs-{command}.1" for command in commands)]:
        equal(len(found.get(name, [])), 1, f"times that {name} is installed")
    for name in "mount.dsfs", "mount.fuse.dsfs":
        equal(os.path.dirname(found[name][0]), f"{dest}/sbin", f"where {name} lies")
        equal(os.readlink(found[name][0]), found["dsfs"][0].removeprefix(dest), f"what {name} is")
    check(found["dsfs.bash"][0].endswith("/share/bash-completion/completions/dsfs.bash"), found["dsfs.bash"])
    with open(found["dsfs.bash"][0], encoding="utf-8") as file:
        equal(file.read(), box.dsfs("help", "--completion").text, "the completion that is installed")
    equal(box.dsfs("--version", program=found["dsfs"][0]).text, box.dsfs("--version").text, "its version")
    completion(box, found["dsfs.bash"][0])
    say(f"{sum(map(len, found.values()))} files installed")


if __name__ == "__main__":
    lib.main(run, fuse=False)
