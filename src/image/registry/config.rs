//! The configuration file: `registry-mirrors` and `insecure-registries`, spelled as in docker's `daemon.json`.
//!
//! `/etc/acetate/config.json` holds for everyone, `$XDG_CONFIG_HOME/acetate/config.json` for one user; what the user's
//! file says of a key replaces what the other one says. A file that is named replaces both.

use std::net::{IpAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

use reqwest::Url;
use serde::Deserialize;

use super::error::RegistryError;

const SYSTEM: &str = "/etc/acetate/config.json";

/// What the configuration says of registries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegistryConfig {
    /// Addresses that are asked before the default registry, in turn.
    pub mirrors: Vec<String>,
    /// Hosts, with or without a port, and networks, whose certificates are not checked and which may speak plain http.
    pub insecure: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct ConfigFile {
    registry_mirrors: Option<Vec<String>>,
    insecure_registries: Option<Vec<String>>,
}

impl RegistryConfig {
    /// Reads `named`, which must be there, or else the usual files, where they are.
    pub fn read(named: Option<&Path>) -> Result<RegistryConfig, RegistryError> {
        let mut config = RegistryConfig::default();
        let files = match named {
            Some(path) => vec![path.to_owned()],
            None => [Some(PathBuf::from(SYSTEM)), user_file()]
                .into_iter()
                .flatten()
                .filter(|path| path.exists())
                .collect(),
        };
        for path in files {
            let bytes = std::fs::read(&path).map_err(|e| RegistryError::File {
                action: "read",
                path: path.clone(),
                why: e.to_string(),
            })?;
            let wrong = |why: String| RegistryError::Config {
                place: path.display().to_string(),
                why,
            };
            let file: ConfigFile =
                serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
            if let Some(mirrors) = file.registry_mirrors {
                for mirror in &mirrors {
                    mirror_url(mirror).map_err(&wrong)?;
                }
                config.mirrors = mirrors;
            }
            if let Some(insecure) = file.insecure_registries {
                for entry in &insecure {
                    check_insecure(entry).map_err(&wrong)?;
                }
                config.insecure = insecure;
            }
        }
        Ok(config)
    }

    /// Whether this host, with or without a port, is one of those that are not checked. As with docker, this machine's
    /// own addresses are.
    pub(super) fn is_insecure(&self, host: &str) -> bool {
        let bare = without_port(host);
        let named = |entry: &String| entry == host || entry == bare;
        if self.insecure.iter().any(named) || bare == "localhost" {
            return true;
        }
        let networks: Vec<(IpAddr, u8)> = self.insecure.iter().filter_map(|e| network(e)).collect();
        let literal = bare.trim_matches(['[', ']']).parse::<IpAddr>().ok();
        if literal.is_some_and(|address| address.is_loopback()) {
            return true;
        }
        if networks.is_empty() {
            return false;
        }
        let addresses: Vec<IpAddr> = match literal {
            Some(address) => vec![address],
            None => (bare, 0)
                .to_socket_addrs()
                .map(|found| found.map(|a| a.ip()).collect())
                .unwrap_or_default(),
        };
        // A name is insecure only where all of its addresses are.
        !addresses.is_empty()
            && addresses
                .iter()
                .all(|a| networks.iter().any(|(net, bits)| contains(*net, *bits, *a)))
    }
}

fn user_file() -> Option<PathBuf> {
    let base = match std::env::var_os("XDG_CONFIG_HOME").filter(|v| !v.is_empty()) {
        Some(base) => PathBuf::from(base),
        None => PathBuf::from(std::env::var_os("HOME")?).join(".config"),
    };
    Some(base.join("acetate/config.json"))
}

/// A mirror's address: a scheme, a host, and at most a path.
pub(super) fn mirror_url(text: &str) -> Result<Url, String> {
    let wrong = |why: &str| format!("invalid mirror {text:?}: {why}");
    let url = Url::parse(text).map_err(|e| wrong(&e.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(wrong("it begins with neither http:// nor https://"));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(wrong("it has no host"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("log in by `acetate login` instead of naming a user"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(wrong("it has a query or a fragment"));
    }
    Ok(url)
}

fn check_insecure(entry: &str) -> Result<(), String> {
    if network(entry).is_some() {
        return Ok(());
    }
    if entry.is_empty() || entry.contains(['/', ' ']) {
        return Err(format!(
            "invalid insecure registry {entry:?}: write HOST, HOST:PORT or a network such as 10.0.0.0/8"
        ));
    }
    Ok(())
}

fn network(entry: &str) -> Option<(IpAddr, u8)> {
    let (address, bits) = entry.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let bits: u8 = bits.parse().ok()?;
    (bits <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, bits))
}

fn contains(network: IpAddr, bits: u8, address: IpAddr) -> bool {
    let prefix = |bytes: &[u8], other: &[u8]| {
        (0..usize::from(bits)).all(|i| (bytes[i / 8] ^ other[i / 8]) & (0x80 >> (i % 8)) == 0)
    };
    match (network, address) {
        (IpAddr::V4(n), IpAddr::V4(a)) => prefix(&n.octets(), &a.octets()),
        (IpAddr::V6(n), IpAddr::V6(a)) => prefix(&n.octets(), &a.octets()),
        _ => false,
    }
}

/// The host alone.
pub(super) fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((bare, port)) if !port.contains(']') => bare,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn insecure_hosts_are_names_ports_and_networks() {
        let with = |insecure: &[&str]| RegistryConfig {
            insecure: insecure.iter().map(ToString::to_string).collect(),
            ..RegistryConfig::default()
        };
        // Where networks are given, a name would be looked up.
        let names = with(&["a.example", "b.example:5000"]);
        let networks = with(&["10.1.0.0/16", "fd00::/8"]);
        for (config, host, insecure) in [
            (&names, "a.example", true),
            (&names, "a.example:5000", true),
            (&names, "b.example:5000", true),
            (&names, "b.example", false),
            (&names, "docker.io", false),
            (&names, "127.0.0.1:5000", true),
            (&names, "127.9.9.9", true),
            (&names, "[::1]:5000", true),
            (&names, "localhost:5000", true),
            (&networks, "10.1.2.3:80", true),
            (&networks, "10.2.2.3:80", false),
            (&networks, "[fd00::1]:5000", true),
            (&networks, "[fe80::1]:5000", false),
        ] {
            assert_eq!(config.is_insecure(host), insecure, "{host}");
        }
    }

    #[test]
    fn a_file_is_read_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            RegistryConfig::read(Some(&path)).map_err(|e| e.to_string())
        };
        let text =
            r#"{"registry-mirrors":["https://m.example/x"],"insecure-registries":["r:5000"]}"#;
        let config = read(text).unwrap();
        assert_eq!(config.mirrors, ["https://m.example/x"]);
        assert_eq!(config.insecure, ["r:5000"]);
        assert_eq!(read("{}").unwrap(), RegistryConfig::default());
        for (text, part) in [
            (r#"{"registry-mirrors":["m.example"]}"#, "invalid mirror"),
            (r#"{"registry-mirrors":["ftp://m"]}"#, "neither http"),
            (r#"{"registry-mirrors":["https://u:p@m"]}"#, "acetate login"),
            (
                r#"{"insecure-registries":["http://r"]}"#,
                "invalid insecure",
            ),
            (r#"{"registry-mirror":[]}"#, "unknown field"),
            ("{", "EOF"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert!(RegistryConfig::read(Some(Path::new("/nonexistent"))).is_err());
    }
}
