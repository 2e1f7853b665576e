//! What a DCP client sends behind its DCP_OPEN: the first byte says how the connection was opened, frames follow.
//!
//! `RUSTC_BOOTSTRAP=1 cargo fuzz run dcp_client -- -max_total_time=30`, in `node/`.

#![no_main]

#[path = "../../tests/it/dcp_client_bytes.rs"]
mod dcp_client_bytes;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    dcp_client_bytes::exercise(bytes);
});
