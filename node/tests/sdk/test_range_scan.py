"""Range scans through the SDK, on more than 10,000 documents, compared with the set that was written."""

import threading
import unittest

from couchbase.exceptions import CouchbaseException
from couchbase.kv_range_scan import PrefixScan, RangeScan, SamplingScan, ScanTerm
from couchbase.mutation_state import MutationState
from couchbase.options import ScanOptions

from sdk_case import SdkCase

USERS, ORDERS, BATCH = 6_000, 6_000, 1_000


class RangeScans(SdkCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.documents = {f"user:{number:05}": {"user": number, "pad": "u" * (number % 97)} for number in range(USERS)}
        cls.documents |= {f"order:{number:05}": {"order": number} for number in range(ORDERS)}
        cls.tokens = MutationState()
        items = list(cls.documents.items())
        for at in range(0, len(items), BATCH):
            written = cls.collection.upsert_multi(dict(items[at : at + BATCH]))
            if not written.all_ok:
                raise AssertionError(written.exceptions)
            cls.tokens.add_results(*written.results.values())

    def scan_ids(self, scan, **options):
        """The keys of a scan, with each key's value left out; fails if a key comes twice."""
        keys = [row.id for row in self.collection.scan(scan, ScanOptions(ids_only=True, **options))]
        self.assertEqual(len(keys), len(set(keys)), "a key came twice")
        return set(keys)

    def scan_documents(self, scan, **options):
        rows = list(self.collection.scan(scan, ScanOptions(**options)))
        documents = {row.id: row.content_as[dict] for row in rows}
        self.assertEqual(len(rows), len(documents), "a key came twice")
        return documents

    def keys_with(self, prefix):
        return {key for key in self.documents if key.startswith(prefix)}

    def test_a_prefix_scan_gives_exactly_the_documents_below_the_prefix(self):
        expected = {key: self.documents[key] for key in self.keys_with("user:")}
        self.assertEqual(self.scan_documents(PrefixScan("user:")), expected)
        self.assertEqual(self.scan_ids(PrefixScan("order:0012")), self.keys_with("order:0012"))
        self.assertEqual(self.scan_ids(PrefixScan("nobody:")), set())

    def test_concurrent_scans_of_all_vbuckets_give_every_document_once(self):
        self.assertEqual(self.scan_documents(RangeScan(), concurrency=4), self.documents)
        self.assertEqual(self.scan_ids(RangeScan(), concurrency=4), set(self.documents))
        self.assertGreaterEqual(len(self.documents), 10_000)

    def test_each_combination_of_bounds_takes_or_leaves_its_end_points(self):
        low, high = "user:01000", "user:02000"
        inside = {key for key in self.documents if low < key < high}
        for start_exclusive, end_exclusive in [(False, False), (False, True), (True, False), (True, True)]:
            expected = inside | (set() if start_exclusive else {low}) | (set() if end_exclusive else {high})
            scan = RangeScan(ScanTerm(low, exclusive=start_exclusive), ScanTerm(high, exclusive=end_exclusive))
            with self.subTest(start_exclusive=start_exclusive, end_exclusive=end_exclusive):
                self.assertEqual(self.scan_ids(scan), expected)

    def test_a_range_without_a_start_or_without_an_end_is_open_there(self):
        self.assertEqual(self.scan_ids(RangeScan(end=ScanTerm("order:99999"))), self.keys_with("order:"))
        self.assertEqual(self.scan_ids(RangeScan(start=ScanTerm("user:"))), self.keys_with("user:"))

    def test_a_scanned_document_carries_the_cas_that_a_get_returns(self):
        rows = list(self.collection.scan(PrefixScan("user:0000"), ScanOptions()))
        self.assertEqual(len(rows), 10)
        for row in rows:
            self.assertEqual(row.cas, self.collection.get(row.id).cas)

    def test_a_sample_has_the_size_asked_for_and_only_documents_that_exist(self):
        sample = self.scan_documents(SamplingScan(limit=300, seed=42))
        self.assertEqual(len(sample), 300)
        for key, document in sample.items():
            self.assertEqual(document, self.documents[key])
        self.assertEqual(len(self.scan_ids(SamplingScan(limit=20), concurrency=4)), 20)

    def test_a_sample_larger_than_the_bucket_is_the_bucket(self):
        self.assertEqual(self.scan_ids(SamplingScan(limit=50_000, seed=1)), set(self.documents))

    def test_limits_of_a_batch_change_how_often_the_node_is_asked_and_not_what_it_gives(self):
        expected = self.keys_with("order:0")
        for limits in ({"batch_item_limit": 1}, {"batch_item_limit": 0, "batch_byte_limit": 0}, {"batch_byte_limit": 1}):
            scan = PrefixScan("order:00") if limits.get("batch_item_limit") == 1 else PrefixScan("order:0")
            wanted = {key for key in expected if key.startswith(scan.prefix)}
            with self.subTest(**limits):
                self.assertEqual(self.scan_ids(scan, concurrency=4, **limits), wanted)

    def test_a_scan_consistent_with_a_write_sees_it(self):
        for round_number in range(5):
            keys = [f"fresh:{round_number}:{number}" for number in range(50)]
            state = MutationState()
            state.add_results(*(self.collection.upsert(key, round_number) for key in keys))
            found = self.scan_ids(PrefixScan(f"fresh:{round_number}:"), consistent_with=state)
            self.assertEqual(found, set(keys))
            for key in keys:
                self.collection.remove(key)
        state.add_results(self.collection.upsert("fresh:last", 0))
        self.assertEqual(self.scan_ids(PrefixScan("fresh:"), consistent_with=state), {"fresh:last"})
        self.collection.remove("fresh:last")

    def test_a_scan_consistent_with_the_whole_load_gives_the_whole_load(self):
        self.assertEqual(self.scan_ids(PrefixScan("user:"), consistent_with=self.tokens), self.keys_with("user:"))

    def test_a_scan_that_is_dropped_half_way_leaves_the_node_able_to_scan(self):
        for _ in range(20):
            rows = iter(self.collection.scan(RangeScan(), ScanOptions(concurrency=4)))
            self.assertTrue(all(next(rows).id for _ in range(10)))
            del rows
        self.assertEqual(self.scan_ids(PrefixScan("user:0")), self.keys_with("user:0"))

    def test_writes_during_a_scan_neither_hide_nor_double_a_document(self):
        over = threading.Event()
        failures = []

        def overwrite():
            while not over.is_set():
                for number in range(0, USERS, 7):
                    if over.is_set():
                        return
                    try:
                        key = f"user:{number:05}"
                        self.collection.upsert(key, self.documents[key])
                        self.collection.upsert(f"zz-noise:{number}", number)
                    except CouchbaseException as failure:
                        failures.append(failure)
                        return

        writer = threading.Thread(target=overwrite)
        writer.start()
        try:
            for _ in range(5):
                scanned = self.scan_documents(RangeScan(end=ScanTerm("user:99999")), concurrency=4)
                self.assertEqual(scanned, self.documents)
        finally:
            over.set()
            writer.join()
        self.assertEqual(failures, [])
        for row in list(self.collection.scan(PrefixScan("zz-noise:"), ScanOptions(ids_only=True))):
            self.collection.remove(row.id)


if __name__ == "__main__":
    unittest.main()
