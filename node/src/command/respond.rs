//! How one request is answered on its connection: framing, error bodies, and what old clients may not see.
//!
//! Invariants
//! - With Tracing on every response is a flexible frame with the server's duration, without it a classic one.
//! - Statuses of checks are sent as they are ([`Responder::refuse`]); statuses of execution pass the remapping of
//!   connections without XERROR ([`Responder::fail`]).
//! - A failure has no CAS, extras or key.
//!
//! Cost: the clock is read only with Tracing on; a success allocates nothing.
//!
//! Does not know: sockets, what was executed.

use ringbase_storage::env::Env;

use super::data::Outcome;
use super::session::SessionView;
use crate::protocol::duration::EncodedDuration;
use crate::protocol::{
    Datatype, ErrorContext, Feature, Features, Frame, Opcode, Refusal, Remap, Response, ResponseFraming,
    Status,
};

/// What of a request and its connection an answer needs. Small enough to wait for a disk or a commit.
#[derive(Debug, Clone, Copy)]
pub struct Responder {
    opcode: Opcode,
    opaque: u32,
    features: Features,
    received_ns: u64,
}

impl Responder {
    /// The answerer of `frame`, which was received at `received_ns`, on a connection with `features`.
    #[must_use]
    #[inline]
    pub fn new(frame: &Frame<'_>, features: Features, received_ns: u64) -> Responder {
        Responder { opcode: frame.opcode(), opaque: frame.opaque(), features, received_ns }
    }

    /// The answerer of `frame` for a request that left its connection.
    #[must_use]
    #[inline]
    pub fn of_view(frame: &Frame<'_>, view: &SessionView, received_ns: u64) -> Responder {
        Responder::new(frame, view.features, received_ns)
    }

    /// What was asked.
    #[must_use]
    #[inline]
    pub fn opcode(&self) -> Opcode {
        self.opcode
    }

    /// The opaque of the request.
    #[must_use]
    pub fn opaque(&self) -> u32 {
        self.opaque
    }

    /// When the request was received.
    #[must_use]
    pub fn received_ns(&self) -> u64 {
        self.received_ns
    }

    /// The framing extras of an answer that is made now.
    #[must_use]
    #[inline]
    pub fn framing(&self, env: &Env) -> ResponseFraming {
        if !self.has(Feature::Tracing) {
            return ResponseFraming::NONE;
        }
        let took_ns = env.clock.monotonic_ns().saturating_sub(self.received_ns);
        ResponseFraming::traced(EncodedDuration::from_micros(took_ns / 1_000))
    }

    /// Whether the connection has `feature` on.
    #[must_use]
    #[inline]
    pub fn has(&self, feature: Feature) -> bool {
        self.features.has(feature)
    }

    /// The bits of `datatype` that the connection negotiated.
    #[must_use]
    #[inline]
    pub fn visible(&self, datatype: Datatype) -> Datatype {
        if self.has(Feature::Json) { datatype & Datatype::JSON } else { Datatype::RAW }
    }

    /// A response with `status` and nothing else yet.
    #[must_use]
    #[inline]
    pub fn with_status(&self, env: &Env, status: Status) -> Response<'static> {
        Response::new(self.opcode, self.opaque, status).framing(self.framing(env))
    }

    /// A successful response.
    #[must_use]
    #[inline]
    pub fn success(&self, env: &Env) -> Response<'static> {
        self.with_status(env, Status::SUCCESS)
    }

    /// Appends a response whose value is JSON text.
    pub fn json(&self, env: &Env, json: &[u8], out: &mut Vec<u8>) {
        self.success(env).datatype(self.visible(Datatype::JSON)).value(json).encode(out);
    }

    /// Appends a failure as it is.
    pub fn refuse(&self, env: &Env, refusal: Refusal, out: &mut Vec<u8>) {
        self.failure(env, refusal.status, &ErrorContext::from(refusal), out);
    }

    /// Appends the failure of an execution, or what the connection is told instead. A miss of a quiet read says nothing.
    pub fn fail(&self, env: &Env, status: Status, out: &mut Vec<u8>) -> Outcome {
        self.fail_with(env, status, &ErrorContext::default(), out)
    }

    /// As [`Responder::fail`], with an error body.
    pub fn fail_with(&self, env: &Env, status: Status, context: &ErrorContext, out: &mut Vec<u8>) -> Outcome {
        if status == Status::KEY_ENOENT && self.opcode.is_quiet_on_miss() {
            return Outcome::Done;
        }
        let status = if self.has(Feature::Xerror) {
            status
        } else {
            match status.without_xerror(self.opcode, self.has(Feature::Collections)) {
                Remap::Keep => status,
                Remap::To(other) => other,
                Remap::Disconnect => return Outcome::Close,
            }
        };
        self.failure(env, status, context, out);
        Outcome::Done
    }

    fn failure(&self, env: &Env, status: Status, context: &ErrorContext, out: &mut Vec<u8>) {
        let response = self.with_status(env, status);
        if *context == ErrorContext::default() {
            return response.encode(out);
        }
        let body = context.encode();
        response.datatype(self.visible(Datatype::JSON)).value(&body).encode(out);
    }
}
