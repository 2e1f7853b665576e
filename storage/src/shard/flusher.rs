//! The flush task: which vbuckets go to the data file, and when.
//!
//! The oldest go first, several at a time, so that they share a sync and a manifest change. The log is recycled up to the oldest record
//! that is still only in memory.
//!
//! Does not know: how a vbucket is written.

use std::any::Any;
use std::rc::Rc;
use std::time::Duration;

use super::ShardCore;
use crate::format::manifest_record::Record;
use crate::mutant::{Mutant, is_on};
use crate::types::Seqno;
use crate::vbstore::{FlushError, Prepared, VbStore};

/// Vbuckets that one flush takes at most.
const FLUSH_VBUCKETS_MAX: usize = 64;

/// Wait after a flush that failed.
const RETRY_AFTER: Duration = Duration::from_millis(500);

impl ShardCore {
    pub(super) async fn run_flushes(self: Rc<Self>) {
        loop {
            self.flush_event
                .until(|| self.flush_wanted.get() || self.closing.get() || self.has_failed())
                .await;
            if self.has_failed() || self.closing.get() {
                break;
            }
            self.flush_wanted.set(false);
            while self.needs_flush() && !self.has_failed() && !self.closing.get() {
                let flushing = self.flushing.lock().await;
                let flushed = self.flush_oldest(self.options.flush_bytes).await;
                drop(flushing);
                match flushed {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => {
                        self.report_flush_failure(&error);
                        self.env.spawn.sleep(RETRY_AFTER).await;
                    }
                }
            }
        }
        self.idle_event.notify_all();
    }

    fn needs_flush(&self) -> bool {
        self.wal.fullness() > 0.5
            || self.memory.wants_flush()
            || self.buckets.borrow().values().any(|memory| memory.wants_flush())
            || self.vbuckets.borrow().values().any(|store| store.is_crowded())
    }

    fn report_flush_failure(&self, error: &FlushError) {
        self.metrics.flush_failures.add(1);
        for store in self.vbuckets.borrow().values() {
            store.wake_waiters();
        }
        let shard = self.geometry.shard.0;
        if error.is_full() {
            self.compaction.want_room();
            tracing::warn!(shard, "the data file is full; writes are refused when the log is full too");
        } else {
            tracing::warn!(
                shard,
                error = error as &dyn std::error::Error,
                "flush failed, will be tried again"
            );
        }
    }

    /// Flushes the oldest memtables until `bytes` are through; false if there was none.
    async fn flush_oldest(&self, bytes: usize) -> Result<bool, FlushError> {
        let started = self.env.clock.monotonic_ns();
        let mut candidates: Vec<(bool, u64, Rc<VbStore>)> = self
            .vbuckets
            .borrow()
            .values()
            .filter_map(|store| Some((!store.is_crowded(), store.first_position()?, store.clone())))
            .collect();
        candidates.sort_by_key(|(calm, position, _)| (*calm, *position));
        let mut prepared: Vec<(Rc<VbStore>, Prepared)> = Vec::new();
        let mut taken = 0;
        for (_, _, store) in candidates.into_iter().take(FLUSH_VBUCKETS_MAX) {
            if let Some(flush) = store.prepare_flush().await? {
                taken += flush.bytes();
                prepared.push((store, flush));
            }
            if taken >= bytes {
                break;
            }
        }
        if prepared.is_empty() {
            return Ok(false);
        }
        if !is_on(Mutant::NoDataSync) && !self.sync_data().await {
            return Ok(true);
        }
        let mut records: Vec<Record> =
            prepared.iter().flat_map(|(store, flush)| store.flush_records(flush)).collect();
        let tail = self.tail_after(&prepared);
        records.push(Record::WalTail { position: tail });
        if self.change_manifest(records).await.is_err() {
            let written = prepared.into_iter().map(|(_, flush)| Box::new(flush) as Box<dyn Any>);
            self.unsure.borrow_mut().extend(written);
            return Ok(true);
        }
        self.wal.set_tail(tail);
        for (store, flush) in prepared {
            store.publish_flush(flush);
        }
        self.want_compaction();
        self.metrics.flush_ns.record(self.env.clock.monotonic_ns() - started);
        self.metrics.flush_bytes.record(taken as u64);
        self.idle_event.notify_all();
        Ok(true)
    }

    /// The oldest log position that is still needed once `prepared` is durable.
    fn tail_after(&self, prepared: &[(Rc<VbStore>, Prepared)]) -> u64 {
        let position = |store: &Rc<VbStore>| match prepared.iter().find(|(other, _)| Rc::ptr_eq(other, store))
        {
            Some((_, flush)) => store.first_position_after(flush),
            None => store.first_position(),
        };
        let vbuckets = self.vbuckets.borrow();
        vbuckets.values().filter_map(position).min().unwrap_or_else(|| self.wal.head())
    }

    pub(super) async fn flush_all(&self) -> Result<(), Rc<str>> {
        let target: Vec<(Rc<VbStore>, Seqno)> =
            self.vbuckets.borrow().values().map(|store| (store.clone(), store.high_seqno())).collect();
        let behind = |(store, seqno): &(Rc<VbStore>, Seqno)| {
            store.stats().flushed_seqno < *seqno && !store.has_ended() && !store.is_ephemeral()
        };
        while target.iter().any(behind) {
            if let Some(reason) = self.failure() {
                return Err(reason);
            }
            let _flushing = self.flushing.lock().await;
            match self.flush_oldest(self.options.flush_bytes).await {
                Ok(_) => {}
                Err(error) => {
                    self.report_flush_failure(&error);
                    return Err(error.to_string().into());
                }
            }
        }
        Ok(())
    }

    pub(super) async fn close(&self) -> Result<(), Rc<str>> {
        self.idle_event.until(|| !self.wal.has_pending() || self.has_failed()).await;
        let flushed = self.flush_all().await;
        self.closing.set(true);
        self.scrub.wake();
        self.commit_event.notify_all();
        self.flush_event.notify_all();
        self.compaction.wake();
        self.compaction.stopped().await;
        if let Some(reason) = self.failure() {
            return Err(reason);
        }
        flushed?;
        self.change_manifest(vec![Record::Closed]).await.map_err(|error| error.to_string().into())
    }
}
