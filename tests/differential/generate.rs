//! Random cases. The names are few, so that operations meet what others made.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::op::{Attrs, Case, Features, Layer, Node, Op, Path, Setup, Step, Time, Value, Who};

/// Names that are directories more often than not: the parents of all others.
const DIRS: &[Path] = &["a", "b", "a/a", "a/b", "b/a", "a/a/a"];
/// Names that are something else more often than not.
const FILES: &[Path] = &[
    "f",
    "a/f",
    "g",
    "b/f",
    "a/g",
    "a/a/f",
    "b/g",
    "a/b/f",
    "a/a/g",
    "b/a/f",
    "n:\n,ÿ",
    "a/n:\n,ÿ",
];
const TARGETS: &[&str] = &[
    "f", "a", "../f", "a/f", "g", "../a/g", "missing", "/", "n:\n,ÿ", "a/a",
];
const SIZES: &[u32] = &[
    0, 1, 100, 4095, 4096, 4097, 10_000, 32_768, 65_536, 70_000, 200_000,
];
const MODES: &[u32] = &[
    0o755, 0o644, 0o777, 0o600, 0o444, 0o4755, 0o2755, 0o1777, 0o2777, 0o6777, 0o000, 0o2644,
];
const UIDS: &[u32] = &[0, 1000, 1001];
const NAMES: &[&str] = &[
    "user.a",
    "user.layer",
    "trusted.layer",
    "security.capability",
    "trusted.b",
    "user.long",
    "system.posix_acl_access",
    "system.posix_acl_default",
    "security.c",
    "user.",
    "odd.name",
];
const SLOTS: u8 = super::exec::SLOTS as u8;

/// Which cases are generated.
#[derive(Clone, Copy, Debug, Default)]
pub struct Variant {
    /// Further options of acetate.
    pub options: &'static str,
    /// The `user.` form of the private xattrs.
    pub user: bool,
}

fn dir_path() -> impl Strategy<Value = Path> {
    prop_oneof![12 => select(DIRS), 2 => select(FILES), 1 => Just("")]
}

fn file_path() -> impl Strategy<Value = Path> {
    // The first few more often, so that what one operation made another one finds.
    prop_oneof![8 => select(&FILES[..5]), 6 => select(FILES), 1 => select(DIRS)]
}

fn path() -> impl Strategy<Value = Path> {
    prop_oneof![3 => file_path(), 2 => dir_path()]
}

/// The handle that directories are opened at; the others are for files.
const DIR_SLOT: u8 = SLOTS - 1;

fn slot() -> impl Strategy<Value = u8> {
    prop_oneof![9 => 0..DIR_SLOT, 1 => Just(DIR_SLOT)]
}

fn size() -> impl Strategy<Value = u32> {
    select(SIZES)
}

/// A place that most files have.
fn near() -> impl Strategy<Value = u32> {
    prop_oneof![3 => select(&SIZES[..5]), 1 => select(SIZES)]
}

fn mode() -> impl Strategy<Value = u32> {
    select(MODES)
}

fn owner() -> impl Strategy<Value = Option<u32>> {
    prop_oneof![1 => Just(None), 3 => select(UIDS).prop_map(Some)]
}

fn seed() -> impl Strategy<Value = u8> {
    1..=8_u8
}

fn time() -> impl Strategy<Value = Time> {
    prop_oneof![
        Just(Time::Omit),
        Just(Time::Now),
        Just(Time::At(1_100_000_000, 999_999_999)),
        Just(Time::At(0, 0)),
        Just(Time::At(-86_400, 5)),
        Just(Time::At(4_300_000_000, 1)),
    ]
}

fn xattr() -> impl Strategy<Value = (&'static str, Value)> {
    let acl = || select(&["system.posix_acl_access", "system.posix_acl_default"][..]);
    prop_oneof![
        4 => (select(NAMES), select(&[0_u16, 1, 40, 300, 3000][..]))
            .prop_map(|(name, len)| (name, Value::Bytes(len)))
            .prop_filter("readable", sensible),
        1 => Just(("security.capability", Value::Capability)),
        1 => (acl(), select(&[0o644_u16, 0o755, 0o770, 0o000][..]))
            .prop_map(|(name, mode)| (name, Value::AclMode(mode))),
        1 => (acl(), 0..8_u16, 0..8_u16).prop_map(|(name, u, m)| (name, Value::AclUser(u, m))),
        1 => (acl(), 0..8_u16, 0..8_u16).prop_map(|(name, g, m)| (name, Value::AclGroup(g, m))),
    ]
}

