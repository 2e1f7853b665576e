//! Range scans between the vbucket's core, which reads, and the connection's core, which sends.
//!
//! Invariants
//! - A buffer goes to the kernel as it was filled: the head is written into the room before the records, and nothing is copied.
//! - It goes back to the vbucket's core when the kernel has taken it, or when the connection is gone.
//!
//! Does not know: what is in a buffer.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::message::{Message, Token};
use super::{CoreService, Waiting};
use crate::command::{Request, Responder, SessionView};
use crate::core::{CoreId, host};
use crate::net::{ReplyStream, Ticket};
use crate::protocol::range_scan::{RangeScanContinue, RangeScanCreate, ScanId};
use crate::protocol::{Opcode, Refusal, Status};
use crate::range_scan::{ConnectionId, FrameSink, ScanFrame, SentFrame, VbAddress};

/// Where the frames of one continue leave for the socket.
pub(super) struct Delivery {
    stream: RefCell<Option<ReplyStream>>,
    responder: Responder,
    received_ns: u64,
    weak: Weak<CoreService>,
    /// Frames that the kernel has not taken yet, and whether the last has been given.
    under_way: Cell<usize>,
}

/// Frames of a scan on the connection's own core.
struct LocalSink(Rc<Delivery>);

impl FrameSink for LocalSink {
    fn send(&self, frame: ScanFrame) {
        if let Some(service) = self.0.weak.upgrade() {
            service.deliver_to(&self.0, None, frame);
        }
    }
}

/// Frames of a scan for a connection of another core.
struct RemoteSink {
    service: Weak<CoreService>,
    to: CoreId,
    token: Token,
}

impl FrameSink for RemoteSink {
    fn send(&self, frame: ScanFrame) {
        if let Some(service) = self.service.upgrade() {
            service.send(self.to, Message::ScanFrame { token: self.token, frame });
        }
    }
}

/// A frame lent to the network; it comes home when the last reference to its bytes goes.
struct Lent {
    frame: Option<ScanFrame>,
    home: Arc<Mutex<Option<ScanFrame>>>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        self.frame.as_ref().map_or(&[], ScanFrame::encoded)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        *self.home.lock().unwrap_or_else(PoisonError::into_inner) = self.frame.take();
    }
}

/// What a range scan request asks.
enum Asked {
    Create(Box<RangeScanCreate>),
    Continue(RangeScanContinue),
    Cancel(ScanId),
}

fn decode(view: &SessionView, request: &Request<'_>) -> Result<Asked, Refusal> {
    let frame = &request.frame;
    Ok(match request.opcode() {
        Opcode::RANGE_SCAN_CREATE => {
            Asked::Create(Box::new(RangeScanCreate::decode(frame.value, view.features)?))
        }
        Opcode::RANGE_SCAN_CONTINUE => Asked::Continue(RangeScanContinue::decode(frame.extras)?),
        _ => Asked::Cancel(ScanId::decode(frame.extras).ok_or(Refusal::einval("A scan id has 16 bytes"))?),
    })
}

impl CoreService {
    /// A range scan request of a connection of this core.
    pub(super) fn range_scan(&self, view: SessionView, request: &Request<'_>, ticket: Ticket) {
        let (host, opcode, received_ns) = (self.host_of(request), request.opcode(), request.received_ns);
        if opcode == Opcode::RANGE_SCAN_CONTINUE {
            let delivery = Rc::new(Delivery {
                stream: RefCell::new(Some(ticket.stream())),
                responder: Responder::of_view(&request.frame, &view, received_ns),
                received_ns,
                weak: self.weak.clone(),
                under_way: Cell::new(0),
            });
            if host == self.core {
                self.start_scan(&view, request, Rc::new(LocalSink(delivery.clone())), |refusal| {
                    delivery.finish(|out| delivery.responder.refuse(&self.env, refusal, out));
                });
            } else {
                self.execute_there(host, view, request, Waiting::Scan(delivery));
            }
            return;
        }
        if host != self.core {
            let waiting = Waiting::Answer { ticket, opcode, received_ns, under_way: None };
            return self.execute_there(host, view, request, waiting);
        }
        let weak = self.weak.clone();
        self.create_or_cancel(&view, request, move |frame| {
            ticket.reply(|out| out.extend_from_slice(&frame));
            if let Some(service) = weak.upgrade() {
                service.answered(opcode, received_ns);
            }
        });
    }

    /// A range scan request of a connection of another core, for a vbucket of this one.
    pub(super) fn range_scan_for(&self, to: CoreId, token: Token, view: &SessionView, request: &Request<'_>) {
        let service = self.weak.clone();
        if request.opcode() == Opcode::RANGE_SCAN_CONTINUE {
            let responder = Responder::of_view(&request.frame, view, request.received_ns);
            let sink = Rc::new(RemoteSink { service, to, token });
            return self.start_scan(view, request, sink, |refusal| {
                let mut frame = Vec::new();
                responder.refuse(&self.env, refusal, &mut frame);
                self.send(to, Message::Answer { token, frame });
            });
        }
        self.create_or_cancel(view, request, move |frame| {
            if let Some(service) = service.upgrade() {
                service.send(to, Message::Answer { token, frame });
            }
        });
    }

