//! What is agreed on with the kernel when the mount is made.

use std::time::Duration;

use fuser::{InitFlags, KernelConfig, Version};

/// The largest write or read request; the kernel's own limit is 256 pages unless an administrator raised it.
const MAX_WRITE: u32 = 1 << 20;

/// Requests that the kernel may have under way by itself (readahead, writeback).
const MAX_BACKGROUND: u16 = 64;

/// The first protocol of which a kernel may be given data to cache (see [`Agreed::store`]).
const STORE_ABI: Version = Version(7, 41);

/// How a mount is to be served.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Ask for passthrough.
    pub passthrough: bool,
    /// How deep the filesystems of the layers may be stacked themselves: 1, or 2 when a layer lies on a stacked one.
    pub stack_depth: u32,
    /// Ask for the writeback cache. The kernel refuses passthrough beside it.
    pub writeback: bool,
    /// The kernel checks POSIX ACLs.
    pub posix_acl: bool,
    /// Extended attributes are refused altogether (`noxattrs=1`).
    pub no_xattrs: bool,
    /// How many requests are served at once.
    pub threads: usize,
    /// For how long a thread looks for the next request before it sleeps, where requests follow each other closely; zero: not
    /// at all.
    pub busy_poll: Duration,
    /// How many nodes the kernel should know at most: beyond that it is asked to forget some that nothing uses.
    pub most_nodes: Option<usize>,
}

/// What was agreed on with the kernel, as far as requests are answered by it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Agreed {
    /// Backing files can be registered.
    pub(super) passthrough: bool,
    /// The kernel can do without opening directories (Linux 5.1).
    pub(super) no_opendir: bool,
    /// Data can be put into the page cache. Before Linux 6.11 the rest of the last page then shows, to who maps the file,
    /// what the kernel had in that memory; protocol 7.41 came with 6.12.
    pub(super) store: bool,
}

/// Asks for all that the kernel offers of what is wanted.
pub(super) fn negotiate(config: &mut KernelConfig, settings: &Settings) -> Agreed {
    let mut wanted = InitFlags::FUSE_PARALLEL_DIROPS
        | InitFlags::FUSE_ATOMIC_O_TRUNC
        | InitFlags::FUSE_CACHE_SYMLINKS
        | InitFlags::FUSE_DO_READDIRPLUS
        | InitFlags::FUSE_READDIRPLUS_AUTO
        | InitFlags::FUSE_HANDLE_KILLPRIV_V2
        | InitFlags::FUSE_DONT_MASK
        | InitFlags::FUSE_ASYNC_READ
        | InitFlags::FUSE_ASYNC_DIO
        | InitFlags::FUSE_BIG_WRITES
        | InitFlags::FUSE_MAX_PAGES
        // Data changes only through this mount, and what goes past the page cache is invalidated by name.
        | InitFlags::FUSE_EXPLICIT_INVAL_DATA;
    if settings.posix_acl {
        wanted |= InitFlags::FUSE_POSIX_ACL;
    }
    let offered = config.capabilities();
    let passthrough = settings.passthrough && offered.contains(InitFlags::FUSE_PASSTHROUGH);
    if passthrough {
        wanted |= InitFlags::FUSE_PASSTHROUGH;
        if let Err(nearest) = config.set_max_stack_depth(settings.stack_depth) {
            log::warn!(
                "a stack depth of {} is refused: at most {nearest}",
                settings.stack_depth
            );
        }
    } else if settings.writeback {
        wanted |= InitFlags::FUSE_WRITEBACK_CACHE;
    }
    if let Err(missing) = config.add_capabilities(wanted & offered) {
        log::warn!("the kernel refuses {missing:?}");
    }
    let missing = wanted & !offered;
    if !missing.is_empty() {
        log::info!("the kernel does not offer {missing:?}");
    }
    if let Err(nearest) = config.set_max_write(MAX_WRITE) {
        log::warn!("requests of {MAX_WRITE} bytes are refused: at most {nearest}");
    }
    if let Err(nearest) = config.set_max_background(MAX_BACKGROUND) {
        log::warn!("{MAX_BACKGROUND} requests in the background are refused: at most {nearest}");
    }
    Agreed {
        passthrough,
        no_opendir: offered.contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT),
        store: config.kernel_abi() >= STORE_ABI,
    }
}
