//! The server's end of a SASL exchange: one state machine per connection.
//!
//! Invariants
//! - At most one exchange is outstanding; anything out of turn ends it with EINVAL.
//! - Wrong user, wrong password and unknown mechanism are the same AUTH_ERROR.
//! - The server's nonce is the caller's randomness, so an exchange cannot be replayed.
//!
//! Cost: see the module's parent; an outstanding exchange keeps a few hundred bytes.
//!
//! Does not know: frames, connections, what an identity may do; the user database is an argument.

use super::mechanism::Mechanism;
use super::scram::{self, ClientFinal, ClientFirst, ScramHash, ServerFirst};
use super::user::{Credential, Role};
use super::users::Users;
use crate::protocol::{Refusal, Status};

/// Bytes of randomness in a server's nonce.
pub const NONCE_BYTES: usize = 16;

/// An authenticated user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The name.
    pub user: String,
    /// What it may do.
    pub role: Role,
}

/// What one request of an exchange led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SaslOutcome {
    /// Another round is needed; this is the value of the response.
    Continue(Vec<u8>),
    /// The user is authenticated; this is the value of the response, empty for PLAIN.
    Authenticated(Identity, Vec<u8>),
    /// It failed; the connection stays open and unauthenticated.
    Failed(Refusal),
}

impl SaslOutcome {
    /// Status of the response.
    #[must_use]
    pub fn status(&self) -> Status {
        match self {
            SaslOutcome::Continue(_) => Status::AUTH_CONTINUE,
            SaslOutcome::Authenticated(..) => Status::SUCCESS,
            SaslOutcome::Failed(refusal) => refusal.status,
        }
    }
}

const FAILED: Refusal = Refusal::new(Status::AUTH_ERROR, "Authentication failed");

/// A SCRAM exchange that waits for the client's last message.
#[derive(Debug)]
struct Outstanding {
    hash: ScramHash,
    user: String,
    /// The user's role, or `None` for a name without credential.
    role: Option<Role>,
    credential: Credential,
    gs2_header: String,
    client_first_bare: String,
    server_first: String,
    nonce: String,
}

/// The SASL state of one connection.
#[derive(Debug, Default)]
pub struct SaslServer {
    outstanding: Option<Box<Outstanding>>,
}

impl SaslServer {
    /// No exchange is outstanding.
    #[must_use]
    pub fn new() -> SaslServer {
        SaslServer::default()
    }

    /// Executes SASL_AUTH. Whatever the outcome, the caller drops the connection's old identity.
    #[must_use]
    pub fn start(
        &mut self,
        mechanism: &[u8],
        challenge: &[u8],
        users: &Users,
        nonce: [u8; NONCE_BYTES],
    ) -> SaslOutcome {
        if self.outstanding.take().is_some() {
            return SaslOutcome::Failed(Refusal::einval("An exchange was outstanding and is now dropped"));
        }
        let outcome = match Mechanism::from_name(mechanism) {
            None => Err(FAILED),
            Some(_) if challenge.is_empty() => Err(Refusal::einval("The challenge is empty")),
            Some(Mechanism::Plain) => plain(challenge, users),
            Some(Mechanism::Scram(hash)) => self.start_scram(hash, challenge, users, nonce),
        };
        outcome.unwrap_or_else(SaslOutcome::Failed)
    }

    /// Executes SASL_STEP.
    #[must_use]
    pub fn step(&mut self, mechanism: &[u8], challenge: &[u8]) -> SaslOutcome {
        let Some(outstanding) = self.outstanding.take() else {
            return SaslOutcome::Failed(Refusal::einval("No exchange is outstanding"));
        };
        if Mechanism::from_name(mechanism) != Some(Mechanism::Scram(outstanding.hash)) {
            return SaslOutcome::Failed(Refusal::einval("The exchange began with another mechanism"));
        }
        finish_scram(*outstanding, challenge).unwrap_or_else(SaslOutcome::Failed)
    }

