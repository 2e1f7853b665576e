//! STAT: a group of statistics, gathered from every core and answered as a stream of names and values.
//!
//! The connection's core parses the request into a [`StatJob`]; every core's [`StatSource`]s add what they know to a
//! [`StatPart`]; the parts are absorbed into one, and the job answers with it. Parts and queries may cross cores.
//!
//! | group | argument | sources here |
//! |---|---|---|
//! | (empty) | | node, counters of the selected bucket, sums over its vbuckets, shards |
//! | `uuid` | | the bucket |
//! | `vbucket`, `vbucket-details`, `vbucket-seqno`, `failovers` | vbucket | vbuckets |
//! | `collections`, `scopes` | `scope.collection`, or a scope's name | the manifest, vbuckets, use on each core |
//! | `collections-byid`, `scopes-byid` | id in hex | the same |
//! | `collections-details`, `scopes-details` | vbucket | vbuckets |
//! | `timings` | | commits and flushes of the shards, range scans, requests by opcode |
//! | `range-scans` | vbucket | range scans |
//! | `dcp` | JSON value: form of the streams, filter by user and port | DCP connections and their streams |
//! | `dcpagg` | separator | the same, added up by the beginnings of the connections' names |
//! | `dcp-vbtakeover` | vbucket and connection's name | the vbucket, the connection, its stream |
//! | `backfills` | vbucket | streams that read the past |
//! | `scrub` | | the shards: how far scrubs are, what they have found |
//! | `reset` | | sets counters to 0 |
//!
//! Invariants
//! - A stream ends with a response without key and value, an error is a single response.
//! - An unknown group is KEY_ENOENT, a bad argument EINVAL, a vbucket that is not here NOT_MY_VBUCKET.
//!
//! Cost: proportional to what is shown; a thousand vbuckets in detail are about two megabytes of answer.
//!
//! Does not know: how a query reaches the other cores.

mod collections;
mod engine;
mod histogram;
mod others;
mod part;
mod streams;
mod takeover;

pub use collections::CollectionQuery;
pub use histogram::{HistogramStat, Unit};
pub use part::{StatPart, StatValue};
pub use streams::{DcpFilter, DcpQuery, Separator, StreamForm, put_fields};
pub use takeover::add_connection as put_takeover_connection;

use ringbase_storage::env::Env;
use ringbase_storage::types::{BucketId, VbId};

use super::cluster;
use super::collections::unknown;
use super::data::Outcome;
use super::request::Request;
use super::respond::Responder;
use super::session::Session;
use crate::bucket::expiry;
use crate::protocol::stat::StatRequest;
use crate::protocol::{Refusal, Status};

/// Which statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatGroup {
    /// The general ones.
    General,
    /// The bucket's uuid.
    Uuid,
    /// The states of vbuckets.
    Vbucket,
    /// Everything about vbuckets.
    VbucketDetails,
    /// Seqnos of vbuckets.
    VbucketSeqno,
    /// Failover logs.
    Failovers,
    /// Range scans.
    RangeScans,
    /// DCP connections and their streams.
    Dcp,
    /// DCP connections, added up by name.
    DcpAgg,
    /// How far the stream of a vbucket is.
    DcpVbTakeover,
    /// Streams that read the past.
    Backfills,
    /// Collections, one of them by its path.
    Collections,
    /// Collections, one of them by its id.
    CollectionsById,
    /// Collections of each vbucket.
    CollectionsDetails,
    /// Scopes, one of them by its name.
    Scopes,
    /// Scopes, one of them by its id.
    ScopesById,
    /// Scopes of each vbucket.
    ScopesDetails,
    /// Scrubs of the shards, and what they have found.
    Scrub,
    /// Histograms.
    Timings,
    /// None: counters and histograms begin anew.
    Reset,
}

impl StatGroup {
    fn of(name: &str) -> Option<StatGroup> {
        Some(match name {
            "" => StatGroup::General,
            "uuid" => StatGroup::Uuid,
            "vbucket" => StatGroup::Vbucket,
            "vbucket-details" => StatGroup::VbucketDetails,
            "vbucket-seqno" => StatGroup::VbucketSeqno,
            "failovers" => StatGroup::Failovers,
            "range-scans" => StatGroup::RangeScans,
            "dcp" => StatGroup::Dcp,
            "dcpagg" => StatGroup::DcpAgg,
            "dcp-vbtakeover" => StatGroup::DcpVbTakeover,
            "backfills" => StatGroup::Backfills,
            "collections" => StatGroup::Collections,
            "collections-byid" => StatGroup::CollectionsById,
            "collections-details" => StatGroup::CollectionsDetails,
            "scopes" => StatGroup::Scopes,
            "scopes-byid" => StatGroup::ScopesById,
            "scopes-details" => StatGroup::ScopesDetails,
            "scrub" => StatGroup::Scrub,
            "timings" => StatGroup::Timings,
            "reset" => StatGroup::Reset,
            _ => return None,
        })
    }

