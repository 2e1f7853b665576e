//! How backfills begin, take their turns and end, over a simulated disk.

use std::time::Duration;

use ringbase::dcp::piece::{StreamAnswer, StreamNumber};
use ringbase::dcp::streams::Streams;
use ringbase::protocol::dcp::{StreamEndStatus, StreamFlags};
use ringbase_storage::format::block::{BlockType, peek_block};
use ringbase_storage::io::BLOCK_BYTES;
use ringbase_storage::io::sim::{Fault, Injection};
use ringbase_storage::types::{Kind, Seqno};
use ringbase_storage::vbstore::NewVersion;

use crate::dcp_streams::{Client, TO_LATEST};
use crate::range_scan::rig::{AT, BUCKET, Rig};

const BACKFILL_FAIL: Option<StreamEndStatus> = Some(StreamEndStatus::BackfillFail);

/// What one scheduling quantum of the reference lasts.
const QUANTUM: Duration = Duration::from_millis(300);

/// One write that no commit has made durable yet.
fn write(rig: &Rig, key: &[u8]) -> Seqno {
    let store = rig.store();
    let found = rig.sim.block_on(store.get(key)).unwrap();
    let new = NewVersion { key, value: b"late", flags: 0, expiry: 0, datatype: 0, kind: Kind::Mutation };
    store.write(&found, new).unwrap().seqno()
}

fn backfilling(client: &Client) -> usize {
    let mut count = 0;
    client.streams.each(BUCKET, None, &mut |facts| count += usize::from(facts.has_slot));
    count
}

/// T2.3, T2.4: in sequential order a backfill says nothing before the one that was asked for first is done, however slow its client is; the order is
/// that of the time when the stream was asked for. In the usual order they take turns.
#[test]
fn sequential_backfills_of_a_connection_are_done_one_after_the_other() {
    for sequential in [true, false] {
        let rig = Rig::new(31);
        rig.load_large(600);
        let mut client = Client::of(&rig, 64 << 20);
        client.sequential.set(sequential);
        for number in 0..3 {
            assert!(matches!(client.open(&rig, number, TO_LATEST), StreamAnswer::Accepted(_)));
            // A simulated core runs its ready tasks in any order; on a real one each stream begins in the order of its request.
            rig.settle();
        }
        // Too late for those: their order was told when they were asked for.
        client.sequential.set(!sequential);
        rig.settle();
        let began = |client: &Client| {
            let arrived = client.pieces.arrived.borrow();
            (0..3).filter(|number| arrived.iter().any(|piece| piece.number.0 == *number)).count()
        };
        assert_eq!(began(&client), if sequential { 1 } else { 3 });
        assert_eq!(backfilling(&client), if sequential { 1 } else { 3 });
        let mut finished: Vec<u64> = Vec::new();
        loop {
            rig.settle();
            if !client.take_of(|_| true) {
                break;
            }
            for (number, sent) in &client.sent {
                if sent.end.is_some() && !finished.contains(&number.0) {
                    finished.push(number.0);
                }
                let is_next =
                    finished.iter().all(|done| *done < number.0) && finished.len() as u64 == number.0;
                let has_begun_early = !finished.contains(&number.0) && !is_next && !sent.seqnos.is_empty();
                assert!(!(sequential && has_begun_early), "{number:?} while {finished:?} are done");
            }
        }
        assert!(client.sent.values().all(|sent| sent.seqnos.len() == 600), "each has everything");
        if sequential {
            assert_eq!(finished, [0, 1, 2]);
        }
        assert_eq!((rig.views(), client.streams.buffer_bytes()), (0, 0));
    }
}

