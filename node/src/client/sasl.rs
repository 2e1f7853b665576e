//! Authentication from the client's side: SCRAM with the best hash that the node offers, else PLAIN.
//!
//! Invariants
//! - With SCRAM the password never leaves this process, and the node has to prove that it knows it.
//! - The number of PBKDF2 rounds that a node may ask for is bounded.
//!
//! Cost: one PBKDF2 run, tens of milliseconds.
//!
//! Does not know: users files, how a server checks.
//! Source: RFC 5802 without channel binding; KV binary protocol, SASL.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::{Sha256, Sha512};

use super::connection::{Connection, Credentials, unexpected};
use super::error::ClientError;
use crate::protocol::{Frame, Opcode, Request, Status};

/// Most rounds of PBKDF2 that a node may ask for: a hostile one could ask for hours.
const ITERATIONS_MAX: u32 = 10_000_000;

/// Random bytes of a client nonce.
const NONCE_BYTES: usize = 18;

/// The hash of a SCRAM mechanism.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hash {
    Sha512,
    Sha256,
    Sha1,
}

impl Hash {
    /// Strongest first.
    const ALL: [Hash; 3] = [Hash::Sha512, Hash::Sha256, Hash::Sha1];

    fn mechanism(self) -> &'static str {
        match self {
            Hash::Sha512 => "SCRAM-SHA512",
            Hash::Sha256 => "SCRAM-SHA256",
            Hash::Sha1 => "SCRAM-SHA1",
        }
    }

    fn hmac(self, key: &[u8], message: &[u8]) -> Vec<u8> {
        fn with<M: Mac + KeyInit>(key: &[u8], message: &[u8]) -> Vec<u8> {
            let mut mac = <M as KeyInit>::new_from_slice(key).expect("HMAC takes keys of any length");
            mac.update(message);
            mac.finalize().into_bytes().to_vec()
        }
        match self {
            Hash::Sha512 => with::<Hmac<Sha512>>(key, message),
            Hash::Sha256 => with::<Hmac<Sha256>>(key, message),
            Hash::Sha1 => with::<Hmac<Sha1>>(key, message),
        }
    }

    fn digest(self, message: &[u8]) -> Vec<u8> {
        use sha2::Digest;
        match self {
            Hash::Sha512 => Sha512::digest(message).to_vec(),
            Hash::Sha256 => Sha256::digest(message).to_vec(),
            Hash::Sha1 => Sha1::digest(message).to_vec(),
        }
    }

    fn salted_password(self, password: &str, salt: &[u8], iterations: u32) -> Vec<u8> {
        let password = password.as_bytes();
        match self {
            Hash::Sha512 => pbkdf2::pbkdf2_hmac_array::<Sha512, 64>(password, salt, iterations).to_vec(),
            Hash::Sha256 => pbkdf2::pbkdf2_hmac_array::<Sha256, 32>(password, salt, iterations).to_vec(),
            Hash::Sha1 => pbkdf2::pbkdf2_hmac_array::<Sha1, 20>(password, salt, iterations).to_vec(),
        }
    }
}

/// Proves to the node who this is.
///
/// # Errors
/// `Authentication` if it does not believe it, `ServerNotTrusted` if the node's own proof is wrong.
pub(super) fn authenticate(
    connection: &mut Connection,
    credentials: &Credentials,
) -> Result<(), ClientError> {
    let list = Request::new(Opcode::SASL_LIST_MECHS);
    let offered = connection.call(list, |frame| String::from_utf8_lossy(frame.value).into_owned())?;
    let offers = |mechanism: &str| offered.split_ascii_whitespace().any(|word| word == mechanism);
    if let Some(hash) = Hash::ALL.into_iter().find(|hash| offers(hash.mechanism())) {
        scram(connection, credentials, hash)
    } else if offers("PLAIN") {
        plain(connection, credentials)
    } else {
        Err(ClientError::NoMechanism { offered })
    }
}

fn plain(connection: &mut Connection, credentials: &Credentials) -> Result<(), ClientError> {
    let challenge = format!("\0{}\0{}", credentials.user, credentials.password);
    let request = Request::new(Opcode::SASL_AUTH).key(b"PLAIN").value(challenge.as_bytes());
    exchange(connection, request, credentials).map(|_| ())
}

