//! The client's end of a SASL exchange.
//!
//! Invariants
//! - With SCRAM the password never leaves the client, and the server's proof is checked.
//!
//! Cost: SCRAM runs the server's iterations once, at most [`ITERATIONS_MAX`].
//!
//! Does not know: sockets, frames.

use super::mechanism::Mechanism;
use super::scram::{self, MessageError, ScramHash, ServerFirst};
use super::user::ITERATIONS_MAX;

/// Why a client gives up an exchange.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SaslClientError {
    /// A message of the server is malformed.
    #[error("malformed message of the server: {0}")]
    Malformed(#[from] MessageError),
    /// The nonce does not begin with ours: a replay.
    #[error("the server's nonce does not continue ours")]
    Nonce,
    /// More work than is reasonable, or none.
    #[error("the server asks for {found} iterations, 1 to {ITERATIONS_MAX} are accepted")]
    Iterations {
        /// How many it asks for.
        found: u32,
    },
    /// The server does not know the user's keys.
    #[error("the server's signature is wrong: it does not know this user")]
    Signature,
    /// The mechanism has no such message.
    #[error("the server sent a message out of turn")]
    OutOfTurn,
}

/// One exchange.
#[derive(Debug)]
pub struct SaslClient {
    mechanism: Mechanism,
    user: String,
    password: String,
    nonce: String,
    expected_signature: Option<Vec<u8>>,
}

impl SaslClient {
    /// An exchange for `user`; `nonce` is fresh randomness.
    #[must_use]
    pub fn new(mechanism: Mechanism, user: &str, password: &str, nonce: [u8; 16]) -> SaslClient {
        SaslClient::with_nonce(mechanism, user, password, format!("{:032x}", u128::from_be_bytes(nonce)))
    }

    /// An exchange whose nonce is given as text, printable and without comma.
    #[must_use]
    pub fn with_nonce(mechanism: Mechanism, user: &str, password: &str, nonce: String) -> SaslClient {
        let (user, password) = (user.to_owned(), password.to_owned());
        SaslClient { mechanism, user, password, nonce, expected_signature: None }
    }

    /// The mechanism: the key of both requests.
    #[must_use]
    pub fn mechanism(&self) -> Mechanism {
        self.mechanism
    }

    fn client_first_bare(&self) -> String {
        format!("n={},r={}", scram::escape(&self.user), self.nonce)
    }

    /// The value of SASL_AUTH.
    #[must_use]
    pub fn start(&self) -> Vec<u8> {
        match self.mechanism {
            Mechanism::Plain => [&b""[..], self.user.as_bytes(), self.password.as_bytes()].join(&0),
            Mechanism::Scram(_) => format!("n,,{}", self.client_first_bare()).into_bytes(),
        }
    }

    /// The value of SASL_STEP, after AUTH_CONTINUE with `reply`.
    ///
    /// # Errors
    /// Give the exchange up.
    pub fn step(&mut self, reply: &[u8]) -> Result<Vec<u8>, SaslClientError> {
        let Mechanism::Scram(hash) = self.mechanism else { return Err(SaslClientError::OutOfTurn) };
        let server = ServerFirst::parse(reply)?;
        if !server.nonce.starts_with(&self.nonce) || server.nonce.len() == self.nonce.len() {
            return Err(SaslClientError::Nonce);
        }
        if !(1..=ITERATIONS_MAX).contains(&server.iterations) {
            return Err(SaslClientError::Iterations { found: server.iterations });
        }
        Ok(self.last_message(hash, &server, &String::from_utf8_lossy(reply)))
    }

    fn last_message(&mut self, hash: ScramHash, server: &ServerFirst<'_>, server_first: &str) -> Vec<u8> {
        let without_proof = format!("c=biws,r={}", server.nonce);
        let message = scram::auth_message(&self.client_first_bare(), server_first, &without_proof);
        let (proof, signature) =
            scram::client_proof(hash, self.password.as_bytes(), &server.salt, server.iterations, &message);
        self.expected_signature = Some(signature);
        scram::client_final(&without_proof, &proof).into_bytes()
    }

    /// Checks the value of the successful response; empty for PLAIN.
    ///
    /// # Errors
    /// `Signature`: do not trust this server.
    pub fn finish(&mut self, reply: &[u8]) -> Result<(), SaslClientError> {
        match (self.mechanism, self.expected_signature.take()) {
            (Mechanism::Plain, _) => Ok(()),
            (Mechanism::Scram(_), Some(expected)) if scram::parse_server_final(reply)? == expected => Ok(()),
            (Mechanism::Scram(_), Some(_)) => Err(SaslClientError::Signature),
            (Mechanism::Scram(_), None) => Err(SaslClientError::OutOfTurn),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The exchange printed in the protocol's description.
    #[test]
    fn the_worked_exchange_is_reproduced() {
        let mechanism = Mechanism::Scram(ScramHash::Sha1);
        let mut client = SaslClient::with_nonce(mechanism, "user", "pencil", "d40a02e348040590".to_owned());
        assert_eq!(client.start(), b"n,,n=user,r=d40a02e348040590");
        let reply = b"r=d40a02e348040590ec8ac784d46faf9d,s=fw3GRQYlFy6QEqT5y7Of4XbGaGg=,i=10";
        let last = client.step(reply).unwrap();
        let expected = "c=biws,r=d40a02e348040590ec8ac784d46faf9d,p=co6kWwNhpVYuuFHWQv5VVcWrPJM=";
        assert_eq!(String::from_utf8(last).unwrap(), expected);
        assert_eq!(client.finish(b"v=inZJ2d0Ms4dnENnHwPaqVfNn7DY="), Ok(()));
    }

    #[test]
    fn a_server_that_cheats_is_found_out() {
        let mechanism = Mechanism::Scram(ScramHash::Sha256);
        let client = || SaslClient::with_nonce(mechanism, "user", "pencil", "abc".to_owned());
        assert_eq!(client().step(b"r=xyz,s=AA==,i=1"), Err(SaslClientError::Nonce));
        assert_eq!(client().step(b"r=abc,s=AA==,i=1"), Err(SaslClientError::Nonce));
        assert_eq!(client().step(b"r=abcd,s=AA==,i=0"), Err(SaslClientError::Iterations { found: 0 }));
        assert!(matches!(
            client().step(b"r=abcd,s=AA==,i=4294967295"),
            Err(SaslClientError::Iterations { .. })
        ));
        assert!(matches!(client().step(b"e=no"), Err(SaslClientError::Malformed(_))));
        assert_eq!(client().finish(b"v=AA=="), Err(SaslClientError::OutOfTurn));
        let mut client = client();
        client.step(b"r=abcd,s=AA==,i=1").unwrap();
        assert_eq!(client.finish(b"v=AA=="), Err(SaslClientError::Signature));
        let mut plain = SaslClient::new(Mechanism::Plain, "u", "p", [0; 16]);
        assert_eq!(plain.start(), b"\0u\0p");
        assert_eq!(plain.step(b""), Err(SaslClientError::OutOfTurn));
        assert_eq!(plain.finish(b""), Ok(()));
    }
}
