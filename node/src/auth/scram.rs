//! SCRAM without channel binding: key derivation, proofs and the four messages.
//!
//! ```text
//! SaltedPassword  = PBKDF2-HMAC(password, salt, iterations)
//! ClientKey       = HMAC(SaltedPassword, "Client Key")       StoredKey = H(ClientKey)
//! ServerKey       = HMAC(SaltedPassword, "Server Key")
//! AuthMessage     = client-first-bare "," server-first "," client-final-without-proof
//! ClientProof     = ClientKey XOR HMAC(StoredKey, AuthMessage)
//! ServerSignature = HMAC(ServerKey, AuthMessage)
//! ```
//!
//! Passwords and names are used as the bytes they are, without SASLprep, as clients of this protocol do.
//!
//! Cost: `ScramKeys::derive` runs the iterations, everything else is a few hashes.
//!
//! Does not know: users, files, the state of an exchange.
//! Source: RFC 5802, RFC 7677.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};
use subtle::ConstantTimeEq;

/// The hash under a SCRAM mechanism.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ScramHash {
    /// 20 bytes; for old clients.
    Sha1,
    /// 32 bytes.
    Sha256,
    /// 64 bytes.
    Sha512,
}

/// Runs `$body` with `$digest` naming the hash's type.
macro_rules! with_digest {
    ($hash:expr, $digest:ident => $body:expr) => {
        match $hash {
            ScramHash::Sha1 => {
                type $digest = Sha1;
                $body
            }
            ScramHash::Sha256 => {
                type $digest = Sha256;
                $body
            }
            ScramHash::Sha512 => {
                type $digest = Sha512;
                $body
            }
        }
    };
}

impl ScramHash {
    /// Every hash, strongest first.
    pub const ALL: [ScramHash; 3] = [ScramHash::Sha512, ScramHash::Sha256, ScramHash::Sha1];

    /// Name of the mechanism that uses it.
    #[must_use]
    pub fn mechanism_name(self) -> &'static str {
        match self {
            ScramHash::Sha1 => "SCRAM-SHA1",
            ScramHash::Sha256 => "SCRAM-SHA256",
            ScramHash::Sha512 => "SCRAM-SHA512",
        }
    }

    /// Bytes of a digest and of a key.
    #[must_use]
    pub fn digest_bytes(self) -> usize {
        match self {
            ScramHash::Sha1 => 20,
            ScramHash::Sha256 => 32,
            ScramHash::Sha512 => 64,
        }
    }

    fn digest(self, bytes: &[u8]) -> Vec<u8> {
        with_digest!(self, D => D::digest(bytes).to_vec())
    }

    /// HMAC of `message` under `key`.
    #[must_use]
    pub fn hmac(self, key: &[u8], message: &[u8]) -> Vec<u8> {
        with_digest!(self, D => {
            let mut mac = Hmac::<D>::new_from_slice(key).expect("HMAC takes a key of any length");
            mac.update(message);
            mac.finalize().into_bytes().to_vec()
        })
    }

    fn salted_password(self, password: &[u8], salt: &[u8], iterations: u32) -> Vec<u8> {
        let mut salted = vec![0; self.digest_bytes()];
        with_digest!(self, D => pbkdf2::pbkdf2_hmac::<D>(password, salt, iterations, &mut salted));
        salted
    }
}

/// The two keys that a server stores for a user.
#[derive(Clone, PartialEq, Eq)]
pub struct ScramKeys {
    /// H(ClientKey): checks a client's proof.
    pub stored_key: Vec<u8>,
    /// Signs the server's answer.
    pub server_key: Vec<u8>,
}

impl std::fmt::Debug for ScramKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ScramKeys")
    }
}

fn client_key(hash: ScramHash, salted_password: &[u8]) -> Vec<u8> {
    hash.hmac(salted_password, b"Client Key")
}

impl ScramKeys {
    /// Derives the keys from a password; this is the expensive part.
    #[must_use]
    pub fn derive(hash: ScramHash, password: &[u8], salt: &[u8], iterations: u32) -> ScramKeys {
        let salted = hash.salted_password(password, salt, iterations);
        ScramKeys {
            stored_key: hash.digest(&client_key(hash, &salted)),
            server_key: hash.hmac(&salted, b"Server Key"),
        }
    }

