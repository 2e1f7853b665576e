//! Why a measurement did not come about.
//!
//! Does not know: how it is shown.

use std::io;
use std::path::{Path, PathBuf};

use ringbase::client::{ClientError, LoadError};

/// What can go wrong in a benchmark.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    /// A file or directory.
    #[error("cannot {what} {}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The operating system.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The node under test.
    #[error("the node {found}; its log is {}{log_end}", log.display())]
    Node {
        /// What it did.
        found: String,
        /// Where its log is.
        log: PathBuf,
        /// The last lines of the log, each on a line of its own.
        log_end: String,
    },
    /// The conversation with the node.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Loading.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// An engine under test.
    #[error("cannot {what} {name}")]
    Engine {
        /// Which.
        name: &'static str,
        /// What was tried.
        what: &'static str,
        /// What it said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A plot.
    #[error("cannot draw {}: {text}", path.display())]
    Plot {
        /// Which.
        path: PathBuf,
        /// Why not.
        text: String,
    },
    /// The options.
    #[error("{0}")]
    Misuse(String),
    /// What was measured is not what should have been.
    #[error("the measurement does not hold: {0}")]
    Unsound(String),
}

impl BenchError {
    /// For `map_err`: a file could not be dealt with.
    pub(crate) fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BenchError {
        let path = path.to_owned();
        move |source| BenchError::File { what, path, source }
    }

    /// For `map_err`: the system refused something.
    pub(crate) fn system(what: &'static str) -> impl FnOnce(io::Error) -> BenchError {
        move |source| BenchError::System { what, source }
    }

    /// For `map_err`: an engine refused something.
    pub(crate) fn engine(
        name: &'static str,
        what: &'static str,
    ) -> impl Fn(Box<dyn std::error::Error + Send + Sync>) -> BenchError {
        move |source| BenchError::Engine { name, what, source }
    }
}
