//! The SASL mechanisms, by name and by strength.
//!
//! Does not know: their messages.

use std::fmt;

use super::scram::ScramHash;

/// The answer to SASL_LIST_MECHS, strongest first.
pub const MECHANISM_LIST: &str = "SCRAM-SHA512 SCRAM-SHA256 SCRAM-SHA1 PLAIN";

/// How a user proves who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mechanism {
    /// Challenge and response; the password stays with the client.
    Scram(ScramHash),
    /// The password itself.
    Plain,
}

impl Mechanism {
    /// Every mechanism, strongest first.
    pub const ALL: [Mechanism; 4] = [
        Mechanism::Scram(ScramHash::Sha512),
        Mechanism::Scram(ScramHash::Sha256),
        Mechanism::Scram(ScramHash::Sha1),
        Mechanism::Plain,
    ];

    /// The name on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Mechanism::Scram(hash) => hash.mechanism_name(),
            Mechanism::Plain => "PLAIN",
        }
    }

    /// The mechanism with this name, in any letter case.
    #[must_use]
    pub fn from_name(name: &[u8]) -> Option<Mechanism> {
        Mechanism::ALL.into_iter().find(|mechanism| mechanism.name().as_bytes().eq_ignore_ascii_case(name))
    }

    /// The strongest mechanism in a server's list that this build knows.
    #[must_use]
    pub fn strongest_of(list: &str) -> Option<Mechanism> {
        let offered = |mechanism: &Mechanism| list.split_whitespace().any(|name| name == mechanism.name());
        Mechanism::ALL.into_iter().find(offered)
    }
}

impl fmt::Display for Mechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_names_every_mechanism_strongest_first() {
        assert_eq!(Mechanism::ALL.map(Mechanism::name).join(" "), MECHANISM_LIST);
        for mechanism in Mechanism::ALL {
            assert_eq!(Mechanism::from_name(mechanism.name().to_lowercase().as_bytes()), Some(mechanism));
        }
        assert_eq!(Mechanism::from_name(b"OAUTHBEARER"), None);
    }

    #[test]
    fn a_client_takes_the_strongest_that_both_know() {
        let hash = |hash| Some(Mechanism::Scram(hash));
        assert_eq!(Mechanism::strongest_of(MECHANISM_LIST), hash(ScramHash::Sha512));
        assert_eq!(Mechanism::strongest_of("PLAIN OAUTHBEARER SCRAM-SHA1"), hash(ScramHash::Sha1));
        assert_eq!(Mechanism::strongest_of("PLAIN"), Some(Mechanism::Plain));
        assert_eq!(Mechanism::strongest_of("GSSAPI"), None);
    }
}
