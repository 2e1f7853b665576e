//! `ringctl scrub`: reads everything that a node has on disk, and says what is damaged.
//!
//! Does not know: formats, what can be done about damage.

use std::collections::BTreeMap;
use std::time::Duration;

use indicatif::{HumanBytes, ProgressBar};
use ringbase::client::{ClientError, Connection};
use serde_json::{Value, json};

use super::connect;
use crate::args::{GlobalArgs, ScrubAction, ScrubArgs};
use crate::failure::Failure;
use crate::output::{human_bytes, print, print_json, write_table};
use crate::progress;

/// Time between two questions.
const LOOK: Duration = Duration::from_millis(100);

/// What the shards of a node say, by number.
#[derive(Debug, Default)]
struct Shards(BTreeMap<u64, BTreeMap<String, String>>);

impl Shards {
    fn ask(connection: &mut Connection) -> Result<Shards, ClientError> {
        Ok(Shards::parse(connection.stat_texts("scrub", b"")?))
    }

    fn parse(entries: impl IntoIterator<Item = (String, String)>) -> Shards {
        let mut shards = Shards::default();
        for (name, value) in entries {
            let of_shard = name.strip_prefix("shard_").and_then(|rest| rest.split_once(':'));
            if let Some((Ok(shard), field)) = of_shard.map(|(shard, field)| (shard.parse(), field)) {
                shards.0.entry(shard).or_default().insert(field.to_owned(), value);
            }
        }
        shards
    }