    /// Whether `proof` shows that the client knows the password, in constant time.
    #[must_use]
    pub fn accepts(&self, hash: ScramHash, proof: &[u8], auth_message: &[u8]) -> bool {
        let signature = hash.hmac(&self.stored_key, auth_message);
        let length_fits = proof.len() == signature.len();
        let client_key: Vec<u8> = signature.iter().zip(proof).map(|(a, b)| a ^ b).collect();
        let same: bool = hash.digest(&client_key).ct_eq(&self.stored_key).into();
        length_fits & same
    }

    /// The server's proof that it knows the user.
    #[must_use]
    pub fn server_signature(&self, hash: ScramHash, auth_message: &[u8]) -> Vec<u8> {
        hash.hmac(&self.server_key, auth_message)
    }

    /// Whether two pairs are the same, in constant time.
    #[must_use]
    pub fn same_as(&self, other: &ScramKeys) -> bool {
        (self.stored_key.ct_eq(&other.stored_key) & self.server_key.ct_eq(&other.server_key)).into()
    }
}

/// What a client needs for its last message: proof and the signature it then expects.
pub(super) fn client_proof(
    hash: ScramHash,
    password: &[u8],
    salt: &[u8],
    iterations: u32,
    auth_message: &[u8],
) -> (Vec<u8>, Vec<u8>) {
    let salted = hash.salted_password(password, salt, iterations);
    let client_key = client_key(hash, &salted);
    let signature = hash.hmac(&hash.digest(&client_key), auth_message);
    let proof = client_key.iter().zip(&signature).map(|(a, b)| a ^ b).collect();
    let server_key = hash.hmac(&salted, b"Server Key");
    (proof, hash.hmac(&server_key, auth_message))
}

/// A message that does not have the form of its place in the exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct MessageError(pub &'static str);

/// The client's first message: `n,,n=<user>,r=<nonce>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientFirst<'a> {
    /// Everything up to and with the second comma; `n,,` unless an authorisation identity is named.
    pub gs2_header: &'a str,
    /// What follows the header; part of the AuthMessage.
    pub bare: &'a str,
    /// The user, unescaped.
    pub user: String,
    /// The client's nonce: printable, without comma.
    pub nonce: &'a str,
}

impl<'a> ClientFirst<'a> {
    /// Reads the message.
    ///
    /// # Errors
    /// Not UTF-8, channel binding asked for, a member missing or malformed.
    pub fn parse(message: &'a [u8]) -> Result<ClientFirst<'a>, MessageError> {
        let text = std::str::from_utf8(message).map_err(|_| MessageError("the message is not UTF-8"))?;
        if !text.starts_with("n,") {
            return Err(MessageError("channel binding is not supported"));
        }
        let header_bytes = text[2..].find(',').ok_or(MessageError("the message ends in its header"))? + 3;
        let (gs2_header, bare) = text.split_at(header_bytes);
        let user = bare.strip_prefix("n=").ok_or(MessageError("the user is missing"))?;
        let (user, nonce) = user.split_once(",r=").ok_or(MessageError("the nonce is missing"))?;
        let nonce = nonce.split(',').next().unwrap_or(nonce);
        if nonce.is_empty() || !nonce.bytes().all(is_nonce_byte) {
            return Err(MessageError("the nonce is empty or not printable"));
        }
        Ok(ClientFirst { gs2_header, bare, user: unescape(user)?, nonce })
    }
}

/// Nonces of some clients contain spaces, so these are taken too.
fn is_nonce_byte(byte: u8) -> bool {
    matches!(byte, 0x20..=0x7e) && byte != b','
}

/// Writes a user name for a message.
pub(super) fn escape(user: &str) -> String {
    user.replace('=', "=3D").replace(',', "=2C")
}

fn unescape(text: &str) -> Result<String, MessageError> {
    let mut parts = text.split('=');
    let mut user = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (character, rest) = match (part.strip_prefix("2C"), part.strip_prefix("3D")) {
            (Some(rest), _) => (',', rest),
            (None, Some(rest)) => ('=', rest),
            (None, None) => return Err(MessageError("the user has an unknown escape")),
        };
        user.push(character);
        user.push_str(rest);
    }
    if text.contains(',') {
        return Err(MessageError("the user has an unescaped comma"));
    }
    Ok(user)
}

/// The server's first message: `r=<both nonces>,s=<salt>,i=<iterations>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFirst<'a> {
    /// The client's nonce and the server's.
    pub nonce: &'a str,
    /// The user's salt.
    pub salt: Vec<u8>,
    /// The user's iterations.
    pub iterations: u32,
}

