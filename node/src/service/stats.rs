//! Statistics: asked on one core, known on all.
//!
//! Does not know: which statistics there are.

use std::time::Duration;

use ringbase_storage::metrics::DeviceMetrics;

use super::dcp::Producers;
use super::gather::{Gathering, Question};
use super::message::{Message, Token};
use super::{CoreService, Waiting};
use crate::command::stat::{self, StatGroup, Unit, put_fields, put_takeover_connection};
use crate::command::{StatJob, StatPart, StatQuery, StatSource};
use crate::protocol::Opcode;

/// The storage ring of a core.
struct RingSource<'a>(&'a ringbase_storage::io::ring::Ring);

impl StatSource for RingSource<'_> {
    fn collect(&self, query: &StatQuery, part: &mut StatPart) {
        match query.group {
            StatGroup::Timings => self.0.with_metrics(|metrics: &DeviceMetrics| {
                for (class, size, histogram) in metrics.iter().filter(|(_, _, one)| !one.is_empty()) {
                    let name = format!("device_{}_{}", class.name(), size.name());
                    part.histogram(name, histogram, Unit::MicrosOfNanos);
                }
            }),
            StatGroup::General => {
                let stats = self.0.stats();
                part.sum("ring_entries", stats.entries);
                part.sum("ring_enters", stats.enters);
                // What went wrong for a moment and was done again, unseen by who waited (T3.18).
                part.sum("ring_retries", stats.retries);
                part.sum("ring_enter_retries", stats.enter_retries);
                part.sum("ring_overflows", stats.overflows);
                part.sum("ep_io_total_read_bytes", stats.bytes_read);
                part.sum("ep_io_total_write_bytes", stats.bytes_written);
            }
            _ => {}
        }
    }
}

/// The DCP connections of a core, at a moment.
struct ConnectionSource<'a>(&'a Producers, Duration);

impl StatSource for ConnectionSource<'_> {
    fn collect(&self, query: &StatQuery, part: &mut StatPart) {
        let Some(bucket) = query.bucket.filter(|_| query.group.is_about_dcp()) else { return };
        self.0.each(|name, producer| {
            if producer.bucket() != bucket {
                return;
            }
            if query.group == StatGroup::DcpVbTakeover {
                if query.dcp.takeover.as_deref() == Some(name) {
                    put_takeover_connection(part);
                }
                return;
            }
            if query.group == StatGroup::Dcp && !query.dcp.filter.admits(producer.origin()) {
                return;
            }
            let totals = producer.totals();
            if query.group == StatGroup::Dcp {
                let prefix = format!("eq_dcpq:{name}:");
                put_fields(part, &prefix, producer.fields(self.1));
                part.sum(format!("{prefix}items_remaining"), 0);
                part.sum(format!("{prefix}backfill_num_active"), 0);
                part.sum(format!("{prefix}backfill_num_pending"), 0);
                part.sum("ep_dcp_count", 1);
                part.sum("ep_dcp_producer_count", 1);
                part.sum("ep_dcp_items_sent", totals.sent_items);
                part.sum("ep_dcp_total_bytes", totals.sent_bytes);
                part.sum("ep_dcp_queue_fill", totals.queued_bytes as u64);
                return;
            }
            for prefix in [query.dcp.separator.beginning(name), ":total"] {
                for (field, number) in [
                    ("count", 1),
                    ("producer_count", 1),
                    ("items_sent", totals.sent_items),
                    ("total_bytes", totals.sent_bytes),
                    ("paused_count", totals.closings),
                    ("unpaused_count", totals.openings),
                ] {
                    part.sum(format!("{prefix}:{field}"), number);
                }
            }
        });
    }
}

impl Question for StatJob {
    type Part = StatPart;
    const OPCODE: Opcode = Opcode::STAT;

    fn part(&self, service: &CoreService) -> StatPart {
        service.collect(&self.query)
    }

    fn message(&self, token: Token) -> Message {
        Message::Stat { token, query: self.query.clone() }
    }

    fn answer(self, service: &CoreService, parts: Vec<StatPart>, out: &mut Vec<u8>) {
        StatJob::answer(self, &service.env, parts, out);
    }

    fn waiting(gathering: Gathering<StatJob>) -> Waiting {
        Waiting::Stat(gathering)
    }

    fn of(waiting: Waiting) -> Option<Gathering<StatJob>> {
        if let Waiting::Stat(gathering) = waiting { Some(gathering) } else { None }
    }
}

impl CoreService {
    pub(super) fn collect(&self, query: &StatQuery) -> StatPart {
        let connections = ConnectionSource(&self.producers, self.now());
        let sources: [&dyn StatSource; 6] = [
            &*self.engine,
            &self.scans,
            &self.streams,
            &connections,
            &*self.timings,
            &RingSource(&self.ring),
        ];
        stat::collect(query, &sources)
    }
}
