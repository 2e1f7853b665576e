//! IOCTL_GET and IOCTL_SET: the tracing of this node.
//!
//! | property                             | get                                           | set                          |
//! |--------------------------------------|-----------------------------------------------|------------------------------|
//! | `trace.config`                       | the configuration as text                     | what the next start records  |
//! | `trace.status`                       | `enabled` or `disabled`                       | –                            |
//! | `trace.status?format=json`           | with rings and dropped events (ours)          | –                            |
//! | `trace.start`, `trace.stop`          | –                                             | starts, stops; no value      |
//! | `trace.dump.begin`                   | makes a dump, answers its uuid                | –                            |
//! | `trace.dump.list`                    | the uuids, one a line                         | –                            |
//! | `trace.dump.get?id=<uuid>`           | the whole dump                                | –                            |
//! | `trace.dump.get?id=…&offset=<bytes>` | at most [`CHUNK_BYTES`] of it; none at its end (ours) | –                    |
//! | `trace.dump.clear`                   | –                                             | forgets the dump of the value|
//!
//! Invariants
//! - Only an administrator may ask.
//! - An answer fits a frame; a dump that does not is asked for in chunks.
//!
//! Does not know: how a dump is made (`telemetry::trace`).
//! Source: KV protocol, IOCTL properties.

use std::sync::Arc;

use ringbase_storage::env::Env;
use uuid::Uuid;

use super::data::Outcome;
use super::request::Request;
use super::respond::Responder;
use super::session::Session;
use crate::auth::Role;
use crate::protocol::{ErrorContext, Opcode, Status};
use crate::telemetry::trace::{DumpError, DumpState, TraceControl, TraceDump};
use crate::telemetry::trace_control;

/// Bytes of a dump in one answer, if an offset was given.
pub const CHUNK_BYTES: usize = 1 << 20;

/// Bytes of a dump that is answered whole.
const WHOLE_BYTES_MAX: usize = 20 << 20;

/// A dump that is being made for a request.
#[derive(Debug)]
pub struct TraceDumpJob {
    dump: TraceDump,
    responder: Responder,
}

impl TraceDumpJob {
    /// Whether it can be answered.
    #[must_use]
    pub fn is_done(&self) -> bool {
        !matches!(self.dump.state(), DumpState::Making)
    }

    /// Appends the answer: the dump's uuid.
    pub fn answer(&self, env: &Env, out: &mut Vec<u8>) {
        match self.dump.state() {
            DumpState::Made(_) => {
                let id = self.dump.id().to_string();
                self.responder.success(env).value(id.as_bytes()).encode(out);
            }
            DumpState::Making | DumpState::Failed => {
                let context = ErrorContext::text("The dump could not be made");
                self.responder.fail_with(env, Status::EINTERNAL, &context, out);
            }
        }
    }

    /// Answers the request.
    #[must_use]
    pub fn responder(&self) -> &Responder {
        &self.responder
    }
}

/// Why a property is refused.
#[derive(Debug, PartialEq, Eq)]
struct Refused {
    status: Status,
    context: String,
}

impl Refused {
    fn einval(context: impl Into<String>) -> Refused {
        Refused { status: Status::EINVAL, context: context.into() }
    }

    fn no_dump() -> Refused {
        Refused { status: Status::KEY_ENOENT, context: "There is no such dump".to_owned() }
    }
}

/// What a property is.
#[derive(Debug)]
enum Answer {
    Text(String),
    /// A part of a dump.
    Part(Arc<str>, std::ops::Range<usize>),
    Dump(TraceDump),
}

