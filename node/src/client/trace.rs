//! The trace of a node: configuring, starting, stopping, dumping.
//!
//! Invariants
//! - A dump is fetched in chunks, so that neither end holds more than one of them in a frame.
//!
//! Cost: a round trip each; a dump one for each chunk.
//!
//! Does not know: what is in a dump.

use super::connection::{Connection, unexpected};
use super::error::ClientError;
use crate::protocol::{Opcode, Request};

impl Connection {
    /// Asks for a property of the node.
    ///
    /// # Errors
    /// `Refused`: EINVAL for an unknown one, EACCESS.
    pub fn ioctl_get(&mut self, property: &str) -> Result<Vec<u8>, ClientError> {
        self.call(Request::new(Opcode::IOCTL_GET).key(property.as_bytes()), |frame| frame.value.to_vec())
    }

    /// Changes a property of the node.
    ///
    /// # Errors
    /// `Refused`: EINVAL for an unknown one or a value that cannot be, EACCESS.
    pub fn ioctl_set(&mut self, property: &str, value: &str) -> Result<(), ClientError> {
        let request = Request::new(Opcode::IOCTL_SET).key(property.as_bytes());
        self.call(request.value(value.as_bytes()), |_| ())
    }

    /// Makes a dump of the trace, gives it to `sink` piece by piece, and lets the node forget it. Returns its bytes.
    ///
    /// # Errors
    /// `Refused`: EBUSY while another dump is made, EACCESS. `Output`: the sink.
    pub fn trace_dump(
        &mut self,
        mut sink: impl FnMut(&[u8]) -> std::io::Result<()>,
    ) -> Result<u64, ClientError> {
        let id = String::from_utf8(self.ioctl_get("trace.dump.begin")?)
            .map_err(|_| unexpected(Opcode::IOCTL_GET, "a dump whose name is no text"))?;
        let mut bytes = 0;
        loop {
            let chunk = self.ioctl_get(&format!("trace.dump.get?id={id}&offset={bytes}"))?;
            if chunk.is_empty() {
                break;
            }
            sink(&chunk).map_err(ClientError::Output)?;
            bytes += chunk.len() as u64;
        }
        self.ioctl_set("trace.dump.clear", &id)?;
        Ok(bytes)
    }
}
