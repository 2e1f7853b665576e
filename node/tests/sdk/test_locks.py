"""Locked documents through the SDK: who locks a document writes it, others are refused until it is unlocked, also in a bucket in memory."""

import time
import unittest
from datetime import timedelta

from couchbase.exceptions import (
    CasMismatchException,
    DocumentLockedException,
    DocumentNotFoundException,
    DocumentNotLockedException,
    TimeoutException,
)
from couchbase.options import GetAndLockOptions, RemoveOptions, ReplaceOptions, UpsertOptions

from sdk_case import SdkCase, connect
from test_buckets import CREATE_BUCKET, manage

# The SDK tries again while a document is locked, until its time is up.
SHORT = timedelta(milliseconds=500)
REFUSED = (DocumentLockedException, TimeoutException)

LOCKED_CAS = 0xFFFF_FFFF_FFFF_FFFF


class Locks(SdkCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        status = manage(cls.node.port, CREATE_BUCKET, b"memory", b"ep.so\0bucket_type=ephemeral")
        assert status == 0, status
        cls.memory_cluster = connect(cls.node.port)
        memory = cls.memory_cluster.bucket("memory").default_collection()
        cls.collections = (cls.collection, memory)

    @classmethod
    def tearDownClass(cls):
        cls.memory_cluster.close()
        super().tearDownClass()

    def test_the_holder_of_a_lock_replaces_the_document_and_that_unlocks_it(self):
        for collection in self.collections:
            written = collection.upsert("replaced", {"n": 1})
            locked = collection.get_and_lock("replaced", timedelta(seconds=30))
            self.assertEqual(locked.content_as[dict], {"n": 1})
            self.assertNotIn(locked.cas, (written.cas, LOCKED_CAS, 0))
            self.assertEqual(collection.get("replaced").cas, LOCKED_CAS)
            with self.assertRaises(REFUSED):
                collection.upsert("replaced", {"n": 2}, UpsertOptions(timeout=SHORT))
            with self.assertRaises(REFUSED):
                collection.remove("replaced", RemoveOptions(timeout=SHORT))
            with self.assertRaises(REFUSED):
                collection.get_and_lock("replaced", timedelta(seconds=1), GetAndLockOptions(timeout=SHORT))
            replaced = collection.replace("replaced", {"n": 3}, ReplaceOptions(cas=locked.cas))
            self.assertEqual(collection.get("replaced").cas, replaced.cas)
            collection.upsert("replaced", {"n": 4})
            self.assertEqual(collection.get("replaced").content_as[dict], {"n": 4})

    def test_unlocking_needs_the_cas_of_the_lock(self):
        for collection in self.collections:
            written = collection.upsert("unlocked", 1)
            with self.assertRaises(DocumentNotLockedException):
                collection.unlock("unlocked", written.cas)
            locked = collection.get_and_lock("unlocked", timedelta(seconds=30))
            with self.assertRaises((CasMismatchException, *REFUSED)):
                collection.unlock("unlocked", written.cas)
            collection.unlock("unlocked", locked.cas)
            self.assertEqual(collection.get("unlocked").cas, written.cas)
            collection.remove("unlocked")
            with self.assertRaises(DocumentNotFoundException):
                collection.get_and_lock("unlocked", timedelta(seconds=30))

    def test_a_lock_ends_when_its_time_is_up_and_writers_who_wait_come_through(self):
        for collection in self.collections:
            collection.upsert("waited", 1)
            started = time.monotonic()
            collection.get_and_lock("waited", timedelta(seconds=2))
            collection.upsert("waited", 2)
            self.assertGreaterEqual(time.monotonic() - started, 1.9)
            self.assertEqual(collection.get("waited").value, 2)


if __name__ == "__main__":
    unittest.main()
