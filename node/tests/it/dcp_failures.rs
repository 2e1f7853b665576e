//! Backfills whose data cannot be read, over a simulated disk: the client is told, at once, and nobody else is hurt.

use ringbase::dcp::failures::{FailureCause, ReadFailure};
use ringbase::dcp::piece::{StreamAnswer, StreamNumber};
use ringbase::protocol::dcp::{StreamEndStatus, StreamFlags, StreamRequest};
use ringbase_storage::format::block::{BlockType, peek_block};
use ringbase_storage::io::BLOCK_BYTES;
use ringbase_storage::io::sim::{Fault, Injection};
use ringbase_storage::mutant::{Mutant, turn_on};
use ringbase_storage::types::{Kind, Seqno, VbUuid};
use ringbase_storage::vbstore::NewVersion;

use crate::dcp_streams::{Client, TO_LATEST};
use crate::range_scan::rig::{AT, BUCKET, Rig};
use crate::recorded::panic_text;

const COUNT: u64 = 2_000;
const ENOMEM: i32 = 12;
const ECANCELED: i32 = 125;
const ONE: StreamNumber = StreamNumber(1);
const BACKFILL_FAIL: Option<StreamEndStatus> = Some(StreamEndStatus::BackfillFail);
/// Damage begins in the block that has this seqno.
const DAMAGED_FROM: u64 = 600;

/// How the blocks of the data file are damaged.
#[derive(Debug, Clone, Copy)]
enum Damage {
    /// Each has the contents of another, whole and with a checksum that fits.
    Misplaced,
    /// The second half of each never arrived.
    Torn,
}

fn only_failure(client: &Client) -> ReadFailure {
    let failures = client.streams.failures(BUCKET, Some(AT.vb));
    assert_eq!(failures.len(), 1, "{failures:?}");
    failures[0].clone()
}

/// Every block of the seqlog from [`DAMAGED_FROM`] on: its place in the data file, in bytes, and its bytes.
fn late_blocks(image: &[u8]) -> Vec<(usize, Vec<u8>)> {
    let mut blocks = Vec::new();
    for place in 0..image.len() / BLOCK_BYTES {
        let bytes = &image[place * BLOCK_BYTES..];
        if let Ok((identity, header)) = peek_block(bytes)
            && identity.kind == BlockType::Seqlog
            && header.first >= DAMAGED_FROM
        {
            let len = header.blocks as usize * BLOCK_BYTES;
            blocks.push((place * BLOCK_BYTES, bytes[..len].to_vec()));
        }
    }
    blocks
}

/// Lets every read of one block in the middle fail.
pub(crate) fn spoil_one(rig: &Rig, fault: Fault) {
    rig.settle();
    let blocks = late_blocks(&rig.disk.image("data"));
    let (place, bytes) = &blocks[blocks.len() / 2];
    let place = *place as u64..(place + bytes.len()) as u64;
    rig.disk.inject(Injection::next(fault).on("data").at(place).sticky());
}

/// Damages every block of the seqlog from [`DAMAGED_FROM`] on.
fn damage(rig: &Rig, damage: Damage) {
    rig.settle();
    let mut image = rig.disk.image("data");
    let blocks = late_blocks(&image);
    assert!(blocks.len() > 10, "{} blocks", blocks.len());
    for (index, (offset, bytes)) in blocks.iter().enumerate() {
        let place = *offset..*offset + bytes.len();
        match damage {
            Damage::Misplaced => {
                let others = blocks.iter().cycle().skip(index + 1).take(blocks.len() - 1);
                let mut same = others.map(|(_, other)| other).filter(|other| other.len() == bytes.len());
                if let Some(other) = same.next() {
                    image[place].copy_from_slice(other);
                }
            }
            Damage::Torn => image[place.start + bytes.len() / 2..place.end].fill(0),
        }
    }
    rig.disk.set_image("data", image);
}

