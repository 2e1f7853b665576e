//! Single vbuckets: what each is, and changing that, as an administrator.
//!
//! Cost: one round trip each; the node answers when the change is durable and all its cores see it.
//!
//! Does not know: which changes make sense.

use ringbase_storage::types::VbId;

use super::connection::{Connection, unexpected};
use super::error::ClientError;
use crate::protocol::compact::CompactRequest;
use crate::protocol::dcp::signal::VbucketState;
use crate::protocol::vbucket::decode_vbucket_state;
use crate::protocol::{Datatype, Opcode, Request};

impl Connection {
    /// What a vbucket is.
    ///
    /// # Errors
    /// `Refused`: NOT_MY_VBUCKET if it is not there.
    pub fn vbucket_state(&mut self, vbucket: VbId) -> Result<VbucketState, ClientError> {
        let request = Request::new(Opcode::GET_VBUCKET).vbucket(vbucket);
        let state = self.call(request, |frame| decode_vbucket_state(frame.value))?;
        state.ok_or_else(|| unexpected(Opcode::GET_VBUCKET, "a value of another form"))
    }

    /// Changes what a vbucket is; it is made if it is not there. `topology` is JSON, or empty to say nothing of it.
    ///
    /// # Errors
    /// `Refused`: EINVAL for a topology that cannot be, EACCESS.
    pub fn set_vbucket(
        &mut self,
        vbucket: VbId,
        state: VbucketState,
        topology: &str,
    ) -> Result<(), ClientError> {
        let extras = [state as u8];
        let request = Request::new(Opcode::SET_VBUCKET).vbucket(vbucket).extras(&extras);
        if topology.is_empty() {
            return self.call(request, |_| ());
        }
        let value = format!("{{\"topology\":{topology}}}");
        self.call(request.datatype(Datatype::JSON).value(value.as_bytes()), |_| ())
    }

    /// Has the shard of a vbucket compacted, and tombstones of the vbucket purged that may go; returns when that is done.
    ///
    /// # Errors
    /// `Refused`: NOT_MY_VBUCKET if it is not there, NOT_SUPPORTED if it lives in memory only, EACCESS.
    pub fn compact(&mut self, vbucket: VbId, what: CompactRequest) -> Result<(), ClientError> {
        self.call(Request::new(Opcode::COMPACT_DB).vbucket(vbucket).extras(&what.encode()), |_| ())
    }

    /// Deletes a vbucket with all its documents.
    ///
    /// # Errors
    /// `Refused`: NOT_MY_VBUCKET if it is not there, EACCESS.
    pub fn delete_vbucket(&mut self, vbucket: VbId) -> Result<(), ClientError> {
        self.call(Request::new(Opcode::DEL_VBUCKET).vbucket(vbucket), |_| ())
    }
}
