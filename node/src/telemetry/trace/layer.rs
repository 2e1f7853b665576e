//! The subscriber of the process: records what the recorder wants, and hands on to the log what the log wants.
//!
//! It stands around the log's subscriber instead of being a layer in it: a layer needs the log's own table of spans, which costs more for
//! each span than recording it. The ids of spans are this module's; the log sees its own.
//!
//! Invariants
//! - A call site that neither wants is off in `tracing` itself: a load and a branch.
//! - The log sees what it would see alone, but for two things: beyond [`super::SPANS_MAX`] spans alive at a time it misses spans, and an
//!   event that names its parent explicitly is logged without its spans.
//! - Nothing is held while values are formatted or the log writes, so these may log in turn.
//!
//! Cost: with recording on, a span is two events, two more for each time it is entered again.
//!
//! Does not know: rings, files, the wire.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Dispatch, Event, Metadata, Subscriber};
use tracing_core::span::Current;
use tracing_subscriber::registry::LookupSpan;

use super::control::TraceControl;
use super::event::ArgsWriter;
use super::recorder::{Decision, LogInterest, Shared, with_thread};
use super::span::NOTHING;

/// See the module.
pub struct TraceSubscriber<L> {
    shared: Arc<Shared>,
    log: L,
}

thread_local! {
    /// Whether the log closes a span: what it closes then are spans of its own.
    static LOG_CLOSES: Cell<bool> = const { Cell::new(false) };
}

impl<L: Subscriber + for<'a> LookupSpan<'a>> TraceSubscriber<L> {
    /// Records for `control`, and logs with `log`.
    #[must_use]
    pub fn new(control: &TraceControl, log: L) -> TraceSubscriber<L> {
        TraceSubscriber { shared: control.shared().clone(), log }
    }

    fn decide(&self, metadata: &'static Metadata<'static>) -> Decision {
        with_thread(&self.shared, |thread| thread.decide(metadata)).unwrap_or_default()
    }

    fn log_wants(&self, decision: Decision, metadata: &Metadata<'_>) -> bool {
        match decision.log {
            LogInterest::Never => false,
            LogInterest::Always => true,
            LogInterest::Sometimes => self.log.enabled(metadata),
        }
    }

    /// The log's id of a span.
    fn log_id(&self, id: &Id) -> Option<Id> {
        let span = self.shared.spans.get(id.into_u64())?;
        let log_id = span.log_id.load(Relaxed);
        (log_id != 0).then(|| Id::from_u64(log_id))
    }

    fn log_new_span(&self, attributes: &Attributes<'_>) -> Id {
        let (metadata, values) = (attributes.metadata(), attributes.values());
        match attributes.parent().map(|parent| self.log_id(parent)) {
            None => self.log.new_span(attributes),
            Some(Some(parent)) => self.log.new_span(&Attributes::child_of(parent, metadata, values)),
            Some(None) => self.log.new_span(&Attributes::new_root(metadata, values)),
        }
    }

    fn log_close(&self, id: Id) -> bool {
        // The log closes parents through the process's subscriber, which is this one.
        let outer = LOG_CLOSES.try_with(|closes| closes.replace(true));
        let is_closed = self.log.try_close(id);
        if let Ok(outer) = outer {
            let _ = LOG_CLOSES.try_with(|closes| closes.set(outer));
        }
        is_closed
    }
}

