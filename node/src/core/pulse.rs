//! The pulse of a core: keeps a lost wake-up from lasting.
//!
//! glommio 0.9 can put a core to sleep while tasks are ready: if its preempt timer fires between being armed and
//! the first look at it (the thread lost its CPU for that long just then), its scheduler runs nothing, reports "nothing
//! to do", and parks. Ready tasks then wait for the next event, which may never come. On a busy machine with a preempt
//! timer of 200 µs this happened once in some hundred wake-ups from sleep.
//!
//! The pulse keeps [`TIMERS`] timers pending, one interval apart. A core that parks wrongly wakes up with the next of
//! them. The waking may be lost the same way, hence more than one: each loss uses up one timer.
//!
//! Cost: a wake-up every [`IDLE_INTERVAL`] while the core does nothing else, every [`BUSY_INTERVAL`] otherwise. A lost
//! wake-up lasts at most one interval.
//!
//! Does not know: whether anything was lost.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use glommio::timer::Timer;

/// Between beats of a core that works.
const BUSY_INTERVAL: Duration = Duration::from_millis(10);

/// Between beats of a core that has nothing to do.
const IDLE_INTERVAL: Duration = Duration::from_millis(50);

/// Tasks run between two beats, up to which a core has nothing to do. The beat itself is one.
const IDLE_TASKS_MAX: u64 = 3;

/// Timers pending at a time: wake-ups lost in a row before the pulse stops.
const TIMERS: usize = 64;

/// Beats until it is dropped. Its first poll starts it.
pub(super) async fn beat() {
    let mut timers: VecDeque<(Instant, Timer)> = VecDeque::with_capacity(TIMERS);
    let mut interval = BUSY_INTERVAL;
    poll_fn(|cx| {
        let now = Instant::now();
        let pending = timers.len();
        while timers.front().is_some_and(|(when, _)| *when <= now) {
            timers.pop_front();
        }
        if timers.len() < pending {
            // Reading the counters of the executor resets them; nobody else does.
            let tasks = glommio::executor().executor_stats().tasks_executed();
            let wanted = if tasks > IDLE_TASKS_MAX { BUSY_INTERVAL } else { IDLE_INTERVAL };
            if wanted != interval {
                interval = wanted;
                timers.clear();
            }
        }
        while timers.len() < TIMERS {
            let when = timers.back().map_or(now, |(when, _)| *when) + interval;
            let mut timer = Timer::new(when.saturating_duration_since(now));
            // The poll registers the timer with the executor, which then keeps it until it fires or is dropped.
            if Pin::new(&mut timer).poll(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
            timers.push_back((when, timer));
        }
        Poll::<()>::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::super::executor::{CoreId, CoreSettings, cpus_allowed, start};
    use super::super::host;
    use super::*;

    /// Four cores on one CPU: threads lose it all the time, also at the wrong moment. Without the pulse one of the sleeps
    /// never ends, nor does this test.
    #[test]
    fn sleeping_core_wakes_up_although_its_thread_loses_the_cpu() {
        let cpu = cpus_allowed().unwrap()[0];
        let cores: Vec<_> = (0..4)
            .map(|core| {
                let body = || async {
                    for _ in 0..200 {
                        host::sleep(Duration::from_millis(2)).await;
                    }
                };
                start(CoreId(core), cpu, &CoreSettings::default(), body).unwrap()
            })
            .collect();
        for core in cores {
            core.join().unwrap();
        }
    }
}