/// An empty `security.capability` can be set but not read.
fn sensible(xattr: &(&'static str, Value)) -> bool {
    !matches!(xattr, ("security.capability", Value::Bytes(0)))
}

fn xattr_flags() -> impl Strategy<Value = i32> {
    prop_oneof![4 => Just(0), 1 => Just(libc::XATTR_CREATE), 1 => Just(libc::XATTR_REPLACE)]
}

fn open_flags() -> impl Strategy<Value = i32> {
    let access = prop_oneof![
        3 => Just(libc::O_RDONLY),
        1 => Just(libc::O_WRONLY),
        5 => Just(libc::O_RDWR),
    ];
    let create = prop_oneof![
        4 => Just(0),
        4 => Just(libc::O_CREAT),
        1 => Just(libc::O_CREAT | libc::O_EXCL),
    ];
    let more = prop_oneof![
        16 => Just(0),
        2 => Just(libc::O_TRUNC),
        2 => Just(libc::O_APPEND),
        1 => Just(libc::O_NOFOLLOW),
        1 => Just(libc::O_DIRECTORY),
        1 => Just(libc::O_SYNC),
        1 => Just(libc::O_PATH),
        1 => Just(libc::O_NOATIME),
        1 => Just(libc::O_TRUNC | libc::O_NOFOLLOW),
    ];
    (access, create, more)
        .prop_map(|(access, create, more)| access | create | more)
        // These two together have no meaning, and Linux's answer changed between versions.
        .prop_filter("O_CREAT and O_DIRECTORY", |flags| {
            flags & libc::O_CREAT == 0 || flags & libc::O_DIRECTORY == 0
        })
}

fn open() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => (0..DIR_SLOT, file_path(), open_flags(), mode())
            .prop_map(|(slot, path, flags, mode)| Op::Open { slot, path, flags, mode }),
        3 => dir_path().prop_map(|path| Op::Open {
            slot: DIR_SLOT,
            path,
            flags: libc::O_DIRECTORY,
            mode: 0,
        }),
        2 => (slot(), slot(), open_flags())
            .prop_map(|(slot, from, flags)| Op::Reopen {
                slot,
                from,
                // A path through /proc is neither created nor a symlink to be refused.
                flags: flags & !(libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW),
            }),
        1 => slot().prop_map(|slot| Op::Close { slot }),
    ]
}

fn data_op() -> impl Strategy<Value = Op> {
    // The kernel passes no other mode on to a FUSE filesystem.
    let falloc = select(
        &[
            0,
            libc::FALLOC_FL_KEEP_SIZE,
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            libc::FALLOC_FL_ZERO_RANGE,
            libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
        ][..],
    );
    let whence = select(
        &[
            libc::SEEK_SET,
            libc::SEEK_CUR,
            libc::SEEK_END,
            libc::SEEK_DATA,
            libc::SEEK_HOLE,
        ][..],
    );
    prop_oneof![
        2 => (slot(), size()).prop_map(|(slot, len)| Op::Read { slot, len }),
        3 => (slot(), near(), size()).prop_map(|(slot, off, len)| Op::Pread { slot, off, len }),
        4 => (slot(), size(), seed()).prop_map(|(slot, len, seed)| Op::Write { slot, len, seed }),
        4 => (slot(), size(), size(), seed())
            .prop_map(|(slot, off, len, seed)| Op::Pwrite { slot, off, len, seed }),
        2 => (slot(), size(), whence)
            .prop_map(|(slot, off, whence)| Op::Seek { slot, off: off as i32, whence }),
        2 => (slot(), size()).prop_map(|(slot, size)| Op::Ftruncate { slot, size }),
        2 => (slot(), falloc, size(), size())
            .prop_map(|(slot, mode, off, len)| Op::Fallocate { slot, mode, off, len }),
        1 => (slot(), any::<bool>()).prop_map(|(slot, data)| Op::Sync { slot, data }),
        2 => (slot(), slot(), size(), size(), size())
            .prop_map(|(from, to, from_off, to_off, len)| Op::Copy {
                from, to, from_off, to_off, len,
            }),
        1 => (slot(), near(), near()).prop_map(|(slot, off, len)| Op::MapRead { slot, off, len }),
        2 => (slot(), near(), near(), seed())
            .prop_map(|(slot, off, len, seed)| Op::MapWrite { slot, off, len, seed }),
        1 => (slot(), near(), near(), seed())
            .prop_map(|(slot, off, len, seed)| Op::MapPrivate { slot, off, len, seed }),
        1 => slot().prop_map(|slot| Op::MapHold { slot }),
        1 => (near(), near(), seed()).prop_map(|(off, len, seed)| Op::MapPoke { off, len, seed }),
        1 => (near(), near()).prop_map(|(off, len)| Op::MapPeek { off, len }),
        1 => Just(Op::MapDrop),
        1 => (slot(), select(&[libc::LOCK_SH, libc::LOCK_EX, libc::LOCK_UN][..]))
            .prop_map(|(slot, how)| Op::Flock { slot, how }),
        1 => (slot(), select(&[libc::F_RDLCK, libc::F_WRLCK, libc::F_UNLCK][..]), size(), size())
            .prop_map(|(slot, kind, start, len)| Op::Lock { slot, kind, start, len }),
    ]
}

