//! What each opcode may carry: the checks between a well-formed frame and its execution.
//!
//! A table gives every defined opcode its extras lengths and its rules for key, value, CAS and datatype;
//! [`validate`] applies rows 7 to 11 of the protocol's order of checks, first failure wins. Lookups of
//! collections, buckets and vbuckets come after, in the commands.
//!
//! Invariants
//! - Every defined opcode has a rule, no other number has one.
//! - After `validate` an opcode with a document key has a decoded one, and extras have a listed length.
//!
//! Cost: one table look-up and a few compares; no allocation.
//!
//! Does not know: which opcodes this node executes, who may, what is stored.

use super::error_context::Refusal;
use super::framing::RequestFraming;
use super::hello::{Feature, Features};
use super::key::{DocumentKey, LOGICAL_KEY_BYTES_MAX, PREFIXED_KEY_BYTES_MAX};
use super::xattr::Section;
use super::{Datatype, Frame, Opcode, OpcodeKind, Status};

/// Longest bucket name, in bytes.
pub const BUCKET_NAME_BYTES_MAX: usize = 100;

/// Longest DCP connection name, in bytes.
pub const DCP_NAME_BYTES_MAX: usize = 200;

/// What validation must know of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionState {
    /// Whether a user has authenticated, or the node needs no authentication.
    pub authenticated: bool,
    /// What HELLO granted.
    pub features: Features,
    /// Whether the selected bucket has nothing but a cluster configuration here.
    pub config_only_bucket: bool,
}

/// What validation found in a request, beside the frame itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validated<'a> {
    /// The decoded framing extras.
    pub framing: RequestFraming<'a>,
    /// The document's key, for opcodes that have one.
    pub key: Option<DocumentKey<'a>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    Absent,
    Required,
    Optional,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CasRule {
    Zero,
    NotZero,
    Any,
}

/// What kind of name the key field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeyKind {
    Document,
    Other,
}

#[derive(Debug, Clone, Copy)]
struct Rule {
    extras: &'static [u8],
    key: Presence,
    value: Presence,
    cas: CasRule,
    datatype: Datatype,
    kind: KeyKind,
}

const RAW: Datatype = Datatype(0);
const J: Datatype = Datatype(1);
const JS: Datatype = Datatype(3);
const JX: Datatype = Datatype(5);
const JSX: Datatype = Datatype(7);

const fn rule(
    extras: &'static [u8],
    key: Presence,
    value: Presence,
    cas: CasRule,
    datatype: Datatype,
) -> Rule {
    Rule { extras, key, value, cas, datatype, kind: KeyKind::Other }
}

const fn document(extras: &'static [u8], value: Presence, cas: CasRule, datatype: Datatype) -> Rule {
    Rule { extras, key: Presence::Required, value, cas, datatype, kind: KeyKind::Document }
}

