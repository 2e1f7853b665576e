//! ringbench: load generators and benchmarks.
fn main() {}
