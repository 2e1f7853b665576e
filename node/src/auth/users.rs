//! All users, and the file that keeps them.
//!
//! JSON, version 1:
//!
//! ```text
//! {"version":1,"decoy_secret":"<base64>","users":{"alice":{"role":"admin","scram":{
//!   "SCRAM-SHA512":{"salt":"<base64>","iterations":4096,"stored_key":"<base64>","server_key":"<base64>"}, ...}}}}
//! ```
//!
//! Invariants
//! - The file is replaced as a whole: written beside it, synced, renamed. A reader sees the old one or the new one.
//! - It is created readable by its owner alone, and refused if others may read it.
//! - An unknown user gets a [`Credential`] too: made from the file's decoy secret and the name, so that it stays the
//!   same across connections and restarts, and no password fits it.
//!
//! Two programs that change the file at the same moment both succeed, and the later one wins.
//!
//! Does not know: exchanges, what roles may do.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::scram::{ScramHash, ScramKeys};
use super::user::{self, Credential, ITERATIONS_DEFAULT, ITERATIONS_MAX, Role, SALT_BYTES, User, UserError};

/// Version of the file's format.
const FORMAT_VERSION: u32 = 1;

/// Largest file that is read, in bytes: about 20,000 users.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Bytes of the decoy secret.
pub const DECOY_SECRET_BYTES: usize = 32;

/// Name of the user of a node without users file.
pub const DEVELOPMENT_USER: &str = "Administrator";

/// Its password; such a node listens on loopback only.
pub const DEVELOPMENT_PASSWORD: &[u8] = b"password";

/// Why users could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UsersError {
    /// The file system said no.
    #[error("cannot {action} the users file {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Others could read the stored keys.
    #[error("the users file {path} has mode {mode:03o}, others may use it; run: chmod o= {path}")]
    Permissions {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is too large to be a users file.
    #[error("the users file {path} has more than {FILE_BYTES_MAX} bytes")]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// It is not JSON of the expected form.
    #[error("the users file {path} is malformed")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// Its version is not known.
    #[error("the users file {path} has version {found}, this build reads version {FORMAT_VERSION}")]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// Something in it makes no sense.
    #[error("the users file {path} has an unusable entry: {what} of user {user:?}")]
    Entry {
        /// The file.
        path: PathBuf,
        /// Whose entry.
        user: String,
        /// What is wrong.
        what: &'static str,
    },
    /// The user is there already.
    #[error("user {name:?} exists; remove it first")]
    Exists {
        /// The name.
        name: String,
    },
    /// The user is not there.
    #[error("there is no user {name:?}")]
    Unknown {
        /// The name.
        name: String,
    },
    /// There cannot be such a user.
    #[error("no such user can be made")]
    User(#[from] UserError),
}

/// The users a node knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Users {
    users: BTreeMap<String, User>,
    decoy_secret: [u8; DECOY_SECRET_BYTES],
}

impl Users {
    /// No users yet; `random` fills the decoy secret.
    #[must_use]
    pub fn empty(random: &mut dyn FnMut(&mut [u8])) -> Users {
        let mut decoy_secret = [0; DECOY_SECRET_BYTES];
        random(&mut decoy_secret);
        Users { users: BTreeMap::new(), decoy_secret }
    }

    /// The users of a node without users file: [`DEVELOPMENT_USER`] with the role admin.
    #[must_use]
    pub fn development(random: &mut dyn FnMut(&mut [u8])) -> Users {
        let mut users = Users::empty(random);
        let user = User::new(Role::Admin, DEVELOPMENT_PASSWORD, ITERATIONS_DEFAULT, random)
            .expect("the development password is a legal one");
        users.users.insert(DEVELOPMENT_USER.to_owned(), user);
        users
    }

