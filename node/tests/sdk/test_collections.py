"""Collections through the SDK: documents and scans in each, the same key in two of them, and what is left when one is dropped.

The SDK makes collections over HTTP; here the manifest is set as the cluster manager does it, with one request to the node.
"""

import json
import unittest
from datetime import timedelta

from couchbase.exceptions import (
    CasMismatchException,
    CollectionNotFoundException,
    DocumentExistsException,
    DocumentNotFoundException,
    ScopeNotFoundException,
    UnAmbiguousTimeoutException,
)
from couchbase.kv_range_scan import PrefixScan, RangeScan
from couchbase.options import GetOptions, ReplaceOptions, ScanOptions, UpsertOptions

from sdk_case import SdkCase, manage

SET_COLLECTIONS_MANIFEST = 0xB9

# The SDK asks again for the id of a collection that is not there until the operation's time is over, and tells the one or the other.
NOT_THERE = (CollectionNotFoundException, ScopeNotFoundException, UnAmbiguousTimeoutException)
SOON = timedelta(seconds=2)


class Collections(SdkCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.uid = 0
        cls.set_collections({"orders": 8, "carts": 0xCAFE})
        cls.shop = cls.bucket.scope("shop")

    @classmethod
    def set_collections(cls, collections):
        """A scope `shop` with these collections, beside the default one."""
        cls.uid += 1
        named = [{"name": name, "uid": f"{number:x}"} for name, number in collections.items()]
        default = {"name": "_default", "uid": "0", "collections": [{"name": "_default", "uid": "0"}]}
        manifest = {"uid": f"{cls.uid:x}", "scopes": [default, {"name": "shop", "uid": "8", "collections": named}]}
        status = manage(cls.node.port, SET_COLLECTIONS_MANIFEST, b"", json.dumps(manifest).encode())
        if status != 0:
            raise AssertionError(f"the manifest was refused with {status:#x}")

    def test_one_key_in_two_collections_is_two_documents(self):
        orders, carts = self.shop.collection("orders"), self.shop.collection("carts")
        written = {}
        for name, collection in {"default": self.collection, "orders": orders, "carts": carts}.items():
            for number in range(64):
                written[name] = collection.upsert(f"same{number}", {"in": name}).cas
        for name, collection in {"default": self.collection, "orders": orders, "carts": carts}.items():
            for number in range(64):
                self.assertEqual(collection.get(f"same{number}").content_as[dict], {"in": name})
            self.assertEqual(collection.get("same63").cas, written[name])
        with self.assertRaises(DocumentExistsException):
            orders.insert("same0", 1)
        with self.assertRaises(CasMismatchException):
            orders.replace("same63", 1, ReplaceOptions(cas=written["carts"]))
        orders.remove("same0")
        with self.assertRaises(DocumentNotFoundException):
            orders.get("same0")
        self.assertEqual(carts.get("same0").content_as[dict], {"in": "carts"})
        self.assertEqual(self.collection.get("same0").content_as[dict], {"in": "default"})

    def test_a_scan_of_a_collection_gives_its_documents_and_no_others(self):
        expected = {}
        for name in ("orders", "carts"):
            documents = {f"scanned:{name}:{number:04}": {"n": number} for number in range(500)}
            self.assertTrue(self.shop.collection(name).upsert_multi(documents).all_ok)
            expected[name] = documents
        self.collection.upsert("scanned:default", {"n": 0})
        for name, documents in expected.items():
            rows = list(self.shop.collection(name).scan(PrefixScan("scanned:")))
            self.assertEqual(len(rows), len(documents))
            self.assertEqual({row.id: row.content_as[dict] for row in rows}, documents)
            keys = {row.id for row in self.shop.collection(name).scan(RangeScan(), ScanOptions(ids_only=True))}
            self.assertEqual({key for key in keys if key.startswith("scanned:")}, set(documents))
        self.assertEqual([row.id for row in self.collection.scan(PrefixScan("scanned:"))], ["scanned:default"])

    def test_a_dropped_collection_is_not_found_and_a_new_one_of_its_name_is_empty(self):
        self.set_collections({"orders": 8, "carts": 0xCAFE, "passing": 0x20})
        passing, orders = self.shop.collection("passing"), self.shop.collection("orders")
        passing.upsert("stays?", 1)
        orders.upsert("stays", 1)
        self.set_collections({"orders": 8, "carts": 0xCAFE})
        with self.assertRaises(NOT_THERE):
            passing.get("stays?", GetOptions(timeout=SOON))
        with self.assertRaises(NOT_THERE):
            passing.upsert("stays?", 2, UpsertOptions(timeout=SOON))
        self.assertEqual(orders.get("stays").value, 1)
        self.set_collections({"orders": 8, "carts": 0xCAFE, "passing": 0x21})
        with self.assertRaises(DocumentNotFoundException):
            passing.get("stays?")
        passing.upsert("stays?", 3)
        self.assertEqual(passing.get("stays?").value, 3)

    def test_what_never_was_is_not_found(self):
        for scope, collection in (("shop", "never"), ("never", "orders")):
            with self.subTest(f"{scope}.{collection}"), self.assertRaises(NOT_THERE):
                self.bucket.scope(scope).collection(collection).get("key", GetOptions(timeout=SOON))


if __name__ == "__main__":
    unittest.main()
