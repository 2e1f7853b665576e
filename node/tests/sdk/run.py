#!/usr/bin/env python3
"""Runs the SDK's test cases against a node: `run.py --node PATH [--cores N] [NAME…]`.

Exits 0 if all passed, 1 if one failed, 77 if the SDK is not installed for this Python. A NAME selects
as in `python -m unittest -k`.
"""

import argparse
import faulthandler
import importlib.util
import os
import pathlib
import sys
import unittest

import ringbase_node

# The SDK waits for ever on some protocol errors: then every thread's stack is better than silence.
HANG_SECONDS = 600


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--node", required=True, help="the ringbase binary")
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("names", nargs="*", help="only tests whose name contains one of these")
    arguments = parser.parse_args()
    if importlib.util.find_spec("couchbase") is None:
        print("skipped: the Python package `couchbase` is not installed (see requirements.txt)", file=sys.stderr)
        return ringbase_node.EXIT_SKIPPED
    os.environ["RINGBASE_BINARY"] = arguments.node
    os.environ["RINGBASE_CORES"] = str(arguments.cores)
    faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
    loader = unittest.TestLoader()
    if arguments.names:
        loader.testNamePatterns = [f"*{name}*" for name in arguments.names]
    suite = loader.discover(str(pathlib.Path(__file__).parent))
    result = unittest.TextTestRunner(verbosity=2).run(suite)
    if result.testsRun == 0:
        print("failed: no test was selected", file=sys.stderr)
        return 1
    return 0 if result.wasSuccessful() else 1


if __name__ == "__main__":
    sys.exit(main())
