//! Buckets that live in memory only, over TCP: the same requests, the same scans, and what is different.

use std::collections::BTreeMap;

use ringbase::client::{
    Bucket, ClientError, Connection, ContinueLimits, Scan, ScanPlan, ScanRecord, ScanState, StoreMode,
    scan_vbucket,
};
use ringbase::protocol::Status;
use ringbase::protocol::extras::StoreExtras;
use ringbase::protocol::range_scan::RangeScanCreate;
use ringbase_storage::types::{Cas, VbId};

use super::rig::{Node, Place, eventually, for_each_core_count, stat};

const PLAIN: StoreExtras = StoreExtras { flags: 0, expiry: 0 };
const VBUCKETS: u16 = 16;

type Documents = BTreeMap<Vec<u8>, Vec<u8>>;

fn store(connection: &mut Connection, key: &str, value: &[u8]) -> Result<(), ClientError> {
    let mut bucket = Bucket::new(connection)?;
    bucket.store(StoreMode::Set, key.as_bytes(), value, PLAIN, Cas(0)).map(|_| ())
}

fn all_documents(connection: &mut Connection) -> Documents {
    let mut found = Documents::new();
    for vbucket in (0..VBUCKETS).map(VbId) {
        let plan = ScanPlan::new(RangeScanCreate::default());
        let scanned = scan_vbucket(connection, &plan, vbucket, &mut |record| {
            if let ScanRecord::Document(document) = record {
                found.insert(document.key.to_vec(), document.value.to_vec());
            }
            Ok(())
        });
        match scanned {
            Ok(_) | Err(ClientError::Refused { status: Status::KEY_ENOENT, .. }) => {}
            Err(error) => panic!("{vbucket}: {error}"),
        }
    }
    found
}

/// Documents are stored, scanned, overwritten under a scan that shows its own moment, and gone after a restart; the bucket is still there, and
/// clients can tell by its branches.
#[test]
fn a_bucket_in_memory_serves_and_scans_like_one_on_disk_and_is_empty_after_a_restart() {
    for_each_core_count(|setup| {
        let place = Place::new();
        let node = Node::start(&place.data(), &setup);
        node.connect().create_bucket("memory", "bucket_type=ephemeral").unwrap();
        let mut connection = node.connect_to("memory");
        let mut model = Documents::new();
        for number in 0..2_000_u32 {
            let key = format!("key-{number:05}");
            store(&mut connection, &key, &number.to_be_bytes()).unwrap();
            model.insert(key.into_bytes(), number.to_be_bytes().to_vec());
        }
        assert!(all_documents(&mut connection) == model);
        assert!(all_documents(&mut node.connect()).is_empty(), "the default bucket has none of them");

        // A scan of each vbucket is opened, then everything changes.
        let create = RangeScanCreate::default();
        let scans: Vec<Scan> = (0..VBUCKETS)
            .map(|vb| Scan::create(&mut connection, VbId(vb), &create).unwrap().expect("it has documents"))
            .collect();
        for number in 0..2_000_u32 {
            let key = format!("key-{number:05}");
            if number % 3 == 0 {
                Bucket::new(&mut connection).unwrap().delete(key.as_bytes(), Cas(0)).unwrap();
            } else {
                store(&mut connection, &key, b"new").unwrap();
            }
        }
        // T4.14: what is kept for the scans can be seen.
        let number = |connection: &mut Connection, name: &str| -> u64 {
            stat(connection, "", name).unwrap().parse().unwrap()
        };
        assert_eq!(number(&mut connection, "seqlist_stale_count"), 2_000);
        assert_eq!(number(&mut connection, "seqlist_stale_value_bytes"), 4 * 2_000);
        assert!(number(&mut connection, "seqlist_stale_metadata_bytes") >= (9 + 24) * 2_000);
        let mut found = Documents::new();
        for mut scan in scans {
            let state = scan.advance(&mut connection, ContinueLimits::default(), &mut |record| {
                if let ScanRecord::Document(document) = record {
                    found.insert(document.key.to_vec(), document.value.to_vec());
                }
                Ok(())
            });
            assert_eq!(state.unwrap(), ScanState::Complete);
        }
        assert!(found == model, "a scan shows the moment of its create");
        eventually("what was kept goes", || number(&mut connection, "seqlist_stale_count") == 0);
        assert_eq!(number(&mut connection, "seqlist_stale_metadata_bytes"), 0);
        let listed: u64 = (0..VBUCKETS)
            .map(|vb| {
                stat(&mut connection, &format!("vbucket-details {vb}"), &format!("vb_{vb}:seqlist_count"))
            })
            .map(|count| count.unwrap().parse::<u64>().unwrap())
            .sum();
        assert_eq!(listed, 2_000, "a document or a tombstone for each key");
        assert_eq!(all_documents(&mut connection).len(), 2_000 - 667);

        drop(connection);
        assert!(node.stop().success());
        let node = Node::start(&place.data(), &setup);
        let mut connection = node.connect_to("memory");
        assert!(all_documents(&mut connection).is_empty());
        store(&mut connection, "again", b"there").unwrap();
        node.connect().empty_bucket("memory").unwrap();
        assert!(all_documents(&mut node.connect_to("memory")).is_empty());
        node.connect().delete_bucket("memory").unwrap();
    });
}

