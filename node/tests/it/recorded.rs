//! Spans as a subscriber sees them: open ones, and what became of those that were closed; and what a panic said.
//!
//! Does not know: which spans there are.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

/// The fields of a span as text, strings without quotes; its `parent` if it has one is the name of the span around it.
pub(crate) type Fields = BTreeMap<String, String>;

/// Spans by id while they are open, and all that were closed.
#[derive(Default, Clone)]
pub(crate) struct Recorded {
    open: Arc<Mutex<BTreeMap<u64, (&'static str, Fields)>>>,
    closed: Arc<Mutex<Vec<(&'static str, Fields)>>>,
}

struct Collect<'a>(&'a mut Fields);

impl Visit for Collect<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}").replace('"', ""));
    }
}

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Recorded {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::new();
        let parent = context.span(id).and_then(|span| span.parent());
        fields.extend(parent.map(|parent| ("parent".to_owned(), parent.name().to_owned())));
        attributes.record(&mut Collect(&mut fields));
        self.open.lock().unwrap().insert(id.into_u64(), (attributes.metadata().name(), fields));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _: Context<'_, S>) {
        if let Some((_, fields)) = self.open.lock().unwrap().get_mut(&id.into_u64()) {
            values.record(&mut Collect(fields));
        }
    }

    fn on_close(&self, id: Id, _: Context<'_, S>) {
        let closed = self.open.lock().unwrap().remove(&id.into_u64());
        self.closed.lock().unwrap().extend(closed);
    }
}

impl Recorded {
    /// Fails if a span is open.
    pub(crate) fn assert_all_closed(&self) {
        let open = self.open.lock().unwrap();
        assert!(open.is_empty(), "{open:?}");
    }

    /// Names and fields of the open spans.
    pub(crate) fn open(&self) -> Vec<(&'static str, Fields)> {
        self.open.lock().unwrap().values().cloned().collect()
    }

    /// The closed spans of this name.
    pub(crate) fn of(&self, name: &str) -> Vec<Fields> {
        let closed = self.closed.lock().unwrap();
        closed.iter().filter(|(span, _)| *span == name).map(|(_, fields)| fields.clone()).collect()
    }
}

/// Runs one ignored test in a process of its own, where no other test reaches its spans: one that is reached for the first time just while a
/// subscriber is made stays off for ever.
pub(crate) fn run_alone(test: &str) {
    let alone = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--test-threads=1"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&alone.stdout);
    assert!(alone.status.success() && text.contains("1 passed"), "{text}");
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    match panic.downcast_ref::<String>() {
        Some(text) => text,
        None => panic.downcast_ref::<&str>().expect("a panic with a text"),
    }
}
