//! `ringctl why`: where the time of streams went, and what would make them faster.
//!
//! `report` shows it; `traced` works it out from a trace.
//!
//! Does not know: how the node measures it (`ringbase::dcp::time`).

mod report;
mod traced;

use std::time::Duration;

use ringbase::dcp::time::Spent;

use self::report::{Explained, to_json, write_details, write_list};
use super::connect;
use crate::args::{GlobalArgs, WhyArgs};
use crate::dcp_stats::{Account, DcpStats, Stream, verdict};
use crate::failure::Failure;
use crate::output::{print, print_json};

pub(crate) fn run(global: &GlobalArgs, args: &WhyArgs) -> Result<(), Failure> {
    let mut explained = match &args.trace {
        Some(path) => traced::explain(path, args.stream.as_deref())?,
        None => ask(global, args)?,
    };
    let is_list = args.stream.is_none();
    if is_list {
        explained.sort_by_key(|stream| std::cmp::Reverse(stream.account.busy_ns()));
        explained.truncate(args.limit);
    }
    if global.json {
        return print_json(&to_json(&explained));
    }
    print(|out| if is_list { write_list(out, &explained) } else { write_details(out, &explained) })
}

fn ask(global: &GlobalArgs, args: &WhyArgs) -> Result<Vec<Explained>, Failure> {
    let mut connection = connect(global)?;
    let mut stats = DcpStats::ask(&mut connection)?;
    let mut before = None;
    if let Some(seconds) = args.seconds {
        std::thread::sleep(Duration::from_secs_f64(seconds));
        let later = DcpStats::ask(&mut connection)?;
        before = Some(std::mem::replace(&mut stats, later));
    }
    let wanted = |stream: &&Stream| args.stream.as_deref().is_none_or(|name| is_named(stream, name));
    let explained: Vec<Explained> = stats
        .streams
        .iter()
        .filter(wanted)
        .map(|stream| {
            let earlier = before.as_ref().and_then(|before| before.with_uid(stream.uid()));
            let earlier = earlier.map(Stream::account).unwrap_or_default();
            explain(&stats, stream, &earlier)
        })
        .collect();
    match &args.stream {
        Some(name) if explained.is_empty() => Err(Failure::other(
            format!("no stream {name}"),
            match stats.streams.len() {
                0 => "the bucket has no streams".to_owned(),
                count => format!("the bucket has {count} others; `ringctl why` lists them"),
            },
        )),
        _ => Ok(explained),
    }
}

/// Whether a stream is meant: by its vbucket, its connection, or both.
fn is_named(stream: &Stream, name: &str) -> bool {
    name == stream.name() || name == stream.connection || name.parse() == Ok(stream.vbucket)
}

fn explain(stats: &DcpStats, stream: &Stream, earlier: &Account) -> Explained {
    let account = stream.account().since(earlier);
    let of_window = |field| stats.of_connection(&stream.connection, field);
    let window = of_window("max_buffer_bytes").zip(of_window("unacked_bytes"));
    Explained {
        stream: stream.name(),
        connection: stream.connection.clone(),
        vbucket: stream.vbucket,
        uid: stream.uid(),
        state: stream.state().to_owned(),
        account,
        verdict: verdict_of(&account, window),
    }
}

/// What most of the time went to, in words.
fn verdict_of(account: &Account, window: Option<(u64, u64)>) -> String {
    match account.largest() {
        Some(what) => verdict(what, account.share(what) * 100.0, window),
        None => "has only begun".to_owned(),
    }
}

/// The share of everything, the largest first; what took no time is left out.
fn shares(account: &Account) -> Vec<(Spent, f64)> {
    let mut shares: Vec<(Spent, f64)> = Spent::ALL
        .into_iter()
        .filter(|what| account.of(*what) > 0)
        .map(|what| (what, account.share(what)))
        .collect();
    shares.sort_by(|(_, one), (_, other)| other.total_cmp(one));
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dcp_stats::tests::two_streams;

    #[test]
    fn a_stream_is_named_by_vbucket_connection_or_both() {
        let stats = two_streams(10);
        let named = |name: &str| stats.streams.iter().filter(|stream| is_named(stream, name)).count();
        for (name, count) in [("3", 1), ("12", 1), ("a:b", 2), ("a:b:3", 1), ("a", 0), ("b:3", 0), ("", 0)] {
            assert_eq!(named(name), count, "{name}");
        }
    }

    #[test]
    fn what_is_shown_has_shares_seconds_and_a_verdict() {
        let stats = two_streams(10);
        let explained: Vec<Explained> =
            stats.streams.iter().map(|stream| explain(&stats, stream, &Account::default())).collect();
        let mut out = Vec::new();
        write_details(&mut out, &explained).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("a:b:3  backfilling  uid 7  10.000 s\n"), "{text}");
        assert!(
            text.contains("\n  window       90.0 %       9.000 s  ####################################\n"),
            "{text}"
        );
        assert!(text.contains("\n  device       10.0 %       1.000 s  ####\n"), "{text}");
        assert!(text.contains("\nwaits for the client's window 90 % of the time: "), "{text}");
        assert!(text.contains("\nis up to date 99 % of the time: there was nothing to send\n"), "{text}");

        let json = to_json(&explained);
        let first = &json["streams"][0];
        assert_eq!((first["limiter"].as_str(), first["uid"].as_u64()), (Some("window"), Some(7)));
        assert_eq!(
            (first["accounted_percent"].as_f64(), first["wall_seconds"].as_f64()),
            (Some(100.0), Some(10.0))
        );
        assert_eq!(first["spent"]["window"]["percent"], 90.0);
        assert_eq!(first["spent"]["memory"]["seconds"], 0.0);

        let mut out = Vec::new();
        write_list(&mut out, &explained).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("STREAM "), "{text}");
        assert!(text.contains("\na:b:3 ") && text.contains("window 90 %"), "{text}");
    }
}
