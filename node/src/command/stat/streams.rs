//! The statistics of DCP streams, and how DCP connections are asked about.
//!
//! A stream is shown by the core of its vbucket, its connection by its own (`service`); what both count under one name adds up.
//!
//! | group | names |
//! |---|---|
//! | `dcp` | `eq_dcpq:<connection>:<field>`, `eq_dcpq:<connection>:stream_<vb>_<field>` or one object for each stream, `ep_dcp_<total>` |
//! | `dcpagg` | `<beginning of the connection's name>:<field>`, `:total:<field>` |
//! | `dcp-vbtakeover` | what [`takeover`] makes of a connection and a stream |
//! | `backfills` | `vb_<n>:backfill_<stream>_<field>`; numbers of the core without prefix |
//!
//! Does not know: how streams are read.

use std::sync::Arc;

use ringbase_storage::types::VbId;
use serde_json::{Map, Value};

use super::{StatGroup, StatPart, StatQuery, StatSource, Unit, takeover};
use crate::dcp::StreamFacts;
use crate::dcp::piece::Origin;
use crate::dcp::streams::Streams;
use crate::protocol::Refusal;

/// How streams are shown.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum StreamForm {
    /// One statistic a field.
    #[default]
    Fields,
    /// One statistic a stream, an object.
    Objects,
    /// Not at all.
    None,
}

/// What ends the part of a connection's name by which `dcpagg` adds up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Separator {
    bytes: [u8; Separator::BYTES_MAX],
    len: usize,
}

impl Default for Separator {
    fn default() -> Separator {
        Separator::new(":").expect("it is short")
    }
}

impl Separator {
    /// The longest.
    pub const BYTES_MAX: usize = 16;

    /// A separator of 1 to 16 bytes.
    #[must_use]
    pub fn new(text: &str) -> Option<Separator> {
        let mut bytes = [0; Separator::BYTES_MAX];
        bytes.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
        (!text.is_empty()).then_some(Separator { bytes, len: text.len() })
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
    }

    /// What `name` is added up under.
    #[must_use]
    pub fn beginning<'n>(&self, name: &'n str) -> &'n str {
        name.split_once(self.as_str()).map_or(name, |(beginning, _)| beginning)
    }
}

/// Which connections are shown.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct DcpFilter {
    /// Those of this user.
    pub user: Option<Arc<str>>,
    /// Those that are connected to this port of the node.
    pub port: Option<u16>,
}

impl DcpFilter {
    fn decode(value: &Value) -> Result<DcpFilter, Refusal> {
        let members = value.as_object().ok_or(Refusal::einval("The filter is not a JSON object"))?;
        let mut filter = DcpFilter::default();
        for (name, value) in members {
            match name.as_str() {
                "user" => {
                    let user = value.as_str().ok_or(Refusal::einval("The user of a filter is a text"))?;
                    filter.user = Some(user.into());
                }
                "port" => {
                    let port = value.as_u64().and_then(|port| u16::try_from(port).ok());
                    filter.port = Some(port.ok_or(Refusal::einval("The port of a filter is a number"))?);
                }
                _ => return Err(Refusal::einval("A filter has a user and a port")),
            }
        }
        Ok(filter)
    }

    /// Whether a connection is shown.
    #[must_use]
    pub fn admits(&self, origin: &Origin) -> bool {
        let is_of_user = self.user.as_ref().is_none_or(|user| **user == *origin.user);
        is_of_user && self.port.is_none_or(|port| port == origin.port)
    }
}

/// How DCP connections are shown.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct DcpQuery {
    /// With `dcp`: their streams.
    pub form: StreamForm,
    /// With `dcp`: which.
    pub filter: DcpFilter,
    /// With `dcp-vbtakeover`: the name of the connection.
    pub takeover: Option<Arc<str>>,
    /// With `dcpagg`: what they are added up by.
    pub separator: Separator,
}

