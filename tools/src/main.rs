//! ringctl: the command-line companion of a Ringbase node.
fn main() {}
