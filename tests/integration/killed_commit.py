#!/usr/bin/env python3
"""kill -9 of a commit (and Ctrl-C, SIGTERM) at random moments: `verify` stays clean, there is no partial version, and the
repeated commit succeeds. 20 cycles in CI, `--cycles N --store dir|s3` for more."""
import os
import random
import shutil
import signal
import time

import lib
import stored
import tree
from lib import check, equal, say


def spawn(box, source, repo, state, env, number):
    if number == signal.SIGKILL:
        env = {**env, **box.no_leak_check()}
    return box.start(["commit", source, repo, "-q", "--state-dir", state], env=env,
                     stdout=lib.subprocess.PIPE, stderr=lib.subprocess.PIPE)


def one_cycle(box, rng, cycle, growing, store, repo, state, env, typical, known):
    """Returns whether the kill met a living commit."""
    growing.change(rng.randint(5, 40))
    growing.add_file(rng.randbytes(rng.choice([1000, 3 << 20, 12 << 20])))
    before = len(stored.keys(repo)) if isinstance(store, lib.Dir) else None
    number = rng.choice([signal.SIGKILL] * 3 + [signal.SIGINT, signal.SIGTERM])
    process = spawn(box, growing.root, repo, state, env, number)
    if before and rng.random() < 0.6:
        # When the n-th object of the commit appears: packs, manifest, record, entry, index, hint.
        more = rng.randint(1, 6)
        while process.poll() is None and len(stored.keys(repo)) < before + more:
            pass
    else:
        time.sleep(rng.uniform(0, 1.2 * typical))
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    if number == signal.SIGKILL:
        met = process.returncode == -number
    else:  # an orderly end, with a word; a commit that had published already says that it did
        met = process.returncode != 0
        if met and process.returncode != -number:  # it was met before it listens to signals
            equal(process.returncode, 130, f"status after {number.name}: {err}")
            equal(err.count(b"\n"), 1, f"lines after {number.name}: {err}")
    check(met or process.returncode == 0, f"commit ended with {process.returncode}: {err}")

    found = box.json("verify", repo, env=env)
    check(found["clean"], f"after kill {cycle}: {found['findings'][:5]}")
    log = box.json("log", repo, env=env)
    equal([row["number"] for row in log], list(range(len(log), 0, -1)), "numbers in the log")
    check(len(log) - len(known) in (0, 1), f"{len(log)} versions after {len(known)}")
    if not met:
        equal(log[0]["version"], out.decode().strip(), "the acknowledged version")
    made = len(log) > len(known)
    snap = tree.snapshot(growing.root)
    if made:  # what is there is whole, although nobody was told
        known[log[0]["version"]] = snap
    for row, version in zip(log[::-1], known):
        equal(row["version"], version, "a version that was there before")

    again = box.commit(growing.root, repo, "--state-dir", state, env=env)
    equal(again["unchanged"], made, "the repeated commit found nothing new")
    known[again["version"]] = snap
    return met, made


def run(box, args):
    rng = random.Random(args.seed)
    store = box.store(args.store)
    env, state = store.env, box.path("state")
    source = box.new_dir("src")
    growing = tree.Tree(source, args.seed)
    growing.grow(250)
    met_n = made_n = cycles = 0

    def goes_on():
        """Whether a kill comes in time, and when, is for chance: so many are to, and one of many after the entry was there, however
        many cycles that takes."""
        is_shown = met_n >= args.cycles // 2 and (made_n > 0 or cycles < 20)
        return cycles < args.cycles or (not is_shown and cycles < 4 * args.cycles)

    while goes_on() and not box.late():
        repo = store.url(f"repo-{cycles}")
        box.dsfs("init", repo, env=env)
        first = box.commit(source, repo, "--state-dir", state, env=env)
        known = {first["version"]: tree.snapshot(source)}
        growing.change(20)
        started = time.monotonic()
        second = box.commit(source, repo, "--state-dir", state, env=env)
        typical = time.monotonic() - started
        known[second["version"]] = tree.snapshot(source)
        for _ in range(10):
            if not goes_on():
                break
            cycles += 1
            met, made = one_cycle(box, rng, cycles, growing, store, repo, state, env, typical, known)
            met_n, made_n = met_n + met, made_n + made
        box.dsfs("verify", repo, "--read-data", env=env)
        for version in rng.sample(list(known), min(3, len(known))):
            with box.mount(f"{repo}@{version}", f"cache_dir={box.path('cold')}", env=env) as mount:
                lines = tree.compare(known[version], tree.snapshot(mount.path))
                check(not lines, f"version {version}: " + "\n".join(lines))
            shutil.rmtree(box.path("cold"))
        if store.kind == "dir":
            temporary = [n for p, _, names in os.walk(repo) for n in names if n.startswith(".tmp-")]
            say(f"after {cycles} cycles: {met_n} killed, {made_n} of the commits had been published; "
                f"{len(temporary)} temporary files left")
            shutil.rmtree(repo)
    left = [n for n in os.listdir(f"{state}/stat") if len(n) != 32]
    check(not left and len(os.listdir(f"{state}/tmp")) <= 1, f"left in the state directory: {left} {os.listdir(f'{state}/tmp')}")
    if cycles < args.cycles:
        say("out of time")
    check(met_n >= min(args.cycles, cycles) // 2, f"only {met_n} of {cycles} commits were killed in time")
    check(made_n or cycles < 20, "no commit was killed after its entry was there")
    say(f"{cycles} cycles, {met_n} kills met a commit, {made_n} versions were there already")


def arguments(parser):
    parser.add_argument("--cycles", type=int, default=20)
    parser.add_argument("--store", choices=["dir", "s3"], default="dir")


if __name__ == "__main__":
    lib.main(run, arguments)
