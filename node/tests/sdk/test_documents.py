"""Documents through the SDK: every operation, what it returns, and which exception it raises when it must not work."""

import time
import unittest
from datetime import timedelta

from couchbase.diagnostics import PingState, ServiceType
from couchbase.durability import ClientDurability, PersistTo, ReplicateTo
from couchbase.exceptions import (
    AuthenticationException,
    BucketNotFoundException,
    CasMismatchException,
    CouchbaseException,
    DeltaInvalidException,
    DocumentExistsException,
    DocumentNotFoundException,
    UnAmbiguousTimeoutException,
    ValueFormatException,
)
from couchbase.options import (
    AppendOptions,
    DecrementOptions,
    DeltaValue,
    GetOptions,
    IncrementOptions,
    InsertOptions,
    RemoveOptions,
    ReplaceOptions,
    SignedInt64,
    UpsertOptions,
)
from couchbase.transcoder import RawBinaryTranscoder, RawStringTranscoder

from sdk_case import BUCKET, SdkCase, connect

RAW = RawBinaryTranscoder()


class Documents(SdkCase):
    def put_raw(self, key, value):
        return self.collection.upsert(key, value, UpsertOptions(transcoder=RAW))

    def get_raw(self, key):
        return self.collection.get(key, GetOptions(transcoder=RAW)).value

    def test_a_document_comes_back_as_it_was_written(self):
        document = {"name": "Ä", "list": [1, 2.5, None, True], "nested": {"k": "v" * 100}}
        written = self.collection.upsert("json", document)
        read = self.collection.get("json")
        self.assertEqual(read.content_as[dict], document)
        self.assertEqual(read.cas, written.cas)
        self.assertNotEqual(read.cas, 0)

    def test_bytes_and_text_keep_their_contents_and_their_flags(self):
        everything = bytes(range(256)) * 40
        self.put_raw("bytes", everything)
        self.assertEqual(self.get_raw("bytes"), everything)
        text = RawStringTranscoder()
        self.collection.upsert("text", "Grüße", UpsertOptions(transcoder=text))
        self.assertEqual(self.collection.get("text", GetOptions(transcoder=text)).value, "Grüße")
        with self.assertRaises(ValueFormatException):
            self.collection.get("bytes")  # the JSON transcoder refuses the flags of bytes

    def test_a_missing_document_is_not_found_by_any_operation_that_needs_it(self):
        for name, operation in {
            "get": lambda: self.collection.get("missing"),
            "replace": lambda: self.collection.replace("missing", 1),
            "remove": lambda: self.collection.remove("missing"),
            "touch": lambda: self.collection.touch("missing", timedelta(seconds=10)),
            "get_and_touch": lambda: self.collection.get_and_touch("missing", timedelta(seconds=10)),
            "append": lambda: self.collection.binary().append("missing", b"x"),
            "increment": lambda: self.collection.binary().increment(
                "missing", IncrementOptions(initial=SignedInt64(-1))
            ),
        }.items():
            with self.subTest(name), self.assertRaises(CouchbaseException) as raised:
                operation()
            self.assertIn(type(raised.exception).__name__, {"DocumentNotFoundException", "NotStoredException"})

    def test_insert_makes_a_document_once(self):
        self.collection.insert("insert", {"n": 1})
        with self.assertRaises(DocumentExistsException):
            self.collection.insert("insert", {"n": 2})
        self.assertEqual(self.collection.get("insert").content_as[dict], {"n": 1})
        self.collection.remove("insert")
        self.collection.insert("insert", {"n": 3}, InsertOptions(expiry=timedelta(hours=1)))
        self.assertEqual(self.collection.get("insert").content_as[dict], {"n": 3})

    def test_replace_and_remove_with_an_old_cas_change_nothing(self):
        old = self.collection.upsert("cas", 1).cas
        new = self.collection.replace("cas", 2, ReplaceOptions(cas=old)).cas
        self.assertNotEqual(new, old)
        with self.assertRaises(CasMismatchException):
            self.collection.replace("cas", 3, ReplaceOptions(cas=old))
        with self.assertRaises(CasMismatchException):
            self.collection.remove("cas", RemoveOptions(cas=old))
        read = self.collection.get("cas")
        self.assertEqual((read.value, read.cas), (2, new))
        self.collection.remove("cas", RemoveOptions(cas=new))
        with self.assertRaises(DocumentNotFoundException):
            self.collection.get("cas")

    def test_exists_tells_present_removed_and_never_written_apart_from_present(self):
        cas = self.collection.upsert("exists", 1).cas
        found = self.collection.exists("exists")
        self.assertTrue(found.exists)
        self.assertEqual(found.cas, cas)
        self.collection.remove("exists")
        self.assertFalse(self.collection.exists("exists").exists)
        self.assertFalse(self.collection.exists("never").exists)

    def test_an_expiry_takes_the_document_away_and_a_touch_keeps_it(self):
        short = timedelta(seconds=2)
        for key in ("expires", "touched", "read-touched", "made-permanent"):
            self.collection.upsert(key, key, UpsertOptions(expiry=short))
        self.collection.touch("touched", timedelta(hours=1))
        self.assertEqual(self.collection.get_and_touch("read-touched", timedelta(hours=1)).value, "read-touched")
        self.collection.upsert("made-permanent", "made-permanent")
        self.assertEqual(self.collection.get("expires").value, "expires")
        time.sleep(3.5)
        with self.assertRaises(DocumentNotFoundException):
            self.collection.get("expires")
        self.assertFalse(self.collection.exists("expires").exists)
        for key in ("touched", "read-touched", "made-permanent"):
            self.assertEqual(self.collection.get(key).value, key)
        self.collection.insert("expires", "again")

    def test_counters_count_start_where_asked_and_never_go_below_zero(self):
        binary = self.collection.binary()
        start = IncrementOptions(initial=SignedInt64(40), delta=DeltaValue(2))
        self.assertEqual(binary.increment("counter", start).content, 40)
        self.assertEqual(binary.increment("counter", start).content, 42)
        self.assertEqual(binary.decrement("counter", DecrementOptions(delta=DeltaValue(12))).content, 30)
        self.assertEqual(binary.decrement("counter", DecrementOptions(delta=DeltaValue(1000))).content, 0)
        self.collection.upsert("word", "abc")
        with self.assertRaises(DeltaInvalidException):
            binary.increment("word", IncrementOptions(delta=DeltaValue(1)))

    def test_append_and_prepend_join_bytes_in_order(self):
        binary = self.collection.binary()
        cas = self.put_raw("joined", b"middle").cas
        binary.append("joined", b"-end")
        binary.prepend("joined", b"start-")
        self.assertEqual(self.get_raw("joined"), b"start-middle-end")
        with self.assertRaises(CasMismatchException):
            binary.append("joined", b"!", AppendOptions(cas=cas))

    def test_a_mutation_token_names_the_vbucket_and_rises_with_each_write(self):
        first = self.collection.upsert("token", 1).mutation_token()
        second = self.collection.upsert("token", 2).mutation_token()
        self.assertEqual(first.partition_id, second.partition_id)
        self.assertEqual(first.partition_uuid, second.partition_uuid)
        self.assertNotEqual(first.partition_uuid, 0)
        self.assertGreater(second.sequence_number, first.sequence_number)
        self.assertEqual(first.bucket_name, BUCKET)

    def test_a_client_can_wait_until_its_write_is_on_disk(self):
        durable = ClientDurability(replicate_to=ReplicateTo.NONE, persist_to=PersistTo.ONE)
        self.collection.upsert("persisted", 1, UpsertOptions(durability=durable))
        self.assertEqual(self.collection.get("persisted").value, 1)

    def test_keys_and_values_up_to_the_limits_work_and_beyond_are_refused(self):
        for key in ("k", "k" * 245, "schlüssel-✓"):
            with self.subTest(key):
                self.collection.upsert(key, key)
                self.assertEqual(self.collection.get(key).value, key)
        largest = bytes(20 << 20)
        self.put_raw("large", largest)
        self.assertEqual(self.get_raw("large"), largest)
        with self.assertRaises(CouchbaseException):
            self.put_raw("large", bytes((20 << 20) + 1))
        with self.assertRaises(CouchbaseException):
            self.collection.upsert("k" * 251, 1)
        self.assertEqual(len(self.get_raw("large")), len(largest))

    def test_many_documents_at_once_come_back_each_with_its_own_contents(self):
        documents = {f"many:{number}": {"number": number, "pad": "x" * (number % 700)} for number in range(10_000)}
        keys = list(documents)
        for at in range(0, len(keys), 1000):
            batch = keys[at : at + 1000]
            self.assertTrue(self.collection.upsert_multi({key: documents[key] for key in batch}).all_ok)
        for at in range(0, len(keys), 1000):
            read = self.collection.get_multi(keys[at : at + 1000])
            self.assertTrue(read.all_ok)
            for key, result in read.results.items():
                self.assertEqual(result.value, documents[key])

    def test_a_ping_finds_the_key_value_service_well(self):
        endpoints = self.bucket.ping().endpoints[ServiceType.KeyValue]
        self.assertTrue(endpoints)
        self.assertEqual({endpoint.state for endpoint in endpoints}, {PingState.OK})


