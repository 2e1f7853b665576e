//! The recorder through `tracing` itself, and its dumps through the checker.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use tracing::{Instrument, Level, debug_span, info, info_span, span, trace, trace_span};
use tracing_subscriber::EnvFilter;

use super::check::{Imbalance, TraceEvent, TraceFile};
use super::*;

/// What was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

/// Runs `body` on a thread of its own with a subscriber of its own.
fn with_filter<T: Send>(filter: &str, body: impl FnOnce(&TraceControl, &Log) -> T + Send) -> T {
    let (control, log) = (TraceControl::default(), Log::default());
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_writer(move || writer.clone())
        .with_ansi(false)
        .finish();
    let subscriber = TraceSubscriber::new(&control, subscriber);
    std::thread::scope(|scope| {
        let named = std::thread::Builder::new().name("core7".to_owned());
        let thread = named
            .spawn_scoped(scope, || tracing::subscriber::with_default(subscriber, || body(&control, &log)));
        thread.unwrap().join().unwrap()
    })
}

fn recorded(config: &str, body: impl FnOnce() + Send) -> TraceFile {
    with_filter("off", |control, _| {
        control.set_config(config.parse().unwrap());
        control.start();
        body();
        control.stop();
        TraceFile::parse(control.dump_now().as_bytes()).unwrap()
    })
}

fn of<'a>(file: &'a TraceFile, name: &str) -> Vec<&'a TraceEvent> {
    file.events.iter().filter(|event| event.name == name).collect()
}

fn phases(file: &TraceFile, name: &str) -> String {
    of(file, name).iter().map(|event| event.phase.as_str()).collect()
}

#[test]
fn a_span_is_a_slice_with_its_arguments_its_thread_and_its_category() {
    let file = recorded("", || {
        let span = debug_span!(target: "test::scan", "scan", vb = 7_u16, result = tracing::field::Empty);
        span.in_scope(|| {
            info!(target: "test::scan", items = 3, "yielded");
            span.record("result", "end");
        });
    });
    assert_eq!(phases(&file, "scan"), "BE");
    let [begin, end] = of(&file, "scan")[..] else { panic!("two events") };
    assert_eq!((begin.args["vb"].as_u64(), begin.category.as_str()), (Some(7), "test::scan"));
    assert_eq!(end.args["result"], "end");
    assert!(begin.at_us <= end.at_us);
    let instant = file.events.iter().find(|event| event.phase == "i").unwrap();
    assert_eq!(
        (instant.args["message"].as_str(), instant.args["items"].as_i64()),
        (Some("yielded"), Some(3))
    );
    assert_eq!(file.facts.threads[0].name, "core7");
    assert_eq!((file.imbalances(), file.dropped(), file.facts.open_spans), (Vec::new(), 0, 0));
}

/// T1.7: however a span is left, its end is on the same track.
#[test]
fn panic_early_return_and_a_dropped_future_leave_balanced_spans() {
    fn early(is_early: bool) -> u32 {
        let _entered = trace_span!("early").entered();
        if is_early {
            return 1;
        }
        2
    }
    let file = recorded("", || {
        let panicked = std::panic::catch_unwind(|| {
            let _outer = info_span!("outer").entered();
            let _inner = info_span!("inner").entered();
            std::panic::resume_unwind(Box::new("left by a panic"));
        });
        assert!(panicked.is_err());
        assert_eq!((early(true), early(false)), (1, 2));
        let mut dropped = Box::pin(std::future::pending::<()>().instrument(debug_span!("dropped", vb = 3)));
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..2 {
            assert_eq!(dropped.as_mut().poll(&mut context), Poll::Pending);
        }
        drop(dropped);
        let never_polled = std::future::ready(()).instrument(debug_span!("never polled"));
        drop(never_polled);
        drop(debug_span!("a life"));
    });
    assert_eq!(file.imbalances(), Vec::new());
    for (name, expected) in [("outer", "BE"), ("inner", "BE"), ("early", "BEBE"), ("a life", "be")] {
        assert_eq!(phases(&file, name), expected, "{name}");
    }
    let dropped = phases(&file, "dropped");
    assert!(dropped.starts_with("bBEBE") && dropped.ends_with('e'), "{dropped}");
    assert_eq!(file.facts.open_spans, 0);
}

#[test]
fn the_checker_finds_what_has_no_end_and_what_has_no_beginning() {
    let open = recorded("", || std::mem::forget(info_span!("left open").entered()));
    assert_eq!(open.imbalances().len(), 2, "{:?}", open.imbalances());
    assert!(
        open.imbalances()
            .iter()
            .all(|one| matches!(one, Imbalance::Unclosed { name, .. } if name == "left open"))
    );
    assert_eq!(open.facts.open_spans, 1);
    let mut file = recorded("", || drop(info_span!("cut").entered()));
    assert_eq!(file.imbalances(), Vec::new());
    file.events.retain(|event| event.phase != "B");
    let [Imbalance::Unopened { name, .. }] = &file.imbalances()[..] else { panic!("one end too many") };
    assert_eq!(name, "cut");
}

