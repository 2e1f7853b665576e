//! DCP_CONTROL: one setting of a DCP connection, key and value as text, both ways.
//!
//! Invariants
//! - A decoded [`Control`] has a legal value; whether the connection may have it is `crate::dcp`'s question.
//!
//! Cost: no allocation to decode.
//!
//! Does not know: defaults, what a setting changes, what was set before.

use std::borrow::Cow;
use std::time::Duration;

use bytes::BufMut;

use super::super::error_context::Refusal;
use super::super::request::EncodeError;
use super::super::validate::DCP_NAME_BYTES_MAX;
use super::super::{Opcode, Request, Status};

/// Shortest interval of noops.
pub const NOOP_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// How urgent a connection's work is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// Before others.
    High,
    /// As most.
    #[default]
    Medium,
    /// After others.
    Low,
}

impl Priority {
    /// All there are, the most urgent first.
    pub const ALL: [Priority; 3] = [Priority::High, Priority::Medium, Priority::Low];

    /// Its value in the protocol.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Priority::High => "high",
            Priority::Medium => "medium",
            Priority::Low => "low",
        }
    }
}

/// In which order a connection's backfills run.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum BackfillOrder {
    /// In turn, a piece of each.
    #[default]
    RoundRobin,
    /// One after the other.
    Sequential,
}

/// Whether backfills may come in key order.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum OutOfOrderSnapshots {
    /// No.
    #[default]
    Off,
    /// Yes.
    On,
    /// Yes, and their greatest seqno is told before their end.
    OnWithSeqnoAdvanced,
}

impl OutOfOrderSnapshots {
    /// Its value in the protocol.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            OutOfOrderSnapshots::Off => "false",
            OutOfOrderSnapshots::On => "true",
            OutOfOrderSnapshots::OnWithSeqnoAdvanced => "true_with_seqno_advanced",
        }
    }
}

/// One setting with its value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Control<'a> {
    /// `connection_buffer_size`: the flow-control window in bytes, 0 for none.
    ConnectionBufferSize(u32),
    /// `enable_noop`.
    EnableNoop(bool),
    /// `set_noop_interval`, at least [`NOOP_INTERVAL_MIN`].
    SetNoopInterval(Duration),
    /// `set_priority`.
    SetPriority(Priority),
    /// `force_value_compression`.
    ForceValueCompression(bool),
    /// `supports_cursor_dropping` and `supports_cursor_dropping_vulcan`.
    SupportsCursorDropping(bool),
    /// `supports_hifi_MFU`, historical.
    SupportsHifiMfu,
    /// `send_stream_end_on_client_close_stream`.
    SendStreamEndOnClientCloseStream,
    /// `enable_expiry_opcode`.
    EnableExpiryOpcode(bool),
    /// `enable_stream_id`.
    EnableStreamId,
    /// `enable_sync_writes`.
    EnableSyncWrites,
    /// `consumer_name`, 1 to 200 bytes.
    ConsumerName(&'a str),
    /// `enable_out_of_order_snapshots`.
    EnableOutOfOrderSnapshots(OutOfOrderSnapshots),
    /// `include_deleted_user_xattrs`: a question whether the flag of DCP_OPEN is in force.
    IncludeDeletedUserXattrs,
    /// `v7_dcp_status_codes`.
    V7DcpStatusCodes,
    /// `flatbuffers_system_events`.
    FlatbuffersSystemEvents,
    /// `change_streams`.
    ChangeStreams,
    /// `max_marker_version` = `2.2`.
    MaxMarkerVersion2_2,
    /// `cache_transfer`.
    CacheTransfer,
    /// `backfill_order`.
    BackfillOrder(BackfillOrder),
}

const BAD_VALUE: Refusal = Refusal::einval("Unknown value of a DCP control");

fn boolean(value: &[u8]) -> Result<bool, Refusal> {
    match value {
        b"true" => Ok(true),
        b"false" => Ok(false),
        _ => Err(BAD_VALUE),
    }
}

/// `control`, of which the only value is `true`.
fn only_true<'a>(value: &[u8], control: Control<'a>) -> Result<Control<'a>, Refusal> {
    if value == b"true" { Ok(control) } else { Err(BAD_VALUE) }
}

fn seconds(value: &[u8]) -> Option<Duration> {
    let text = std::str::from_utf8(value).ok()?;
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let seconds: f64 = is_plain.then(|| text.parse().ok()).flatten()?;
    let interval = Duration::try_from_secs_f64(seconds).ok()?;
    (interval >= NOOP_INTERVAL_MIN).then_some(interval)
}

fn decimal_u32(value: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(value).ok()?;
    let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_plain.then(|| text.parse().ok()).flatten()
}

