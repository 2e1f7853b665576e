"""A Ringbase node of one's own: started on a scratch directory and free ports, stopped with SIGTERM.

The port is read from the ready line, so nothing races for it. The scratch directory lies beside the
binary, where the filesystem can do direct I/O, and is removed unless the node misbehaved.

Does not know: any client.
"""

import os
import pathlib
import queue
import re
import shutil
import signal
import subprocess
import tempfile
import threading

READY_SECONDS = 60
STOP_SECONDS = 60
READY_ADDRESS = re.compile(r"127\.0\.0\.1:(\d+)")

# What a caller that cannot run its client exits with; the caller's caller decides whether that is a failure.
EXIT_SKIPPED = 77


class NodeFailed(Exception):
    """The node did not start, or did not stop as it should; says what it logged last."""


class Node:
    """One node: `start` returns its port, `stop` demands a clean end, `kill` is a kill -9."""

    def __init__(self, binary, cores, vbuckets=64):
        self.binary = pathlib.Path(binary).resolve()
        self.cores = cores
        self.vbuckets = vbuckets
        self.scratch = pathlib.Path(tempfile.mkdtemp(prefix="clients-", dir=self.binary.parent))
        self.log = self.scratch / "node.log"
        self.port = None
        self._process = None

    def start(self):
        """Starts the node on its directory, again after a stop too; returns the port once it is ready."""
        command = [
            self.binary, "serve",
            "--data", self.scratch / "data",
            "--listen", "127.0.0.1:0",
            "--mgmt-listen", "127.0.0.1:0",
            "--cores", str(self.cores),
            "--vbuckets", str(self.vbuckets),
            "--wal-segment-bytes", "4MiB",
        ]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True
            )
        lines = queue.Queue()
        threading.Thread(target=self._read_stdout, args=(self._process.stdout, lines), daemon=True).start()
        try:
            ready = lines.get(timeout=READY_SECONDS)
        except queue.Empty:
            self.kill()
            raise NodeFailed(f"no ready line after {READY_SECONDS} s\n{self._tail()}") from None
        if ready is None:
            raise NodeFailed(f"ended with {self._process.wait()} before it was ready\n{self._tail()}")
        self.port = int(READY_ADDRESS.search(ready).group(1))
        return self.port

    def stop(self):
        """Asks the node to end and demands exit code 0."""
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise NodeFailed(f"still runs {STOP_SECONDS} s after SIGTERM\n{self._tail()}") from None
        if code != 0:
            raise NodeFailed(f"ended with {code} after SIGTERM\n{self._tail()}")

    def kill(self):
        """Ends the node without giving it a chance to do anything."""
        self._process.kill()
        self._process.wait()

    def remove(self):
        """Deletes the scratch directory."""
        shutil.rmtree(self.scratch)

    def _read_stdout(self, stdout, lines):
        """Hands over the first line that names an address, `None` at the end; keeps reading so that the node never blocks."""
        for line in stdout:
            if READY_ADDRESS.search(line):
                lines.put(line)
        lines.put(None)

    def _tail(self):
        return "".join(self.log.read_text(errors="replace").splitlines(keepends=True)[-20:])


def from_environment():
    """The node that the caller of the tests asked for."""
    return Node(os.environ["RINGBASE_BINARY"], int(os.environ["RINGBASE_CORES"]))
