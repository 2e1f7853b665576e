//! The protocol's test vectors, in both directions: bytes to fields and fields to the same bytes.
//!
//! Every frame of the files is checked as a frame (header, parts, status and opcode names, re-encoding); those
//! of this node's own commands also as typed messages. What is not covered is printed with its reason, and the
//! test fails if less is covered than before.

use ringbase::auth::scram::{ScramHash, ScramKeys, ServerFirst};
use ringbase::auth::{Mechanism, SaslClient};
use ringbase::protocol::cluster_map::ClusterMap;
use ringbase::protocol::duration::EncodedDuration;
use ringbase::protocol::error_map::ErrorMap;
use ringbase::protocol::extras::{
    ArithmeticExtras, CollectionFound, CollectionPath, ConfigVersion, MutationToken, ObservedSeqno,
    StoreExtras, decode_u32,
};
use ringbase::protocol::hello::{Agent, Feature};
use ringbase::protocol::leb128::{self, Leb128};
use ringbase::protocol::range_scan::{RangeScanContinue, RangeScanCreate, ScanId};
use ringbase::protocol::scan_records::{DocumentRecord, DocumentRecords, KeyRecords, RecordKind, encode_key};
use ringbase::protocol::stat::{StatEntry, StatRequest};
use ringbase::protocol::with_meta::WithMetaExtras;
use ringbase::protocol::xattr::{Section, build_section};
use ringbase::protocol::{
    ConnectionState, Decoded, ErrorContext, Features, Frame, FrameLimits, HEADER_BYTES, Magic, Opcode,
    Refusal, Request, RequestFraming, Response, ServerOpcode, Status, decode_frame, validate, vbucket_of,
};
use serde_json::Value;

use crate::dcp_vectors;

const FILES: [(&str, &str); 9] = [
    ("bootstrap", include_str!("../vectors/bootstrap.json")),
    ("framing", include_str!("../vectors/framing.json")),
    ("kv", include_str!("../vectors/kv.json")),
    ("codecs", include_str!("../vectors/codecs.json")),
    ("ops", include_str!("../vectors/ops.json")),
    ("rangescan", include_str!("../vectors/rangescan.json")),
    ("collections", include_str!("../vectors/collections.json")),
    ("dcp", include_str!("../vectors/dcp.json")),
    ("meta", include_str!("../vectors/meta.json")),
];

pub(crate) struct Vector {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) decoded: Value,
}

fn unhex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2));
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

pub(crate) fn vectors() -> Vec<Vector> {
    let mut vectors = Vec::new();
    for (file, text) in FILES {
        for vector in serde_json::from_str::<Vec<Value>>(text).unwrap() {
            vectors.push(Vector {
                name: format!("{file}/{}", vector["name"].as_str().unwrap()),
                bytes: unhex(vector["hex"].as_str().unwrap()),
                decoded: vector["decoded"].clone(),
            });
        }
    }
    vectors
}

/// A number, or text like `0xfeed` with anything after a colon ignored.
pub(crate) fn number(value: &Value) -> u64 {
    match value {
        Value::Number(number) => number.as_u64().unwrap(),
        Value::String(text) => {
            let digits = text.split(':').next().unwrap();
            u64::from_str_radix(digits.strip_prefix("0x").unwrap(), 16).unwrap()
        }
        other => panic!("{other} is no number"),
    }
}

/// The fields of one frame: a map with `key`, or nothing at all.
pub(crate) fn has(fields: &Value, key: &str) -> bool {
    fields.get(key).is_some()
}

/// Asserts that the field, if the vector names it, has this value.
pub(crate) fn agrees(fields: &Value, key: &str, value: u64) {
    if has(fields, key) {
        assert_eq!(number(&fields[key]), value, "{key}");
    }
}