    fn start_scram(
        &mut self,
        hash: ScramHash,
        challenge: &[u8],
        users: &Users,
        nonce: [u8; NONCE_BYTES],
    ) -> Result<SaslOutcome, Refusal> {
        let first = ClientFirst::parse(challenge).map_err(|error| Refusal::einval(error.0))?;
        let known = users.get(&first.user);
        let (role, credential) = match known.and_then(|user| Some((user.role, user.credential(hash)?))) {
            Some((role, credential)) => (Some(role), credential.clone()),
            None => (None, users.decoy(&first.user, hash)),
        };
        let nonce = format!("{}{:032x}", first.nonce, u128::from_be_bytes(nonce));
        let message =
            ServerFirst { nonce: &nonce, salt: credential.salt.clone(), iterations: credential.iterations };
        let server_first = message.encode();
        let reply = server_first.clone().into_bytes();
        self.outstanding = Some(Box::new(Outstanding {
            hash,
            role,
            credential,
            gs2_header: first.gs2_header.to_owned(),
            client_first_bare: first.bare.to_owned(),
            server_first,
            nonce,
            user: first.user,
        }));
        Ok(SaslOutcome::Continue(reply))
    }
}

fn finish_scram(outstanding: Outstanding, challenge: &[u8]) -> Result<SaslOutcome, Refusal> {
    let last = ClientFinal::parse(challenge).map_err(|error| Refusal::einval(error.0))?;
    if last.gs2_header != outstanding.gs2_header.as_bytes() {
        return Err(Refusal::einval("the channel binding is not that of the first message"));
    }
    if last.nonce != outstanding.nonce {
        return Err(Refusal::einval("the nonce is not that of this exchange"));
    }
    let Outstanding { hash, role, credential, user, .. } = outstanding;
    let message =
        scram::auth_message(&outstanding.client_first_bare, &outstanding.server_first, last.without_proof);
    let accepted = credential.keys.accepts(hash, &last.proof, &message);
    let signature = credential.keys.server_signature(hash, &message);
    match role {
        Some(role) if accepted => Ok(SaslOutcome::Authenticated(
            Identity { user, role },
            scram::server_final(&signature).into_bytes(),
        )),
        _ => Err(FAILED),
    }
}