/// What the first of two streams gets when a read under it fails in this way, and what it gets when it goes on from there.
fn check_failed_read(fault: Fault, cause: FailureCause) {
    let rig = Rig::new(21);
    rig.load_large(COUNT as usize);
    let mut client = Client::of(&rig, 64 << 20);
    spoil_one(&rig, fault);
    client.open(&rig, 1, TO_LATEST);
    client.take_all(&rig);
    rig.disk.clear_faults();
    client.open(&rig, 2, TO_LATEST);
    client.take_all(&rig);
    let sent = &client.sent[&ONE];
    assert_eq!((sent.end, sent.discarded), (BACKFILL_FAIL, true), "{fault:?}");
    assert_eq!(sent.markers, [(Seqno(0), Seqno(COUNT))]);
    assert!(sent.seqnos.iter().copied().eq((1..=sent.seqnos.len() as u64).map(Seqno)), "{fault:?}");
    assert!(sent.seqnos.len() > 50, "{fault:?}: what lies before it was sent");
    let failure = only_failure(&client);
    let (first, last) = failure.unreadable.expect("it is known which block");
    assert_eq!((failure.cause, failure.number, first), (cause, ONE, failure.last_read.next()), "{fault:?}");
    assert!(first <= last && last < Seqno(COUNT), "{failure:?}");
    assert_eq!(failure.place.as_ref().map(|(device, _)| &**device), Some("data"));
    assert_eq!(client.streams.metrics().read_failures.get(), 1);
    let sibling = &client.sent[&StreamNumber(2)];
    assert_eq!((sibling.end, sibling.seqnos.len() as u64), (Some(StreamEndStatus::Ok), COUNT));
    // T3.3: the client has a part of a snapshot, and goes on from there.
    let (start, (snap_start, snap_end)) = (sent.seqnos.last().copied().unwrap(), sent.markers[0]);
    let uuid: VbUuid = rig.store().uuid();
    let request = StreamRequest { flags: TO_LATEST, start, end: Seqno(COUNT), uuid, snap_start, snap_end };
    let answer = client.open_from(&rig, 3, request);
    assert!(matches!(answer, StreamAnswer::Accepted(_)), "{answer:?}");
    client.take_all(&rig);
    let rest = &client.sent[&StreamNumber(3)];
    assert_eq!((rest.end, rest.seqnos.first()), (Some(StreamEndStatus::Ok), Some(&start.next())));
    assert_eq!(rest.seqnos.len() as u64, COUNT - start.0);
    assert_eq!((rig.views(), client.streams.buffer_bytes()), (0, 0));
}

/// T3.1 to T3.4, T3.6, T3.16, T3.17, T3.19: whatever goes wrong with a read, the stream that made it ends, what was sent before is whole and can be
/// gone on from, others do not notice, and it is said which seqnos are missing.
#[test]
fn a_read_that_fails_in_any_way_ends_its_stream_and_no_other() {
    for (fault, cause) in [
        (Fault::ReadError, FailureCause::DeviceError),
        (Fault::ShortRead, FailureCause::DeviceError),
        (Fault::ReadErrno(ENOMEM), FailureCause::DeviceError),
        (Fault::ReadErrno(ECANCELED), FailureCause::DeviceError),
        (Fault::BitFlip, FailureCause::DamagedBlock),
    ] {
        check_failed_read(fault, cause);
    }
}

/// The mutant takes a read that failed for the end of what there is.
#[test]
fn a_read_error_that_is_forgotten_is_noticed() {
    let caught = std::panic::catch_unwind(|| {
        let _mutant = turn_on(Mutant::ForgetReadErrors);
        check_failed_read(Fault::ReadError, FailureCause::DeviceError);
    });
    let panic = caught.expect_err("the mutant is noticed");
    let text = panic_text(&*panic);
    assert!(text.contains("BackfillFail") && text.contains("Some(Ok)"), "{text}");
}

/// T3.17: bytes that are whole and belong elsewhere, and bytes of which half never arrived, are no documents.
#[test]
fn a_misplaced_and_a_torn_block_end_the_stream_where_they_begin() {
    for kind in [Damage::Misplaced, Damage::Torn] {
        let rig = Rig::new(22);
        rig.load_large(COUNT as usize);
        damage(&rig, kind);
        let mut client = Client::of(&rig, 64 << 20);
        client.open(&rig, 1, TO_LATEST);
        client.take_all(&rig);
        let (sent, failure) = (&client.sent[&ONE], only_failure(&client));
        assert_eq!((sent.end, failure.cause), (BACKFILL_FAIL, FailureCause::DamagedBlock), "{kind:?}");
        let (first, last) = failure.unreadable.unwrap();
        assert!(first >= Seqno(DAMAGED_FROM) && first <= last && last <= Seqno(COUNT));
        assert_eq!(first, failure.last_read.next(), "{kind:?}");
        assert!(sent.seqnos.iter().all(|seqno| *seqno < first), "{kind:?}");
        assert_eq!((rig.views(), client.streams.buffer_bytes()), (0, 0));
    }
}