const fn rule_of(opcode: Opcode) -> Option<Rule> {
    use CasRule::{Any, NotZero, Zero};
    use Presence::{Absent, Optional, Required};
    Some(match opcode {
        // Documents.
        Opcode::GET | Opcode::GET_Q | Opcode::GET_K | Opcode::GET_KQ | Opcode::GET_REPLICA => {
            document(&[0], Absent, Zero, RAW)
        }
        Opcode::GET_EX | Opcode::GET_EX_REPLICA | Opcode::EVICT_KEY => document(&[0], Absent, Zero, RAW),
        Opcode::SET | Opcode::SET_Q | Opcode::REPLACE | Opcode::REPLACE_Q => {
            document(&[8], Optional, Any, JS)
        }
        Opcode::ADD | Opcode::ADD_Q => document(&[8], Optional, Zero, JS),
        Opcode::DELETE | Opcode::DELETE_Q => document(&[0], Absent, Any, RAW),
        Opcode::INCREMENT | Opcode::INCREMENT_Q | Opcode::DECREMENT | Opcode::DECREMENT_Q => {
            document(&[20], Absent, Zero, RAW)
        }
        Opcode::APPEND | Opcode::APPEND_Q | Opcode::PREPEND | Opcode::PREPEND_Q => {
            document(&[0], Optional, Any, JS)
        }
        Opcode::TOUCH | Opcode::GAT | Opcode::GAT_Q => document(&[4], Absent, Zero, RAW),
        Opcode::GET_LOCKED => document(&[0, 4], Absent, Zero, RAW),
        Opcode::UNLOCK_KEY => document(&[0], Absent, NotZero, RAW),
        Opcode::OBSERVE => rule(&[0], Absent, Required, Zero, RAW),
        Opcode::OBSERVE_SEQNO => rule(&[0], Absent, Required, Any, RAW),
        Opcode::GET_RANDOM_KEY => rule(&[0, 4, 5], Absent, Absent, Zero, RAW),
        Opcode::GET_KEYS => document(&[0, 4], Absent, Zero, RAW),
        // With meta.
        Opcode::GET_META | Opcode::GETQ_META => document(&[0, 1], Absent, Zero, RAW),
        Opcode::SET_WITH_META | Opcode::SETQ_WITH_META | Opcode::ADD_WITH_META | Opcode::ADDQ_WITH_META => {
            document(&[24, 26, 28, 30], Optional, Any, JSX)
        }
        Opcode::DEL_WITH_META | Opcode::DELQ_WITH_META => document(&[24, 26, 28, 30], Optional, Any, JSX),
        Opcode::MUTATE_WITH_META => document(&[4], Required, Any, JX),
        Opcode::RETURN_META => document(&[12], Optional, Any, RAW),
        // Sub-document: the path is in the value, so a value is there unless the path may be empty.
        Opcode::SUBDOC_GET | Opcode::SUBDOC_EXISTS => document(&[3, 4], Required, Any, RAW),
        Opcode::SUBDOC_GET_COUNT => document(&[3, 4], Optional, Any, RAW),
        Opcode::SUBDOC_DELETE | Opcode::SUBDOC_REPLACE_BODY_WITH_XATTR => {
            document(&[3, 4, 7, 8, 11, 12], Required, Any, RAW)
        }
        Opcode::SUBDOC_DICT_ADD
        | Opcode::SUBDOC_DICT_UPSERT
        | Opcode::SUBDOC_REPLACE
        | Opcode::SUBDOC_ARRAY_PUSH_LAST
        | Opcode::SUBDOC_ARRAY_PUSH_FIRST
        | Opcode::SUBDOC_ARRAY_INSERT
        | Opcode::SUBDOC_ARRAY_ADD_UNIQUE
        | Opcode::SUBDOC_COUNTER => document(&[3, 4, 7, 8, 11, 12], Required, Any, RAW),
        Opcode::SUBDOC_MULTI_LOOKUP => document(&[0, 1], Required, Any, RAW),
        Opcode::SUBDOC_MULTI_MUTATION => document(&[0, 1, 4, 5, 8, 9], Required, Any, RAW),
        // Connection.
        Opcode::HELLO => rule(&[0], Optional, Optional, Zero, RAW),
        Opcode::SASL_LIST_MECHS => rule(&[0], Absent, Absent, Zero, RAW),
        Opcode::SASL_AUTH | Opcode::SASL_STEP => rule(&[0], Required, Optional, Zero, RAW),
        Opcode::SELECT_BUCKET => rule(&[0], Optional, Absent, Any, RAW),
        Opcode::GET_CLUSTER_CONFIG => rule(&[0, 16], Absent, Absent, Zero, RAW),
        Opcode::GET_ERROR_MAP => rule(&[0], Absent, Required, Zero, RAW),
        Opcode::NOOP | Opcode::VERSION | Opcode::QUIT | Opcode::QUIT_Q => {
            rule(&[0], Absent, Absent, Zero, RAW)
        }
        Opcode::VERBOSITY => rule(&[4], Absent, Absent, Zero, RAW),
        Opcode::STAT => rule(&[0], Optional, Optional, Zero, J),
        Opcode::LIST_BUCKETS => rule(&[0], Absent, Absent, Any, RAW),
        Opcode::COLLECTIONS_GET_MANIFEST => rule(&[0], Absent, Absent, Zero, RAW),
        Opcode::COLLECTIONS_GET_ID | Opcode::COLLECTIONS_GET_SCOPE_ID => {
            rule(&[0], Optional, Optional, Zero, RAW)
        }
        Opcode::COLLECTIONS_SET_MANIFEST => rule(&[0], Absent, Required, Zero, RAW),
        // DCP.
        Opcode::DCP_OPEN => rule(&[8], Required, Optional, Any, J),
        Opcode::DCP_ADD_STREAM | Opcode::DCP_STREAM_END | Opcode::DCP_BUFFER_ACKNOWLEDGEMENT => {
            rule(&[4], Absent, Absent, Any, RAW)
        }
        Opcode::DCP_CLOSE_STREAM | Opcode::DCP_GET_FAILOVER_LOG | Opcode::DCP_NOOP => {
            rule(&[0], Absent, Absent, Any, RAW)
        }
        Opcode::DCP_STREAM_REQ => rule(&[48], Absent, Optional, Any, J),
        Opcode::DCP_SNAPSHOT_MARKER => rule(&[1, 20], Absent, Optional, Any, RAW),
        Opcode::DCP_MUTATION | Opcode::DCP_PREPARE => document(&[31], Optional, Any, JSX),
        Opcode::DCP_DELETION => document(&[18, 21], Optional, Any, JSX),
        Opcode::DCP_EXPIRATION => document(&[20], Optional, Any, JSX),
        Opcode::DCP_SET_VBUCKET_STATE => rule(&[1], Absent, Absent, Any, RAW),
        Opcode::DCP_CONTROL => rule(&[0], Required, Required, Any, RAW),
        Opcode::DCP_SYSTEM_EVENT => rule(&[13], Optional, Optional, Any, J),
        Opcode::DCP_SEQNO_ACKNOWLEDGED | Opcode::DCP_SEQNO_ADVANCED => rule(&[8], Absent, Absent, Any, RAW),
        Opcode::DCP_COMMIT | Opcode::DCP_ABORT => document(&[16], Absent, Any, RAW),
        Opcode::DCP_OSO_SNAPSHOT => rule(&[4], Absent, Absent, Any, RAW),
        Opcode::DCP_CACHE_TRANSFER => rule(&[0], Absent, Required, Any, RAW),
        Opcode::DCP_CACHE_TRANSFER_END => rule(&[0], Absent, Absent, Any, RAW),
        Opcode::GET_ALL_VB_SEQNOS => rule(&[0, 4, 8], Absent, Absent, Zero, RAW),
        Opcode::GET_FAILOVER_LOG => rule(&[0], Absent, Absent, Zero, RAW),
        Opcode::SEQNO_PERSISTENCE => rule(&[8], Absent, Absent, Zero, RAW),
        // Range scan.
        Opcode::RANGE_SCAN_CREATE => rule(&[0], Absent, Required, Zero, J),
        Opcode::RANGE_SCAN_CONTINUE => rule(&[28], Absent, Absent, Zero, RAW),
        Opcode::RANGE_SCAN_CANCEL => rule(&[16], Absent, Absent, Zero, RAW),
        // Operations.
        Opcode::SET_VBUCKET => rule(&[1], Absent, Optional, Zero, J),
        Opcode::GET_VBUCKET => rule(&[0], Optional, Absent, Zero, RAW),
        Opcode::DEL_VBUCKET => rule(&[0], Absent, Optional, Zero, RAW),
        Opcode::CREATE_BUCKET => rule(&[0], Required, Required, Any, RAW),
        Opcode::DELETE_BUCKET => rule(&[0], Required, Optional, Any, RAW),
        Opcode::PAUSE_BUCKET | Opcode::RESUME_BUCKET => rule(&[0], Required, Absent, Zero, RAW),
        Opcode::VALIDATE_BUCKET_CONFIG | Opcode::CONFIG_VALIDATE => rule(&[0], Absent, Required, Zero, RAW),
        Opcode::SET_PARAM => rule(&[4], Required, Required, Zero, RAW),
        Opcode::COMPACT_DB => rule(&[24], Absent, Optional, Zero, J),
        Opcode::STOP_PERSISTENCE | Opcode::START_PERSISTENCE => rule(&[0], Absent, Absent, Zero, RAW),
        Opcode::ENABLE_TRAFFIC | Opcode::DISABLE_TRAFFIC => rule(&[0], Absent, Absent, Zero, RAW),
        Opcode::SET_CLUSTER_CONFIG => rule(&[16], Optional, Required, Zero, J),
        Opcode::IOCTL_GET => rule(&[0], Required, Absent, Zero, RAW),
        Opcode::IOCTL_SET => rule(&[0], Required, Optional, Zero, RAW),
        Opcode::CONFIG_RELOAD | Opcode::AUDIT_CONFIG_RELOAD | Opcode::SHUTDOWN => {
            rule(&[0], Absent, Absent, Zero, RAW)
        }
        Opcode::AUDIT_PUT => rule(&[4], Absent, Required, Zero, RAW),
        Opcode::ISASL_REFRESH | Opcode::RBAC_REFRESH | Opcode::AUTH_PROVIDER => {
            rule(&[0], Absent, Absent, Zero, RAW)
        }
        Opcode::GET_CMD_TIMER => rule(&[1], Optional, Absent, Zero, RAW),
        Opcode::SET_CTRL_TOKEN => rule(&[8], Absent, Absent, Any, RAW),
        Opcode::GET_CTRL_TOKEN => rule(&[0], Absent, Absent, Any, RAW),
        Opcode::IFCONFIG => rule(&[0], Required, Optional, Zero, J),
        Opcode::SET_BUCKET_THROTTLE_PROPERTIES => rule(&[0], Required, Required, Zero, J),
        Opcode::SET_BUCKET_DATA_LIMIT_EXCEEDED => rule(&[2], Required, Absent, Zero, RAW),
        Opcode::SET_ACTIVE_ENCRYPTION_KEYS | Opcode::PRUNE_ENCRYPTION_KEYS => {
            rule(&[0], Required, Required, Zero, J)
        }
        Opcode::REGISTER_AUTH_TOKEN => rule(&[0], Absent, Required, Zero, J),
        Opcode::UPDATE_EXTERNAL_USER_PERMISSIONS => rule(&[0], Absent, Required, Zero, RAW),
        Opcode::DROP_PRIVILEGE => rule(&[0], Required, Absent, Zero, RAW),
        Opcode::ADJUST_TIMEOFDAY => rule(&[9], Absent, Absent, Zero, RAW),
        Opcode::EWOULDBLOCK_CTL => rule(&[12], Optional, Absent, Zero, RAW),
        // File-based rebalance and the Fusion family take JSON of their own.
        Opcode(0xe0..=0xe3 | 0x70..=0x79 | 0x84) => rule(&[0], Optional, Optional, Any, J),
        _ => return None,
    })
}

