//! One user: a role, and for each SCRAM mechanism salt, iterations and keys.
//!
//! Invariants
//! - A user has keys of at least one mechanism, each of its hash's length.
//! - Salt is not empty, iterations are within 1..=[`ITERATIONS_MAX`].
//!
//! Cost: making a user derives three pairs of keys, milliseconds each.
//!
//! Does not know: files, exchanges.

use std::fmt;
use std::str::FromStr;

use super::scram::{ScramHash, ScramKeys};

/// Iterations of new keys. RFC 7677 asks for at least as many; PLAIN runs them on the server.
pub const ITERATIONS_DEFAULT: u32 = 4096;

/// Most iterations that are accepted in a users file or from a server: more would only stall.
pub const ITERATIONS_MAX: u32 = 10_000_000;

/// Bytes of salt of new keys.
pub const SALT_BYTES: usize = 16;

/// Longest user name, in bytes.
pub const USER_NAME_BYTES_MAX: usize = 128;

/// What a user may do. Ordered: each role may do everything that the one before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Read documents and statistics, scan.
    ReadOnly,
    /// Also change documents.
    ReadWrite,
    /// Also change settings.
    Admin,
}

impl Role {
    /// The name in files and on command lines.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Role::ReadOnly => "read-only",
            Role::ReadWrite => "read-write",
            Role::Admin => "admin",
        }
    }

    /// Whether documents may be changed.
    #[must_use]
    #[inline]
    pub fn may_write(self) -> bool {
        self >= Role::ReadWrite
    }

    /// Whether settings may be changed.
    #[must_use]
    #[inline]
    pub fn may_administer(self) -> bool {
        self >= Role::Admin
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A text is not a role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown role {found:?}, known are admin, read-write, read-only")]
pub struct ParseRoleError {
    found: String,
}

impl FromStr for Role {
    type Err = ParseRoleError;

    fn from_str(text: &str) -> Result<Role, ParseRoleError> {
        [Role::Admin, Role::ReadWrite, Role::ReadOnly]
            .into_iter()
            .find(|role| role.name() == text)
            .ok_or_else(|| ParseRoleError { found: text.to_owned() })
    }
}

/// What a server stores of one user for one mechanism.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// Random bytes, public.
    pub salt: Vec<u8>,
    /// PBKDF2 iterations, public.
    pub iterations: u32,
    /// The keys, secret.
    pub keys: ScramKeys,
}

/// Why there cannot be such a user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// The name cannot be used.
    #[error("a user name has 1 to {USER_NAME_BYTES_MAX} bytes and no control characters, found {found:?}")]
    Name {
        /// The name.
        found: String,
    },
    /// No password.
    #[error("the password is empty")]
    EmptyPassword,
    /// A NUL byte ends a password in PLAIN.
    #[error("the password contains a NUL byte")]
    NulInPassword,
    /// The iterations are out of range.
    #[error("iterations must be 1 to {ITERATIONS_MAX}, found {found}")]
    Iterations {
        /// The number.
        found: u32,
    },
}

/// One user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// What it may do.
    pub role: Role,
    pub(super) sha512: Option<Credential>,
    pub(super) sha256: Option<Credential>,
    pub(super) sha1: Option<Credential>,
}

/// Whether `name` can be a user's.
pub(super) fn check_name(name: &str) -> Result<(), UserError> {
    let is_bad = name.is_empty() || name.len() > USER_NAME_BYTES_MAX || name.chars().any(char::is_control);
    if is_bad { Err(UserError::Name { found: name.to_owned() }) } else { Ok(()) }
}

impl User {
    /// Makes a user who knows `password`; `random` fills the salts.
    ///
    /// # Errors
    /// `EmptyPassword`, `NulInPassword`, `Iterations`: the caller's input.
    pub fn new(
        role: Role,
        password: &[u8],
        iterations: u32,
        random: &mut dyn FnMut(&mut [u8]),
    ) -> Result<User, UserError> {
        if password.is_empty() {
            return Err(UserError::EmptyPassword);
        }
        if password.contains(&0) {
            return Err(UserError::NulInPassword);
        }
        if !(1..=ITERATIONS_MAX).contains(&iterations) {
            return Err(UserError::Iterations { found: iterations });
        }
        let mut credential = |hash| {
            let mut salt = vec![0; SALT_BYTES];
            random(&mut salt);
            let keys = ScramKeys::derive(hash, password, &salt, iterations);
            Some(Credential { salt, iterations, keys })
        };
        Ok(User {
            role,
            sha512: credential(ScramHash::Sha512),
            sha256: credential(ScramHash::Sha256),
            sha1: credential(ScramHash::Sha1),
        })
    }

