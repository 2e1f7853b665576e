//! Range scans on the vbucket's core, over a simulated disk, with a simulated connection that takes frames and brings buffers back.

mod bounds;
mod ending;
mod model;
mod requests;
mod resources;
pub(crate) mod rig;
mod spans;
