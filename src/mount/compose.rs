//! Makes a mount: image or layers, the union over them, and the connection to the kernel.

use std::ffi::OsString;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::checks::{self, Place, Role};
use super::error::MountError;
use super::lowers;
use super::options::MountOptions;
use super::params::{
    Rights, access, metacopy, params, partial, settings, upper_options, wants_passthrough,
};
use super::private::{self, PrivateUpper};
use super::state;
use crate::fuse::{Access, Settings};
use crate::image::{ImageOrigin, LayerGuard, Store};
use crate::layer::Layer;
use crate::layer::error::UpperError;
use crate::layer::fdcache::FdCache;
use crate::layer::upper::Upper;
use crate::layer::upper::ask_to_yield;
use crate::sys::fusedev;
use crate::sys::mount::{self as sys_mount, FuseMount};
use crate::sys::sandbox::{self, Needs};
use crate::union::Union;

/// How long the daemon of a mount that is gone may take to let go of its upper.
const LET_GO: Duration = Duration::from_secs(1);

/// And where that daemon is still completing files: what it has copied last has to reach the disk.
const LEAVE_OFF: Duration = Duration::from_secs(5);

/// And where it is known that its mount is gone: on a busy machine it only waits for its turn.
const ON_ITS_WAY: Duration = Duration::from_secs(20);

/// What is to be mounted.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// An image, by reference or path.
    Image(OsString),
    /// The layers that the options name.
    Layers,
}

/// Everything about one mount that is asked for.
#[derive(Clone, Debug)]
pub struct MountRequest {
    /// What.
    pub source: Source,
    /// Where.
    pub mountpoint: PathBuf,
    /// How.
    pub options: MountOptions,
    /// Where the store lies.
    pub root: PathBuf,
    /// Without an upper: make one that is thrown away, instead of mounting read-only.
    pub private_upper: bool,
    /// Where that upper is made and kept instead.
    pub keep: Option<PathBuf>,
    /// Which platform of an image, as `OS/ARCHITECTURE`.
    pub platform: Option<String>,
}

/// A mount that is made, and is to be served.
pub(super) struct Mounted {
    /// By which the kernel is talked to; its first message is not read yet.
    pub(super) device: OwnedFd,
    pub(super) access: Access,
    pub(super) settings: Settings,
    pub(super) union: Arc<Union>,
    /// The union's upper layer.
    pub(super) upper_layer: Option<Arc<Upper>>,
    /// Descriptors of the union's layers.
    pub(super) cache: Arc<FdCache>,
    /// Absolute, without symlinks.
    pub(super) mountpoint: PathBuf,
    /// What is mounted, for people.
    pub(super) source: String,
    /// The image, where it is one.
    pub(super) image: Option<ImageOrigin>,
    /// What it is made of.
    pub(super) parts: Parts,
    pub(super) private: Option<PrivateUpper>,
    /// Keeps the layers of an image from being removed.
    pub(super) guard: Option<LayerGuard>,
    /// What another program held for this mount: its locks. Kept to the end.
    pub(super) held: Vec<OwnedFd>,
    /// Where it is to be served, unless that was declined.
    pub(super) sandbox: Option<sandbox::Ready>,
}

/// The directories that a mount is made of.
#[derive(Clone, Debug)]
pub(super) struct Parts {
    /// Topmost first.
    pub(super) lowers: Vec<Place>,
    /// So many of them are merged; the rest are data-only.
    pub(super) merged: usize,
    /// Those that the store unpacked.
    pub(super) unpacked: Range<usize>,
    /// None, or the upper and its workdir.
    pub(super) uppers: Vec<Place>,
}

impl Parts {
    pub(super) fn upper(&self) -> Option<&Path> {
        self.uppers.first().map(|place| &*place.path)
    }

    pub(super) fn work(&self) -> Option<&Path> {
        self.uppers.get(1).map(|place| &*place.path)
    }
}

/// Where the lower layers lie.
struct Sources {
    /// For people.
    name: String,
    lowers: Vec<PathBuf>,
    /// Where the data-only layers lie, below all of those.
    data: Vec<PathBuf>,
    /// They were unpacked here: no metacopies, and whiteouts in the kernel's form alone.
    unpacked: bool,
    /// The image, where it is one.
    image: Option<ImageOrigin>,
    /// Keeps them from being removed.
    guard: Option<LayerGuard>,
}