impl<'a> ServerFirst<'a> {
    /// Reads the message.
    ///
    /// # Errors
    /// Not UTF-8, a member missing or malformed.
    pub fn parse(message: &'a [u8]) -> Result<ServerFirst<'a>, MessageError> {
        let text = std::str::from_utf8(message).map_err(|_| MessageError("the message is not UTF-8"))?;
        let (nonce, rest) = text
            .strip_prefix("r=")
            .and_then(|rest| rest.split_once(",s="))
            .ok_or(MessageError("nonce or salt is missing"))?;
        let (salt, iterations) = rest.split_once(",i=").ok_or(MessageError("the iterations are missing"))?;
        let iterations = iterations.split(',').next().unwrap_or(iterations);
        Ok(ServerFirst {
            nonce,
            salt: STANDARD.decode(salt).map_err(|_| MessageError("the salt is not base64"))?,
            iterations: iterations.parse().map_err(|_| MessageError("the iterations are not a number"))?,
        })
    }

    /// Writes the message.
    #[must_use]
    pub fn encode(&self) -> String {
        format!("r={},s={},i={}", self.nonce, STANDARD.encode(&self.salt), self.iterations)
    }
}

/// The client's last message: `c=<header>,r=<both nonces>,p=<proof>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientFinal<'a> {
    /// Everything before the proof; part of the AuthMessage.
    pub without_proof: &'a str,
    /// The header of the first message again.
    pub gs2_header: Vec<u8>,
    /// Both nonces again.
    pub nonce: &'a str,
    /// ClientProof.
    pub proof: Vec<u8>,
}

