#!/usr/bin/env python3
"""mount(8) with /sbin/mount.dsfs, fstab, `umount` of busy and dead mounts, the list of mounts.

Needs root. /sbin/mount.dsfs is made as a link to the tested binary, and removed afterwards."""
import errno
import os
import signal
import subprocess
import time

import lib
import tree
from lib import Failed, check, equal, say

HELPER = "/sbin/mount.dsfs"
# What mount(8) asks for when a mount is to be changed: the type in mountinfo is fuse.dsfs.
HELPERS = HELPER, "/sbin/mount.fuse.dsfs"
FSTAB_OPTIONS = "rw,exec,user,nofail,_netdev,noauto,x-systemd.automount,X-mine=1,comment=words,relatime"


def install_helper(box, helper):
    deadline = time.monotonic() + 120
    while True:
        try:
            os.symlink(lib.DSFS, helper)
            break
        except FileExistsError:
            if not os.path.exists(helper):
                os.unlink(helper)  # a link into a build directory that is gone
            elif os.path.realpath(helper) == os.path.realpath(lib.DSFS):
                return
            elif time.monotonic() > deadline:
                raise Failed(f"{helper} is there, and is not the binary to be tested") from None
            else:
                time.sleep(1)
    box.at_end(lambda: os.unlink(helper))


class Mounter:
    """Runs mount(8) and its kin with nearly nothing in the environment."""

    def __init__(self, box):
        self.box = box
        self.env = {k: v for k, v in box.env.items() if k.endswith("SAN_OPTIONS")}
        self.env["DSFS_TEST_BOX"] = box.dir

    def __call__(self, *argv, status=0):
        done = subprocess.run(argv, env=self.env, capture_output=True, text=True, timeout=120,
                              check=False, stdin=subprocess.DEVNULL)
        check(status is None or done.returncode == status,
              f"{' '.join(argv)}: status {done.returncode}, not {status}: {done.stderr}")
        return done


def mounts_at(path):
    return lib.mountpoints().count(path)


def info_of(path):
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        rows = [line.split() for line in file if lib.unescape(line.split(" ")[4]) == path]
    return rows[-1]


def pid_of(box, path):
    row = box.mount_row(path)
    check(row and row["pid"] and row["alive"], f"'dsfs mount' says of {path}: {row}")
    return row["pid"]


def mounted_well(box, path, source, wanted):
    row = info_of(path)
    dash = row.index("-")
    equal(row[dash + 1], "fuse.dsfs", "type of the mount")
    equal(lib.unescape(row[dash + 2]), source, "source name as typed")
    for option in "ro", "nosuid", "nodev", "noatime":
        check(option in row[5].split(","), f"{option} is not in {row[5]}")
    check("ro" in row[dash + 3].split(","), f"the superblock is not ro: {row[dash + 3]}")
    check("default_permissions" in row[dash + 3], f"no default_permissions: {row[dash + 3]}")
    lines = tree.compare(wanted, tree.snapshot(path))
    check(not lines, "\n".join(lines))