/// Executes a request, unless it waits for a dump.
pub(super) fn begin(
    session: &Session,
    request: &Request<'_>,
    responder: &Responder,
    out: &mut Vec<u8>,
) -> Result<TraceDumpJob, Outcome> {
    let env = &session.shared.env;
    if session.view().role != Some(Role::Admin) {
        return Err(responder.fail(env, Status::EACCESS, out));
    }
    let answer = match (std::str::from_utf8(request.frame.key), std::str::from_utf8(request.frame.value)) {
        (Ok(property), Ok(_)) if request.opcode() == Opcode::IOCTL_GET => get(trace_control(), property),
        (Ok(property), Ok(value)) => set(trace_control(), property, value),
        _ => Err(Refused::einval("Property and value must be text")),
    };
    Err(match answer {
        Ok(Answer::Dump(dump)) => return Ok(TraceDumpJob { dump, responder: *responder }),
        Ok(Answer::Text(text)) => {
            responder.success(env).value(text.as_bytes()).encode(out);
            Outcome::Done
        }
        Ok(Answer::Part(dump, range)) => {
            responder.success(env).value(&dump.as_bytes()[range]).encode(out);
            Outcome::Done
        }
        Err(Refused { status, context }) => {
            responder.fail_with(env, status, &ErrorContext::text(&context), out)
        }
    })
}

/// The name of a property.
fn name_of(property: &str) -> &str {
    property.split_once('?').map_or(property, |(name, _)| name)
}

/// An argument of a property, in the form of a URL's query.
fn argument<'a>(property: &'a str, wanted: &str) -> Option<&'a str> {
    let (_, query) = property.split_once('?')?;
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(name, _)| *name == wanted).map(|(_, value)| value)
}

fn unknown(property: &str) -> Refused {
    let shown: String = property.chars().take(64).collect();
    Refused::einval(format!("`{shown}` is no property of this node that this command takes"))
}

fn get(control: &TraceControl, property: &str) -> Result<Answer, Refused> {
    match name_of(property) {
        "trace.config" => Ok(Answer::Text(control.config().to_string())),
        "trace.status" => match argument(property, "format") {
            None => Ok(Answer::Text(if control.is_enabled() { "enabled" } else { "disabled" }.to_owned())),
            Some("json") => {
                let json = serde_json::to_string(&control.status());
                json.map(Answer::Text).map_err(|error| Refused::einval(error.to_string()))
            }
            Some(_) => Err(Refused::einval("The only other format of trace.status is json")),
        },
        "trace.dump.list" => {
            let ids: Vec<String> = control.dump_ids().iter().map(Uuid::to_string).collect();
            Ok(Answer::Text(ids.join("\n")))
        }
        "trace.dump.begin" => control.begin_dump().map(Answer::Dump).map_err(|error| {
            let status = match &error {
                DumpError::Busy => Status::EBUSY,
                DumpError::Thread(_) => Status::ETMPFAIL,
            };
            Refused { status, context: error.to_string() }
        }),
        "trace.dump.get" => {
            let id = argument(property, "id").and_then(|id| Uuid::parse_str(id).ok());
            let id = id.ok_or_else(|| Refused::einval("trace.dump.get needs id=<uuid>"))?;
            let dump = control.dump(id).ok_or_else(Refused::no_dump)?;
            let range = part(&dump, argument(property, "offset"))?;
            Ok(Answer::Part(dump, range))
        }
        _ => Err(unknown(property)),
    }
}

/// What is answered of a dump.
fn part(dump: &str, offset: Option<&str>) -> Result<std::ops::Range<usize>, Refused> {
    match offset {
        Some(offset) => {
            let from = offset.parse().ok().filter(|from| *from <= dump.len());
            let from: usize = from.ok_or_else(|| Refused::einval("The offset is not one of this dump"))?;
            Ok(from..from.saturating_add(CHUNK_BYTES).min(dump.len()))
        }
        None if dump.len() > WHOLE_BYTES_MAX => Err(Refused {
            status: Status::E2BIG,
            context: format!("The dump has {} bytes; ask for it in chunks, with &offset=0", dump.len()),
        }),
        None => Ok(0..dump.len()),
    }
}

