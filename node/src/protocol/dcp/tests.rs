//! Every message both ways, with and without a stream id; what each weighs; what is refused.

use ringbase_storage::types::{Cas, Seqno, VbId};

use super::testing::frame;
use super::*;
use crate::protocol::framing::DurabilityLevel;
use crate::protocol::{CollectionId, Datatype, Opcode, Status};

const KEY: &[u8] = b"\x08key";
const VALUE: &[u8] = b"value";
const PLAIN: Envelope = Envelope { vbucket: VbId(5), opaque: 0xdead_beef, stream_id: None };

fn marker(version: MarkerVersion) -> DcpMessage<'static> {
    let flags = MarkerFlags::BACKFILL | MarkerFlags::HISTORY;
    DcpMessage::SnapshotMarker(SnapshotMarker { start: Seqno(1), end: Seqno(9), flags, version })
}

fn deletion(form: DeletionForm) -> DcpMessage<'static> {
    DcpMessage::Deletion(Deletion {
        by_seqno: Seqno(2),
        rev_seqno: 3,
        form,
        cas: Cas(4),
        datatype: Datatype::XATTR,
        key: KEY,
        value: VALUE,
    })
}

fn event(kind: SystemEventKind<'static>) -> DcpMessage<'static> {
    DcpMessage::SystemEvent(SystemEvent { by_seqno: Seqno(2), manifest_uid: 3, kind })
}

fn outcome(committed: bool) -> DcpMessage<'static> {
    DcpMessage::Outcome(Outcome { prepared: Seqno(1), seqno: Seqno(2), committed, key: KEY })
}

/// Every message, and what section 9 counts for it without a stream id.
fn messages() -> Vec<(DcpMessage<'static>, usize)> {
    let (document, name) = (KEY.len() + VALUE.len(), "shop");
    let (scope, collection) = (ScopeId(8), CollectionId(9));
    let [max_visible, high_completed, purge, high_prepared] = [1, 2, 3, 4].map(Seqno);
    let mutation = Mutation {
        by_seqno: Seqno(1),
        rev_seqno: 2,
        flags: 3,
        expiry: 4,
        lock_time: 5,
        nru: 6,
        cas: Cas(7),
        datatype: Datatype::JSON,
        key: KEY,
        value: VALUE,
    };
    let prepare = Prepare {
        by_seqno: Seqno(1),
        rev_seqno: 2,
        flags: 3,
        expiry: 4,
        lock_time: 5,
        nru: 6,
        deleted: true,
        level: DurabilityLevel::PersistToMajority,
        cas: Cas(7),
        datatype: Datatype::RAW,
        key: KEY,
        value: VALUE,
    };
    vec![
        (marker(MarkerVersion::V1), 44),
        (marker(MarkerVersion::V2_0 { max_visible, high_completed }), 61),
        (marker(MarkerVersion::V2_2 { max_visible, high_completed, purge, high_prepared }), 77),
        (DcpMessage::Mutation(mutation), 55 + document),
        (deletion(DeletionForm::V1), 42 + document),
        (deletion(DeletionForm::V2 { delete_time: 5 }), 45 + document),
        (deletion(DeletionForm::Expiration { delete_time: 5 }), 44 + document),
        (DcpMessage::Prepare(prepare), 57 + document),
        (outcome(true), 40 + KEY.len()),
        (outcome(false), 40 + KEY.len()),
        (event(SystemEventKind::CreateCollection { scope, collection, max_ttl: None, name }), 37 + 4 + 16),
        (event(SystemEventKind::CreateCollection { scope, collection, max_ttl: Some(1), name }), 37 + 4 + 20),
        (event(SystemEventKind::DropCollection { scope, collection }), 37 + 16),
        (event(SystemEventKind::CreateScope { scope, name }), 37 + 4 + 12),
        (event(SystemEventKind::DropScope { scope }), 37 + 12),
        (DcpMessage::StreamEnd(StreamEndStatus::TooSlow), 28),
        (DcpMessage::OsoSnapshot(OsoSnapshot::End), 28),
        (DcpMessage::SeqnoAdvanced(Seqno(7)), 32),
        (DcpMessage::SetVbucketState(VbucketState::Pending), 25),
        (DcpMessage::Noop, 0),
    ]
}

fn encoded(message: &DcpMessage<'_>, envelope: Envelope) -> Vec<u8> {
    let mut out = Vec::new();
    message.encode(envelope, &mut out);
    out
}

#[test]
fn every_message_reads_back_with_and_without_a_stream_id() {
    let with_id = PLAIN.with_stream_id(StreamId::new(0x1234).unwrap());
    for (message, _) in messages() {
        for envelope in [PLAIN, with_id] {
            let bytes = encoded(&message, envelope);
            let (found, decoded) = DcpMessage::decode(&frame(&bytes)).unwrap();
            assert_eq!(decoded, message);
            if message == DcpMessage::Noop {
                assert_eq!(found, Envelope::new(VbId(0), envelope.opaque), "a noop is of no stream");
                continue;
            }
            assert_eq!(found, envelope);
            if envelope.stream_id.is_some() {
                assert_eq!((bytes[0], &bytes[24..27]), (0x08, &[0x22, 0x12, 0x34][..]));
            }
        }
    }
}

