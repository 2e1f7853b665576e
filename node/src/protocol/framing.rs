//! Framing extras: the small typed objects of flexible frames, both ways.
//!
//! Requests carry what modifies one command (durability, preserve-TTL, barrier, …); responses carry the
//! server's processing time and billing units.
//!
//! Invariants
//! - A decoded request section was read to its end; unknown objects are an error there, never skipped.
//! - An encoded section is at most 255 bytes.
//!
//! Cost: no allocation; an empty section is not looked at.
//!
//! Does not know: who may use an object (`command`), what durability means.

use super::duration::EncodedDuration;
use super::error_context::Refusal;
use super::{Opcode, Status};

/// Longest framing section, in bytes.
pub const FRAMING_BYTES_MAX: usize = 255;

/// How many copies must hold a write before it is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum DurabilityLevel {
    /// In memory of a majority.
    Majority = 1,
    /// In memory of a majority and on disk of the active.
    MajorityAndPersistOnMaster = 2,
    /// On disk of a majority.
    PersistToMajority = 3,
}

impl DurabilityLevel {
    /// The level with this number.
    #[must_use]
    pub fn from_u8(number: u8) -> Option<DurabilityLevel> {
        Some(match number {
            1 => DurabilityLevel::Majority,
            2 => DurabilityLevel::MajorityAndPersistOnMaster,
            3 => DurabilityLevel::PersistToMajority,
            _ => return None,
        })
    }
}

/// A durability requirement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Durability {
    /// What must have happened.
    pub level: DurabilityLevel,
    /// Time after which the outcome is ambiguous, in milliseconds; `None` for the server's default.
    pub timeout_ms: Option<u16>,
}

/// The framing extras of one request.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct RequestFraming<'a> {
    /// Wait for all earlier commands of the connection.
    pub barrier: bool,
    /// Acknowledge only when durable.
    pub durability: Option<Durability>,
    /// The DCP stream meant.
    pub stream_id: Option<u16>,
    /// Act as this user; a leading `^` marks an external one. Needs a privilege.
    pub impersonate: Option<&'a [u8]>,
    /// Keep the expiry of an existing document.
    pub preserve_ttl: bool,
    /// Act as the holder of this registered token. Needs a privilege.
    pub impersonate_token: Option<u16>,
}

const ID_BARRIER: u16 = 0;
const ID_DURABILITY: u16 = 1;
const ID_STREAM_ID: u16 = 2;
const ID_IMPERSONATE: u16 = 4;
const ID_PRESERVE_TTL: u16 = 5;
const ID_EXTRA_PRIVILEGE: u16 = 6;
const ID_IMPERSONATE_TOKEN: u16 = 7;

const OVERRUN: Refusal = Refusal::einval("Invalid encoding in FrameExtras");

/// Reads one object; `None` if it runs past the end.
#[inline]
fn next_object(section: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let (&control, mut rest) = section.split_first()?;
    let mut escaped = |nibble: u8| {
        if nibble < 15 {
            return Some(u16::from(nibble));
        }
        let (&more, after) = rest.split_first()?;
        rest = after;
        Some(15 + u16::from(more))
    };
    let id = escaped(control >> 4)?;
    let len = escaped(control & 15)?;
    let (data, rest) = rest.split_at_checked(usize::from(len))?;
    Some((id, data, rest))
}

/// Appends one object to `section`, which has room by the caller's limits.
fn put_object(section: &mut Vec<u8>, id: u16, data: &[u8]) {
    let nibble = |number: usize| if number < 15 { number as u8 } else { 15 };
    section.push(nibble(usize::from(id)) << 4 | nibble(data.len()));
    for number in [usize::from(id), data.len()] {
        if number >= 15 {
            section.push((number - 15) as u8);
        }
    }
    section.extend_from_slice(data);
}

