//! Messages of other cores: requests for vbuckets of this core, and answers to what this core asked.
//!
//! Does not know: why a core asked.

use std::rc::Weak;

use super::message::{Message, Token};
use super::{CoreService, Waiting};
use crate::command::{Outcome, Reply, Request, SessionView, StatJob, VbSeqnosJob, execute, vb_seqnos};
use crate::core::CoreId;
use crate::protocol::Opcode;

/// The way back to the core that asked.
struct RemoteReply {
    service: Weak<CoreService>,
    to: CoreId,
    token: Token,
}

impl Reply for RemoteReply {
    fn send(self: Box<Self>, frame: &[u8]) {
        if let Some(service) = self.service.upgrade() {
            let mut copy = service.frames.take(frame.len());
            copy.extend_from_slice(frame);
            service.send(self.to, Message::Answer { token: self.token, frame: copy });
        }
    }

    fn close(self: Box<Self>) {
        if let Some(service) = self.service.upgrade() {
            service.send(self.to, Message::CloseConnection { token: self.token });
        }
    }
}

impl CoreService {
    pub(super) fn handle(&self, from: CoreId, message: Message) {
        match message {
            Message::Request { token, view, received_ns, frame } => {
                self.execute_for(from, token, &view, received_ns, &frame);
                self.frames.give(frame);
            }
            Message::Answer { token, frame } => {
                if let Some(Waiting::Answer { ticket, opcode, received_ns, under_way }) =
                    self.take_waiting(token)
                {
                    drop(under_way);
                    ticket.reply(|out| out.extend_from_slice(&frame));
                    self.answered(opcode, received_ns);
                }
                self.frames.give(frame);
            }
            Message::CloseConnection { token } => {
                if let Some(Waiting::Answer { ticket, .. }) = self.take_waiting(token) {
                    ticket.reply_and_close(|_| {});
                }
            }
            Message::ScanFrame { token, frame } => self.deliver(from, token, frame),
            Message::ScanFrameSent { sent } => self.scans.frame_sent(sent),
            Message::Stream { token, spec } => self.open_stream_for(from, token, *spec),
            Message::StreamAnswer { token, answer } => self.stream_answered(token, answer),
            Message::StreamPiece { piece } => self.take_piece(piece),
            Message::StreamPieceSent { sent } => self.streams.sent(sent),
            Message::StreamClosed { number } => self.streams.close(number),
            Message::ProducerOpened { producer } => self.replace_older(&producer),
            Message::ConnectionGone { connection } => self.connection_gone(connection),
            Message::Stat { token, query } => {
                let part = self.collect(&query);
                self.send(from, Message::StatPart { token, part });
            }
            Message::StatPart { token, part } => self.gathered::<StatJob>(token, part),
            Message::Seqnos { token, bucket, asked } => {
                let part = vb_seqnos(&self.engine, bucket, asked);
                self.send(from, Message::SeqnosTold { token, part });
            }
            Message::SeqnosTold { token, part } => self.gathered::<VbSeqnosJob>(token, part),
            Message::Bucket { token, change } => self.change_for(from, token, change),
            Message::BucketDone { token, result } => self.changed(token, &result),
            Message::Step { token, step } => self.take_step_for(from, token, step),
            Message::StepDone { token, result } => self.step_done(token, result),
            Message::SetParam { name, value } => {
                // The core that asked has checked it.
                let _ = self.apply_param(&name, &value);
            }
        }
    }

    pub(super) fn take_waiting(&self, token: Token) -> Option<Waiting> {
        self.waiting.borrow_mut().remove(&token)
    }

    fn execute_for(&self, to: CoreId, token: Token, view: &SessionView, received_ns: u64, frame: &[u8]) {
        let Some(request) = Request::reread(frame, view, received_ns) else {
            tracing::error!(core = to.0, "a request of another core cannot be read again");
            return self.send(to, Message::CloseConnection { token });
        };
        if matches!(
            request.opcode(),
            Opcode::RANGE_SCAN_CREATE | Opcode::RANGE_SCAN_CONTINUE | Opcode::RANGE_SCAN_CANCEL
        ) {
            return self.range_scan_for(to, token, view, &request);
        }
        if matches!(request.opcode(), Opcode::SET_VBUCKET | Opcode::DEL_VBUCKET) {
            return self.vbucket_change_for(to, token, view, &request);
        }
        let mut out = self.frames.take(0);
        let mut defer =
            || -> Box<dyn Reply> { Box::new(RemoteReply { service: self.weak.clone(), to, token }) };
        match execute(&self.engine, view, &request, &mut out, &mut defer) {
            Outcome::Done => self.send(to, Message::Answer { token, frame: out }),
            Outcome::Deferred => self.frames.give(out),
            Outcome::Close => self.send(to, Message::CloseConnection { token }),
        }
    }
}