/// What a mount needs before anything of it is made.
pub(super) struct Prepared {
    rights: Rights,
    mountpoint: PathBuf,
    passthrough: bool,
    /// `None`: `fusermount3` is to open it.
    device: Option<OwnedFd>,
    sources: Sources,
    /// How many files the process may have open.
    file_limit: u64,
}

/// Checks what can be checked at once, and finds the layers, for which an image may have to be unpacked.
pub(super) fn prepare(request: &MountRequest) -> Result<Prepared, MountError> {
    let file_limit = checks::raise_file_limit();
    let rights = Rights::of_this_process();
    Ok(Prepared {
        rights,
        mountpoint: checks::mountpoint(&request.mountpoint)?,
        passthrough: wants_passthrough(&request.options, rights)?,
        device: open_device(rights)?,
        sources: sources(request)?,
        file_limit,
    })
}

/// Opens the layers, makes the union and mounts it.
pub(super) fn compose(
    request: &MountRequest,
    prepared: Prepared,
    id: &str,
) -> Result<Mounted, MountError> {
    let limit = prepared.file_limit;
    compose_within(request, prepared, id).map_err(|e| checks::explain_file_limit(e, limit))
}

fn compose_within(
    request: &MountRequest,
    prepared: Prepared,
    id: &str,
) -> Result<Mounted, MountError> {
    let options = &request.options;
    let Prepared {
        rights,
        mountpoint,
        passthrough,
        device,
        sources,
        ..
    } = prepared;
    let mut lowers = find_all(Role::Lower, &sources.lowers)?;
    let data = find_all(Role::Lower, &sources.data)?;
    let mut uppers = Vec::new();
    if let (Some(upper), Some(work)) = (&options.upper, &options.work) {
        uppers.push(Place::find(Role::Upper, upper)?);
        uppers.push(Place::find(Role::Work, work)?);
    }
    checks::apart(&[lowers.clone(), data.clone(), uppers.clone()].concat())?;
    checks::mountpoint_outside(&mountpoint, &uppers)?;
    let mut unpacked = if sources.unpacked {
        0..lowers.len()
    } else {
        0..0
    };
    if options.read_only() && !uppers.is_empty() {
        // Nothing is to be written there, so it is but the topmost layer.
        lowers.insert(0, uppers.remove(0));
        uppers.clear();
        unpacked = unpacked.start + 1..unpacked.end + 1;
    }
    let Some(topmost) = lowers.first() else {
        return Err(MountError::NothingToMount);
    };
    let topmost = topmost.clone();
    let merged = lowers.len();
    lowers.extend(data);

    let cache = Arc::new(FdCache::for_this_process());
    let layers = lowers::open(&lowers, merged, &unpacked, (options, rights), &cache)?;
    let mut private = None;
    if uppers.is_empty() && request.private_upper && !options.read_only() {
        match &request.keep {
            Some(keep) => {
                let (upper, work) = private::pair(keep, &topmost.path)
                    .map_err(|e| MountError::Path("the directory of --keep", keep.clone(), e))?;
                // Whoever owns the directory may put others there at any time.
                uppers.push(Place::find_again(Role::Upper, &keep.join("upper"), upper)?);
                uppers.push(Place::find_again(Role::Work, &keep.join("work"), work)?);
            }
            None => {
                let made = PrivateUpper::create(&request.root, id, &topmost.path)?;
                let found = Place::find(Role::Upper, &made.upper())
                    .and_then(|upper| Ok([upper, Place::find(Role::Work, &made.work())?]));
                private = Some(made);
                uppers.extend(found?);
            }
        }
    }
    let done = || -> Result<_, MountError> {
        checks::apart(&[lowers.clone(), uppers.clone()].concat())?;
        let upper = open_upper(&uppers, options, rights, private.is_some(), &cache)?;
        let parts = Parts {
            lowers,
            merged,
            unpacked,
            uppers,
        };
        let how = How {
            options,
            rights,
            passthrough,
            private: private.is_some(),
        };
        let (union, settings) = unite(&how, &parts, layers, upper.clone())?;
        // Whoever sees the mount may unmount what the layers lie on.
        let sandbox = options.sandbox.then(|| sandboxed(&parts));
        let sandbox = sandbox.transpose()?;
        let (device, access) = connect(request, &mountpoint, device, &sources.name)?;
        Ok((device, access, settings, union, upper, sandbox, parts))
    };
    let (device, access, settings, union, upper_layer, sandbox, parts) = match done() {
        Ok(done) => done,
        Err(e) => {
            if let Some(private) = private {
                private.discard();
            }
            return Err(e);
        }
    };
    Ok(Mounted {
        device,
        access,
        settings,
        union,
        upper_layer,
        cache,
        mountpoint,
        source: sources.name,
        image: sources.image,
        parts,
        private,
        guard: sources.guard,
        held: Vec::new(),
        sandbox,
    })
}