impl<'a> RequestFraming<'a> {
    /// Decodes the section of a request for `opcode`.
    ///
    /// # Errors
    /// The first object that is malformed, unknown or not legal for the opcode decides.
    #[inline]
    pub fn decode(section: &'a [u8], opcode: Opcode) -> Result<RequestFraming<'a>, Refusal> {
        let mut framing = RequestFraming::default();
        let mut rest = section;
        while !rest.is_empty() {
            let (id, data, after) = next_object(rest).ok_or(OVERRUN)?;
            framing.take(id, data, opcode)?;
            rest = after;
        }
        Ok(framing)
    }

    fn take(&mut self, id: u16, data: &'a [u8], opcode: Opcode) -> Result<(), Refusal> {
        match id {
            ID_BARRIER if data.is_empty() => self.barrier = true,
            ID_BARRIER => return Err(Refusal::einval("Barrier carries no data")),
            ID_DURABILITY => self.durability = Some(decode_durability(data, opcode)?),
            ID_STREAM_ID => {
                let id = data.try_into().map_err(|_| Refusal::einval("Invalid DCP stream id"))?;
                self.stream_id = Some(u16::from_be_bytes(id));
            }
            ID_IMPERSONATE if data.is_empty() => return Err(Refusal::einval("Impersonated user is empty")),
            ID_IMPERSONATE => self.impersonate = Some(data),
            ID_PRESERVE_TTL if !data.is_empty() => {
                return Err(Refusal::einval("PreserveTtl carries no data"));
            }
            ID_PRESERVE_TTL if !supports_preserve_ttl(opcode) => {
                return Err(Refusal::new(Status::NOT_SUPPORTED, "The command does not support PreserveTtl"));
            }
            ID_PRESERVE_TTL => self.preserve_ttl = true,
            ID_EXTRA_PRIVILEGE => return Err(Refusal::einval("Unknown privilege")),
            ID_IMPERSONATE_TOKEN => {
                let id = data.try_into().map_err(|_| Refusal::einval("Invalid token id"))?;
                self.impersonate_token = Some(u16::from_be_bytes(id));
            }
            _ => return Err(Refusal::new(Status::UNKNOWN_FRAME_INFO, "Unknown frame info")),
        }
        Ok(())
    }

    /// Whether nothing would be encoded.
    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        *self == RequestFraming::default()
    }

    /// Encodes the section, objects in ascending order of their id.
    ///
    /// The impersonated user, if any, must be short enough for [`FRAMING_BYTES_MAX`]; `Request::encode` checks.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut section = Vec::new();
        if self.barrier {
            put_object(&mut section, ID_BARRIER, &[]);
        }
        if let Some(Durability { level, timeout_ms }) = self.durability {
            match timeout_ms {
                None => put_object(&mut section, ID_DURABILITY, &[level as u8]),
                Some(timeout) => {
                    let [high, low] = timeout.to_be_bytes();
                    put_object(&mut section, ID_DURABILITY, &[level as u8, high, low]);
                }
            }
        }
        if let Some(id) = self.stream_id {
            put_object(&mut section, ID_STREAM_ID, &id.to_be_bytes());
        }
        if let Some(user) = self.impersonate {
            put_object(&mut section, ID_IMPERSONATE, &user[..user.len().min(FRAMING_BYTES_MAX)]);
        }
        if self.preserve_ttl {
            put_object(&mut section, ID_PRESERVE_TTL, &[]);
        }
        if let Some(id) = self.impersonate_token {
            put_object(&mut section, ID_IMPERSONATE_TOKEN, &id.to_be_bytes());
        }
        section
    }
}

fn decode_durability(data: &[u8], opcode: Opcode) -> Result<Durability, Refusal> {
    let (level, timeout_ms) = match *data {
        [level] => (level, None),
        [level, high, low] => (level, Some(u16::from_be_bytes([high, low]))),
        _ => return Err(Refusal::einval("Invalid size of a durability requirement")),
    };
    let invalid = |context| Refusal::new(Status::DURABILITY_INVALID_LEVEL, context);
    let level = DurabilityLevel::from_u8(level).ok_or(invalid("Invalid durability level"))?;
    if matches!(timeout_ms, Some(0 | u16::MAX)) {
        return Err(invalid("Durability timeouts 0 and 65535 are reserved"));
    }
    if !supports_durability(opcode) {
        return Err(Refusal::einval("The command does not support durability"));
    }
    Ok(Durability { level, timeout_ms })
}

/// Whether `opcode` writes one document or part of one.
fn is_subdoc_mutation(opcode: Opcode) -> bool {
    matches!(opcode.0, 0xc7..=0xcf | 0xd1 | 0xd3)
}

/// Whether a request with `opcode` may ask for durability.
#[must_use]
pub fn supports_durability(opcode: Opcode) -> bool {
    matches!(
        opcode,
        Opcode::SET
            | Opcode::ADD
            | Opcode::REPLACE
            | Opcode::DELETE
            | Opcode::INCREMENT
            | Opcode::DECREMENT
            | Opcode::APPEND
            | Opcode::PREPEND
            | Opcode::TOUCH
            | Opcode::GAT
    ) || is_subdoc_mutation(opcode)
}

/// Whether a request with `opcode` may ask to keep the document's expiry.
#[must_use]
pub fn supports_preserve_ttl(opcode: Opcode) -> bool {
    matches!(
        opcode,
        Opcode::SET
            | Opcode::SET_Q
            | Opcode::REPLACE
            | Opcode::REPLACE_Q
            | Opcode::INCREMENT
            | Opcode::INCREMENT_Q
            | Opcode::DECREMENT
            | Opcode::DECREMENT_Q
            | Opcode::APPEND
            | Opcode::APPEND_Q
            | Opcode::PREPEND
            | Opcode::PREPEND_Q
    ) || is_subdoc_mutation(opcode)
}