def with_mount(box, mount, repo, versions):
    place, options = box.new_dir("mnt"), f"cache_dir={box.cache}"
    mount("/bin/mount", "-t", "dsfs", repo, place, "-o", f"version=1,{options}")
    mounted_well(box, place, repo, versions[1])
    equal(mounts_at(place), 1, "mounts")
    pid = pid_of(box, place)
    mount("/bin/umount", place)
    box.wait(lambda: not lib.is_alive(pid), "the daemon's end after umount(8)")

    mount("/bin/mount", "-t", "dsfs", f"{repo}@v2", place, "-o", f"{FSTAB_OPTIONS},{options}")
    mounted_well(box, place, f"{repo}@v2", versions[2])
    box.dsfs("umount", place)

    for flags in (["-f"], ["-fv"], ["-f", "-n"]):
        mount("/bin/mount", *flags, "-t", "dsfs", repo, place, "-o", options)
        equal(mounts_at(place), 0, f"mounts after {flags}")
    mount(HELPER, repo, place, "-f", "-o", "version=77")
    mount(HELPER, repo, place, "-s", "-n", "-v", "-N", "/proc/self/ns/mnt", "-t", "dsfs", "-o", options,
          "-o", "version=1")
    mounted_well(box, place, repo, versions[1])
    mount(HELPER, repo, place, "-o", options, status=32)
    box.dsfs("umount", place)

    for words, status in ((["-o", "frobnicate"], 1), (["-o", "version=99"], 32), (["-Z"], 1),
                          (["-o", "version=1,cache_size=lots"], 1), (["more"], 1)):
        done = mount(HELPER, repo, place, *words, status=status)
        equal(done.stderr.count("\n"), 1, f"lines of {words}: {done.stderr}")
    for flag in "--help", "-h":
        text = mount(HELPER, flag).stdout
        check(text.startswith("usage: mount.dsfs REPO[@VERSION] MOUNTPOINT") and "-o OPTIONS" in text, f"{flag}: {text}")
    for flag in "--version", "-V":
        equal(mount(HELPER, flag).stdout.split()[0], "mount.dsfs", flag)
        equal(mount(HELPER, flag).stdout.split()[1], box.dsfs("--version").text.split()[1], flag)
    for option in "cache_dir=rel", "log=rel.log":
        done = mount(HELPER, repo, place, "-o", f"version=1,{option}", status=1)
        equal(done.stderr.count("\n"), 1, f"lines of {option}: {done.stderr}")
        check("rel" in done.stderr and "absolute path" in done.stderr, f"said: {done.stderr}")
    done = mount("/bin/mount", "-t", "dsfs", box.path("nowhere"), place, status=32)
    check("nowhere" in done.stderr, f"not named: {done.stderr}")
    equal(mounts_at(place), 0, "mounts after errors")
    say("mount -t dsfs: as it must be")


def quoted(box, mount, repo, versions):
    """A comma in double quotes, as mount(8) has it, is part of the value, and they are not."""
    place, home = box.new_dir("quoted"), box.new_dir("commas")
    for argv in ([lib.DSFS, "mount", repo, place], [HELPER, repo, place], ["/bin/mount", "-t", "dsfs", repo, place]):
        cache = f"{home}/c,{len(os.listdir(home))}"
        mount(*argv, "-o", f'version=1,cache_dir="{cache}"')
        mounted_well(box, place, repo, versions[1])
        check(os.listdir(cache), f"nothing is in {cache}")
        box.dsfs("umount", place)
    box.dsfs("mount", repo, place, "-o", "version=1,cache_dir=beside", cwd=home)
    mounted_well(box, place, repo, versions[1])
    check(os.listdir(f"{home}/beside"), "nothing is in a cache with a relative name")
    box.dsfs("umount", place)
    equal(len(os.listdir(home)), 4, f"caches: {os.listdir(home)}")
    say("quotes around a comma: guard it, and go")


def flags(box, mount, repo):
    """What is to forbid the running of programs, or following symlinks, does."""
    place, options = box.new_dir("flags"), f"cache_dir={box.cache}"
    fstab = box.path("fstab-flags")
    for words, wanted, unwanted in (("noexec", {"noexec"}, set()), ("user", {"noexec"}, set()),
                                    ("users", {"noexec"}, set()), ("user,exec", set(), {"noexec"}),
                                    ("owner", set(), {"noexec"}), ("noexec,exec", set(), {"noexec"}),
                                    ("nosymfollow", {"nosymfollow"}, {"noexec"})):
        with open(fstab, "w", encoding="ascii") as file:
            file.write(f"{repo}@program {place} dsfs {words},{options} 0 0\n")
        for argv in (["/bin/mount", "-T", fstab, place],
                     [lib.DSFS, "mount", f"{repo}@program", place, "-o", f"{words},{options}"]):
            mount(*argv)
            got = set(info_of(place)[5].split(","))
            check(wanted | {"ro", "nosuid", "nodev"} <= got and not unwanted & got, f"{words}: {got}")
            try:
                done = subprocess.run([f"{place}/program"], capture_output=True, check=False)
                equal(done.stdout, b"ran", "output of a program in the mount")
                check("noexec" not in got, f"{words}: a program runs")
            except PermissionError:
                check("noexec" in got, f"{words}: a program does not run")
            if "nosymfollow" in got:
                try:
                    os.stat(f"{place}/link")
                    raise Failed("a symlink is followed")
                except OSError as error:
                    equal(error.errno, 40, "errno of a symlink")
            box.dsfs("umount", place)
    say("noexec, user, users, nosymfollow: as they say")


