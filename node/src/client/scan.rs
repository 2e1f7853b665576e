//! Range scans: create, continue with limits, cancel, and the records as they stream in.
//!
//! Invariants
//! - Every response is checked to belong to the continue that is running; every record by `records`.
//! - No key or document is kept: records are handed on from the receive buffer.
//!
//! Cost: one `read` for up to 256 KiB; memory grows above that only for a single larger record.
//!
//! Does not know: other scans of the connection (`scan_queue`), what is done with the records.

use std::io;
use std::time::Duration;

use ringbase_storage::types::VbId;

use super::connection::{Connection, Tag, describe, refusal, refused, unexpected};
use super::error::ClientError;
use super::records::{RecordCounts, RecordWalk, ScanRecord, WalkError};
use crate::protocol::range_scan::{RangeScanContinue, RangeScanCreate, ScanId};
use crate::protocol::scan_records::RecordKind;
use crate::protocol::{
    Datatype, FrameLimits, HEADER_BYTES, Header, Magic, Opcode, Request, Status, decode_frame,
};

/// How long a node may take for a create beyond what the request itself allows it to wait.
const CREATE_GRACE: Duration = Duration::from_secs(30);

/// How far one continue may go; 0 is no limit.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct ContinueLimits {
    /// Most records.
    pub items: u32,
    /// Longest time, in milliseconds.
    pub time_ms: u32,
    /// Most bytes of records.
    pub bytes: u32,
}

/// What one or several scans have cost and brought.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct ScanCounts {
    /// Records and the bytes in them.
    pub records: RecordCounts,
    /// Bytes of records on the wire: keys, values, metadata and their lengths.
    pub record_bytes: u64,
    /// Bytes of headers, framing extras and extras around them.
    pub overhead_bytes: u64,
    /// Responses to continues.
    pub frames: u64,
    /// Continues.
    pub continues: u64,
    /// Scans that were created.
    pub scans: u64,
    /// Scans that were not created because no key is in the range.
    pub empty: u64,
    /// Creates that were sent again because the node was busy.
    pub retries: u64,
}

impl ScanCounts {
    /// Adds what another scan has cost and brought.
    pub fn add(&mut self, other: &ScanCounts) {
        self.records.records += other.records.records;
        self.records.key_bytes += other.records.key_bytes;
        self.records.value_bytes += other.records.value_bytes;
        self.record_bytes += other.record_bytes;
        self.overhead_bytes += other.overhead_bytes;
        self.frames += other.frames;
        self.continues += other.continues;
        self.scans += other.scans;
        self.empty += other.empty;
        self.retries += other.retries;
    }
}

/// Whether there is more after a continue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScanState {
    /// A limit was reached; the scan can be continued.
    More,
    /// The end of the range was reached; the scan is gone.
    Complete,
}

/// A scan that exists on the node.
#[derive(Debug)]
pub struct Scan {
    vbucket: VbId,
    id: ScanId,
    walk: RecordWalk,
    counts: ScanCounts,
}

impl Scan {
    /// Creates a scan of one vbucket; `None` if no key is in its range.
    ///
    /// # Errors
    /// `Refused` with the node's status; ETMPFAIL and EBUSY are worth another try.
    pub fn create(
        connection: &mut Connection,
        vbucket: VbId,
        create: &RangeScanCreate,
    ) -> Result<Option<Scan>, ClientError> {
        let waits = create.snapshot.and_then(|snapshot| snapshot.timeout_ms);
        let usual = connection.timeout;
        if let Some(wait_ms) = waits {
            connection.set_timeout(Duration::from_millis(wait_ms).saturating_add(CREATE_GRACE))?;
        }
        let created = Scan::send_create(connection, vbucket, create)
            .and_then(|tag| Scan::receive_create(connection, tag, vbucket, create));
        if waits.is_some() {
            connection.set_timeout(usual)?;
        }
        created
    }

    /// The first half of [`Scan::create`].
    pub(super) fn send_create(
        connection: &mut Connection,
        vbucket: VbId,
        create: &RangeScanCreate,
    ) -> Result<Tag, ClientError> {
        let body = create.encode();
        let request = Request::new(Opcode::RANGE_SCAN_CREATE);
        connection.send(request.vbucket(vbucket).datatype(Datatype::JSON).value(&body))
    }