/// Whether a request with `opcode` may run at the same time as others of its connection when unordered
/// execution is on; every other one is a barrier.
#[must_use]
pub fn supports_reorder(opcode: Opcode) -> bool {
    matches!(
        opcode,
        Opcode::GET
            | Opcode::GET_K
            | Opcode::SET
            | Opcode::ADD
            | Opcode::REPLACE
            | Opcode::DELETE
            | Opcode::INCREMENT
            | Opcode::DECREMENT
            | Opcode::APPEND
            | Opcode::PREPEND
            | Opcode::TOUCH
            | Opcode::GAT
            | Opcode::GET_EX
            | Opcode::GET_EX_REPLICA
            | Opcode::GET_REPLICA
            | Opcode::GET_LOCKED
            | Opcode::UNLOCK_KEY
            | Opcode::EVICT_KEY
            | Opcode::GET_ALL_VB_SEQNOS
            | Opcode::GET_CLUSTER_CONFIG
            | Opcode::MUTATE_WITH_META
            | Opcode::RANGE_SCAN_CREATE
    ) || opcode.is_subdoc()
        || matches!(opcode.0, 0x2a..=0x2e)
}

/// The framing extras of one response.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct ResponseFraming {
    /// From receiving the request to formatting the response; sent iff Tracing is on.
    pub server_duration: Option<EncodedDuration>,
    /// Billing units of reading; sent if not 0.
    pub read_units: u16,
    /// Billing units of writing; sent if not 0.
    pub write_units: u16,
    /// How long the request was throttled; sent if not 0.
    pub throttle_duration: EncodedDuration,
}

/// Longest section of a response, in bytes.
pub const RESPONSE_FRAMING_BYTES_MAX: usize = 12;

impl ResponseFraming {
    /// No framing extras: the response is a classic frame.
    pub const NONE: ResponseFraming = ResponseFraming {
        server_duration: None,
        read_units: 0,
        write_units: 0,
        throttle_duration: EncodedDuration(0),
    };

    /// The section of a connection with Tracing on.
    #[must_use]
    #[inline]
    pub fn traced(server_duration: EncodedDuration) -> ResponseFraming {
        ResponseFraming { server_duration: Some(server_duration), ..ResponseFraming::NONE }
    }

    /// Encodes into `section`, returns the number of bytes used: three for each object.
    #[must_use]
    #[inline]
    pub fn encode(&self, section: &mut [u8; RESPONSE_FRAMING_BYTES_MAX]) -> u8 {
        let objects = [
            (0x02, self.server_duration.map(|duration| duration.0)),
            (0x12, Some(self.read_units).filter(|units| *units != 0)),
            (0x22, Some(self.write_units).filter(|units| *units != 0)),
            (0x32, Some(self.throttle_duration.0).filter(|code| *code != 0)),
        ];
        let mut len = 0;
        for (control, number) in objects {
            if let Some(number) = number {
                let [high, low] = number.to_be_bytes();
                section[len..len + 3].copy_from_slice(&[control, high, low]);
                len += 3;
            }
        }
        len as u8
    }