impl<'a> ClientFinal<'a> {
    /// Reads the message.
    ///
    /// # Errors
    /// Not UTF-8, a member missing or malformed.
    pub fn parse(message: &'a [u8]) -> Result<ClientFinal<'a>, MessageError> {
        let text = std::str::from_utf8(message).map_err(|_| MessageError("the message is not UTF-8"))?;
        let (without_proof, proof) = text.rsplit_once(",p=").ok_or(MessageError("the proof is missing"))?;
        let (binding, nonce) = without_proof
            .strip_prefix("c=")
            .and_then(|rest| rest.split_once(",r="))
            .ok_or(MessageError("channel binding or nonce is missing"))?;
        let nonce = nonce.split(',').next().unwrap_or(nonce);
        Ok(ClientFinal {
            without_proof,
            gs2_header: STANDARD.decode(binding).map_err(|_| MessageError("the binding is not base64"))?,
            nonce,
            proof: STANDARD.decode(proof).map_err(|_| MessageError("the proof is not base64"))?,
        })
    }
}

/// What both sides sign.
#[must_use]
pub(super) fn auth_message(client_first_bare: &str, server_first: &str, without_proof: &str) -> Vec<u8> {
    [client_first_bare, server_first, without_proof].join(",").into_bytes()
}

/// Writes the client's last message.
#[must_use]
pub(super) fn client_final(without_proof: &str, proof: &[u8]) -> String {
    format!("{without_proof},p={}", STANDARD.encode(proof))
}

/// Writes the server's last message.
#[must_use]
pub(super) fn server_final(signature: &[u8]) -> String {
    format!("v={}", STANDARD.encode(signature))
}

/// Reads the server's last message.
///
/// # Errors
/// It reports a failure, or is malformed.
pub(super) fn parse_server_final(message: &[u8]) -> Result<Vec<u8>, MessageError> {
    let signature = message.strip_prefix(b"v=").ok_or(MessageError("the signature is missing"))?;
    STANDARD.decode(signature).map_err(|_| MessageError("the signature is not base64"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One printed exchange: hash, client-first-bare, server-first, client-final-without-proof, proof, signature.
    fn check_exchange(
        hash: ScramHash,
        bare: &str,
        server_first: &str,
        without_proof: &str,
        proof: &str,
        signature: &str,
    ) {
        let server = ServerFirst::parse(server_first.as_bytes()).unwrap();
        assert_eq!(server.encode(), server_first);
        let message = auth_message(bare, server_first, without_proof);
        let (made, expected) = client_proof(hash, b"pencil", &server.salt, server.iterations, &message);
        assert_eq!(
            (STANDARD.encode(&made), STANDARD.encode(&expected)),
            (proof.to_owned(), signature.to_owned())
        );
        let keys = ScramKeys::derive(hash, b"pencil", &server.salt, server.iterations);
        assert!(keys.accepts(hash, &made, &message));
        assert_eq!(keys.server_signature(hash, &message), expected);
        let wrong = ScramKeys::derive(hash, b"Pencil", &server.salt, server.iterations);
        assert!(!wrong.accepts(hash, &made, &message));
    }

    /// RFC 7677, section 3.
    #[test]
    fn the_printed_exchange_of_scram_sha256_is_reproduced() {
        let nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        check_exchange(
            ScramHash::Sha256,
            "n=user,r=rOprNGfwEbeRWgbNEkqO",
            &format!("r={nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"),
            &format!("c=biws,r={nonce}"),
            "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
            "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
        );
    }

    /// RFC 5802, section 5.
    #[test]
    fn the_printed_exchange_of_scram_sha1_is_reproduced() {
        let nonce = "fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j";
        check_exchange(
            ScramHash::Sha1,
            "n=user,r=fyko+d2lbbFgONRv9qkxdawL",
            &format!("r={nonce},s=QSXCR+Q6sek8bf92,i=4096"),
            &format!("c=biws,r={nonce}"),
            "v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
            "rmF9pqV8S7suAoZWja4dJRkFsKQ=",
        );
    }

    #[test]
    fn a_proof_of_another_length_or_with_one_wrong_bit_is_refused() {
        let keys = ScramKeys::derive(ScramHash::Sha256, b"pencil", b"salt", 1);
        let (proof, _) = client_proof(ScramHash::Sha256, b"pencil", b"salt", 1, b"message");
        let accepts = |proof: &[u8]| keys.accepts(ScramHash::Sha256, proof, b"message");
        assert!(accepts(&proof));
        assert!(!accepts(&proof[1..]) && !accepts(&[&proof[..], &[0]].concat()) && !accepts(&[]));
        let mut wrong = proof.clone();
        wrong[31] ^= 1;
        assert!(!accepts(&wrong));
        assert!(keys.same_as(&keys.clone()));
    }

    #[test]
    fn a_first_message_has_user_and_nonce_and_no_channel_binding() {
        let first = ClientFirst::parse(b"n,,n=a=2Cb=3Dc,r=0x32 0x40 0xs,x=1").unwrap();
        assert_eq!((first.gs2_header, first.user.as_str(), first.nonce), ("n,,", "a,b=c", "0x32 0x40 0xs"));
        assert_eq!(first.bare, "n=a=2Cb=3Dc,r=0x32 0x40 0xs,x=1");
        assert_eq!(escape("a,b=c"), "a=2Cb=3Dc");
        assert_eq!(ClientFirst::parse(b"n,a=admin,n=u,r=x").unwrap().gs2_header, "n,a=admin,");
        for refused in [
            &b""[..],
            b"n",
            b"n,",
            b"n,,",
            b"y,,n=u,r=x",
            b"p=tls-unique,,n=u,r=x",
            b"n,,n=u",
            b"n,,n=u,r=",
            b"n,,r=x,n=u",
            b"n,,n=a=2,r=x",
            b"n,,n=a=,r=x",
            b"n,,n=u,r=a\x01b",
            b"n,,n=u,r=\xc3\xa9",
            b"n,,n=\xff,r=x",
            b"n,,m=ext,n=u,r=x",
        ] {
            assert!(ClientFirst::parse(refused).is_err(), "{:?}", String::from_utf8_lossy(refused));
        }
    }

    #[test]
    fn later_messages_are_refused_when_a_member_is_missing_or_no_base64() {
        for refused in
            [&b""[..], b"r=x", b"r=x,s=!!,i=1", b"r=x,s=AA==,i=x", b"r=x,s=AA==", b"s=AA==,i=1", b"\xff"]
        {
            assert!(ServerFirst::parse(refused).is_err());
        }
        for refused in
            [&b""[..], b"c=biws,r=x", b"r=x,p=AA==", b"c=biws,p=AA==", b"c=!,r=x,p=AA==", b"c=biws,r=x,p=!"]
        {
            assert!(ClientFinal::parse(refused).is_err());
        }
        let last = ClientFinal::parse(b"c=biws,r=xy,p=AQI=").unwrap();
        assert_eq!((last.without_proof, last.nonce, last.proof), ("c=biws,r=xy", "xy", vec![1, 2]));
        assert_eq!(last.gs2_header, b"n,,");
        assert!(parse_server_final(b"e=other-error").is_err());
        assert_eq!(parse_server_final(server_final(&[1, 2]).as_bytes()), Ok(vec![1, 2]));
    }
}
