//! What can go wrong between this client and a node.
//!
//! Invariants
//! - A message says what was attempted and what was found; the cause is its `source`.
//! - [`ClientError::hint`] is what a person can do about it; it is not part of the message.
//!
//! Does not know: command lines, exit codes.

use std::io;
use std::time::Duration;

use super::records::RecordError;
use crate::auth::SaslClientError;
use crate::protocol::{CloseReason, EncodeError, Opcode, Status};
use ringbase_storage::types::VbId;

/// Why a conversation with a node did not give what was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The address is not `HOST:PORT`, or its name has no address.
    #[error("cannot find an address for {address}")]
    Resolve {
        /// What was asked for.
        address: String,
        /// What the system's resolver said.
        #[source]
        source: io::Error,
    },
    /// No TCP connection came about.
    #[error("cannot connect to {address}")]
    Connect {
        /// Where to.
        address: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A connection broke.
    #[error("connection to {address} failed while {during}")]
    Io {
        /// Where to.
        address: String,
        /// What was going on.
        during: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The node closed the connection although an answer was due.
    #[error("{address} closed the connection while {during}")]
    Closed {
        /// Who.
        address: String,
        /// What was going on.
        during: String,
    },
    /// No answer in time.
    #[error("no answer from {address} within {} s while {during}", .waited.as_secs_f64())]
    Timeout {
        /// Who.
        address: String,
        /// What was going on.
        during: String,
        /// How long the silence was.
        waited: Duration,
    },
    /// The peer's bytes are no frames of the protocol.
    #[error("{address} does not speak the protocol of a node")]
    NotProtocol {
        /// Who.
        address: String,
        /// What is wrong with the bytes.
        #[source]
        source: CloseReason,
    },
    /// A frame that answers nothing that was asked, or not in the shape the protocol says.
    #[error("unexpected answer to {opcode}: {found}")]
    UnexpectedAnswer {
        /// The request.
        opcode: Opcode,
        /// What came instead.
        found: String,
    },
    /// The node said no.
    #[error("{opcode} was refused with {status} ({}){}", .status.description(), Colon(.context))]
    Refused {
        /// The request.
        opcode: Opcode,
        /// The answer.
        status: Status,
        /// The node's own explanation, empty if it gave none.
        context: String,
    },
    /// The node kept asking for a retry until patience ended.
    #[error("{opcode} was still refused with {status} after {retries} tries in {} s", .waited.as_secs())]
    RetriesExhausted {
        /// The request.
        opcode: Opcode,
        /// The last answer.
        status: Status,
        /// How often it was sent again.
        retries: u32,
        /// Since the first try.
        waited: Duration,
    },
    /// User, password or mechanism were not accepted.
    #[error("the node does not accept user {user:?} with this password")]
    Authentication {
        /// Who wanted in.
        user: String,
    },
    /// The node knows no mechanism that this client knows.
    #[error("the node offers the mechanisms {offered:?}, none of which this client knows")]
    NoMechanism {
        /// What it offers.
        offered: String,
    },
    /// The node could not prove that it knows the password.
    #[error("the node failed to prove that it knows the password of {user:?}")]
    ServerNotTrusted {
        /// The user.
        user: String,
        /// What was wrong with its messages.
        #[source]
        source: SaslClientError,
    },
    /// There is no such bucket.
    #[error("the node has no bucket {bucket:?}, or the user may not see it")]
    NoBucket {
        /// Its name.
        bucket: String,
    },
    /// The cluster map cannot be used.
    #[error("the node's cluster map cannot be used: {found}")]
    ClusterMap {
        /// What is wrong with it.
        found: String,
    },
    /// A scan sent something that is not a record.
    #[error("{vbucket}: the scan sent a damaged record")]
    Record {
        /// Whose scan.
        vbucket: VbId,
        /// What is wrong with it.
        #[source]
        source: RecordError,
    },
    /// A request that the protocol cannot express.
    #[error("this request does not fit into a frame")]
    Encode(#[from] EncodeError),
    /// The caller's own output failed.
    #[error("cannot write the output")]
    Output(#[source] io::Error),
}

/// Shows `: text`, or nothing for an empty text.
struct Colon<'a>(&'a str);

impl std::fmt::Display for Colon<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, ": {}", self.0) }
    }
}

