//! The order in which the syncs of one file are answered, so that a failed one is final.
//!
//! Syncs of one file may run side by side. The kernel reports a failure to one of them and success to another,
//! though both should have covered the same writes. So a sync is answered only when every sync that was started before
//! it has ended, and from the first failure on none succeeds.
//!
//! Invariants
//! - Syncs are answered in the order they were started.
//! - After a failure was seen, every answer is that failure.
//!
//! Does not know: rings, what is answered.

use std::collections::VecDeque;

/// Place of one sync in the order of its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(u64);

/// How the kernel ended a sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SyncOutcome {
    /// Durable.
    Synced,
    /// The sync failed with this errno.
    Failed(i32),
    /// No sync was done, since what comes before it failed with this errno. That is not final.
    NotSynced(i32),
}

/// An answer that may be given now: 0 or an errno.
pub(crate) type Answered<T> = (T, Result<(), i32>);

struct Entry<T> {
    ticket: Ticket,
    /// Present when the sync has ended and waits for its turn.
    ended: Option<T>,
}

/// The syncs of one file that have not been answered.
pub(crate) struct SyncOrder<T> {
    next: u64,
    entries: VecDeque<Entry<T>>,
    failed: Option<i32>,
}

impl<T> SyncOrder<T> {
    /// No sync was started yet.
    pub(crate) fn new() -> SyncOrder<T> {
        SyncOrder { next: 0, entries: VecDeque::new(), failed: None }
    }

    /// The errno of the sync that failed, for ever.
    pub(crate) fn failed(&self) -> Option<i32> {
        self.failed
    }

    /// A sync is started.
    pub(crate) fn begin(&mut self) -> Ticket {
        let ticket = Ticket(self.next);
        self.next += 1;
        self.entries.push_back(Entry { ticket, ended: None });
        ticket
    }

    /// A sync has ended; appends to `answered` what may be answered now.
    pub(crate) fn end(
        &mut self,
        ticket: Ticket,
        outcome: SyncOutcome,
        item: T,
        answered: &mut Vec<Answered<T>>,
    ) {
        let index = self
            .entries
            .binary_search_by_key(&ticket, |entry| entry.ticket)
            .expect("a sync ends once, after it was started");
        match outcome {
            SyncOutcome::NotSynced(errno) => {
                self.entries.remove(index);
                answered.push((item, Err(errno)));
            }
            SyncOutcome::Failed(errno) => {
                self.failed.get_or_insert(errno);
                self.entries[index].ended = Some(item);
            }
            SyncOutcome::Synced => self.entries[index].ended = Some(item),
        }
        while let Some(item) = self.entries.front_mut().and_then(|entry| entry.ended.take()) {
            self.entries.pop_front();
            answered.push((item, self.failed.map_or(Ok(()), Err)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(order: &mut SyncOrder<u32>, ticket: Ticket, outcome: SyncOutcome) -> Vec<Answered<u32>> {
        let mut answered = Vec::new();
        order.end(ticket, outcome, u32::try_from(ticket.0).unwrap(), &mut answered);
        answered
    }

    /// G7: a failed sync is final, also for syncs that run beside it.
    #[test]
    fn later_sync_waits_for_the_earlier_and_shares_its_failure() {
        let mut order = SyncOrder::new();
        let (first, second) = (order.begin(), order.begin());
        assert_eq!(end(&mut order, second, SyncOutcome::Synced), []);
        assert_eq!(end(&mut order, first, SyncOutcome::Failed(5)), [(0, Err(5)), (1, Err(5))]);
        let third = order.begin();
        assert_eq!(end(&mut order, third, SyncOutcome::Synced), [(2, Err(5))]);
    }

    #[test]
    fn earlier_sync_that_ends_after_a_failure_fails_too() {
        let mut order = SyncOrder::new();
        let (first, second) = (order.begin(), order.begin());
        assert_eq!(end(&mut order, second, SyncOutcome::Failed(28)), []);
        assert_eq!(end(&mut order, first, SyncOutcome::Synced), [(0, Err(28)), (1, Err(28))]);
        assert_eq!(order.failed(), Some(28));
    }

    #[test]
    fn chain_that_broke_before_its_sync_is_answered_at_once_and_is_not_final() {
        let mut order = SyncOrder::new();
        let (first, second) = (order.begin(), order.begin());
        assert_eq!(end(&mut order, second, SyncOutcome::NotSynced(5)), [(1, Err(5))]);
        assert_eq!(end(&mut order, first, SyncOutcome::Synced), [(0, Ok(()))]);
        assert_eq!(order.failed(), None);
    }
}
