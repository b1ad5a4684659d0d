//! What a client gets back.

use serde::Serialize;
use serde_json::Value;

/// The status codes that are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Here it is.
    Ok,
    /// Done.
    NoContent,
    /// Cannot be done, or not now; the fault says why.
    BadRequest,
    /// The client did not finish its request.
    RequestTimeout,
    /// The metadata would be larger than they may be.
    PayloadTooLarge,
    /// Too many clients.
    ServiceUnavailable,
}

impl Status {
    /// Its number.
    pub fn code(self) -> u16 {
        match self {
            Self::Ok => 200,
            Self::NoContent => 204,
            Self::BadRequest => 400,
            Self::RequestTimeout => 408,
            Self::PayloadTooLarge => 413,
            Self::ServiceUnavailable => 503,
        }
    }

    /// Its name.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::NoContent => "No Content",
            Self::BadRequest => "Bad Request",
            Self::RequestTimeout => "Request Timeout",
            Self::PayloadTooLarge => "Payload Too Large",
            Self::ServiceUnavailable => "Service Unavailable",
        }
    }
}

/// The answer to a request that was carried out.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Nothing to say.
    Done,
    /// A JSON document.
    Json(Value),
}

impl Answer {
    /// `body` as JSON.
    pub fn json(body: &impl Serialize) -> Outcome {
        serde_json::to_value(body)
            .map(Self::Json)
            .map_err(|error| Fault::new(format!("The answer cannot be written as JSON: {error}")))
    }
}

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What kind of fault.
    pub status: Status,
    /// What was wrong, for a person.
    pub message: String,
}

impl Fault {
    /// What most faults are: the request, or its time, was wrong.
    pub fn new(message: impl Into<String>) -> Self {
        Self::with_status(Status::BadRequest, message)
    }

    /// A fault of another kind.
    pub fn with_status(status: Status, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }

    /// The VMM runs no guest that has not been started.
    pub fn before_start() -> Self {
        Self::new("The requested operation is not supported before starting the microVM.")
    }

    /// The guest's configuration is no longer open.
    pub fn after_start() -> Self {
        Self::new("The requested operation is not supported after starting the microVM.")
    }

    /// The VMM cannot do this at all; `what` is a short name for it.
    pub fn not_supported(what: &str) -> Self {
        Self::new(format!("The requested operation is not supported: {what}"))
    }
}

/// An answer or a fault.
pub type Outcome = Result<Answer, Fault>;