impl DcpQuery {
    pub(super) fn decode(
        group: StatGroup,
        argument: Option<&str>,
        value: &[u8],
    ) -> Result<(DcpQuery, Option<VbId>), Refusal> {
        let mut query = DcpQuery::default();
        match (group, argument) {
            (StatGroup::DcpVbTakeover, argument) => {
                let parts = argument.and_then(|argument| argument.split_once(' '));
                let parts = parts.and_then(|(vb, name)| Some((vb.parse().ok()?, name)));
                let (vb, name) = parts
                    .filter(|(_, name)| !name.is_empty())
                    .ok_or(Refusal::einval("The arguments are a vbucket and the name of a connection"))?;
                query.takeover = Some(name.into());
                return Ok((query, Some(VbId(vb))));
            }
            (_, None) => {}
            (StatGroup::DcpAgg, Some(separator)) => {
                query.separator =
                    Separator::new(separator).ok_or(Refusal::einval("A separator has at most 16 bytes"))?;
            }
            (_, Some(_)) => return Err(Refusal::einval("The group has no argument")),
        }
        if value.is_empty() || group != StatGroup::Dcp {
            return Ok((query, None));
        }
        let asked: Map<String, Value> =
            serde_json::from_slice(value).map_err(|_| Refusal::einval("The value is not a JSON object"))?;
        query.form = match asked.get("stream_format").map(Value::as_str) {
            None | Some(Some("legacy")) => StreamForm::Fields,
            Some(Some("json")) => StreamForm::Objects,
            Some(Some("skip")) => StreamForm::None,
            Some(_) => return Err(Refusal::einval("Unknown form of streams")),
        };
        if let Some(filter) = asked.get("filter") {
            query.filter = DcpFilter::decode(filter)?;
        }
        if asked.keys().any(|name| name != "stream_format" && name != "filter") {
            return Err(Refusal::einval("The arguments are stream_format and filter"));
        }
        Ok((query, None))
    }
}

/// A value as a statistic's text: without quotes.
fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Puts `<prefix><name>` for each field.
pub fn put_fields<N: AsRef<str>>(
    part: &mut StatPart,
    prefix: &str,
    fields: impl IntoIterator<Item = (N, Value)>,
) {
    for (name, value) in fields {
        part.text(format!("{prefix}{}", name.as_ref()), text_of(&value));
    }
}

impl StatSource for Streams {
    fn collect(&self, query: &StatQuery, part: &mut StatPart) {
        match (query.group, query.bucket) {
            (StatGroup::Dcp, Some(bucket)) => {
                part.sum("ep_dcp_max_running_backfills", Streams::BACKFILLS_MAX as u64);
                self.each(bucket, None, &mut |facts| {
                    if query.dcp.filter.admits(&facts.origin) {
                        dcp(facts, query.dcp.form, part);
                    }
                });
            }
            (StatGroup::DcpAgg, Some(bucket)) => self.each(bucket, None, &mut |facts| {
                for prefix in [query.dcp.separator.beginning(&facts.connection), ":total"] {
                    for (name, number) in [
                        ("activestream_count", 1),
                        ("items_remaining", facts.items_remaining),
                        ("items_backfilled_disk", facts.disk_items),
                        ("items_backfilled_memory", facts.memory_items),
                        ("ready_queue_bytes", facts.queued_bytes as u64),
                    ] {
                        part.sum(format!("{prefix}:{name}"), number);
                    }
                }
            }),
            (StatGroup::DcpVbTakeover, Some(bucket)) => self.each(bucket, query.vbucket, &mut |facts| {
                if query.dcp.takeover.as_deref() == Some(&*facts.connection) {
                    takeover::add_stream(part, facts.is_backfilling, facts.has_view, facts.items_remaining);
                }
            }),
            (StatGroup::Backfills, Some(bucket)) => {
                part.sum("backfill_num_active", 0);
                part.sum("backfill_num_pending", 0);
                for failure in self.failures(bucket, query.vbucket) {
                    for (name, value) in failure.fields() {
                        let name = format!("backfill_failed_{}_{name}", failure.number.0);
                        part.of_vbucket(failure.vb, name, text_of(&value));
                    }
                }
                self.each(bucket, query.vbucket, &mut |facts| {
                    if facts.is_backfilling {
                        part.sum(state_of(&facts), 1);
                        let prefix = format!("backfill_{}_", facts.number.0);
                        part.of_vbucket(facts.vb, format!("{prefix}connection"), &facts.connection);
                        for (name, value) in &facts.fields {
                            part.of_vbucket(facts.vb, format!("{prefix}{name}"), text_of(value));
                        }
                    }
                });
            }
            (StatGroup::General, _) => {
                for (name, number) in self.metrics().counters() {
                    part.sum(name, number);
                }
                part.sum("dcp_buffer_bytes", self.buffer_bytes() as u64);
            }
            (StatGroup::Timings, _) => {
                for (name, recorder) in self.metrics().recorders() {
                    part.histogram(name, &recorder.histogram(), Unit::AsRecorded);
                }
            }
            (
                StatGroup::Dcp
                | StatGroup::DcpAgg
                | StatGroup::DcpVbTakeover
                | StatGroup::Backfills
                | StatGroup::RangeScans
                | StatGroup::Uuid
                | StatGroup::Vbucket
                | StatGroup::VbucketDetails
                | StatGroup::VbucketSeqno
                | StatGroup::Failovers
                | StatGroup::Collections
                | StatGroup::CollectionsById
                | StatGroup::CollectionsDetails
                | StatGroup::Scopes
                | StatGroup::ScopesById
                | StatGroup::ScopesDetails
                | StatGroup::Scrub
                | StatGroup::Reset,
                _,
            ) => {}
        }
    }