/// What of a mount is not its directories.
struct How<'a> {
    options: &'a MountOptions,
    rights: Rights,
    passthrough: bool,
    /// The upper is thrown away with the mount.
    private: bool,
}

/// Makes the union.
fn unite(
    how: &How<'_>,
    parts: &Parts,
    layers: Vec<Arc<dyn Layer>>,
    upper: Option<Arc<Upper>>,
) -> Result<(Arc<Union>, Settings), MountError> {
    let (options, rights) = (how.options, how.rights);
    let stacked = is_stacked(parts.lowers.iter().chain(&parts.uppers));
    let settings = settings(options, how.passthrough, stacked);
    let mut params = params(options, settings, upper.is_none());
    // What is thrown away with the mount, also after a crash, need not be durable.
    params.no_sync |= how.private;
    params.partial = partial(options, rights, upper.is_some());
    params.metacopy = metacopy(options, rights);
    params.data_layers = parts.lowers.len() - parts.merged;
    let union = Arc::new(Union::new(layers, upper, params)?);
    Ok((union, settings))
}

/// A mount that another program made, of which nothing is served yet.
pub(super) struct Resumed {
    pub(super) union: Arc<Union>,
    pub(super) upper_layer: Option<Arc<Upper>>,
    pub(super) cache: Arc<FdCache>,
    pub(super) settings: Settings,
    pub(super) access: Access,
    pub(super) sandbox: Option<sandbox::Ready>,
}

/// Puts together what another program had put together, of the same directories. Their locks are held already. With
/// `as_trial` the upper is left out, which that program is still changing.
pub(super) fn resume(
    options: &MountOptions,
    parts: &Parts,
    (passthrough, private): (bool, bool),
    as_trial: bool,
) -> Result<Resumed, MountError> {
    let rights = Rights::of_this_process();
    let cache = Arc::new(FdCache::for_this_process());
    let layers = lowers::open(
        &parts.lowers,
        parts.merged,
        &parts.unpacked,
        (options, rights),
        &cache,
    )?;
    let upper_layer = match &parts.uppers[..] {
        [upper, work] if !as_trial => {
            let upper_options = upper_options(options, rights, private);
            Some(Upper::open_found(
                [(&upper.path, upper.id), (&work.path, work.id)],
                upper_options,
                cache.clone(),
                true,
            )?)
        }
        _ => None,
    };
    let how = How {
        options,
        rights,
        passthrough,
        private,
    };
    let (union, settings) = unite(&how, parts, layers, upper_layer.clone())?;
    let sandbox = options.sandbox.then(|| sandboxed(parts)).transpose()?;
    Ok(Resumed {
        union,
        upper_layer,
        cache,
        settings,
        access: access(options),
        sandbox,
    })
}

fn sandboxed(parts: &Parts) -> Result<sandbox::Ready, MountError> {
    let paths = |places: &[Place]| -> Vec<PathBuf> {
        places.iter().map(|place| place.path.clone()).collect()
    };
    let needs = Needs {
        read: &paths(&parts.lowers),
        written: &paths(&parts.uppers),
    };
    sandbox::prepare(&needs).map_err(|e| MountError::Io("the sandbox", e))
}

fn sources(request: &MountRequest) -> Result<Sources, MountError> {
    match &request.source {
        Source::Layers => Ok(Sources {
            name: match &request.options.fsname {
                Some(name) => name.to_string_lossy().into_owned(),
                None => "acetate".to_owned(),
            },
            lowers: request.options.lowers.clone(),
            data: request.options.data_layers.clone(),
            unpacked: false,
            image: None,
            guard: None,
        }),
        Source::Image(image) => {
            let store = Store::open(&request.root)?;
            let prepared = store.prepare(image, request.platform.as_deref())?;
            Ok(Sources {
                name: prepared.name,
                lowers: prepared.layers,
                data: Vec::new(),
                unpacked: true,
                image: Some(prepared.origin),
                guard: Some(prepared.guard),
            })
        }
    }
}