    /// Whether it has something to say of every vbucket that is there.
    fn needs_vbucket(self) -> bool {
        matches!(
            self,
            StatGroup::Vbucket
                | StatGroup::VbucketDetails
                | StatGroup::VbucketSeqno
                | StatGroup::Failovers
                | StatGroup::DcpVbTakeover
        )
    }

    /// Whether it is about one bucket's collections as a whole.
    fn is_about_collections(self) -> bool {
        matches!(
            self,
            StatGroup::Collections | StatGroup::CollectionsById | StatGroup::Scopes | StatGroup::ScopesById
        )
    }

    /// Whether it is about one bucket's DCP connections.
    #[must_use]
    pub fn is_about_dcp(self) -> bool {
        matches!(self, StatGroup::Dcp | StatGroup::DcpAgg | StatGroup::DcpVbTakeover)
    }

    /// Whether it is about one bucket's vbuckets, and takes the number of one as an argument.
    fn is_about_vbuckets(self) -> bool {
        match self {
            StatGroup::Vbucket
            | StatGroup::VbucketDetails
            | StatGroup::VbucketSeqno
            | StatGroup::Failovers
            | StatGroup::CollectionsDetails
            | StatGroup::ScopesDetails
            | StatGroup::RangeScans
            | StatGroup::Backfills => true,
            StatGroup::General
            | StatGroup::Collections
            | StatGroup::CollectionsById
            | StatGroup::Scopes
            | StatGroup::ScopesById
            | StatGroup::Uuid
            | StatGroup::Timings
            | StatGroup::Scrub
            | StatGroup::Reset
            | StatGroup::Dcp
            | StatGroup::DcpAgg
            | StatGroup::DcpVbTakeover => false,
        }
    }
}

/// What is asked of every core.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatQuery {
    /// Which statistics.
    pub group: StatGroup,
    /// Which collections.
    pub collections: CollectionQuery,
    /// Only of this vbucket.
    pub vbucket: Option<VbId>,
    /// Of this bucket.
    pub bucket: Option<BucketId>,
    /// How DCP connections are shown.
    pub dcp: DcpQuery,
}

impl StatQuery {
    /// Whether a vbucket is asked about.
    #[must_use]
    pub fn covers(&self, vb: VbId) -> bool {
        self.vbucket.is_none_or(|only| only == vb)
    }
}

/// Something on a core that has statistics.
pub trait StatSource {
    /// Adds what it knows about `query`; nothing for groups that are not its own.
    fn collect(&self, query: &StatQuery, part: &mut StatPart);

    /// Sets its counters and histograms to 0.
    fn reset(&self) {}
}

/// Asks the sources of one core.
#[must_use]
pub fn collect(query: &StatQuery, sources: &[&dyn StatSource]) -> StatPart {
    let mut part = StatPart::default();
    for source in sources {
        if query.group == StatGroup::Reset {
            source.reset();
        } else {
            source.collect(query, &mut part);
        }
    }
    part
}

/// A request for statistics, while they are gathered.
#[derive(Debug, Clone)]
pub struct StatJob {
    /// What to ask of every core.
    pub query: StatQuery,
    responder: Responder,
    classic_histograms: bool,
    node: StatPart,
}

impl StatJob {
    /// Appends the answer; `parts` come from the cores.
    pub fn answer(self, env: &Env, parts: impl IntoIterator<Item = StatPart>, out: &mut Vec<u8>) {
        let mut whole = self.node;
        for part in parts {
            whole.absorb(part);
        }
        if self.query.vbucket.is_some() && self.query.group.needs_vbucket() && !whole.has_vbuckets() {
            self.responder.fail(env, Status::NOT_MY_VBUCKET, out);
            return;
        }
        if let Some(name) = &self.query.dcp.takeover {
            whole = takeover::answer(name, &whole);
        }
        let mut put = |name: &str, value: &str| {
            // A name or value that is too long for its field does not exist among ours.
            self.responder.success(env).key(name.as_bytes()).value(value.as_bytes()).encode(out);
        };
        for (name, value) in whole.iter() {
            match value {
                StatValue::Sum(number) | StatValue::Max(number) => put(&name, &number.to_string()),
                StatValue::Text(text) => put(&name, text),
                StatValue::Histogram(histogram) if self.classic_histograms => {
                    histogram.each_classic(&name, &mut put);
                }
                StatValue::Histogram(histogram) => put(&name, &histogram.to_json()),
            }
        }
        self.responder.success(env).encode(out);
    }
}

