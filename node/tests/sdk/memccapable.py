#!/usr/bin/env python3
"""Runs `memccapable` (Debian package libmemcached-tools), an independent checker of the memcached binary protocol,
against a node: `memccapable.py --node PATH [--cores N]`.

Every test of the tool stands in exactly one of the two lists below, so a test that a newer version adds is noticed.
Exits 0 if all that should pass pass, 1 if one failed, 77 if the tool is not installed.
"""

import argparse
import shutil
import subprocess
import sys

import ringbase_node

PASSES = [
    "noop", "quit", "quitq", "set", "setq", "add", "addq", "replace", "replaceq", "delete", "deleteq", "get", "getq",
    "getk", "getkq", "incr", "incrq", "decr", "decrq", "version", "append", "appendq", "prepend", "prependq", "stat",
]
SKIPPED = {
    "flush": "FLUSH names no bucket and is not supported; `ringctl bucket flush` empties one",
    "flushq": "FLUSH names no bucket and is not supported; `ringctl bucket flush` empties one",
}
TEST_SECONDS = 30


def run(port, name):
    """Runs one test; returns the failure, or `None`. The tool's exit code does not tell: its report does."""
    command = ["memccapable", "-b", "-v", "-h", "127.0.0.1", "-p", str(port), "-T", f"binary {name}"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TEST_SECONDS)
    except subprocess.TimeoutExpired:
        return f"no answer after {TEST_SECONDS} s"
    report = done.stdout + done.stderr
    return None if done.returncode == 0 and "[pass]" in report else report.strip()


def known_tests():
    """The binary tests that this version of the tool has, read from its own text."""
    with open(shutil.which("memccapable"), "rb") as tool:
        pieces = tool.read().split(b"\0")
    return {piece.decode()[len("binary "):] for piece in pieces if piece.startswith(b"binary ")}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--node", required=True, help="the ringbase binary")
    parser.add_argument("--cores", type=int, default=1)
    arguments = parser.parse_args()
    if shutil.which("memccapable") is None:
        print("skipped: `memccapable` is not installed (Debian: apt-get install libmemcached-tools)", file=sys.stderr)
        return ringbase_node.EXIT_SKIPPED
    unlisted = known_tests() - set(PASSES) - set(SKIPPED)
    if unlisted:
        print(f"failed: this memccapable has tests that no list names: {sorted(unlisted)}", file=sys.stderr)
        return 1
    node = ringbase_node.Node(arguments.node, arguments.cores)
    port = node.start()
    failed = []
    for name in PASSES:
        failure = run(port, name)
        print(f"binary {name:10} {'ok' if failure is None else 'FAILED'}")
        if failure is not None:
            failed.append(name)
            print(failure, file=sys.stderr)
    for name, reason in SKIPPED.items():
        print(f"binary {name:10} skipped: {reason}")
    node.stop()
    node.remove()
    print(f"{len(PASSES) - len(failed)} passed, {len(failed)} failed, {len(SKIPPED)} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
