//! Everything that reads the bytes of a DCP peer or a stored document, applied to one buffer; what the mutation
//! tests call.
//!
//! It asserts what must hold for any input: a message that decodes encodes to a frame of the same meaning, decoded
//! values are within their bounds, and bytes that are refused leave nothing behind.

use ringbase::dcp::filter::CollectionFilter;
use ringbase::protocol::dcp::open::DcpOpen;
use ringbase::protocol::dcp::signal::{decode_buffer_ack, decode_close_stream, decode_seqno};
use ringbase::protocol::dcp::stream_request::{
    FAILOVER_ENTRIES_MAX, decode_failover_log, encode_failover_log,
};
use ringbase::protocol::dcp::vb_seqnos::{decode_vb_seqnos, encode_vb_seqno};
use ringbase::protocol::dcp::{
    Control, DcpMessage, DocumentForm, Envelope, OpenFlags, StreamFilter, StreamId, StreamReply,
    StreamRequest, VbSeqnosRequest, append_stored, flow_control_bytes,
};
use ringbase::protocol::hello::Feature;
use ringbase::protocol::{Decoded, Features, Frame, FrameLimits, decode_frame};
use ringbase_storage::types::{Kind, VbId};

/// Reads `bytes` as a stream of frames, and as a stored document.
pub(crate) fn exercise(bytes: &[u8]) {
    exercise_stored(bytes);
    let mut rest = bytes;
    while let Ok(Decoded::Frame(frame)) = decode_frame(rest, FrameLimits::AUTHENTICATED) {
        exercise_message(&frame);
        exercise_request(&frame);
        rest = &rest[frame.frame_bytes()..];
    }
}

fn exercise_message(frame: &Frame<'_>) {
    let Ok((envelope, message)) = DcpMessage::decode(frame) else { return };
    let mut out = Vec::new();
    message.encode(envelope, &mut out);
    assert!(out.len() <= frame.frame_bytes(), "nothing is added");
    let Ok(Decoded::Frame(again)) = decode_frame(&out, FrameLimits::AUTHENTICATED) else {
        panic!("{out:x?}")
    };
    assert_eq!(DcpMessage::decode(&again).unwrap().1, message);
    assert!(flow_control_bytes(again.opcode(), out.len()) <= out.len() + 2);
}

fn exercise_request(frame: &Frame<'_>) {
    for features in [Features::NONE, Features::of(Feature::ALL).without(Feature::UnorderedExecution)] {
        if let Ok(open) = DcpOpen::decode(frame, features) {
            let mut out = Vec::new();
            open.encode(frame.opaque(), &mut out).unwrap();
            let Ok(Decoded::Frame(again)) = decode_frame(&out, FrameLimits::AUTHENTICATED) else { panic!() };
            assert_eq!(DcpOpen::decode(&again, features), Ok(open));
        }
    }
    if let Ok(control) = Control::decode(frame.key, frame.value) {
        let (key, value) = control.text();
        assert!(Control::decode(key.as_bytes(), value.as_bytes()).is_ok());
    }
    if let Ok(request) = StreamRequest::decode(frame.extras) {
        assert_eq!(StreamRequest::decode(&request.extras()), Ok(request));
    }
    if let Ok(filter) = StreamFilter::decode(frame.value) {
        assert_eq!(StreamFilter::decode(&filter.encode()).as_ref(), Ok(&filter));
        assert!(
            CollectionFilter::new(&filter.selection, &[]).carries_key(frame.key) || filter.encode() != b""
        );
    }
    if let Some(log) = decode_failover_log(frame.value) {
        assert!((1..=FAILOVER_ENTRIES_MAX).contains(&log.len()));
        let mut again = Vec::new();
        encode_failover_log(&log, &mut again);
        assert_eq!(again, frame.value);
    }
    if let Some(entries) = decode_vb_seqnos(frame.value) {
        let mut again = Vec::new();
        entries.for_each(|(vbucket, seqno)| encode_vb_seqno(vbucket, seqno, &mut again));
        assert_eq!(again, frame.value);
    }
    if !frame.header.magic.is_request() {
        let _ = StreamReply::decode(frame);
    }
    for on in [false, true] {
        let _ = (VbSeqnosRequest::decode(frame.extras, on), decode_close_stream(frame, on));
    }
    let _ = (decode_buffer_ack(frame.extras), decode_seqno(frame.extras));
}

fn exercise_stored(bytes: &[u8]) {
    let plain = Envelope::new(VbId(7), 0x0102_0304);
    let with_id = plain.with_stream_id(StreamId::MIN);
    let all = Features::of(Feature::ALL);
    let times = OpenFlags::PRODUCER | OpenFlags::INCLUDE_DELETE_TIMES;
    for kind in [Kind::Mutation, Kind::Deletion, Kind::Expiration] {
        for (flags, features, envelope) in
            [(times, all, plain), (times, all, with_id), (OpenFlags::PRODUCER, Features::NONE, plain)]
        {
            let form = DocumentForm::of(flags, features, true);
            let mut out = Vec::new();
            match append_stored(bytes, kind, &form, envelope, &mut out) {
                Ok(length) => {
                    assert_eq!(length, out.len());
                    let Ok(Decoded::Frame(frame)) = decode_frame(&out, FrameLimits::AUTHENTICATED) else {
                        panic!("{out:x?}")
                    };
                    assert_eq!(Envelope::of(&frame), Ok(envelope));
                }
                Err(_) => assert_eq!(out, b""),
            }
        }
    }
}
