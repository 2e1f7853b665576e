//! Requests for a pending vbucket: they wait until it is active, or is something else, and are executed then as if they had come just then.
//!
//! Invariants
//! - They go on in order of arrival. Each is answered once: at the latest after [`WAIT_MAX`], with a temporary failure.
//! - What waits holds a bounded number of bytes, in the room of those that wait for the disk.
//!
//! Cost: a copy of the request; one task while any waits.
//!
//! Does not know: who changes states.

use std::rc::Rc;
use std::time::Duration;

use super::{Outcome, Reply, execute};
use crate::bucket::{BucketContext, Engine};
use crate::command::request::Request;
use crate::command::respond::Responder;
use crate::command::session::SessionView;
use crate::protocol::Status;

/// How long a request waits at most.
pub(in crate::command) const WAIT_MAX: Duration = Duration::from_secs(30);

/// Lets `request` wait for its vbucket. `false`: too much waits already.
#[must_use]
pub(super) fn until_changed(
    context: &Rc<BucketContext>,
    view: &SessionView,
    request: &Request<'_>,
    defer: &mut dyn FnMut() -> Box<dyn Reply>,
) -> bool {
    let Some(room) = context.waiting_room(request.frame.frame_bytes()) else { return false };
    let (view, received_ns, reply, env) = (*view, request.received_ns, defer(), context.env.clone());
    let mut bytes = Vec::new();
    request.copy(&mut bytes);
    let resume = move |engine: Option<&Engine>| {
        drop(room);
        let request = Request::reread(&bytes, &view, received_ns).expect("it is a copy of a valid request");
        let (mut frame, mut reply) = (Vec::new(), Some(reply));
        let outcome = match engine {
            Some(engine) => {
                let mut defer = || reply.take().expect("a request is deferred once");
                execute(engine, &view, &request, &mut frame, &mut defer)
            }
            None => {
                let responder = Responder::of_view(&request.frame, &view, received_ns);
                responder.fail(&env, Status::ETMPFAIL, &mut frame)
            }
        };
        match (outcome, reply) {
            (Outcome::Done, Some(reply)) => reply.send(&frame),
            (Outcome::Close, Some(reply)) => reply.close(),
            (Outcome::Deferred, _) | (_, None) => {}
        }
    };
    let deadline_ns = context.monotonic_ns().saturating_add(WAIT_MAX.as_nanos() as u64);
    context.parked.park(request.vbucket(), deadline_ns, Box::new(resume));
    if !context.parked.is_watched.replace(true) {
        context.env.spawn("parked requests", watch(context.clone()));
    }
    true
}

/// Ends those whose time is up, as long as any waits.
async fn watch(context: Rc<BucketContext>) {
    while let Some(deadline_ns) = context.parked.next_deadline_ns() {
        let left = deadline_ns.saturating_sub(context.monotonic_ns());
        context.env.spawn.sleep(Duration::from_nanos(left)).await;
        let late = context.parked.take_late(context.monotonic_ns());
        late.into_iter().for_each(|resume| resume(None));
    }
    context.parked.is_watched.set(false);
}