impl ClientError {
    /// The status, if the node answered with one.
    #[must_use]
    pub fn status(&self) -> Option<Status> {
        match self {
            ClientError::Refused { status, .. } | ClientError::RetriesExhausted { status, .. } => {
                Some(*status)
            }
            ClientError::NoBucket { .. } => Some(Status::KEY_ENOENT),
            ClientError::Authentication { .. } => Some(Status::AUTH_ERROR),
            ClientError::Resolve { .. }
            | ClientError::Connect { .. }
            | ClientError::Io { .. }
            | ClientError::Closed { .. }
            | ClientError::Timeout { .. }
            | ClientError::NotProtocol { .. }
            | ClientError::UnexpectedAnswer { .. }
            | ClientError::NoMechanism { .. }
            | ClientError::ServerNotTrusted { .. }
            | ClientError::ClusterMap { .. }
            | ClientError::Record { .. }
            | ClientError::Encode(_)
            | ClientError::Output(_) => None,
        }
    }

    /// Whether a node that is just starting could be the reason.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            ClientError::Connect { .. }
            | ClientError::Io { .. }
            | ClientError::Closed { .. }
            | ClientError::Timeout { .. } => true,
            _ => self.status().is_some_and(is_temporary),
        }
    }

    /// What a person could try, if there is something to try.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            ClientError::Resolve { .. } => "an address looks like 127.0.0.1:11210",
            ClientError::Connect { .. } => "is a node running? try `ringbase serve`",
            ClientError::Authentication { .. } => "users are made with `ringctl user add`",
            ClientError::NoBucket { .. } => "name one with `--bucket`",
            ClientError::NotProtocol { .. } => "is this the node's data port?",
            _ => match self.status()? {
                Status::EACCESS => "authenticate with `--user` and `--password-stdin`",
                Status::NO_BUCKET => "name a bucket with `--bucket`",
                _ => return None,
            },
        })
    }
}

/// Whether the same request may well succeed a little later.
#[must_use]
pub fn is_temporary(status: Status) -> bool {
    matches!(
        status,
        Status::ETMPFAIL
            | Status::EBUSY
            | Status::ENOMEM
            | Status::EWOULDTHROTTLE
            | Status::SYNC_WRITE_IN_PROGRESS
            | Status::SYNC_WRITE_RE_COMMIT_IN_PROGRESS
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_reads_as_one_sentence_with_or_without_a_context() {
        let refused = |context: &str| {
            ClientError::Refused {
                opcode: Opcode::GET,
                status: Status::KEY_ENOENT,
                context: context.to_owned(),
            }
            .to_string()
        };
        let plain = refused("");
        assert!(plain.starts_with("Get was refused with KEY_ENOENT (") && plain.ends_with(')'), "{plain}");
        assert!(refused("no such key").ends_with("): no such key"));
    }

    #[test]
    fn a_refused_connection_tells_how_to_start_a_node() {
        let error = ClientError::Connect {
            address: "127.0.0.1:1".to_owned(),
            source: io::Error::from(io::ErrorKind::ConnectionRefused),
        };
        assert_eq!(error.to_string(), "cannot connect to 127.0.0.1:1");
        assert_eq!(error.hint(), Some("is a node running? try `ringbase serve`"));
        assert!(error.may_pass());
    }

    #[test]
    fn only_temporary_statuses_are_worth_a_retry() {
        for status in [Status::ETMPFAIL, Status::EBUSY, Status::ENOMEM] {
            assert!(is_temporary(status));
        }
        for status in [Status::KEY_ENOENT, Status::E2BIG, Status::EACCESS, Status::NOT_MY_VBUCKET] {
            assert!(!is_temporary(status));
        }
    }
}
