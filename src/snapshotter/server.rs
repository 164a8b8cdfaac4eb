//! The server's life: root, socket, signals.

use std::fs::{self, Permissions};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tonic::codegen::tokio_stream::wrappers::UnixListenerStream;

use super::error::ServeError;
use super::mounts::MountBy;
use super::service::{Gate, SnapshotsService};
use super::store::Snapshots;

/// How long calls that are under way may take when the server ends.
const LAST_CALLS: Duration = Duration::from_secs(20);

/// How long their answers may take to reach the clients.
const LAST_ANSWERS: Duration = Duration::from_millis(300);

/// How a server is to be.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// The socket.
    pub address: PathBuf,
    /// Where snapshots lie.
    pub root: PathBuf,
    /// Who mounts.
    pub mounts: MountBy,
    /// The labels of id maps become options of the mount.
    pub remap_ids: bool,
}

/// Serves until SIGTERM or SIGINT.
pub fn serve(config: &ServerConfig) -> Result<(), ServeError> {
    let store = Arc::new(Snapshots::open(
        &config.root,
        config.mounts,
        config.remap_ids,
    )?);
    let failed = |e| ServeError::io("serve", &config.address)(e);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(failed)?;
    // Whoever finds the socket may end the server, which then takes the socket away.
    let (mut terminate, mut interrupt) = {
        let _inside = runtime.enter();
        let terminate = signal(SignalKind::terminate()).map_err(failed)?;
        (terminate, signal(SignalKind::interrupt()).map_err(failed)?)
    };
    let socket = Socket::bind(&config.address)?;
    let sweeper = store.clone();
    let sweeper = std::thread::spawn(move || {
        if let Err(e) = sweeper.sweep() {
            log::warn!("{e}");
        }
    });
    let served = runtime.block_on(async {
        let listener = socket.listener.try_clone().map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let listener = tokio::net::UnixListener::from_std(listener).map_err(failed)?;
        let gate = Gate::default();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let server = tonic::transport::Server::builder()
            .add_service(SnapshotsService::new(store.clone(), gate.clone()))
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async {
                // That the sender is dropped is the sign.
                stopped.await.unwrap_or_default();
            });
        let server = tokio::spawn(server);
        log::info!("listening on {}", config.address.display());
        notify(b"READY=1");
        tokio::select! {
            _ = terminate.recv() => log::info!("ending: SIGTERM"),
            _ = interrupt.recv() => log::info!("ending: SIGINT"),
        }
        notify(b"STOPPING=1");
        drop(stop);
        let Ok(_closed) = tokio::time::timeout(LAST_CALLS, gate.write()).await else {
            log::warn!("some calls did not end");
            return Ok(());
        };
        match tokio::time::timeout(LAST_ANSWERS, server).await {
            Ok(Ok(ended)) => Ok(ended?),
            Ok(Err(e)) => Err(failed(io::Error::other(e))),
            // A client keeps its connection, and asks nothing.
            Err(_) => Ok(()),
        }
    });
    drop(socket);
    runtime.shutdown_timeout(LAST_CALLS);
    if sweeper.join().is_err() {
        log::error!("sweeping failed");
    }
    served
}

/// The socket, taken away at the end.
#[derive(Debug)]
struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode: who took the place meanwhile keeps it.
    identity: Option<(u64, u64)>,
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let found = fs::symlink_metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

impl Socket {
    fn bind(path: &Path) -> Result<Socket, ServeError> {
        if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            fs::create_dir_all(parent).map_err(ServeError::io("create", parent))?;
        }
        clear(path)?;
        let listener = match UnixListener::bind(path) {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
                return Err(ServeError::SocketInUse(path.to_owned()));
            }
            bound => bound.map_err(ServeError::io("listen on", path))?,
        };
        // Who may talk to it is root: a snapshotter gives out any directory of the machine's images.
        fs::set_permissions(path, Permissions::from_mode(0o600))
            .map_err(ServeError::io("set the mode of", path))?;
        Ok(Socket {
            listener,
            path: path.to_owned(),
            identity: identity(path),
        })
    }
}

/// Takes away the socket of a server that died.
fn clear(path: &Path) -> Result<(), ServeError> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(ServeError::io("read", path)(e)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ServeError::NoSocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            log::info!("taking away {}, whose server died", path.display());
            fs::remove_file(path).map_err(ServeError::io("remove", path))
        }
        Ok(_) => Err(ServeError::SocketInUse(path.to_owned())),
        Err(e) => Err(ServeError::io("connect to", path)(e)),
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if identity(&self.path) == self.identity
            && let Err(e) = fs::remove_file(&self.path)
        {
            log::warn!("{} is not removed: {e}", self.path.display());
        }
    }
}

/// Tells systemd, where it wants to know. Nothing depends on it.
fn notify(state: &[u8]) {
    let Some(address) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let sent = || -> io::Result<()> {
        let address = match address.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(&address)?,
        };
        UnixDatagram::unbound()?.send_to_addr(state, &address)?;
        Ok(())
    };
    if let Err(e) = sent() {
        log::warn!("systemd is not told: {e}");
    }
}