fn check_frame(frame: &Frame<'_>, expected: &Value) {
    let header = &frame.header;
    assert_eq!(header.magic as u64, number(&expected["magic"]));
    assert_eq!(u64::from(header.opcode.0), number(&expected["opcode"]));
    if header.magic == Magic::ServerRequest {
        assert_eq!(ServerOpcode::from_u8(header.opcode.0), Some(ServerOpcode::ClustermapChangeNotification));
    } else {
        assert_eq!(header.opcode.name(), expected["opcode_name"]);
    }
    assert_eq!(u64::from(header.framing_len), number(&expected["framing_len"]));
    assert_eq!(u64::from(header.key_len), number(&expected["key_len"]));
    assert_eq!(u64::from(header.extras_len), number(&expected["extras_len"]));
    assert_eq!(u64::from(header.datatype.0), number(&expected["datatype"]));
    assert_eq!(u64::from(header.body_len), number(&expected["body_len"]));
    assert_eq!(u64::from(header.opaque), number(&expected["opaque"]));
    assert_eq!(header.cas.0, number(&expected["cas"]));
    if header.magic.is_request() {
        assert_eq!(u64::from(frame.vbucket().0), number(&expected["vbucket"]));
    } else {
        assert_eq!(u64::from(frame.status().0), number(&expected["status"]));
        assert_eq!(frame.status().name(), expected["status_name"]);
    }
    let part = |name: &str| unhex(expected[name].as_str().unwrap_or(""));
    assert_eq!(frame.framing, part("framing_hex"));
    assert_eq!(frame.extras, part("extras_hex"));
    assert_eq!(frame.key, part("key_hex"));
    assert_eq!(frame.value, part("value_hex"));
}