fn scram(connection: &mut Connection, credentials: &Credentials, hash: Hash) -> Result<(), ClientError> {
    let nonce = STANDARD.encode(rand::random::<[u8; NONCE_BYTES]>());
    let client_first = format!("n={},r={nonce}", escape(&credentials.user));
    let mechanism = hash.mechanism().as_bytes();

    let challenge = format!("n,,{client_first}");
    let first = Request::new(Opcode::SASL_AUTH).key(mechanism).value(challenge.as_bytes());
    let server_first = exchange(connection, first, credentials)?;
    let proof = prove(hash, &credentials.password, &nonce, &client_first, &server_first)
        .map_err(|found| unexpected(Opcode::SASL_AUTH, found))?;

    let last = Request::new(Opcode::SASL_STEP).key(mechanism).value(proof.client_final.as_bytes());
    let server_final = exchange(connection, last, credentials)?;
    let expected = format!("v={}", STANDARD.encode(&proof.server_signature));
    if server_final != expected {
        let found = "its signature does not match".to_owned();
        return Err(ClientError::ServerNotTrusted { user: credentials.user.clone(), found });
    }
    Ok(())
}

/// One round trip of SASL; the node's data as text.
fn exchange(
    connection: &mut Connection,
    request: Request<'_>,
    credentials: &Credentials,
) -> Result<String, ClientError> {
    let read = |frame: &Frame<'_>| String::from_utf8_lossy(frame.value).into_owned();
    match connection.call(request, read) {
        Err(ClientError::Refused { status: Status::AUTH_ERROR, .. }) => {
            Err(ClientError::Authentication { user: credentials.user.clone() })
        }
        other => other,
    }
}

/// What a client sends last, and what it expects back.
struct Proof {
    client_final: String,
    server_signature: Vec<u8>,
}

fn prove(
    hash: Hash,
    password: &str,
    nonce: &str,
    client_first: &str,
    server_first: &str,
) -> Result<Proof, &'static str> {
    let attribute = |name| server_first.split(',').find_map(|part| part.strip_prefix(name));
    let both_nonces = attribute("r=").ok_or("the SCRAM challenge has no nonce")?;
    if both_nonces.len() <= nonce.len() || !both_nonces.starts_with(nonce) {
        return Err("the SCRAM challenge does not continue this client's nonce");
    }
    let salt = attribute("s=").and_then(|text| STANDARD.decode(text).ok());
    let salt = salt.ok_or("the SCRAM challenge has no salt in base64")?;
    let iterations = attribute("i=").and_then(|text| text.parse::<u32>().ok());
    let iterations = iterations.ok_or("the SCRAM challenge has no number of rounds")?;
    if !(1..=ITERATIONS_MAX).contains(&iterations) {
        return Err("the SCRAM challenge asks for an absurd number of rounds");
    }

    let salted = hash.salted_password(password, &salt, iterations);
    let client_key = hash.hmac(&salted, b"Client Key");
    let server_key = hash.hmac(&salted, b"Server Key");
    let without_proof = format!("c=biws,r={both_nonces}");
    let message = format!("{client_first},{server_first},{without_proof}");
    let signature = hash.hmac(&hash.digest(&client_key), message.as_bytes());
    let proof: Vec<u8> = client_key.iter().zip(&signature).map(|(key, mask)| key ^ mask).collect();
    Ok(Proof {
        client_final: format!("{without_proof},p={}", STANDARD.encode(proof)),
        server_signature: hash.hmac(&server_key, message.as_bytes()),
    })
}

/// A user name as SCRAM writes it.
fn escape(user: &str) -> String {
    user.replace('=', "=3D").replace(',', "=2C")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The exchange that the protocol's public description prints.
    #[test]
    fn the_published_exchange_gives_the_published_proof_and_signature() {
        let nonce = "d40a02e348040590";
        let server = "r=d40a02e348040590ec8ac784d46faf9d,s=fw3GRQYlFy6QEqT5y7Of4XbGaGg=,i=10";
        let proof = prove(Hash::Sha1, "pencil", nonce, "n=user,r=d40a02e348040590", server).unwrap();
        assert_eq!(
            proof.client_final,
            "c=biws,r=d40a02e348040590ec8ac784d46faf9d,p=co6kWwNhpVYuuFHWQv5VVcWrPJM="
        );
        assert_eq!(STANDARD.encode(proof.server_signature), "inZJ2d0Ms4dnENnHwPaqVfNn7DY=");
    }

    #[test]
    fn a_challenge_that_is_not_for_this_client_is_refused() {
        for server in [
            "",
            "r=other,s=AAAA,i=10",
            "r=nonce,s=AAAA,i=10",
            "r=nonceX,i=10",
            "r=nonceX,s=?,i=10",
            "r=nonceX,s=AAAA",
            "r=nonceX,s=AAAA,i=0",
            "r=nonceX,s=AAAA,i=4000000000",
        ] {
            assert!(prove(Hash::Sha256, "p", "nonce", "n=u,r=nonce", server).is_err(), "{server}");
        }
    }

    #[test]
    fn separators_in_a_user_name_are_escaped() {
        assert_eq!(escape("a=b,c"), "a=3Db=2Cc");
    }
}
