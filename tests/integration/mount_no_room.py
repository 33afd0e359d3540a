#!/usr/bin/env python3
"""Where there is no room for the rings of io_uring, a mount does without, and says why. Under tests/lib/with_uring.sh."""
import contextlib
import os
import resource

import lib
from lib import check, equal
from mount_uring import doctor, said

MINE = b"local" * 1000


@contextlib.contextmanager
def little_room(limit):
    """For what begins here: room for dsfs, but not for the addresses of the rings."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def is_reason(text):
    """Which part of them could not be made depends on how many cores there are."""
    return ("no memory for the rings" in text or "the rings could not be made" in text) and "dmesg" not in text


def run(box, args):
    verdict, text = doctor(box)
    if verdict != "ok":
        raise lib.Skip(text)
    source, repo = box.new_dir("src"), box.path("repo")
    with open(f"{source}/local", "wb") as file:
        file.write(MINE)
    box.commit(source, repo, "--init")
    # The ring of each core takes 1.25 GiB of addresses.
    if os.cpu_count() < 2:
        raise lib.Skip("one core's ring fits with dsfs")
    with little_room(2 << 30):
        with box.mount(repo, "io_uring=auto") as mount:
            with open(f"{mount.path}/local", "rb") as file:
                equal(file.read(), MINE, "what was read without rings")
            verdict, text = said(mount)
            equal(verdict, "off", "io_uring without room")
            check(is_reason(text), f"the log: {text}")
            check("ERROR" not in mount.log_text(), f"the log: {mount.log_text()}")
        result = box.dsfs("mount", repo, box.new_dir("m"), "-o", f"io_uring=on,cache_dir={box.cache}", status=1)
        check(is_reason(result.errors), f"io_uring=on without room: {result.errors}")


if __name__ == "__main__":
    lib.main(run)