def sloppy(box, mount, repo, versions):
    """-s: what is unknown is a warning."""
    place, options = box.new_dir("sloppy"), f"cache_dir={box.cache}"
    for argv in ([HELPER, repo, place, "-s", "-o", f"version=1,frobnicate,{options}"],
                 [HELPER, repo, place, "-o", f"version=1,frobnicate,{options}", "-s"],
                 ["/bin/mount", "-s", "-t", "dsfs", repo, place, "-o",
                  f"version=1,frobnicate,{options}"]):
        done = mount(*argv)
        check("frobnicate" in done.stderr, f"no warning: {done.stderr}")
        mounted_well(box, place, repo, versions[1])
        box.dsfs("umount", place)
    mount(HELPER, repo, place, "-s", "-o", "cache_size=lots", status=1)
    say("-s: what is unknown is told and passed over")


def remount(box, mount, repo, versions):
    """A mount cannot be changed: one line says so."""
    place, options = box.new_dir("remount"), f"cache_dir={box.cache}"
    box.dsfs("mount", repo, place, "-o", f"version=1,{options}")
    for argv in (["/bin/mount", "-o", "remount,ro", place], ["/bin/mount", "-o", "remount,rw", place],
                 ["/bin/mount", "-t", "dsfs", repo, place, "-o", f"remount,{options}"],
                 [HELPER, repo, place, "-o", "remount"]):
        done = mount(*argv, status=32)
        check(done.stderr.count("\n") == 1 and "unmount" in done.stderr and place in done.stderr,
              f"{argv}: {done.stderr}")
    mounted_well(box, place, repo, versions[1])
    box.dsfs("mount", repo, place, "-o", "remount", status=1)
    box.dsfs("umount", place)
    say("remount: refused in one line")


def with_fstab(box, mount, repo, versions):
    one, two = box.new_dir("fstab"), box.new_dir("with space")
    fstab, spaced = box.path("fstab"), two.replace(" ", "\\040")
    with open(fstab, "w", encoding="ascii") as file:
        file.write(f"{repo} {one} dsfs version=1,cache_dir={box.cache},_netdev,nofail 0 0\n"
                   f"{repo}@2 {spaced} dsfs cache_dir={box.cache},x-systemd.requires=network 0 0\n")
    for _ in range(3):
        mount("/bin/mount", "-a", "-T", fstab)
        equal((mounts_at(one), mounts_at(two)), (1, 1), "mounts after mount -a")
    mounted_well(box, one, repo, versions[1])
    mounted_well(box, two, f"{repo}@2", versions[2])
    pids = pid_of(box, one), pid_of(box, two)
    rows = {row["mountpoint"]: row for row in box.json("mount")}
    equal(rows[one]["source"], repo, "source in the list")
    check(len(rows[one]["version"]) == 64, f"version in the list: {rows[one]}")
    text = box.dsfs("mount").text
    check(f"{repo} on {one}" in text, f"not listed: {text}")
    mount("/bin/umount", "-T", fstab, "-a", "-t", "fuse.dsfs,dsfs", status=None)
    for place in one, two:
        if lib.is_mounted(place):
            box.dsfs("umount", place)
    for pid in pids:
        box.wait(lambda pid=pid: not lib.is_alive(pid), "the daemon's end")
    mount("/bin/mount", "-T", fstab, one)
    mounted_well(box, one, repo, versions[1])
    box.dsfs("umount", one)
    say("fstab: mount -a three times, each mounted once")