/// T1.8: texts are copied, numbers are exact.
#[test]
fn texts_survive_their_owner_and_integers_are_exact_to_64_bits() {
    let file = recorded("", || {
        let name = String::from("connection-17");
        let span = info_span!("numbers", name = name.as_str(), shown = %name, exact = (1_u64 << 53) + 1, low = i64::MIN,
            small = -3_i8, part = 0.5, is = true);
        drop(name);
        drop(span.entered());
        info_span!("long", text = "ä".repeat(100), after = 5).in_scope(|| {});
    });
    let begin = of(&file, "numbers")[0];
    assert_eq!(begin.args["name"], "connection-17");
    assert_eq!(begin.args["shown"], "connection-17");
    assert_eq!(begin.args["exact"], "9007199254740993");
    assert_eq!(begin.args["low"], i64::MIN.to_string());
    assert_eq!((begin.args["small"].as_i64(), begin.args["part"].as_f64()), (Some(-3), Some(0.5)));
    let long = of(&file, "long")[0];
    assert_eq!(long.args["text"], "ä".repeat(31) + "…");
    assert_eq!((begin.args["is"].as_bool(), long.args["after"].as_u64()), (Some(true), Some(5)));
}

#[test]
fn arguments_that_find_no_room_are_counted() {
    let file = recorded("", || {
        let text = "x".repeat(60);
        info_span!("full", a = %text, b = %text, c = %text, d = %text, e = 1, f = 2).in_scope(|| {});
    });
    let args: Vec<_> = of(&file, "full").into_iter().flat_map(|event| event.args.clone()).collect();
    assert!(args.iter().filter(|(_, value)| *value == "x".repeat(60)).count() == 3, "{args:?}");
    assert!(args.iter().any(|(name, value)| name == "args_lost" && *value == 3), "{args:?}");
}

/// T1.12: what was overwritten is reported, and the rest is balanced.
#[test]
fn an_overwritten_ring_says_how_much_was_dropped_and_invents_nothing() {
    let file = recorded("buffer-size:4096", || {
        let outer = info_span!("outer", id = 1).entered();
        let life = info_span!("life");
        for number in 0..100 {
            info_span!("short", number).in_scope(|| ());
        }
        drop(life);
        drop(outer);
    });
    let recorded = 2 + 200 + 2;
    assert_eq!(file.facts.threads[0].events, 32);
    assert_eq!(file.dropped() + 32, recorded);
    assert_eq!(file.imbalances(), Vec::new());
    assert!(file.facts.begins_overwritten >= 2, "{:?}", file.facts);
    assert_eq!(phases(&file, "outer"), "be", "when it began is known");
    assert_eq!(of(&file, "life")[0].args["begin_overwritten"], true);
    let newest = of(&file, "short").into_iter().filter_map(|event| event.args.get("number")?.as_u64()).max();
    assert_eq!(newest, Some(99));
}

#[test]
fn spans_left_in_another_order_are_still_nested() {
    let file = recorded("", || {
        let (one, two) = (info_span!("one"), info_span!("two"));
        let (one, two) = (one.entered(), two.entered());
        drop(one);
        drop(two);
    });
    assert_eq!(file.imbalances(), Vec::new());
    assert_eq!((phases(&file, "one").as_str(), phases(&file, "two").as_str()), ("BE", "BEBE"));
}

/// T1.13, the machinery: what has the same flow is linked, across threads.
#[test]
fn a_flow_goes_from_its_first_span_to_its_last_event() {
    let file = with_filter("off", |control, _| {
        control.start();
        info_span!("request", flow = 77_u64).in_scope(|| ());
        let subscriber = tracing::dispatcher::get_default(Clone::clone);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                tracing::dispatcher::with_default(&subscriber, || {
                    let late = info_span!("read", flow = tracing::field::Empty);
                    late.record("flow", 77_u64);
                    late.in_scope(|| ());
                });
            });
        });
        info!(flow = 77_u64, "sent");
        TraceFile::parse(control.dump_now().as_bytes()).unwrap()
    });
    let flow: Vec<_> = file.events.iter().filter(|event| event.name == "flow").collect();
    assert_eq!(flow.iter().map(|event| event.phase.as_str()).collect::<String>(), "stf");
    assert!(flow.iter().all(|event| event.id == "0x4d"));
    assert_eq!((flow[0].tid, flow[2].tid), (1, 1));
    assert_eq!(flow[1].tid, 2);
}

