//! Seeing: the log, the recording of spans, and the histograms of a core.
//!
//! Does not know: what it measures, how it is asked for.

mod timings;
pub mod trace;

pub use timings::{CoreTimings, NamedHistogram};

use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

use trace::{TraceControl, TraceSubscriber};

/// The filter is not one.
#[derive(Debug, thiserror::Error)]
#[error("log filter `{filter}` is not understood: {text}; write `info` or `ringbase=debug,info`")]
pub struct LogFilterError {
    filter: String,
    text: String,
}

/// Sends the log to standard error, with glommio's own warnings in it, and makes spans recordable. Call once a process; later calls only check the filter.
///
/// # Errors
/// The filter is not understood.
pub fn start_log(filter: &str) -> Result<(), LogFilterError> {
    let parsed = EnvFilter::try_new(filter)
        .map_err(|error| LogFilterError { filter: filter.to_owned(), text: error.to_string() })?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(parsed)
        .with_writer(std::io::stderr)
        .with_target(true)
        .finish();
    // This brings the bridge from the `log` crate, which glommio uses.
    let _ = TraceSubscriber::new(trace_control(), log).try_init();
    Ok(())
}

/// Controls the recording of this process's spans. Until [`start_log`] there is none that could be recorded.
pub fn trace_control() -> &'static TraceControl {
    static CONTROL: OnceLock<TraceControl> = OnceLock::new();
    CONTROL.get_or_init(TraceControl::default)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_filter_that_is_none_is_refused() {
        assert!(super::start_log("ringbase=loudly").unwrap_err().to_string().contains("loudly"));
    }
}
