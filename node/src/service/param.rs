//! Parameters of the node: checked on the core that is asked, changed on all.
//!
//! Those of range scans are theirs (`range_scan::settings`). The others:
//!
//! | name | value | effect |
//! |---|---|---|
//! | `scrub` | `start`, `stop` | begins or ends a scrub of every shard |
//! | `scrub_bytes_per_second` | a number, 0 for no limit | what the scrub of a shard may read |
//!
//! Does not know: who may change them.

use super::CoreService;
use super::message::Message;
use crate::command::ParamChange;
use crate::net::Ticket;
use crate::protocol::Refusal;

/// What a refused parameter is told; the log says more.
const REFUSED: &str = "Unknown parameter, or its value is out of range";

impl CoreService {
    /// Changes a parameter on every core.
    pub(super) fn set_param(&self, change: ParamChange, ticket: Ticket) {
        let result = self.apply_param(&change.name, &change.value);
        ticket.reply(|out| match &result {
            Ok(()) => change.responder.success(&self.env).encode(out),
            Err(error) => {
                tracing::debug!(name = %change.name, %error, "parameter refused");
                change.responder.refuse(&self.env, Refusal::einval(REFUSED), out);
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

    /// Changes a parameter on this core.
    pub(super) fn apply_param(&self, name: &str, value: &str) -> Result<(), String> {
        let shards = self.engine.shards();
        match (name, value) {
            ("scrub", "start") => shards.iter().for_each(|shard| shard.start_scrub()),
            ("scrub", "stop") => shards.iter().for_each(|shard| shard.stop_scrub()),
            ("scrub", other) => return Err(format!("{other} is neither start nor stop")),
            ("scrub_bytes_per_second", number) => {
                let rate = number.parse().map_err(|_| format!("{number} is no number of bytes"))?;
                shards.iter().for_each(|shard| shard.set_scrub_rate(rate));
            }
            _ => return self.scans.set_param(name, value).map_err(|error| error.to_string()),
        }
        Ok(())
    }
}
