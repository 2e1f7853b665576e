//! Waiting for a dump of the trace, which a thread of its own makes.
//!
//! Cost: a timer that becomes rarer, up to [`PAUSE_MAX`].
//!
//! Does not know: what is in a dump.

use std::time::Duration;

use super::CoreService;
use crate::command::TraceDumpJob;
use crate::core::host;
use crate::net::Ticket;

const PAUSE_MIN: Duration = Duration::from_millis(1);

/// Longest time between two looks.
const PAUSE_MAX: Duration = Duration::from_millis(50);

impl CoreService {
    /// Answers a request for a dump when it is made.
    pub(super) fn wait_for_dump(&self, job: TraceDumpJob, ticket: Ticket) {
        let Some(service) = self.weak.upgrade() else { return };
        let received_ns = self.env.clock.monotonic_ns();
        host::spawn("trace dump", async move {
            let mut pause = PAUSE_MIN;
            while !job.is_done() {
                service.env.spawn.sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
            ticket.reply(|out| job.answer(&service.env, out));
            service.answered(job.responder().opcode(), received_ns);
        });
    }
}