static RULES: [Option<Rule>; 256] = {
    let mut rules = [None; 256];
    let mut number = 0;
    while number < 256 {
        rules[number] = rule_of(Opcode(number as u8));
        number += 1;
    }
    rules
};

/// Whether `opcode` is allowed before authentication.
#[must_use]
#[inline]
pub fn is_allowed_unauthenticated(opcode: Opcode) -> bool {
    matches!(
        opcode,
        Opcode::HELLO
            | Opcode::SASL_LIST_MECHS
            | Opcode::SASL_AUTH
            | Opcode::SASL_STEP
            | Opcode::GET_ERROR_MAP
    )
}

/// Checks one request before its execution.
///
/// # Errors
/// What to answer; the connection stays open. These statuses are sent as they are, also without XERROR.
#[inline]
pub fn validate<'a>(frame: &Frame<'a>, connection: &ConnectionState) -> Result<Validated<'a>, Refusal> {
    let opcode = frame.opcode();
    if !connection.authenticated && !is_allowed_unauthenticated(opcode) {
        return Err(Refusal::new(Status::EACCESS, "Not authenticated"));
    }
    if opcode.kind() == OpcodeKind::Undefined {
        return Err(Refusal::new(Status::UNKNOWN_COMMAND, ""));
    }
    if connection.config_only_bucket {
        check_config_only(opcode, connection)?;
    }
    let Some(rule) = &RULES[usize::from(opcode.0)] else {
        return Err(Refusal::new(Status::NOT_SUPPORTED, ""));
    };
    check_shape(frame, rule, connection)?;
    if frame.datatype().contains(Datatype::XATTR) {
        check_xattrs(frame)?;
    }
    let framing = if frame.framing.is_empty() {
        RequestFraming::default()
    } else {
        RequestFraming::decode(frame.framing, opcode)?
    };
    let key = match rule.kind {
        KeyKind::Document => {
            Some(DocumentKey::decode(frame.key, connection.features.has(Feature::Collections))?)
        }
        KeyKind::Other => None,
    };
    check_particular(frame, connection)?;
    Ok(Validated { framing, key })
}

