//! Collections of the selected bucket: the manifest, read and set, and names looked up.
//!
//! Cost: one round trip each; a manifest is set when all cores of the node have followed.
//!
//! Does not know: which manifest may follow which; the node refuses what it does not take, in words.

use super::connection::{Connection, unexpected};
use super::error::ClientError;
use crate::protocol::extras::CollectionFound;
use crate::protocol::{CollectionId, Manifest, Opcode, Request};

impl Connection {
    /// The manifest of the selected bucket.
    ///
    /// # Errors
    /// As [`Connection::call`]; `UnexpectedAnswer` if it is none.
    pub fn manifest(&mut self) -> Result<Manifest, ClientError> {
        let opcode = Opcode::COLLECTIONS_GET_MANIFEST;
        let parsed = self.call(Request::new(opcode), |frame| Manifest::parse(frame.value))?;
        parsed.map_err(|error| unexpected(opcode, &error.to_string()))
    }

    /// Gives the selected bucket other collections.
    ///
    /// # Errors
    /// `Refused`: EINVAL for what is no manifest, CANNOT_APPLY_COLLECTIONS_MANIFEST for one that may not follow, EACCESS.
    pub fn set_manifest(&mut self, json: &[u8]) -> Result<(), ClientError> {
        self.call(Request::new(Opcode::COLLECTIONS_SET_MANIFEST).value(json), |_| ())
    }

    /// The id of the collection that `scope.collection` names.
    ///
    /// # Errors
    /// `Refused`: UNKNOWN_SCOPE, UNKNOWN_COLLECTION, EINVAL for what is no path.
    pub fn collection_id(&mut self, path: &str) -> Result<CollectionId, ClientError> {
        let opcode = Opcode::COLLECTIONS_GET_ID;
        let request = Request::new(opcode).value(path.as_bytes());
        let found = self.call(request, |frame| CollectionFound::decode(frame.extras))?;
        found.map(|found| found.id).ok_or_else(|| unexpected(opcode, "extras of another form"))
    }
}