    /// Reads a section; objects this build does not know are skipped, a damaged tail is dropped.
    #[must_use]
    pub fn decode(section: &[u8]) -> ResponseFraming {
        let mut framing = ResponseFraming::NONE;
        let mut rest = section;
        while let Some((id, data, after)) = next_object(rest) {
            rest = after;
            let Ok(number) = data.try_into().map(u16::from_be_bytes) else { continue };
            match id {
                0 => framing.server_duration = Some(EncodedDuration(number)),
                1 => framing.read_units = number,
                2 => framing.write_units = number,
                3 => framing.throttle_duration = EncodedDuration(number),
                _ => {}
            }
        }
        framing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(section: &[u8], opcode: Opcode) -> Result<(), Status> {
        RequestFraming::decode(section, opcode).map(|_| ()).map_err(|refusal| refusal.status)
    }

    #[test]
    fn sections_survive_a_round_trip() {
        let durability = Durability { level: DurabilityLevel::PersistToMajority, timeout_ms: Some(2500) };
        let user = [b'u'; 200];
        for framing in [
            RequestFraming::default(),
            RequestFraming { barrier: true, ..Default::default() },
            RequestFraming { durability: Some(durability), preserve_ttl: true, ..Default::default() },
            RequestFraming { impersonate: Some(&user), stream_id: Some(7), ..Default::default() },
            RequestFraming { impersonate: Some(&user[..15]), ..Default::default() },
            RequestFraming { impersonate_token: Some(0x1234), ..Default::default() },
        ] {
            let section = framing.encode();
            assert_eq!(RequestFraming::decode(&section, Opcode::SET), Ok(framing), "{section:x?}");
            assert_eq!(section.is_empty(), framing.is_empty());
        }
    }

    #[test]
    fn every_rule_about_a_request_object_gives_its_status() {
        for (section, opcode, expected) in [
            (&[0x01, 0][..], Opcode::GET, Err(Status::EINVAL)),
            (&[0x11, 1], Opcode::SET, Ok(())),
            (&[0x11, 0], Opcode::SET, Err(Status::DURABILITY_INVALID_LEVEL)),
            (&[0x11, 4], Opcode::SET, Err(Status::DURABILITY_INVALID_LEVEL)),
            (&[0x13, 1, 0, 0], Opcode::SET, Err(Status::DURABILITY_INVALID_LEVEL)),
            (&[0x13, 1, 0xff, 0xff], Opcode::SET, Err(Status::DURABILITY_INVALID_LEVEL)),
            (&[0x13, 1, 0xff, 0xfe], Opcode::SET, Ok(())),
            (&[0x12, 1, 0], Opcode::SET, Err(Status::EINVAL)),
            (&[0x10], Opcode::SET, Err(Status::EINVAL)),
            (&[0x11, 1], Opcode::SET_Q, Err(Status::EINVAL)),
            (&[0x11, 1], Opcode::GET, Err(Status::EINVAL)),
            (&[0x22, 0, 1], Opcode::DCP_STREAM_REQ, Ok(())),
            (&[0x21, 0], Opcode::DCP_STREAM_REQ, Err(Status::EINVAL)),
            (&[0x31, 0], Opcode::GET, Err(Status::UNKNOWN_FRAME_INFO)),
            (&[0x40], Opcode::GET, Err(Status::EINVAL)),
            (&[0x41, b'u'], Opcode::GET, Ok(())),
            (&[0x50], Opcode::SET_Q, Ok(())),
            (&[0x51, 0], Opcode::SET, Err(Status::EINVAL)),
            (&[0x50], Opcode::ADD, Err(Status::NOT_SUPPORTED)),
            (&[0x50], Opcode::TOUCH, Err(Status::NOT_SUPPORTED)),
            (&[0x60], Opcode::GET, Err(Status::EINVAL)),
            (&[0x61, b'p'], Opcode::GET, Err(Status::EINVAL)),
            (&[0x72, 0, 1], Opcode::GET, Ok(())),
            (&[0x71, 0], Opcode::GET, Err(Status::EINVAL)),
            (&[0x80], Opcode::GET, Err(Status::UNKNOWN_FRAME_INFO)),
            (&[0xf1, 2, 1], Opcode::GET, Err(Status::UNKNOWN_FRAME_INFO)),
        ] {
            assert_eq!(status(section, opcode), expected, "{section:x?} {opcode}");
        }
    }

    #[test]
    fn an_object_past_the_end_is_invalid_wherever_it_is_cut() {
        let whole = RequestFraming {
            durability: Some(Durability { level: DurabilityLevel::Majority, timeout_ms: Some(9) }),
            impersonate: Some(&[b'u'; 20]),
            ..Default::default()
        }
        .encode();
        for length in 1..whole.len() {
            let expected = if length == 4 { Ok(()) } else { Err(Status::EINVAL) };
            assert_eq!(status(&whole[..length], Opcode::SET), expected, "{length} bytes");
        }
        assert_eq!(status(&[0xf0], Opcode::GET), Err(Status::EINVAL));
        assert_eq!(status(&[0xff, 0], Opcode::GET), Err(Status::EINVAL));
    }

    #[test]
    fn a_response_section_names_its_objects_in_order_and_can_be_read_back() {
        let framing = ResponseFraming {
            server_duration: Some(EncodedDuration(0x0201)),
            read_units: 1,
            write_units: 2,
            throttle_duration: EncodedDuration(3),
        };
        let mut section = [0; RESPONSE_FRAMING_BYTES_MAX];
        let len = framing.encode(&mut section);
        assert_eq!(section[..len as usize], [0x02, 2, 1, 0x12, 0, 1, 0x22, 0, 2, 0x32, 0, 3]);
        assert_eq!(ResponseFraming::decode(&section), framing);
        assert_eq!(ResponseFraming::NONE.encode(&mut section), 0);
        assert_eq!(ResponseFraming::decode(&[0xf1, 0, 9, 0x12, 0, 4, 0x22, 0]).read_units, 4);
    }
}
