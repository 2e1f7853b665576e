//! Scrubbing: all that the data file holds is read past the cache and verified, at a bounded rate, so that damage is found before it is needed.
//!
//! A pass begins when it is asked for, and some time after the last one. It goes through root and manifest, then the segments, runs and death marks of each
//! vbucket. The log is not read: it is written anew all the time, and verified at each start.
//!
//! Invariants
//! - What a pass reads it does not keep: of a vbucket's objects one is held at a time, so space that is given back meanwhile comes back soon.
//! - A block that does not verify is read once more; only then it counts as damaged, is logged and listed.
//! - The list is bounded, the count is not.
//!
//! Cost: one block at a time; a pause after each as the rate demands.
//! Does not know: who asks, what is done about damage.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::Duration;

use futures_lite::future::or;

use super::{Shard, ShardCore};
use crate::cache::Admission;
use crate::causes::whole;
use crate::io::BLOCK_BYTES;
use crate::manifest::{ManifestError, load, read_root};
use crate::mutant::{Mutant, is_on};
use crate::reader::{BlockAt, read, read_uncached};
use crate::run::Run;
use crate::seqlog::{Marks, Segment};
use crate::sync::Event;
use crate::types::{BucketId, Seqno, VbId};
use crate::vbstore::VbStore;

/// Places of damage that are listed.
pub const SCRUB_DAMAGE_MAX: usize = 100;

/// The first pass by itself is this long after the start, or a period if that is shorter.
const FIRST_AFTER: Duration = Duration::from_secs(3600);

/// Pauses shorter than this are saved up.
const PAUSE_MIN: Duration = Duration::from_millis(5);

/// How often the manifest is read while it changes at the same time, and when to read it again.
const MANIFEST_TRIES: u32 = 10;
const MANIFEST_AGAIN: Duration = Duration::from_millis(100);

/// When and how fast a shard is scrubbed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScrubOptions {
    /// Seconds between the end of a pass and the next one by itself; 0 for never.
    pub period_seconds: u64,
    /// Bytes that a pass reads in a second, 0 for as many as it can.
    pub bytes_per_second: u64,
}

impl ScrubOptions {
    /// Once a week, 8 MiB a second.
    pub const DEFAULT: ScrubOptions =
        ScrubOptions { period_seconds: 7 * 24 * 3600, bytes_per_second: 8 << 20 };

    /// Only when asked for, as fast as it can.
    pub const WHEN_ASKED: ScrubOptions = ScrubOptions { period_seconds: 0, bytes_per_second: 0 };
}

/// What a damaged block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ScrubPart {
    /// The root or the manifest.
    Manifest,
    /// Documents in seqno order.
    Documents,
    /// The index of documents.
    DocumentIndex,
    /// Keys of a run.
    Keys,
    /// Metadata of a run.
    Metadata,
    /// Index and filter of a run.
    KeyIndex,
    /// Death marks.
    Marks,
}

/// A place that cannot be read or does not verify.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ScrubDamage {
    /// What it holds.
    pub part: ScrubPart,
    /// Whose it is, but for the manifest.
    pub bucket: Option<BucketId>,
    /// Whose it is, but for the manifest.
    pub vb: Option<VbId>,
    /// First byte in the data file, but for the manifest.
    pub offset: Option<u64>,
    /// First and last seqno of the documents in it, if it holds some.
    pub seqnos: Option<(Seqno, Seqno)>,
    /// What is wrong, in words.
    pub error: String,
}

/// How far scrubbing is, and what the newest pass has found.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct ScrubStatus {
    /// Whether a pass is under way.
    pub is_running: bool,
    /// Passes that were completed since the start.
    pub passes: u64,
    /// Bytes that the newest pass has read.
    pub read_bytes: u64,
    /// About how many it has or had to read.
    pub all_bytes: u64,
    /// Places that it has found damaged.
    pub damaged: u64,
    /// The first of them.
    pub damage: Vec<ScrubDamage>,
}

/// The state of a shard's scrubbing.
#[derive(Debug)]
pub(super) struct Scrub {
    status: RefCell<ScrubStatus>,
    is_wanted: Cell<bool>,
    is_unwanted: Cell<bool>,
    bytes_per_second: Cell<u64>,
    /// When the next block may be read.
    due_ns: Cell<u64>,
    changed: Event,
}

impl Scrub {
    pub(super) fn new(bytes_per_second: u64) -> Scrub {
        Scrub {
            status: RefCell::default(),
            is_wanted: Cell::new(false),
            is_unwanted: Cell::new(false),
            bytes_per_second: Cell::new(bytes_per_second),
            due_ns: Cell::new(0),
            changed: Event::default(),
        }
    }