    /// What is stored for a mechanism.
    #[must_use]
    pub fn credential(&self, hash: ScramHash) -> Option<&Credential> {
        match hash {
            ScramHash::Sha512 => self.sha512.as_ref(),
            ScramHash::Sha256 => self.sha256.as_ref(),
            ScramHash::Sha1 => self.sha1.as_ref(),
        }
    }

    pub(super) fn credential_mut(&mut self, hash: ScramHash) -> &mut Option<Credential> {
        match hash {
            ScramHash::Sha512 => &mut self.sha512,
            ScramHash::Sha256 => &mut self.sha256,
            ScramHash::Sha1 => &mut self.sha1,
        }
    }

    /// The strongest credential, with its hash: the one that PLAIN is checked against.
    #[must_use]
    pub fn strongest(&self) -> Option<(ScramHash, &Credential)> {
        ScramHash::ALL.into_iter().find_map(|hash| Some((hash, self.credential(hash)?)))
    }
}

impl Credential {
    /// Whether `password` is the one the keys were derived from. Runs the iterations.
    #[must_use]
    pub fn knows(&self, hash: ScramHash, password: &[u8]) -> bool {
        self.keys.same_as(&ScramKeys::derive(hash, password, &self.salt, self.iterations))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counting() -> impl FnMut(&mut [u8]) {
        let mut next = 0u8;
        move |bytes| {
            bytes.fill_with(|| {
                next = next.wrapping_add(1);
                next
            })
        }
    }

    #[test]
    fn a_new_user_has_its_own_salt_for_each_mechanism_and_knows_only_its_password() {
        let user = User::new(Role::Admin, b"secret", 2, &mut counting()).unwrap();
        let salts: Vec<_> =
            ScramHash::ALL.iter().map(|hash| user.credential(*hash).unwrap().salt.clone()).collect();
        assert!(salts[0] != salts[1] && salts[1] != salts[2]);
        for hash in ScramHash::ALL {
            let credential = user.credential(hash).unwrap();
            assert!(credential.knows(hash, b"secret") && !credential.knows(hash, b"Secret"));
            assert_eq!(credential.keys.stored_key.len(), hash.digest_bytes());
        }
        assert_eq!(user.strongest().map(|(hash, _)| hash), Some(ScramHash::Sha512));
        assert!(!format!("{user:?}").contains("stored_key"), "keys are not shown");
    }

    #[test]
    fn input_that_makes_no_user_is_named() {
        let make =
            |password: &[u8], iterations| User::new(Role::Admin, password, iterations, &mut counting()).err();
        assert_eq!(make(b"", 1), Some(UserError::EmptyPassword));
        assert_eq!(make(b"a\0b", 1), Some(UserError::NulInPassword));
        assert_eq!(make(b"a", 0), Some(UserError::Iterations { found: 0 }));
        assert_eq!(make(b"a", ITERATIONS_MAX + 1), Some(UserError::Iterations { found: ITERATIONS_MAX + 1 }));
        assert!(
            check_name("").is_err() && check_name("a\n").is_err() && check_name(&"x".repeat(129)).is_err()
        );
        assert!(check_name("Zoë, the first=best").is_ok());
    }

    #[test]
    fn roles_are_ordered_and_named() {
        for role in [Role::Admin, Role::ReadWrite, Role::ReadOnly] {
            assert_eq!(role.name().parse(), Ok(role));
        }
        assert!(Role::Admin.may_administer() && Role::Admin.may_write());
        assert!(Role::ReadWrite.may_write() && !Role::ReadWrite.may_administer());
        assert!(!Role::ReadOnly.may_write());
        assert!("root".parse::<Role>().unwrap_err().to_string().contains("read-write"));
    }
}
