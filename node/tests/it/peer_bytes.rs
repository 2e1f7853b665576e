//! Everything that reads a peer's bytes, applied to one buffer; shared by the mutation test and the fuzz target.
//!
//! It asserts what must hold for any input: frames lie within the buffer, what is asked for is within the limit,
//! iterators end, and what decodes encodes to the same bytes again.

use ringbase::auth::scram::{ClientFinal, ClientFirst, ServerFirst};
use ringbase::auth::{SaslServer, Users};
use ringbase::protocol::cluster_map::ClusterMap;
use ringbase::protocol::error_map::ErrorMap;
use ringbase::protocol::extras::{
    ArithmeticExtras, CollectionFound, CollectionPath, ConfigVersion, MutationToken, ObservedSeqno,
    StoreExtras,
};
use ringbase::protocol::hello::{Agent, Feature};
use ringbase::protocol::range_scan::{RangeScanContinue, RangeScanCreate};
use ringbase::protocol::scan_records::{DocumentRecords, KeyRecords, encode_key};
use ringbase::protocol::stat::StatRequest;
use ringbase::protocol::with_meta::WithMetaExtras;
use ringbase::protocol::xattr::{Owner, PairBytes, Section};
use ringbase::protocol::{
    ConnectionState, Datatype, Decoded, ErrorContext, Features, Frame, FrameLimits, HEADER_BYTES,
    RequestFraming, admit, decode_frame, validate,
};

const NO_FEATURES: ConnectionState =
    ConnectionState { authenticated: true, features: Features::NONE, config_only_bucket: false };
const ALL_FEATURES: ConnectionState =
    ConnectionState { features: Features::of(Feature::ALL), config_only_bucket: false, ..NO_FEATURES };
const UNAUTHENTICATED: ConnectionState = ConnectionState { authenticated: false, ..NO_FEATURES };

/// Reads `bytes` as a stream of frames; returns how many there were.
pub(crate) fn exercise(bytes: &[u8]) -> usize {
    let mut rest = bytes;
    let mut count = 0;
    loop {
        match decode_frame(rest, FrameLimits::AUTHENTICATED) {
            Ok(Decoded::Frame(frame)) => {
                exercise_frame(&frame, rest);
                rest = &rest[frame.frame_bytes()..];
                count += 1;
            }
            Ok(Decoded::Incomplete { frame_bytes }) => {
                assert!(frame_bytes > rest.len());
                assert!(frame_bytes <= FrameLimits::AUTHENTICATED.frame_bytes_max);
                return count;
            }
            Err(_) => return count,
        }
    }
}

fn exercise_frame(frame: &Frame<'_>, bytes: &[u8]) {
    assert_eq!(frame.header.encode(), bytes[..HEADER_BYTES]);
    let parts = [frame.framing, frame.extras, frame.key, frame.value];
    assert_eq!(parts.concat(), bytes[HEADER_BYTES..frame.frame_bytes()]);
    for connection in [&NO_FEATURES, &ALL_FEATURES, &UNAUTHENTICATED] {
        let _ = admit(&frame.header, connection.authenticated);
        if let Ok(validated) = validate(frame, connection)
            && let Some(key) = validated.key
        {
            let mut buffer = [0; ringbase_storage::types::KEY_BYTES_MAX];
            assert!(key.with_prefix(&mut buffer).ends_with(key.logical));
            assert!(key.vbucket(128).0 < 128);
        }
    }
    if let Ok(framing) = RequestFraming::decode(frame.framing, frame.opcode()) {
        assert_eq!(RequestFraming::decode(&framing.encode(), frame.opcode()), Ok(framing));
    }
    let _ = frame.response_framing();
    for part in [frame.extras, frame.key, frame.value] {
        exercise_bodies(part);
    }
}