impl<'a> Control<'a> {
    /// Decodes key and value of a request.
    ///
    /// # Errors
    /// NOT_SUPPORTED for `stream_buffer_size`, EINVAL for every other unknown key and for an illegal value.
    pub fn decode(key: &[u8], value: &'a [u8]) -> Result<Control<'a>, Refusal> {
        Ok(match key {
            b"connection_buffer_size" => Control::ConnectionBufferSize(decimal_u32(value).ok_or(BAD_VALUE)?),
            b"stream_buffer_size" => {
                return Err(Refusal::new(Status::NOT_SUPPORTED, "stream_buffer_size was retired"));
            }
            b"enable_noop" => Control::EnableNoop(boolean(value)?),
            b"set_noop_interval" => Control::SetNoopInterval(seconds(value).ok_or(BAD_VALUE)?),
            b"set_priority" => Control::SetPriority(match value {
                b"high" => Priority::High,
                b"medium" => Priority::Medium,
                b"low" => Priority::Low,
                _ => return Err(BAD_VALUE),
            }),
            b"force_value_compression" => Control::ForceValueCompression(boolean(value)?),
            b"supports_cursor_dropping" | b"supports_cursor_dropping_vulcan" => {
                Control::SupportsCursorDropping(boolean(value)?)
            }
            b"supports_hifi_MFU" => only_true(value, Control::SupportsHifiMfu)?,
            b"send_stream_end_on_client_close_stream" => {
                only_true(value, Control::SendStreamEndOnClientCloseStream)?
            }
            b"enable_expiry_opcode" => Control::EnableExpiryOpcode(boolean(value)?),
            b"enable_stream_id" => only_true(value, Control::EnableStreamId)?,
            b"enable_sync_writes" => only_true(value, Control::EnableSyncWrites)?,
            b"consumer_name" => match std::str::from_utf8(value) {
                Ok(name) if (1..=DCP_NAME_BYTES_MAX).contains(&name.len()) => Control::ConsumerName(name),
                _ => return Err(BAD_VALUE),
            },
            b"enable_out_of_order_snapshots" => Control::EnableOutOfOrderSnapshots(match value {
                b"true" => OutOfOrderSnapshots::On,
                b"true_with_seqno_advanced" => OutOfOrderSnapshots::OnWithSeqnoAdvanced,
                b"false" => OutOfOrderSnapshots::Off,
                _ => return Err(BAD_VALUE),
            }),
            b"include_deleted_user_xattrs" => only_true(value, Control::IncludeDeletedUserXattrs)?,
            b"v7_dcp_status_codes" => only_true(value, Control::V7DcpStatusCodes)?,
            b"flatbuffers_system_events" => only_true(value, Control::FlatbuffersSystemEvents)?,
            b"change_streams" => only_true(value, Control::ChangeStreams)?,
            b"max_marker_version" if value == b"2.2" => Control::MaxMarkerVersion2_2,
            b"max_marker_version" => return Err(BAD_VALUE),
            b"cache_transfer" => only_true(value, Control::CacheTransfer)?,
            b"backfill_order" => Control::BackfillOrder(match value {
                b"round-robin" => BackfillOrder::RoundRobin,
                b"sequential" => BackfillOrder::Sequential,
                _ => return Err(BAD_VALUE),
            }),
            _ => return Err(Refusal::einval("Unknown DCP control")),
        })
    }

    /// Key and value as text.
    #[must_use]
    pub fn text(&self) -> (&'static str, Cow<'a, str>) {
        let boolean = |value: bool| if value { "true" } else { "false" };
        let (key, value) = match *self {
            Control::ConnectionBufferSize(bytes) => {
                return ("connection_buffer_size", bytes.to_string().into());
            }
            Control::SetNoopInterval(interval) => {
                return ("set_noop_interval", interval.as_secs_f64().to_string().into());
            }
            Control::EnableNoop(on) => ("enable_noop", boolean(on)),
            Control::SetPriority(priority) => ("set_priority", priority.name()),
            Control::ForceValueCompression(on) => ("force_value_compression", boolean(on)),
            Control::SupportsCursorDropping(on) => ("supports_cursor_dropping_vulcan", boolean(on)),
            Control::SupportsHifiMfu => ("supports_hifi_MFU", "true"),
            Control::SendStreamEndOnClientCloseStream => ("send_stream_end_on_client_close_stream", "true"),
            Control::EnableExpiryOpcode(on) => ("enable_expiry_opcode", boolean(on)),
            Control::EnableStreamId => ("enable_stream_id", "true"),
            Control::EnableSyncWrites => ("enable_sync_writes", "true"),
            Control::ConsumerName(name) => ("consumer_name", name),
            Control::EnableOutOfOrderSnapshots(how) => ("enable_out_of_order_snapshots", how.name()),
            Control::IncludeDeletedUserXattrs => ("include_deleted_user_xattrs", "true"),
            Control::V7DcpStatusCodes => ("v7_dcp_status_codes", "true"),
            Control::FlatbuffersSystemEvents => ("flatbuffers_system_events", "true"),
            Control::ChangeStreams => ("change_streams", "true"),
            Control::MaxMarkerVersion2_2 => ("max_marker_version", "2.2"),
            Control::CacheTransfer => ("cache_transfer", "true"),
            Control::BackfillOrder(BackfillOrder::RoundRobin) => ("backfill_order", "round-robin"),
            Control::BackfillOrder(BackfillOrder::Sequential) => ("backfill_order", "sequential"),
        };
        (key, value.into())
    }

    /// Appends the request to `out`.
    ///
    /// # Errors
    /// As [`Request::encode`].
    pub fn encode(&self, opaque: u32, out: &mut impl BufMut) -> Result<(), EncodeError> {
        let (key, value) = self.text();
        Request::new(Opcode::DCP_CONTROL)
            .opaque(opaque)
            .key(key.as_bytes())
            .value(value.as_bytes())
            .encode(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: [Control<'_>; 28] = [
        Control::ConnectionBufferSize(0),
        Control::ConnectionBufferSize(u32::MAX),
        Control::EnableNoop(true),
        Control::EnableNoop(false),
        Control::SetNoopInterval(Duration::from_millis(2500)),
        Control::SetPriority(Priority::High),
        Control::SetPriority(Priority::Medium),
        Control::SetPriority(Priority::Low),
        Control::ForceValueCompression(true),
        Control::SupportsCursorDropping(false),
        Control::SupportsHifiMfu,
        Control::SendStreamEndOnClientCloseStream,
        Control::EnableExpiryOpcode(true),
        Control::EnableStreamId,
        Control::EnableSyncWrites,
        Control::ConsumerName("replica"),
        Control::EnableOutOfOrderSnapshots(OutOfOrderSnapshots::Off),
        Control::EnableOutOfOrderSnapshots(OutOfOrderSnapshots::On),
        Control::EnableOutOfOrderSnapshots(OutOfOrderSnapshots::OnWithSeqnoAdvanced),
        Control::IncludeDeletedUserXattrs,
        Control::V7DcpStatusCodes,
        Control::FlatbuffersSystemEvents,
        Control::ChangeStreams,
        Control::MaxMarkerVersion2_2,
        Control::CacheTransfer,
        Control::BackfillOrder(BackfillOrder::RoundRobin),
        Control::BackfillOrder(BackfillOrder::Sequential),
        Control::EnableExpiryOpcode(false),
    ];

    #[test]
    fn every_control_reads_back_from_its_text() {
        for control in EVERY {
            let (key, value) = control.text();
            assert_eq!(Control::decode(key.as_bytes(), value.as_bytes()), Ok(control), "{key}={value}");
        }
    }

    #[test]
    fn what_real_clients_send_is_understood() {
        let consumer = [("set_noop_interval", "180"), ("set_noop_interval", "0.1"), ("set_priority", "low")];
        let agent = [("connection_buffer_size", "20971520"), ("supports_cursor_dropping", "true")];
        for (key, value) in consumer.into_iter().chain(agent) {
            assert!(Control::decode(key.as_bytes(), value.as_bytes()).is_ok(), "{key}={value}");
        }
    }

    #[test]
    fn a_bad_value_and_an_unknown_key_are_einval_and_a_retired_key_is_not_supported() {
        let status = |key: &str, value: &str| {
            Control::decode(key.as_bytes(), value.as_bytes()).map(|_| ()).map_err(|refusal| refusal.status)
        };
        for control in EVERY {
            let key = control.text().0;
            assert_eq!(status(key, ""), Err(Status::EINVAL), "{key} without value");
            if key != "consumer_name" {
                assert_eq!(status(key, "TRUE"), Err(Status::EINVAL), "{key}");
            }
        }
        for key in ["enable_stream_id", "send_stream_end_on_client_close_stream", "enable_sync_writes"] {
            assert_eq!(status(key, "false"), Err(Status::EINVAL), "{key} cannot be turned off");
        }
        for value in ["4294967296", "-1", "+1", "1.5", "0x10", " 1"] {
            assert_eq!(status("connection_buffer_size", value), Err(Status::EINVAL), "{value}");
        }
        for value in ["0", "0.09", "-1", "nan", "inf", "1e3", "1..2", ".", "99999999999999999999999"] {
            assert_eq!(status("set_noop_interval", value), Err(Status::EINVAL), "{value}");
        }
        assert_eq!(status("max_marker_version", "2.1"), Err(Status::EINVAL));
        assert_eq!(status("consumer_name", &"c".repeat(201)), Err(Status::EINVAL));
        assert_eq!(status("unheard_of", "true"), Err(Status::EINVAL));
        assert_eq!(status("stream_buffer_size", "1"), Err(Status::NOT_SUPPORTED));
    }
}
