#!/usr/bin/env python3
"""usage: test_results.py TESTLOG_JSON COUNTS

Counts what a `meson test` run says in its testlog.json and writes one line "PASSED FAILED SKIPPED"
to the file COUNTS; what failed is told with the tail of its output. A Criterion program counts as its own
tests, any other as one. Where CI=true a skipped test is a failure, unless it is in the suite
`optional`: a server or a device that is missing there must not go unnoticed.
"""
import json
import os
import re
import sys

TAIL = 60


def counts_of(entry, strict):
    output = (entry.get("stdout") or "") + (entry.get("stderr") or "")
    result = entry["result"]
    if result == "SKIP":
        # A name is "PROJECT:SUITE+SUITE / TEST".
        suites = entry["name"].partition(" / ")[0].partition(":")[2].split("+")
        return (0, 1, 0) if strict and "optional" not in suites else (0, 0, 1)
    passed = failed = skipped = 0
    found = re.findall(r"Synthesis: Tested: \x1b?\S*?(\d+).*?Passing: \D*?(\d+).*?"
                       r"Failing: \D*?(\d+).*?Crashing: \D*?(\d+)", output)
    if found:
        _, passed, failing, crashing = map(int, found[-1])
        failed = failing + crashing
    if result in ("OK", "EXPECTEDFAIL"):
        return (max(passed, 1), 0, skipped)
    return (passed, max(failed, 1), skipped)


def tell(entry):
    print(f"\n--- {entry['result']}: {entry['name']} ({entry.get('duration', 0):.1f} s, "
          f"exit status {entry.get('returncode')})")
    for stream in "stdout", "stderr":
        lines = (entry.get(stream) or "").splitlines()
        if lines:
            print(f"    {stream}, last {min(TAIL, len(lines))} of {len(lines)} lines:")
            for line in lines[-TAIL:]:
                print(f"    {line}")


def main():
    strict = os.environ.get("CI") == "true"
    total = [0, 0, 0]
    with open(sys.argv[1], encoding="utf-8", errors="replace") as log:
        for line in log:
            entry = json.loads(line)
            counts = counts_of(entry, strict)
            total = [a + b for a, b in zip(total, counts)]
            if counts[1]:
                tell(entry)
            elif counts[2]:
                reason = ((entry.get("stderr") or entry.get("stdout") or "").strip()
                          .splitlines() or ["no reason given"])[-1]
                print(f"skipped: {entry['name']}: {reason}")
    with open(sys.argv[2], "w", encoding="utf-8") as counts:
        print(*total, file=counts)


if __name__ == "__main__":
    main()
