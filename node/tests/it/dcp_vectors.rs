//! The DCP vectors as typed messages: bytes to fields, and fields to the same bytes.
//!
//! `vectors` calls this for the opcodes that it does not know itself.

use ringbase::protocol::dcp::signal::{
    decode_buffer_ack, decode_close_stream, decode_seqno, encode_buffer_ack, encode_close_stream,
    encode_seqno_acked,
};
use ringbase::protocol::dcp::stream_request::{
    decode_add_stream, decode_failover_log, encode_failover_log, encode_rollback,
};
use ringbase::protocol::dcp::vb_seqnos::{decode_vb_seqnos, encode_vb_seqno};
use ringbase::protocol::dcp::{
    Control, DcpMessage, DcpOpen, DeletionForm, Envelope, FilterSelection, MarkerVersion, StreamFilter,
    StreamFlags, StreamReply, StreamRequest, SystemEventKind, VbSeqnosRequest,
};
use ringbase::protocol::extras::decode_u32;
use ringbase::protocol::{Datatype, DocumentKey, Features, Frame, HEADER_BYTES, Opcode};
use serde_json::Value;

use crate::dcp_bytes;
use crate::vectors::{agrees, has, number, vectors};

/// The frame's own bytes.
fn bytes_of(frame: &Frame<'_>) -> Vec<u8> {
    [&frame.header.encode(), frame.framing, frame.extras, frame.key, frame.value].concat()
}

/// Checks a request of a client or a message of a producer; whether there is a type for it.
pub(crate) fn check_request(frame: &Frame<'_>, fields: &Value) -> bool {
    let mut out = Vec::new();
    let opaque = frame.opaque();
    match frame.opcode() {
        Opcode::DCP_OPEN => {
            let open = DcpOpen::decode(frame, Features::NONE).unwrap();
            agrees(fields, "flags", u64::from(open.flags.bits()));
            open.encode(opaque, &mut out).unwrap();
        }
        Opcode::DCP_CONTROL => {
            Control::decode(frame.key, frame.value).unwrap().encode(opaque, &mut out).unwrap();
        }
        Opcode::DCP_STREAM_REQ => {
            check_stream_request(frame, fields);
            return true;
        }
        Opcode::DCP_ADD_STREAM => {
            assert_eq!(fields["flags"], "takeover");
            assert_eq!(decode_add_stream(frame.extras), Ok(StreamFlags::TAKE_OVER));
            return true;
        }
        Opcode::DCP_CLOSE_STREAM => {
            let envelope = Envelope::of(frame).unwrap();
            let enabled = envelope.stream_id.is_some();
            assert_eq!(decode_close_stream(frame, enabled), Ok(envelope.stream_id));
            encode_close_stream(envelope, &mut out);
        }
        Opcode::DCP_BUFFER_ACKNOWLEDGEMENT => {
            let bytes = decode_buffer_ack(frame.extras).unwrap();
            agrees(fields, "bytes", u64::from(bytes));
            encode_buffer_ack(bytes, opaque, &mut out);
        }
        Opcode::DCP_SEQNO_ACKNOWLEDGED => {
            let prepared = decode_seqno(frame.extras).unwrap();
            agrees(fields, "prepared", prepared.0);
            encode_seqno_acked(prepared, Envelope::of(frame).unwrap(), &mut out);
        }
        Opcode::SEQNO_PERSISTENCE => {
            assert_eq!(decode_seqno(frame.extras).unwrap().0.to_be_bytes(), frame.extras);
            return true;
        }
        Opcode::GET_ALL_VB_SEQNOS => {
            let request = VbSeqnosRequest::decode(frame.extras, true).unwrap();
            assert_eq!(request.extras(), frame.extras);
            if has(fields, "collection") {
                let collection = request.collection.map(|collection| u64::from(collection.0));
                assert_eq!(collection, Some(number(&fields["collection"])));
            }
            return true;
        }
        Opcode::DCP_GET_FAILOVER_LOG | Opcode::GET_FAILOVER_LOG => return true,
        opcode if opcode.is_dcp() => {
            let (envelope, message) = DcpMessage::decode(frame).unwrap();
            check_message(&message, envelope, fields);
            message.encode(envelope, &mut out);
        }
        _ => return false,
    }
    assert_eq!(out, bytes_of(frame));
    true
}

fn check_stream_request(frame: &Frame<'_>, fields: &Value) {
    let request = StreamRequest::decode(frame.extras).unwrap();
    agrees(fields, "flags", u64::from(request.flags.bits()));
    agrees(fields, "start", request.start.0);
    agrees(fields, "end", request.end.0);
    agrees(fields, "vb_uuid", request.uuid.0);
    agrees(fields, "snap_start", request.snap_start.0);
    agrees(fields, "snap_end", request.snap_end.0);
    let filter = StreamFilter::decode(frame.value).unwrap();
    let mut out = Vec::new();
    request.encode(frame.vbucket(), frame.opaque(), Some(&filter), &mut out).unwrap();
    if !frame.value.is_empty() {
        let FilterSelection::Collections(collections) = &filter.selection else { panic!("{filter:?}") };
        assert_eq!((collections[0].0, collections[1].0, filter.raw_stream_id), (0, 8, Some(2)));
        out[5] = Datatype::RAW.0; // the vector sends its JSON as RAW
    }
    assert_eq!(out, bytes_of(frame));
}

