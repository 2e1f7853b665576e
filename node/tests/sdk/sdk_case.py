"""What the SDK's test cases share: a node of their own and a connected collection.

Does not know: what is tested.
"""

import unittest
from datetime import timedelta

from couchbase.auth import PasswordAuthenticator
from couchbase.cluster import Cluster
from couchbase.options import ClusterOptions

import ringbase_node

USER, PASSWORD, BUCKET = "Administrator", "password", "default"


def connect(port, password=PASSWORD):
    """Bootstraps as an application does, over the plain key-value scheme, and waits until every service answers."""
    options = ClusterOptions(PasswordAuthenticator(USER, password))
    cluster = Cluster(f"couchbase://127.0.0.1:{port}", options)
    cluster.wait_until_ready(timedelta(seconds=20))
    return cluster


class SdkCase(unittest.TestCase):
    """A node for the whole class. The node must end cleanly after the tests, whatever they did to it."""

    @classmethod
    def setUpClass(cls):
        cls.node = ringbase_node.from_environment()
        cls.cluster = connect(cls.node.start())
        cls.bucket = cls.cluster.bucket(BUCKET)
        cls.collection = cls.bucket.default_collection()

    @classmethod
    def tearDownClass(cls):
        cls.cluster.close()
        cls.node.stop()
        cls.node.remove()
