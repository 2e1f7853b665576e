//! Why a demonstration failed.
//!
//! Does not know: exit codes.

use std::io;
use std::path::PathBuf;

use crate::client::source::{FormError, SourceError};
use crate::client::{ClientError, LoadError};

/// Why a demonstration failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DemoError {
    /// `--from` is none of the forms.
    #[error("--from cannot be used")]
    From(#[from] FormError),
    /// Nothing to load by default.
    #[error(
        "there are no documents: neither the sources that cargo downloaded nor files in {}; name some with --from dir:PATH",
        .0.display()
    )]
    NoDocuments(PathBuf),
    /// No place for the node's data.
    #[error("no directory for the node's data: {0}; name one with --scratch")]
    NoScratch(String),
    /// A file or directory of the demonstration.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The node did not start, or ended.
    #[error("the node {what}{}", Log(.log))]
    Node {
        /// What happened.
        what: String,
        /// The end of its log.
        log: String,
    },
    /// The documents cannot be read.
    #[error("cannot read the documents")]
    Source(#[from] SourceError),
    /// Loading failed.
    #[error("loading failed")]
    Load(#[from] LoadError),
    /// A conversation with the node failed.
    #[error("{during} failed")]
    Client {
        /// Which part of the demonstration.
        during: &'static str,
        /// Why.
        #[source]
        source: ClientError,
    },
    /// What came back is not what was stored.
    #[error("{0}")]
    Mismatch(String),
}

impl DemoError {
    pub(super) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> DemoError {
        let path = path.into();
        move |source| DemoError::Io { what, path, source }
    }

    pub(super) fn client(during: &'static str) -> impl FnOnce(ClientError) -> DemoError {
        move |source| DemoError::Client { during, source }
    }
}

/// The end of a log, indented below a sentence.
struct Log<'a>(&'a str);

impl std::fmt::Display for Log<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        write!(f, "; the end of its log:")?;
        self.0.lines().try_for_each(|line| write!(f, "\n  | {line}"))
    }
}
