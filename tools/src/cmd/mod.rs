//! The commands, one file each; here is what they share: how to reach the node.
//!
//! Does not know: what a command prints.

mod bucket;
mod collection;
mod compact;
mod dcp_drain;
mod documents;
mod inspect;
mod load;
mod ping;
mod range_scan;
mod scrub;
mod stats;
mod timings;
mod top;
mod trace;
mod user;
mod vbucket;
mod why;

use std::io::Read;
use std::time::Duration;

use ringbase::client::{ConnectOptions, Connection, Credentials};

use crate::args::{Cli, Command, GlobalArgs};
use crate::failure::Failure;

/// Longest password that is read from standard input, in bytes.
const PASSWORD_BYTES_MAX: u64 = 64 * 1024;

/// Runs the command that was asked for.
pub(crate) fn run(cli: Cli) -> Result<(), Failure> {
    let global = cli.global;
    match cli.command {
        Command::Ping(args) => ping::run(&global, &args),
        Command::Get(args) => documents::get(&global, &args),
        Command::Set(args) => documents::set(&global, &args),
        Command::Delete(args) => documents::delete(&global, &args),
        Command::Touch(args) => documents::touch(&global, &args),
        Command::Incr(args) => documents::incr(&global, &args),
        Command::Stats(args) => stats::run(&global, &args),
        Command::Timings(args) => timings::run(&global, &args),
        Command::Why(args) => why::run(&global, &args),
        Command::Top(args) => top::run(&global, &args),
        Command::Trace(args) => trace::run(&global, &args),
        Command::Bucket(args) => bucket::run(&global, &args),
        Command::Collection(args) => collection::run(&global, &args),
        Command::Vbucket(args) => vbucket::run(&global, &args),
        Command::User(args) => user::run(&global, &args),
        Command::Load(args) => load::run(&global, &args),
        Command::RangeScan(args) => range_scan::run(&global, args),
        Command::DcpDrain(args) => dcp_drain::run(&global, &args),
        Command::Inspect(args) => inspect::run(&global, &args),
        Command::Scrub(args) => scrub::run(&global, &args),
        Command::Compact(args) => compact::run(&global, &args),
    }
}

/// How to reach the node.
fn connect_options(global: &GlobalArgs) -> Result<ConnectOptions, Failure> {
    let mut options = ConnectOptions::to(global.host.clone());
    options.bucket.clone_from(&global.bucket);
    options.agent = concat!("ringctl/", env!("CARGO_PKG_VERSION")).to_owned();
    options.timeout = Duration::from_secs_f64(global.timeout);
    options.credentials = match (&global.user, password(global)?) {
        (Some(user), Some(password)) => Some(Credentials { user: user.clone(), password }),
        (Some(_), None) => {
            return Err(Failure::misuse("--user needs --password-stdin or --password"));
        }
        (None, Some(_)) => return Err(Failure::misuse("a password needs --user")),
        (None, None) => None,
    };
    Ok(options)
}

fn connect(global: &GlobalArgs) -> Result<Connection, Failure> {
    Ok(Connection::open(&connect_options(global)?)?)
}

/// The password that the flags give.
fn password(global: &GlobalArgs) -> Result<Option<String>, Failure> {
    if !global.password_stdin {
        return Ok(global.password.clone());
    }
    let mut text = String::new();
    let read = std::io::stdin().lock().take(PASSWORD_BYTES_MAX).read_to_string(&mut text);
    read.map_err(|error| Failure::other("cannot read the password from standard input", error))?;
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(Some(line.to_owned())),
        _ => Err(Failure::misuse("standard input has no password")),
    }
}
