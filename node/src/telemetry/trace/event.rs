//! An event: sixteen words of which eight hold arguments, and how arguments become bytes and values again.
//!
//! | word | meaning                                                                      |
//! |-----:|------------------------------------------------------------------------------|
//! |    0 | sequence, the ring's                                                         |
//! |    1 | kind, bytes of arguments, arguments that found no room                       |
//! |    2 | when, in nanoseconds of the recorder's clock                                 |
//! |    3 | span, 0 for none                                                             |
//! |    4 | call site, an address that is only compared                                  |
//! |    5 | of a beginning its parent, else when the span began                          |
//! |    6 | flow id, 0 for none                                                          |
//! |    7 | when the step came that follows this one, 0 if it has an event of its own    |
//! | 8–15 | arguments: field and type in a byte; a number's eight bytes, or length, text |
//!
//! Invariants
//! - Integers are exact. A text longer than the room is cut at a character and marked; an argument never straddles two events.
//!
//! Cost: encoding allocates nothing; a `Debug` or `Display` value is formatted straight into the event.
//!
//! Does not know: rings, the form of a dump.

use std::fmt::{Debug, Write};

use tracing::field::{Field, Visit};

/// Words of an event.
pub(super) const EVENT_WORDS: usize = 16;

/// Bytes of an event.
pub const EVENT_BYTES: usize = EVENT_WORDS * 8;

/// Words before the arguments.
pub(super) const HEAD_WORDS: usize = 8;

/// Bytes of arguments that one event holds.
pub(super) const ARGS_BYTES: usize = (EVENT_WORDS - HEAD_WORDS) * 8;

/// Events that the arguments of one call may take.
pub(super) const ARGS_BLOCKS: usize = 3;

/// Room for which it is worth to begin a text that will be cut.
const CUT_TEXT_BYTES_MIN: usize = 8;

/// Name of the field that links events to one flow.
const FLOW_FIELD: &str = "flow";

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A span was made; the step that may follow is that it was entered.
    New = 1,
    /// Entered.
    Enter = 2,
    /// Left; the step that may follow is that it was closed.
    Exit = 3,
    /// Closed: nobody holds it any more.
    Close = 4,
    /// More arguments of a span, or of the instant just before on the same ring.
    More = 5,
    /// Something without a duration.
    Instant = 6,
}

impl Kind {
    fn of(byte: u8) -> Option<Kind> {
        [Kind::New, Kind::Enter, Kind::Exit, Kind::Close, Kind::More, Kind::Instant]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

const U64: u8 = 0;
const I64: u8 = 1;
const F64: u8 = 2;
const FALSE: u8 = 3;
const TRUE: u8 = 4;
const TEXT: u8 = 5;
const CUT_TEXT: u8 = 6;

const FIELD_BITS: u32 = 5;

/// The value of an argument.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    U64(u64),
    I64(i64),
    F64(f64),
    Bool(bool),
    Text { text: String, is_cut: bool },
}

/// The parts of an event that are not arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) kind: Kind,
    pub(super) at_ns: u64,
    pub(super) span: u64,
    pub(super) callsite: u64,
    /// Parent or beginning.
    pub(super) context: u64,
    pub(super) flow: u64,
}

/// An event that was read from a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) head: Head,
    /// When the following step came.
    pub(super) then_ns: Option<u64>,
    pub(super) args_lost: u8,
    args_bytes: u8,
    args: [u64; EVENT_WORDS - HEAD_WORDS],
}

impl Event {
    /// Reads an event from its words; `None` if they are none.
    pub(super) fn of_words(words: &[u64; EVENT_WORDS]) -> Option<Event> {
        let [kind, args_bytes, args_lost, ..] = words[1].to_le_bytes();
        let mut args = [0; EVENT_WORDS - HEAD_WORDS];
        args.copy_from_slice(&words[HEAD_WORDS..]);
        Some(Event {
            head: Head {
                kind: Kind::of(kind)?,
                at_ns: words[2],
                span: words[3],
                callsite: words[4],
                context: words[5],
                flow: words[6],
            },
            then_ns: (words[7] > 0).then_some(words[7]),
            args_lost,
            args_bytes: args_bytes.min(ARGS_BYTES as u8),
            args,
        })
    }

    /// The arguments: number of the field, and value.
    pub(super) fn args(&self) -> Vec<(usize, Value)> {
        let mut bytes = [0; ARGS_BYTES];
        for (target, word) in bytes.chunks_exact_mut(8).zip(self.args) {
            target.copy_from_slice(&word.to_le_bytes());
        }
        let mut rest = &bytes[..usize::from(self.args_bytes)];
        std::iter::from_fn(|| decode_arg(&mut rest)).collect()
    }
}

fn decode_arg(rest: &mut &[u8]) -> Option<(usize, Value)> {
    let (tag, after) = rest.split_first()?;
    *rest = after;
    let mut number = || {
        let (bytes, after) = rest.split_first_chunk::<8>()?;
        *rest = after;
        Some(u64::from_le_bytes(*bytes))
    };
    let value = match tag >> FIELD_BITS {
        U64 => Value::U64(number()?),
        I64 => Value::I64(number()?.cast_signed()),
        F64 => Value::F64(f64::from_bits(number()?)),
        FALSE => Value::Bool(false),
        TRUE => Value::Bool(true),
        kind @ (TEXT | CUT_TEXT) => {
            let (len, after) = rest.split_first()?;
            let (text, after) = after.split_at_checked(usize::from(*len))?;
            *rest = after;
            Value::Text { text: String::from_utf8_lossy(text).into_owned(), is_cut: kind == CUT_TEXT }
        }
        _ => return None,
    };
    Some((usize::from(tag & ((1 << FIELD_BITS) - 1)), value))
}

