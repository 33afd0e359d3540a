#!/usr/bin/env python3
"""That a message blames what is to blame, and that no text of others reaches the terminal raw."""
import fcntl
import glob
import os
import pwd
import re
import shutil
import stat
import struct
import subprocess

import lib
from lib import check, equal, say

FAILURE, USAGE, NOT_FOUND, ACCESS, SOURCE = 1, 2, 3, 4, 8
F_OFD_SETLK = 37


def told(box, status, *args, holds=(), lacks=(), **kwargs):
    result = box.dsfs(*args, status=status, **kwargs)
    check(result.errors.count("\n") == 1, f"{result}: not one line: {result.errors!r}")
    for text in holds:
        check(text in result.errors, f"{result}: {text!r} is not in {result.errors!r}")
    for text in lacks:
        check(text not in result.errors, f"{result}: {text!r} is in {result.errors!r}")
    return result.errors


def scratch(box, source, repo):
    """A TMPDIR that is of no use."""
    nowhere = box.path("no", "tmp")
    for words in ["verify", repo], ["commit", "--rehash", source, repo, "--state-dir", ""]:
        told(box, FAILURE, *words, env={"TMPDIR": nowhere}, lacks=[repo],
             holds=[nowhere, "temporary files", "No such file or directory"])
        check(not os.path.lexists(os.path.dirname(nowhere)), "a TMPDIR that was not there was made")
    full = box.new_dir("full")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", full], check=False,
                      capture_output=True).returncode:
        say("no tmpfs can be mounted here")
        return
    try:
        told(box, FAILURE, "verify", repo, env={"TMPDIR": full}, lacks=[repo],
             holds=[full, "temporary files", "No space left on device"])
    finally:
        subprocess.run(["umount", full], check=True)


def no_cache(box, repo):
    """As a user without a home that can be used: what cannot be done is not blamed on the cache."""
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        nobody = None
    if os.geteuid() != 0 or not nobody:
        say("there is no user nobody to become")
        return
    program, place = box.path("dsfs"), box.new_dir("closed")
    shutil.copy(lib.DSFS, program)
    os.chmod(box.dir, 0o755)
    os.chmod(place, 0o700)
    env = {"DSFS_CACHE_DIR": None, "HOME": "/nonexistent", **box.no_leak_check(), "ASAN_OPTIONS": "detect_leaks=0"}
    told(box, ACCESS, "export", repo, f"{place}/x", program=program, env=env, user="nobody",
         holds=[place, "Permission denied"], lacks=["cache"])


def profiles(box):
    """A profile that was asked for and is not there."""
    keys = {"AWS_ACCESS_KEY_ID": "A", "AWS_SECRET_ACCESS_KEY": "B"}
    for env in keys, {}:
        told(box, ACCESS, "log", "s3://bucket/x", "--profile", "nope", env=env,
             holds=["nope", "there is no such profile in ", f"{box.home}/.aws/config"],
             lacks=["AWS_ACCESS_KEY_ID", "refused"])
    told(box, ACCESS, "log", "s3://bucket/x", holds=["AWS_ACCESS_KEY_ID", "no keys for the store"], lacks=["refused"])


def raw_text(box, source, repo):
    """Nothing that moves a terminal or turns its text comes out of names, arguments or variables."""
    bad = b"\x1b[2J\xe2\x80\xaeX"
    for words in [bad], ["help", bad], ["help", "--man", bad], ["log", b"--" + bad], ["log", b"-\x1b"], \
            ["log", repo, "--timeout", bad], ["log", repo, "--profile", bad, "--endpoint", bad, "extra" ], \
            ["commit", source, repo, "--branch", bad]:
        result = box.dsfs(*words, status=USAGE)
        check(b"\x1b" not in result.err + result.out and b"\xe2\x80\xae" not in result.err, f"{result.err}")
        equal(result.errors.count("\n"), 1, f"lines of {result.errors!r}")
    with open(os.fsencode(source) + b"/" + bad, "wb"):
        pass
    box.commit(source, repo)
    for words in ["ls", repo], ["diff", f"{repo}@1", f"{repo}@2"]:
        out = box.dsfs(*words).out
        check(b"\x1b" not in out and b"\xe2\x80\xae" not in out and b"\\x1b[2J" in out, f"{words}: {out}")