fn handle_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => slot().prop_map(|slot| Op::Fstat { slot }),
        1 => (slot(), mode()).prop_map(|(slot, mode)| Op::Fchmod { slot, mode }),
        1 => (slot(), owner(), owner()).prop_map(|(slot, uid, gid)| Op::Fchown { slot, uid, gid }),
        1 => (slot(), time(), time())
            .prop_map(|(slot, atime, mtime)| Op::Futimens { slot, atime, mtime }),
        1 => (slot(), xattr(), xattr_flags())
            .prop_map(|(slot, (name, value), flags)| Op::Fsetxattr { slot, name, value, flags }),
        1 => (slot(), select(NAMES)).prop_map(|(slot, name)| Op::Fgetxattr { slot, name }),
        1 => (slot(), select(NAMES)).prop_map(|(slot, name)| Op::Fremovexattr { slot, name }),
        1 => Just(Op::DirStart { slot: DIR_SLOT }),
        1 => Just(Op::DirFinish { slot: DIR_SLOT }),
        1 => (0..6_u8).prop_map(|at| Op::DirSeek { slot: DIR_SLOT, at }),
    ]
}

fn name_op() -> impl Strategy<Value = Op> {
    let flags = prop_oneof![
        4 => Just(0),
        1 => Just(libc::RENAME_NOREPLACE),
        2 => Just(libc::RENAME_EXCHANGE),
    ];
    let special = prop_oneof![
        2 => Just((libc::S_IFIFO, 0, 0)),
        1 => Just((libc::S_IFSOCK, 0, 0)),
        1 => Just((libc::S_IFREG, 0, 0)),
        1 => Just((libc::S_IFCHR, 1, 3)),
        1 => Just((libc::S_IFBLK, 7, 300)),
        1 => Just((libc::S_IFDIR, 0, 0)),
    ];
    prop_oneof![
        4 => (dir_path(), mode()).prop_map(|(path, mode)| Op::Mkdir { path, mode }),
        3 => dir_path().prop_map(|path| Op::Rmdir { path }),
        4 => file_path().prop_map(|path| Op::Unlink { path }),
        2 => (select(TARGETS), file_path()).prop_map(|(target, path)| Op::Symlink { target, path }),
        4 => (file_path(), file_path(), any::<bool>())
            .prop_map(|(from, to, follow)| Op::Link { from, to, follow }),
        5 => (file_path(), file_path(), flags.clone())
            .prop_map(|(from, to, flags)| Op::Rename { from, to, flags }),
        4 => (dir_path(), dir_path(), flags.clone())
            .prop_map(|(from, to, flags)| Op::Rename { from, to, flags }),
        1 => (path(), path(), flags).prop_map(|(from, to, flags)| Op::Rename { from, to, flags }),
        1 => (path(), special, mode()).prop_map(|(path, (kind, major, minor), mode)| Op::Mknod {
            path, kind, mode, major, minor,
        }),
        1 => select(&[0o022_u32, 0, 0o077, 0o777][..]).prop_map(|mask| Op::Umask { mask }),
    ]
}

fn attr_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (path(), mode()).prop_map(|(path, mode)| Op::Chmod { path, mode }),
        3 => (path(), owner(), owner(), any::<bool>())
            .prop_map(|(path, uid, gid, follow)| Op::Chown { path, uid, gid, follow }),
        2 => (path(), time(), time(), any::<bool>())
            .prop_map(|(path, atime, mtime, follow)| Op::Utimens { path, atime, mtime, follow }),
        4 => (path(), xattr(), xattr_flags(), any::<bool>())
            .prop_map(|(path, (name, value), flags, follow)| Op::SetXattr {
                path, name, value, flags, follow,
            }),
        2 => (path(), select(NAMES), any::<bool>())
            .prop_map(|(path, name, follow)| Op::RemoveXattr { path, name, follow }),
        2 => (file_path(), size()).prop_map(|(path, size)| Op::Truncate { path, size }),
    ]
}

fn look_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (path(), any::<bool>()).prop_map(|(path, follow)| Op::Stat { path, follow }),
        3 => dir_path().prop_map(|path| Op::List { path }),
        3 => file_path().prop_map(|path| Op::Cat { path }),
        1 => path().prop_map(|path| Op::Readlink { path }),
        1 => (path(), 0..8).prop_map(|(path, mode)| Op::Access { path, mode }),
        1 => (path(), any::<bool>()).prop_map(|(path, follow)| Op::ListXattr { path, follow }),
        1 => (path(), select(NAMES), any::<bool>())
            .prop_map(|(path, name, follow)| Op::GetXattr { path, name, follow }),
    ]
}

