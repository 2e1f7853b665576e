//! Collections of a vbucket: their events and counts survive a crash, with the log alone and with flushes; what is dropped is erased from memory in
//! slices.

use std::rc::Rc;

use ringbase_storage::collections::{CREATED, DROPPED, Subject, event_key};
use ringbase_storage::env::sim::SimExecutor;
use ringbase_storage::shard::Home;
use ringbase_storage::types::{Kind, Seqno, VbId};
use ringbase_storage::vbstore::{NewVersion, VbStore};

use crate::ephemeral::{MEMORY, memory_bucket};
use crate::world::{BUCKET, new_world, open_shard, scan_documents, scan_seqnos};

const VB: VbId = VbId(1);

async fn write(store: &Rc<VbStore>, key: &[u8], value: &[u8], kind: Kind, flags: u32) -> Seqno {
    let found = store.get(key).await.unwrap();
    let new = NewVersion { key, value, flags, expiry: 0, datatype: 0, kind };
    store.write(&found, new).unwrap().seqno()
}

async fn event(store: &Rc<VbStore>, subject: Subject, flags: u32) -> Seqno {
    write(store, &event_key(subject), b"event", Kind::SystemEvent, flags).await
}

fn key(collection: u8, number: u32) -> Vec<u8> {
    [&[collection][..], format!("key{number:04}").as_bytes()].concat()
}

#[test]
fn events_and_counts_are_what_they_were_after_a_crash_with_and_without_a_flush() {
    for flushes in [false, true] {
        let (sim, disk, shard, _) = new_world(3);
        let before = sim.block_on(async {
            let store = shard.vbucket(BUCKET, VB).unwrap();
            event(&store, Subject::Scope(8), CREATED).await;
            event(&store, Subject::Collection(9), CREATED).await;
            for number in 0..100 {
                write(&store, &key(9, number), b"twelve bytes", Kind::Mutation, 0).await;
                write(&store, &key(0, number), b"five!", Kind::Mutation, 0).await;
            }
            if flushes {
                shard.flush().await.unwrap();
            }
            event(&store, Subject::Collection(10), CREATED).await;
            write(&store, &key(9, 3), b"", Kind::Deletion, 0).await;
            write(&store, &key(10, 3), b"ten", Kind::Mutation, 0).await;
            event(&store, Subject::Collection(10), DROPPED).await;
            assert!(store.wait_persisted(store.high_seqno()).await);
            assert_eq!((store.items(), store.hidden_items()), (199, 1));
            store.collections()
        });
        drop(sim);
        shard.detach();
        drop(shard);
        disk.crash(1);
        let sim = SimExecutor::new(2);
        disk.attach(&sim);
        let shard = sim.block_on(open_shard(&sim.env(), &disk)).unwrap().0;
        let store = shard.vbucket(BUCKET, VB).unwrap();
        assert_eq!(*store.collections(), *before, "flushed: {flushes}");
        assert!(store.is_open(Subject::Collection(9)) && !store.is_open(Subject::Collection(10)));
        sim.block_on(async {
            let view = store.open_view().await.unwrap();
            assert_eq!((view.items(), view.collections().get(9).unwrap().items), (199, 99));
            assert_eq!(scan_documents(&view, 1000).await.len(), 100, "events are in no collection");
            let events = scan_seqnos(&view, 7).await.iter().filter(|(_, key, _)| key[0] == 1).count();
            assert_eq!(events, 3, "the newest event of each subject");
        });
    }
}

#[test]
fn a_dropped_collection_in_memory_is_erased_in_slices_and_nothing_else_is() {
    let (sim, _disk, shard, _) = new_world(4);
    sim.block_on(async {
        shard.create_bucket_in(memory_bucket(), Home::Memory).await.unwrap();
        let store = shard.vbucket(MEMORY, VB).unwrap();
        event(&store, Subject::Collection(9), CREATED).await;
        for number in 0..400 {
            write(&store, &key(9, number), b"value", Kind::Mutation, 0).await;
            if number % 10 == 0 {
                write(&store, &key(0, number), b"value", Kind::Mutation, 0).await;
            }
        }
        assert_eq!(store.erase_dropped(Seqno(0)), Some(Seqno(257)), "a slice is 256 versions");
        assert_eq!(store.items(), 440, "nothing was dropped yet");
        let bytes = store.memory_share().0;
        event(&store, Subject::Collection(9), DROPPED).await;
        assert_eq!((store.items(), store.hidden_items()), (40, 400));
        let (mut from, mut slices) = (Seqno(0), 0);
        while let Some(next) = store.erase_dropped(from) {
            (from, slices) = (next, slices + 1);
        }
        assert_eq!((store.items(), store.hidden_items()), (40, 0));
        assert_eq!(slices, 1, "442 versions are two slices");
        assert!(store.memory_share().0 < bytes / 2, "{bytes} bytes before, {} after", store.memory_share().0);
        let view = store.open_view().await.unwrap();
        assert_eq!(scan_documents(&view, 1000).await.len(), 40);
        assert_eq!(store.versions_stats().versions, 41, "documents of the default collection, one event");
    });
}
