//! The states of vbuckets between cores: a change is made on the vbucket's core, which ends the streams and scans that the new state does not admit;
//! and requests that the state does not admit are refused on the connection's core, where the cluster map is.
//!
//! Invariants
//! - Streams and scans end in the step in which the new state can be seen.
//!
//! Does not know: what a state admits (`bucket::states`), how a change is made durable (`bucket::vbuckets`).

use super::message::{Message, Token};
use super::{CoreService, Waiting};
use crate::bucket::{Access, Verdict};
use crate::command::{self, Outcome, Request, Responder, SessionView, VbucketJob, access_of};
use crate::core::{CoreId, host};
use crate::net::Ticket;
use crate::protocol::Refusal;
use crate::protocol::dcp::signal::VbucketState;
use crate::range_scan::VbAddress;

impl CoreService {
    /// Refuses a request with the cluster map if the state of its vbucket does not admit it; false if it does, or may.
    pub(super) fn is_refused(
        &self,
        command: &mut command::Session,
        request: &Request<'_>,
        out: &mut Vec<u8>,
    ) -> bool {
        let is_refused = access_of(request.opcode())
            .is_some_and(|access| self.verdict(&command.view(), request, access) == Verdict::Refused);
        if is_refused {
            command.not_my_vbucket(request, out);
        }
        is_refused
    }

    /// What the state of its vbucket says to a request. A bucket that is not there any more says it elsewhere.
    pub(super) fn verdict(&self, view: &SessionView, request: &Request<'_>, access: Access) -> Verdict {
        let bucket = view.bucket.and_then(|id| self.engine.bucket(id));
        bucket.map_or(Verdict::Admitted, |bucket| bucket.context.states.verdict(request.vbucket(), access))
    }

    /// A change of a vbucket that a connection of this core asks for.
    pub(super) fn vbucket_change(&self, view: SessionView, request: &Request<'_>, ticket: Ticket) {
        let (opcode, received_ns) = (request.opcode(), request.received_ns);
        let host = self.host_of(request);
        if host != self.core {
            let waiting = Waiting::Answer { ticket, opcode, received_ns, under_way: None };
            return self.execute_there(host, view, request, waiting);
        }
        self.change_vbucket(&view, request, move |service, outcome, frame| {
            match outcome {
                Outcome::Close => ticket.reply_and_close(|_| {}),
                Outcome::Done | Outcome::Deferred => ticket.reply(|out| out.extend_from_slice(&frame)),
            }
            service.answered(opcode, received_ns);
        });
    }

    /// A change that a connection of another core asks for, of a vbucket of this one.
    pub(super) fn vbucket_change_for(
        &self,
        to: CoreId,
        token: Token,
        view: &SessionView,
        request: &Request<'_>,
    ) {
        self.change_vbucket(view, request, move |service, outcome, frame| match outcome {
            Outcome::Close => service.send(to, Message::CloseConnection { token }),
            Outcome::Done | Outcome::Deferred => service.send(to, Message::Answer { token, frame }),
        });
    }

    fn change_vbucket(
        &self,
        view: &SessionView,
        request: &Request<'_>,
        answer: impl FnOnce(&CoreService, Outcome, Vec<u8>) + 'static,
    ) {
        let responder = Responder::of_view(&request.frame, view, request.received_ns);
        let refuse = |refusal: Refusal| {
            let mut frame = Vec::new();
            responder.refuse(&self.env, refusal, &mut frame);
            frame
        };
        let VbucketJob { at, change } = match VbucketJob::decode(view, request) {
            Ok(job) => job,
            Err(refusal) => return answer(self, Outcome::Done, refuse(refusal)),
        };
        let Some(service) = self.weak.upgrade() else { return };
        host::spawn("vbucket change", async move {
            let seen = |state| service.vbucket_seen(at, state);
            let result = service.engine.change_vbucket(at, change.clone(), &seen).await;
            match &result {
                Ok(()) => tracing::info!(bucket = %at.bucket, vb = at.vb.0, ?change, "vbucket changed"),
                Err(error) => {
                    tracing::info!(bucket = %at.bucket, vb = at.vb.0, ?change, %error, "vbucket not changed");
                }
            }
            let mut frame = Vec::new();
            let outcome = VbucketJob::answer(&responder, &service.env, &result, &mut frame);
            answer(&service, outcome, frame);
        });
    }

    /// All cores see a vbucket in another state: what the state does not admit ends.
    fn vbucket_seen(&self, at: VbAddress, state: Option<VbucketState>) {
        self.streams.vbucket_changed(at, state);
        self.scans.vbucket_changed(at);
        if state.is_none() {
            self.scans.vbucket_deleted(at);
        }
    }
}
