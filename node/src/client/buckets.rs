//! Buckets: which there are, making, changing, emptying and deleting them.
//!
//! Cost: one round trip each; the node answers when all its cores have followed.
//!
//! Does not know: settings and their ranges; the node refuses what it does not take, in words.

use super::connection::Connection;
use super::error::ClientError;
use crate::protocol::{Opcode, Request};

/// Name that stands for no bucket: a connection that is opened with it has selected none.
pub const NO_BUCKET: &str = "@no bucket@";

/// Module name of a bucket with documents.
const MODULE: &str = "ep.so";

/// Name of the parameter that empties a bucket.
const EMPTY_BUCKET: &str = "bucket_flush";

/// Type of parameters that belong to a bucket.
const PARAM_TYPE: u32 = 1;

impl Connection {
    /// The names of the buckets.
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub fn bucket_names(&mut self) -> Result<Vec<String>, ClientError> {
        self.call(Request::new(Opcode::LIST_BUCKETS), |frame| {
            let text = String::from_utf8_lossy(frame.value);
            text.split(' ').filter(|name| !name.is_empty()).map(str::to_owned).collect()
        })
    }

    /// Creates a bucket; `settings` are `key=value;key=value`.
    ///
    /// # Errors
    /// `Refused`: KEY_EEXISTS, EINVAL for a name or setting that cannot be, NOT_SUPPORTED, EACCESS.
    pub fn create_bucket(&mut self, name: &str, settings: &str) -> Result<(), ClientError> {
        let value = [MODULE.as_bytes(), b"\0", settings.as_bytes()].concat();
        self.call(Request::new(Opcode::CREATE_BUCKET).key(name.as_bytes()).value(&value), |_| ())
    }

    /// Deletes a bucket with all its documents.
    ///
    /// # Errors
    /// `Refused`: KEY_ENOENT, EACCESS.
    pub fn delete_bucket(&mut self, name: &str) -> Result<(), ClientError> {
        self.call(Request::new(Opcode::DELETE_BUCKET).key(name.as_bytes()), |_| ())
    }

    /// Deletes all documents of a bucket; every vbucket begins anew.
    ///
    /// # Errors
    /// `Refused`: KEY_ENOENT, EACCESS.
    pub fn empty_bucket(&mut self, name: &str) -> Result<(), ClientError> {
        self.set_param(EMPTY_BUCKET, name)
    }

    /// Changes a parameter of the node, or a setting of the selected bucket.
    ///
    /// # Errors
    /// `Refused`: EINVAL for an unknown name or a value out of range, EACCESS.
    pub fn set_param(&mut self, name: &str, value: &str) -> Result<(), ClientError> {
        let extras = PARAM_TYPE.to_be_bytes();
        let request = Request::new(Opcode::SET_PARAM).extras(&extras);
        self.call(request.key(name.as_bytes()).value(value.as_bytes()), |_| ())
    }
}
