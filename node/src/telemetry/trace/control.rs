//! Starting and stopping a recording, and dumps of it.
//!
//! Invariants
//! - A dump is made by a thread of its own: it reads the rings while cores go on writing them.
//! - At most one dump is being made and [`DUMPS_MAX`] are kept; a newer one replaces the oldest.
//!
//! Cost: nothing until the first start.
//!
//! Does not know: the wire's words (`command::ioctl`).

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use uuid::Uuid;

use super::chrome::{Snapshot, TrackCopy, to_json};
use super::config::TraceConfig;
use super::recorder::Shared;

/// Dumps that are kept.
pub const DUMPS_MAX: usize = 2;

/// Controls what a [`super::TraceSubscriber`] records.
#[derive(Clone)]
pub struct TraceControl {
    shared: Arc<Shared>,
    dumps: Arc<Mutex<Dumps>>,
}

/// What the next start uses, and the dumps.
#[derive(Default)]
struct Dumps {
    config: TraceConfig,
    kept: VecDeque<(Uuid, Arc<DumpSlot>)>,
}

/// How far a dump is.
#[derive(Debug, Clone)]
pub enum DumpState {
    /// Its thread works.
    Making,
    /// The JSON.
    Made(Arc<str>),
    /// Its thread has failed.
    Failed,
}

/// Empty while the dump is being made.
type DumpSlot = OnceLock<DumpState>;

/// A dump that was asked for.
#[derive(Debug, Clone)]
pub struct TraceDump {
    id: Uuid,
    slot: Arc<DumpSlot>,
}

impl TraceDump {
    /// Its name.
    #[must_use]
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// How far it is.
    #[must_use]
    pub fn state(&self) -> DumpState {
        self.slot.get().cloned().unwrap_or(DumpState::Making)
    }
}

/// Why there is no dump.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// One at a time.
    #[error("another dump is being made")]
    Busy,
    /// The system.
    #[error("no thread can be made for the dump")]
    Thread(#[source] std::io::Error),
}

/// What a thread has recorded so far.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct TrackStatus {
    /// The thread.
    pub name: String,
    /// Bytes of its ring.
    pub buffer_bytes: usize,
    /// Events it has recorded.
    pub events: u64,
    /// Events of these that are lost.
    pub dropped: u64,
}

/// What a recording is doing.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct TraceStatus {
    /// Whether it runs.
    pub enabled: bool,
    /// Its configuration, or that of the next one.
    pub config: String,
    /// Events without a ring, spans without a slot.
    pub lost_without_ring: u64,
    /// The threads that have recorded something.
    pub threads: Vec<TrackStatus>,
}

impl Default for TraceControl {
    fn default() -> TraceControl {
        TraceControl { shared: Shared::new(), dumps: Arc::default() }
    }
}

impl std::fmt::Debug for TraceControl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TraceControl(enabled: {})", self.is_enabled())
    }
}

impl TraceControl {
    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn dumps(&self) -> MutexGuard<'_, Dumps> {
        self.dumps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the next start records.
    #[must_use]
    pub fn config(&self) -> TraceConfig {
        self.dumps().config.clone()
    }

    /// Changes what the next start records.
    pub fn set_config(&self, config: TraceConfig) {
        self.dumps().config = config;
    }

    /// Starts a recording, with empty rings. One that runs is ended.
    pub fn start(&self) {
        self.shared.begin(self.config());
        tracing::callsite::rebuild_interest_cache();
    }

    /// Ends the recording. What it holds stays until the next start; spans that are open are recorded to their end.
    pub fn stop(&self) {
        self.shared.end();
        tracing::callsite::rebuild_interest_cache();
    }

    /// Whether a recording runs.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.shared.is_running()
    }

    /// What is going on.
    #[must_use]
    pub fn status(&self) -> TraceStatus {
        let enabled = self.is_enabled();
        let next = self.config();
        let recording = self.shared.recording();
        let threads = recording.tracks.iter().map(|track| TrackStatus {
            name: track.name.clone(),
            buffer_bytes: track.ring.bytes(),
            events: track.ring.written(),
            dropped: track.ring.dropped(),
        });
        TraceStatus {
            enabled,
            config: if enabled { recording.config.to_string() } else { next.to_string() },
            lost_without_ring: self.shared.lost(),
            threads: threads.collect(),
        }
    }

    /// Copies all rings and writes them as JSON, on the calling thread.
    #[must_use]
    pub fn dump_now(&self) -> String {
        let (tracks, config) = {
            let recording = self.shared.recording();
            (recording.tracks.clone(), recording.config.to_string())
        };
        let snapshot = Snapshot {
            config,
            origin_epoch_ns: self.shared.origin_epoch_ns,
            taken_ns: self.shared.now_ns(),
            lost: self.shared.lost(),
            tracks: tracks
                .into_iter()
                .map(|track| TrackCopy { copy: track.ring.read(), name: track.name })
                .collect(),
            callsites: self.shared.callsites(),
        };
        to_json(&snapshot)
    }

    /// Begins a dump; it is there when [`TraceDump::state`] says so.
    ///
    /// # Errors
    /// `Busy`: ask again. `Thread`: the machine has no room.
    pub fn begin_dump(&self) -> Result<TraceDump, DumpError> {
        let mut dumps = self.dumps();
        if dumps.kept.iter().any(|(_, slot)| slot.get().is_none()) {
            return Err(DumpError::Busy);
        }
        let (id, slot) = (Uuid::new_v4(), Arc::new(DumpSlot::new()));
        let (control, target) = (self.clone(), slot.clone());
        let made = std::thread::Builder::new().name("trace-dump".to_owned()).spawn(move || {
            let made = catch_unwind(AssertUnwindSafe(|| control.dump_now()));
            let _ = target.set(made.map_or(DumpState::Failed, |json| DumpState::Made(json.into())));
        });
        made.map_err(DumpError::Thread)?;
        dumps.kept.push_back((id, slot.clone()));
        if dumps.kept.len() > DUMPS_MAX {
            dumps.kept.pop_front();
        }
        Ok(TraceDump { id, slot })
    }

    /// The dumps that are kept, oldest first.
    #[must_use]
    pub fn dump_ids(&self) -> Vec<Uuid> {
        self.dumps().kept.iter().map(|(id, _)| *id).collect()
    }

    /// The JSON of a dump, if it is kept and made.
    #[must_use]
    pub fn dump(&self, id: Uuid) -> Option<Arc<str>> {
        self.dumps().kept.iter().find(|(kept, _)| *kept == id).and_then(|(_, slot)| match slot.get()? {
            DumpState::Made(json) => Some(json.clone()),
            DumpState::Making | DumpState::Failed => None,
        })
    }

    /// Forgets a dump; false if there is none.
    pub fn clear_dump(&self, id: Uuid) -> bool {
        let mut dumps = self.dumps();
        let before = dumps.kept.len();
        dumps.kept.retain(|(kept, slot)| *kept != id || slot.get().is_none());
        dumps.kept.len() < before
    }
}