impl<L: Subscriber + for<'a> LookupSpan<'a>> Subscriber for TraceSubscriber<L> {
    fn on_register_dispatch(&self, subscriber: &Dispatch) {
        self.log.on_register_dispatch(subscriber);
    }

    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        let interest = self.log.register_callsite(metadata);
        let log = if interest.is_always() {
            LogInterest::Always
        } else if interest.is_never() {
            LogInterest::Never
        } else {
            LogInterest::Sometimes
        };
        match self.shared.register(metadata, log).is_recorded {
            true => Interest::always(),
            false => interest,
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.shared.records(metadata.target()) || self.log.enabled(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        if self.shared.is_running() { Some(LevelFilter::TRACE) } else { self.log.max_level_hint() }
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        let metadata = attributes.metadata();
        let decision = self.decide(metadata);
        let log_id = self.log_wants(decision, metadata).then(|| self.log_new_span(attributes));
        if log_id.is_none() && !decision.is_recorded {
            return Id::from_u64(NOTHING);
        }
        let mut args = ArgsWriter::new();
        let args = decision.is_recorded.then(|| {
            attributes.record(&mut args);
            &args
        });
        let parent = match attributes.is_contextual() {
            true => None,
            false => Some(attributes.parent().map_or(0, Id::into_u64)),
        };
        let log_number = log_id.as_ref().map_or(0, Id::into_u64);
        let begun = with_thread(&self.shared, |thread| {
            thread.begin(&self.shared, metadata, args, parent, log_number)
        });
        match begun.flatten() {
            Some(id) => Id::from_u64(id),
            None => {
                log_id.map(|id| self.log_close(id));
                Id::from_u64(NOTHING)
            }
        }
    }

    fn record(&self, id: &Id, values: &Record<'_>) {
        if let Some(span) = self.shared.spans.get(id.into_u64())
            && span.session.load(Relaxed) != 0
        {
            let mut args = ArgsWriter::new();
            values.record(&mut args);
            with_thread(&self.shared, |thread| thread.more(id.into_u64(), span, &args));
        }
        if let Some(id) = self.log_id(id) {
            self.log.record(&id, values);
        }
    }

    fn record_follows_from(&self, id: &Id, follows: &Id) {
        if let (Some(id), Some(follows)) = (self.log_id(id), self.log_id(follows)) {
            self.log.record_follows_from(&id, &follows);
        }
    }

    fn event_enabled(&self, _: &Event<'_>) -> bool {
        true
    }

    fn event(&self, event: &Event<'_>) {
        let metadata = event.metadata();
        let decision = self.decide(metadata);
        if decision.is_recorded {
            let mut args = ArgsWriter::new();
            event.record(&mut args);
            with_thread(&self.shared, |thread| thread.instant(metadata, &args));
        }
        if self.log_wants(decision, metadata) && self.log.event_enabled(event) {
            self.log.event(event);
        }
    }

    fn enter(&self, id: &Id) {
        let Some(span) = self.shared.spans.get(id.into_u64()) else { return };
        if let Some(id) = self.log_id(id) {
            self.log.enter(&id);
        }
        with_thread(&self.shared, |thread| thread.enter(id.into_u64(), span));
    }

    fn exit(&self, id: &Id) {
        let Some(span) = self.shared.spans.get(id.into_u64()) else { return };
        with_thread(&self.shared, |thread| thread.exit(id.into_u64(), span));
        if let Some(id) = self.log_id(id) {
            self.log.exit(&id);
        }
    }

    fn clone_span(&self, id: &Id) -> Id {
        if let Some(span) = self.shared.spans.get(id.into_u64()) {
            span.hold();
        }
        id.clone()
    }

    fn try_close(&self, id: Id) -> bool {
        if LOG_CLOSES.try_with(Cell::get).unwrap_or_default() {
            return self.log.try_close(id);
        }
        let Some(span) = self.shared.spans.get(id.into_u64()) else { return false };
        if !span.let_go() {
            return false;
        }
        let log_id = self.log_id(&id);
        with_thread(&self.shared, |thread| thread.close(&self.shared, id.into_u64(), span));
        if let Some(id) = log_id {
            self.log_close(id);
        }
        true
    }

    fn current_span(&self) -> Current {
        let current = with_thread(&self.shared, |thread| thread.current()).flatten();
        let known = current.and_then(|id| {
            let key = self.shared.spans.get(id)?.callsite.load(Relaxed);
            Some((Id::from_u64(id), self.shared.callsite(key)?))
        });
        known.map_or_else(Current::none, |(id, metadata)| Current::new(id, metadata))
    }
}
