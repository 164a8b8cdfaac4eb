//! Debian's registry, started for one test.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::program;

/// A registry that ends with the test.
pub struct Server {
    child: Child,
    address: SocketAddr,
    data: PathBuf,
}

/// What the registry asks for.
#[derive(Default)]
pub struct Setup {
    /// A user and a password.
    pub login: Option<(&'static str, &'static str)>,
    /// A certificate and its key.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// The authority of whom it lets in.
    pub client_authority: Option<PathBuf>,
}

/// Whether there is a registry to start.
pub fn available() -> Result<(), String> {
    program::find("docker-registry").map(drop)
}

impl Server {
    /// One that everybody may use.
    pub fn start(dir: &Path) -> Server {
        Server::with(dir, &Setup::default())
    }

    pub fn with(dir: &Path, setup: &Setup) -> Server {
        // Between the look and the start another process may take the port.
        for _ in 0..5 {
            if let Some(server) = Server::attempt(dir, setup) {
                return server;
            }
        }
        panic!("docker-registry does not start: see {}", dir.display());
    }

    fn attempt(dir: &Path, setup: &Setup) -> Option<Server> {
        let address = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let home = dir.join(format!("registry-{}", address.port()));
        let data = home.join("data");
        std::fs::create_dir_all(&data).unwrap();
        let mut http = format!("addr: \"{address}\"");
        if let Some((certificate, key)) = &setup.tls {
            http.push_str(&format!(
                ", tls: {{certificate: \"{}\", key: \"{}\"",
                certificate.display(),
                key.display()
            ));
            if let Some(authority) = &setup.client_authority {
                http.push_str(&format!(", clientcas: [\"{}\"]", authority.display()));
            }
            http.push('}');
        }
        let mut config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: \"{}\"}}, delete: {{enabled: true}}}}\nhttp: {{{http}}}\n",
            data.display()
        );
        if let Some((user, password)) = setup.login {
            let file = home.join("htpasswd");
            let line = program::must(
                Command::new("htpasswd").args(["-Bbn", user, password]),
                Duration::from_secs(20),
            );
            std::fs::write(&file, line.trim()).unwrap();
            config.push_str(&format!(
                "auth: {{htpasswd: {{realm: test, path: \"{}\"}}}}\n",
                file.display()
            ));
        }
        let path = home.join("config.yml");
        std::fs::write(&path, config).unwrap();
        let log = std::fs::File::create(home.join("log")).unwrap();
        let child = Command::new(program::find("docker-registry").unwrap())
            .arg("serve")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut server = Server {
            child,
            address,
            data,
        };
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(20) {
            if server.child.try_wait().unwrap().is_some() {
                return None;
            }
            if TcpStream::connect(address).is_ok() {
                return Some(server);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        None
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Host and port.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Where it keeps a blob.
    pub fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").unwrap();
        self.data
            .join("docker/registry/v2/blobs/sha256")
            .join(&hex[..2])
            .join(hex)
            .join("data")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(e) = self.child.kill() {
            eprintln!("docker-registry: {e}");
        }
        if let Err(e) = self.child.wait() {
            eprintln!("docker-registry: {e}");
        }
    }
}