fn find_all(role: Role, paths: &[PathBuf]) -> Result<Vec<Place>, MountError> {
    paths.iter().map(|path| Place::find(role, path)).collect()
}

/// Opened before anything is touched, so that a missing device is known first. `None`: `fusermount3` is to do it.
fn open_device(rights: Rights) -> Result<Option<OwnedFd>, MountError> {
    match fusedev::open() {
        Ok(device) => Ok(rights.mount.then_some(device)),
        Err(e) => match e.raw_os_error() {
            Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => Err(MountError::NoDevice),
            Some(libc::EACCES | libc::EPERM) if rights.mount => Err(MountError::DeviceDenied),
            // The helper has rights of its own.
            Some(libc::EACCES | libc::EPERM) => Ok(None),
            _ => Err(MountError::Io("/dev/fuse", e)),
        },
    }
}

fn open_upper(
    uppers: &[Place],
    options: &MountOptions,
    rights: Rights,
    private: bool,
    cache: &Arc<FdCache>,
) -> Result<Option<Arc<Upper>>, MountError> {
    let [upper, work] = uppers else {
        return Ok(None);
    };
    let upper_options = upper_options(options, rights, private);
    let begin = Instant::now();
    let mut limit = LET_GO;
    loop {
        let opened = Upper::open_found(
            [(&upper.path, upper.id), (&work.path, work.id)],
            upper_options.clone(),
            cache.clone(),
            false,
        );
        match opened {
            // umount(2) does not wait for the daemon, and an engine mounts again right after it.
            Err(UpperError::InUse(..) | UpperError::Locked { .. }) if begin.elapsed() < limit => {
                // It may still be completing what was copied up by blocks.
                match ask_to_yield(&work.path) {
                    Ok(true) => limit = limit.max(LEAVE_OFF),
                    Ok(false) => {}
                    Err(e) => log::info!("{}: {e}", work.path.display()),
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(UpperError::InUse(..) | UpperError::Locked { .. })
                if limit < ON_ITS_WAY && state::is_let_go(&upper.path)? =>
            {
                limit = ON_ITS_WAY;
            }
            opened => return Ok(Some(opened?)),
        }
    }
}

fn is_stacked<'a>(places: impl Iterator<Item = &'a Place>) -> bool {
    places.into_iter().any(|place| {
        sys_mount::is_stacked(&place.path).unwrap_or_else(|e| {
            log::info!(
                "the filesystem of {} is not known: {e}",
                place.path.display()
            );
            false
        })
    })
}

/// Mounts.
fn connect(
    request: &MountRequest,
    mountpoint: &Path,
    device: Option<OwnedFd>,
    name: &str,
) -> Result<(OwnedFd, Access), MountError> {
    let options = &request.options;
    let source = options.fsname.clone().unwrap_or_else(|| name.into());
    let mut mount = FuseMount {
        mountpoint,
        source: &source,
        flags: options.flags,
        allow_other: true,
        security: &options.security,
    };
    let device = match device {
        Some(device) => {
            sys_mount::mount_fuse(device.as_fd(), &mount).map_err(|e| refused(mountpoint, e))?;
            device
        }
        None => {
            // For a plain user it takes the administrator's leave, so only where it is asked for.
            mount.allow_other = options.allow_other || options.allow_root;
            fusedev::mount_by_helper(&mount).map_err(|e| match e.kind() {
                io::ErrorKind::NotFound => MountError::NotPermitted(
                    mountpoint.to_owned(),
                    "install fusermount3 (package fuse3), or run as root or by unshare -Urm".into(),
                ),
                _ => MountError::NotPermitted(mountpoint.to_owned(), e.to_string()),
            })?
        }
    };
    Ok((device, access(options)))
}

fn refused(mountpoint: &Path, e: io::Error) -> MountError {
    match e.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => MountError::NotPermitted(
            mountpoint.to_owned(),
            "the mount namespace is not the process's own: use unshare -Urm, or run as root".into(),
        ),
        Some(libc::EINVAL) => MountError::NotPermitted(
            mountpoint.to_owned(),
            "the kernel refuses the options".into(),
        ),
        _ => MountError::Path("mounting on", mountpoint.to_owned(), e),
    }
}
