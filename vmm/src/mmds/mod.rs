//! The metadata service (Firecracker's MMDS): what the host wants the guest to know, for the guest to fetch by HTTP.
//!
//! ```text
//!   PUT, PATCH, GET /mmds ──► Store ◄── http ◄── endpoint (TCP/IP) ◄── net device: frames to 169.254.169.254
//!                                        ▲
//!                                     tokens (V2)
//! ```
//!
//! No frame for the service reaches the network, and nothing of the network reaches the service. All that a guest sends
//! is hostile: connections, buffers and answers are bounded, and a guest that asks more is answered more slowly.

mod connection;
mod endpoint;
mod http;
mod queues;
mod store;
mod token;

use std::fs::File;
use std::io::{self, Read};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

pub use self::endpoint::Endpoint;
pub use self::http::answer;
pub use self::store::{DEFAULT_LIMIT, Store, StoreError};
use self::token::Tokens;
use crate::metrics;
use devices::metrics::MmdsMetrics;

/// Where guests look for their metadata if nobody says otherwise.
pub const DEFAULT_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// How guests may ask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// Just so.
    #[default]
    V1,
    /// With a token that they have got before: who can make a guest's program fetch an address of his choice learns
    /// nothing.
    V2,
}

/// How the service is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// How guests may ask.
    pub version: Version,
    /// The network interfaces that have it, by their names.
    pub interfaces: Vec<String>,
    /// Its address.
    pub address: Ipv4Addr,
    /// Answers are plain text, whatever the guest would accept.
    pub imds_compat: bool,
}

/// Why the service cannot be reached so.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is no such version.
    #[error("MMDS version \"{0}\" is unknown, permitted are V1 and V2")]
    Version(String),
    /// That is no address of a neighbour.
    #[error(
        "The MMDS address \"{0}\" is not a link-local IPv4 address (169.254.1.0 to 169.254.254.255)"
    )]
    Address(String),
    /// Nobody could ask.
    #[error("The list of network interfaces that serve the MMDS is empty")]
    NoInterfaces,
    /// Nobody could ask by that.
    #[error("Network interface \"{0}\" is to serve the MMDS and does not exist")]
    UnknownInterface(String),
}

impl Config {
    /// Checks what `asked` says, for a guest with these `interfaces`.
    pub fn check(asked: &api::model::MmdsConfig, interfaces: &[&str]) -> Result<Self, ConfigError> {
        let version = match asked.version.as_deref() {
            None | Some("V1") => Version::V1,
            Some("V2") => Version::V2,
            Some(other) => return Err(ConfigError::Version(other.into())),
        };
        let address = match asked.ipv4_address.as_deref() {
            None => DEFAULT_ADDRESS,
            Some(text) => text
                .parse()
                .ok()
                .filter(is_usable)
                .ok_or_else(|| ConfigError::Address(text.into()))?,
        };
        if asked.network_interfaces.is_empty() {
            return Err(ConfigError::NoInterfaces);
        }
        for name in &asked.network_interfaces {
            if !interfaces.contains(&name.as_str()) {
                return Err(ConfigError::UnknownInterface(name.clone()));
            }
        }
        Ok(Self {
            version,
            interfaces: asked.network_interfaces.clone(),
            address,
            imds_compat: asked.imds_compat,
        })
    }
}

/// Link-local, without the two blocks that RFC 3927 keeps back.
fn is_usable(address: &Ipv4Addr) -> bool {
    let [_, _, third, _] = address.octets();
    address.is_link_local() && (1..=254).contains(&third)
}

/// Why a file's metadata are not the guest's.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It cannot be read.
    #[error("Cannot read the metadata {path}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// It is not JSON.
    #[error("The metadata {path} cannot be understood", path = .path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: serde_json::Error,
    },
    /// It cannot be taken.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Has `service` know what the file `path` says.
pub fn load(service: &Mmds, path: &Path) -> Result<(), LoadError> {
    let read = |source| LoadError::Read {
        path: path.into(),
        source,
    };
    let mut store = service.store();
    // With room for white space; what is longer than that is cut, and no JSON any more.
    let most = (store.limit() as u64).saturating_mul(4);
    let mut text = Vec::new();
    let mut file = File::open(path).map_err(read)?.take(most);
    file.read_to_end(&mut text).map_err(read)?;
    let data = serde_json::from_slice(&text).map_err(|source| LoadError::Json {
        path: path.into(),
        source,
    })?;
    Ok(store.put(data)?)
}

/// The service.
pub struct Mmds {
    store: Mutex<Store>,
    config: Mutex<Option<Config>>,
    metrics: Arc<MmdsMetrics>,
}

/// The service of this process's guest.
pub fn process() -> &'static Mmds {
    static PROCESS: LazyLock<Mmds> = LazyLock::new(|| {
        let service = Mmds::new();
        metrics::process().add("mmds", None, service.metrics.clone());
        service
    });
    &PROCESS
}

impl Default for Mmds {
    fn default() -> Self {
        Self::new()
    }
}

impl Mmds {
    /// A service that knows nothing and that nobody reaches.
    pub fn new() -> Self {
        Self {
            store: Mutex::default(),
            config: Mutex::new(None),
            metrics: Arc::default(),
        }
    }

    /// What it knows. For the shortest time only: a guest's network may wait for it.
    pub fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is reached so from now on, by interfaces that are made from now on.
    pub fn configure(&self, config: Config) {
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = Some(config);
    }

    /// What serves it on the network interface `name`, if that is to have it.
    pub fn endpoint(&'static self, name: &str) -> io::Result<Option<Endpoint>> {
        let config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        match &*config {
            Some(config) if config.interfaces.iter().any(|known| known == name) => {
                Endpoint::new(self, config).map(Some)
            }
            _ => Ok(None),
        }
    }
}

/// How a guest is answered: what the service knows, and by which rules.
pub struct Rules {
    version: Version,
    imds_compat: bool,
    tokens: Tokens,
}

impl Rules {
    /// The rules of `config`, with tokens of their own.
    pub fn new(config: &Config) -> io::Result<Self> {
        Ok(Self {
            version: config.version,
            imds_compat: config.imds_compat,
            tokens: Tokens::new()?,
        })
    }
}

#[cfg(test)]
mod tests;
