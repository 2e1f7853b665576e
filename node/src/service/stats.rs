//! Statistics and parameters: asked on one core, known on all.
//!
//! Does not know: which statistics there are.

use std::time::Duration;

use ringbase_storage::metrics::DeviceMetrics;

use super::dcp::Producers;
use super::message::{Message, Token};
use super::{CoreService, Waiting};
use crate::command::stat::{self, StatGroup, Unit, put_fields};
use crate::command::{ParamChange, StatJob, StatPart, StatQuery, StatSource};
use crate::net::Ticket;
use crate::protocol::{Opcode, Refusal};

/// What a refused parameter is told; the log says more.
const SETTING_REFUSED: &str = "Unknown parameter, or its value is out of range";

/// A request for statistics that waits for other cores.
pub(super) struct Gathering {
    job: StatJob,
    parts: Vec<StatPart>,
    missing: usize,
    ticket: Ticket,
    received_ns: u64,
}

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
        let is_wanted = matches!(query.group, StatGroup::Dcp | StatGroup::DcpAgg);
        let Some(bucket) = query.bucket.filter(|_| is_wanted) else { return };
        self.0.each(|name, producer| {
            if producer.bucket() != bucket {
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

    /// Gathers statistics from every core and answers.
    pub(super) fn gather(&self, job: StatJob, ticket: Ticket) {
        let received_ns = self.env.clock.monotonic_ns();
        let parts = vec![self.collect(&job.query)];
        let others: Vec<_> = self.other_cores().collect();
        let query = job.query;
        let gathering = Gathering { job, parts, missing: others.len(), ticket, received_ns };
        if others.is_empty() {
            return self.show(gathering);
        }
        let token = self.wait_for(Waiting::Stat(gathering));
        for core in others {
            self.send(core, Message::Stat { token, query });
        }
    }

    pub(super) fn gathered(&self, token: Token, part: StatPart) {
        let Some(Waiting::Stat(mut gathering)) = self.take_waiting(token) else { return };
        gathering.parts.push(part);
        gathering.missing -= 1;
        if gathering.missing == 0 {
            return self.show(gathering);
        }
        self.waiting.borrow_mut().insert(token, Waiting::Stat(gathering));
    }

    fn show(&self, gathering: Gathering) {
        let Gathering { job, parts, ticket, received_ns, .. } = gathering;
        ticket.reply(|out| job.answer(&self.env, parts, out));
        self.answered(Opcode::STAT, received_ns);
    }

    /// Changes a parameter on every core.
    pub(super) fn set_param(&self, change: ParamChange, ticket: Ticket) {
        let result = self.scans.set_param(&change.name, &change.value);
        ticket.reply(|out| match &result {
            Ok(()) => change.responder.success(&self.env).encode(out),
            Err(error) => {
                tracing::debug!(name = %change.name, %error, "parameter refused");
                change.responder.refuse(&self.env, Refusal::einval(SETTING_REFUSED), out);
            }
        });
        if result.is_ok() {
            tracing::info!(name = %change.name, value = %change.value, "parameter changed");
            for core in self.other_cores().collect::<Vec<_>>() {
                let (name, value) = (change.name.clone(), change.value.clone());
                self.send(core, Message::SetParam { name, value });
            }
        }
    }
}