/// `[authzid] NUL user NUL password`; one NUL after the password is tolerated.
fn plain(challenge: &[u8], users: &Users) -> Result<SaslOutcome, Refusal> {
    let malformed = Refusal::einval("The challenge is not authzid, user and password between NULs");
    let mut parts = challenge.splitn(3, |byte| *byte == 0);
    let (Some(_), Some(user), Some(password)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(malformed);
    };
    let password = password.strip_suffix(&[0]).unwrap_or(password);
    if password.contains(&0) {
        return Err(malformed);
    }
    let name = String::from_utf8_lossy(user);
    let known = users.get(&name);
    match known.and_then(|user| Some((user.role, user.strongest()?))) {
        Some((role, (hash, credential))) if credential.knows(hash, password) => {
            Ok(SaslOutcome::Authenticated(Identity { user: name.into_owned(), role }, Vec::new()))
        }
        Some(_) => Err(FAILED),
        None => {
            let hash = ScramHash::Sha512;
            let _never_fits = users.decoy(&name, hash).knows(hash, password);
            Err(FAILED)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::client::SaslClient;
    use super::super::user::User;
    use super::*;

    const NONCE: [u8; NONCE_BYTES] = [0xab; NONCE_BYTES];

    fn users() -> Users {
        let mut users = Users::empty(&mut |bytes| bytes.fill(1));
        for (name, role) in [("user", Role::Admin), ("a,b=c", Role::ReadOnly)] {
            let user = User::new(role, b"pencil", 3, &mut |bytes| bytes.fill(7)).unwrap();
            users.add(name, user).unwrap();
        }
        users
    }

    fn exchange(mechanism: Mechanism, user: &str, password: &str) -> SaslOutcome {
        let (mut server, users) = (SaslServer::new(), users());
        let mut client = SaslClient::new(mechanism, user, password, [3; 16]);
        let name = mechanism.name().as_bytes();
        match server.start(name, &client.start(), &users, NONCE) {
            SaslOutcome::Continue(reply) => {
                let outcome = server.step(name, &client.step(&reply).unwrap());
                if let SaslOutcome::Authenticated(_, reply) = &outcome {
                    client.finish(reply).unwrap();
                }
                outcome
            }
            outcome => outcome,
        }
    }

    #[test]
    fn every_mechanism_lets_a_known_user_in_and_keeps_its_role() {
        for mechanism in Mechanism::ALL {
            for (user, role) in [("user", Role::Admin), ("a,b=c", Role::ReadOnly)] {
                let outcome = exchange(mechanism, user, "pencil");
                let SaslOutcome::Authenticated(identity, _) = &outcome else {
                    panic!("{mechanism}: {outcome:?}")
                };
                assert_eq!(identity, &Identity { user: user.to_owned(), role });
                assert_eq!(outcome.status(), Status::SUCCESS);
            }
        }
    }

    #[test]
    fn wrong_password_and_unknown_user_fail_in_the_same_place_with_the_same_answer() {
        for mechanism in Mechanism::ALL {
            let wrong = exchange(mechanism, "user", "Pencil");
            assert_eq!(wrong, exchange(mechanism, "nobody", "pencil"));
            assert_eq!(wrong, SaslOutcome::Failed(FAILED));
        }
        let mut server = SaslServer::new();
        assert_eq!(server.start(b"OAUTHBEARER", b"x", &users(), NONCE), SaslOutcome::Failed(FAILED));
    }

    #[test]
    fn an_unknown_users_first_reply_has_the_shape_of_a_known_ones_and_is_stable() {
        let first = |user: &str, nonce| {
            let message = format!("n,,n={user},r=abc");
            match SaslServer::new().start(b"SCRAM-SHA512", message.as_bytes(), &users(), nonce) {
                SaslOutcome::Continue(reply) => String::from_utf8(reply).unwrap(),
                outcome => panic!("{outcome:?}"),
            }
        };
        assert_eq!(first("nobody", NONCE), first("nobody", NONCE));
        assert_eq!(first("nobody", NONCE).len(), first("user", NONCE).len());
        assert_ne!(first("nobody", NONCE), first("nobody", [1; 16]), "the nonce is fresh");
        assert!(first("user", NONCE).starts_with("r=abcabab"));
    }

    #[test]
    fn messages_out_of_turn_are_einval_and_end_the_exchange() {
        let users = users();
        let first = b"n,,n=user,r=abc";
        let mut server = SaslServer::new();
        assert_eq!(server.step(b"SCRAM-SHA1", b"x").status(), Status::EINVAL);
        assert_eq!(server.start(b"SCRAM-SHA1", first, &users, NONCE).status(), Status::AUTH_CONTINUE);
        assert_eq!(server.start(b"SCRAM-SHA1", first, &users, NONCE).status(), Status::EINVAL);
        assert_eq!(server.start(b"scram-sha1", first, &users, NONCE).status(), Status::AUTH_CONTINUE);
        assert_eq!(server.step(b"SCRAM-SHA256", b"x").status(), Status::EINVAL);
        assert_eq!(server.step(b"SCRAM-SHA1", b"x").status(), Status::EINVAL, "the exchange is gone");
    }

    #[test]
    fn malformed_challenges_are_einval() {
        let users = users();
        for (mechanism, challenge) in [
            (&b"PLAIN"[..], &b""[..]),
            (b"PLAIN", b"user"),
            (b"PLAIN", b"\0user"),
            (b"PLAIN", b"\0user\0pen\0cil"),
            (b"SCRAM-SHA1", b""),
            (b"SCRAM-SHA1", b"y,,n=user,r=abc"),
            (b"SCRAM-SHA512", b"n,,n=user"),
        ] {
            let outcome = SaslServer::new().start(mechanism, challenge, &users, NONCE);
            assert_eq!(outcome.status(), Status::EINVAL, "{:?}", String::from_utf8_lossy(challenge));
        }
        for last in ["", "c=biws,r=abc,p=AA==", "c=eSws,r={},p=AA==", "c=biws,r={},p=?"] {
            let mut server = SaslServer::new();
            let SaslOutcome::Continue(_) = server.start(b"SCRAM-SHA1", b"n,,n=user,r=abc", &users, NONCE)
            else {
                panic!()
            };
            let last = last.replace("{}", &format!("abc{}", "ab".repeat(16)));
            assert_eq!(server.step(b"SCRAM-SHA1", last.as_bytes()).status(), Status::EINVAL, "{last}");
        }
    }

    #[test]
    fn plain_ignores_the_authzid_and_tolerates_one_trailing_nul() {
        for challenge in [&b"\0user\0pencil"[..], b"someone\0user\0pencil", b"\0user\0pencil\0"] {
            let outcome = SaslServer::new().start(b"PLAIN", challenge, &users(), NONCE);
            assert_eq!(outcome.status(), Status::SUCCESS);
        }
        for challenge in [&b"\0user\0"[..], b"\0\0pencil", b"\0user\0pencil "] {
            let outcome = SaslServer::new().start(b"PLAIN", challenge, &users(), NONCE);
            assert_eq!(outcome, SaslOutcome::Failed(FAILED));
        }
    }
}
