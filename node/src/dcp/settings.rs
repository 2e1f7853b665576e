//! What a producer connection was told by DCP_OPEN and DCP_CONTROL.
//!
//! Invariants
//! - Stream ids and sync writes are never both on.
//! - A refused control changes nothing.
//!
//! Cost: one small struct a connection.
//!
//! Does not know: what a setting changes; the window and the noops themselves (`flow_control`, `noop`).

use std::time::Duration;

use super::noop::NOOP_INTERVAL;
use crate::protocol::dcp::{BackfillOrder, Control, DocumentForm, OpenFlags, OutOfOrderSnapshots, Priority};
use crate::protocol::{Feature, Features, Refusal, Status};

/// The version of snapshot markers that a connection gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MarkerForm {
    /// Range and flags.
    V1,
    /// For replicas.
    V2_0,
    /// For clients that asked for it.
    V2_2,
}

/// The settings of one producer connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProducerSettings {
    /// The flags of DCP_OPEN.
    pub flags: OpenFlags,
    /// The flow-control window in bytes, 0 for none.
    pub window_bytes: u32,
    /// Whether noops are sent.
    pub noop: bool,
    /// How often.
    pub noop_interval: Duration,
    /// How urgent its work is.
    pub priority: Priority,
    /// Whether every value is sent compressed.
    pub compresses_values: bool,
    /// Whether a slow stream may be moved back to its backfill.
    pub cursor_dropping: bool,
    /// Whether a stream that the client closes ends with a message.
    pub stream_end_on_close: bool,
    /// Whether expirations are asked for as messages of their own.
    pub expiry_opcode: bool,
    /// Whether streams have ids.
    pub stream_ids: bool,
    /// Whether prepares, commits and aborts are sent.
    pub sync_writes: bool,
    /// The name of the peer's consumer.
    pub consumer_name: Option<String>,
    /// Whether backfills may come in key order.
    pub out_of_order: OutOfOrderSnapshots,
    /// Whether the peer knows the newer statuses of streams.
    pub v7_status_codes: bool,
    /// Whether history is asked for.
    pub change_streams: bool,
    /// Whether markers of version 2.2 are asked for.
    pub marker_v2_2: bool,
    /// In which order backfills run.
    pub backfill_order: BackfillOrder,
}

impl ProducerSettings {
    /// The defaults of a connection that was opened with this name and these flags.
    #[must_use]
    pub fn new(flags: OpenFlags, name: &[u8]) -> ProducerSettings {
        let is_replication = name.windows(b"replication".len()).any(|part| part == b"replication");
        ProducerSettings {
            flags,
            window_bytes: 0,
            noop: false,
            noop_interval: NOOP_INTERVAL,
            priority: Priority::default(),
            compresses_values: false,
            cursor_dropping: !is_replication,
            stream_end_on_close: false,
            expiry_opcode: false,
            stream_ids: false,
            sync_writes: false,
            consumer_name: None,
            out_of_order: OutOfOrderSnapshots::default(),
            v7_status_codes: false,
            change_streams: false,
            marker_v2_2: false,
            backfill_order: BackfillOrder::default(),
        }
    }