/// Parses a request; what is wrong with it is answered here.
pub(super) fn begin(
    session: &mut Session,
    request: &Request<'_>,
    responder: &Responder,
    out: &mut Vec<u8>,
) -> Result<StatJob, Outcome> {
    let shared = session.shared.clone();
    let env = &shared.env;
    let asked = StatRequest::decode(request.frame.key).map_err(|refusal| {
        responder.refuse(env, refusal, out);
        Outcome::Done
    })?;
    let Some(group) = StatGroup::of(asked.group) else {
        return Err(responder.fail(env, Status::KEY_ENOENT, out));
    };
    let (collections, dcp) = (CollectionQuery::default(), DcpQuery::default());
    let mut query = StatQuery { group, collections, vbucket: None, bucket: session.bucket(), dcp };
    let is_about_bucket = group.is_about_collections() || group == StatGroup::Uuid || group.is_about_dcp();
    if (group.is_about_vbuckets() || is_about_bucket) && query.bucket.is_none() {
        return Err(responder.fail(env, Status::NO_BUCKET, out));
    }
    let argument = asked.argument.filter(|argument| !argument.is_empty());
    if group.is_about_dcp() {
        match DcpQuery::decode(group, argument, request.frame.value) {
            Ok((dcp, vbucket)) => (query.dcp, query.vbucket) = (dcp, vbucket),
            Err(refusal) => {
                responder.refuse(env, refusal, out);
                return Err(Outcome::Done);
            }
        }
    } else if group.is_about_collections() {
        let manifest = session.manifest();
        match CollectionQuery::decode(group, argument, manifest) {
            Ok(collections) => query.collections = collections,
            Err(Refusal { status, .. }) if status != Status::EINVAL => {
                return Err(unknown(env, responder, status, manifest.uid(), out));
            }
            Err(refusal) => {
                responder.refuse(env, refusal, out);
                return Err(Outcome::Done);
            }
        }
    } else if let Some(argument) = argument {
        let number = argument.parse().ok().filter(|_| group.is_about_vbuckets());
        let Some(vb) = number.map(VbId) else {
            responder.refuse(env, Refusal::einval("The argument must be the number of a vbucket"), out);
            return Err(Outcome::Done);
        };
        query.vbucket = Some(vb);
    }
    if query.vbucket.is_some_and(|vb| vb.0 >= shared.vbucket_count()) {
        return Err(cluster::not_my_vbucket(session, responder, out));
    }
    let classic_histograms = session.agent.name.contains("cbstat");
    let node = about_node(session, &query);
    Ok(StatJob { query, responder: *responder, classic_histograms, node })
}

/// What the connection's core knows of the node as a whole.
fn about_node(session: &Session, query: &StatQuery) -> StatPart {
    let (catalog, env) = (session.shared.catalog(), &session.shared.env);
    let mut part = StatPart::default();
    let bucket = query.bucket.and_then(|id| catalog.bucket(id));
    match query.group {
        StatGroup::General => {
            let now = expiry::seconds(env.clock.wall_ns());
            part.text("uptime", now.saturating_sub(catalog.started_at()));
            part.text("time", now);
            part.text("pid", std::process::id());
            part.text("version", catalog.version());
            part.text("memcached_version", catalog.version());
            if let Some(bucket) = bucket {
                part.text("uuid", format!("{:032x}", bucket.uuid));
                part.text("ep_max_vbuckets", catalog.vbucket_count());
            }
        }
        StatGroup::Uuid => {
            if let Some(bucket) = bucket {
                part.text("uuid", format!("{:032x}", bucket.uuid));
            }
        }
        StatGroup::Collections | StatGroup::CollectionsById | StatGroup::Scopes | StatGroup::ScopesById => {
            collections::describe(session.manifest(), query, &mut part)
        }
        StatGroup::Vbucket
        | StatGroup::VbucketDetails
        | StatGroup::VbucketSeqno
        | StatGroup::Failovers
        | StatGroup::CollectionsDetails
        | StatGroup::ScopesDetails
        | StatGroup::RangeScans
        | StatGroup::Dcp
        | StatGroup::DcpAgg
        | StatGroup::DcpVbTakeover
        | StatGroup::Backfills
        | StatGroup::Timings
        | StatGroup::Scrub
        | StatGroup::Reset => {}
    }
    part
}
