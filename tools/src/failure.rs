//! Why a command did not do what it was asked to, and what the shell is told.
//!
//! Does not know: which command it was.

use std::error::Error;
use std::io;
use std::process::ExitCode;

use ringbase::client::{ClientError, LoadError};

/// The end of a command that did not succeed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The command line makes no sense.
    #[error("{0}")]
    Misuse(String),
    /// The node, or the way to it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Anything else, with what was tried.
    #[error("{what}")]
    Other {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: Box<dyn Error>,
    },
    /// Standard output cannot take more.
    #[error("cannot write the output")]
    Output(#[source] io::Error),
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Failure {
        match error {
            LoadError::Client(error) => Failure::Client(error),
            LoadError::Source(error) => {
                Failure::Other { what: "the load ended early".to_owned(), source: error.into() }
            }
        }
    }
}

impl Failure {
    pub(crate) fn misuse(text: impl Into<String>) -> Failure {
        Failure::Misuse(text.into())
    }

    pub(crate) fn other(what: impl Into<String>, source: impl Into<Box<dyn Error>>) -> Failure {
        Failure::Other { what: what.into(), source: source.into() }
    }

    /// A reader that has seen enough, such as `head`.
    fn is_closed_output(&self) -> bool {
        let source = match self {
            Failure::Output(source) | Failure::Client(ClientError::Output(source)) => source,
            Failure::Misuse(_) | Failure::Client(_) | Failure::Other { .. } => return false,
        };
        source.kind() == io::ErrorKind::BrokenPipe
    }

    /// The error with its causes, and what could be done about it, in one sentence.
    fn sentence(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        if let Failure::Client(error) = self
            && let Some(hint) = error.hint()
        {
            text.push_str("; ");
            text.push_str(hint);
        }
        text
    }

    /// Tells it on standard error; returns the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        if self.is_closed_output() {
            return ExitCode::SUCCESS;
        }
        eprintln!("error: {}", self.sentence());
        match self {
            Failure::Misuse(_) => {
                eprintln!("\nFor more information, try '--help'.");
                ExitCode::from(2)
            }
            Failure::Client(_) | Failure::Other { .. } | Failure::Output(_) => ExitCode::FAILURE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sentence_tells_what_failed_why_and_what_to_do() {
        let source = io::Error::from(io::ErrorKind::ConnectionRefused);
        let failure = Failure::Client(ClientError::Connect { address: "127.0.0.1:1".to_owned(), source });
        assert_eq!(
            failure.sentence(),
            "cannot connect to 127.0.0.1:1: connection refused; is a node running? try `ringbase serve`"
        );
    }

    #[test]
    fn a_reader_that_has_seen_enough_is_no_failure() {
        let broken = || io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(Failure::Output(broken()).is_closed_output());
        assert!(Failure::Client(ClientError::Output(broken())).is_closed_output());
        assert!(!Failure::Output(io::Error::from(io::ErrorKind::StorageFull)).is_closed_output());
    }
}
