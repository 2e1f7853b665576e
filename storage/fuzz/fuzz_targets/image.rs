//! A whole store with forged bytes under valid checksums: inspected, opened and read.
//!
//! `RUSTC_BOOTSTRAP=1 cargo fuzz run image -- -max_total_time=30`, in `storage/`.

#![no_main]

#[allow(dead_code)]
#[path = "../../tests/it/image_bytes.rs"]
mod image_bytes;
#[allow(dead_code)]
#[path = "../../tests/it/world.rs"]
mod world;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    image_bytes::image(bytes);
});
