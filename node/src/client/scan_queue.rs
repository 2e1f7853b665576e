//! Range scans of one vbucket after the other over one connection, without a pause between them.
//!
//! A node answers a connection's requests in order. So while the records of one vbucket stream in, the create
//! of the next but one and the continue of the next are already behind it: no round trip is waited for.
//!
//! Invariants
//! - Answers are taken in the order of their requests; every vbucket is scanned once, each in key order.
//! - At most three scans of the connection exist at a time, one without overlap.
//! - After an error, scans that were created ahead stay on the node until their deadline.
//!
//! Cost: nothing per record.
//!
//! Does not know: other connections (`scan_all`).

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use ringbase_storage::types::VbId;

use super::connection::{Connection, Tag};
use super::error::{ClientError, is_temporary};
use super::records::ScanRecord;
use super::scan::{ContinueLimits, Scan, ScanCounts, ScanState};
use crate::protocol::range_scan::RangeScanCreate;

/// How a connection's scans follow each other.
#[derive(Debug, Clone)]
pub struct ScanPlan {
    /// What part of each vbucket.
    pub create: RangeScanCreate,
    /// How far each continue goes.
    pub limits: ContinueLimits,
    /// Whether requests for the next vbucket are sent while one streams.
    pub overlap: bool,
    /// How long to send a create again that the node refuses for the moment. One that asks for a snapshot is
    /// not sent again: it says itself how long to wait.
    pub patience: Duration,
}

impl ScanPlan {
    /// Scans with overlap and without limits, ten seconds of patience.
    #[must_use]
    pub fn new(create: RangeScanCreate) -> ScanPlan {
        ScanPlan {
            create,
            limits: ContinueLimits::default(),
            overlap: true,
            patience: Duration::from_secs(10),
        }
    }
}

/// Longest pause before a create is sent again.
const PAUSE_MAX: Duration = Duration::from_millis(250);

/// An answer that is due.
#[derive(Debug)]
enum Due {
    Create { vbucket: VbId, tag: Tag, first_sent: Instant, pause: Duration },
    Continue { scan: Box<Scan>, tag: Tag },
}

/// Scans of one connection.
struct Queue<'a, N> {
    connection: &'a mut Connection,
    plan: &'a ScanPlan,
    next: N,
    due: VecDeque<Due>,
    counts: ScanCounts,
}

/// Scans every vbucket that `next` gives, from create to the end; records go to `on_record`.
///
/// # Errors
/// Those of [`Scan::create`] and [`Scan::advance`]; the connection may not be usable afterwards.
pub fn scan_vbuckets(
    connection: &mut Connection,
    plan: &ScanPlan,
    next: impl FnMut() -> Option<VbId>,
    on_record: &mut impl FnMut(VbId, ScanRecord<'_>) -> io::Result<()>,
) -> Result<ScanCounts, ClientError> {
    if let Some(wait_ms) = plan.create.snapshot.and_then(|snapshot| snapshot.timeout_ms) {
        let usual = connection.timeout;
        connection.set_timeout(usual.saturating_add(Duration::from_millis(wait_ms)))?;
    }
    let mut queue = Queue { connection, plan, next, due: VecDeque::new(), counts: ScanCounts::default() };
    queue.create_next()?;
    while let Some(due) = queue.due.pop_front() {
        match due {
            Due::Create { vbucket, tag, first_sent, pause } => {
                queue.created(vbucket, tag, first_sent, pause)?;
            }
            Due::Continue { scan, tag } => queue.continued(scan, tag, on_record)?,
        }
    }
    Ok(queue.counts)
}

/// Scans one vbucket from create to the end.
///
/// # Errors
/// As [`scan_vbuckets`].
pub fn scan_vbucket(
    connection: &mut Connection,
    plan: &ScanPlan,
    vbucket: VbId,
    on_record: &mut impl FnMut(ScanRecord<'_>) -> io::Result<()>,
) -> Result<ScanCounts, ClientError> {
    let mut only = Some(vbucket);
    scan_vbuckets(connection, plan, || only.take(), &mut |_, record| on_record(record))
}

impl<N: FnMut() -> Option<VbId>> Queue<'_, N> {
    fn create_next(&mut self) -> Result<(), ClientError> {
        match (self.next)() {
            Some(vbucket) => self.create(vbucket, Instant::now(), Duration::from_millis(1)),
            None => Ok(()),
        }
    }

    fn create(&mut self, vbucket: VbId, first_sent: Instant, pause: Duration) -> Result<(), ClientError> {
        let tag = Scan::send_create(self.connection, vbucket, &self.plan.create)?;
        self.due.push_back(Due::Create { vbucket, tag, first_sent, pause });
        Ok(())
    }

    fn created(
        &mut self,
        vbucket: VbId,
        tag: Tag,
        first_sent: Instant,
        pause: Duration,
    ) -> Result<(), ClientError> {
        match Scan::receive_create(self.connection, tag, vbucket, &self.plan.create) {
            Ok(Some(scan)) => {
                if self.plan.overlap {
                    self.create_next()?;
                }
                self.advance(Box::new(scan))
            }
            Ok(None) => {
                self.counts.empty += 1;
                self.create_next()
            }
            Err(ClientError::Refused { status, .. })
                if is_temporary(status)
                    && self.plan.create.snapshot.is_none()
                    && first_sent.elapsed() < self.plan.patience =>
            {
                self.counts.retries += 1;
                // With something else due the next try waits behind that anyway.
                if self.due.is_empty() {
                    std::thread::sleep(pause);
                }
                self.create(vbucket, first_sent, (pause * 2).min(PAUSE_MAX))
            }
            Err(error) => Err(error),
        }
    }

    fn advance(&mut self, mut scan: Box<Scan>) -> Result<(), ClientError> {
        let tag = scan.send_continue(self.connection, self.plan.limits)?;
        self.due.push_back(Due::Continue { scan, tag });
        Ok(())
    }

    fn continued(
        &mut self,
        mut scan: Box<Scan>,
        tag: Tag,
        on_record: &mut impl FnMut(VbId, ScanRecord<'_>) -> io::Result<()>,
    ) -> Result<(), ClientError> {
        let vbucket = scan.vbucket();
        let state = scan.receive_continue(self.connection, tag, &mut |record| on_record(vbucket, record))?;
        match state {
            ScanState::More => self.advance(scan),
            ScanState::Complete => {
                self.counts.add(&scan.counts());
                if self.plan.overlap { Ok(()) } else { self.create_next() }
            }
        }
    }
}