    /// Takes a control on a connection with `features`; `keeps_history` tells whether storage keeps every version.
    ///
    /// # Errors
    /// EINVAL or NOT_SUPPORTED if the connection or this node cannot have it; nothing changed then.
    pub fn apply(
        &mut self,
        control: &Control<'_>,
        features: Features,
        keeps_history: bool,
    ) -> Result<(), Refusal> {
        let unsupported = |context| Err(Refusal::new(Status::NOT_SUPPORTED, context));
        match *control {
            Control::ConnectionBufferSize(bytes) => self.window_bytes = bytes,
            Control::EnableNoop(on) => self.noop = on,
            Control::SetNoopInterval(interval) => self.noop_interval = interval,
            Control::SetPriority(priority) => self.priority = priority,
            Control::ForceValueCompression(_) if !has_snappy(features) => {
                return Err(Refusal::einval("Compression needs the Snappy feature"));
            }
            Control::ForceValueCompression(on) => self.compresses_values = on,
            Control::SupportsCursorDropping(on) => self.cursor_dropping = on,
            Control::SupportsHifiMfu => {}
            Control::SendStreamEndOnClientCloseStream => self.stream_end_on_close = true,
            Control::EnableExpiryOpcode(on) => self.expiry_opcode = on,
            Control::EnableStreamId if self.sync_writes => {
                return unsupported("Stream ids exclude sync writes");
            }
            Control::EnableStreamId => self.stream_ids = true,
            Control::EnableSyncWrites if self.stream_ids => {
                return unsupported("Sync writes exclude stream ids");
            }
            Control::EnableSyncWrites => self.sync_writes = true,
            Control::ConsumerName(name) => self.consumer_name = Some(name.to_owned()),
            Control::EnableOutOfOrderSnapshots(how) => self.out_of_order = how,
            Control::IncludeDeletedUserXattrs => {
                if !self.flags.contains(OpenFlags::INCLUDE_DELETED_USER_XATTRS) {
                    return Err(Refusal::einval("The flag of DCP_OPEN is not set"));
                }
            }
            Control::V7DcpStatusCodes => self.v7_status_codes = true,
            Control::FlatbuffersSystemEvents => return unsupported("FlatBuffers events are not supported"),
            Control::ChangeStreams if !keeps_history => return unsupported("No history is kept"),
            Control::ChangeStreams => self.change_streams = true,
            Control::MaxMarkerVersion2_2 if !features.has(Feature::Collections) => {
                return unsupported("Marker version 2.2 needs the Collections feature");
            }
            Control::MaxMarkerVersion2_2 => self.marker_v2_2 = true,
            Control::CacheTransfer => return unsupported("Cache transfer is not supported"),
            Control::BackfillOrder(order) => self.backfill_order = order,
        }
        Ok(())
    }

    /// Whether the peer is a replica with durable writes, which may acknowledge prepares.
    #[must_use]
    pub fn is_sync_replication(&self) -> bool {
        self.sync_writes && self.consumer_name.is_some()
    }

    /// The version of markers.
    #[must_use]
    pub fn marker_form(&self) -> MarkerForm {
        match (self.marker_v2_2, self.is_sync_replication()) {
            (true, _) => MarkerForm::V2_2,
            (false, true) => MarkerForm::V2_0,
            (false, false) => MarkerForm::V1,
        }
    }

    /// How documents are sent on a connection with `features`.
    #[must_use]
    pub fn document_form(&self, features: Features) -> DocumentForm {
        DocumentForm::of(self.flags, features, self.expiry_opcode)
    }

    /// Whether a stream may be asked for: with Collections or IncludeXattrs noops are mandatory.
    ///
    /// # Errors
    /// NOT_SUPPORTED if they are and are off.
    pub fn check_noop(&self, features: Features) -> Result<(), Refusal> {
        let is_mandatory =
            features.has(Feature::Collections) || self.flags.contains(OpenFlags::INCLUDE_XATTRS);
        if is_mandatory && !self.noop {
            return Err(Refusal::new(Status::NOT_SUPPORTED, "Noops must be enabled on this connection"));
        }
        Ok(())
    }

    /// Whether a stream of a part of the vbucket may be asked for.
    ///
    /// # Errors
    /// NOT_SUPPORTED with sync writes.
    pub fn check_filtered(&self) -> Result<(), Refusal> {
        if self.sync_writes {
            return Err(Refusal::new(Status::NOT_SUPPORTED, "Sync writes exclude filters"));
        }
        Ok(())
    }
}

