//! A progress bar on standard error beside work that takes a while.
//!
//! Does not know: what the work is.

use std::io::{self, IsTerminal};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often the bar moves.
const TICK: Duration = Duration::from_millis(100);

/// Whether anybody would see a bar.
pub(crate) fn is_seen() -> bool {
    io::stderr().is_terminal()
}

/// A bar that ends at `total`, if that is known; hidden if nobody would see it.
pub(crate) fn bar(total: Option<u64>, template: &str) -> ProgressBar {
    if !is_seen() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
    bar.set_style(ProgressStyle::with_template(template).expect("the template is valid"));
    bar
}

/// Does `work` on a thread of its own, and lets `show` move the bar until it is done.
pub(crate) fn show_while<T: Send>(
    bar: &ProgressBar,
    show: impl Fn(&ProgressBar),
    work: impl FnOnce() -> T + Send,
) -> T {
    std::thread::scope(|scope| {
        let shower = std::thread::current();
        let working = scope.spawn(move || {
            let result = work();
            shower.unpark();
            result
        });
        while !working.is_finished() {
            if !bar.is_hidden() {
                show(bar);
            }
            std::thread::park_timeout(TICK);
        }
        bar.finish_and_clear();
        working.join().expect("the work reports errors instead of panicking")
    })
}
