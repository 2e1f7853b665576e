//! A fair queue: who is next where classes have weights, connections of a class are equal, and streams of a connection take turns.
//!
//! Start-time fair queueing, in two levels. Each class, and in it each connection, has a start tag: how much it was served, divided by its weight.
//! The lowest tag is next, and rises by one stride. Who has had nobody in line begins at the tag that was served last: rest is not saved up, and
//! nobody who waits is overtaken without end. Weights are integers, and so are tags: the same pushes give the same order.
//!
//! Invariants
//! - While classes, or connections of a class, all have somebody in line, their shares differ from their weights by one service at most.
//! - Streams of a connection leave in the order in which they came.
//!
//! Cost: O(log n) a step. An entry for each connection with somebody in line, and for some that rest until the others have caught up.
//! Does not know: what is waited for, what a service is.
//!
//! Source: P. Goyal, H. M. Vin, H. Cheng, "Start-time fair queueing", SIGCOMM 1996; the strides are those of C. A. Waldspurger, W. E. Weihl,
//! "Stride scheduling", MIT/LCS/TM-528, 1995.

use std::collections::{BTreeMap, BTreeSet};

use crate::protocol::dcp::Priority;
use crate::range_scan::ConnectionId;

/// How much a class is served in comparison with others: in the order of [`Priority::ALL`].
const WEIGHTS: [u64; 3] = [4, 2, 1];

/// What the tag of a class rises by when it is served: a multiple of every weight, divided by its own.
const STRIDES: [u64; 3] = [4 / WEIGHTS[0], 4 / WEIGHTS[1], 4 / WEIGHTS[2]];

/// See the module.
#[derive(Debug)]
pub(super) struct FairQueue<T> {
    classes: [Class<T>; 3],
    /// The tag of the class that was served last.
    served: u64,
    tickets: u64,
}

/// Names somebody in line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ticket {
    class: usize,
    connection: ConnectionId,
    number: u64,
}

#[derive(Debug)]
struct Class<T> {
    start: u64,
    lines: BTreeMap<ConnectionId, Line<T>>,
    /// Start tags of connections with somebody in line.
    ready: BTreeSet<(u64, ConnectionId)>,
    /// Those of connections with nobody, ahead of what was served last.
    resting: BTreeSet<(u64, ConnectionId)>,
    /// The tag of the connection that was served last.
    served: u64,
}

#[derive(Debug)]
struct Line<T> {
    start: u64,
    waiting: BTreeMap<u64, T>,
}

impl<T> Default for FairQueue<T> {
    fn default() -> FairQueue<T> {
        let class = || Class {
            start: 0,
            lines: BTreeMap::new(),
            ready: BTreeSet::new(),
            resting: BTreeSet::new(),
            served: 0,
        };
        FairQueue { classes: [class(), class(), class()], served: 0, tickets: 0 }
    }
}

impl<T> FairQueue<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.classes.iter().all(|class| class.ready.is_empty())
    }

    /// Puts somebody in line.
    pub(super) fn push(&mut self, priority: Priority, connection: ConnectionId, item: T) -> Ticket {
        let (class, number) = (priority as usize, self.tickets);
        self.tickets += 1;
        let of = &mut self.classes[class];
        if of.ready.is_empty() {
            of.start = of.start.max(self.served);
        }
        of.push(connection, number, item);
        Ticket { class, connection, number }
    }

    /// Takes who is next.
    pub(super) fn pop(&mut self) -> Option<T> {
        let waiting = self.classes.iter_mut().zip(STRIDES).filter(|(class, _)| !class.ready.is_empty());
        let (class, stride) = waiting.min_by_key(|(class, _)| class.start)?;
        self.served = class.start;
        class.start += stride;
        class.pop()
    }

    /// Takes somebody out of the line who does not wait any more; `None` if it was taken before.
    pub(super) fn remove(&mut self, ticket: Ticket) -> Option<T> {
        self.classes[ticket.class].remove(ticket.connection, ticket.number)
    }
}

impl<T> Class<T> {
    fn push(&mut self, connection: ConnectionId, number: u64, item: T) {
        let served = self.served;
        let line = self.lines.entry(connection).or_insert(Line { start: served, waiting: BTreeMap::new() });
        if line.waiting.is_empty() {
            self.resting.remove(&(line.start, connection));
            line.start = line.start.max(served);
            self.ready.insert((line.start, connection));
        }
        line.waiting.insert(number, item);
    }

    fn pop(&mut self) -> Option<T> {
        let (start, connection) = self.ready.pop_first()?;
        self.served = start;
        let line = self.lines.get_mut(&connection)?;
        let (_, item) = line.waiting.pop_first()?;
        line.start = start + 1;
        let has_more = !line.waiting.is_empty();
        if has_more { &mut self.ready } else { &mut self.resting }.insert((start + 1, connection));
        self.forget_rested();
        Some(item)
    }

    fn remove(&mut self, connection: ConnectionId, number: u64) -> Option<T> {
        let line = self.lines.get_mut(&connection)?;
        let item = line.waiting.remove(&number)?;
        if line.waiting.is_empty() {
            self.ready.remove(&(line.start, connection));
            self.resting.insert((line.start, connection));
            self.forget_rested();
        }
        Some(item)
    }

