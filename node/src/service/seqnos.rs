//! Seqnos of all vbuckets: asked on one core, known on all.
//!
//! Does not know: what a client may ask.

use super::gather::{Gathering, Question};
use super::message::{Message, Token};
use super::{CoreService, Waiting};
use crate::command::{VbSeqnos, VbSeqnosJob, vb_seqnos};
use crate::protocol::Opcode;

impl Question for VbSeqnosJob {
    type Part = VbSeqnos;
    const OPCODE: Opcode = Opcode::GET_ALL_VB_SEQNOS;

    fn part(&self, service: &CoreService) -> VbSeqnos {
        vb_seqnos(&service.engine, self.bucket, self.asked)
    }

    fn message(&self, token: Token) -> Message {
        Message::Seqnos { token, bucket: self.bucket, asked: self.asked }
    }

    fn answer(self, service: &CoreService, parts: Vec<VbSeqnos>, out: &mut Vec<u8>) {
        VbSeqnosJob::answer(&self, &service.env, parts, out);
    }

    fn waiting(gathering: Gathering<VbSeqnosJob>) -> Waiting {
        Waiting::Seqnos(gathering)
    }

    fn of(waiting: Waiting) -> Option<Gathering<VbSeqnosJob>> {
        if let Waiting::Seqnos(gathering) = waiting { Some(gathering) } else { None }
    }
}
