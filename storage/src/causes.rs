//! An error with all that has led to it, in one line: for logs and statistics.
//!
//! Does not know: which errors there are.

use std::error::Error;

/// The text of an error, then of each of its causes that the text does not hold yet.
#[must_use]
pub fn whole(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