    /// The user with this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&User> {
        self.users.get(name)
    }

    /// Names and users, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &User)> {
        self.users.iter().map(|(name, user)| (name.as_str(), user))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// Adds a user.
    ///
    /// # Errors
    /// `Exists`, or `User` for a name that cannot be used.
    pub fn add(&mut self, name: &str, user: User) -> Result<(), UsersError> {
        user::check_name(name)?;
        if self.users.contains_key(name) {
            return Err(UsersError::Exists { name: name.to_owned() });
        }
        self.users.insert(name.to_owned(), user);
        Ok(())
    }

    /// Removes a user.
    ///
    /// # Errors
    /// `Unknown`.
    pub fn remove(&mut self, name: &str) -> Result<User, UsersError> {
        self.users.remove(name).ok_or_else(|| UsersError::Unknown { name: name.to_owned() })
    }

    /// What an exchange shows for a name that has no credential for `hash`: salt and iterations like those of a real
    /// user, always the same for the same name, and keys that no password fits.
    #[must_use]
    pub fn decoy(&self, name: &str, hash: ScramHash) -> Credential {
        let derived = |label: &str, bytes: usize| {
            let message = [label, hash.mechanism_name(), name].join("\0");
            let mut derived = ScramHash::Sha512.hmac(&self.decoy_secret, message.as_bytes());
            derived.truncate(bytes);
            derived
        };
        let iterations = self
            .users
            .values()
            .find_map(|user| user.credential(hash))
            .map_or(ITERATIONS_DEFAULT, |credential| credential.iterations);
        Credential {
            salt: derived("salt", SALT_BYTES),
            iterations,
            keys: ScramKeys {
                stored_key: derived("stored key", hash.digest_bytes()),
                server_key: derived("server key", hash.digest_bytes()),
            },
        }
    }

    /// Reads the file at `path`.
    ///
    /// # Errors
    /// Everything but `Exists`, `Unknown` and `User`; each names the file.
    pub fn load(path: &Path) -> Result<Users, UsersError> {
        let io_error = |action| move |source| UsersError::Io { action, path: path.to_owned(), source };
        let file = File::open(path).map_err(io_error("open"))?;
        let mode = file.metadata().map_err(io_error("examine"))?.permissions().mode() & 0o777;
        if mode & 0o007 != 0 {
            return Err(UsersError::Permissions { path: path.to_owned(), mode });
        }
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(io_error("read"))?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(UsersError::TooLarge { path: path.to_owned() });
        }
        decode(&bytes, path)
    }

    /// Replaces the file at `path`, which need not exist.
    ///
    /// # Errors
    /// `Io`; the old file is still there then.
    pub fn save(&self, path: &Path) -> Result<(), UsersError> {
        let io_error = |action| move |source| UsersError::Io { action, path: path.to_owned(), source };
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let mut beside = tempfile::Builder::new()
            .prefix(".users-")
            .permissions(fs::Permissions::from_mode(0o600))
            .tempfile_in(directory)
            .map_err(io_error("write beside"))?;
        beside.write_all(&encode(self)).map_err(io_error("write"))?;
        beside.as_file().sync_all().map_err(io_error("sync"))?;
        beside.persist(path).map_err(|error| io_error("replace")(error.error))?;
        let directory = File::open(directory).map_err(io_error("sync the directory of"))?;
        directory.sync_all().map_err(io_error("sync the directory of"))
    }
}