    /// A connection that begins anew at the tag served last is as one that was never there; so is everybody when nobody is in line.
    fn forget_rested(&mut self) {
        if self.ready.is_empty()
            && let Some(&(greatest, _)) = self.resting.last()
        {
            self.served = self.served.max(greatest);
        }
        while let Some(&(start, connection)) = self.resting.first()
            && start <= self.served
        {
            self.resting.pop_first();
            self.lines.remove(&connection);
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::Xoshiro256PlusPlus;
    use rand::{RngExt, SeedableRng};

    use super::*;

    const A: ConnectionId = ConnectionId(1);
    const B: ConnectionId = ConnectionId(2);

    /// Serves `count` times; who was served goes to the back of its line.
    fn serve(queue: &mut FairQueue<(Priority, ConnectionId)>, count: usize) -> Vec<(Priority, ConnectionId)> {
        let mut served = Vec::new();
        for _ in 0..count {
            let who = queue.pop().unwrap();
            queue.push(who.0, who.1, who);
            served.push(who);
        }
        served
    }

    #[test]
    fn shares_follow_the_weights_whatever_the_number_of_connections_and_streams() {
        for seed in 0..50 {
            let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
            let mut queue = FairQueue::default();
            let mut connections = Vec::new();
            for priority in Priority::ALL {
                for _ in 0..random.random_range(1..8) {
                    connections.push((priority, ConnectionId(connections.len() as u64)));
                }
            }
            for (priority, connection) in &connections {
                for _ in 0..random.random_range(1..20) {
                    queue.push(*priority, *connection, (*priority, *connection));
                }
            }
            let rounds = random.random_range(10..200);
            let served = serve(&mut queue, 7 * rounds);
            for (index, priority) in Priority::ALL.into_iter().enumerate() {
                let of_class = || served.iter().filter(|who| who.0 == priority);
                let share = WEIGHTS[index] as usize * rounds;
                assert!(of_class().count().abs_diff(share) <= 1, "seed {seed}, {priority:?}");
                let equal = connections.iter().filter(|who| who.0 == priority);
                let counts: Vec<usize> = equal
                    .map(|(_, connection)| of_class().filter(|who| who.1 == *connection).count())
                    .collect();
                let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
                assert!(most - least <= 1, "seed {seed}, {priority:?}: {counts:?}");
            }
        }
    }

    #[test]
    fn one_connection_with_a_thousand_streams_does_not_delay_another_with_one() {
        let mut queue = FairQueue::default();
        for _ in 0..1_000 {
            queue.push(Priority::Medium, A, A);
        }
        (0..100).for_each(|_| assert_eq!(queue.pop(), Some(A)));
        queue.push(Priority::Medium, B, B);
        let place = std::iter::from_fn(|| queue.pop()).position(|who| who == B);
        assert!(place.is_some_and(|place| place <= 1), "{place:?}");
        // Nor does a class without end another that has one in line.
        for priority in Priority::ALL {
            for _ in 0..100 {
                queue.push(priority, A, A);
            }
        }
        for _ in 0..20 {
            queue.pop();
        }
        queue.push(Priority::Low, B, B);
        let place = std::iter::from_fn(|| queue.pop()).position(|who| who == B);
        assert!(place.is_some_and(|place| place <= 2 * 7), "{place:?}");
    }

    #[test]
    fn who_has_rested_has_not_saved_up() {
        let mut queue = FairQueue::default();
        for _ in 0..500 {
            queue.push(Priority::Low, A, A);
        }
        for _ in 0..400 {
            queue.pop();
        }
        for _ in 0..50 {
            queue.push(Priority::Low, B, B);
        }
        for _ in 0..50 {
            queue.push(Priority::High, B, B);
        }
        let served: Vec<_> = (0..20).filter_map(|_| queue.pop()).collect();
        let of_a = served.iter().filter(|who| **who == A).count();
        assert!((1..=3).contains(&of_a), "a half of the fifth of a low class: {served:?}");
    }

    #[test]
    fn streams_of_a_connection_leave_in_order_and_who_gives_up_is_passed_over() {
        let mut queue = FairQueue::default();
        let tickets: Vec<Ticket> = (0..5).map(|n| queue.push(Priority::High, A, n)).collect();
        let low = queue.push(Priority::Low, B, 9);
        assert_eq!((queue.remove(tickets[1]), queue.remove(tickets[1])), (Some(1), None));
        assert_eq!(queue.remove(low), Some(9));
        let rest: Vec<i32> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!((rest, queue.is_empty()), (vec![0, 2, 3, 4], true));
        assert_eq!(queue.remove(tickets[4]), None);
    }

    /// Any order of joining, leaving and serving: nobody is lost or served twice, and nobody is remembered when all are gone.
    #[test]
    fn nobody_is_lost_and_connections_that_are_gone_are_forgotten() {
        for seed in 0..30 {
            let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
            let (mut queue, mut waiting) = (FairQueue::default(), Vec::new());
            for number in 0..3_000u64 {
                match random.random_range(0..5) {
                    0..2 => {
                        let priority = Priority::ALL[random.random_range(0..3)];
                        let connection = ConnectionId(number / 10 + random.random_range(0..4));
                        waiting.push((queue.push(priority, connection, number), number));
                    }
                    2 if !waiting.is_empty() => {
                        let (ticket, number) = waiting.swap_remove(random.random_range(0..waiting.len()));
                        assert_eq!(queue.remove(ticket), Some(number));
                    }
                    _ => {
                        let served = queue.pop();
                        assert_eq!(served.is_none(), waiting.is_empty());
                        waiting.retain(|(_, number)| Some(*number) != served);
                    }
                }
                assert_eq!(queue.is_empty(), waiting.is_empty());
            }
            while queue.pop().is_some() {}
            assert!(queue.classes.iter().all(|class| class.lines.is_empty() && class.resting.is_empty()));
        }
    }
}