/// A scan that stands half-way when its bucket is emptied or deleted cannot be continued, in memory as on disk; nothing of it looks complete.
#[test]
fn a_scan_of_a_bucket_that_is_emptied_or_deleted_cannot_be_continued() {
    for_each_core_count(|setup| {
        let place = Place::new();
        let node = Node::start(&place.data(), &setup);
        let mut told = Vec::new();
        for (bucket_type, deletes) in
            [("ephemeral", false), ("persistent", false), ("ephemeral", true), ("persistent", true)]
        {
            let name = format!("{bucket_type}-{deletes}");
            node.connect().create_bucket(&name, &format!("bucket_type={bucket_type}")).unwrap();
            let mut connection = node.connect_to(&name);
            for number in 0..500_u32 {
                store(&mut connection, &format!("key-{number}"), b"value").unwrap();
            }
            let create = RangeScanCreate::default();
            let mut scan =
                Scan::create(&mut connection, VbId(3), &create).unwrap().expect("it has documents");
            let few = ContinueLimits { items: 2, ..ContinueLimits::default() };
            let state = scan.advance(&mut connection, few, &mut |_| Ok(()));
            assert_eq!(state.unwrap(), ScanState::More);
            match deletes {
                true => node.connect().delete_bucket(&name).unwrap(),
                false => node.connect().empty_bucket(&name).unwrap(),
            }
            let mut records = 0;
            let state = scan.advance(&mut connection, ContinueLimits::default(), &mut |_| {
                records += 1;
                Ok(())
            });
            assert_eq!(records, 0, "{name}");
            told.push(format!("{:?}", state.expect_err("it cannot go on")));
        }
        assert_eq!((&told[0], &told[2]), (&told[1], &told[3]), "memory says what the disk says");
        println!("{told:?}");
    });
}

/// With `fail_new_data` a full bucket refuses new documents for a moment, and takes deletions; with `auto_delete` it makes room by itself.
#[test]
fn a_full_bucket_in_memory_refuses_new_documents_or_removes_the_oldest() {
    for_each_core_count(|setup| {
        let place = Place::new();
        let node = Node::start(&place.data(), &setup);
        let value = [7_u8; 10_000];
        for policy in ["fail_new_data", "auto_delete"] {
            let settings = format!("bucket_type=ephemeral;max_size=4194304;ephemeral_full_policy={policy}");
            node.connect().create_bucket(policy, &settings).unwrap();
            let mut connection = node.connect_to(policy);
            let mut stored = 0;
            let refused = (0..5_000_u32).find_map(|number| {
                let outcome = store(&mut connection, &format!("key-{number}"), &value);
                stored += u32::from(outcome.is_ok());
                outcome.err()
            });
            let refused = refused.expect("50 MB do not fit 4 MiB");
            assert!(matches!(refused, ClientError::Refused { status: Status::ETMPFAIL, .. }), "{refused}");
            assert!(stored > 100, "{stored}");
            if policy == "fail_new_data" {
                assert!(store(&mut connection, "key-9999", &value).is_err());
                for number in 0..stored {
                    let key = format!("key-{number}");
                    let removed = Bucket::new(&mut connection).unwrap().delete(key.as_bytes(), Cas(0));
                    assert!(removed.is_ok(), "a deletion makes room");
                }
                store(&mut connection, "key-0", &value).unwrap();
            } else {
                eventually("the oldest are removed", || store(&mut connection, "key-9999", &value).is_ok());
                let removed = stat(&mut connection, "", "auto_delete_count").unwrap();
                assert!(removed.parse::<u32>().unwrap() > 0, "{removed}");
            }
        }
    });
}