#[test]
fn only_enabled_categories_are_recorded_and_a_site_nobody_wants_is_off() {
    with_filter("info", |control, log| {
        let sites = || {
            let on = span!(target: "cat::on", Level::TRACE, "on");
            let off = span!(target: "cat::off", Level::TRACE, "off");
            trace!(target: "cat::off", "event");
            info!(target: "cat::off", "logged");
            (on.is_disabled(), off.is_disabled())
        };
        assert_eq!(sites(), (true, true));
        control.set_config("enabled-categories:cat::*;disabled-categories:*off".parse().unwrap());
        control.start();
        assert_eq!(sites(), (false, true));
        control.stop();
        assert_eq!(sites(), (true, true));
        let file = TraceFile::parse(control.dump_now().as_bytes()).unwrap();
        assert_eq!((phases(&file, "on").as_str(), phases(&file, "off").as_str()), ("be", ""));
        assert_eq!(log.text().matches("logged").count(), 3);
        assert!(!log.text().contains("event"));
    });
}

#[test]
fn the_log_sees_spans_and_events_as_if_nothing_was_recorded() {
    let log_of = |is_recording: bool| {
        with_filter("debug", move |control, log| {
            if is_recording {
                control.start();
            }
            let outer = debug_span!("outer", vb = 1, late = tracing::field::Empty);
            let clone = outer.clone();
            outer.in_scope(|| {
                outer.record("late", 9);
                let inner = info_span!("inner");
                let _guard = inner.entered();
                info!("inside");
                trace!("too fine");
            });
            drop(outer);
            info_span!(parent: &clone, "child").in_scope(|| info!("in the child"));
            assert!(tracing::Span::current().is_none());
            clone.in_scope(|| assert_eq!(tracing::Span::current().id(), clone.id()));
            drop(clone);
            let text = log.text();
            text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect::<Vec<_>>()
        })
    };
    let alone = log_of(false);
    assert_eq!(alone, log_of(true));
    assert!(alone[0].contains("outer{vb=1 late=9}:inner") && alone[0].contains("inside"), "{alone:?}");
    assert!(alone[1].contains("outer{vb=1 late=9}:child") && alone.len() == 2, "{alone:?}");
}

#[test]
fn a_span_is_recorded_to_its_end_after_the_stop_and_not_in_the_next_recording() {
    with_filter("off", |control, _| {
        let dump = || TraceFile::parse(control.dump_now().as_bytes()).unwrap();
        control.start();
        let (first, second) = (info_span!("first"), info_span!("second").entered());
        control.stop();
        first.in_scope(|| drop(info_span!("too late").entered()));
        drop(first);
        let stopped = dump();
        assert_eq!(phases(&stopped, "first"), "BE");
        assert_eq!((phases(&stopped, "too late").as_str(), stopped.facts.open_spans), ("", 1));
        control.start();
        drop(second);
        drop(info_span!("new").entered());
        let restarted = dump();
        assert_eq!((phases(&restarted, "second").as_str(), phases(&restarted, "new").as_str()), ("", "BE"));
        assert_eq!(restarted.imbalances(), Vec::new());
    });
}

/// T1.11: dumps while other threads record are whole, and hold the newest events.
#[test]
fn dumps_beside_recording_threads_parse_and_hold_the_newest_events() {
    with_filter("off", |control, _| {
        control.set_config("buffer-size:65536".parse().unwrap());
        control.start();
        let subscriber = tracing::dispatcher::get_default(Clone::clone);
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    tracing::dispatcher::with_default(&subscriber, || {
                        let mut number = 0_u64;
                        while !done.load(std::sync::atomic::Ordering::Relaxed) {
                            number += 1;
                            info_span!("busy", number).in_scope(|| ());
                        }
                    });
                });
            }
            for _ in 0..20 {
                let file = TraceFile::parse(control.dump_now().as_bytes()).unwrap();
                assert!(of(&file, "busy").iter().all(|event| "BEbe".contains(&event.phase)));
            }
            while control.status().threads.iter().filter(|thread| thread.events > 1_000).count() < 2 {
                std::thread::yield_now();
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        let status = control.status();
        let file = TraceFile::parse(control.dump_now().as_bytes()).unwrap();
        assert_eq!(file.imbalances(), Vec::new());
        let events: u64 = status.threads.iter().map(|thread| thread.events).sum();
        assert_eq!(file.dropped() + file.facts.threads.iter().map(|one| one.events).sum::<u64>(), events);
        for thread in &file.facts.threads {
            assert_eq!(thread.events, 512, "a full ring");
        }
    });
}

#[test]
fn dumps_are_made_by_a_thread_kept_by_name_and_bounded() {
    let control = TraceControl::default();
    let mut ids = Vec::new();
    for _ in 0..DUMPS_MAX + 1 {
        let dump = control.begin_dump().unwrap();
        while matches!(dump.state(), DumpState::Making) {
            std::thread::yield_now();
        }
        ids.push(dump.id());
    }
    assert_eq!(control.dump_ids(), ids[1..]);
    assert!(control.dump(ids[0]).is_none());
    TraceFile::parse(control.dump(ids[1]).unwrap().as_bytes()).unwrap();
    assert!(control.clear_dump(ids[1]) && !control.clear_dump(ids[1]));
    assert_eq!(control.dump_ids(), ids[2..]);
}