fn check_message(message: &DcpMessage<'_>, envelope: Envelope, fields: &Value) {
    if has(fields, "stream_id") {
        assert_eq!(envelope.stream_id.map(|id| u64::from(id.get())), Some(number(&fields["stream_id"])));
    }
    if let Some(seqno) = message.by_seqno() {
        agrees(fields, "by_seqno", seqno.0);
        agrees(fields, "seqno", seqno.0);
    }
    match *message {
        DcpMessage::SnapshotMarker(marker) => {
            agrees(fields, "start", marker.start.0);
            agrees(fields, "end", marker.end.0);
            match marker.version {
                MarkerVersion::V1 => {}
                MarkerVersion::V2_0 { max_visible, high_completed } => {
                    agrees(fields, "max_visible", max_visible.0);
                    agrees(fields, "high_completed", high_completed.0);
                }
                MarkerVersion::V2_2 { purge, high_prepared, .. } => {
                    agrees(fields, "purge_seqno", purge.0);
                    agrees(fields, "high_prepared", high_prepared.0);
                }
            }
        }
        DcpMessage::Mutation(mutation) => {
            agrees(fields, "rev_seqno", mutation.rev_seqno);
            agrees(fields, "flags", u64::from(mutation.flags));
            agrees(fields, "expiry", u64::from(mutation.expiry));
            if has(fields, "collection") {
                let key = DocumentKey::decode(mutation.key, true).unwrap();
                assert_eq!(u64::from(key.collection.0), number(&fields["collection"]));
            }
        }
        DcpMessage::Deletion(deletion) => {
            agrees(fields, "rev_seqno", deletion.rev_seqno);
            if has(fields, "delete_time") {
                let delete_time = number(&fields["delete_time"]) as u32;
                assert_eq!(deletion.form, DeletionForm::V2 { delete_time });
            }
        }
        DcpMessage::Prepare(prepare) => {
            agrees(fields, "level", prepare.level as u64);
            agrees(fields, "deleted", u64::from(prepare.deleted));
        }
        DcpMessage::Outcome(outcome) => {
            agrees(fields, "prepared", outcome.prepared.0);
            agrees(fields, if outcome.committed { "commit" } else { "abort" }, outcome.seqno.0);
        }
        DcpMessage::SystemEvent(event) => {
            agrees(fields, "manifest_uid", event.manifest_uid);
            if let SystemEventKind::CreateCollection { scope, collection, max_ttl, .. } = event.kind {
                agrees(fields, "scope", u64::from(scope.0));
                agrees(fields, "collection", u64::from(collection.0));
                agrees(fields, "max_ttl", u64::from(max_ttl.unwrap()));
            }
        }
        DcpMessage::StreamEnd(status) => assert_eq!(status.name(), fields["reason"]),
        DcpMessage::OsoSnapshot(edge) => {
            assert_eq!(format!("{edge:?}").to_lowercase(), fields["flags"].as_str().unwrap());
        }
        DcpMessage::SetVbucketState(state) => {
            assert_eq!(format!("{state:?}").to_lowercase(), fields["state"].as_str().unwrap());
        }
        DcpMessage::SeqnoAdvanced(_) | DcpMessage::Noop => {}
    }
}

/// Checks a response; whether there is a type for it.
pub(crate) fn check_response(frame: &Frame<'_>, fields: &Value) -> bool {
    match frame.opcode() {
        Opcode::DCP_STREAM_REQ => match StreamReply::decode(frame).unwrap() {
            StreamReply::Accepted(log) => {
                let pairs = fields["log"].as_array().unwrap();
                assert_eq!(log.len(), pairs.len());
                for (entry, pair) in log.iter().zip(pairs) {
                    assert_eq!((entry.uuid.0, entry.seqno.0), (number(&pair[0]), number(&pair[1])));
                }
            }
            StreamReply::Rollback(seqno) => {
                agrees(fields, "rollback", seqno.0);
                assert_eq!(encode_rollback(seqno), frame.value);
            }
            StreamReply::Refused(status) => panic!("{status}"),
        },
        Opcode::DCP_GET_FAILOVER_LOG | Opcode::GET_FAILOVER_LOG => {
            let mut out = Vec::new();
            encode_failover_log(&decode_failover_log(frame.value).unwrap(), &mut out);
            assert_eq!(out, frame.value);
        }
        Opcode::GET_ALL_VB_SEQNOS => {
            let mut out = Vec::new();
            let expected = fields["vbuckets"].as_array().unwrap();
            for ((vbucket, seqno), pair) in decode_vb_seqnos(frame.value).unwrap().zip(expected) {
                assert_eq!((u64::from(vbucket.0), seqno.0), (number(&pair[0]), number(&pair[1])));
                encode_vb_seqno(vbucket, seqno, &mut out);
            }
            assert_eq!(out, frame.value);
        }
        Opcode::DCP_ADD_STREAM => {
            let opaque = decode_u32(frame.extras).unwrap();
            agrees(fields, "stream_opaque", u64::from(opaque));
        }
        opcode if opcode.is_dcp() => {
            assert!(frame.extras.is_empty() && frame.key.is_empty() && frame.value.is_empty());
        }
        _ => return false,
    }
    true
}

/// Every vector cut at every byte, with the header's length mended and not, and with every bit changed.
#[test]
fn no_cut_or_changed_dcp_vector_panics() {
    for vector in vectors().iter().filter(|vector| vector.name.starts_with("dcp/")) {
        for at in 0..vector.bytes.len() {
            let mut cut = vector.bytes[..at].to_vec();
            dcp_bytes::exercise(&cut);
            if let Some(body_bytes) = at.checked_sub(HEADER_BYTES) {
                cut[8..12].copy_from_slice(&(body_bytes as u32).to_be_bytes());
                dcp_bytes::exercise(&cut);
            }
            for bit in 0..8 {
                let mut bad = vector.bytes.clone();
                bad[at] ^= 1 << bit;
                dcp_bytes::exercise(&bad);
            }
        }
    }
}
