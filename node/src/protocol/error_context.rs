//! What a failed request says beside its status: a short text, a reference, the manifest a name was sought in.
//!
//! [`Refusal`] is the answer of every check in this module tree; [`ErrorContext`] is the JSON body of a failure,
//! both ways.
//!
//! Cost: a refusal is two words and allocates nothing; only the JSON body does.
//!
//! Does not know: which failures carry which texts; whether the connection negotiated JSON.

use serde::{Deserialize, Serialize};

use super::Status;

/// Why a request is not executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{status}: {context}")]
pub struct Refusal {
    /// What the response says.
    pub status: Status,
    /// What its error body says; may be empty.
    pub context: &'static str,
}

impl Refusal {
    /// A refusal with `status`.
    #[must_use]
    pub const fn new(status: Status, context: &'static str) -> Refusal {
        Refusal { status, context }
    }

    /// A malformed request.
    #[must_use]
    pub const fn einval(context: &'static str) -> Refusal {
        Refusal { status: Status::EINVAL, context }
    }
}

/// The JSON body of a failure; every member may be absent.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct ErrorContext {
    /// Text for a person.
    pub context: Option<String>,
    /// Where the server's log says more.
    pub reference: Option<String>,
    /// The collections manifest in which an id or name was not found.
    pub manifest_uid: Option<u64>,
    /// When a throttled request may be tried again, in microseconds.
    pub next_tick_us: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct Body {
    #[serde(skip_serializing_if = "Option::is_none")]
    manifest_uid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_tick_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Inner>,
}

#[derive(Serialize, Deserialize)]
struct Inner {
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<String>,
    #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
    reference: Option<String>,
}

impl ErrorContext {
    /// A context with nothing but a text; an empty text says nothing.
    #[must_use]
    pub fn text(context: &str) -> ErrorContext {
        ErrorContext { context: (!context.is_empty()).then(|| context.to_owned()), ..ErrorContext::default() }
    }

    /// The body, empty if there is nothing to say.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        if *self == ErrorContext::default() {
            return Vec::new();
        }
        let error = (self.context.is_some() || self.reference.is_some())
            .then(|| Inner { context: self.context.clone(), reference: self.reference.clone() });
        let manifest_uid = self.manifest_uid.map(|uid| format!("{uid:x}"));
        let body = Body { manifest_uid, next_tick_us: self.next_tick_us, error };
        serde_json::to_vec(&body).expect("strings and numbers always have a JSON form")
    }

    /// Reads the body of a failed response; a body that is not such JSON becomes the text as it is.
    #[must_use]
    pub fn decode(body: &[u8]) -> ErrorContext {
        match serde_json::from_slice::<Body>(body) {
            Ok(Body { manifest_uid, next_tick_us, error }) => {
                let (context, reference) =
                    error.map_or((None, None), |inner| (inner.context, inner.reference));
                let manifest_uid = manifest_uid.and_then(|uid| u64::from_str_radix(&uid, 16).ok());
                ErrorContext { context, reference, manifest_uid, next_tick_us }
            }
            Err(_) => ErrorContext::text(&String::from_utf8_lossy(body)),
        }
    }
}

impl From<Refusal> for ErrorContext {
    fn from(refusal: Refusal) -> ErrorContext {
        ErrorContext::text(refusal.context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_have_the_form_of_the_protocol_and_can_be_read_back() {
        let text = ErrorContext::text("no such \"key\"");
        assert_eq!(text.encode(), br#"{"error":{"context":"no such \"key\""}}"#);
        let unknown = ErrorContext { manifest_uid: Some(0x1f), ..text.clone() };
        assert_eq!(unknown.encode(), br#"{"manifest_uid":"1f","error":{"context":"no such \"key\""}}"#);
        let throttled = ErrorContext { next_tick_us: Some(123_456), ..ErrorContext::default() };
        assert_eq!(throttled.encode(), br#"{"next_tick_us":123456}"#);
        let reference = ErrorContext { reference: Some("7d6b".to_owned()), ..ErrorContext::default() };
        assert_eq!(reference.encode(), br#"{"error":{"ref":"7d6b"}}"#);
        for context in [text, unknown, throttled, reference] {
            assert_eq!(ErrorContext::decode(&context.encode()), context);
        }
    }

    #[test]
    fn nothing_to_say_is_an_empty_body() {
        assert!(ErrorContext::default().encode().is_empty());
        assert!(ErrorContext::from(Refusal::einval("")).encode().is_empty());
        assert_eq!(ErrorContext::decode(b""), ErrorContext::default());
    }

    #[test]
    fn an_old_style_text_body_is_kept_as_text() {
        assert_eq!(ErrorContext::decode(b"Not found").context.as_deref(), Some("Not found"));
    }
}
