//! Ringbase, the server.