fn set(control: &TraceControl, property: &str, value: &str) -> Result<Answer, Refused> {
    match property {
        "trace.config" => {
            control.set_config(value.parse().map_err(|error| Refused::einval(format!("{error}")))?);
        }
        "trace.start" | "trace.stop" if !value.is_empty() => {
            return Err(Refused::einval("trace.start and trace.stop take no value; set trace.config before"));
        }
        "trace.start" => control.start(),
        "trace.stop" => control.stop(),
        "trace.dump.clear" => {
            let id = Uuid::parse_str(value).map_err(|_| Refused::einval("The value is not a uuid"))?;
            if !control.clear_dump(id) {
                return Err(Refused::no_dump());
            }
        }
        _ => return Err(unknown(property)),
    }
    Ok(Answer::Text(String::new()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::trace::check::TraceFile;

    fn text(answer: Result<Answer, Refused>) -> String {
        match answer.unwrap() {
            Answer::Text(text) => text,
            Answer::Part(dump, range) => dump[range].to_owned(),
            Answer::Dump(dump) => {
                while matches!(dump.state(), DumpState::Making) {
                    std::thread::yield_now();
                }
                dump.id().to_string()
            }
        }
    }

    #[test]
    fn a_recording_is_configured_started_stopped_dumped_and_forgotten() {
        let control = TraceControl::default();
        let config = "buffer-mode:ring;buffer-size:8192;enabled-categories:a,b*;disabled-categories:c";
        assert_eq!(text(set(&control, "trace.config", config)), "");
        assert_eq!(text(get(&control, "trace.config")), config);
        assert_eq!(text(get(&control, "trace.status")), "disabled");
        text(set(&control, "trace.start", ""));
        assert_eq!(text(get(&control, "trace.status")), "enabled");
        let status: serde_json::Value =
            serde_json::from_str(&text(get(&control, "trace.status?format=json"))).unwrap();
        assert_eq!((status["enabled"].as_bool(), status["config"].as_str()), (Some(true), Some(config)));
        text(set(&control, "trace.stop", ""));
        let id = text(get(&control, "trace.dump.begin"));
        assert_eq!(text(get(&control, "trace.dump.list")), id);
        let whole = text(get(&control, &format!("trace.dump.get?id={id}")));
        TraceFile::parse(whole.as_bytes()).unwrap();
        assert_eq!(text(get(&control, &format!("trace.dump.get?id={id}&offset=0"))), whole);
        assert_eq!(text(get(&control, &format!("trace.dump.get?id={id}&offset={}", whole.len()))), "");
        text(set(&control, "trace.dump.clear", &id));
        assert_eq!(text(get(&control, "trace.dump.list")), "");
    }

    #[test]
    fn unknown_properties_and_values_that_cannot_be_are_refused() {
        let control = TraceControl::default();
        let id = text(get(&control, "trace.dump.begin"));
        let absent = Uuid::from_u128(7);
        for (property, status) in [
            ("trace.start".to_owned(), Status::EINVAL),
            ("trace.dump.chunk".to_owned(), Status::EINVAL),
            ("sla".to_owned(), Status::EINVAL),
            ("trace.status?format=xml".to_owned(), Status::EINVAL),
            ("trace.dump.get".to_owned(), Status::EINVAL),
            ("trace.dump.get?id=7".to_owned(), Status::EINVAL),
            (format!("trace.dump.get?id={absent}"), Status::KEY_ENOENT),
            (format!("trace.dump.get?id={id}&offset=-1"), Status::EINVAL),
            (format!("trace.dump.get?id={id}&offset=99999999"), Status::EINVAL),
        ] {
            assert_eq!(get(&control, &property).unwrap_err().status, status, "{property}");
        }
        for (property, value, status) in [
            ("trace.status", "", Status::EINVAL),
            ("trace.start", "now", Status::EINVAL),
            ("trace.config", "save-on-stop:/tmp/x", Status::EINVAL),
            ("trace.dump.clear", "x", Status::EINVAL),
            ("trace.dump.clear", &absent.to_string(), Status::KEY_ENOENT),
        ] {
            assert_eq!(set(&control, property, value).unwrap_err().status, status, "{property} {value}");
        }
    }

    #[test]
    fn a_dump_larger_than_a_frame_comes_in_chunks_only() {
        let dump = "x".repeat(WHOLE_BYTES_MAX + 5);
        assert_eq!(part(&dump, None).unwrap_err().status, Status::E2BIG);
        let mut from = 0;
        while from < dump.len() {
            let range = part(&dump, Some(&from.to_string())).unwrap();
            assert!(range.start == from && !range.is_empty() && range.len() <= CHUNK_BYTES);
            from = range.end;
        }
    }
}