def dead_mounts(box, mount, repo, versions):
    place, options = box.new_dir("dead"), f"cache_dir={box.cache}"

    def kill():
        pid = pid_of(box, place)
        os.kill(pid, signal.SIGKILL)
        box.wait(lambda: not lib.is_alive(pid), "the killed daemon")
        try:
            os.listdir(place)
            raise Failed("a killed mount answers")
        except OSError as error:
            # Of io_uring: what was on its way into the ring is cancelled with it.
            check(error.errno in (errno.ENOTCONN, errno.ECONNABORTED, errno.ECANCELED),
                  f"errno of a dead mount: {error}")

    for again in range(2):
        box.dsfs("mount", repo, place, "-o", f"version=1,{options}")
        kill()
        row = box.mount_row(place)
        check(row and not row["alive"], f"a dead mount in the list: {row}")
        if again:
            mount("/bin/mount", "-t", "dsfs", f"{repo}@2", place, "-o", options)
            mounted_well(box, place, f"{repo}@2", versions[2])
        else:
            box.dsfs("mount", f"{repo}@2", place, "-o", options)
            mounted_well(box, place, f"{repo}@2", versions[2])
        equal(mounts_at(place), 1, "mounts one upon the other")
        box.dsfs("umount", place)
    box.dsfs("mount", repo, place, "-o", options)
    kill()
    box.dsfs("umount", place)
    equal(mounts_at(place), 0, "mounts after umount of a dead one")
    say("dead mounts: detached by mount, mount(8) and umount")


def busy(box, repo):
    place, options = box.new_dir("busy"), f"cache_dir={box.cache}"
    box.dsfs("mount", repo, place, "-o", options)
    pid = pid_of(box, place)
    holder = subprocess.Popen(["sleep", "1000"], cwd=place, preexec_fn=lib.die_with_parent)
    result = box.dsfs("umount", place, status=10)
    check(str(holder.pid) in result.errors and "sleep" in result.errors,
          f"the holder is not named: {result.errors}")
    check(lib.is_alive(pid) and lib.is_mounted(place), "a busy mount must stay")
    box.dsfs("umount", "-l", place)
    check(not lib.is_mounted(place), "umount -l left it")
    check(lib.is_alive(pid), "the daemon ended while its mount was in use")
    holder.kill()
    holder.wait()
    box.wait(lambda: not lib.is_alive(pid), "the daemon's end when the last user is gone")
    # SIGTERM ends a mount in order.
    box.dsfs("mount", repo, place, "-o", options)
    pid = pid_of(box, place)
    os.kill(pid, signal.SIGTERM)
    box.wait(lambda: not lib.is_alive(pid), "the daemon's end after SIGTERM")
    check(not lib.is_mounted(place), "mounted after SIGTERM")
    equal(os.listdir(place), [], "what is below")
    say("busy mounts: named, kept, detached with -l; SIGTERM unmounts")


def foreground(box, repo, versions):
    with box.mount(repo, "version=1", foreground=True) as mounted:
        mounted_well(box, mounted.path, repo, versions[1])
    mounted = box.mount(repo, "version=1", foreground=True)
    mounted.process.send_signal(signal.SIGINT)
    equal(mounted.process.wait(30), 0, "status after Ctrl-C")
    check(not lib.is_mounted(mounted.path), "mounted after Ctrl-C")
    box.mounts.remove(mounted)
    say("foreground: ends with umount and with Ctrl-C")


def run(box, args):
    if os.geteuid() != 0:
        raise lib.Skip("needs root")
    source, repo = box.new_dir("src"), box.path("repo")
    growing = tree.Tree(source, args.seed)
    growing.grow(100, large=False)
    versions = {1: tree.snapshot(source)}
    box.commit(source, repo, "--init")
    growing.change(10)
    versions[2] = tree.snapshot(source)
    box.commit(source, repo, "--tag", "v2")
    program = box.new_dir("program")
    with open(f"{program}/program", "w", encoding="ascii") as file:
        file.write("#!/bin/sh\nprintf ran\n")
    os.chmod(f"{program}/program", 0o755)
    os.symlink("program", f"{program}/link")
    box.commit(program, repo, "--tag", "program", "--branch", "programs")
    for helper in HELPERS:
        install_helper(box, helper)
    mount = Mounter(box)
    with_mount(box, mount, repo, versions)
    quoted(box, mount, repo, versions)
    flags(box, mount, repo)
    sloppy(box, mount, repo, versions)
    remount(box, mount, repo, versions)
    with_fstab(box, mount, repo, versions)
    dead_mounts(box, mount, repo, versions)
    busy(box, repo)
    foreground(box, repo, versions)


if __name__ == "__main__":
    lib.main(run)