class Bootstrap(SdkCase):
    def test_a_wrong_password_is_refused(self):
        with self.assertRaises((AuthenticationException, UnAmbiguousTimeoutException)):
            connect(self.node.port, password="wrong").bucket(BUCKET)

    def test_an_unknown_bucket_is_not_found(self):
        with self.assertRaises((BucketNotFoundException, UnAmbiguousTimeoutException)):
            self.cluster.bucket("unknown").default_collection().get("key")


class Restart(SdkCase):
    def write(self, prefix):
        durable = UpsertOptions(durability=ClientDurability(persist_to=PersistTo.ONE))
        documents = {f"{prefix}:{number}": {"number": number} for number in range(200)}
        for key, document in documents.items():
            self.collection.upsert(key, document, durable)
        return documents

    def reconnect(self):
        type(self).cluster = connect(self.node.start())
        type(self).collection = self.cluster.bucket(BUCKET).default_collection()

    def assert_readable(self, documents):
        read = self.collection.get_multi(list(documents))
        self.assertEqual({key: result.value for key, result in read.results.items()}, documents)

    def test_what_a_client_saw_persisted_survives_a_stop_and_a_kill(self):
        documents = self.write("stop")
        self.cluster.close()
        self.node.stop()
        self.reconnect()
        self.assert_readable(documents)
        documents |= self.write("kill")
        self.cluster.close()
        self.node.kill()
        self.reconnect()
        self.assert_readable(documents)


if __name__ == "__main__":
    unittest.main()