/// T2.5: what is not durable is not told: no marker and no document until the commit is through. Then the stream goes on at once, woken by it.
#[test]
fn a_backfill_of_what_is_not_durable_waits_for_the_commit_and_for_no_clock() {
    let rig = Rig::new(32);
    rig.load_large(300);
    rig.settle();
    rig.disk.set_latency(Duration::from_millis(40), Duration::from_millis(40));
    let seqno = write(&rig, b"\0late");
    let mut client = Client::of(&rig, 64 << 20);
    assert!(matches!(client.open(&rig, 1, StreamFlags::NONE), StreamAnswer::Accepted(_)));
    let store = rig.store();
    let mut waited = 0;
    while store.persisted_seqno() < seqno {
        assert!(client.pieces.arrived.borrow().is_empty(), "nothing was said before");
        assert!(rig.sim.step());
        waited += 1;
    }
    assert!(waited > 1);
    let durable_ns = rig.sim.now_ns();
    while client.pieces.arrived.borrow().is_empty() {
        assert!(rig.sim.step(), "the stream stands still");
    }
    // Some reads of 40 ms each, and no second of a clock that looks whether it may.
    assert!(rig.sim.now_ns() - durable_ns < 500_000_000);
    client.take_all(&rig);
    let sent = &client.sent[&StreamNumber(1)];
    assert_eq!((sent.markers[0].1, sent.seqnos.len() as u64), (seqno, seqno.0));
}

/// T2.6, T3.8: a backfill whose snapshot cannot be opened ends its stream with BackfillFail, once, and gives its slot back, once: with more streams than
/// slots every one is told.
#[test]
fn backfills_that_cannot_open_their_snapshot_end_and_leave_their_slots() {
    let rig = Rig::new(33);
    rig.load_large(300);
    rig.settle();
    let mut client = Client::of(&rig, 64 << 20);
    let count = 2 * Streams::BACKFILLS_MAX as u64 + 3;
    // What was written never becomes durable: the shard has failed, and a snapshot with it cannot be had.
    rig.disk.inject(Injection::next(Fault::WriteError).on("wal").sticky());
    write(&rig, b"\0lost");
    for number in 0..count {
        assert!(matches!(client.open(&rig, number, StreamFlags::NONE), StreamAnswer::Accepted(_)));
    }
    client.take_all(&rig);
    assert_eq!(client.sent.len() as u64, count);
    for sent in client.sent.values() {
        assert_eq!((sent.end, sent.seqnos.len(), sent.markers.len()), (BACKFILL_FAIL, 0, 0));
    }
    assert_eq!((backfilling(&client), rig.views(), client.streams.buffer_bytes()), (0, 0, 0));
    // A stream that wants only what is durable already finds it: nothing is left of the failures.
    client.streams.each(BUCKET, None, &mut |facts| panic!("{facts:?}"));
}

/// T2.10: a snapshot is as old as a few reads when its first document is made, though its stream has waited long for its turn; and the age of each is
/// recorded.
#[test]
fn snapshots_are_young_when_their_first_document_is_made() {
    let rig = Rig::new(34);
    rig.load_large(600);
    rig.settle();
    rig.disk.set_latency(Duration::from_millis(1), Duration::from_millis(2));
    let mut client = Client::of(&rig, 64 << 20);
    let count = 100;
    (0..count).for_each(|number| drop(client.open(&rig, number, TO_LATEST)));
    // The client takes one piece in ten seconds for a while: whoever waits for its turn waits long.
    for _ in 0..5 {
        rig.sim.run_for(Duration::from_secs(10));
        client.take_of(|_| true);
    }
    client.take_all(&rig);
    let ages = client.streams.metrics().first_item_ns.histogram();
    assert_eq!(ages.len(), count, "each backfill's is recorded");
    assert!(ages.value_at_quantile(0.99) <= QUANTUM.as_nanos() as u64, "{} ns", ages.max());
    assert!(client.sent.values().all(|sent| sent.end == Some(StreamEndStatus::Ok)));
}

/// T2.13: a backfill that takes no time at all is described by numbers.
#[test]
fn a_backfill_of_no_duration_is_described_by_numbers() {
    let rig = Rig::new(35);
    rig.load_large(20);
    rig.settle();
    let mut client = Client::of(&rig, 64 << 20);
    let before_ns = rig.sim.now_ns();
    client.open(&rig, 1, StreamFlags::NONE);
    while client.pieces.arrived.borrow().is_empty() {
        assert!(rig.sim.step());
    }
    assert_eq!(rig.sim.now_ns(), before_ns, "it took no time");
    client.take_of(|_| true);
    assert_eq!(client.streams.metrics().first_item_ns.histogram().max(), 0);
    let mut shown = 0;
    client.streams.each(BUCKET, None, &mut |facts| {
        for (name, value) in facts.fields {
            // What is not a finite number has no form in JSON but null.
            assert!(!value.is_null(), "{name}");
            shown += 1;
        }
    });
    assert!(shown > 20);
    assert_eq!(client.sent[&StreamNumber(1)].seqnos.len(), 20);
}

