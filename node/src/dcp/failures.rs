//! Backfills that could not read their data: why, and which seqnos nobody could read (T3.19).
//!
//! A stream-end says that a backfill failed; the reason stands here, in the log and in the statistics, so that an operator can fetch
//! what is missing from a replica.
//!
//! Invariants
//! - The newest [`FAILURES_MAX`] of a core are kept, and none of a bucket that is deleted.
//!
//! Does not know: how they are shown.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::error::Error;
use std::sync::Arc;

use ringbase_storage::reader::ReadError;
use ringbase_storage::types::{BucketId, Seqno, VbId};
use serde_json::Value;

use super::piece::StreamNumber;
use super::stream::{End, Stream};
use super::streams::Streams;
use crate::protocol::dcp::{StoredError, StreamEndStatus};

/// Failures of a core that are remembered.
pub const FAILURES_MAX: usize = 32;

/// Why a backfill ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureCause {
    /// The device did not give the bytes.
    DeviceError,
    /// The bytes do not verify or belong elsewhere.
    DamagedBlock,
    /// There is no view to read.
    NoSnapshot,
    /// A document cannot be made a message.
    BadDocument,
}

impl FailureCause {
    /// Its name in statistics and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            FailureCause::DeviceError => "device_error",
            FailureCause::DamagedBlock => "damaged_block",
            FailureCause::NoSnapshot => "no_snapshot",
            FailureCause::BadDocument => "bad_document",
        }
    }
}

/// One backfill that failed.
#[derive(Debug, Clone)]
pub struct ReadFailure {
    /// Whose bucket.
    pub bucket: BucketId,
    /// Which vbucket.
    pub vb: VbId,
    /// Which stream.
    pub number: StreamNumber,
    /// The name of its connection.
    pub connection: Arc<str>,
    /// Why.
    pub cause: FailureCause,
    /// What the reader said.
    pub message: String,
    /// The file and its first block that could not be read.
    pub place: Option<(String, u64)>,
    /// The last seqno that was read.
    pub last_read: Seqno,
    /// First and last seqno that could not be read, as far as that is known.
    pub unreadable: Option<(Seqno, Seqno)>,
    /// When, in seconds of the wall clock.
    pub at_s: u64,
}

impl ReadFailure {
    /// All of it by name.
    #[must_use]
    pub fn fields(&self) -> Vec<(&'static str, Value)> {
        let mut fields = vec![
            ("connection", Value::from(&*self.connection)),
            ("cause", self.cause.name().into()),
            ("message", self.message.as_str().into()),
            ("last_read_seqno", self.last_read.0.into()),
            ("time", self.at_s.into()),
        ];
        if let Some((device, block)) = &self.place {
            fields.extend([("device", device.as_str().into()), ("block", (*block).into())]);
        }
        if let Some((first, last)) = self.unreadable {
            fields.push(("first_unreadable_seqno", first.0.into()));
            fields.push(("last_unreadable_seqno", last.0.into()));
        }
        fields
    }
}

/// The newest failures of a core.
#[derive(Debug, Default)]
pub(super) struct ReadFailures(RefCell<VecDeque<ReadFailure>>);

impl ReadFailures {
    fn add(&self, failure: ReadFailure) {
        let mut failures = self.0.borrow_mut();
        if failures.len() >= FAILURES_MAX {
            failures.pop_front();
        }
        failures.push_back(failure);
    }

    /// The bucket is gone.
    pub(super) fn forget(&self, bucket: BucketId) {
        self.0.borrow_mut().retain(|failure| failure.bucket != bucket);
    }
}

impl Streams {
    /// The newest backfills of a bucket on this core that failed, of one vbucket or of all, oldest first.
    #[must_use]
    pub fn failures(&self, bucket: BucketId, vb: Option<VbId>) -> Vec<ReadFailure> {
        let failures = self.core.failures.0.borrow();
        let is_wanted =
            |failure: &&ReadFailure| failure.bucket == bucket && vb.is_none_or(|only| only == failure.vb);
        failures.iter().filter(is_wanted).cloned().collect()
    }
}

impl Stream {
    /// What the stream ends with when its contents cannot be opened or read.
    pub(super) fn unreadable(
        &self,
        error: &(dyn Error + 'static),
        unreadable: Option<(Seqno, Seqno)>,
    ) -> End {
        let read_error = error.downcast_ref::<ReadError>();
        if matches!(read_error, Some(ReadError::Gone)) || self.store.has_ended() {
            return End::with(StreamEndStatus::StateChanged);
        }
        let (cause, place) = match read_error {
            Some(ReadError::Io { device, place, .. }) => {
                (FailureCause::DeviceError, Some((device.clone(), *place)))
            }
            Some(ReadError::Damaged { device, place, .. }) => {
                (FailureCause::DamagedBlock, Some((device.clone(), *place)))
            }
            _ => (FailureCause::NoSnapshot, None),
        };
        self.failed(error, cause, place, unreadable)
    }

    /// What the stream ends with when a document cannot be made a message.
    pub(super) fn unsendable(&self, error: &StoredError, seqno: Seqno) -> End {
        self.failed(error, FailureCause::BadDocument, None, Some((seqno, seqno)))
    }

    fn failed(
        &self,
        error: &(dyn Error + 'static),
        cause: FailureCause,
        place: Option<(String, u64)>,
        unreadable: Option<(Seqno, Seqno)>,
    ) -> End {
        let failure = ReadFailure {
            bucket: self.spec.bucket,
            vb: self.spec.envelope.vbucket,
            number: self.spec.number,
            connection: self.spec.name.clone(),
            cause,
            message: error.to_string(),
            place,
            last_read: self.position.get(),
            unreadable,
            at_s: self.core.env.clock.wall_ns() / 1_000_000_000,
        };
        tracing::error!(
            vb = failure.vb.0,
            stream = failure.number.0,
            position = failure.last_read.0,
            cause = cause.name(),
            first_unreadable_seqno = unreadable.map(|(first, _)| first.0),
            last_unreadable_seqno = unreadable.map(|(_, last)| last.0),
            error,
            "stream cannot read its data"
        );
        self.core.metrics.read_failures.add(1);
        self.core.failures.add(failure);
        End::with(StreamEndStatus::BackfillFail)
    }
}