    /// The shard is being closed: whoever waits looks again.
    pub(super) fn wake(&self) {
        self.changed.notify_all();
    }
}

impl Shard {
    /// Asks for a pass; one that is under way goes on.
    pub fn start_scrub(&self) {
        let scrub = &self.core.scrub;
        scrub.is_unwanted.set(false);
        scrub.is_wanted.set(true);
        scrub.wake();
    }

    /// Ends the pass that is under way, which does not count.
    pub fn stop_scrub(&self) {
        let scrub = &self.core.scrub;
        scrub.is_wanted.set(false);
        scrub.is_unwanted.set(true);
        scrub.wake();
    }

    /// Bytes that a pass may read in a second, 0 for as many as it can; from now on.
    pub fn set_scrub_rate(&self, bytes_per_second: u64) {
        self.core.scrub.bytes_per_second.set(bytes_per_second);
        self.core.scrub.due_ns.set(0);
        self.core.scrub.wake();
    }

    /// See [`ScrubStatus`].
    #[must_use]
    pub fn scrub_status(&self) -> ScrubStatus {
        self.core.scrub.status.borrow().clone()
    }
}

/// The pass was ended.
struct Ended;

impl ShardCore {
    /// Passes, as they are asked for and as time goes on.
    pub(super) async fn run_scrubs(self: Rc<Self>) {
        let period = Duration::from_secs(self.options.scrub.period_seconds);
        let mut next = period.min(FIRST_AFTER);
        loop {
            let scrub = &self.scrub;
            let asked = scrub.changed.until(|| scrub.is_wanted.get() || self.ends_scrubs());
            if period.is_zero() {
                asked.await;
            } else {
                or(asked, self.env.spawn.sleep(next)).await;
            }
            if self.ends_scrubs() {
                return;
            }
            scrub.is_wanted.set(false);
            scrub.is_unwanted.set(false);
            self.scrub_pass().await;
            next = period;
        }
    }

    fn ends_scrubs(&self) -> bool {
        self.closing.get()
    }

    async fn scrub_pass(&self) {
        let stores: Vec<Rc<VbStore>> = self.vbuckets.borrow().values().cloned().collect();
        let stores: Vec<Rc<VbStore>> = stores.into_iter().filter(|store| !store.is_ephemeral()).collect();
        {
            let status = &mut *self.scrub.status.borrow_mut();
            let all_bytes = stores.iter().map(|store| store.stats().disk_bytes).sum();
            *status =
                ScrubStatus { is_running: true, passes: status.passes, all_bytes, ..ScrubStatus::default() };
        }
        let whole = async {
            self.scrub_manifest().await?;
            for store in stores {
                self.scrub_vbucket(&store).await?;
            }
            Ok::<(), Ended>(())
        };
        let is_whole = whole.await.is_ok();
        let status = &mut *self.scrub.status.borrow_mut();
        status.is_running = false;
        if is_whole {
            status.passes += 1;
            status.all_bytes = status.read_bytes;
            let (shard, bytes, damaged) = (self.geometry.shard.0, status.read_bytes, status.damaged);
            tracing::info!(shard, bytes, damaged, "scrub is through");
        }
    }

    /// Goes through the objects that a vbucket has now. One that is replaced meanwhile was read when it was written anew.
    async fn scrub_vbucket(&self, store: &VbStore) -> Result<(), Ended> {
        let (version, marks) = store.on_disk();
        let segments: Vec<Weak<Segment>> = version.segments.iter().map(Rc::downgrade).collect();
        let runs: Vec<Weak<Run>> = version.runs.iter().map(Rc::downgrade).collect();
        let marks: Vec<Weak<Marks>> = marks.iter().map(Rc::downgrade).collect();
        drop(version);
        for segment in segments.iter().filter_map(Weak::upgrade).filter(|segment| segment.is_named()) {
            self.scrub_segment(store, &segment).await?;
        }
        for run in runs.iter().filter_map(Weak::upgrade).filter(|run| run.is_named()) {
            self.scrub_run(store, &run).await?;
        }
        for marks in marks.iter().filter_map(Weak::upgrade).filter(|marks| marks.is_named()) {
            self.scrub_block(store, ScrubPart::Marks, &marks.block_at(), None).await?;
        }
        Ok(())
    }

    async fn scrub_segment(&self, store: &VbStore, segment: &Segment) -> Result<(), Ended> {
        let seqnos = Some((segment.desc().first, segment.desc().last));
        self.scrub_block(store, ScrubPart::DocumentIndex, &segment.index_at(), seqnos).await?;
        for fence in segment.fences() {
            let (at, seqnos) = (segment.block_at(fence), Some((fence.first, fence.last)));
            self.scrub_block(store, ScrubPart::Documents, &at, seqnos).await?;
        }
        Ok(())
    }

