//! Threads that fetch values of a peer, so that many of its reads are under way at once.
//!
//! Cost: a message there and back for every thread and window.
//!
//! Does not know: what the values are.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use super::{Peer, Table, View, replace};
use crate::cmd::engine::api::Failure;

/// How many threads.
pub(super) const LANES: usize = 32;

/// Keys that one thread is to look up, each with its place in the answer.
type Question = (Table, Vec<(usize, Vec<u8>)>);

/// Their values.
type Answer = Result<Vec<(usize, Option<Vec<u8>>)>, Failure>;

/// See the module.
pub(super) struct Lanes {
    questions: Vec<Sender<Question>>,
    answers: Receiver<Answer>,
}

/// Runs `use_them` with threads that read `peer`.
pub(super) fn with_lanes<P: Peer, T>(
    peer: &P,
    use_them: impl FnOnce(&Lanes) -> Result<T, Failure>,
) -> Result<T, Failure> {
    thread::scope(|scope| {
        let (answer, answers) = channel();
        let questions = (0..LANES)
            .map(|_| {
                let (question, asked) = channel();
                let answer = answer.clone();
                scope.spawn(move || serve(peer, &asked, &answer));
                question
            })
            .collect();
        // The threads end when the lanes go.
        use_them(&Lanes { questions, answers })
    })
}

fn serve<P: Peer>(peer: &P, asked: &Receiver<Question>, answer: &Sender<Answer>) {
    let view = peer.view();
    for (table, wanted) in asked {
        let found = match &view {
            Ok(view) => look_up(view, table, wanted),
            Err(error) => Err(error.to_string().into()),
        };
        if answer.send(found).is_err() {
            return;
        }
    }
}

fn look_up(view: &impl View, table: Table, wanted: Vec<(usize, Vec<u8>)>) -> Answer {
    wanted
        .into_iter()
        .map(|(place, key)| {
            let mut value = Vec::new();
            let is_there = view.get(table, &key, &mut |found| replace(&mut value, found))?;
            Ok((place, is_there.then_some(value)))
        })
        .collect()
}

impl Lanes {
    /// The values of `keys`, in their order; looked up in the order of the table, many at once.
    pub(super) fn fetch(&self, table: Table, keys: Vec<Vec<u8>>) -> Result<Vec<Option<Vec<u8>>>, Failure> {
        let mut values = vec![None; keys.len()];
        let mut wanted: Vec<(usize, Vec<u8>)> = keys.into_iter().enumerate().collect();
        wanted.sort_unstable_by(|(_, one), (_, other)| one.cmp(other));
        let share = wanted.len().div_ceil(LANES).max(1);
        let mut under_way = 0;
        for (question, share) in self.questions.iter().zip(wanted.chunks(share)) {
            question.send((table, share.to_vec())).map_err(|_| "a thread that reads has ended")?;
            under_way += 1;
        }
        for _ in 0..under_way {
            for (place, value) in self.answers.recv().map_err(|_| "the threads that read have ended")?? {
                values[place] = value;
            }
        }
        Ok(values)
    }
}
