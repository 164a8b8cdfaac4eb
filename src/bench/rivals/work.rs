//! The workloads, one after another.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::tree::Survey;
use super::{data, metadata, programs};
use crate::bench::error::BenchError;
use crate::bench::scene::Scene;

/// What a workload is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Group {
    /// Names, attributes, small files.
    Metadata,
    /// Contents.
    Data,
}

/// What workloads have to do with.
#[derive(Debug)]
pub(super) struct Ground {
    pub(super) scene: Scene,
    pub(super) survey: Survey,
    /// Small files in a tar, and how many entries it has.
    pub(super) tar: (PathBuf, u64),
    /// Debian packages, where they can be made.
    pub(super) debs: Option<PathBuf>,
    /// A git repository, where git is installed.
    pub(super) repository: Option<PathBuf>,
    /// Everything is divided by this.
    pub(super) less: usize,
}

/// Does something in a mounted directory, and says of how many single operations it was made.
pub(super) type Step = fn(&Ground, &Path) -> Result<u64, BenchError>;

/// One kind of work.
#[derive(Clone, Copy)]
pub(super) struct Task {
    pub(super) name: &'static str,
    pub(super) group: Group,
    /// Why it cannot be done here.
    pub(super) lacks: fn(&Ground, &Path) -> Option<String>,
    /// Not timed.
    pub(super) prepare: Step,
    pub(super) run: Step,
    /// It changes what the layers have, and not only names that begin with `bench-`.
    pub(super) harms: bool,
}

pub(super) fn nothing(_: &Ground, _: &Path) -> Result<u64, BenchError> {
    Ok(0)
}

pub(super) fn lacks_nothing(_: &Ground, _: &Path) -> Option<String> {
    None
}

const fn task(name: &'static str, group: Group, prepare: Step, run: Step) -> Task {
    Task {
        name,
        group,
        lacks: lacks_nothing,
        prepare,
        run,
        harms: false,
    }
}

impl Task {
    const fn if_not(self, lacks: fn(&Ground, &Path) -> Option<String>) -> Task {
        Task {
            name: self.name,
            group: self.group,
            lacks,
            prepare: self.prepare,
            run: self.run,
            harms: self.harms,
        }
    }

    const fn harming(self) -> Task {
        Task {
            name: self.name,
            group: self.group,
            lacks: self.lacks,
            prepare: self.prepare,
            run: self.run,
            harms: true,
        }
    }
}

use Group::{Data, Metadata};

/// Everything that is done, each on a fresh mount with an empty upper.
pub(super) const TASKS: &[Task] = &[
    task("walk, fresh mount", Metadata, nothing, metadata::walk),
    task("walk again", Metadata, metadata::walk, metadata::walk),
    task("tar of all, fresh mount", Metadata, nothing, metadata::tar),
    task(
        "read small files, fresh mount",
        Metadata,
        nothing,
        metadata::read_small,
    ),
    task(
        "read them again",
        Metadata,
        metadata::read_small,
        metadata::read_small,
    ),
    task(
        "look up missing names",
        Metadata,
        metadata::walk,
        metadata::missing,
    ),
    task(
        "look them up again",
        Metadata,
        metadata::missing,
        metadata::missing,
    ),
    task(
        "run /bin/true in a chroot",
        Metadata,
        nothing,
        programs::exec,
    )
    .if_not(programs::no_true),
    task("python imports", Metadata, nothing, programs::python).if_not(programs::no_python),
    task("untar small files", Metadata, nothing, metadata::untar),
    task(
        "rm -rf of those",
        Metadata,
        metadata::untar,
        metadata::remove_new,
    ),
    task(
        "rm -rf of a lower tree",
        Metadata,
        nothing,
        metadata::remove_lower,
    )
    .if_not(metadata::no_tree)
    .harming(),
    task(
        "mv of a lower directory",
        Metadata,
        nothing,
        metadata::rename,
    )
    .if_not(metadata::no_tree)
    .harming(),
    task(
        "chmod -R of a lower tree",
        Metadata,
        nothing,
        metadata::chmod,
    )
    .if_not(metadata::no_tree)
    .harming(),
    task(
        "create and delete files, two at once",
        Metadata,
        nothing,
        metadata::create,
    ),
    task(
        "make and remove directories",
        Metadata,
        nothing,
        metadata::directories,
    ),
    task(
        "git clone, status, gc, checkout",
        Metadata,
        nothing,
        programs::git_clone,
    )
    .if_not(programs::no_git),
    task(
        "dpkg -i of ten packages",
        Metadata,
        programs::bring_packages,
        programs::dpkg,
    )
    .if_not(programs::no_dpkg)
    .harming(),
    task("sqlite commits", Data, nothing, programs::sqlite).if_not(programs::no_sqlite),
    task("append and fsync", Data, nothing, data::append),
    task("write a large file", Data, nothing, data::write),
    task("read a large file", Data, data::write_out, data::read),
    task(
        "random writes of 4 KiB",
        Data,
        data::write_out,
        data::random,
    ),
    task(
        "read the image's large files",
        Data,
        nothing,
        data::read_lower,
    )
    .if_not(data::no_large),
    task(
        "change one block of a large lower file",
        Data,
        nothing,
        data::change,
    )
    .if_not(data::no_large)
    .harming(),
];