#[cold]
fn check_config_only(opcode: Opcode, connection: &ConnectionState) -> Result<(), Refusal> {
    match opcode {
        Opcode::HELLO | Opcode::GET_ERROR_MAP | Opcode::GET_CLUSTER_CONFIG | Opcode::SELECT_BUCKET => Ok(()),
        _ if connection.features.has(Feature::Xerror) => Err(Refusal::new(Status::ECONFIGONLY, "")),
        _ => Err(Refusal::new(Status::NOT_SUPPORTED, "")),
    }
}

/// Row 11 up to the datatype: what the table says.
#[inline]
fn check_shape(frame: &Frame<'_>, rule: &Rule, connection: &ConnectionState) -> Result<(), Refusal> {
    let datatype = frame.datatype();
    if !datatype.is_valid() {
        return Err(Refusal::einval("Request datatype invalid"));
    }
    if !rule.extras.contains(&frame.header.extras_len) {
        return Err(Refusal::einval("Request has an illegal extras length"));
    }
    let collections = connection.features.has(Feature::Collections);
    match rule.key {
        Presence::Absent if !frame.key.is_empty() => {
            return Err(Refusal::einval("Request must not include key"));
        }
        Presence::Required if frame.key.is_empty() => {
            return Err(Refusal::einval("Request must include key"));
        }
        _ => {}
    }
    if collections && frame.key.len() > PREFIXED_KEY_BYTES_MAX {
        return Err(Refusal::einval("Key length exceeds 251"));
    }
    if !collections && frame.key.len() > LOGICAL_KEY_BYTES_MAX {
        return Err(Refusal::einval("Key length exceeds 250"));
    }
    match rule.value {
        Presence::Absent if !frame.value.is_empty() => {
            return Err(Refusal::einval("Request must not include value"));
        }
        Presence::Required if frame.value.is_empty() => {
            return Err(Refusal::einval("Request must include value"));
        }
        _ => {}
    }
    match rule.cas {
        CasRule::Zero if frame.cas().0 != 0 => return Err(Refusal::einval("Request CAS must be 0")),
        CasRule::NotZero if frame.cas().0 == 0 => return Err(Refusal::einval("Request CAS must not be 0")),
        _ => {}
    }
    if datatype != Datatype::RAW {
        check_datatype(datatype, rule, connection.features)?;
    }
    Ok(())
}