    fn reset(&self) {
        for (_, recorder) in self.metrics().recorders() {
            recorder.reset();
        }
    }
}

fn state_of(facts: &StreamFacts) -> &'static str {
    if facts.has_slot { "backfill_num_active" } else { "backfill_num_pending" }
}

fn dcp(facts: StreamFacts, form: StreamForm, part: &mut StatPart) {
    let connection = format!("eq_dcpq:{}:", facts.connection);
    part.sum(format!("{connection}items_remaining"), facts.items_remaining);
    part.sum("ep_dcp_items_remaining", facts.items_remaining);
    part.sum("ep_dcp_backfill_disk", facts.disk_items);
    part.sum("ep_dcp_backfill_memory", facts.memory_items);
    if facts.is_backfilling {
        part.sum(format!("{connection}{}", state_of(&facts)), 1);
        part.sum("ep_dcp_num_running_backfills", u64::from(facts.has_slot));
    }
    let stream = format!("{connection}stream_{}", facts.vb);
    match form {
        StreamForm::None => {}
        StreamForm::Fields => put_fields(part, &format!("{stream}_"), facts.fields),
        StreamForm::Objects => {
            let fields: Map<String, Value> = facts.fields.into_iter().collect();
            part.text(stream, Value::Object(fields));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Status;

    #[test]
    fn a_question_about_connections_names_a_form_or_a_separator() {
        let of = |group, argument, value: &str| {
            DcpQuery::decode(group, argument, value.as_bytes())
                .map(|(query, _)| query)
                .map_err(|refusal| refusal.status)
        };
        let form = |value| of(StatGroup::Dcp, None, value).map(|query| query.form);
        assert_eq!(form(""), Ok(StreamForm::Fields));
        assert_eq!(form("{}"), Ok(StreamForm::Fields));
        assert_eq!(form(r#"{"stream_format":"json"}"#), Ok(StreamForm::Objects));
        assert_eq!(form(r#"{"stream_format":"skip"}"#), Ok(StreamForm::None));
        for bad in [
            "[]",
            "x",
            r#"{"stream_format":"xml"}"#,
            r#"{"stream_format":1}"#,
            r#"{"filter":1}"#,
            r#"{"filter":{"port":"a"}}"#,
            r#"{"filter":{"port":65536}}"#,
            r#"{"filter":{"user":1}}"#,
            r#"{"filter":{"host":"a"}}"#,
            r#"{"other":1}"#,
        ] {
            assert_eq!(form(bad), Err(Status::EINVAL), "{bad}");
        }
        let admits = |value, user: &str, port| {
            let origin = Origin { user: user.to_owned(), port };
            of(StatGroup::Dcp, None, value).map(|query| query.filter.admits(&origin))
        };
        let both = r#"{"filter":{"user":"anna","port":11210}}"#;
        assert_eq!((admits(both, "anna", 11210), admits(both, "anna", 1)), (Ok(true), Ok(false)));
        assert_eq!((admits(both, "bert", 11210), admits(r#"{"filter":{}}"#, "", 0)), (Ok(false), Ok(true)));
        let takeover = |argument| {
            DcpQuery::decode(StatGroup::DcpVbTakeover, argument, b"")
                .map(|(query, vb)| (query.takeover.map(|name| name.to_string()), vb))
                .map_err(|refusal| refusal.status)
        };
        assert_eq!(takeover(Some("7 a b")), Ok((Some("a b".to_owned()), Some(VbId(7)))));
        for bad in [None, Some("7"), Some("7 "), Some("a b"), Some("99999 a")] {
            assert_eq!(takeover(bad), Err(Status::EINVAL), "{bad:?}");
        }
        assert_eq!(of(StatGroup::Dcp, Some("x"), ""), Err(Status::EINVAL));
        let beginning = |separator, name| {
            of(StatGroup::DcpAgg, separator, "").map(|query| query.separator.beginning(name).to_owned())
        };
        assert_eq!(beginning(None, "replication:a->b"), Ok("replication".to_owned()));
        assert_eq!(beginning(Some("->"), "replication:a->b"), Ok("replication:a".to_owned()));
        assert_eq!(beginning(None, "alone"), Ok("alone".to_owned()));
        assert_eq!(beginning(Some("12345678901234567"), "x"), Err(Status::EINVAL));
    }
}
