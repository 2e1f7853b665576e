//! What a node says about its DCP streams: parsed from `stats dcp`, and what can be worked out from it.
//!
//! A stream is shown under `eq_dcpq:<connection>:stream_<vbucket>` as an object, its connection under `eq_dcpq:<connection>:<field>`.
//!
//! Does not know: who shows it.

use std::collections::BTreeMap;

use ringbase::client::{ClientError, Connection};
use ringbase::dcp::time::Spent;
use serde_json::{Map, Value};

/// What is asked for.
const ARGUMENTS: &[u8] = br#"{"stream_format":"json"}"#;

/// Where the time of a stream went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) wall_ns: u64,
    spent_ns: [u64; Spent::ALL.len()],
}

impl Account {
    /// One of these sums, of at least this much wall time.
    pub(crate) fn new(wall_ns: u64, of: impl Fn(Spent) -> u64) -> Account {
        Account { wall_ns, spent_ns: Spent::ALL.map(of) }
    }

    pub(crate) fn of(&self, what: Spent) -> u64 {
        self.spent_ns[what as usize]
    }

    /// What came after `earlier`.
    pub(crate) fn since(&self, earlier: &Account) -> Account {
        let wall_ns = self.wall_ns.saturating_sub(earlier.wall_ns);
        Account::new(wall_ns, |what| self.of(what).saturating_sub(earlier.of(what)))
    }

    /// A part of the wall time, 0 to 1.
    pub(crate) fn share(&self, what: Spent) -> f64 {
        if self.wall_ns == 0 { 0.0 } else { self.of(what) as f64 / self.wall_ns as f64 }
    }

    /// How much of the wall time is accounted for, 0 to 1.
    pub(crate) fn accounted(&self) -> f64 {
        let sum: u64 = self.spent_ns.iter().sum();
        if self.wall_ns == 0 { 1.0 } else { sum as f64 / self.wall_ns as f64 }
    }

    /// What most time went to; `None` if no time has passed.
    pub(crate) fn largest(&self) -> Option<Spent> {
        let largest = Spent::ALL.into_iter().max_by_key(|what| self.of(*what))?;
        (self.of(largest) > 0).then_some(largest)
    }

    /// Time in which something was to be done.
    pub(crate) fn busy_ns(&self) -> u64 {
        self.spent_ns.iter().sum::<u64>() - self.of(Spent::UpToDate)
    }
}

/// A stream at a moment.
#[derive(Debug, Clone)]
pub(crate) struct Stream {
    pub(crate) connection: String,
    pub(crate) vbucket: u16,
    fields: Map<String, Value>,
}

impl Stream {
    /// `connection:vbucket`, by which commands name it.
    pub(crate) fn name(&self) -> String {
        format!("{}:{}", self.connection, self.vbucket)
    }

    pub(crate) fn number(&self, field: &str) -> Option<u64> {
        self.fields.get(field)?.as_u64()
    }

    pub(crate) fn float(&self, field: &str) -> Option<f64> {
        self.fields.get(field)?.as_f64()
    }

    pub(crate) fn state(&self) -> &str {
        self.fields.get("state").and_then(Value::as_str).unwrap_or("?")
    }

    /// Its number in logs and traces.
    pub(crate) fn uid(&self) -> u64 {
        self.number("uid").unwrap_or_default()
    }

    /// Documents that it has made messages of.
    pub(crate) fn items(&self) -> u64 {
        ["backfill_disk_items", "memory_phase"].into_iter().filter_map(|field| self.number(field)).sum()
    }

    pub(crate) fn account(&self) -> Account {
        let spent = |what: Spent| self.number(&format!("spent_{}_ns", what.name())).unwrap_or_default();
        Account::new(self.number("wall_ns").unwrap_or_default(), spent)
    }
}

/// DCP connections and streams of a bucket at a moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct DcpStats {
    pub(crate) streams: Vec<Stream>,
    connections: BTreeMap<String, BTreeMap<String, String>>,
}

impl DcpStats {
    /// Asks the node.
    pub(crate) fn ask(connection: &mut Connection) -> Result<DcpStats, ClientError> {
        Ok(DcpStats::parse(connection.stat_texts("dcp", ARGUMENTS)?))
    }

    pub(crate) fn parse(entries: impl IntoIterator<Item = (String, String)>) -> DcpStats {
        let mut stats = DcpStats::default();
        for (name, value) in entries {
            let Some((connection, field)) =
                name.strip_prefix("eq_dcpq:").and_then(|rest| rest.rsplit_once(':'))
            else {
                continue;
            };
            let vbucket = field.strip_prefix("stream_").and_then(|vbucket| vbucket.parse().ok());
            let fields = vbucket.and_then(|_| serde_json::from_str::<Map<String, Value>>(&value).ok());
            match (vbucket, fields) {
                (Some(vbucket), Some(fields)) => {
                    stats.streams.push(Stream { connection: connection.to_owned(), vbucket, fields });
                }
                _ => {
                    let fields = stats.connections.entry(connection.to_owned()).or_default();
                    fields.insert(field.to_owned(), value);
                }
            }
        }
        stats.streams.sort_by(|one, other| {
            (&one.connection, one.vbucket, one.uid()).cmp(&(&other.connection, other.vbucket, other.uid()))
        });
        stats
    }

    /// A number that a connection says of itself.
    pub(crate) fn of_connection(&self, connection: &str, field: &str) -> Option<u64> {
        self.connections.get(connection)?.get(field)?.parse().ok()
    }

