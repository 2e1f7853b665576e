//! `ringctl top`: streams, backfills, range scans and latencies of a node, live.
//!
//! `sample` is what the node says at a moment, `frame` what two samples say together, `screen` the terminal.
//!
//! Invariants
//! - However it ends, the terminal is as it was before.
//!
//! Does not know: what the numbers mean to the node.

mod frame;
mod sample;
mod screen;

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use self::frame::Frame;
use self::sample::Sample;
use self::screen::Screen;
use super::connect;
use crate::args::{GlobalArgs, TopArgs};
use crate::failure::Failure;
use crate::output::{print, print_json};

/// Exit code of a process that a second Ctrl-C ends.
const INTERRUPTED: i32 = 130;

/// How often it is looked whether somebody wants it to end.
const TICK: Duration = Duration::from_millis(50);

pub(crate) fn run(global: &GlobalArgs, args: &TopArgs) -> Result<(), Failure> {
    let mut connection = connect(global)?;
    let interval = Duration::from_secs_f64(args.interval);
    let is_once = args.once || !(global.json || io::stdout().is_terminal());
    let is_drawn = Arc::new(AtomicBool::new(false));
    let ends = ended_by_signals(&is_drawn)?;
    let mut before = Sample::ask(&mut connection)?;
    // Before the first frame nothing is drawn: what fails at once is told on a terminal as it was.
    let mut screen = None;
    loop {
        if !wait(interval, &ends) {
            return Ok(());
        }
        let now = Sample::ask(&mut connection)?;
        let frame = Frame::of(&before, &now);
        if global.json {
            print_json(&frame.to_json())?;
        } else if is_once {
            return print(|out| frame.write(out, None));
        } else {
            is_drawn.store(true, Ordering::Relaxed);
            let screen = screen.get_or_insert_with(|| Screen::begin(io::stdout()));
            screen.show(|size| {
                let mut text = Vec::new();
                writeln!(text, "ringctl top  {}  every {} s  Ctrl-C ends", global.host, args.interval)?;
                frame.write(&mut text, Some(size))?;
                Ok(text)
            })?;
        }
        if is_once {
            return Ok(());
        }
        before = now;
    }
}

/// Set by the first Ctrl-C. A second one, while the node is waited for, ends the process with the terminal as it was.
fn ended_by_signals(is_drawn: &Arc<AtomicBool>) -> Result<Arc<AtomicBool>, Failure> {
    let (ends, is_drawn) = (Arc::new(AtomicBool::new(false)), Arc::clone(is_drawn));
    let mut signals =
        Signals::new([SIGINT, SIGTERM]).map_err(|error| Failure::other("cannot listen to signals", error))?;
    let told = Arc::clone(&ends);
    std::thread::spawn(move || {
        for _ in signals.forever() {
            if told.swap(true, Ordering::Relaxed) {
                if is_drawn.load(Ordering::Relaxed) {
                    screen::give_back(&mut io::stdout());
                }
                std::process::exit(INTERRUPTED);
            }
        }
    });
    Ok(ends)
}

/// Waits; false if it is to end.
fn wait(interval: Duration, ends: &AtomicBool) -> bool {
    let until = Instant::now() + interval;
    loop {
        if ends.load(Ordering::Relaxed) {
            return false;
        }
        match until.checked_duration_since(Instant::now()) {
            None => return true,
            Some(rest) => std::thread::sleep(rest.min(TICK)),
        }
    }
}