/// T3.5: a stream that dies while a read is under way registers nothing any more: no reader and no view is left when the read is done.
#[test]
fn a_read_that_ends_after_its_stream_registers_nothing() {
    for dies in [Client::close_one as fn(&Client), Client::lose_connection, Client::end_vbucket] {
        let rig = Rig::new(36);
        rig.load_large(600);
        rig.settle();
        rig.disk.set_latency(Duration::from_millis(5), Duration::from_millis(5));
        let client = Client::of(&rig, 64 << 20);
        client.open(&rig, 1, StreamFlags::NONE);
        let reads = rig.disk.stats().reads;
        while rig.disk.stats().reads == reads {
            assert!(rig.sim.step());
        }
        assert!(rig.views() > 0, "it reads");
        dies(&client);
        rig.settle();
        let store = rig.store();
        assert_eq!((rig.views(), store.versions_stats().readers, backfilling(&client)), (0, 0, 0));
        write(&rig, b"\0later");
        rig.settle();
        assert_eq!((rig.views(), store.versions_stats().readers), (0, 0));
    }
}

/// T3.11: a scan whose data stops before the end that was announced has failed, it has not come to its end.
#[test]
fn data_that_stops_too_early_is_a_failure_and_no_end() {
    let rig = Rig::new(37);
    rig.load_large(600);
    rig.settle();
    let mut image = rig.disk.image("data");
    let seqlog = (0..image.len() / BLOCK_BYTES).filter_map(|place| {
        let (identity, header) = peek_block(&image[place * BLOCK_BYTES..]).ok()?;
        (identity.kind == BlockType::Seqlog).then_some((header.first, place, header.blocks as usize))
    });
    let (first, place, blocks) = seqlog.max().unwrap();
    image[place * BLOCK_BYTES..(place + blocks) * BLOCK_BYTES].fill(0);
    rig.disk.set_image("data", image);
    let mut client = Client::of(&rig, 64 << 20);
    client.open(&rig, 1, TO_LATEST);
    client.take_all(&rig);
    let sent = &client.sent[&StreamNumber(1)];
    assert_eq!(sent.end, BACKFILL_FAIL);
    assert!(sent.seqnos.iter().all(|seqno| seqno.0 < first), "of the last block nothing is known");
    let failures = client.streams.failures(BUCKET, Some(AT.vb));
    assert_eq!(failures[0].unreadable.map(|(from, _)| from.0), Some(first));
}

/// T3.14: a bug in a backfill ends its stream without a word and its connection; the other backfills go on.
#[test]
fn a_panic_in_a_backfill_costs_its_connection_and_no_other_stream() {
    let rig = Rig::new(38);
    rig.load_large(600);
    let mut client = Client::of(&rig, 64 << 20);
    client.pieces.is_broken.set(true);
    client.open(&rig, 1, TO_LATEST);
    rig.settle();
    client.open(&rig, 2, TO_LATEST);
    client.take_all(&rig);
    let broken = &client.sent[&StreamNumber(1)];
    assert_eq!((broken.end, broken.disconnected), (None, true));
    let other = &client.sent[&StreamNumber(2)];
    assert_eq!((other.end, other.disconnected, other.seqnos.len()), (Some(StreamEndStatus::Ok), false, 600));
    assert_eq!((rig.views(), client.streams.buffer_bytes()), (0, 0));
}

impl Client {
    fn close_one(&self) {
        self.streams.close(StreamNumber(1));
    }

    fn lose_connection(&self) {
        self.streams.connection_gone(crate::range_scan::rig::CLIENT);
    }

    fn end_vbucket(&self) {
        self.streams.vbucket_changed(AT, None);
    }
}