/// Fills `bytes` from the operating system's generator.
pub fn os_random(bytes: &mut [u8]) {
    rand::fill(bytes);
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileJson {
    version: u32,
    decoy_secret: String,
    users: BTreeMap<String, UserJson>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UserJson {
    role: String,
    scram: BTreeMap<String, CredentialJson>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CredentialJson {
    salt: String,
    iterations: u32,
    stored_key: String,
    server_key: String,
}

/// Read first, so that a newer file is refused by its version and not by its new members.
#[derive(Deserialize)]
struct VersionJson {
    version: u32,
}

fn encode(users: &Users) -> Vec<u8> {
    let credential_json = |credential: &Credential| CredentialJson {
        salt: STANDARD.encode(&credential.salt),
        iterations: credential.iterations,
        stored_key: STANDARD.encode(&credential.keys.stored_key),
        server_key: STANDARD.encode(&credential.keys.server_key),
    };
    let user_json = |user: &User| UserJson {
        role: user.role.name().to_owned(),
        scram: ScramHash::ALL
            .into_iter()
            .filter_map(|hash| {
                Some((hash.mechanism_name().to_owned(), credential_json(user.credential(hash)?)))
            })
            .collect(),
    };
    let file = FileJson {
        version: FORMAT_VERSION,
        decoy_secret: STANDARD.encode(users.decoy_secret),
        users: users.users.iter().map(|(name, user)| (name.clone(), user_json(user))).collect(),
    };
    let mut bytes = serde_json::to_vec_pretty(&file).expect("strings and numbers always have a JSON form");
    bytes.push(b'\n');
    bytes
}

fn decode(bytes: &[u8], path: &Path) -> Result<Users, UsersError> {
    let malformed = |source| UsersError::Malformed { path: path.to_owned(), source };
    let VersionJson { version } = serde_json::from_slice(bytes).map_err(malformed)?;
    if version != FORMAT_VERSION {
        return Err(UsersError::Version { path: path.to_owned(), found: version });
    }
    let file: FileJson = serde_json::from_slice(bytes).map_err(malformed)?;
    let entry = |user: &str, what| UsersError::Entry { path: path.to_owned(), user: user.to_owned(), what };
    let decoy_secret = STANDARD.decode(&file.decoy_secret).ok().and_then(|secret| secret.try_into().ok());
    let mut users = Users {
        users: BTreeMap::new(),
        decoy_secret: decoy_secret.ok_or_else(|| entry("", "the decoy secret"))?,
    };
    for (name, json) in file.users {
        let user = decode_user(&name, json).map_err(|what| entry(&name, what))?;
        users.users.insert(name, user);
    }
    Ok(users)
}

fn decode_user(name: &str, json: UserJson) -> Result<User, &'static str> {
    user::check_name(name).map_err(|_| "the name")?;
    let role = json.role.parse().map_err(|_| "the role")?;
    let mut user = User { role, sha512: None, sha256: None, sha1: None };
    for (mechanism, credential) in json.scram {
        let hash = ScramHash::ALL
            .into_iter()
            .find(|hash| hash.mechanism_name() == mechanism)
            .ok_or("the name of a mechanism")?;
        let bytes = |text: &str| STANDARD.decode(text).map_err(|_| "the base64 of a key or salt");
        let key = |text: &str| {
            let key = bytes(text)?;
            if key.len() == hash.digest_bytes() { Ok(key) } else { Err("the length of a key") }
        };
        let salt = bytes(&credential.salt)?;
        if salt.is_empty() {
            return Err("the salt");
        }
        if !(1..=ITERATIONS_MAX).contains(&credential.iterations) {
            return Err("the iterations");
        }
        let keys =
            ScramKeys { stored_key: key(&credential.stored_key)?, server_key: key(&credential.server_key)? };
        *user.credential_mut(hash) = Some(Credential { salt, iterations: credential.iterations, keys });
    }
    if user.strongest().is_none() {
        return Err("the list of mechanisms");
    }
    Ok(user)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random() -> impl FnMut(&mut [u8]) {
        let mut next = 0u8;
        move |bytes| {
            bytes.fill_with(|| {
                next = next.wrapping_mul(77).wrapping_add(13);
                next
            })
        }
    }

    fn users() -> Users {
        let mut users = Users::empty(&mut random());
        for (name, role) in [("alice", Role::Admin), ("bob, the 2nd", Role::ReadOnly)] {
            users.add(name, User::new(role, name.as_bytes(), 3, &mut random()).unwrap()).unwrap();
        }
        users
    }

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn a_saved_file_loads_as_it_was_and_belongs_to_its_owner_alone() {
        let directory = directory();
        let path = directory.path().join("users.json");
        users().save(&path).unwrap();
        assert_eq!(Users::load(&path).unwrap(), users());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

        let mut fewer = users();
        fewer.remove("alice").unwrap();
        fewer.save(&path).unwrap();
        let names: Vec<String> =
            Users::load(&path).unwrap().iter().map(|(name, _)| name.to_owned()).collect();
        assert_eq!(names, ["bob, the 2nd"]);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_file_that_others_may_read_is_refused_with_the_remedy() {
        let directory = directory();
        let path = directory.path().join("users.json");
        users().save(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = Users::load(&path).unwrap_err().to_string();
        assert!(error.contains("mode 644") && error.contains("chmod o= "), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(Users::load(&path).is_ok());
    }

    #[test]
    fn a_missing_file_and_a_missing_directory_are_named() {
        let directory = directory();
        let path = directory.path().join("no/users.json");
        for error in [Users::load(&path).unwrap_err(), users().save(&path).unwrap_err()] {
            assert!(error.to_string().contains("no/users.json"), "{error}");
        }
    }

    #[test]
    fn every_malformed_file_is_refused_and_says_whose_entry() {
        let good = String::from_utf8(encode(&users())).unwrap();
        let load =
            |text: &str| decode(text.as_bytes(), Path::new("u.json")).map(|_| ()).map_err(|e| e.to_string());
        assert_eq!(load(&good), Ok(()));
        let key = STANDARD.encode(&users().get("alice").unwrap().sha512.as_ref().unwrap().keys.stored_key);
        for (from, to, expected) in [
            ("{", "", "malformed"),
            ("\"version\": 1", "\"version\": 2", "version 2"),
            ("\"version\": 1", "\"version\": 1, \"x\": 1", "malformed"),
            ("\"admin\"", "\"root\"", "the role of user \"alice\""),
            ("SCRAM-SHA512", "SCRAM-MD5", "mechanism of user \"alice\""),
            ("\"iterations\": 3", "\"iterations\": 0", "the iterations of user \"alice\""),
            (key.as_str(), "AAAA", "the length of a key of user \"alice\""),
            (key.as_str(), "?", "base64"),
            ("\"alice\"", "\"al\\u0000ice\"", "the name"),
        ] {
            let error = load(&good.replacen(from, to, 1)).unwrap_err();
            assert!(error.contains(expected), "{from} -> {to}: {error}");
        }
        assert!(load(&good[..good.len() / 2]).is_err());
        assert!(load("[]").is_err());
    }

    #[test]
    fn adding_twice_and_removing_the_unknown_are_errors() {
        let mut users = users();
        let user = users.get("alice").unwrap().clone();
        assert!(matches!(users.add("alice", user.clone()), Err(UsersError::Exists { .. })));
        assert!(matches!(users.add("", user), Err(UsersError::User(UserError::Name { .. }))));
        assert!(matches!(users.remove("carol"), Err(UsersError::Unknown { .. })));
        assert_eq!((users.len(), users.is_empty()), (2, false));
    }

    /// An attacker must not see whether a name exists by asking twice, or for two mechanisms.
    #[test]
    fn a_decoy_looks_like_a_user_and_stays_the_same_across_a_restart() {
        let users = users();
        let decoy = users.decoy("mallory", ScramHash::Sha256);
        assert_eq!((decoy.salt.len(), decoy.iterations), (SALT_BYTES, 3));
        assert_eq!(
            decode(&encode(&users), Path::new("u")).unwrap().decoy("mallory", ScramHash::Sha256),
            decoy
        );
        assert_ne!(users.decoy("mallory", ScramHash::Sha1).salt, decoy.salt);
        assert_ne!(users.decoy("trent", ScramHash::Sha256).salt, decoy.salt);
        assert_ne!(
            Users::empty(&mut |bytes| bytes.fill(9)).decoy("mallory", ScramHash::Sha256).salt,
            decoy.salt
        );
    }

    #[test]
    fn the_development_user_has_the_documented_password() {
        let users = Users::development(&mut os_random);
        let (hash, credential) = users.get(DEVELOPMENT_USER).unwrap().strongest().unwrap();
        assert!(credential.knows(hash, b"password") && !credential.knows(hash, b"Password"));
        assert_ne!(Users::development(&mut os_random), users, "salts are random");
    }
}