    async fn scrub_run(&self, store: &VbStore, run: &Run) -> Result<(), Ended> {
        self.scrub_block(store, ScrubPart::KeyIndex, &run.index_at(), None).await?;
        for part in 0..run.parts() {
            self.scrub_block(store, ScrubPart::Keys, &run.key_part_at(part), None).await?;
            self.scrub_block(store, ScrubPart::Metadata, &run.meta_part_at(part), None).await?;
        }
        Ok(())
    }

    /// Reads one block of an object that is held, twice if need be.
    async fn scrub_block(
        &self,
        store: &VbStore,
        part: ScrubPart,
        at: &BlockAt,
        seqnos: Option<(Seqno, Seqno)>,
    ) -> Result<(), Ended> {
        self.scrub_pause(u64::from(at.blocks) * BLOCK_BYTES as u64).await?;
        let once = || async {
            if is_on(Mutant::ScrubCache) {
                read(&self.space, at, Admission::Evict).await.map(drop)
            } else {
                read_uncached(&self.space, at).await.map(drop)
            }
        };
        if once().await.is_ok() {
            return Ok(());
        }
        let Err(error) = once().await else { return Ok(()) };
        if store.has_ended() {
            return Ok(());
        }
        let (bucket, vb) = (store.bucket(), store.id());
        let offset = at.place * BLOCK_BYTES as u64;
        self.note_damage(ScrubDamage {
            part,
            bucket: Some(bucket),
            vb: Some(vb),
            offset: Some(offset),
            seqnos,
            error: whole(&error),
        });
        Ok(())
    }

    fn note_damage(&self, damage: ScrubDamage) {
        let ScrubDamage { part, bucket, vb, offset, seqnos, error } = &damage;
        tracing::error!(shard = self.geometry.shard.0, ?part, ?bucket, ?vb, offset, ?seqnos, %error, "scrub has found damage");
        self.metrics.scrub_damaged.add(1);
        let status = &mut *self.scrub.status.borrow_mut();
        status.damaged += 1;
        if status.damage.len() < SCRUB_DAMAGE_MAX {
            status.damage.push(damage);
        }
    }

    /// Reads root and manifest. A change at the same time may look like damage, so that is looked at again.
    async fn scrub_manifest(&self) -> Result<(), Ended> {
        let device = self.space.device();
        for _ in 0..MANIFEST_TRIES {
            let blocks = u64::from(self.manifest.superblock().manifest_blocks);
            self.scrub_pause(blocks * BLOCK_BYTES as u64).await?;
            let before = self.manifest.written();
            let verified = async {
                let root = read_root(device).await?;
                if let Some((slot, source)) = root.damaged_slot {
                    let device = device.name().to_owned();
                    let offset = slot * BLOCK_BYTES as u64;
                    return Err(ManifestError::Damaged { device, offset, source });
                }
                load(device, &root.superblock).await.map(drop)
            };
            let Err(error) = verified.await else { return Ok(()) };
            or(self.scrub.changed.until(|| self.ends_scrubs()), self.env.spawn.sleep(MANIFEST_AGAIN)).await;
            if self.manifest.written() == before {
                let (part, error) = (ScrubPart::Manifest, whole(&error));
                let (bucket, vb, offset, seqnos) = (None, None, None, None);
                self.note_damage(ScrubDamage { part, bucket, vb, offset, seqnos, error });
                return Ok(());
            }
        }
        Ok(())
    }

    /// Waits until so many more bytes may be read.
    async fn scrub_pause(&self, bytes: u64) -> Result<(), Ended> {
        let scrub = &self.scrub;
        let is_over = || scrub.is_unwanted.get() || self.ends_scrubs() || self.has_failed();
        self.env.relax().await;
        loop {
            if is_over() {
                return Err(Ended);
            }
            let (rate, now_ns) = (scrub.bytes_per_second.get(), self.env.clock.monotonic_ns());
            let due_ns = scrub.due_ns.get().max(now_ns);
            let pause = Duration::from_nanos(due_ns - now_ns);
            if rate == 0 || pause < PAUSE_MIN {
                let takes_ns = bytes.saturating_mul(1_000_000_000).checked_div(rate).unwrap_or(0);
                scrub.due_ns.set(due_ns.saturating_add(takes_ns));
                break;
            }
            or(scrub.changed.listen(), self.env.spawn.sleep(pause)).await;
        }
        scrub.status.borrow_mut().read_bytes += bytes;
        Ok(())
    }
}
