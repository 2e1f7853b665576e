//! The pulse of a core: keeps a lost wake-up from lasting.
//!
//! glommio 0.9 can put a core to sleep while tasks are ready: if its preempt timer fires between being armed and
//! the first look at it (the thread lost its CPU for that long just then), its scheduler runs nothing, reports "nothing
//! to do", and parks. Ready tasks then wait for the next event, which may never come. On a busy machine with a preempt
//! timer of 200 µs this happened once in some hundred wake-ups from sleep.
//!
//! The pulse task keeps [`TIMERS`] timers pending, [`INTERVAL`] apart. A core that parks wrongly wakes up with the next
//! of them. The waking may be lost the same way, hence more than one: each loss uses up one timer.
//!
//! Cost: a wake-up of an idle core every [`INTERVAL`], about 0.2 % of a CPU. A lost wake-up lasts at most one interval.
//!
//! Does not know: whether anything was lost.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use glommio::timer::Timer;

/// Longest time that a lost wake-up lasts.
const INTERVAL: Duration = Duration::from_millis(10);

/// Timers pending at a time: wake-ups lost in a row before the pulse stops.
const TIMERS: usize = 16;

/// Beats until the executor ends.
pub(super) async fn beat() {
    let mut timers: VecDeque<(Instant, Timer)> = VecDeque::with_capacity(TIMERS);
    poll_fn(|cx| {
        let now = Instant::now();
        while timers.front().is_some_and(|(when, _)| *when <= now) {
            timers.pop_front();
        }
        while timers.len() < TIMERS {
            let when = timers.back().map_or(now, |(when, _)| *when) + INTERVAL;
            let mut timer = Timer::new(when - now);
            // The poll registers the timer with the executor, which then keeps it until it fires.
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

    /// Two cores on one CPU and a busy thread beside them: threads lose the CPU all the time, also at the wrong moment.
    /// Without the pulse one of the sleeps never ends.
    #[test]
    fn sleeping_core_wakes_up_although_its_thread_loses_the_cpu() {
        let cpu = cpus_allowed().unwrap()[0];
        let cores: Vec<_> = (0..4)
            .map(|core| {
                let body = || async {
                    let mut longest = Duration::ZERO;
                    for _ in 0..200 {
                        let started = Instant::now();
                        host::sleep(Duration::from_millis(2)).await;
                        longest = longest.max(started.elapsed());
                    }
                    longest
                };
                start(CoreId(core), cpu, &CoreSettings::default(), body).unwrap()
            })
            .collect();
        for core in cores {
            let longest = core.join().unwrap();
            assert!(longest < Duration::from_secs(2), "a sleep of 2 ms took {longest:?}");
        }
    }
}