def usage(box, source, repo):
    for words in ["log", "--frobnicate", "--json"], ["log", "-Z", repo, "--json"], \
            ["log", repo, "more", "and", "--json"]:
        result = box.dsfs(*words, status=USAGE)
        equal(result.json["error"]["exit_status"], USAGE, f"JSON of {result}")
    equal(box.dsfs("log", "--frobnicate", "--", "--json", status=USAGE).out, b"", "an argument is no option")
    for words in ["log", repo], ["commit", source, repo]:
        told(box, USAGE, *words, env={"DSFS_CACHE_DIR": "some/cache"}, holds=["DSFS_CACHE_DIR", "some/cache"])
    equal(box.dsfs("cat", repo, *["file"] * 40).out, b"x" * 40, "cat of 40 files")
    box.dsfs("umount", *[box.path(str(i)) for i in range(40)], status=3)


def not_mounted(box):
    """A directory that is there, and no mount."""
    place = box.new_dir("here")
    told(box, NOT_FOUND, "umount", place, holds=[place, "no dsfs is mounted there"], lacks=["No such file"])
    told(box, NOT_FOUND, "umount", f"{place}/no/where", holds=["No such file", "the mount point does not exist"])


def counts(box):
    """One is no plural, -q is quiet, and a commit says what it counts."""
    source, repo, cache = box.new_dir("one"), box.path("one-repo"), box.path("one-cache")
    with open(f"{source}/file", "wb") as file:
        file.write(b"x")
    os.mkdir(f"{source}/dir")
    texts = [box.dsfs("commit", source, repo, "--init").text, box.dsfs("log", repo).text,
             box.dsfs("verify", "--read-data", repo).text, box.dsfs("export", repo, box.path("one-copy")).text,
             box.dsfs("warm", repo, "-o", f"cache_dir={cache}").text]
    check("\n1 file, 1 B; of files and links 1 added, 0 changed, 0 removed; " in texts[0], texts[0])
    os.mkfifo(f"{source}/fifo")
    texts.append(box.dsfs("commit", source, repo, status=SOURCE).errors)
    check("1 special file; --skip-special leaves it out" in texts[-1], texts[-1])
    cached = "--cache-dir", cache
    with box.mount(repo, f"cache_dir={cache}", "warm") as mount:
        box.wait(lambda: "warmed " in mount.log_text(), "the end of the warming")
        texts += [mount.log_text()] + [box.dsfs("cache", what, *cached).text for what in ("status", "verify")]
    # As a mount that reads one image has it.
    with open(glob.glob(f"{glob.escape(cache)}/images/**/map", recursive=True)[0], "rb") as file:
        fcntl.fcntl(file, F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 0, 1, 0))
        texts.append(box.dsfs("cache", "prune", "--all", *cached).text)
        check(texts[-1].endswith("\n1 image stays, since it is read or mapped\n"), texts[-1])
        equal(box.dsfs("cache", "prune", "-q", "--all", *cached).text, "", "cache prune -q")
    for text in texts:
        check(not re.search(r"\b1 (files|versions|packs|chunks|findings|images|requests|bytes)\b", text), f"one of many: {text}")
    check(sum(bool(re.search(r"\b1 (file|version|pack|chunk|finding|image|request)\b", text)) for text in texts) > 4, f"{texts}")


def run(box, args):
    source, repo = box.new_dir("source"), box.path("repo")
    with open(f"{source}/file", "wb") as file:
        file.write(b"x")
    box.commit(source, repo, "--init")
    scratch(box, source, repo)
    no_cache(box, repo)
    profiles(box)
    raw_text(box, source, repo)
    usage(box, source, repo)
    not_mounted(box)
    counts(box)


if __name__ == "__main__":
    lib.main(run, fuse=False)