fn check_datatype(datatype: Datatype, rule: &Rule, features: Features) -> Result<(), Refusal> {
    if !rule.datatype.contains(datatype) {
        return Err(Refusal::einval("Request datatype is not allowed for this command"));
    }
    for (bit, feature) in [
        (Datatype::JSON, Feature::Json),
        (Datatype::SNAPPY, Feature::Snappy),
        (Datatype::XATTR, Feature::Xattr),
    ] {
        if datatype.contains(bit) && !features.has(feature) {
            return Err(Refusal::einval("Request datatype was not negotiated"));
        }
    }
    Ok(())
}

/// A section that is compressed with its value cannot be looked at here.
fn check_xattrs(frame: &Frame<'_>) -> Result<(), Refusal> {
    if frame.datatype().contains(Datatype::SNAPPY) {
        return Ok(());
    }
    let (section, _body) = Section::split(frame.value)?;
    Ok(section.validate()?)
}

/// Row 11, the end: what only one opcode demands and can be seen in the frame alone.
#[inline]
fn check_particular(frame: &Frame<'_>, connection: &ConnectionState) -> Result<(), Refusal> {
    let refuse = |broken: bool, context| if broken { Err(Refusal::einval(context)) } else { Ok(()) };
    let vbucket_is_set = frame.vbucket().0 != 0;
    match frame.opcode() {
        Opcode::OBSERVE_SEQNO => {
            refuse(frame.value.len() != 8, "The value must be a vbucket uuid of 8 bytes")
        }
        Opcode::RANGE_SCAN_CREATE => {
            refuse(frame.datatype() != Datatype::JSON, "The datatype of a range scan request must be JSON")
        }
        Opcode::GET_ERROR_MAP => {
            refuse(frame.value.len() != 2, "The value must be a version of 2 bytes")?;
            refuse(vbucket_is_set, "The vbucket must be 0")
        }
        Opcode::COLLECTIONS_GET_ID | Opcode::COLLECTIONS_GET_SCOPE_ID => {
            refuse(vbucket_is_set, "The vbucket must be 0")?;
            refuse(
                !frame.key.is_empty() && !frame.value.is_empty(),
                "The path must be in key or value, not both",
            )
        }
        Opcode::COLLECTIONS_GET_MANIFEST | Opcode::COLLECTIONS_SET_MANIFEST => {
            refuse(vbucket_is_set, "The vbucket must be 0")
        }
        Opcode::GET_RANDOM_KEY => {
            let collections = connection.features.has(Feature::Collections);
            refuse(collections == frame.extras.is_empty(), "Extras are a collection id iff Collections is on")
        }
        Opcode::SELECT_BUCKET => {
            refuse(frame.key.len() > BUCKET_NAME_BYTES_MAX, "Bucket name length exceeds 100")
        }
        Opcode::SET_VBUCKET => {
            let expected = if frame.value.is_empty() { Datatype::RAW } else { Datatype::JSON };
            refuse(frame.datatype() != expected, "The datatype must be JSON iff there is a value")
        }
        Opcode::DCP_OPEN => {
            refuse(frame.key.len() > DCP_NAME_BYTES_MAX, "Connection name length exceeds 200")
        }
        Opcode::GET_META | Opcode::GETQ_META => {
            refuse(frame.extras.first().is_some_and(|version| *version > 2), "Unknown version of GET_META")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use ringbase_storage::types::Cas;

    use super::super::{Decoded, FrameLimits, Header, Magic, Request, decode_frame};
    use super::*;

    const OPEN: ConnectionState =
        ConnectionState { authenticated: true, features: Features::NONE, config_only_bucket: false };

    fn with(features: &[Feature]) -> ConnectionState {
        ConnectionState { features: Features::of(features), ..OPEN }
    }

    fn check(request: Request<'_>, connection: &ConnectionState) -> Result<(), Status> {
        let mut bytes = Vec::new();
        request.encode(&mut bytes).unwrap();
        let Ok(Decoded::Frame(frame)) = decode_frame(&bytes, FrameLimits::AUTHENTICATED) else { panic!() };
        validate(&frame, connection).map(|_| ()).map_err(|refusal| refusal.status)
    }

    #[test]
    fn every_defined_opcode_has_a_rule_and_no_other_number_has_one() {
        for number in 0..=u8::MAX {
            let defined = Opcode(number).kind() == OpcodeKind::Defined;
            assert_eq!(RULES[usize::from(number)].is_some(), defined, "{number:#04x}");
        }
    }

    #[test]
    fn unknown_removed_and_unauthenticated_opcodes_get_their_own_status() {
        let closed = ConnectionState { authenticated: false, ..OPEN };
        assert_eq!(check(Request::new(Opcode(0xff)), &OPEN), Err(Status::UNKNOWN_COMMAND));
        assert_eq!(check(Request::new(Opcode(0xff)), &closed), Err(Status::EACCESS));
        assert_eq!(check(Request::new(Opcode::FLUSH), &OPEN), Err(Status::NOT_SUPPORTED));
        assert_eq!(check(Request::new(Opcode::NOOP), &closed), Err(Status::EACCESS));
        assert_eq!(check(Request::new(Opcode::HELLO), &closed), Ok(()));
        assert_eq!(check(Request::new(Opcode::SASL_LIST_MECHS), &closed), Ok(()));
        assert_eq!(check(Request::new(Opcode::GET_ERROR_MAP).value(&[0, 2]), &closed), Ok(()));
    }

    #[test]
    fn a_bucket_with_nothing_but_a_configuration_answers_only_configuration_commands() {
        let old = ConnectionState { config_only_bucket: true, ..OPEN };
        let new = ConnectionState { features: Features::of(&[Feature::Xerror]), ..old };
        assert_eq!(check(Request::new(Opcode::GET).key(b"k"), &old), Err(Status::NOT_SUPPORTED));
        assert_eq!(check(Request::new(Opcode::GET).key(b"k"), &new), Err(Status::ECONFIGONLY));
        assert_eq!(check(Request::new(Opcode(0xff)), &new), Err(Status::UNKNOWN_COMMAND));
        assert_eq!(check(Request::new(Opcode::GET_CLUSTER_CONFIG), &new), Ok(()));
    }

    #[test]
    fn keys_of_0_and_251_bytes_are_refused_whatever_the_opcode() {
        for opcode in [Opcode::GET, Opcode::SET, Opcode::SASL_AUTH] {
            let extras = if opcode == Opcode::SET { &[0; 8][..] } else { &[] };
            let request = Request::new(opcode).extras(extras);
            assert_eq!(check(request, &OPEN), Err(Status::EINVAL));
            assert_eq!(check(request.key(&[b'k'; 250]), &OPEN), Ok(()));
            assert_eq!(check(request.key(&[b'k'; 251]), &OPEN), Err(Status::EINVAL));
        }
        let on = with(&[Feature::Collections]);
        let key = [&[0][..], &[b'k'; 250]].concat();
        assert_eq!(check(Request::new(Opcode::GET).key(&key), &on), Ok(()));
        assert_eq!(check(Request::new(Opcode::GET).key(b"\x01k"), &on), Err(Status::EINVAL));
    }

    #[test]
    fn value_cas_and_extras_rules_hold_for_representative_opcodes() {
        let get = Request::new(Opcode::GET).key(b"k");
        let set = Request::new(Opcode::SET).key(b"k").extras(&[0; 8]);
        let unlock = Request::new(Opcode::UNLOCK_KEY).key(b"k");
        let add = Request::new(Opcode::ADD).key(b"k").extras(&[0; 8]);
        for (request, expected) in [
            (get, Ok(())),
            (get.value(b"v"), Err(Status::EINVAL)),
            (get.cas(Cas(1)), Err(Status::EINVAL)),
            (get.extras(&[0; 4]), Err(Status::EINVAL)),
            (set, Ok(())),
            (set.cas(Cas(1)).value(b"v"), Ok(())),
            (set.extras(&[0; 7]), Err(Status::EINVAL)),
            (add.cas(Cas(1)), Err(Status::EINVAL)),
            (unlock, Err(Status::EINVAL)),
            (unlock.cas(Cas(1)), Ok(())),
            (Request::new(Opcode::OBSERVE_SEQNO).value(&[0; 8]), Ok(())),
            (Request::new(Opcode::OBSERVE_SEQNO).value(&[0; 9]), Err(Status::EINVAL)),
            (Request::new(Opcode::COLLECTIONS_GET_ID).value(b"a.b").key(b"a.b"), Err(Status::EINVAL)),
            (Request::new(Opcode::COLLECTIONS_GET_ID).key(b"a.b"), Ok(())),
            (Request::new(Opcode::SELECT_BUCKET).key(&[b'b'; 101]), Err(Status::EINVAL)),
            (Request::new(Opcode::GET_META).key(b"k").extras(&[3]), Err(Status::EINVAL)),
        ] {
            assert_eq!(check(request, &OPEN), expected, "{request:?}");
        }
    }

    #[test]
    fn a_datatype_must_be_known_allowed_and_negotiated() {
        let set = |datatype| Request::new(Opcode::SET).key(b"k").extras(&[0; 8]).datatype(Datatype(datatype));
        let all = with(&[Feature::Json, Feature::Snappy, Feature::Xattr]);
        assert_eq!(check(set(8), &all), Err(Status::EINVAL));
        assert_eq!(check(set(3), &all), Ok(()));
        assert_eq!(check(set(4), &all), Err(Status::EINVAL), "xattrs cannot be set");
        assert_eq!(check(set(1), &OPEN), Err(Status::EINVAL));
        assert_eq!(check(set(2), &with(&[Feature::Json])), Err(Status::EINVAL));
        let create = Request::new(Opcode::RANGE_SCAN_CREATE).value(b"{}");
        assert_eq!(check(create, &all), Err(Status::EINVAL));
        assert_eq!(check(create.datatype(Datatype::JSON), &all), Ok(()));
        assert_eq!(check(create.datatype(Datatype(3)), &all), Err(Status::EINVAL));
    }

    #[test]
    fn an_xattr_section_is_looked_at_before_the_framing_and_the_key() {
        let all = with(&[Feature::Json, Feature::Xattr]);
        let extras = [0; 24];
        let set = Request::new(Opcode::SET_WITH_META).key(b"k").extras(&extras).datatype(Datatype::XATTR);
        assert_eq!(check(set, &all), Err(Status::XATTR_EINVAL), "no value at all");
        assert_eq!(check(set.value(b"\0\0\0\x01"), &all), Err(Status::XATTR_EINVAL));
        let section = crate::protocol::xattr::build_section([("a", "1")]);
        assert_eq!(check(set.value(&section), &all), Ok(()));
        assert_eq!(check(set.value(&section), &OPEN), Err(Status::EINVAL), "not negotiated");
        let preserve = RequestFraming { preserve_ttl: true, ..Default::default() };
        assert_eq!(check(set.value(b"x").framing(preserve), &all), Err(Status::XATTR_EINVAL));
        assert_eq!(check(set.value(&section).framing(preserve), &all), Err(Status::NOT_SUPPORTED));
    }

    #[test]
    fn framing_errors_come_after_the_shape_and_before_the_key() {
        let durable = RequestFraming { stream_id: Some(1), preserve_ttl: true, ..Default::default() };
        let get = Request::new(Opcode::GET).framing(durable);
        assert_eq!(check(get.key(b"k"), &OPEN), Err(Status::NOT_SUPPORTED));
        assert_eq!(check(get, &OPEN), Err(Status::EINVAL), "no key");
        assert_eq!(check(get.key(b"\x01k"), &with(&[Feature::Collections])), Err(Status::NOT_SUPPORTED));
    }

    /// Every opcode with lengths around every boundary, in every state of a connection: an answer, no panic,
    /// and only statuses that a validator may give.
    #[test]
    fn the_whole_matrix_of_opcodes_and_lengths_is_answered() {
        let body = [0x15; 600];
        let lengths = [0usize, 1, 2, 4, 5, 8, 16, 20, 28, 30, 31, 48, 250, 251, 255];
        let connections = [
            OPEN,
            ConnectionState { authenticated: false, ..OPEN },
            with(&[Feature::Collections, Feature::Json, Feature::Xerror]),
            ConnectionState { config_only_bucket: true, ..with(&[Feature::Xerror]) },
        ];
        let mut answers = 0u32;
        for number in 0..=u8::MAX {
            for (key_len, extras_len) in lengths.iter().flat_map(|k| lengths.iter().map(move |e| (*k, *e))) {
                for value_len in [0usize, 1, 2, 8, 90] {
                    for datatype in [0, 1, 2, 4, 7, 8, 255] {
                        let framing_len = value_len % 3;
                        let header = Header {
                            magic: Magic::AltClientRequest,
                            opcode: Opcode(number),
                            framing_len: framing_len as u8,
                            key_len: key_len as u16,
                            extras_len: extras_len as u8,
                            datatype: Datatype(datatype),
                            specific: 0,
                            body_len: (framing_len + extras_len + key_len + value_len) as u32,
                            opaque: 0,
                            cas: Cas(0),
                        };
                        let (framing, rest) = body.split_at(framing_len);
                        let (extras, rest) = rest.split_at(extras_len);
                        let (key, rest) = rest.split_at(key_len);
                        let frame = Frame { header, framing, extras, key, value: &rest[..value_len] };
                        for connection in &connections {
                            let status = validate(&frame, connection).map_err(|refusal| refusal.status);
                            answers += 1;
                            if let Err(status) = status {
                                assert!(!status.is_success_class());
                                assert_ne!(status.name(), "UNKNOWN");
                            }
                        }
                    }
                }
            }
        }
        assert_eq!(answers, 256 * 225 * 5 * 7 * 4);
    }
}