    fn address(view: &SessionView, request: &Request<'_>) -> Result<(VbAddress, ConnectionId), Refusal> {
        let bucket = view.bucket.ok_or(Refusal::new(Status::NO_BUCKET, ""))?;
        Ok((VbAddress { bucket, vb: request.vbucket() }, ConnectionId(view.connection.0)))
    }

    fn start_scan(
        &self,
        view: &SessionView,
        request: &Request<'_>,
        sink: Rc<dyn FrameSink>,
        refuse: impl FnOnce(Refusal),
    ) {
        let asked = Self::address(view, request).and_then(|at| Ok((at, decode(view, request)?)));
        match asked {
            Ok(((at, connection), Asked::Continue(asked))) => {
                self.scans.continue_scan(at, connection, asked, sink);
            }
            Ok(_) => refuse(Refusal::einval("Not a continue")),
            Err(refusal) => refuse(refusal),
        }
    }

    fn create_or_cancel(
        &self,
        view: &SessionView,
        request: &Request<'_>,
        answer: impl FnOnce(Vec<u8>) + 'static,
    ) {
        let responder = Responder::of_view(&request.frame, view, request.received_ns);
        let env = self.env.clone();
        let (weak, bucket) = (self.weak.clone(), view.bucket);
        let finish = move |result: Result<Option<ScanId>, Refusal>| {
            let mut frame = Vec::new();
            match result {
                Ok(Some(id)) => responder.success(&env).value(&id.0).encode(&mut frame),
                Ok(None) => responder.success(&env).encode(&mut frame),
                Err(refusal) => match weak.upgrade() {
                    Some(service) => service.refuse_in(bucket, &responder, refusal, &mut frame),
                    None => responder.refuse(&env, refusal, &mut frame),
                },
            }
            answer(frame);
        };
        let asked = Self::address(view, request).and_then(|at| Ok((at, decode(view, request)?)));
        match asked {
            Ok(((at, connection), Asked::Create(asked))) => {
                self.scans.create(at, connection, *asked, move |result| finish(result.map(Some)));
            }
            Ok(((at, _), Asked::Cancel(id))) => finish(self.scans.cancel(at, id).map(|()| None)),
            Ok((_, Asked::Continue(_))) => finish(Err(Refusal::einval("Not a create or cancel"))),
            Err(refusal) => finish(Err(refusal)),
        }
    }

    /// A frame from another core.
    pub(super) fn deliver(&self, from: CoreId, token: Token, frame: ScanFrame) {
        let delivery = match self.waiting.borrow().get(&token) {
            Some(Waiting::Scan(delivery)) => delivery.clone(),
            _ => return self.bring_back(Some(from), frame.into_sent()),
        };
        if frame.is_final() {
            self.waiting.borrow_mut().remove(&token);
        }
        self.deliver_to(&delivery, Some(from), frame);
    }

    /// Sends a frame; `home` is the core it came from if that is another one.
    fn deliver_to(&self, delivery: &Rc<Delivery>, home: Option<CoreId>, mut frame: ScanFrame) {
        let (responder, is_final) = (&delivery.responder, frame.is_final());
        frame.encode(responder.opaque(), responder.framing(&self.env));
        if frame.records().is_empty() {
            delivery.finish(|out| out.extend_from_slice(frame.encoded()));
            self.answered(Opcode::RANGE_SCAN_CONTINUE, delivery.received_ns);
            return self.bring_back(home, frame.into_sent());
        }
        let place = Arc::new(Mutex::new(None));
        let lent = Bytes::from_owner(Lent { frame: Some(frame), home: place.clone() });
        let pushed = match &*delivery.stream.borrow() {
            Some(stream) => stream.push(lent),
            None => return,
        };
        delivery.under_way.set(delivery.under_way.get() + 1);
        if is_final {
            delivery.finish(|_| {});
            self.answered(Opcode::RANGE_SCAN_CONTINUE, delivery.received_ns);
        }
        let (weak, delivery) = (self.weak.clone(), delivery.clone());
        host::spawn("scan frame", async move {
            // Taken or given up: the bytes are let go of either way, and the frame is home.
            drop(pushed.await);
            delivery.under_way.set(delivery.under_way.get() - 1);
            let frame = place.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let (Some(service), Some(frame)) = (weak.upgrade(), frame) {
                service.bring_back(home, frame.into_sent());
            }
        });
    }

    fn bring_back(&self, home: Option<CoreId>, sent: Option<SentFrame>) {
        let Some(sent) = sent else { return };
        match home {
            Some(core) => self.send(core, Message::ScanFrameSent { sent }),
            None => self.scans.frame_sent(sent),
        }
    }
}

impl Delivery {
    /// Ends the answer with what `encode` appends.
    pub(super) fn finish(&self, encode: impl FnOnce(&mut Vec<u8>)) {
        if let Some(stream) = self.stream.take() {
            stream.finish(encode);
        }
    }
}