    fn number(fields: &BTreeMap<String, String>, name: &str) -> u64 {
        fields.get(name).and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    fn sum(&self, name: &str) -> u64 {
        self.0.values().map(|fields| Shards::number(fields, name)).sum()
    }

    fn is_running(&self) -> bool {
        self.sum("running") > 0
    }

    /// Shards whose newest pass is a later one than `before` knows.
    fn are_through(&self, before: &Shards) -> bool {
        !self.is_running()
            && self.0.iter().all(|(shard, fields)| {
                let passes = before.0.get(shard).map_or(0, |fields| Shards::number(fields, "passes"));
                Shards::number(fields, "passes") > passes
            })
    }

    /// The places of damage, with their shard.
    fn damage(&self) -> Vec<(u64, Value)> {
        let places = self.0.iter().flat_map(|(shard, fields)| {
            let damage = fields.iter().filter(|(name, _)| name.starts_with("damage_"));
            damage.filter_map(|(_, json)| Some((*shard, serde_json::from_str(json).ok()?)))
        });
        places.collect()
    }
}

pub(crate) fn run(global: &GlobalArgs, args: &ScrubArgs) -> Result<(), Failure> {
    let mut connection = connect(global)?;
    if let Some(rate) = args.rate {
        connection.set_param("scrub_bytes_per_second", &rate.0.to_string())?;
    }
    match args.action {
        Some(ScrubAction::Stop) => {
            connection.set_param("scrub", "stop")?;
            return tell(global, "stopped");
        }
        Some(ScrubAction::Status) => {}
        Some(ScrubAction::Start) => {
            connection.set_param("scrub", "start")?;
            return tell(global, "started");
        }
        None => scrub(&mut connection)?,
    }
    show(global, &Shards::ask(&mut connection)?)
}

fn tell(global: &GlobalArgs, what: &str) -> Result<(), Failure> {
    if global.json {
        return print_json(&json!({ "result": what }));
    }
    print(|out| writeln!(out, "scrub {what}"))
}

/// Starts a pass and waits for its end.
fn scrub(connection: &mut Connection) -> Result<(), Failure> {
    let before = Shards::ask(connection)?;
    connection.set_param("scrub", "start")?;
    let bar = progress::bar(Some(0), "{bar:30} {msg}  {elapsed}");
    let mut has_begun = before.is_running();
    loop {
        let now = Shards::ask(connection)?;
        if now.are_through(&before) {
            bar.finish_and_clear();
            return Ok(());
        }
        if has_begun && !now.is_running() && now.sum("passes") == before.sum("passes") {
            bar.finish_and_clear();
            return Err(Failure::other("the scrub was ended before it was through", "somebody stopped it"));
        }
        has_begun |= now.is_running();
        move_bar(&bar, &now);
        std::thread::sleep(LOOK);
    }
}

fn move_bar(bar: &ProgressBar, now: &Shards) {
    let (read, all) = (now.sum("read_bytes"), now.sum("all_bytes"));
    bar.set_length(all);
    bar.set_position(read.min(all));
    bar.set_message(format!("{} of {}, {} damaged", HumanBytes(read), HumanBytes(all), now.sum("damaged")));
}

fn show(global: &GlobalArgs, shards: &Shards) -> Result<(), Failure> {
    let (damage, count) = (shards.damage(), shards.sum("damaged"));
    if global.json {
        let list: Vec<Value> = shards
            .0
            .iter()
            .map(|(shard, fields)| {
                let number = |name| Shards::number(fields, name);
                let own = damage.iter().filter(|(of, _)| of == shard).map(|(_, place)| place);
                json!({
                    "shard": shard,
                    "running": number("running") > 0,
                    "passes": number("passes"),
                    "read_bytes": number("read_bytes"),
                    "all_bytes": number("all_bytes"),
                    "damaged": number("damaged"),
                    "damage": own.collect::<Vec<_>>(),
                })
            })
            .collect();
        print_json(&Value::Array(list))?;
    } else {
        let mut rows = vec![["SHARD", "STATE", "PASSES", "READ", "DAMAGED"].map(str::to_owned).to_vec()];
        rows.extend(shards.0.iter().map(|(shard, fields)| {
            let number = |name| Shards::number(fields, name);
            let state = if number("running") > 0 { "running" } else { "idle" };
            let read =
                format!("{} of {}", human_bytes(number("read_bytes")), human_bytes(number("all_bytes")));
            vec![
                shard.to_string(),
                state.to_owned(),
                number("passes").to_string(),
                read,
                number("damaged").to_string(),
            ]
        }));
        print(|out| {
            write_table(out, &rows)?;
            damage.iter().try_for_each(|(shard, place)| writeln!(out, "{}", line(*shard, place)))
        })?;
    }
    if count > 0 {
        let what = format!("{count} places are damaged");
        return Err(Failure::other(
            what,
            "the first are named above; what else needs them fails, the rest goes on",
        ));
    }
    Ok(())
}

/// One place of damage for people.
fn line(shard: u64, place: &Value) -> String {
    let text = |name: &str| place[name].as_str().unwrap_or("?").replace('_', " ");
    let of = match (place["bucket"].as_u64(), place["vb"].as_u64()) {
        (Some(bucket), Some(vb)) => format!(" of vbucket {vb} of bucket {bucket}"),
        _ => String::new(),
    };
    let seqnos = match (place["seqnos"][0].as_u64(), place["seqnos"][1].as_u64()) {
        (Some(first), Some(last)) => format!(", seqnos {first} to {last}"),
        _ => String::new(),
    };
    format!("shard {shard}: {}{of}{seqnos}: {}", text("part"), place["error"].as_str().unwrap_or("?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shards(passes: [u64; 2], running: u64) -> Shards {
        let place =
            r#"{"part":"document_index","bucket":1,"vb":7,"offset":4096,"seqnos":[3,9],"error":"bad sum"}"#;
        let entry = |name: String, value: &dyn ToString| (name, value.to_string());
        let mut entries = vec![("other".to_owned(), "1".to_owned())];
        for (shard, passes) in passes.into_iter().enumerate() {
            entries.push(entry(format!("shard_{shard}:passes"), &passes));
            entries.push(entry(format!("shard_{shard}:running"), &running));
            entries.push(entry(format!("shard_{shard}:damaged"), &shard));
        }
        entries.push(entry("shard_1:damage_0".to_owned(), &place));
        Shards::parse(entries)
    }

    #[test]
    fn a_scrub_is_through_when_every_shard_has_one_more_pass() {
        let before = shards([3, 0], 0);
        assert!(!shards([4, 0], 0).are_through(&before) && !shards([4, 1], 1).are_through(&before));
        assert!(shards([4, 1], 0).are_through(&before));
    }

    #[test]
    fn damage_is_named_with_shard_vbucket_and_seqnos() {
        let damage = shards([1, 1], 0).damage();
        let lines: Vec<String> = damage.iter().map(|(shard, place)| line(*shard, place)).collect();
        assert_eq!(
            lines,
            ["shard 1: document index of vbucket 7 of bucket 1, seqnos 3 to 9: bad sum".to_owned()]
        );
    }
}