fn who() -> impl Strategy<Value = Who> {
    prop_oneof![8 => Just(Who::Root), 2 => Just(Who::Alice), 2 => Just(Who::Bob)]
}

/// One operation.
pub fn step() -> impl Strategy<Value = Step> {
    let op = prop_oneof![
        6 => open(),
        10 => data_op(),
        3 => handle_op(),
        8 => name_op(),
        5 => attr_op(),
        4 => look_op(),
    ];
    prop_oneof![
        80 => (who(), op).prop_map(|(who, op)| Step { who, op }),
        1 => Just(Step { who: Who::Root, op: Op::Remount }),
    ]
}

fn attrs() -> impl Strategy<Value = Attrs> {
    let xattrs = prop_oneof![3 => Just(0), 2 => 0..64_u8];
    (mode(), select(UIDS), select(UIDS), xattrs).prop_map(|(mode, uid, gid, xattrs)| Attrs {
        mode,
        uid,
        gid,
        xattrs,
    })
}

fn dir_node() -> impl Strategy<Value = Node> {
    (prop::bool::weighted(0.15), attrs()).prop_map(|(opaque, attrs)| Node::Dir { opaque, attrs })
}

fn leaf_node() -> impl Strategy<Value = Node> {
    prop_oneof![
        12 => (size(), any::<bool>(), seed(), attrs())
            .prop_map(|(size, sparse, seed, attrs)| Node::File { size, sparse, seed, attrs }),
        2 => (select(TARGETS), select(UIDS)).prop_map(|(target, uid)| Node::Symlink { target, uid }),
        4 => file_path().prop_map(|to| Node::Link { to }),
        1 => attrs().prop_map(|attrs| Node::Fifo { attrs }),
        1 => attrs().prop_map(|attrs| Node::Socket { attrs }),
        1 => attrs().prop_map(|attrs| Node::Device { attrs }),
        3 => Just(Node::Whiteout),
    ]
}

/// A layer made by hand.
pub fn tree() -> impl Strategy<Value = Layer> {
    let entry = prop_oneof![
        6 => (select(DIRS), dir_node()),
        1 => (select(DIRS), leaf_node()),
        12 => (select(FILES), leaf_node()),
        1 => (select(FILES), dir_node()),
    ];
    vec(entry, 1..20).prop_map(Layer::Tree)
}

fn layers() -> impl Strategy<Value = Vec<Layer>> {
    let above = prop_oneof![
        3 => tree(),
        1 => vec(step(), 1..12).prop_map(Layer::Written),
    ];
    (vec(above, 0..4), tree()).prop_map(|(mut layers, lowest)| {
        layers.push(lowest);
        layers
    })
}

/// Most operations need something open.
fn opened() -> impl Strategy<Value = Vec<Step>> {
    let file = |slot| {
        let flags = prop_oneof![
            2 => Just(libc::O_RDWR),
            2 => Just(libc::O_RDWR | libc::O_CREAT),
            1 => Just(libc::O_RDONLY),
        ];
        (file_path(), flags).prop_map(move |(path, flags)| Op::Open {
            slot,
            path,
            flags,
            mode: 0o644,
        })
    };
    let dir = select(DIRS).prop_map(|path| {
        let flags = libc::O_DIRECTORY;
        Op::Open {
            slot: DIR_SLOT,
            path,
            flags,
            mode: 0,
        }
    });
    let all = (file(0), file(1), dir, 0..4_usize);
    all.prop_map(|(first, second, dir, count)| {
        let ops = [first, second, dir].into_iter().take(count);
        ops.map(|op| Step { who: Who::Root, op }).collect()
    })
}

/// A whole case.
pub fn case(variant: Variant) -> impl Strategy<Value = Case> {
    let features = prop_oneof![4 => Just(Features::All), 1 => Just(Features::Default)];
    let setup = (
        select(&[0o755_u32, 0o777, 0o1777, 0o2777][..]),
        features,
        prop::bool::weighted(0.3),
    );
    (setup, layers(), opened(), vec(step(), 1..60)).prop_map(
        move |(setup, mut layers, opened, rest)| {
            let steps = opened.into_iter().chain(rest).collect();
            let (root_mode, mut features, each) = setup;
            let is_tree = |l: &Layer| matches!(l, Layer::Tree(_));
            if variant.user {
                // The kernel writes redirects and metacopy files in the other form alone.
                layers.retain(is_tree);
                features = Features::User;
            } else if !layers.iter().all(is_tree) {
                // And reads them with these features alone.
                features = Features::All;
            }
            let setup = Setup {
                root_mode,
                features,
                options: variant.options,
                each,
            };
            Case {
                setup,
                layers,
                steps,
            }
        },
    )
}
