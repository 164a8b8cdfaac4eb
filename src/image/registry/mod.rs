//! Images from and to registries, by the protocol of the OCI distribution specification.
//!
//! [`Registry`] is the blocking face: the rest of the program knows nothing of futures. It asks with `reqwest` directly:
//! retries, resumed downloads, mirrors and docker's files of credentials are all of the work here, and the client crates
//! that there are have none of them.
//!
//! ```text
//! pull, push, listing -> blob -> client -> auth -> credentials
//!                                client -> endpoint -> config
//! ```
//!
//! A layer is unpacked while it arrives: what comes from the network is appended to a file below the store's `partial`
//! and handed on to the decompressor. The file stays when the pull is interrupted, and the next one asks for the rest
//! only. Nothing is published before the digests of the blob and of the tar in it are the promised ones; the file then
//! becomes the store's blob by a rename.

mod auth;
mod blob;
mod client;
mod config;
mod credentials;
mod endpoint;
mod error;
mod listing;
mod progress;
mod pull;
mod push;
mod retry;

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::runtime::{Builder, Runtime};

use super::error::ImageError;
use super::reference::Reference;

pub use config::RegistryConfig;
pub use error::RegistryError;
pub use progress::{LayerEvent, Progress, Silent};
pub use pull::Pulled;
pub use push::Pushed;

use client::Client;
use credentials::Credentials;
use endpoint::Endpoint;

/// How registries are to be reached.
#[derive(Clone, Debug, Default)]
pub struct RegistryOptions {
    /// What the configuration files say.
    pub config: RegistryConfig,
    /// Whether certificates are checked and plain http is refused; `None`: as the configuration says.
    pub tls_verify: Option<bool>,
    /// A folder with `*.crt` (authorities to trust), `*.cert` and `*.key` (to show), beside the usual ones.
    pub cert_dir: Option<PathBuf>,
    /// The only file of credentials to use, instead of docker's and podman's.
    pub auth_file: Option<PathBuf>,
}

/// Access to registries. Used from any number of threads at once, though never from an async one.
#[derive(Debug)]
pub struct Registry {
    /// Immutable.
    runtime: Runtime,
    /// Immutable.
    options: RegistryOptions,
    /// Immutable.
    credentials: Credentials,
}

impl Registry {
    /// Prepares access; asks nobody yet.
    pub fn new(options: RegistryOptions) -> Result<Registry, ImageError> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .thread_name("acetate-registry")
            .build()
            .map_err(ImageError::io("start", "the registry's threads"))?;
        let credentials = Credentials::new(options.auth_file.clone());
        Ok(Registry {
            runtime,
            options,
            credentials,
        })
    }

    /// Waits for an answer.
    fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Connects to one place that has the repositories of `registry`.
    fn connect(&self, endpoint: &Endpoint, repository: &str) -> Result<Arc<Client>, RegistryError> {
        let login = self
            .credentials
            .find(endpoint.credentials_key(), repository)?;
        let client = self.wait(Client::connect(endpoint, &self.options, login))?;
        Ok(Arc::new(client))
    }

    /// Connects to the registry itself, for what mirrors are not asked for.
    fn connect_to(&self, registry: &str, repository: &str) -> Result<Arc<Client>, RegistryError> {
        self.connect(&Endpoint::of(registry, &self.options)?, repository)
    }

    /// Asks the registry whether it takes these credentials, and keeps them if it does. Gives the place where.
    pub fn login(
        &self,
        registry: &str,
        user: &str,
        password: &str,
    ) -> Result<String, RegistryError> {
        let endpoint = Endpoint::of(registry, &self.options)?;
        let login = credentials::Login::Password {
            user: user.to_owned(),
            password: password.to_owned(),
        };
        let client = self.wait(Client::connect(&endpoint, &self.options, Some(login)))?;
        self.wait(client.check_login())?;
        self.credentials
            .store(endpoint.credentials_key(), user, password)
    }

    /// Forgets the credentials for a registry. False where there were none.
    pub fn logout(&self, registry: &str) -> Result<bool, RegistryError> {
        let endpoint = Endpoint::of(registry, &self.options)?;
        self.credentials.erase(endpoint.credentials_key())
    }
}

/// The host that `login` and `catalog` mean: a host and port, as a reference begins, also with the scheme that users
/// copy along.
pub fn registry_host(text: &str) -> Result<String, ImageError> {
    let host = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"))
        .unwrap_or(text)
        .trim_end_matches('/');
    let host = match host {
        "index.docker.io/v1" | "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    };
    // Valid where a reference with it is, and the port of one.
    match Reference::parse(&format!("{host}/name")) {
        Ok(reference) if reference.registry() == host => Ok(host.to_owned()),
        // A name without a dot, which a reference would take for a namespace.
        _ if Reference::parse(&format!("{host}:80/name")).is_ok() && !host.contains('/') => {
            Ok(host.to_owned())
        }
        _ => Err(ImageError::InvalidReference {
            reference: text.to_owned(),
            why: "it is no host name with or without a port",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_named_as_users_name_them() {
        for (text, host) in [
            ("quay.io", Some("quay.io")),
            ("https://quay.io/", Some("quay.io")),
            ("http://127.0.0.1:5000", Some("127.0.0.1:5000")),
            ("[::1]:5000", Some("[::1]:5000")),
            ("localhost", Some("localhost")),
            ("registry", Some("registry")),
            ("docker.io", Some("docker.io")),
            ("https://index.docker.io/v1/", Some("docker.io")),
            ("quay.io/team", None),
            ("registry:port", None),
            ("a b", None),
            ("", None),
        ] {
            assert_eq!(registry_host(text).ok().as_deref(), host, "{text:?}");
        }
    }
}
