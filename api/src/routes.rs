//! From a method, a path and a body to a [`Request`], as Firecracker reads them.

use std::fmt;

use serde::de::DeserializeOwned;

use crate::model::{ActionInfo, Vm};
use crate::{Fault, Request};

/// The methods that are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are HTTP's")]
pub enum Method {
    Get,
    Put,
    Patch,
    /// Ours: unplugs a device.
    Delete,
}

impl Method {
    const ALL: [Self; 4] = [Self::Get, Self::Put, Self::Patch, Self::Delete];

    /// By its name in a request.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.name() == name)
    }

    /// Its name in a request.
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Reads a body, and the name of what it is about.
type WithId = fn(&[u8]) -> Result<(Request, String), Fault>;

/// How a route makes its request.
#[derive(Clone, Copy)]
enum Maker {
    /// There is nothing in it.
    Plain(fn() -> Request),
    /// From the body.
    Body(fn(&[u8]) -> Result<Request, Fault>),
    /// From the body, and the ID in it, which must be that in the path.
    BodyWithId(WithId),
    /// From the ID in the path.
    Id(fn(String) -> Request),
    /// Whatever the body.
    NotSupported(&'static str),
}

/// A method on a path.
pub struct Route {
    /// The method.
    pub method: Method,
    /// The path; `{id}` stands for a name.
    pub path: &'static str,
    maker: Maker,
}

const fn get(path: &'static str, make: fn() -> Request) -> Route {
    route(Method::Get, path, Maker::Plain(make))
}

const fn put(path: &'static str, make: fn(&[u8]) -> Result<Request, Fault>) -> Route {
    route(Method::Put, path, Maker::Body(make))
}

const fn patch(path: &'static str, make: fn(&[u8]) -> Result<Request, Fault>) -> Route {
    route(Method::Patch, path, Maker::Body(make))
}

const fn with_id(method: Method, path: &'static str, make: WithId) -> Route {
    route(method, path, Maker::BodyWithId(make))
}

const fn not_supported(method: Method, path: &'static str, what: &'static str) -> Route {
    route(method, path, Maker::NotSupported(what))
}

const fn route(method: Method, path: &'static str, maker: Maker) -> Route {
    Route {
        method,
        path,
        maker,
    }
}

/// A request with the whole body in it.
macro_rules! body {
    ($request:ident) => {
        |body| json(body).map(Request::$request)
    };
}

/// A request with the whole body in it, and the body's field that says which of several it is about.
macro_rules! body_with {
    ($request:ident, $type:ident, $id:ident) => {
        |body| {
            let body: crate::model::$type = json(body)?;
            let id = body.$id.clone();
            Ok((Request::$request(body), id))
        }
    };
}

const HINTING: &str = "free page hinting, use free_page_reporting of the balloon";
const MEMORY: &str = "memory hot-plug, give the guest its memory before the start";
const PMEM_UPDATE: &str = "rate limits of pmem devices";
const CPU_CONFIG: &str = "cpu-config, choose a level by cpu_template of machine-config";

/// Every route there is.
pub const ROUTES: &[Route] = &[
    get("/", || Request::GetInstance),
    get("/version", || Request::GetVersion),
    get("/machine-config", || Request::GetMachineConfig),
    get("/vm/config", || Request::GetVmConfig),
    get("/balloon", || Request::GetBalloon),
    get("/balloon/statistics", || Request::GetBalloonStatistics),
    get("/mmds", || Request::GetMmds),
    get("/metrics", || Request::GetMetrics),
    put("/boot-source", body!(PutBootSource)),
    put("/machine-config", body!(PutMachineConfig)),
    with_id(
        Method::Put,
        "/drives/{id}",
        body_with!(PutDrive, Drive, drive_id),
    ),
    with_id(
        Method::Put,
        "/network-interfaces/{id}",
        body_with!(PutNetworkInterface, NetworkInterface, iface_id),
    ),
    with_id(Method::Put, "/pmem/{id}", body_with!(PutPmem, Pmem, id)),
    with_id(Method::Put, "/fs/{id}", body_with!(PutFs, Fs, tag)),
    put("/vsock", body!(PutVsock)),
    put("/logger", body!(PutLogger)),
    put("/metrics", body!(PutMetrics)),
    put("/actions", |body| {
        json(body).map(|ActionInfo { action_type }| Request::PutAction(action_type))
    }),
    put("/balloon", body!(PutBalloon)),
    put("/entropy", body!(PutEntropy)),
    put("/serial", body!(PutSerial)),
    put("/console", body!(PutConsole)),
    put("/mmds", body!(PutMmds)),
    put("/mmds/config", body!(PutMmdsConfig)),
    put("/snapshot/create", body!(CreateSnapshot)),
    put("/snapshot/load", body!(LoadSnapshot)),
    patch("/vm", |body| {
        json(body).map(|Vm { state }| Request::PatchVm(state))
    }),
    with_id(
        Method::Patch,
        "/drives/{id}",
        body_with!(PatchDrive, PartialDrive, drive_id),
    ),
    with_id(
        Method::Patch,
        "/network-interfaces/{id}",
        body_with!(PatchNetworkInterface, NetworkInterfaceUpdate, iface_id),
    ),
    patch("/balloon", body!(PatchBalloon)),
    patch("/balloon/statistics", body!(PatchBalloonStatistics)),
    patch("/machine-config", body!(PatchMachineConfig)),
    patch("/mmds", body!(PatchMmds)),
    route(
        Method::Delete,
        "/drives/{id}",
        Maker::Id(Request::DeleteDrive),
    ),
    route(
        Method::Delete,
        "/network-interfaces/{id}",
        Maker::Id(Request::DeleteNetworkInterface),
    ),
    not_supported(Method::Put, "/cpu-config", CPU_CONFIG),
    not_supported(Method::Patch, "/pmem/{id}", PMEM_UPDATE),
    not_supported(Method::Patch, "/balloon/hinting/start", HINTING),
    not_supported(Method::Get, "/balloon/hinting/status", HINTING),
    not_supported(Method::Patch, "/balloon/hinting/stop", HINTING),
    not_supported(Method::Put, "/hotplug/memory", MEMORY),
    not_supported(Method::Patch, "/hotplug/memory", MEMORY),
    not_supported(Method::Get, "/hotplug/memory", MEMORY),
];

/// What a path says about a route.
enum Match<'a> {
    No,
    Yes,
    Id(&'a str),
}

impl Route {
    fn match_path<'a>(&self, path: &[&'a str]) -> Match<'a> {
        let mut own = self.path[1..].split_terminator('/');
        let mut id = None;
        for given in path {
            match own.next() {
                Some("{id}") => id = Some(*given),
                Some(own) if own == *given => {}
                _ => return Match::No,
            }
        }
        match (own.next(), id) {
            (None, None) => Match::Yes,
            (None, Some(id)) => Match::Id(id),
            // A path that ends where the name should be.
            (Some("{id}"), _) => Match::Id(""),
            (Some(_), _) => Match::No,
        }
    }

    fn make(&self, path_id: Option<&str>, body: Option<&[u8]>) -> Result<Request, Fault> {
        let id = || check_id(path_id.unwrap_or_default());
        match (self.maker, body) {
            (Maker::NotSupported(what), _) => Ok(Request::NotSupported(what)),
            (Maker::Plain(make), None) => Ok(make()),
            (Maker::Id(make), None) => Ok(make(id()?.into())),
            (Maker::Plain(_) | Maker::Id(_), Some(_)) => Err(Fault::new(format!(
                "{} request cannot have a body.",
                self.method
            ))),
            (Maker::Body(_) | Maker::BodyWithId(_), None) => {
                Err(Fault::new(format!("Empty {} request.", self.method)))
            }
            (Maker::Body(make), Some(body)) => make(body),
            (Maker::BodyWithId(make), Some(body)) => {
                let path = id()?;
                let (request, id) = make(body)?;
                if id == path {
                    Ok(request)
                } else {
                    Err(Fault::new(format!(
                        "The id from the path [{path}] does not match the id from the body [{id}]!"
                    )))
                }
            }
        }
    }
}

fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Fault> {
    serde_json::from_slice(body).map_err(|error| {
        Fault::new(format!(
            "An error occurred when deserializing the json body of a request: {error}."
        ))
    })
}

fn check_id(id: &str) -> Result<&str, Fault> {
    if id.is_empty() {
        return Err(Fault::new("The ID cannot be empty."));
    }
    // Firecracker has no "-" here; configuration files with it are around.
    if !id
        .chars()
        .all(|c| c.is_alphanumeric() || matches!(c, '_' | '-'))
    {
        return Err(Fault::new(
            "API Resource IDs can only contain alphanumeric characters, underscores and hyphens.",
        ));
    }
    Ok(id)
}

/// Finds out what is asked for. An empty `body` is none.
pub fn parse(method: &str, path: &str, body: &[u8]) -> Result<Request, Fault> {
    let body = (!body.is_empty()).then_some(body);
    let segments: Vec<_> = path.trim_start_matches('/').split_terminator('/').collect();
    let first = segments.first().copied().unwrap_or_default();
    let unknown = || {
        let name: String = first.chars().take(64).collect();
        let method: String = method.chars().take(16).collect();
        Fault::new(format!(
            "Invalid request method and/or path: {method} {name}."
        ))
    };
    let known = Method::from_name(method).ok_or_else(unknown)?;
    for route in ROUTES.iter().filter(|route| route.method == known) {
        match route.match_path(&segments) {
            Match::No => {}
            Match::Yes => return route.make(None, body),
            Match::Id(id) => return route.make(Some(id), body),
        }
    }
    // What is missing is said first, as Firecracker does, whatever the path.
    match (known, body) {
        (Method::Get, Some(_)) => Err(Fault::new("GET request cannot have a body.")),
        (Method::Put | Method::Patch, None) => Err(Fault::new(format!("Empty {known} request."))),
        _ => Err(unknown()),
    }
}

#[cfg(test)]
mod tests;
