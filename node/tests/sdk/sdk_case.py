"""What the SDK's test cases share: a node of their own, a connected collection, and requests that the SDK does not have.

Does not know: what is tested.
"""

import socket
import struct
import unittest
from datetime import timedelta

from couchbase.auth import PasswordAuthenticator
from couchbase.cluster import Cluster
from couchbase.options import ClusterOptions, ClusterTimeoutOptions

import ringbase_node

USER, PASSWORD, BUCKET = "Administrator", "password", "default"

# The SDK's 2.5 s measure the load of the machine that tests, not the node.
KV_TIMEOUT = timedelta(seconds=30)


def connect(port, password=PASSWORD):
    """Bootstraps as an application does, over the plain key-value scheme, and waits until every service answers."""
    timeouts = ClusterTimeoutOptions(kv_timeout=KV_TIMEOUT)
    options = ClusterOptions(PasswordAuthenticator(USER, password), timeout_options=timeouts)
    cluster = Cluster(f"couchbase://127.0.0.1:{port}", options)
    cluster.wait_until_ready(timedelta(seconds=20))
    return cluster


def manage(port, opcode, key, value=b"", extras=b""):
    """One request of the management kind, which the SDK does not have; returns its status."""
    body = extras + key + value
    head = struct.pack(">BBHBBHIIQ", 0x80, opcode, len(key), len(extras), 0, 0, len(body), 0, 0)
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(head + body)
        return struct.unpack(">H", connection.recv(24, socket.MSG_WAITALL)[6:8])[0]


class SdkCase(unittest.TestCase):
    """A node for the whole class. The node must end cleanly after the tests, whatever they did to it."""

    @classmethod
    def setUpClass(cls):
        cls.node = ringbase_node.from_environment()
        cls.cluster = connect(cls.node.start())
        cls.bucket = cls.cluster.bucket(BUCKET)
        cls.collection = cls.bucket.default_collection()

    def setUp(self):
        self.node.demand_running()

    @classmethod
    def tearDownClass(cls):
        cls.cluster.close()
        cls.node.stop()
        cls.node.remove()