fn has_snappy(features: Features) -> bool {
    features.has(Feature::Snappy) || features.has(Feature::SnappyEverywhere)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> ProducerSettings {
        ProducerSettings::new(OpenFlags::PRODUCER, b"client")
    }

    #[test]
    fn cursor_dropping_is_on_unless_the_name_says_replication() {
        assert!(settings().cursor_dropping);
        let replication = ProducerSettings::new(OpenFlags::PRODUCER, b"replication:n1->n2:default");
        assert!(!replication.cursor_dropping);
    }

    #[test]
    fn what_a_connection_cannot_have_is_refused_and_changes_nothing() {
        let collections = Features::of(&[Feature::Collections]);
        let snappy = Features::of(&[Feature::Snappy]);
        let cases = [
            (Control::ForceValueCompression(true), Features::NONE, Err(Status::EINVAL)),
            (Control::ForceValueCompression(true), snappy, Ok(())),
            (Control::IncludeDeletedUserXattrs, Features::NONE, Err(Status::EINVAL)),
            (Control::FlatbuffersSystemEvents, Features::NONE, Err(Status::NOT_SUPPORTED)),
            (Control::ChangeStreams, Features::NONE, Err(Status::NOT_SUPPORTED)),
            (Control::MaxMarkerVersion2_2, Features::NONE, Err(Status::NOT_SUPPORTED)),
            (Control::MaxMarkerVersion2_2, collections, Ok(())),
            (Control::CacheTransfer, Features::NONE, Err(Status::NOT_SUPPORTED)),
            (Control::SupportsHifiMfu, Features::NONE, Ok(())),
        ];
        for (control, features, expected) in cases {
            let mut changed = settings();
            let result = changed.apply(&control, features, false).map_err(|refusal| refusal.status);
            assert_eq!(result, expected, "{control:?}");
            if expected.is_err() {
                assert_eq!(changed, settings());
            }
        }
        assert_eq!(settings().apply(&Control::ChangeStreams, Features::NONE, true), Ok(()));
        let flags = OpenFlags::INCLUDE_XATTRS | OpenFlags::INCLUDE_DELETED_USER_XATTRS;
        let mut asked = ProducerSettings::new(flags, b"n");
        assert_eq!(asked.apply(&Control::IncludeDeletedUserXattrs, Features::NONE, false), Ok(()));
    }

    #[test]
    fn stream_ids_and_sync_writes_exclude_each_other() {
        for (first, second) in [
            (Control::EnableStreamId, Control::EnableSyncWrites),
            (Control::EnableSyncWrites, Control::EnableStreamId),
        ] {
            let mut settings = settings();
            settings.apply(&first, Features::NONE, false).unwrap();
            let refusal = settings.apply(&second, Features::NONE, false).unwrap_err();
            assert_eq!(refusal.status, Status::NOT_SUPPORTED);
            assert_ne!(settings.stream_ids, settings.sync_writes);
            assert_eq!(settings.check_filtered().is_ok(), settings.stream_ids);
        }
    }

    #[test]
    fn markers_are_of_version_1_for_clients_and_2_for_replicas_and_those_who_ask() {
        let collections = Features::of(&[Feature::Collections]);
        let mut settings = settings();
        let mut form_after = |control| {
            settings.apply(&control, collections, false).unwrap();
            settings.marker_form()
        };
        assert_eq!(form_after(Control::EnableSyncWrites), MarkerForm::V1);
        assert_eq!(form_after(Control::ConsumerName("c")), MarkerForm::V2_0);
        assert_eq!(form_after(Control::MaxMarkerVersion2_2), MarkerForm::V2_2);
        assert!(settings.is_sync_replication());
    }

    #[test]
    fn noops_are_mandatory_with_collections_or_xattrs() {
        let collections = Features::of(&[Feature::Collections]);
        let xattrs = OpenFlags::PRODUCER | OpenFlags::INCLUDE_XATTRS;
        assert!(settings().check_noop(Features::NONE).is_ok());
        for (flags, features) in [(xattrs, Features::NONE), (OpenFlags::PRODUCER, collections)] {
            let mut settings = ProducerSettings::new(flags, b"n");
            assert_eq!(settings.check_noop(features).unwrap_err().status, Status::NOT_SUPPORTED);
            settings.apply(&Control::EnableNoop(true), features, false).unwrap();
            assert!(settings.check_noop(features).is_ok());
        }
        assert!(settings().document_form(collections).prefixed_keys);
    }
}