/// T3.12: a value that says it is compressed and is not fails its stream; it is not passed over.
#[test]
fn a_value_that_cannot_be_inflated_fails_the_stream() {
    for flushed in [true, false] {
        let rig = Rig::new(24);
        rig.load(10, false);
        let store = rig.store();
        rig.sim.block_on(async {
            let found = store.get(b"\0bad").await.unwrap();
            let (value, kind) = (&[0xff; 40][..], Kind::Mutation);
            let new = NewVersion { key: b"\0bad", value, flags: 0, expiry: 0, datatype: 2, kind };
            store.write(&found, new).unwrap();
            rig.writer().settle(flushed).await;
        });
        let mut client = Client::of(&rig, 64 << 20);
        client.open(&rig, 1, if flushed { StreamFlags::DISK_ONLY } else { TO_LATEST });
        client.take_all(&rig);
        let failure = only_failure(&client);
        assert_eq!((client.sent[&ONE].end, failure.cause), (BACKFILL_FAIL, FailureCause::BadDocument));
        assert_eq!(failure.unreadable, Some((Seqno(11), Seqno(11))));
        assert_eq!(rig.views(), 0);
    }
}

/// T3.7, T3.13: a stream that is closed in the middle reads no further, and is no failure.
#[test]
fn a_closed_stream_reads_no_further_and_has_not_failed() {
    let rig = Rig::new(25);
    rig.load_large(COUNT as usize);
    let mut client = Client::of(&rig, 64 << 20);
    client.open(&rig, 1, TO_LATEST);
    rig.settle();
    client.streams.close(ONE);
    rig.settle();
    let reads = rig.disk.stats().reads;
    client.take_all(&rig);
    assert_eq!((rig.disk.stats().reads, rig.views(), client.streams.buffer_bytes()), (reads, 0, 0));
    assert_eq!(client.streams.metrics().read_failures.get(), 0);
    assert!(client.streams.failures(BUCKET, None).is_empty());
    assert_eq!(client.sent[&ONE].end, None);
}

/// Where the only stream stands.
fn position(client: &Client) -> u64 {
    let mut position = 0;
    client.streams.each(BUCKET, None, &mut |facts| {
        let field = facts.fields.iter().find(|(name, _)| name == "last_read_seqno");
        position = field.and_then(|(_, value)| value.as_u64()).unwrap_or_default();
    });
    position
}

/// T3.2, T3.15: a stream that stands in front of a bad block and may not go on says so within 100 ms: while its client takes nothing, and while
/// streams hold more memory than they may.
#[test]
fn a_bad_block_is_told_at_once_without_room_for_what_is_in_it() {
    for bytes_max in [64 << 20, 1] {
        // One document a block: a stream without room stands in front of one.
        let world = || {
            let rig = Rig::new(23);
            let writer = rig.writer();
            rig.sim.block_on(async {
                for number in 0..40_u8 {
                    writer.put(&[b'k', number], Some(&[number + 1; 15_000])).await;
                }
                writer.settle(true).await;
            });
            let client = Client::of(&rig, bytes_max);
            (rig, client)
        };
        let (rig, client) = world();
        client.open(&rig, 1, TO_LATEST);
        rig.settle();
        let stands_at = position(&client);
        assert!((3..30).contains(&stands_at), "{stands_at}");

        let (rig, mut client) = world();
        rig.settle();
        let value = [stands_at as u8 + 1; 64];
        let image = rig.disk.image("data");
        let place = image.windows(64).position(|bytes| bytes == value).expect("it was flushed") as u64;
        rig.disk.inject(Injection::next(Fault::ReadError).on("data").at(place..place + 1).sticky());
        client.open(&rig, 1, TO_LATEST);
        rig.settle();
        let has_failed = client.pieces.arrived.borrow().iter().any(|piece| piece.discards);
        assert!(has_failed, "{bytes_max}: at {stands_at}");
        let unreadable = only_failure(&client).unreadable;
        assert_eq!(unreadable, Some((Seqno(stands_at + 1), Seqno(stands_at + 1))));
        client.take_all(&rig);
        let sent = &client.sent[&ONE];
        assert_eq!((sent.end, sent.discarded), (BACKFILL_FAIL, true));
        assert!(sent.seqnos.iter().copied().eq((1..=stands_at).map(Seqno)));
        assert_eq!((rig.views(), client.streams.buffer_bytes()), (0, 0));
    }
}