/// Encodes the frame again from its fields, if there is an encoder for its kind.
fn re_encode(frame: &Frame<'_>) -> Result<Vec<u8>, &'static str> {
    let mut out = Vec::new();
    match frame.header.magic {
        Magic::ClientRequest | Magic::AltClientRequest => {
            let framing = match RequestFraming::decode(frame.framing, frame.opcode()) {
                Ok(framing) => framing,
                Err(Refusal { status: Status::UNKNOWN_FRAME_INFO, .. }) => {
                    return Err("the framing object is unknown on purpose, so there is no encoder");
                }
                Err(refusal) => panic!("{refusal}"),
            };
            Request::new(frame.opcode())
                .vbucket(frame.vbucket())
                .opaque(frame.opaque())
                .cas(frame.cas())
                .datatype(frame.datatype())
                .framing(framing)
                .extras(frame.extras)
                .key(frame.key)
                .value(frame.value)
                .encode(&mut out)
                .unwrap();
        }
        Magic::ClientResponse | Magic::AltClientResponse => {
            Response::new(frame.opcode(), frame.opaque(), frame.status())
                .cas(frame.cas())
                .datatype(frame.datatype())
                .framing(frame.response_framing())
                .extras(frame.extras)
                .key(frame.key)
                .value(frame.value)
                .encode(&mut out);
        }
        Magic::ServerRequest | Magic::ServerResponse => return Err("the server starts no requests yet"),
    }
    Ok(out)
}

/// Checks the request as the typed message of this node's own commands.
fn check_typed_request(frame: &Frame<'_>, fields: &Value) -> bool {
    match frame.opcode() {
        Opcode::SET | Opcode::SET_Q | Opcode::ADD => {
            let extras = StoreExtras::decode(frame.extras).unwrap();
            assert_eq!(extras.encode(), frame.extras);
            agrees(fields, "flags", u64::from(extras.flags));
            agrees(fields, "expiry", u64::from(extras.expiry));
        }
        Opcode::GET_META => agrees(fields, "version", u64::from(frame.extras[0])),
        Opcode::SET_WITH_META | Opcode::DEL_WITH_META => {
            let extras = WithMetaExtras::decode(frame.extras).unwrap();
            let mut encoded = Vec::new();
            extras.encode(&mut encoded);
            assert_eq!(encoded, frame.extras);
            agrees(fields, "flags", u64::from(extras.flags));
            agrees(fields, "expiry", u64::from(extras.expiry));
            agrees(fields, "rev", extras.revid);
            agrees(fields, "meta_cas", extras.cas.0);
            agrees(fields, "options", u64::from(extras.options().bits()));
            agrees(fields, "nmeta", u64::from(extras.meta_bytes.unwrap_or_default()));
        }
        Opcode::INCREMENT | Opcode::DECREMENT => {
            let extras = ArithmeticExtras::decode(frame.extras).unwrap();
            assert_eq!(extras.encode(), frame.extras);
            agrees(fields, "delta", extras.delta);
            agrees(fields, "initial", extras.initial);
            agrees(fields, "expiry", u64::from(extras.expiry));
        }
        Opcode::TOUCH | Opcode::GAT | Opcode::GET_LOCKED => {
            let seconds = decode_u32(frame.extras).unwrap();
            assert_eq!(seconds.to_be_bytes(), frame.extras);
            agrees(fields, "expiry", u64::from(seconds));
        }
        Opcode::HELLO => {
            let numbers: Vec<u8> = Features::decode(frame.value)
                .unwrap()
                .iter()
                .flat_map(|feature| (feature as u16).to_be_bytes())
                .collect();
            assert_eq!(Features::decode(&numbers), Features::decode(frame.value));
            let agent = Agent::decode(frame.key);
            if frame.key.starts_with(b"{") {
                assert_eq!(agent.encode(), frame.key);
            } else {
                assert_eq!(agent.name.as_bytes(), frame.key);
            }
        }
        Opcode::SASL_AUTH if frame.key == b"PLAIN" => {
            let (user, password) = split_plain(frame.value);
            assert_eq!(SaslClient::new(Mechanism::Plain, user, password, [0; 16]).start(), frame.value);
        }
        Opcode::GET_CLUSTER_CONFIG => {
            let version = ConfigVersion::decode(frame.extras).unwrap();
            assert_eq!(version.map_or(Vec::new(), |version| version.encode().to_vec()), frame.extras);
            if let Some(version) = version {
                agrees(fields, "epoch", version.epoch as u64);
                agrees(fields, "rev", version.rev as u64);
            }
        }
        Opcode::COLLECTIONS_GET_ID => {
            let path = CollectionPath::decode(frame.value).unwrap();
            assert_eq!([path.scope, path.collection].join(".").as_bytes(), frame.value);
        }
        Opcode::STAT => {
            let request = StatRequest::decode(frame.key).unwrap();
            let parts: Vec<&str> = [request.group].into_iter().chain(request.argument).collect();
            assert_eq!(parts.join(" ").as_bytes(), frame.key);
        }
        Opcode::RANGE_SCAN_CREATE => {
            let create = RangeScanCreate::decode(frame.value, Features::NONE).unwrap();
            assert_eq!(RangeScanCreate::decode(&create.encode(), Features::NONE), Ok(create.clone()));
            if create.key_only {
                assert_eq!(create.encode(), frame.value, "members in the order of the vector");
            }
        }
        Opcode::RANGE_SCAN_CONTINUE => {
            let request = RangeScanContinue::decode(frame.extras).unwrap();
            assert_eq!(request.encode(), frame.extras);
            agrees(fields, "item_limit", u64::from(request.item_limit));
            agrees(fields, "time_ms", u64::from(request.time_limit_ms));
            agrees(fields, "byte_limit", u64::from(request.byte_limit));
        }
        Opcode::RANGE_SCAN_CANCEL => {
            let id = ScanId::decode(frame.extras).unwrap();
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        Opcode::OBSERVE_SEQNO | Opcode::GET_ERROR_MAP => {}
        Opcode::GET | Opcode::GET_Q | Opcode::DELETE | Opcode::APPEND => {}
        Opcode::NOOP | Opcode::VERSION | Opcode::QUIT => {}
        Opcode::SASL_LIST_MECHS | Opcode::SASL_AUTH | Opcode::SASL_STEP | Opcode::SELECT_BUCKET => {}
        _ => return dcp_vectors::check_request(frame, fields),
    }
    true
}

fn split_plain(value: &[u8]) -> (&str, &str) {
    let text = std::str::from_utf8(value).unwrap();
    text.strip_prefix('\0').unwrap().split_once('\0').unwrap()
}

/// Checks the response as the typed message of this node's own commands.
fn check_typed_response(frame: &Frame<'_>, fields: &Value) -> bool {
    if !frame.status().is_success_class() {
        assert!(frame.extras.is_empty() && frame.key.is_empty());
        if frame.value.starts_with(b"{") && frame.status() != Status::NOT_MY_VBUCKET {
            assert_eq!(ErrorContext::decode(frame.value).encode(), frame.value);
        }
        return true;
    }
    match frame.opcode() {
        Opcode::GET | Opcode::GET_K | Opcode::GAT => {
            let flags = decode_u32(frame.extras).unwrap();
            agrees(fields, "flags", u64::from(flags));
        }
        Opcode::SET | Opcode::ADD | Opcode::REPLACE | Opcode::INCREMENT | Opcode::TOUCH => {
            if let Some(token) = MutationToken::decode(frame.extras) {
                assert_eq!(token.encode(), frame.extras);
                agrees(fields, "vbucket_uuid", token.uuid.0);
                agrees(fields, "seqno", token.seqno.0);
            } else {
                assert!(frame.extras.is_empty());
            }
            if has(fields, "counter") {
                assert_eq!(number(&fields["counter"]).to_be_bytes(), frame.value);
            }
        }
        Opcode::OBSERVE_SEQNO => {
            let observed = ObservedSeqno::decode(frame.value).unwrap();
            assert_eq!(observed.encode(), frame.value);
            agrees(fields, "format", u64::from(observed.older_branch.is_some()));
            agrees(fields, "vbucket", u64::from(observed.vbucket.0));
            agrees(fields, "uuid", observed.uuid.0);
            agrees(fields, "persisted", observed.persisted_seqno.0);
            agrees(fields, "current", observed.high_seqno.0);
            if let Some((uuid, seqno)) = observed.older_branch {
                agrees(fields, "old_uuid", uuid.0);
                agrees(fields, "last_seqno_of_old", seqno.0);
            }
        }
        Opcode::HELLO => {
            let granted = Features::decode(frame.value).unwrap();
            assert_eq!(granted.encode(), frame.value, "ascending, each once");
            assert_eq!(granted.has(Feature::Tracing), frame.header.magic.is_alt());
        }
        Opcode::GET_CLUSTER_CONFIG if !frame.value.is_empty() => {
            let map = ClusterMap::decode(frame.value).unwrap();
            assert_eq!((map.bucket.as_deref(), map.vbucket_count), (Some("default"), 2));
            assert_eq!(map.version, ConfigVersion { epoch: 1, rev: 13 });
        }
        Opcode::GET_ERROR_MAP => {
            let map = ErrorMap::decode(frame.value).unwrap();
            assert_eq!(map.entry(Status::SUCCESS).unwrap().name, "SUCCESS");
        }
        Opcode::COLLECTIONS_GET_ID => {
            let found = CollectionFound::decode(frame.extras).unwrap();
            assert_eq!(found.encode(), frame.extras);
            agrees(fields, "manifest_uid", found.manifest_uid);
            agrees(fields, "collection", u64::from(found.id.0));
        }
        Opcode::STAT => {
            assert_eq!(StatEntry::of(frame) == StatEntry::End, frame.key.is_empty() && frame.value.is_empty())
        }
        Opcode::RANGE_SCAN_CREATE => {
            let id = ScanId::decode(frame.value).unwrap();
            assert_eq!(id.to_string(), fields["uuid"]);
        }
        Opcode::RANGE_SCAN_CONTINUE => check_records(frame, fields),
        Opcode::RANGE_SCAN_CANCEL => assert!(frame.value.is_empty()),
        Opcode::SASL_LIST_MECHS => {
            let list = std::str::from_utf8(frame.value).unwrap();
            assert_eq!(list, ringbase::auth::MECHANISM_LIST);
        }
        Opcode::GET_CLUSTER_CONFIG | Opcode::SELECT_BUCKET | Opcode::NOOP | Opcode::VERSION => {}
        Opcode::SASL_AUTH | Opcode::SASL_STEP => {}
        _ => return dcp_vectors::check_response(frame, fields),
    }
    true
}

fn check_records(frame: &Frame<'_>, fields: &Value) {
    let kind = RecordKind::decode(frame.extras).unwrap();
    assert_eq!(kind.encode(), frame.extras);
    let mut out = Vec::new();
    match kind {
        RecordKind::Keys => KeyRecords::new(frame.value).for_each(|key| encode_key(key.unwrap(), &mut out)),
        RecordKind::Documents => {
            let documents: Vec<DocumentRecord<'_>> =
                DocumentRecords::new(frame.value).map(Result::unwrap).collect();
            documents.iter().for_each(|document| document.encode(&mut out));
            let expected = fields["docs"].as_array().map_or(&[][..], Vec::as_slice);
            assert_eq!(documents.len(), expected.len());
            for (document, expected) in documents.iter().zip(expected) {
                agrees(expected, "flags", u64::from(document.flags));
                agrees(expected, "seqno", document.seqno.0);
                agrees(expected, "datatype", u64::from(document.datatype.0));
                agrees(expected, "value_len", document.value.len() as u64);
                assert_eq!(document.key, expected["key"].as_str().unwrap().as_bytes());
                if has(expected, "value") {
                    assert_eq!(document.value, expected["value"].as_str().unwrap().as_bytes());
                }
            }
        }
    }
    assert_eq!(out, frame.value);
}

/// The requests of this node's own commands pass its validator.
fn check_valid(name: &str, frame: &Frame<'_>) {
    let collections = name.starts_with("collections/");
    let mut features = Features::of(Feature::ALL);
    if !collections {
        features = features.without(Feature::Collections);
    }
    let connection = ConnectionState { authenticated: true, features, config_only_bucket: false };
    let validated = validate(frame, &connection);
    if name.ends_with("get_unknown_frame_info_id_17") {
        assert_eq!(validated.unwrap_err().status, Status::UNKNOWN_FRAME_INFO);
    } else {
        validated.unwrap_or_else(|refusal| panic!("{name}: {refusal}"));
    }
}

fn check_codec(vector: &Vector) {
    let (kind, text) = vector.name["codecs/".len()..].split_once('/').unwrap();
    let decoded = &vector.decoded;
    match kind {
        "leb128" => {
            let value = number(&decoded["value"]) as u32;
            assert_eq!(Leb128::encode(value).as_bytes(), vector.bytes);
            assert_eq!(leb128::decode(&vector.bytes), Ok((value, &[][..])));
        }
        "duration" => {
            let code = EncodedDuration::from_micros(number(&decoded["micros"]));
            assert_eq!(u64::from(code.0), number(&decoded["encoded"]));
            assert_eq!(code.0.to_be_bytes(), *vector.bytes);
            assert_eq!(code.micros(), number(&decoded["decoded_micros"]));
        }
        "key_hash" => {
            for count in [64u16, 128, 1024] {
                let expected = number(&decoded[format!("vb_of_{count}")]);
                assert_eq!(u64::from(vbucket_of(text.as_bytes(), count).0), expected, "{text}");
            }
        }
        "xattr_section" => {
            let (section, body) = Section::split(&vector.bytes).unwrap();
            assert_eq!((section.validate(), body), (Ok(()), &b""[..]));
            assert_eq!(section.bytes().len() as u64, number(&decoded["total"]) + 4);
            let pairs = decoded["pairs"].as_array().unwrap();
            let text = |index: usize, pair: &Value| pair[index].as_str().unwrap().to_owned();
            let pairs: Vec<[String; 2]> = pairs.iter().map(|pair| [text(0, pair), text(1, pair)]).collect();
            let found = section.pairs().map(|pair| pair.map(|pair| [pair.key, pair.value]).unwrap());
            assert!(found.eq(pairs.iter().map(|[key, value]| [key.as_bytes(), value.as_bytes()])));
            assert_eq!(build_section(pairs.iter().map(|[key, value]| (&key[..], &value[..]))), vector.bytes);
        }
        other => panic!("{other} is no codec"),
    }
}

/// What the files held when this was last changed; a smaller number means that a check was lost.
const FRAMES: usize = 174;
const RE_ENCODED: usize = 171;
const TYPED: usize = 151;
const CODECS: usize = 31;

#[test]
fn every_vector_decodes_to_its_fields_and_encodes_to_its_bytes() {
    let (mut frames, mut re_encoded, mut typed, mut codecs) = (0, 0, 0, 0);
    for vector in vectors() {
        let name = &vector.name;
        if name.starts_with("codecs/") {
            check_codec(&vector);
            codecs += 1;
            continue;
        }
        let expected = match vector.decoded.get("frames") {
            Some(frames) => frames.as_array().unwrap().clone(),
            None => vec![vector.decoded.clone()],
        };
        let mut rest = vector.bytes.as_slice();
        for expected in &expected {
            let frame = match decode_frame(rest, FrameLimits::AUTHENTICATED) {
                Ok(Decoded::Frame(frame)) => frame,
                other => panic!("{name}: {other:?}"),
            };
            let bytes = &rest[..frame.frame_bytes()];
            rest = &rest[frame.frame_bytes()..];
            check_frame(&frame, expected);
            assert_eq!(frame.header.encode(), bytes[..HEADER_BYTES], "{name}");
            frames += 1;
            match re_encode(&frame) {
                Ok(encoded) => {
                    assert_eq!(encoded, bytes, "{name}");
                    re_encoded += 1;
                }
                Err(reason) => println!("not encoded {name}: {reason}"),
            }
            let fields = expected.get("fields").unwrap_or(&Value::Null);
            let is_request = frame.header.magic.is_request();
            let is_typed = match frame.header.magic {
                Magic::ServerRequest | Magic::ServerResponse => false,
                _ if is_request => check_typed_request(&frame, fields),
                _ => check_typed_response(&frame, fields),
            };
            if is_typed {
                typed += 1;
                if is_request {
                    check_valid(name, &frame);
                }
            } else {
                println!("frame only {name}: the command belongs to a later slice");
            }
        }
        assert!(rest.is_empty(), "{name}");
    }
    println!("{frames} frames, {re_encoded} re-encoded, {typed} typed, {codecs} codecs");
    assert_eq!((frames, re_encoded, codecs), (FRAMES, RE_ENCODED, CODECS));
    assert_eq!(typed, TYPED);
}

/// The three printed SCRAM exchanges: our client says what the vectors say, and our keys accept it.
#[test]
fn the_scram_exchanges_of_the_vectors_are_reproduced() {
    let all = vectors();
    let value = |name: &str| {
        let vector = all.iter().find(|vector| vector.name == format!("bootstrap/{name}")).unwrap();
        match decode_frame(&vector.bytes, FrameLimits::AUTHENTICATED) {
            Ok(Decoded::Frame(frame)) => (frame.value.to_vec(), frame.header),
            other => panic!("{other:?}"),
        }
    };
    for (prefix, hash) in [
        ("scram_sha1", ScramHash::Sha1),
        ("scram_sha256", ScramHash::Sha256),
        ("scram_sha512", ScramHash::Sha512),
    ] {
        let (client_first, _) = value(&format!("{prefix}_1_client_first"));
        let (server_first, header) = value(&format!("{prefix}_2_server_first"));
        assert_eq!(header.status(), Status::AUTH_CONTINUE);
        let (client_final, _) = value(&format!("{prefix}_3_client_final"));
        let (server_final, header) = value(&format!("{prefix}_4_server_final"));
        assert_eq!(header.status(), Status::SUCCESS);

        let nonce = "d40a02e348040590".to_owned();
        let mut client = SaslClient::with_nonce(Mechanism::Scram(hash), "user", "pencil", nonce);
        assert_eq!(client.start(), client_first);
        assert_eq!(client.step(&server_first).unwrap(), client_final);
        client.finish(&server_final).unwrap();

        let parsed = ServerFirst::parse(&server_first).unwrap();
        assert_eq!(parsed.encode().as_bytes(), server_first);
        let keys = ScramKeys::derive(hash, b"pencil", &parsed.salt, parsed.iterations);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let (client_final, server_first) = (text(&client_final), text(&server_first));
        let (without_proof, proof) = client_final.split_once(",p=").unwrap();
        let message = [&text(&client_first)[3..], &server_first, without_proof].join(",");
        let decode =
            |text: &str| base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text).unwrap();
        assert!(keys.accepts(hash, &decode(proof), message.as_bytes()));
        assert_eq!(keys.server_signature(hash, message.as_bytes()), decode(&text(&server_final)[2..]));
    }
}
