//! `ringctl ping`: does the node answer, and how fast.
//!
//! Does not know: the protocol (`ringbase::client`).

use std::time::{Duration, Instant};

use ringbase::client::Connection;
use serde_json::json;

use super::connect_options;
use crate::args::{GlobalArgs, PingArgs};
use crate::failure::Failure;
use crate::output::{print, print_json};

pub(crate) fn run(global: &GlobalArgs, args: &PingArgs) -> Result<(), Failure> {
    let options = connect_options(global)?;
    let started = Instant::now();
    let patience = args.wait.map_or(Duration::ZERO, Duration::from_secs_f64);
    let mut connection = Connection::open_within(&options, patience)?;
    let waited = started.elapsed();
    let round_trip = connection.ping()?;
    let version = connection.version()?;
    if global.json {
        return print_json(&json!({
            "host": global.host,
            "version": version,
            "waited_seconds": waited.as_secs_f64(),
            "round_trip_us": round_trip.as_micros() as u64,
        }));
    }
    print(|out| writeln!(out, "{} answers in {} µs, version {version}", global.host, round_trip.as_micros()))
}