/// Section 9. A stream id adds its three bytes, a noop is free.
#[test]
fn every_message_weighs_what_the_table_of_flow_control_says() {
    let with_id = PLAIN.with_stream_id(StreamId::MIN);
    for (message, expected) in messages() {
        let weigh = |envelope| {
            let bytes = encoded(&message, envelope);
            flow_control_bytes(frame(&bytes).opcode(), bytes.len())
        };
        assert_eq!(weigh(PLAIN), expected, "{message:?}");
        if message != DcpMessage::Noop {
            assert_eq!(weigh(with_id), expected + 3, "{message:?}");
        }
    }
}

#[test]
fn whatever_byte_is_cut_or_changed_a_message_is_refused_or_reads_back_as_it_is() {
    use crate::protocol::{Decoded, FrameLimits, decode_frame};

    let with_id = PLAIN.with_stream_id(StreamId::MIN);
    let check = |bytes: &[u8]| {
        if let Ok(Decoded::Frame(frame)) = decode_frame(bytes, FrameLimits::AUTHENTICATED)
            && let Ok((envelope, message)) = DcpMessage::decode(&frame)
        {
            let again = encoded(&message, envelope);
            assert_eq!(DcpMessage::decode(&super::testing::frame(&again)).unwrap().1, message);
        }
    };
    for (message, _) in messages() {
        for envelope in [PLAIN, with_id] {
            let bytes = encoded(&message, envelope);
            for at in 0..bytes.len() * 8 {
                let mut bad = bytes.clone();
                bad[at / 8] ^= 1 << (at % 8);
                check(&bad);
            }
            for cut in 24..bytes.len() {
                let mut bad = bytes[..cut].to_vec();
                bad[8..12].copy_from_slice(&((cut - 24) as u32).to_be_bytes());
                check(&bad);
            }
        }
    }
}

#[test]
fn reserved_fields_unknown_numbers_and_other_opcodes_are_refused() {
    let status =
        |bytes: &[u8]| DcpMessage::decode(&frame(bytes)).map(|_| ()).map_err(|refusal| refusal.status);
    let changed = |message: &DcpMessage<'_>, at: usize, byte: u8| {
        let mut bytes = encoded(message, PLAIN);
        bytes[at] = byte;
        status(&bytes)
    };
    let all = messages();
    for (index, at, byte, what) in [
        (3, 24 + 29, 1, "metadata length of a mutation"),
        (4, 24 + 17, 1, "metadata length of a deletion"),
        (5, 24 + 20, 1, "last byte of a deletion"),
        (7, 24 + 29, 2, "deleted of a prepare"),
        (7, 24 + 30, 0, "level of a prepare"),
        (7, 24 + 30, 4, "level of a prepare"),
        (1, 24, 1, "version of a marker"),
        (10, 24 + 12, 3, "version of an event"),
        (14, 24 + 12, 1, "version of an event"),
        (10, 24 + 11, 2, "number of an event"),
        (15, 24 + 3, 9, "status of an end"),
        (16, 24 + 3, 3, "edge of a snapshot"),
        (18, 24, 0, "state of a vbucket"),
    ] {
        assert_eq!(changed(&all[index].0, at, byte), Err(Status::EINVAL), "{what}");
    }
    assert_eq!(changed(&all[10].0, 24 + 12, 2), Err(Status::NOT_SUPPORTED), "FlatBuffers");
    let noop = encoded(&DcpMessage::Noop, PLAIN);
    for (opcode, expected) in [
        (Opcode::DCP_CACHE_TRANSFER, Status::NOT_SUPPORTED),
        (Opcode::DCP_CACHE_TRANSFER_END, Status::NOT_SUPPORTED),
        (Opcode::DCP_OPEN, Status::UNKNOWN_COMMAND),
        (Opcode::DCP_SEQNO_ACKNOWLEDGED, Status::UNKNOWN_COMMAND),
        (Opcode::GET, Status::UNKNOWN_COMMAND),
    ] {
        let mut bytes = noop.clone();
        bytes[1] = opcode.0;
        assert_eq!(status(&bytes), Err(expected), "{opcode}");
    }
    let mut response = noop.clone();
    response[0] = 0x81;
    assert_eq!(status(&response), Err(Status::EINVAL), "a response is no message");
    let mut zero = encoded(&all[17].0, PLAIN.with_stream_id(StreamId::MIN));
    zero[26] = 0;
    assert_eq!(status(&zero), Err(Status::EINVAL), "stream id 0");
}

#[test]
fn only_messages_with_a_place_have_a_seqno() {
    let placed = messages().iter().filter(|(message, _)| message.by_seqno().is_some()).count();
    assert_eq!(placed, 13);
}
