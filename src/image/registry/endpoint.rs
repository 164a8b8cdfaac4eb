//! Where a registry is to be found: its address, the schemes to try, the certificates to trust.

use std::path::{Path, PathBuf};

use reqwest::{Certificate, ClientBuilder, Identity, Url, redirect};

use super::RegistryOptions;
use super::config;
use super::error::RegistryError;

/// What references call docker's registry.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Where it is.
const DEFAULT_HOST: &str = "registry-1.docker.io";
/// What files of credentials call it.
const DEFAULT_KEY: &str = "https://index.docker.io/v1/";
/// Where certificates for a registry lie, in a folder of its name.
const CERTIFICATES: [&str; 3] = [
    "/etc/acetate/certs.d",
    "/etc/docker/certs.d",
    "/etc/containers/certs.d",
];

/// One place to ask.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    /// How messages call it: host and port.
    pub(super) name: String,
    /// Addresses to try in turn; repositories lie below `v2/` of them. All end with a slash.
    pub(super) addresses: Vec<Url>,
    /// Whether certificates are checked.
    pub(super) verify: bool,
    /// What files of credentials call it.
    key: String,
}

impl Endpoint {
    /// The registry itself.
    pub(super) fn of(registry: &str, options: &RegistryOptions) -> Result<Endpoint, RegistryError> {
        let (host, key) = match registry {
            DEFAULT_REGISTRY => (DEFAULT_HOST, DEFAULT_KEY),
            other => (other, other),
        };
        let insecure = match options.tls_verify {
            Some(verify) => !verify,
            None => options.config.is_insecure(registry),
        };
        let schemes: &[&str] = if insecure {
            &["https", "http"]
        } else {
            &["https"]
        };
        let mut addresses = Vec::new();
        for scheme in schemes {
            let url = Url::parse(&format!("{scheme}://{host}/"));
            addresses.push(url.map_err(|e| RegistryError::Config {
                place: registry.to_owned(),
                why: e.to_string(),
            })?);
        }
        Ok(Endpoint {
            name: registry.to_owned(),
            addresses,
            verify: !insecure,
            key: key.to_owned(),
        })
    }

    /// A mirror, by its address.
    fn mirror(text: &str, options: &RegistryOptions) -> Result<Endpoint, RegistryError> {
        let mut url = config::mirror_url(text).map_err(|why| RegistryError::Config {
            place: "registry-mirrors".to_owned(),
            why,
        })?;
        if !url.path().ends_with('/') {
            url.set_path(&format!("{}/", url.path()));
        }
        let host = url.host_str().unwrap_or_default();
        let name = match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        let insecure = match options.tls_verify {
            Some(verify) => !verify,
            None => options.config.is_insecure(&name),
        };
        Ok(Endpoint {
            key: name.clone(),
            name,
            addresses: vec![url],
            verify: !insecure,
        })
    }

    /// All places that may have images of `registry`, the best first: as with docker, mirrors are the default
    /// registry's.
    pub(super) fn all(
        registry: &str,
        options: &RegistryOptions,
    ) -> Result<Vec<Endpoint>, RegistryError> {
        let mut endpoints = Vec::new();
        if registry == DEFAULT_REGISTRY {
            for mirror in &options.config.mirrors {
                endpoints.push(Endpoint::mirror(mirror, options)?);
            }
        }
        endpoints.push(Endpoint::of(registry, options)?);
        Ok(endpoints)
    }

    /// What files of credentials call it. A mirror is never shown those of the registry that it mirrors.
    pub(super) fn credentials_key(&self) -> &str {
        &self.key
    }

    /// Adds the certificates for this place.
    pub(super) fn add_certificates(
        &self,
        mut builder: ClientBuilder,
        options: &RegistryOptions,
    ) -> Result<ClientBuilder, RegistryError> {
        let mut folders: Vec<PathBuf> = options.cert_dir.iter().cloned().collect();
        let user = std::env::var_os("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".config")))
            .map(|base| base.join("containers/certs.d"));
        let bases = user.into_iter().chain(CERTIFICATES.map(PathBuf::from));
        folders.extend(bases.map(|base| base.join(&self.name)));
        for folder in folders {
            let named = options.cert_dir.as_ref() == Some(&folder);
            if !named && !folder.is_dir() {
                continue;
            }
            for path in list(&folder)? {
                match path.extension().and_then(|e| e.to_str()) {
                    Some("crt") => {
                        let found = Certificate::from_pem_bundle(&read(&path)?)
                            .map_err(|e| unusable(&path, &e))?;
                        builder = builder.tls_certs_merge(found);
                    }
                    Some("cert") => {
                        let mut pem = read(&path)?;
                        pem.push(b'\n');
                        pem.extend(read(&path.with_extension("key"))?);
                        let identity = Identity::from_pem(&pem).map_err(|e| unusable(&path, &e))?;
                        builder = builder.identity(identity);
                    }
                    _ => {}
                }
            }
        }
        if !self.verify {
            builder = builder.tls_danger_accept_invalid_certs(true);
        }
        // Blobs often lie elsewhere; what was asked for in secret is not answered in the open.
        let policy = redirect::Policy::custom(|attempt| {
            let from = attempt.previous().last().map(Url::scheme);
            if from == Some("https") && attempt.url().scheme() != "https" {
                return attempt.error("it leads from https to plain http");
            }
            if attempt.previous().len() > 10 {
                return attempt.error("too many redirects");
            }
            attempt.follow()
        });
        Ok(builder.redirect(policy))
    }
}

fn list(folder: &Path) -> Result<Vec<PathBuf>, RegistryError> {
    let failed = |e: std::io::Error| RegistryError::File {
        action: "read",
        path: folder.to_owned(),
        why: e.to_string(),
    };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        paths.push(entry.map_err(failed)?.path());
    }
    paths.sort();
    Ok(paths)
}

fn read(path: &Path) -> Result<Vec<u8>, RegistryError> {
    std::fs::read(path).map_err(|e| RegistryError::File {
        action: "read",
        path: path.to_owned(),
        why: e.to_string(),
    })
}

fn unusable(path: &Path, error: &reqwest::Error) -> RegistryError {
    RegistryError::File {
        action: "use",
        path: path.to_owned(),
        why: super::error::reason(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_insecure_registries_only() {
        let options = RegistryOptions::default();
        let schemes = |registry: &str, options: &RegistryOptions| {
            let endpoint = Endpoint::of(registry, options).unwrap();
            let schemes: Vec<String> = endpoint
                .addresses
                .iter()
                .map(|url| url.scheme().to_owned())
                .collect();
            (schemes.join(","), endpoint.verify)
        };
        assert_eq!(schemes("quay.io", &options), ("https".to_owned(), true));
        assert_eq!(
            schemes("127.0.0.1:5000", &options),
            ("https,http".to_owned(), false)
        );
        let strict = RegistryOptions {
            tls_verify: Some(true),
            ..RegistryOptions::default()
        };
        assert_eq!(
            schemes("127.0.0.1:5000", &strict),
            ("https".to_owned(), true)
        );
    }

    #[test]
    fn mirrors_are_for_the_default_registry_and_have_their_own_credentials() {
        let mut options = RegistryOptions::default();
        options.config.mirrors = vec!["https://m.example:444/hub".to_owned()];
        let all = Endpoint::all("docker.io", &options).unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].addresses[0].as_str(), "https://m.example:444/hub/");
        assert_eq!(all[0].credentials_key(), "m.example:444");
        assert_eq!(all[1].credentials_key(), DEFAULT_KEY);
        assert_eq!(Endpoint::all("quay.io", &options).unwrap().len(), 1);
    }
}
