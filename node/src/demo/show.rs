//! How the demonstration is shown: results on standard output, progress on standard error.
//!
//! On a terminal progress is a bar; elsewhere it is a line every few seconds.
//!
//! Does not know: what is being done.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a bar moves.
const TICK: Duration = Duration::from_millis(100);

/// How often a line is written where there is no terminal.
const LINE_TICK: Duration = Duration::from_secs(2);

/// Bytes for people.
pub(super) fn bytes(bytes: u64) -> String {
    indicatif::DecimalBytes(bytes).to_string()
}

/// A number for people.
pub(super) fn count(count: u64) -> String {
    HumanCount(count).to_string()
}

/// Megabytes a second.
pub(super) fn megabytes_per_second(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / 1e6 / time.as_secs_f64().max(1e-9)
}

/// Runs `work` on a thread and shows how far it is; `done` tells that in the unit of `total`.
pub(super) fn with_progress<T: Send>(
    what: &str,
    total: Option<u64>,
    done: impl Fn() -> u64,
    work: impl FnOnce() -> T + Send,
) -> T {
    let bar = if std::io::stderr().is_terminal() {
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
        let template = if total.is_some() {
            "{msg} {bar:30} {human_pos}/{human_len} {per_sec} {eta} left"
        } else {
            "{msg} {human_pos} {per_sec}"
        };
        bar.set_style(ProgressStyle::with_template(template).expect("the template is valid"));
        bar.set_message(what.to_owned());
        Some(bar)
    } else {
        None
    };
    let result = std::thread::scope(|scope| {
        let shower = std::thread::current();
        let working = scope.spawn(move || {
            let result = work();
            shower.unpark();
            result
        });
        let mut line_due = Instant::now() + LINE_TICK;
        while !working.is_finished() {
            match &bar {
                Some(bar) => bar.set_position(done()),
                None if Instant::now() >= line_due => {
                    line_due += LINE_TICK;
                    let of = total.map_or(String::new(), |total| format!(" of {}", count(total)));
                    eprintln!("{what}: {}{of}", count(done()));
                }
                None => {}
            }
            std::thread::park_timeout(TICK);
        }
        working.join()
    });
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
