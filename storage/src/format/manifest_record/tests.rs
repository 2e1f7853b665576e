//! Every record reads back; no cut of one is taken.

use super::*;

fn examples() -> Vec<Record> {
    let extent = Extent { start: 20, blocks: 3 };
    let run = RunDesc {
        id: 4,
        records: 10,
        tombstones: 1,
        key_bytes: 100,
        last: Seqno(12),
        index: extent,
        extents: vec![extent, Extent { start: 50, blocks: 1 }],
    };
    let segment = SegmentDesc {
        id: 5,
        first: Seqno(1),
        last: Seqno(12),
        records: 10,
        index: extent,
        extents: vec![extent],
    };
    let marks = MarksDesc { id: 5, marks: 2, block: extent };
    let counts = VbCounts { flushed_seqno: Seqno(12), items: 9, ..VbCounts::default() };
    let log = vec![FailoverEntry { uuid: VbUuid(77), seqno: Seqno(0) }];
    let (bucket, vb) = (BucketId(1), VbId(3));
    vec![
        Record::Checkpoint { next_object: 9 },
        Record::Opened { wal_generation: 2 },
        Record::Closed,
        Record::WalTail { position: 900 },
        Record::Bucket(BucketDesc { id: bucket, uuid: 1 << 100, name: "b".into(), config: String::new() }),
        Record::Vbucket(Box::new(VbState {
            bucket,
            vb,
            state: 1,
            topology: String::new(),
            failover_log: log.clone(),
            counts,
            runs: vec![run.clone()],
            segments: vec![segment.clone()],
            marks: vec![marks.clone()],
            collections: CollectionsDesc::default(),
            purged: PurgeDesc::default(),
        })),
        Record::Role { bucket, vb, state: 2, topology: "[[\"a\"]]".into(), log: log.clone() },
        Record::VbucketGone { bucket, vb, log_from: 700 },
        Record::Failover { bucket, vb, log },
        Record::Flush {
            bucket,
            vb,
            counts,
            segment: segment.clone(),
            run: run.clone(),
            marks: Some(marks.clone()),
        },
        Record::Merge { bucket, vb, removed: vec![1, 2], run },
        Record::Reclaim {
            bucket,
            vb,
            removed: vec![5, 7],
            segment: Some(segment.clone()),
            marks_removed: vec![],
            marks: vec![],
        },
        Record::Reclaim {
            bucket,
            vb,
            removed: vec![],
            segment: None,
            marks_removed: vec![5, 8],
            marks: vec![marks.clone(), marks.clone()],
        },
        Record::Purge {
            bucket,
            vb,
            purged: PurgeDesc {
                seqno: Seqno(11),
                tombstones: 4,
                items: 7,
                collections: vec![8, 300],
                segments: vec![PurgedPart { segment: 5, records: 2, bytes: 180 }],
            },
        },
        Record::BucketGone { bucket },
        Record::Collections {
            bucket,
            vb,
            desc: CollectionsDesc {
                collections: vec![
                    Collection { items: 5, bytes: 70, ..Collection::default() },
                    Collection {
                        id: u32::MAX,
                        created: Seqno(3),
                        dropped: Seqno(9),
                        high_seqno: Seqno(9),
                        ..Collection::default()
                    },
                ],
                scopes: vec![Scope::default(), Scope { id: 8, created: Seqno(2), dropped: Seqno(0) }],
            },
        },
    ]
}

#[test]
fn every_record_reads_back() {
    let mut bytes = Vec::new();
    for record in examples() {
        record.encode(&mut bytes);
    }
    assert_eq!(Record::decode_all(&bytes).unwrap(), examples());
}

/// What a vbucket is to its clients is never guessed.
#[test]
fn a_state_that_no_vbucket_has_is_refused() {
    let log = vec![FailoverEntry { uuid: VbUuid(77), seqno: Seqno(0) }];
    for state in [0, 5, 255] {
        let (bucket, vb, log) = (BucketId(1), VbId(3), log.clone());
        let mut bytes = Vec::new();
        Record::Role { bucket, vb, state, topology: String::new(), log }.encode(&mut bytes);
        let decoded = Record::decode_all(&bytes);
        assert!(matches!(decoded, Err(FormatError::Invalid { field: "state", .. })), "{decoded:?}");
    }
}

#[test]
fn no_cut_of_a_record_is_taken() {
    for record in examples() {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        for len in 1..bytes.len() {
            assert!(Record::decode_all(&bytes[..len]).is_err(), "{record:?} cut at {len}");
        }
    }
}
