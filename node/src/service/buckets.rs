//! Buckets that come, go and change: asked on any core, decided on the one that hosts shard 0, done on all.
//!
//! Invariants
//! - A step is over when every core has answered; a core that ends meanwhile keeps the change from going on, and the next start decides.
//!
//! Does not know: which steps a change has (`bucket::lifecycle`).

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use ringbase_storage::env::LocalFuture;
use ringbase_storage::sync::Event;

use super::message::{Message, Token};
use super::{CoreService, Waiting};
use crate::bucket::engine::AUTHORITY;
use crate::bucket::{BucketChange, ChangeError, Cores, EngineError, Step};
use crate::command::{BucketJob, Responder};
use crate::core::{CoreId, host};
use crate::net::Ticket;

/// A request that waits for its change.
pub(super) struct Changing {
    responder: Responder,
    ticket: Ticket,
    received_ns: u64,
}

/// A step that other cores take.
#[derive(Default)]
pub(super) struct Round {
    missing: Cell<usize>,
    result: RefCell<Option<ChangeError>>,
    done: Event,
}

impl Round {
    fn answered(&self, result: Result<(), ChangeError>) {
        if let Err(error) = result {
            self.result.borrow_mut().get_or_insert(error);
        }
        self.missing.set(self.missing.get() - 1);
        self.done.notify_all();
    }
}

fn failed(error: &EngineError) -> ChangeError {
    let source = std::error::Error::source(error).map(|source| format!(": {source}"));
    ChangeError::Failed { reason: format!("{error}{}", source.unwrap_or_default()) }
}

impl Cores for CoreService {
    fn all(&self, step: Step) -> LocalFuture<'_, Result<(), ChangeError>> {
        Box::pin(async move {
            let others: Vec<_> = self.other_cores().collect();
            let round = Rc::new(Round::default());
            round.missing.set(others.len() + 1);
            for core in others {
                let token = self.wait_for(Waiting::Step(round.clone()));
                self.send(core, Message::Step { token, step: step.clone() });
            }
            let here = self.take_step(&step).await;
            round.answered(here);
            round.done.until(|| round.missing.get() == 0).await;
            let error = round.result.borrow_mut().take();
            error.map_or(Ok(()), Err)
        })
    }
}

impl CoreService {
    /// A change that a connection of this core asks for.
    pub(super) fn change_bucket(&self, job: BucketJob, ticket: Ticket) {
        let BucketJob { change, responder } = job;
        let received_ns = self.env.clock.monotonic_ns();
        let changing = Changing { responder, ticket, received_ns };
        let token = self.wait_for(Waiting::Bucket(changing));
        let host = self.hosts[usize::from(AUTHORITY.0)];
        if host == self.core {
            self.run_change(change, move |service, result| service.changed(token, &result));
        } else {
            self.send(host, Message::Bucket { token, change });
        }
    }

    /// A change that a connection of another core asks for.
    pub(super) fn change_for(&self, from: CoreId, token: Token, change: BucketChange) {
        self.run_change(change, move |service, result| {
            service.send(from, Message::BucketDone { token, result });
        });
    }

    fn run_change(
        &self,
        change: BucketChange,
        then: impl FnOnce(&CoreService, Result<(), ChangeError>) + 'static,
    ) {
        let Some(service) = self.weak.upgrade() else { return };
        host::spawn("bucket change", async move {
            let result = match &service.lifecycle {
                Some(lifecycle) => lifecycle.change(&*service, &change).await,
                None => Err(ChangeError::Failed { reason: "shard 0 is not on this core".to_owned() }),
            };
            match &result {
                Ok(()) => tracing::info!(?change, "bucket changed"),
                Err(error) => tracing::info!(?change, %error, "bucket not changed"),
            }
            then(&service, result);
        });
    }

    /// Answers the connection.
    pub(super) fn changed(&self, token: Token, result: &Result<(), ChangeError>) {
        let Some(Waiting::Bucket(changing)) = self.take_waiting(token) else { return };
        let Changing { responder, ticket, received_ns } = changing;
        ticket.reply(|out| BucketJob::answer(&responder, &self.env, result, out));
        self.answered(responder.opcode(), received_ns);
    }

    /// Takes a step of a change on this core.
    async fn take_step(&self, step: &Step) -> Result<(), ChangeError> {
        match step {
            Step::Prepare(bucket) => self.engine.prepare(bucket).await.map_err(|error| failed(&error)),
            Step::Withdraw { bucket, set } => {
                self.shared.set_buckets(set.clone());
                self.scans.bucket_deleted(*bucket);
                self.streams.bucket_deleted(*bucket);
                self.engine.withdraw(*bucket).await;
                Ok(())
            }
            Step::Publish(set) => {
                self.engine.publish(set).map_err(|error| failed(&error))?;
                self.shared.set_buckets(set.clone());
                self.engine.bring_events_into_line().await;
                Ok(())
            }
            Step::Remove(bucket) => self.engine.remove(*bucket).await.map_err(|error| failed(&error)),
        }
    }

    pub(super) fn take_step_for(&self, from: CoreId, token: Token, step: Step) {
        let Some(service) = self.weak.upgrade() else { return };
        host::spawn("bucket step", async move {
            let result = service.take_step(&step).await;
            service.send(from, Message::StepDone { token, result });
        });
    }

    pub(super) fn step_done(&self, token: Token, result: Result<(), ChangeError>) {
        if let Some(Waiting::Step(round)) = self.take_waiting(token) {
            round.answered(result);
        }
    }
}