/// Reads one part of a frame as every body there is.
pub(crate) fn exercise_bodies(part: &[u8]) {
    if let Ok(extras) = StoreExtras::decode(part) {
        assert_eq!(extras.encode(), part);
    }
    if let Ok(extras) = ArithmeticExtras::decode(part) {
        assert_eq!(extras.encode(), part);
    }
    if let Some(token) = MutationToken::decode(part) {
        assert_eq!(token.encode(), part);
    }
    if let Some(observed) = ObservedSeqno::decode(part) {
        assert_eq!(observed.encode(), part);
    }
    if let Some(found) = CollectionFound::decode(part) {
        assert_eq!(found.encode(), part);
    }
    if let Ok(Some(version)) = ConfigVersion::decode(part) {
        assert_eq!(version.encode(), part);
    }
    if let Ok(request) = RangeScanContinue::decode(part) {
        assert_eq!(request.encode(), part);
    }
    if let Ok(create) = RangeScanCreate::decode(part, ALL_FEATURES.features) {
        assert_eq!(RangeScanCreate::decode(&create.encode(), ALL_FEATURES.features), Ok(create));
    }
    if let Ok(granted) = Features::negotiate(part, Features::of(Feature::ALL)) {
        assert_eq!(Features::decode(&granted.encode()), Ok(granted));
    }
    let keys: Vec<_> = KeyRecords::new(part).collect();
    if keys.iter().all(Result::is_ok) {
        let mut encoded = Vec::new();
        keys.iter().flatten().for_each(|key| encode_key(key, &mut encoded));
        assert_eq!(encoded, part);
    }
    let documents: Vec<_> = DocumentRecords::new(part).collect();
    if documents.iter().all(Result::is_ok) {
        let mut encoded = Vec::new();
        documents.iter().flatten().for_each(|document| document.encode(&mut encoded));
        assert_eq!(encoded, part);
    }
    let _ = (Agent::decode(part), StatRequest::decode(part), CollectionPath::decode(part));
    let _ = (ErrorContext::decode(part), ErrorMap::decode(part), ClusterMap::decode(part));
    let _ = Datatype::of_body(part);
    exercise_xattrs(part);
    let _ = (ServerFirst::parse(part), ClientFinal::parse(part));
    if ClientFirst::parse(part).is_ok() {
        let users = Users::empty(&mut |bytes| bytes.fill(1));
        let mut server = SaslServer::new();
        let _ = server.start(b"SCRAM-SHA1", part, &users, [0; 16]);
        let _ = server.step(b"SCRAM-SHA1", part);
    }
}

/// Reads one part of a frame as a value with xattrs, and as the extras of a command with metadata.
pub(crate) fn exercise_xattrs(part: &[u8]) {
    if let Ok(extras) = WithMetaExtras::decode(part) {
        let mut encoded = Vec::new();
        extras.encode(&mut encoded);
        assert_eq!(encoded, part);
        assert!(extras.value_of(part).is_none_or(|value| part.starts_with(value)));
    }
    let Ok((section, body)) = Section::split(part) else { return };
    assert_eq!([section.bytes(), body].concat(), part);
    let is_valid = section.validate().is_ok();
    let pairs: Vec<_> = section.pairs().collect();
    assert!(pairs.iter().rev().skip(1).all(Result::is_ok), "nothing comes after an error");
    let system = section.system_only();
    let is_whole = pairs.iter().all(Result::is_ok);
    assert_eq!((is_whole, is_whole), (system.is_ok(), section.pair_bytes().is_ok()));
    assert!(is_whole || !is_valid);
    let Ok(system) = system else { return };
    if !system.is_empty() {
        let (kept, nothing) = Section::split(&system).unwrap();
        let PairBytes { system: system_bytes, user } = kept.pair_bytes().unwrap();
        assert_eq!((system_bytes + 4, user, nothing), (system.len(), 0, &b""[..]));
        assert_eq!(kept.pairs().count(), pairs.iter().flatten().filter(|pair| pair.is_system()).count());
        assert!(!is_valid || kept.validate().is_ok());
    }
    let stored = |key: &[u8]| matches!(Owner::of(key), Some(Owner::User | Owner::System));
    assert!(!is_valid || pairs.iter().flatten().all(|pair| stored(pair.key)));
}
