//! Seqnos of all vbuckets: asked on one core, known on all.
//!
//! Does not know: what a client may ask.

use ringbase_storage::types::BucketId;

use super::message::{Message, Token};
use super::{CoreService, Waiting};
use crate::command::{VbSeqnos, VbSeqnosJob, vb_seqnos};
use crate::net::Ticket;
use crate::protocol::Opcode;

/// A request that waits for other cores.
pub(super) struct AskingSeqnos {
    job: VbSeqnosJob,
    parts: Vec<VbSeqnos>,
    missing: usize,
    ticket: Ticket,
    received_ns: u64,
}

impl CoreService {
    pub(super) fn vb_seqnos(&self, bucket: BucketId) -> VbSeqnos {
        vb_seqnos(&self.engine, bucket)
    }

    /// Asks every core and answers.
    pub(super) fn ask_seqnos(&self, job: VbSeqnosJob, ticket: Ticket, received_ns: u64) {
        let parts = vec![self.vb_seqnos(job.bucket)];
        let others: Vec<_> = self.other_cores().collect();
        let asking = AskingSeqnos { job, parts, missing: others.len(), ticket, received_ns };
        if others.is_empty() {
            return self.show_seqnos(asking);
        }
        let token = self.wait_for(Waiting::Seqnos(asking));
        for core in others {
            self.send(core, Message::Seqnos { token, bucket: job.bucket });
        }
    }

    pub(super) fn seqnos_told(&self, token: Token, part: VbSeqnos) {
        let Some(Waiting::Seqnos(mut asking)) = self.take_waiting(token) else { return };
        asking.parts.push(part);
        asking.missing -= 1;
        if asking.missing == 0 {
            return self.show_seqnos(asking);
        }
        self.waiting.borrow_mut().insert(token, Waiting::Seqnos(asking));
    }

    fn show_seqnos(&self, asking: AskingSeqnos) {
        let AskingSeqnos { job, parts, ticket, received_ns, .. } = asking;
        ticket.reply(|out| job.answer(&self.env, parts, out));
        self.answered(Opcode::GET_ALL_VB_SEQNOS, received_ns);
    }
}