    pub(crate) fn connection_count(&self) -> usize {
        self.connections.len()
    }

    /// The stream with this number.
    pub(crate) fn with_uid(&self, uid: u64) -> Option<&Stream> {
        self.streams.iter().find(|stream| stream.uid() == uid)
    }
}

/// What a stream waits for, and what can be done about it; `percent` of its time.
pub(crate) fn verdict(what: Spent, percent: f64, window: Option<(u64, u64)>) -> String {
    let percent = format!("{percent:.0} % of the time");
    match what {
        Spent::Window => {
            let about = match window {
                Some((size, unacknowledged)) => {
                    format!(" ({size} bytes, {unacknowledged} of them not acknowledged)")
                }
                None => String::new(),
            };
            format!(
                "waits for the client's window {percent}: the client acknowledges too slowly or its buffer{about} is small"
            )
        }
        Spent::Socket => format!(
            "waits for the socket {percent}: the client, or the network to it, takes bytes more slowly than they are read"
        ),
        Spent::Credit => format!(
            "waits for its connection {percent}: other streams of the connection go first, or pieces are on their way between cores"
        ),
        Spent::Memory => format!(
            "waits for memory {percent}: the buffers of all streams of its core are in use, other clients are slow; see dcp_buffer_bytes"
        ),
        Spent::Slot => format!(
            "waits for its turn {percent}: other backfills of its connection are open, all that may be or, in sequential order, one"
        ),
        Spent::Open => format!(
            "waits for its view to be opened {percent}: what it begins with must be durable first; see disk_commit and flush_ns in the timings"
        ),
        Spent::Device => {
            format!(
                "waits for the disk {percent}: see device_scan and device_read in the timings, and `ringbase check`"
            )
        }
        Spent::Running => format!("makes messages {percent}: one core can do no more; more cores would help"),
        Spent::Turn => format!("waits for a CPU {percent}: others run on its core; more cores would help"),
        Spent::UpToDate => format!("is up to date {percent}: there was nothing to send"),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    /// What a node with two streams of one connection says; `seconds` after the second one began.
    pub(crate) fn two_streams(seconds: u64) -> DcpStats {
        let ns = seconds * 1_000_000_000;
        let object = |uid: u64, state: &str, spent: &[(&str, u64)], more: Value| {
            let mut object = json!({"uid": uid, "state": state, "wall_ns": ns, "bytes": seconds * 1000,
                "backfill_disk_items": seconds * 10, "memory_phase": 0});
            let map = object.as_object_mut().unwrap();
            map.extend(spent.iter().map(|(what, ns)| (format!("spent_{what}_ns"), (*ns).into())));
            map.extend(more.as_object().unwrap().clone());
            object.to_string()
        };
        let backfill = json!({"backfill_start_seqno": 1, "backfill_end_seqno": 1000, "backfill_seqno": seconds * 20,
            "backfill_percent": seconds as f64 * 2.0, "backfill_items_per_second": 10,
            "backfill_bytes_per_second": 1000, "backfill_seconds_left": 90.5});
        DcpStats::parse([
            ("ep_dcp_count".to_owned(), "1".to_owned()),
            ("eq_dcpq:a:b:max_buffer_bytes".to_owned(), "20000".to_owned()),
            ("eq_dcpq:a:b:unacked_bytes".to_owned(), "20010".to_owned()),
            (
                "eq_dcpq:a:b:stream_12".to_owned(),
                object(8, "in-memory", &[("up_to_date", ns / 100 * 99), ("running", ns / 100)], json!({})),
            ),
            (
                "eq_dcpq:a:b:stream_3".to_owned(),
                object(7, "backfilling", &[("window", ns / 10 * 9), ("device", ns / 10)], backfill),
            ),
        ])
    }

    #[test]
    fn streams_and_connections_are_found_in_what_the_node_says() {
        let stats = two_streams(10);
        let names: Vec<String> = stats.streams.iter().map(Stream::name).collect();
        assert_eq!(names, ["a:b:3", "a:b:12"]);
        assert_eq!(
            (stats.connection_count(), stats.of_connection("a:b", "max_buffer_bytes")),
            (1, Some(20_000))
        );
        let stream = stats.with_uid(7).unwrap();
        assert_eq!((stream.state(), stream.items(), stream.vbucket), ("backfilling", 100, 3));
        let account = stream.account();
        assert_eq!((account.largest(), account.busy_ns()), (Some(Spent::Window), 10_000_000_000));
        assert!(
            (account.share(Spent::Window) - 0.9).abs() < 1e-9 && (account.accounted() - 1.0).abs() < 1e-9
        );
        let later = two_streams(15).with_uid(7).unwrap().account().since(&account);
        assert_eq!((later.wall_ns, later.of(Spent::Device)), (5_000_000_000, 500_000_000));
        assert_eq!(Account::default().largest(), None);
    }

    #[test]
    fn every_verdict_is_a_sentence_with_the_share() {
        for what in Spent::ALL {
            let text = verdict(what, 93.4, Some((20_000, 20_010)));
            assert!(text.contains("93 % of the time: "), "{text}");
        }
        assert_eq!(
            verdict(Spent::Window, 93.0, Some((20_000, 20_010))),
            "waits for the client's window 93 % of the time: the client acknowledges too slowly or its buffer (20000 bytes, 20010 of \
             them not acknowledged) is small"
        );
    }
}
