//! Questions of which every core answers a part: asked on one core, answered when all have.
//!
//! Cost: a message to and from each other core.
//! Does not know: what is asked.

use super::message::{Message, Token};
use super::{CoreService, Waiting};
use crate::net::Ticket;
use crate::protocol::Opcode;

/// Something that is asked of all cores.
pub(super) trait Question: Sized {
    /// What a core says.
    type Part;
    /// The request that asks it.
    const OPCODE: Opcode;

    /// What this core says.
    fn part(&self, service: &CoreService) -> Self::Part;

    /// The question to another core.
    fn message(&self, token: Token) -> Message;

    /// Appends the answer to the client; `parts` come from all cores.
    fn answer(self, service: &CoreService, parts: Vec<Self::Part>, out: &mut Vec<u8>);

    /// Waits for other cores.
    fn waiting(gathering: Gathering<Self>) -> Waiting;

    /// What has waited, if it is this question.
    fn of(waiting: Waiting) -> Option<Gathering<Self>>;
}

/// A question that waits for other cores.
pub(super) struct Gathering<Q: Question> {
    question: Q,
    parts: Vec<Q::Part>,
    ticket: Ticket,
    received_ns: u64,
}

impl CoreService {
    /// Asks every core and answers.
    pub(super) fn gather<Q: Question>(&self, question: Q, ticket: Ticket, received_ns: u64) {
        let parts = vec![question.part(self)];
        let others: Vec<_> = self.other_cores().collect();
        if others.is_empty() {
            return self.answer_gathered(Gathering { question, parts, ticket, received_ns });
        }
        let token = self.next_token();
        for core in others {
            self.send(core, question.message(token));
        }
        // No answer comes before this core has let others run.
        self.wait_with(token, Q::waiting(Gathering { question, parts, ticket, received_ns }));
    }

    /// Another core has said its part.
    pub(super) fn gathered<Q: Question>(&self, token: Token, part: Q::Part) {
        let Some(mut gathering) = self.take_waiting(token).and_then(Q::of) else { return };
        gathering.parts.push(part);
        if gathering.parts.len() > self.other_cores().count() {
            return self.answer_gathered(gathering);
        }
        self.wait_with(token, Q::waiting(gathering));
    }

    fn answer_gathered<Q: Question>(&self, gathering: Gathering<Q>) {
        let Gathering { question, parts, ticket, received_ns } = gathering;
        ticket.reply(|out| question.answer(self, parts, out));
        self.answered(Q::OPCODE, received_ns);
    }
}