/// The second word of an event.
pub(super) fn describe(kind: Kind, args_bytes: u8, args_lost: u8) -> u64 {
    u64::from_le_bytes([kind as u8, args_bytes, args_lost, 0, 0, 0, 0, 0])
}

/// The arguments of one event.
#[derive(Debug, Clone, Copy)]
pub(super) struct Args<'a> {
    pub(super) bytes: &'a [u8; ARGS_BYTES],
    pub(super) used: u8,
}

impl Args<'static> {
    pub(super) const NONE: Args<'static> = Args { bytes: &[0; ARGS_BYTES], used: 0 };
}

impl Args<'_> {
    /// The words in use.
    #[inline]
    pub(super) fn words(&self) -> impl Iterator<Item = u64> {
        let words = self.bytes.as_chunks::<8>().0.iter().take(usize::from(self.used).div_ceil(8));
        words.map(|word| u64::from_le_bytes(*word))
    }
}

/// Collects the arguments of one call.
#[derive(Debug)]
pub(super) struct ArgsWriter {
    bytes: [u8; ARGS_BYTES * ARGS_BLOCKS],
    used: [u8; ARGS_BLOCKS],
    block: usize,
    lost: u8,
    flow: u64,
}

impl ArgsWriter {
    pub(super) fn new() -> ArgsWriter {
        ArgsWriter {
            bytes: [0; ARGS_BYTES * ARGS_BLOCKS],
            used: [0; ARGS_BLOCKS],
            block: 0,
            lost: 0,
            flow: 0,
        }
    }

    /// The value of the field `flow`, 0 if there is none.
    pub(super) fn flow(&self) -> u64 {
        self.flow
    }

    /// Arguments that found no room.
    pub(super) fn lost(&self) -> u8 {
        self.lost
    }

    /// The bytes for the first event, and for those that must follow it.
    #[inline]
    pub(super) fn blocks(&self) -> impl Iterator<Item = Args<'_>> {
        let blocks = self.bytes.as_chunks::<ARGS_BYTES>().0.iter().zip(self.used);
        blocks.take(self.block + 1).map(|(bytes, used)| Args { bytes, used })
    }

    fn free(&self) -> usize {
        ARGS_BYTES - usize::from(self.used[self.block])
    }

    /// Goes on to the next event if this one has not `bytes` left.
    fn has_room(&mut self, bytes: usize) -> bool {
        if self.free() >= bytes {
            return true;
        }
        if self.block + 1 == ARGS_BLOCKS {
            return false;
        }
        self.block += 1;
        true
    }

    fn push(&mut self, bytes: &[u8]) {
        let from = self.block * ARGS_BYTES + usize::from(self.used[self.block]);
        self.bytes[from..from + bytes.len()].copy_from_slice(bytes);
        self.used[self.block] += bytes.len() as u8;
    }

    fn number(&mut self, field: &Field, kind: u8, number: u64) {
        if !self.has_room(9) {
            return self.lose();
        }
        self.push(&[tag(field, kind)]);
        self.push(&number.to_le_bytes());
    }

    fn lose(&mut self) {
        self.lost = self.lost.saturating_add(1);
    }

    fn text(&mut self, field: &Field, text: &ShortText) {
        let whole = 2 + text.used;
        if !self.has_room(whole) && self.free() < CUT_TEXT_BYTES_MIN {
            return self.lose();
        }
        let bytes = &text.bytes[..text.used];
        let room = self.free() - 2;
        let kept = if bytes.len() <= room { bytes.len() } else { floor_char(bytes, room) };
        let is_cut = text.is_cut || kept < bytes.len();
        self.push(&[tag(field, if is_cut { CUT_TEXT } else { TEXT }), kept as u8]);
        self.push(&text.bytes[..kept]);
    }
}

fn tag(field: &Field, kind: u8) -> u8 {
    (field.index() as u8 & ((1 << FIELD_BITS) - 1)) | kind << FIELD_BITS
}

/// The greatest end of a character at or before `end`.
fn floor_char(bytes: &[u8], end: usize) -> usize {
    (0..=end).rev().find(|at| bytes.get(*at).is_none_or(|byte| byte & 0xC0 != 0x80)).unwrap_or(0)
}

/// The beginning of a text, as much as one event may hold.
struct ShortText {
    bytes: [u8; ARGS_BYTES - 2],
    used: usize,
    is_cut: bool,
}

impl ShortText {
    fn new() -> ShortText {
        ShortText { bytes: [0; ARGS_BYTES - 2], used: 0, is_cut: false }
    }
}

impl Write for ShortText {
    /// Fails once the text is cut, which ends the formatting.
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let room = self.bytes.len() - self.used;
        let kept = if text.len() <= room { text.len() } else { floor_char(text.as_bytes(), room) };
        self.bytes[self.used..self.used + kept].copy_from_slice(&text.as_bytes()[..kept]);
        self.used += kept;
        self.is_cut = kept < text.len();
        if self.is_cut { Err(std::fmt::Error) } else { Ok(()) }
    }
}

impl Visit for ArgsWriter {
    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == FLOW_FIELD {
            self.flow = value;
        }
        self.number(field, U64, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.number(field, I64, value.cast_unsigned());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.number(field, F64, value.to_bits());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        if !self.has_room(1) {
            return self.lose();
        }
        self.push(&[tag(field, if value { TRUE } else { FALSE })]);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let mut text = ShortText::new();
        let _ = text.write_str(value);
        self.text(field, &text);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let mut text = ShortText::new();
        let _ = write!(text, "{value:?}");
        self.text(field, &text);
    }
}
