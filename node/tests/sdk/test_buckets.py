"""Two buckets through the SDK: made while the node runs, each with documents of its own, one emptied and deleted under an open client."""

import struct
import unittest

from couchbase.exceptions import DocumentNotFoundException

from sdk_case import BUCKET, SdkCase, connect, manage

CREATE_BUCKET, DELETE_BUCKET, SET_PARAM = 0x85, 0x86, 0x82


class Buckets(SdkCase):
    def test_two_buckets_hold_documents_of_their_own_and_one_can_go(self):
        port = self.node.port
        self.assertEqual(manage(port, CREATE_BUCKET, b"second", b"ep.so\0max_size=8388608"), 0)
        cluster = connect(port)
        second = cluster.bucket("second").default_collection()
        for n in range(64):
            self.collection.upsert(f"k{n}", {"bucket": BUCKET})
            second.upsert(f"k{n}", {"bucket": "second"})
        for n in range(64):
            self.assertEqual(self.collection.get(f"k{n}").content_as[dict], {"bucket": BUCKET})
            self.assertEqual(second.get(f"k{n}").content_as[dict], {"bucket": "second"})

        self.assertEqual(manage(port, SET_PARAM, b"bucket_flush", b"second", struct.pack(">I", 1)), 0)
        for n in range(64):
            with self.assertRaises(DocumentNotFoundException):
                second.get(f"k{n}")
        second.upsert("k1", {"again": True})
        self.assertEqual(second.get("k1").content_as[dict], {"again": True})

        self.assertEqual(manage(port, DELETE_BUCKET, b"second"), 0)
        cluster.close()
        self.assertEqual(self.collection.get("k1").content_as[dict], {"bucket": BUCKET})


if __name__ == "__main__":
    unittest.main()