    /// The second half of [`Scan::create`].
    pub(super) fn receive_create(
        connection: &mut Connection,
        tag: Tag,
        vbucket: VbId,
        create: &RangeScanCreate,
    ) -> Result<Option<Scan>, ClientError> {
        let answer = connection.receive_answer(tag, |frame| {
            refused(frame)?;
            Ok(ScanId::decode(frame.value))
        })?;
        let id = match answer {
            Ok(id) => id.ok_or_else(|| unexpected(Opcode::RANGE_SCAN_CREATE, "no scan id of 16 bytes"))?,
            Err(ClientError::Refused { status: Status::KEY_ENOENT, .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let kind = if create.key_only { RecordKind::Keys } else { RecordKind::Documents };
        let counts = ScanCounts { scans: 1, ..ScanCounts::default() };
        Ok(Some(Scan { vbucket, id, walk: RecordWalk::new(kind), counts }))
    }

    /// Where it scans.
    #[must_use]
    pub fn vbucket(&self) -> VbId {
        self.vbucket
    }

    /// The node's name for it.
    #[must_use]
    pub fn id(&self) -> ScanId {
        self.id
    }

    /// What it has cost and brought so far.
    #[must_use]
    pub fn counts(&self) -> ScanCounts {
        ScanCounts { records: self.walk.counts, ..self.counts }
    }

    /// Runs one continue and gives every record to `on_record` in ascending order of keys.
    ///
    /// # Errors
    /// `Refused` with the node's status: the scan is gone or, for EBUSY, running elsewhere. After a damaged
    /// record, or if `on_record` fails, the connection cannot be used any more.
    pub fn advance(
        &mut self,
        connection: &mut Connection,
        limits: ContinueLimits,
        on_record: &mut impl FnMut(ScanRecord<'_>) -> io::Result<()>,
    ) -> Result<ScanState, ClientError> {
        let tag = self.send_continue(connection, limits)?;
        self.receive_continue(connection, tag, on_record)
    }

    /// The first half of [`Scan::advance`].
    pub(super) fn send_continue(
        &mut self,
        connection: &mut Connection,
        limits: ContinueLimits,
    ) -> Result<Tag, ClientError> {
        let extras = RangeScanContinue {
            id: self.id,
            item_limit: limits.items,
            time_limit_ms: limits.time_ms,
            byte_limit: limits.bytes,
        }
        .encode();
        let request = Request::new(Opcode::RANGE_SCAN_CONTINUE).vbucket(self.vbucket).extras(&extras);
        let tag = connection.send(request)?;
        self.counts.continues += 1;
        Ok(tag)
    }

    /// The second half of [`Scan::advance`].
    pub(super) fn receive_continue(
        &mut self,
        connection: &mut Connection,
        tag: Tag,
        on_record: &mut impl FnMut(ScanRecord<'_>) -> io::Result<()>,
    ) -> Result<ScanState, ClientError> {
        loop {
            let Some((header, value_bytes)) = self.begin_response(connection, tag)? else { continue };
            self.stream_value(connection, value_bytes, on_record)?;
            match header.status() {
                Status::SUCCESS => {}
                Status::RANGE_SCAN_MORE => return Ok(ScanState::More),
                Status::RANGE_SCAN_COMPLETE => return Ok(ScanState::Complete),
                status => {
                    connection.give_up();
                    let found = format!("{status} is no answer to a continue");
                    return Err(unexpected(Opcode::RANGE_SCAN_CONTINUE, &found));
                }
            }
        }
    }

    /// Ends it; `false` if it was gone already.
    ///
    /// # Errors
    /// `Refused` with the node's status.
    pub fn cancel(self, connection: &mut Connection) -> Result<bool, ClientError> {
        let request = Request::new(Opcode::RANGE_SCAN_CANCEL).vbucket(self.vbucket).extras(&self.id.0);
        match connection.call(request, |_| ()) {
            Ok(()) => Ok(true),
            Err(ClientError::Refused { status: Status::KEY_ENOENT, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads up to the value of the next response and leaves that in the receive buffer. `None` for a
    /// request of the server, which is passed over.
    fn begin_response(
        &mut self,
        connection: &mut Connection,
        tag: Tag,
    ) -> Result<Option<(Header, usize)>, ClientError> {
        let opcode = Opcode::RANGE_SCAN_CONTINUE;
        loop {
            let bytes = connection.receive.unparsed();
            // Judges magic, lengths and limit as early as possible.
            if let Err(source) = decode_frame(bytes, FrameLimits::AUTHENTICATED) {
                let address = connection.address.clone();
                connection.give_up();
                return Err(ClientError::NotProtocol { address, source });
            }
            let header = bytes.first_chunk::<HEADER_BYTES>().and_then(|head| Header::decode(head).ok());
            let needed = match header {
                None => HEADER_BYTES,
                Some(header) => {
                    let streamed = header.magic != Magic::ServerRequest && header.status().is_success_class();
                    let frame_bytes = header.frame_bytes();
                    let ready = if streamed { HEADER_BYTES + header.parts_bytes() } else { frame_bytes };
                    if bytes.len() >= ready {
                        return self.take_head(connection, header, tag, ready);
                    }
                    ready
                }
            };
            connection.fill(needed, || format!("waiting for the answer to {opcode}"))?;
        }
    }

    /// Judges a response of which the first `ready` bytes are there.
    fn take_head(
        &mut self,
        connection: &mut Connection,
        header: Header,
        tag: Tag,
        ready: usize,
    ) -> Result<Option<(Header, usize)>, ClientError> {
        let bytes = &connection.receive.unparsed()[..ready];
        if header.magic == Magic::ServerRequest {
            connection.receive.consume(ready);
            return Ok(None);
        }
        let value_bytes = header.value_bytes();
        let framing_end = HEADER_BYTES + usize::from(header.framing_len);
        let extras = &bytes[framing_end..framing_end + usize::from(header.extras_len)];
        let judged = if !tag.is_answered_by(&header) {
            Err(unexpected(Opcode::RANGE_SCAN_CONTINUE, &describe(&header)))
        } else if header.status().is_success_class() {
            let kind = RecordKind::decode(extras);
            self.walk.begin(kind, value_bytes).map_err(|source| self.damaged(source))
        } else {
            let value = &bytes[ready - value_bytes..];
            Err(refusal(Opcode::RANGE_SCAN_CONTINUE, header.status(), value))
        };
        match judged {
            Ok(()) => {
                connection.receive.consume(ready);
                self.counts.frames += 1;
                self.counts.overhead_bytes += ready as u64;
                self.counts.record_bytes += value_bytes as u64;
                Ok(Some((header, value_bytes)))
            }
            Err(error @ ClientError::Refused { .. }) => {
                connection.receive.consume(ready);
                Err(error)
            }
            Err(error) => {
                connection.give_up();
                Err(error)
            }
        }
    }

    /// Reads the value of a response and hands out its records.
    fn stream_value(
        &mut self,
        connection: &mut Connection,
        value_bytes: usize,
        on_record: &mut impl FnMut(ScanRecord<'_>) -> io::Result<()>,
    ) -> Result<(), ClientError> {
        let mut left = value_bytes;
        while left > 0 {
            let walked = match self.walk.walk(connection.receive.unparsed(), on_record) {
                Ok(walked) => walked,
                Err(error) => {
                    connection.give_up();
                    return Err(match error {
                        WalkError::Record(source) => self.damaged(source),
                        WalkError::Output(source) => ClientError::Output(source),
                    });
                }
            };
            connection.receive.consume(walked.consumed);
            left -= walked.consumed;
            if left > 0 {
                connection.fill(walked.needed, || {
                    format!("receiving the records of {} ({left} bytes of a response missing)", self.vbucket)
                })?;
            }
        }
        connection.receive.shrink();
        Ok(())
    }

    fn damaged(&self, source: super::records::RecordError) -> ClientError {
        ClientError::Record { vbucket: self.vbucket, source }
    }
}
